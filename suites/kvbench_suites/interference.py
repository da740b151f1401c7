"""Interference: how fast a tier is while another one is loaded, beside how fast it is alone.

Every case with a load follows the same case without one, so that a report can say what the load
costs. Case and load are a process each. On a GPU the kernels of two processes take turns (unless
MPS runs), and only copy engines work beside them: so every pair there has a transfer in it.
"""

from collections.abc import Sequence
from dataclasses import replace

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.suite import Case, Plan, Suite
from kvbench.units import GIB
from kvbench_suites import dram, hbm, nvme

QUEUE_DEPTH = 16


def build(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """Pairs of tiers that share something: memory, the drive's host side, or the GPU's link."""
    block, on_drive = geometry.block_bytes, nvme.whole_sectors(geometry.block_bytes)
    # One core is left to whoever keeps the load's operations in flight.
    threads = max(1, dram.cores(machine)[-1] - 1)
    copy = dram.COPY.case({"block_bytes": block, "threads": threads})
    drive = {"block_bytes": on_drive, "queue_depth": QUEUE_DEPTH}
    read, write = nvme.READ.case(drive), nvme.WRITE.case(drive)
    h2d, d2h = (
        hbm.TRANSFER.case({"direction": way, "block_bytes": block, "batch": hbm.MANY_BLOCKS})
        for way in hbm.DIRECTIONS
    )
    kernel, engine = (
        hbm.COPY.case({"engine": name, "block_bytes": block}) for name in ("triton", "memcpy")
    )
    return [
        *_alone_and_beside(copy, read, write, h2d),
        *_alone_and_beside(read, copy, h2d),
        *_alone_and_beside(kernel, h2d, d2h),
        *_alone_and_beside(engine, h2d, d2h),
        *_alone_and_beside(h2d, d2h, kernel),
    ]


def _alone_and_beside(case: Case, *loads: Case) -> list[Case]:
    return [case, *(replace(case, beside=load) for load in loads)]


SUITE = Suite(
    name="interference",
    question="How fast is each tier while another one is loaded?",
    build=build,
    plan=Plan(processes=6, time_limit_s=1.0, data_bytes=1 * GIB),
)

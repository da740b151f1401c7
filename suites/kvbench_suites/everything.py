"""Suites over all tiers: `quick` for a first answer, `full` for the record, `ci` for a gate.

`quick` keeps to two minutes on two cores: three processes a case, a second each, and the few
points that say most about a model's blocks.
"""

from collections.abc import Sequence

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.suite import Case, Plan, Suite, sweep, unique
from kvbench.units import GIB, MIB
from kvbench_suites import dram, hbm, nvme
from kvbench_suites.paged import paged


def build_quick(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """One point or two for every question."""
    all_cores = dram.cores(machine)[-1]
    block_bytes = nvme.whole_sectors(geometry.block_bytes)
    cases = list(hbm.build_quick(geometry, machine))
    cases += sweep(
        dram.COPY,
        block_bytes=dram.COPY_BYTES,
        memory=dram.kinds(machine),
        threads=(1, all_cores) if all_cores > 1 else 1,
    )
    for operation in (dram.GATHER, dram.SCATTER):
        cases += sweep(
            operation, **paged(geometry), memory=dram.kinds(machine)[-1], threads=all_cores
        )
    for engine in nvme.engines(machine):
        cases += sweep(nvme.READ, block_bytes=block_bytes, queue_depth=(1, 16), **engine)
    cases += sweep(nvme.READ, block_bytes=MIB, queue_depth=16)
    cases += sweep(nvme.WRITE, block_bytes=block_bytes, queue_depth=16)
    cases += sweep(nvme.WRITE, block_bytes=block_bytes, queue_depth=1, fsync=True)
    return unique(cases)


def build_ci(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """What a gate can hold stable: the large points of each tier."""
    all_cores = dram.cores(machine)[-1]
    block_bytes = nvme.whole_sectors(geometry.block_bytes)
    cases = list(hbm.build_quick(geometry, machine))
    cases += sweep(
        dram.COPY, block_bytes=dram.COPY_BYTES, memory=dram.kinds(machine), threads=all_cores
    )
    cases += sweep(dram.GATHER, **paged(geometry), threads=all_cores)
    for engine in nvme.engines(machine):
        cases += sweep(nvme.READ, block_bytes=block_bytes, queue_depth=16, **engine)
    cases += sweep(nvme.WRITE, block_bytes=block_bytes, queue_depth=16)
    return unique(cases)


def build_full(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """Every suite, one after another."""
    parts = (hbm.SUITE, dram.SUITE, nvme.SUITE)
    return unique([case for suite in parts for case in suite.build(geometry, machine)])


QUICK = Suite(
    name="quick",
    question="How fast does this model's KV cache move in every tier of this machine?",
    build=build_quick,
    plan=Plan(processes=3, time_limit_s=0.75, warmup_s=0.2, data_bytes=1 * GIB),
)
FULL = Suite(
    name="full",
    question="Suites hbm, dram and nvme: every block size and queue depth.",
    build=build_full,
)
CI = Suite(
    name="ci",
    question="Has a tier become slower? A few points with enough processes to compare.",
    build=build_ci,
    plan=Plan(processes=10, time_limit_s=2.0, warmup_s=0.3, data_bytes=2 * GIB),
)

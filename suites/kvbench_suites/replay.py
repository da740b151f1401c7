"""A trace of requests through the tiered store: what is hit where, how fast it comes, how late.

One operation is one request: its prefix is looked up, the blocks that are here are brought into
rows, and those that are not are put, as an engine would once it has computed them. Computing takes
no time here. The payload is what was hit, arrived and was verified.

A block of the trace is one block of the store, of whatever size a case says. A trace of 512-token
blocks replayed with smaller blocks has the trace's hits and order, and proportionally less to move.
A row stands under the slowest tier that takes part: without a drive `dram`, with one `nvme`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.pattern import SECTOR_BYTES
from kvbench.measure.suite import (
    Case,
    Kind,
    Limit,
    Operation,
    Parameter,
    Plan,
    Suite,
    Value,
    sweep,
)
from kvbench.sim.trace import Trace, read_trace, synthetic
from kvbench.units import KIB, exact_bytes
from kvbench_suites import dram, nvme

SYNTHETIC = "synthetic"
SYNTHETIC_SEED = 20_260_101  # part of what the trace is: never changed
POLICIES = ("lru", "s3fifo", "length_aware", "leaf_first")
LARGEST_BLOCK_BYTES = 256 * KIB  # of the suite, so that whole passes fit its time
PATHS = {
    "dram": "the store's host memory",
    "nvme": "the store's host memory and drive, O_DIRECT",
}
MS_PER_S = 1000


def trace_of(name: str, requests: int) -> Trace:
    """The first `requests` of the made-up trace, or of the one in a file.

    Raises:
        UsageError: the file cannot be read, is no such trace, or has fewer requests.
    """
    if name == SYNTHETIC:
        return _made_up(requests)
    trace = _of_file(name)
    if len(trace.requests) < requests:
        raise UsageError(
            f"{name} has {len(trace.requests)} requests: requests = {requests} is too many"
        )
    return trace.first(requests)


@lru_cache(maxsize=8)
def _made_up(requests: int) -> Trace:
    return synthetic(requests, seed=SYNTHETIC_SEED)


@lru_cache(maxsize=8)  # an id is asked for often
def _of_file(name: str) -> Trace:
    return read_trace(Path(name))


def _named(value: Value) -> str:
    """A trace by what it is and not where it lies: `conversation.jsonl b2098563a3e19f93`."""
    if value == SYNTHETIC:
        return SYNTHETIC
    trace = _of_file(str(value))
    return f"{trace.name} {trace.digest}"


_BLOCK = Parameter(
    name="block_bytes",
    kind=Kind.BYTES,
    meaning="payload of one block of the trace",
    least=SECTOR_BYTES,
    multiple_of=SECTOR_BYTES,
)
_MEMORY = Parameter(name="dram_blocks", kind=Kind.COUNT, meaning="blocks that memory holds")
_DRIVE = Parameter(name="nvme_blocks", kind=Kind.COUNT, meaning="blocks that the drive holds")
_ADMISSION = Parameter(
    name="admission",
    kind=Kind.CHOICE,
    meaning="which blocks of memory are written to the drive",
    choices=("second_touch", "always"),
    default="second_touch",
)
_COMMON = (
    Parameter(
        name="policy",
        kind=Kind.CHOICE,
        meaning="which blocks go when a tier is full",
        choices=POLICIES,
        default="lru",
    ),
    Parameter(
        name="speed",
        kind=Kind.COUNT,
        meaning="times the trace's own clock; 0: the next request as soon as one is done",
        least=0,
        default=0,
        most=1_000_000,
    ),
    Parameter(
        name="queue_depth",
        kind=Kind.COUNT,
        meaning="requests served at a time; others wait",
        default=1,
        most=256,
    ),
    Parameter(
        name="deadline_ms",
        kind=Kind.COUNT,
        meaning="how long a request waits for blocks before it computes the rest; 0: for all",
        least=0,
        default=0,
        most=3_600_000,
    ),
    Parameter(
        name="trace",
        kind=Kind.TEXT,
        meaning=f"{SYNTHETIC}, or the path of a trace in Mooncake's JSONL format",
        default=SYNTHETIC,
        stands_for=_named,
    ),
    Parameter(
        name="requests",
        kind=Kind.COUNT,
        meaning="how many of the trace; then it starts over with new keys",
        default=300,
        most=10_000_000,
    ),
)


def _label(params: Mapping[str, Value]) -> str:
    tiers = f"dram{params['dram_blocks']}"
    if "nvme_blocks" in params:
        tiers += f"-nvme{params['nvme_blocks']}"
        tiers += "-all" if params["admission"] == "always" else ""
    speed = f"x{params['speed']}-" if params["speed"] else ""
    late = f"{params['deadline_ms']}ms-" if params["deadline_ms"] else ""
    return "/".join(
        (
            _trace_label(str(params["trace"])) + f"-{params['requests']}",
            str(params["policy"]),
            tiers,
            exact_bytes(int(params["block_bytes"])),
            f"{speed}{late}qd{params['queue_depth']}",
        )
    )


def _trace_label(name: str) -> str:
    """No letter that a shell, a glob or an id takes for its own; files of one name differ."""
    if name == SYNTHETIC:
        return SYNTHETIC
    trace = _of_file(name)
    stem = re.sub(r"[^A-Za-z0-9_.]", "_", Path(trace.name).stem)[:24]
    return f"{stem}.{trace.digest[:8]}"


def _wrong_trace(params: Mapping[str, Value]) -> str | None:
    try:
        trace_of(str(params["trace"]), int(params["requests"]))
    except UsageError as error:
        return str(error)
    return None


def _path(params: Mapping[str, Value]) -> str:
    return PATHS["nvme" if "nvme_blocks" in params else "dram"]


def _unmet(params: Mapping[str, Value], machine: Machine) -> str | None:
    if "nvme_blocks" not in params:
        return None
    return nvme.READ.unmet({"engine": "posix", "memory": "host"}, machine)


def _limit(params: Mapping[str, Value], machine: Machine) -> Limit:
    if "nvme_blocks" in params:
        return None, "how much of a replay each tier serves is what it finds out"
    return dram.COPY.limit({"cpu_node": -1, "memory_node": -1}, machine)


def _operation(tier: str, meaning: str, *sizes: Parameter) -> Operation:
    return Operation(
        name=f"{tier}.replay",
        meaning=meaning,
        body="kvbench_suites.replay_bodies:Replay",
        parameters=(_BLOCK, *sizes, *_COMMON),
        label=_label,
        path=_path,
        contradiction=_wrong_trace,
        unmet=_unmet,
        limit=_limit,
        stream=True,
        traffic=lambda _params: 2.0 if tier == "dram" else 1.0,  # as for the store's gets
    )


MEMORY = _operation("dram", "a trace's requests, blocks kept in memory", _MEMORY)
DRIVE = _operation(
    "nvme", "a trace's requests, blocks kept in memory and on a drive", _MEMORY, _DRIVE, _ADMISSION
)


def build(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:  # noqa: ARG001  any machine
    """The made-up trace in a small and a larger cache, by policy; and as its clock has it."""
    block_bytes = min(nvme.whole_sectors(geometry.block_bytes), LARGEST_BLOCK_BYTES)
    size = {"block_bytes": block_bytes}
    return [
        *sweep(MEMORY, **size, dram_blocks=(96, 384), policy=POLICIES),
        *sweep(
            DRIVE,
            **size,
            dram_blocks=64,
            nvme_blocks=384,
            admission=("always", "second_touch"),
            policy=("lru", "s3fifo"),
        ),
        *sweep(
            DRIVE,
            **size,
            dram_blocks=64,
            nvme_blocks=384,
            admission="always",
            speed=40,
            queue_depth=4,
        ),
    ]


OPERATIONS = (MEMORY, DRIVE)
SUITE = Suite(
    name="replay",
    question="What does a trace of requests hit in each tier of the store, how fast and how late?",
    build=build,
    plan=Plan(processes=5, time_limit_s=4.0),
)

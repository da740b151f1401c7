"""The tiered store: put, get, lookup and mixed work by tier, and restoring a prefix.

What is measured is kvbench's own store through its API, with everything it does for safety:
every block is hashed when it is stored and compared when it arrives. A flushed put ends when the
drive has said that it would survive a loss of power.
"""

from collections.abc import Mapping, Sequence

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
    no_limit,
    sweep,
)
from kvbench.units import GIB, KIB, MIB, exact_bytes
from kvbench_suites import dram, nvme

TIERS = ("hbm", "dram", "nvme")
PATHS = {
    "hbm": "the store's GPU memory",
    "dram": "the store's host memory",
    "nvme": "the store's drive, O_DIRECT",
}
RESTORED_TOKENS = (1_024, 4_096)
PERCENT = 100

_BLOCK = Parameter(
    name="block_bytes",
    kind=Kind.BYTES,
    meaning="payload of one block",
    least=SECTOR_BYTES,
    multiple_of=SECTOR_BYTES,
)
_BATCH = Parameter(
    name="batch", kind=Kind.COUNT, meaning="blocks of one request", default=16, most=4096
)
_DEPTH = Parameter(
    name="queue_depth", kind=Kind.COUNT, meaning="requests in flight", default=1, most=256
)


_GETS = Parameter(
    name="gets_percent",
    kind=Kind.COUNT,
    meaning="requests in a hundred that get",
    default=80,
    most=PERCENT,
)
_RESTORED = (
    _BLOCK,
    Parameter(name="tokens", kind=Kind.COUNT, meaning="tokens of the prefix"),
    Parameter(name="block_tokens", kind=Kind.COUNT, meaning="tokens of a block", default=16),
    Parameter(name="layers", kind=Kind.COUNT, meaning="parts of a block", default=1, most=384),
    Parameter(
        name="by_layer",
        kind=Kind.FLAG,
        meaning="layer by layer, as a model would start on them",
        default=False,
    ),
)


def _label(params: Mapping[str, Value]) -> str:
    parts = [
        exact_bytes(int(params["block_bytes"])),
        f"batch{params['batch']}",
        f"qd{params['queue_depth']}",
    ]
    if "gets_percent" in params:
        parts.append(f"get{params['gets_percent']}")
    return "/".join(parts)


def _restore_label(params: Mapping[str, Value]) -> str:
    order = "by-layer" if params["by_layer"] else "whole"
    return f"{params['tokens']}tokens/{exact_bytes(int(params['block_bytes']))}/{order}"


def _path(params: Mapping[str, Value]) -> str:
    return PATHS[str(params["tier"])]


def _unmet(params: Mapping[str, Value], machine: Machine) -> str | None:
    if params["tier"] == "hbm" and not machine.has_gpu:
        return f"no CUDA device: {machine.gpu_reason}"
    if params["tier"] != "nvme":
        return None
    on_a_drive = {"engine": "posix", "memory": "host"}
    return nvme.READ.unmet(on_a_drive, machine)


def _limit(params: Mapping[str, Value], machine: Machine) -> Limit:
    if params["tier"] == "nvme":
        return nvme.READ.limit(params, machine)
    if params["tier"] == "dram":
        return dram.COPY.limit({"cpu_node": -1, "memory_node": -1}, machine)
    return None, "the link between GPU and host is measured by suite hbm"


def _operations(
    verb: str,
    meaning: str,
    body: str,
    *more: Parameter,
    whole: bool = False,
    tiers: Sequence[str] = TIERS,
) -> dict[str, Operation]:
    """One operation for each tier, as `nvme.get`; `whole` ones take a prefix and no batch."""
    made: dict[str, Operation] = {}
    for tier in tiers:
        where = Parameter(
            name="tier",
            kind=Kind.CHOICE,
            meaning="where the blocks lie",
            choices=(tier,),
            default=tier,
        )
        made[tier] = Operation(
            name=f"{tier}.{verb}",
            meaning=f"{meaning} (the store's {tier} tier)",
            body=f"kvbench_suites.store_bodies:{body}",
            parameters=(where, *(more if whole else (_BLOCK, _BATCH, _DEPTH, *more))),
            label=_restore_label if whole else _label,
            path=_path,
            unmet=_unmet,
            limit=_limit if body != "Lookup" else no_limit,
            stream=not whole,
            traffic=_traffic,
        )
    return made


def _traffic(params: Mapping[str, Value]) -> float:
    return 2.0 if params["tier"] == "dram" else 1.0  # a block is read and written


GET = _operations("get", "get blocks into host memory, checked", "Get")
PUT = _operations("put", "put new blocks, for which old ones give way; on a drive flushed", "Put")
MIXED = _operations("mixed", "requests that get and requests that put", "Mixed", _GETS)
LOOKUP = _operations(
    "lookup",
    "lease blocks and release them; the payload are keys of 32 bytes",
    "Lookup",
    tiers=("dram",),  # an index is memory, wherever the blocks are
)
RESTORE = _operations(
    "restore_tokens",
    "bring a prefix back: lookup, get, all there",
    "Restore",
    *_RESTORED,
    whole=True,
)


def _layers(geometry: KVGeometry, block_bytes: int) -> int:
    """Layers of the model, if they are equal parts that a drive can read alone."""
    layers = geometry.rank_layer_count
    return layers if block_bytes % (layers * SECTOR_BYTES) == 0 else 1


def build(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """Every tier that this machine has, at the model's block and at 1 MiB and 64 KiB."""
    block_bytes = nvme.whole_sectors(geometry.block_bytes)
    layers = _layers(geometry, block_bytes)
    cases: list[Case] = []
    for tier in TIERS if machine.has_gpu else TIERS[1:]:
        depths = (1, 4) if tier == "nvme" else (1, 2)
        for size in sorted({block_bytes, MIB, 64 * KIB}):
            cases += sweep(GET[tier], block_bytes=size, batch=(1, 16), queue_depth=depths)
            cases += sweep(PUT[tier], block_bytes=size, batch=16, queue_depth=(1, 4))
        cases += sweep(MIXED[tier], block_bytes=block_bytes, batch=16, queue_depth=2)
        cases += sweep(
            RESTORE[tier],
            block_bytes=block_bytes,
            tokens=RESTORED_TOKENS,
            block_tokens=geometry.block_size,
            layers=layers,
            by_layer=(False, True) if layers > 1 else False,
        )
    cases += sweep(LOOKUP["dram"], block_bytes=SECTOR_BYTES, batch=(8, 32, 256))
    return cases


OPERATIONS = tuple(
    operation
    for operations in (GET, PUT, MIXED, LOOKUP, RESTORE)
    for operation in operations.values()
)
SUITE = Suite(
    name="store",
    question="How fast is kvbench's own tiered store, by tier, with every block verified?",
    build=build,
    plan=Plan(processes=5, time_limit_s=2.0, data_bytes=1 * GIB),
)

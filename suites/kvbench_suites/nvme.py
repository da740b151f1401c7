"""NVMe tier: blocks read from and written to the drive below a directory.

The POSIX engine is O_DIRECT with one thread a lane; KvikIO is GPUDirect Storage into device
memory where there is a GPU, and its own POSIX path into host memory where there is none.
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
    Suite,
    Value,
    sweep,
)
from kvbench.units import KIB, MIB, exact_bytes

QUEUE_DEPTHS = (1, 4, 16, 32)

_COMMON = (
    Parameter(
        name="block_bytes",
        kind=Kind.BYTES,
        meaning="bytes of one operation",
        least=SECTOR_BYTES,
        multiple_of=SECTOR_BYTES,
    ),
    Parameter(name="queue_depth", kind=Kind.COUNT, meaning="operations in flight", most=1024),
    Parameter(
        name="engine",
        kind=Kind.CHOICE,
        meaning="who moves the bytes",
        choices=("posix", "kvikio"),
        default="posix",
    ),
    Parameter(
        name="memory",
        kind=Kind.CHOICE,
        meaning="where they arrive; device is GPU memory, by KvikIO only",
        choices=("host", "device"),
        default="host",
    ),
    Parameter(
        name="order",
        kind=Kind.CHOICE,
        meaning="order of the offsets",
        choices=("sequential", "random"),
        default="random",
    ),
)


def _label(params: Mapping[str, Value]) -> str:
    parts = [
        str(params["engine"]) + ("-device" if params["memory"] == "device" else ""),
        exact_bytes(int(params["block_bytes"])),
        f"qd{params['queue_depth']}",
        str(params["order"]),
    ]
    if params.get("fsync"):
        parts.append("fsync")
    return "/".join(parts)


def _path(params: Mapping[str, Value]) -> str:
    if params["engine"] == "posix":
        return "POSIX, O_DIRECT"
    if params["memory"] == "device":
        return "GDS"
    return "kvikio POSIX, host memory, O_DIRECT"


def _unmet(params: Mapping[str, Value], machine: Machine) -> str | None:
    storage = machine.storage
    if storage is None:
        return "no directory to measure: name one with --dir"
    if storage.device_kind == "memory":
        return f"{storage.filesystem} is memory, not a drive: name a directory on one with --dir"
    if storage.writable is False:
        return f"{storage.directory} cannot be written: name another directory with --dir"
    if params["memory"] == "device" and not machine.has_gpu:
        return f"no CUDA device: {machine.gpu_reason}"
    if params["engine"] == "kvikio" and not machine.kvikio.usable:
        return f"KvikIO: {machine.kvikio.reason}; {machine.kvikio.fix or 'see kvbench doctor'}"
    return None


def _contradiction(params: Mapping[str, Value]) -> str | None:
    if params["memory"] == "device" and params["engine"] != "kvikio":
        return "memory = 'device': only engine = 'kvikio' reaches device memory"
    if params.get("fsync") and params["engine"] != "posix":
        return "fsync = true: only engine = 'posix' can make a write durable"
    return None


def _limit(_params: Mapping[str, Value], machine: Machine) -> Limit:
    storage = machine.storage
    if storage is None or storage.link_bytes_per_s is None:
        reason = (storage and storage.link_reason) or "the link is not known here"
        return None, f"{reason}; if you know it, say --limit nvme=7GB/s"
    return storage.link_bytes_per_s, storage.link_source or "link"


READ = Operation(
    name="nvme.read",
    meaning="read blocks of a fully written file, past the page cache, and check them",
    body="kvbench_suites.nvme_bodies:ReadBlocks",
    parameters=_COMMON,
    contradiction=_contradiction,
    label=_label,
    path=_path,
    unmet=_unmet,
    limit=_limit,
    stream=True,
)
WRITE = Operation(
    name="nvme.write",
    meaning="write blocks over a file that is fully written already, and read them back",
    body="kvbench_suites.nvme_bodies:WriteBlocks",
    parameters=(
        *_COMMON,
        Parameter(
            name="fsync",
            kind=Kind.FLAG,
            meaning="each block is durable (fdatasync) before it counts",
            default=False,
        ),
    ),
    contradiction=_contradiction,
    label=_label,
    path=_path,
    unmet=_unmet,
    limit=_limit,
    stream=True,
)


def block_sizes(geometry: KVGeometry) -> tuple[int, ...]:
    """One layer's share of a block, a whole block, and the sizes in which drives are compared."""
    sizes = {
        whole_sectors(geometry.layer_block_bytes),
        whole_sectors(geometry.block_bytes),
        256 * KIB,
        MIB,
        4 * MIB,
    }
    return tuple(sorted(sizes))


def engines(machine: Machine) -> tuple[dict[str, Value], ...]:
    """Engine and target memory, in pairs: device memory where there is a GPU."""
    memory = "device" if machine.has_gpu else "host"
    return ({"engine": "posix", "memory": "host"}, {"engine": "kvikio", "memory": memory})


def build(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """All block sizes at all queue depths, both engines beside each other."""
    cases: list[Case] = []
    for block_bytes in block_sizes(geometry):
        for queue_depth in QUEUE_DEPTHS:
            for engine in engines(machine):
                point = {"block_bytes": block_bytes, "queue_depth": queue_depth, **engine}
                cases += sweep(READ, **point, order=("random", "sequential"))
                cases += sweep(WRITE, **point, order="random")
    block_bytes = whole_sectors(geometry.block_bytes)
    cases += sweep(WRITE, block_bytes=block_bytes, queue_depth=QUEUE_DEPTHS, fsync=True)
    cases += sweep(WRITE, block_bytes=block_bytes, queue_depth=16, order="sequential")
    return cases


def whole_sectors(size_bytes: int) -> int:
    """Padded to what O_DIRECT can move, as a store's slots are."""
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


OPERATIONS = (READ, WRITE)
SUITE = Suite(
    name="nvme",
    question="How fast do blocks of this model come from and go to the drive?",
    build=build,
)

"""DRAM tier: contiguous copies, and pages of blocks gathered into a staging buffer and back.

Memory is pageable, locked (mlock and huge pages) or, where there is a GPU, pinned by CUDA; the
three are different tiers to a DMA engine, and rows name which one they used.
"""

from collections.abc import Iterable, Mapping, Sequence

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
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
from kvbench.units import MIB, exact_bytes, format_bytes
from kvbench_suites.paged import PAGES, paged, partial_page

COPY_BYTES = 256 * MIB  # far beyond any cache
ANY_NODE = -1
MEMORY_PATHS = {
    "pageable": "pageable memory",
    "locked": "mlock, transparent huge pages",
    "pinned": "pinned by CUDA",
}

_COMMON = (
    Parameter(name="threads", kind=Kind.COUNT, meaning="threads, each on a core of its own"),
    Parameter(
        name="memory",
        kind=Kind.CHOICE,
        meaning="pageable; locked by mlock with huge pages; pinned by CUDA",
        choices=tuple(MEMORY_PATHS),
        default="pageable",
    ),
    Parameter(
        name="cpu_node",
        kind=Kind.COUNT,
        meaning="NUMA node of the cores; -1 is any",
        least=ANY_NODE,
        default=ANY_NODE,
    ),
    Parameter(
        name="memory_node",
        kind=Kind.COUNT,
        meaning="NUMA node of the memory; -1 is wherever it is touched first",
        least=ANY_NODE,
        default=ANY_NODE,
    ),
)


def _label(params: Mapping[str, Value]) -> str:
    parts = [str(params["memory"]), exact_bytes(int(params["block_bytes"]))]
    if "page_bytes" in params:
        parts.append("page" + exact_bytes(int(params["page_bytes"])))
    parts.append(f"t{params['threads']}")
    if params["cpu_node"] != ANY_NODE or params["memory_node"] != ANY_NODE:
        parts.append(f"cpu{params['cpu_node']}-mem{params['memory_node']}")
    return "/".join(parts)


def _path(params: Mapping[str, Value]) -> str:
    return MEMORY_PATHS[str(params["memory"])]


def _unmet(params: Mapping[str, Value], machine: Machine) -> str | None:
    if params["memory"] == "pinned" and not machine.has_gpu:
        return f"memory is pinned by CUDA, and there is no CUDA device: {machine.gpu_reason}"
    locked_bytes = machine.memory.locked_limit_bytes
    if params["memory"] == "locked" and locked_bytes is not None:
        needed_bytes = 2 * int(params["block_bytes"])
        if needed_bytes > locked_bytes:
            return (
                f"at least {format_bytes(needed_bytes)} are to be locked and "
                f"{format_bytes(locked_bytes)} are allowed: `ulimit -l unlimited` as root"
            )
    cores = machine.cpu.affinity_cores
    if cores is not None and int(params["threads"]) > cores:
        return f"{params['threads']} threads need as many cores and this process may use {cores}"
    nodes = {node.index for node in machine.numa_nodes}
    for name in ("cpu_node", "memory_node"):
        if params[name] != ANY_NODE and params[name] not in nodes:
            return f"there is no NUMA node {params[name]}"
    return None


def _limit(params: Mapping[str, Value], machine: Machine) -> Limit:
    """DRAM bandwidth over two: each byte of a copy is read once and written once."""
    if len(machine.numa_nodes) > 1 and {params["cpu_node"], params["memory_node"]} != {ANY_NODE}:
        return None, "the bandwidth of one NUMA node, or of the link between two, is not known"
    rate = machine.memory.bandwidth_bytes_per_s
    if rate is None:
        reason = machine.memory.bandwidth_reason or "not known here"
        return None, f"{reason}; if you know it, say --limit dram=20GB/s"
    return rate / 2, f"{machine.memory.bandwidth_source}; a copy reads and writes: ÷ 2"


COPY = Operation(
    name="dram.copy",
    meaning="copy one contiguous range by memcpy",
    body="kvbench_suites.dram_bodies:CopyBlock",
    parameters=(
        Parameter(name="block_bytes", kind=Kind.BYTES, meaning="bytes of one copy"),
        *_COMMON,
    ),
    label=_label,
    path=_path,
    unmet=_unmet,
    limit=_limit,
    traffic=lambda _params: 2.0,
)
GATHER = Operation(
    name="dram.gather",
    meaning="gather the pages of scattered blocks into a staging buffer",
    body="kvbench_suites.dram_bodies:GatherPages",
    parameters=(*PAGES, *_COMMON),
    contradiction=partial_page,
    label=_label,
    path=_path,
    unmet=_unmet,
    limit=_limit,
    traffic=lambda _params: 2.0,
)
SCATTER = Operation(
    name="dram.scatter",
    meaning="scatter a staging buffer into the pages of scattered blocks",
    body="kvbench_suites.dram_bodies:ScatterPages",
    parameters=(*PAGES, *_COMMON),
    contradiction=partial_page,
    label=_label,
    path=_path,
    unmet=_unmet,
    limit=_limit,
    traffic=lambda _params: 2.0,
)


def kinds(machine: Machine) -> tuple[str, ...]:
    """Pageable against the locked memory that a store would use here."""
    return ("pageable", "pinned") if machine.has_gpu else ("pageable", "locked")


def cores(machine: Machine) -> tuple[int, ...]:
    """One core and all cores."""
    return tuple(sorted({1, machine.cpu.affinity_cores or 1}))


def build(geometry: KVGeometry, machine: Machine) -> Sequence[Case]:
    """Copies of a block and of a large range, gather and scatter; then each NUMA node."""
    shared: dict[str, Iterable[Value]] = {"memory": kinds(machine), "threads": cores(machine)}
    cases = sweep(COPY, block_bytes=sorted({geometry.block_bytes, COPY_BYTES}), **shared)
    cases += sweep(GATHER, **paged(geometry), **shared)
    cases += sweep(SCATTER, **paged(geometry), **shared)
    nodes = [node for node in machine.numa_nodes if node.cpus]
    for cpu_node in nodes if len(machine.numa_nodes) > 1 else []:
        for memory_node in machine.numa_nodes:
            cases += sweep(
                COPY,
                block_bytes=COPY_BYTES,
                memory=kinds(machine),
                threads=len(cpu_node.cpus),
                cpu_node=cpu_node.index,
                memory_node=memory_node.index,
            )
    return cases


OPERATIONS = (COPY, GATHER, SCATTER)
SUITE = Suite(
    name="dram",
    question="How fast do blocks move inside host memory, and what do paging and pinning cost?",
    build=build,
)

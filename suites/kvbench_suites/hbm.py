"""HBM tier: copies inside GPU memory, pages gathered and scattered there, and transfers to it.

Device copies go by cudaMemcpyAsync, whose engine the driver chooses, or by a Triton kernel;
transfers are between device memory and host memory that is pinned or pageable. Data only: the
work is in `kvbench_suites.hbm_bodies`, and nothing here imports torch.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence

from kvbench.geometry import KVGeometry
from kvbench.machine import Gpu, Machine
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
from kvbench_suites.formats import ELEMENT_BYTES
from kvbench_suites.paged import PAGES, paged, partial_page

PEAK_BYTES = 256 * MIB  # beyond any L2, and long enough that a launch does not count
KERNEL_UNIT_BYTES = 16  # the kernels' widest access; they move whole ones
MANY_BLOCKS = 16  # a batch that fills the device: 16 blocks of 2 MiB are 4096 tiles
ENGINE_PATHS = {"memcpy": "cudaMemcpyAsync, device to device", "triton": "Triton kernel"}
DIRECTIONS = {"h2d": "host to device", "d2h": "device to host"}

# Grace machines (GH200, GB200, GB300, GB10) reach host memory over NVLink-C2C, about which NVML
# says nothing; the PCIe link that it does report carries none of these bytes.
_GRACE = re.compile(r"\bG[HB]\d+")


def transfer_path(direction: str, memory: str) -> str:
    """How a transfer's bytes travel, in the words of a report."""
    return f"cudaMemcpyAsync, {DIRECTIONS[direction]}, {memory} memory"


def _size(params: Mapping[str, Value], name: str) -> str:
    return exact_bytes(int(params[name]))


def _copy_label(params: Mapping[str, Value]) -> str:
    return f"{params['engine']}/{_size(params, 'block_bytes')}"


def _pages_label(params: Mapping[str, Value]) -> str:
    page, block = _size(params, "page_bytes"), _size(params, "block_bytes")
    return f"{block}/page{page}/x{params['batch']}"


def _transfer_label(params: Mapping[str, Value]) -> str:
    route = f"{params['direction']}/{params['memory']}"
    return f"{route}/{_size(params, 'block_bytes')}/x{params['batch']}"


def _gpu(machine: Machine) -> Gpu | None:
    """The GPU that the bodies use, cuda:0."""
    return next(iter(machine.visible_gpus), None)


def unit_bytes(params: Mapping[str, Value]) -> int:
    """Payload of one launch."""
    batch = int(params.get("batch", 1))
    for name in ("block_bytes", "token_bytes"):
        if name in params:
            return int(params[name]) * batch
    shape = ("layers", "block_tokens", "heads", "head_dim")
    return batch * 2 * ELEMENT_BYTES * math.prod(int(params[name]) for name in shape)  # K and V


def lacks_room(sides: int, params: Mapping[str, Value], machine: Machine) -> str | None:
    """Why not even one launch's payload fits; `sides` of it are in GPU memory."""
    gpu = _gpu(machine)
    if gpu is None:
        return f"no CUDA device: {machine.gpu_reason}"
    need_bytes = sides * unit_bytes(params)
    if gpu.memory_bytes is not None and need_bytes > gpu.memory_bytes:
        return (
            f"needs {format_bytes(need_bytes)} of GPU memory "
            f"and cuda:0 has {format_bytes(gpu.memory_bytes)}"
        )
    return None


def uneven(name: str, params: Mapping[str, Value]) -> str | None:
    """Why the kernels do not move pieces of this size, or None."""
    if int(params[name]) % KERNEL_UNIT_BYTES == 0:
        return None
    return f"the kernel moves whole units of {KERNEL_UNIT_BYTES} bytes, {name} = {params[name]}"


def _unmet_copy(params: Mapping[str, Value], machine: Machine) -> str | None:
    # Source and target are both on the device.
    lacking = lacks_room(2, params, machine)
    return lacking or (uneven("block_bytes", params) if params["engine"] == "triton" else None)


def _unmet_pages(params: Mapping[str, Value], machine: Machine) -> str | None:
    return lacks_room(2, params, machine) or uneven("page_bytes", params)


def _unmet_transfer(params: Mapping[str, Value], machine: Machine) -> str | None:
    return lacks_room(1, params, machine)


def read_and_written(_params: Mapping[str, Value]) -> float:
    """Of each byte of payload: once each."""
    return 2.0


def gpu_memory_limit(
    traffic: Callable[[Mapping[str, Value]], float],
) -> Callable[[Mapping[str, Value], Machine], Limit]:
    """HBM bandwidth over the bytes that are read and written for each byte of payload."""

    def limit(params: Mapping[str, Value], machine: Machine) -> Limit:
        gpu = _gpu(machine)
        if gpu is None:
            return None, f"no CUDA device: {machine.gpu_reason}"
        if gpu.hbm_bytes_per_s is None:
            return None, "NVML tells no memory clock or bus width of this GPU"
        factor = traffic(params)
        why = "a copy reads and writes" if factor == 2 else "read and written for each byte"  # noqa: PLR2004
        return gpu.hbm_bytes_per_s / factor, f"{gpu.hbm_source}; {why}: ÷ {factor:.4g}"

    return limit


def link_limit(_params: Mapping[str, Value], machine: Machine) -> Limit:
    """What the PCIe link carries in one direction, as negotiated."""
    gpu = _gpu(machine)
    if gpu is None:
        return None, f"no CUDA device: {machine.gpu_reason}"
    if _GRACE.search(gpu.name or ""):
        return None, f"{gpu.name} reaches host memory over NVLink-C2C, whose rate NVML tells not"
    if gpu.pcie_bytes_per_s is None:
        return None, "NVML tells no PCIe generation or width of this GPU"
    return gpu.pcie_bytes_per_s, str(gpu.pcie_source)


_PAGED = (
    *PAGES,
    Parameter(
        name="batch", kind=Kind.COUNT, meaning="blocks moved by one launch of the kernel", default=1
    ),
)
COPY = Operation(
    name="hbm.copy",
    meaning="copy one range after another inside GPU memory",
    body="kvbench_suites.hbm_bodies:CopyBlock",
    parameters=(
        Parameter(name="block_bytes", kind=Kind.BYTES, meaning="bytes of one copy"),
        Parameter(
            name="engine",
            kind=Kind.CHOICE,
            meaning="cudaMemcpyAsync as torch calls it, or a Triton kernel",
            choices=tuple(ENGINE_PATHS),
            default="memcpy",
        ),
    ),
    label=_copy_label,
    path=lambda params: ENGINE_PATHS[str(params["engine"])],
    unmet=_unmet_copy,
    limit=gpu_memory_limit(read_and_written),
    traffic=read_and_written,
)
GATHER = Operation(
    name="hbm.gather",
    meaning="gather the pages of scattered blocks into a staging buffer in GPU memory",
    body="kvbench_suites.hbm_bodies:GatherPages",
    parameters=_PAGED,
    label=_pages_label,
    path=lambda _params: ENGINE_PATHS["triton"],
    contradiction=partial_page,
    unmet=_unmet_pages,
    limit=gpu_memory_limit(read_and_written),
    traffic=read_and_written,
)
SCATTER = Operation(
    name="hbm.scatter",
    meaning="scatter a staging buffer into the pages of scattered blocks in GPU memory",
    body="kvbench_suites.hbm_bodies:ScatterPages",
    parameters=_PAGED,
    label=_pages_label,
    path=lambda _params: ENGINE_PATHS["triton"],
    contradiction=partial_page,
    unmet=_unmet_pages,
    limit=gpu_memory_limit(read_and_written),
    traffic=read_and_written,
)
TRANSFER = Operation(
    name="hbm.transfer",
    meaning="move blocks between scattered slots of host and GPU memory, one copy a block",
    body="kvbench_suites.hbm_bodies:Transfer",
    parameters=(
        Parameter(
            name="direction",
            kind=Kind.CHOICE,
            meaning="host to device or device to host",
            choices=tuple(DIRECTIONS),
        ),
        Parameter(
            name="memory",
            kind=Kind.CHOICE,
            meaning="host memory pinned by CUDA, or pageable",
            choices=("pinned", "pageable"),
            default="pinned",
        ),
        Parameter(name="block_bytes", kind=Kind.BYTES, meaning="bytes of one copy"),
        Parameter(
            name="batch", kind=Kind.COUNT, meaning="copies enqueued one after another", default=1
        ),
    ),
    label=_transfer_label,
    path=lambda params: transfer_path(str(params["direction"]), str(params["memory"])),
    unmet=_unmet_transfer,
    limit=link_limit,
    limited_by="link",
)


def build(geometry: KVGeometry, _machine: Machine) -> Sequence[Case]:
    """Copies, gathers, scatters and transfers at the model's sizes and at one for the peak."""
    pages = geometry.pages[0]
    sizes = sorted({pages.bytes, geometry.block_bytes, PEAK_BYTES})
    cases = sweep(COPY, block_bytes=sizes, engine=tuple(ENGINE_PATHS))
    for operation in (GATHER, SCATTER):
        cases += sweep(operation, **paged(geometry), batch=(1, MANY_BLOCKS))
    ways = {"direction": tuple(DIRECTIONS), "memory": ("pinned", "pageable")}
    cases += sweep(TRANSFER, block_bytes=PEAK_BYTES, **ways)
    cases += sweep(TRANSFER, block_bytes=geometry.block_bytes, batch=MANY_BLOCKS, **ways)
    # A block that is moved page by page: what scattered pages cost without a gather.
    cases += sweep(TRANSFER, block_bytes=pages.bytes, batch=pages.count, **ways)
    return cases


def build_quick(geometry: KVGeometry, _machine: Machine) -> Sequence[Case]:
    """The peak by both engines, one block's pages, and a block to the device and back."""
    cases = sweep(COPY, block_bytes=PEAK_BYTES, engine=tuple(ENGINE_PATHS))
    cases += sweep(GATHER, **paged(geometry), batch=MANY_BLOCKS)
    cases += sweep(
        TRANSFER,
        block_bytes=geometry.block_bytes,
        batch=MANY_BLOCKS,
        direction=tuple(DIRECTIONS),
        memory="pinned",
    )
    return cases


OPERATIONS = (COPY, GATHER, SCATTER, TRANSFER)
SUITE = Suite(
    name="hbm",
    question="How close do blocks come to the GPU's own bandwidth, and to its link to the host?",
    build=build,
)

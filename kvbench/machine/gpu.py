"""GPUs and driver as NVML describes them.

Asks NVML through a module handed in (`pynvml`, or a recorded one in tests) and never CUDA, so no
context is made and no GPU memory is taken. A question that this GPU or driver does not answer is
None. Bandwidths here are theoretical; nothing is measured.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import msgspec

from kvbench.machine.pcie import Link, pcie_rate, pcie_source
from kvbench.machine.record import Cuda, Gpu
from kvbench.machine.tree import Tree

_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h). Idleness and the user's own clock
# settings hold clocks back too, but nobody calls that throttling.
_THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
_IDLE = 0x1
_FULL_SPEED_STATE = 0  # P0


def probe_gpus(nvml: ModuleType, tree: Tree, environ: Mapping[str, str]) -> tuple[list[Gpu], Cuda]:
    """All GPUs of this machine and the driver; without NVML no GPUs and the reason."""
    pci_gpus = _count_pci_gpus(tree)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return [], Cuda(nvml_error=f"NVML: {error}", pci_gpus=pci_gpus)
    try:
        cuda = Cuda(
            driver_version=_text(_ask(nvml, nvml.nvmlSystemGetDriverVersion)),
            cuda_driver_version=cuda_version(_ask(nvml, nvml.nvmlSystemGetCudaDriverVersion)),
            pci_gpus=pci_gpus,
        )
        count = _ask(nvml, nvml.nvmlDeviceGetCount) or 0
        found = [_probe_gpu(nvml, index, tree) for index in range(count)]
    finally:
        _ask(nvml, nvml.nvmlShutdown)
    gpus = [gpu for gpu, _ in found]
    uuids = [uuid for _, uuid in found]
    order = visible_devices(
        environ.get("CUDA_VISIBLE_DEVICES"), uuids, [bool(gpu.mig) for gpu in gpus]
    )
    return [_with_cuda_index(gpu, order) for gpu in gpus], cuda


def hbm_rate(clock_hz: int | None, bus_bits: int | None) -> float | None:
    """Theoretical memory bandwidth in bytes per second: clock x bus width x 2 / 8.

    NVML's memory clock counts cycles and data move on both edges. H100 SXM: 2619 MHz x 5120 bit
    x 2 / 8 = 3.35 TB/s, as its data sheet says; A100 80 GB: 1593 MHz x 5120 bit = 2.04 TB/s.
    """
    return clock_hz * bus_bits * 2 / 8 if clock_hz and bus_bits else None


def hbm_source(clock_hz: int | None, bus_bits: int | None) -> str | None:
    """The formula of `hbm_rate` with its numbers, for a report."""
    return (
        f"NVML: {clock_hz / 1e6:g} MHz x {bus_bits} bit x 2 / 8" if clock_hz and bus_bits else None
    )


def link_limit(link: Link, performance_state: int | None) -> tuple[float | None, str | None]:
    """What a PCIe link carries under load, in bytes per second and direction, and the formula.

    An idle GPU may lower the generation to save power and raise it with the first copy; the
    width never changes. So the generation of now counts only at full speed (P0), and otherwise
    the highest that GPU and slot can do.
    """
    now, most = link.generation, link.generation_max
    saving = bool(now and most and now < most and performance_state != _FULL_SPEED_STATE)
    usable = most if saving else now
    source = pcie_source(usable, link.width)
    if source and saving:
        source += f" (generation {now} now, while the GPU saves power)"
    return pcie_rate(usable, link.width), source


def throttle_reasons(bits: int) -> list[str]:
    """What holds the clocks back, in words, from NVML's bits."""
    return [words for bit, words in _THROTTLE_REASONS.items() if bits & bit]


def visible_devices(setting: str | None, uuids: list[str], mig: list[bool]) -> list[int]:
    """NVML's indices of the GPUs that CUDA sees, in CUDA's order, from CUDA_VISIBLE_DEVICES.

    Like CUDA, reading stops at the first entry that names no GPU. An entry that names a MIG
    instance stands for the GPU it is on. Numbers are taken as NVML's order, which is CUDA's
    unless the GPUs are of different models and CUDA_DEVICE_ORDER is not PCI_BUS_ID.
    """
    present = [index for index, uuid in enumerate(uuids) if uuid]  # the others are lost to CUDA
    if setting is None:
        return present
    order: list[int] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit():
            matches = present[int(entry) :][:1]
        elif entry.startswith("MIG-GPU-"):
            matches = [i for i, uuid in enumerate(uuids) if entry[4:].startswith(uuid)]
        elif entry.startswith("MIG-"):
            matches = [i for i, enabled in enumerate(mig) if enabled][:1]
        else:
            matches = [i for i, uuid in enumerate(uuids) if entry and uuid.startswith(entry)]
        if len(matches) != 1 or matches[0] in order:
            break
        order.append(matches[0])
    return order


def cuda_version(number: int | None) -> str | None:
    """CUDA's way to write versions: 12080 is "12.8"."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _probe_gpu(nvml: ModuleType, index: int, tree: Tree) -> tuple[Gpu, str]:
    """One GPU and its UUID, which stays out of the record."""
    handle = _ask(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
    if handle is None:  # fallen off the bus, or not this user's
        return Gpu(index=index), ""
    uuid = _text(_ask(nvml, nvml.nvmlDeviceGetUUID, handle)) or ""
    memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    bar1 = _ask(nvml, nvml.nvmlDeviceGetBAR1MemoryInfo, handle)
    capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    clock_hz = _hertz(_ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM))
    bus_bits = _ask(nvml, nvml.nvmlDeviceGetMemoryBusWidth, handle)
    reasons = _ask(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    link, state = _link(nvml, handle), _ask(nvml, nvml.nvmlDeviceGetPerformanceState, handle)
    rate, source = link_limit(link, state)
    nvlinks = _nvlink_states(nvml, handle)
    gpu = Gpu(
        index=index,
        name=_text(_ask(nvml, nvml.nvmlDeviceGetName, handle)),
        identity_hash=hashlib.blake2b(uuid.encode(), digest_size=4).hexdigest() if uuid else None,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        memory_bytes=memory.total if memory else None,
        memory_free_bytes=memory.free if memory else None,
        memory_bus_bits=bus_bits,
        memory_clock_max_hz=clock_hz,
        hbm_bytes_per_s=hbm_rate(clock_hz, bus_bits),
        hbm_source=hbm_source(clock_hz, bus_bits),
        pcie_generation=link.generation,
        pcie_width=link.width,
        pcie_generation_max=link.generation_max,
        pcie_width_max=link.width_max,
        pcie_bytes_per_s=rate,
        pcie_source=source,
        numa_node=_numa_node(_ask(nvml, nvml.nvmlDeviceGetPciInfo, handle), tree),
        nvlinks=len(nvlinks),
        nvlinks_active=sum(active == 1 for active in nvlinks),
        performance_state=state,
        sm_clock_hz=_hertz(_ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)),
        sm_clock_max_hz=_hertz(
            _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
        ),
        throttle_reasons=throttle_reasons(reasons or 0),
        idle=None if reasons is None else bool(reasons & _IDLE),
        ecc=_first_enabled(_ask(nvml, nvml.nvmlDeviceGetEccMode, handle)),
        mig=_first_enabled(_ask(nvml, nvml.nvmlDeviceGetMigMode, handle)),
        persistence_mode=_enabled(_ask(nvml, nvml.nvmlDeviceGetPersistenceMode, handle)),
        bar1_bytes=bar1.bar1Total if bar1 else None,
        other_processes=_other_processes(
            _ask(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        ),
    )
    return gpu, uuid


def _link(nvml: ModuleType, handle: object) -> Link:
    return Link(
        generation=_ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle),
        width=_ask(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
        generation_max=_ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkGeneration, handle),
        width_max=_ask(nvml, nvml.nvmlDeviceGetMaxPcieLinkWidth, handle),
    )


def _nvlink_states(nvml: ModuleType, handle: object) -> list[int]:
    states: list[int] = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        state = _ask(nvml, nvml.nvmlDeviceGetNvLinkState, handle, link)
        if state is None:  # no link of this number, and so none above it
            break
        states.append(state)
    return states


def _other_processes(processes: list[Any] | None) -> int | None:
    if processes is None:
        return None
    return len([process for process in processes if process.pid != os.getpid()])


def _numa_node(pci: Any, tree: Tree) -> int | None:  # noqa: ANN401 - NVML's C structure
    bus_id = _text(pci.busId) if pci else None
    if not bus_id:
        return None
    domain, _, rest = bus_id.lower().partition(":")  # NVML's domain has 8 digits, sysfs' has 4
    node = tree.number(f"sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node")
    return node if node is not None and node >= 0 else None


def _count_pci_gpus(tree: Tree) -> int | None:
    """NVIDIA display devices on the PCI bus, with or without a driver; None without a bus."""
    devices = "sys/bus/pci/devices"
    names = tree.names(devices)
    found = [
        name
        for name in names
        if tree.text(f"{devices}/{name}/vendor") == _NVIDIA_VENDOR
        and (tree.text(f"{devices}/{name}/class") or "").startswith(_DISPLAY_CLASS)
    ]
    return len(found) if names else None


def _with_cuda_index(gpu: Gpu, order: list[int]) -> Gpu:
    if gpu.index not in order:
        return gpu
    return msgspec.structs.replace(gpu, cuda_index=order.index(gpu.index))


def _ask(nvml: ModuleType, question: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401 - NVML answers with numbers, bytes and C structures
    """NVML's answer; None when this GPU, driver or permission does not give one."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _hertz(megahertz: int | None) -> int | None:
    return None if megahertz is None else megahertz * 1_000_000


def _enabled(value: int | None) -> bool | None:
    return None if value is None else value == 1


def _first_enabled(pair: list[int] | None) -> bool | None:
    """NVML gives (current, pending) modes; only the current one counts."""
    return _enabled(pair[0]) if pair else None

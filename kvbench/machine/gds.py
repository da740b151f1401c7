"""Which path cuFile would choose between a drive and GPU memory: a prediction, with its reason.

`nvidia-fs`: NVIDIA's kernel module. `p2pdma`: the kernel's own PCI peer-to-peer DMA. `compat`:
through host memory. What a measurement then observes is in its row's `path_observed`.
Conditions: NVIDIA GPUDirect Storage guide, "NVMe P2PDMA" and "nvidia-fs" (CUDA 12.8 and later).
"""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from kvbench.machine.record import Gpu, Machine, Storage
from kvbench.machine.tree import Tree

_LOCAL = frozenset({"ext4", "xfs"})
_RDMA = frozenset({"nfs", "nfs4", "lustre", "wekafs", "beegfs", "gpfs"})
_ON = frozenset({"on", "true", "yes", "1"})
_KERNEL, _DRIVER, _CAPABILITY = (6, 2), (570,), (8, 0)


def gds_path(machine: Machine, tree: Tree, environ: Mapping[str, str]) -> tuple[str, str]:
    """("nvidia-fs" | "p2pdma" | "compat", why) for the machine's directory under test."""
    storage, refusal = machine.storage, _refusal(machine, environ)
    if storage is None or refusal:
        return "compat", refusal or "no directory was named"
    nvidia_fs = tree.exists("proc/driver/nvidia-fs/version")
    if storage.filesystem in _RDMA and nvidia_fs:
        return "nvidia-fs", f"nvidia-fs is loaded; {storage.filesystem} must be mounted over RDMA"
    if storage.filesystem not in _LOCAL or storage.device_kind != "nvme":
        return "compat", (
            f"{storage.filesystem} on {storage.device_kind}: cuFile goes direct on ext4 and xfs "
            "on NVMe, and on some network file systems over RDMA"
        )
    unmet = _unmet_for_p2pdma(machine, storage, tree, environ)
    if not unmet:
        return "p2pdma", "kernel, driver and cufile.json allow PCI peer-to-peer DMA"
    if nvidia_fs:
        return "nvidia-fs", "the nvidia-fs module is loaded"
    return "compat", f"nvidia-fs is not loaded, and P2PDMA lacks: {'; '.join(unmet)}"


def _refusal(machine: Machine, environ: Mapping[str, str]) -> str | None:
    """Why no direct path is even tried."""
    if not machine.has_gpu:
        return f"no GPU to read into ({machine.gpu_reason})"
    for name in ("KVIKIO_COMPAT_MODE", "CUFILE_FORCE_COMPAT_MODE"):
        if environ.get(name, "").lower() in _ON:
            return f"{name} asks for it"
    return None


def _unmet_for_p2pdma(
    machine: Machine, storage: Storage, tree: Tree, environ: Mapping[str, str]
) -> list[str]:
    """What stands in the way of P2PDMA; empty when nothing that can be seen does."""
    version = tree.text("proc/driver/nvidia/version") or ""
    registry = tree.fields("proc/driver/nvidia/params").get("RegistryDwords", "")
    on_x86 = machine.cpu.architecture == "x86_64"
    conditions = (
        (_numbers(machine.os.kernel) >= _KERNEL, "Linux 6.2"),
        (_numbers(machine.cuda.driver_version) >= _DRIVER, "NVIDIA driver 570"),
        ("Open Kernel Module" in version, "the driver's open kernel modules"),
        (_capable(machine.visible_gpus), "a GPU of compute capability 8.0"),
        (len(storage.drives) == 1, "a single drive, no RAID"),
        (tree.text("sys/module/nvme_core/parameters/multipath") != "Y", "nvme_core multipath=N"),
        (
            not on_x86 or "rmforcestaticbar1=1" in registry.lower(),
            'NVreg_RegistryDwords="RMForceStaticBar1=1;RmForceDisableIomapWC=1;"',
        ),
        (_cufile_allows(tree, environ), "properties.use_pci_p2pdma: true in cufile.json"),
    )
    return [name for met, name in conditions if not met]


def _cufile_allows(tree: Tree, environ: Mapping[str, str]) -> bool:
    text = tree.text(environ.get("CUFILE_ENV_PATH_JSON", "/etc/cufile.json")) or ""
    # NVIDIA's file has // comments; only whole words after a blank or a line start are taken.
    text = re.sub(r"(^|\s)//[^\n]*", r"\1", text)
    try:
        loaded: object = json.loads(text)
    except ValueError:
        return False
    properties = (
        cast("dict[str, Any]", loaded).get("properties") if isinstance(loaded, dict) else None
    )
    return (
        isinstance(properties, dict)
        and cast("dict[str, Any]", properties).get("use_pci_p2pdma") is True
    )


def _capable(gpus: list[Gpu]) -> bool:
    return bool(gpus) and all(_numbers(gpu.compute_capability) >= _CAPABILITY for gpu in gpus)


def _numbers(version: str | None) -> tuple[int, ...]:
    """`"6.18.44-generic"` as (6, 18, 44); () when unknown, which is below every requirement."""
    match = re.match(r"\d+(\.\d+)*", version or "")
    return tuple(int(part) for part in match[0].split(".")) if match else ()

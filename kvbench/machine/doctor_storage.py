"""Checks of the directory under test. Pure functions of the machine record; None without one."""

import re

from kvbench.machine.check import Check, Status
from kvbench.machine.record import Machine, Storage
from kvbench.units import GIB, format_bytes, format_rate

# The storage suites rotate over 4 GiB; a file being replaced needs the room twice.
_ROOM_BYTES = 8 * GIB
_FIND_DRIVES = "findmnt -t ext4,xfs,btrfs -o TARGET,SOURCE,FSTYPE,AVAIL  # then --dir TARGET"

_COSTS = {
    "memory": "NVMe rows are skipped: this would measure memory and call it a drive",
    "network": "the network and its server are measured, not a drive of this machine",
    "loop": "a file of another file system is measured, with its cache",
    "virtio": "a virtual disk: the host's cache and rate limits are measured too",
    "xen": "a virtual disk: the host's cache and rate limits are measured too",
    "sata": "an order of magnitude below NVMe: a tier for capacity, hardly for KV cache",
    "scsi": "not NVMe: its link and queues are hidden behind a controller",
    "unknown": "the drive below cannot be seen: no limit, no device counters to check rows with",
}


def drive(machine: Machine) -> Check | None:
    """The directory is on a real NVMe drive."""
    storage = machine.storage
    if storage is None:
        return None
    seen = f"{storage.directory}: {_described(storage)}"
    if storage.writable is False:
        return Check(
            name="Drive",
            status=Status.MISSING,
            seen=f"{seen}; not writable",
            cost="NVMe rows are skipped: suites write the blocks that they read",
            fix=_FIND_DRIVES,
        )
    if storage.rotational:
        return Check(
            name="Drive",
            status=Status.DEGRADED,
            seen=f"{seen}, rotational",
            cost="milliseconds a block: recomputing a prefix is usually faster",
            fix=_FIND_DRIVES,
        )
    if storage.device_kind == "nvme":
        return Check(name="Drive", status=Status.PRESENT, seen=seen)
    status = Status.MISSING if storage.device_kind == "memory" else Status.DEGRADED
    return Check(
        name="Drive",
        status=status,
        seen=seen,
        cost=_COSTS.get(storage.device_kind, _COSTS["unknown"]),
        fix=_FIND_DRIVES,
    )


def direct_io(machine: Machine) -> Check | None:
    """Files take O_DIRECT."""
    storage = machine.storage
    if storage is None:
        return None
    if storage.direct_io:
        return Check(
            name="O_DIRECT",
            status=Status.PRESENT,
            seen=f"works, aligned to {storage.direct_io_alignment_bytes} B "
            f"({storage.direct_io_reason})",
        )
    if storage.writable is False:
        return Check(
            name="O_DIRECT",
            status=Status.UNKNOWN,
            seen=storage.direct_io_reason or "not tried",
            cost="NVMe rows are skipped in a directory without write permission",
        )
    return Check(
        name="O_DIRECT",
        status=Status.MISSING,
        seen=storage.direct_io_reason or "does not work",
        cost="reads come from or through the page cache: no row here shows what the drive does",
        fix=_FIND_DRIVES,
    )


def drive_link(machine: Machine) -> Check | None:
    """The drive's link is as wide and fast as drive and slot allow."""
    storage = machine.storage
    if storage is None:
        return None
    if storage.link_bytes_per_s is None:
        return Check(
            name="Drive link",
            status=Status.UNKNOWN,
            seen=storage.link_reason or "not known",
            cost="NVMe rows have no % of limit",
        )
    seen = f"{format_rate(storage.link_bytes_per_s)} a direction ({storage.link_source})"
    width, generation = storage.link_width or 0, storage.link_generation or 0
    if width < (storage.link_width_max or 0) or generation < (storage.link_generation_max or 0):
        return Check(
            name="Drive link",
            status=Status.DEGRADED,
            seen=f"{seen}, can do PCIe {storage.link_generation_max} x{storage.link_width_max}",
            cost="reads stop at the slower link, not at what the drive can do",
            fix="sudo lspci -vv | grep -E 'Non-Volatile|LnkCap:|LnkSta:'",
        )
    return Check(name="Drive link", status=Status.PRESENT, seen=seen)


def free_space(machine: Machine) -> Check | None:
    """Room for the blocks of a storage suite."""
    storage = machine.storage
    if storage is None:
        return None
    if storage.free_bytes is None:
        return Check(name="Free space", status=Status.UNKNOWN, seen="the file system does not say")
    seen = f"{format_bytes(storage.free_bytes)} of {format_bytes(storage.total_bytes or 0)}"
    if storage.free_bytes >= _ROOM_BYTES:
        return Check(name="Free space", status=Status.PRESENT, seen=seen)
    return Check(
        name="Free space",
        status=Status.DEGRADED,
        seen=f"{seen}, the storage suites want {format_bytes(_ROOM_BYTES)}",
        cost="rows fail on a full drive, and a drive that is nearly full writes slowly",
        fix=_FIND_DRIVES,
    )


def gds(machine: Machine) -> Check | None:
    """A direct path between drive and GPU; None without a GPU."""
    storage = machine.storage
    if storage is None or not machine.has_gpu:
        return None
    seen = f"{storage.gds}: {storage.gds_reason}"
    if storage.gds != "compat":
        return Check(name="GPUDirect Storage", status=Status.PRESENT, seen=seen)
    if "asks for it" in (storage.gds_reason or ""):
        fix = "unset KVIKIO_COMPAT_MODE CUFILE_FORCE_COMPAT_MODE"
    elif storage.device_kind != "nvme" or storage.filesystem not in {"ext4", "xfs"}:
        fix = _FIND_DRIVES
    else:
        debian = re.search("Debian|Ubuntu", machine.os.distribution or "")
        fix = f"sudo {'apt-get' if debian else 'dnf'} install nvidia-fs && sudo modprobe nvidia-fs"
    return Check(
        name="GPUDirect Storage",
        status=Status.DEGRADED,
        seen=seen,
        cost="reads into GPU memory bounce through host memory: rows say so and are degraded",
        fix=fix,
    )


def _described(storage: Storage) -> str:
    parts = [storage.filesystem or "unknown file system"]
    if storage.block_device:
        parts.append(f"on {storage.block_device}")
        if storage.drives not in ([], [storage.block_device]):
            parts.append(f"({', '.join(storage.drives)})")
    parts.append(f"[{storage.device_kind}]")
    if storage.device_model:
        parts.append(storage.device_model)
    return " ".join(parts)

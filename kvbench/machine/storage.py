"""The directory under test: file system, drive, link, direct I/O, room.

Puts together what `mounts`, `drive` and `directio` find. The path that cuFile would choose needs
to know the GPUs too and is in `kvbench.machine.gds`.
"""

import os
from pathlib import Path

from kvbench.errors import UsageError
from kvbench.machine.directio import DirectIo, try_direct_io
from kvbench.machine.drive import Drive, probe_drive
from kvbench.machine.mounts import (
    IN_MEMORY,
    OVER_NETWORK,
    Mount,
    below_overlay,
    block_device,
    find_mount,
    parse_mountinfo,
    whole_drives,
)
from kvbench.machine.privacy import redact_path
from kvbench.machine.record import Storage
from kvbench.machine.tree import Tree


def probe_storage(directory: Path, tree: Tree) -> Storage:
    """The record of an existing directory.

    Raises:
        UsageError: it is not there or not a directory.
    """
    if not directory.is_dir():
        seen = "is not a directory" if directory.exists() else "does not exist"
        raise UsageError(
            f"{directory} {seen}: expected a directory on the drive to measure; "
            "make it with mkdir, or name another with --dir"
        )
    real = directory.resolve()
    # mountinfo speaks of paths below the root; in tests the root is not "/".
    inside = "/" + str(real.relative_to(tree.root.resolve())).removeprefix(".")
    mounts = parse_mountinfo(tree.text("proc/self/mountinfo") or "")
    mount = find_mount(mounts, inside)
    holder = below_overlay(mounts, mount) if mount and mount.filesystem == "overlay" else mount
    block = block_device(tree, holder) if holder else None
    drives = [probe_drive(tree, name) for name in whole_drives(tree, block)] if block else []
    logical = (
        tree.number(f"sys/class/block/{drives[0].name}/queue/logical_block_size")
        if drives
        else None
    )
    kind = _kind(mount, drives)
    direct = _direct_io(real, kind, mount, logical)
    slowest = _slowest(drives)
    total_bytes, free_bytes = _room(real)
    rates = [drive.link_bytes_per_s for drive in drives if drive.link_bytes_per_s is not None]
    whole = bool(drives) and len(rates) == len(drives)
    return Storage(
        directory=redact_path(directory),
        filesystem=mount.filesystem if mount else None,
        mount_options=mount.telling_options if mount else [],
        block_device=block,
        drives=[drive.name for drive in drives],
        device_model=" + ".join(dict.fromkeys(d.model for d in drives if d.model)) or None,
        device_kind=kind,
        rotational=any(drive.rotational for drive in drives)
        if any(drive.rotational is not None for drive in drives)
        else None,
        numa_node=slowest.numa_node if slowest else None,
        scheduler=tree.chosen(f"sys/class/block/{slowest.name}/queue/scheduler")
        if slowest
        else None,
        logical_block_bytes=logical,
        link_generation=slowest.link.generation if slowest else None,
        link_width=slowest.link.width if slowest else None,
        link_generation_max=slowest.link.generation_max if slowest else None,
        link_width_max=slowest.link.width_max if slowest else None,
        link_bytes_per_s=sum(rates) if whole else None,
        link_source=" + ".join(drive.link_source or "" for drive in drives) if whole else None,
        link_reason=None if whole else _link_reason(kind, mount, drives),
        writable=direct.writable,
        direct_io=direct.works,
        direct_io_alignment_bytes=direct.alignment_bytes,
        direct_io_memory_alignment_bytes=direct.memory_alignment_bytes,
        direct_io_reason=direct.reason,
        total_bytes=total_bytes,
        free_bytes=free_bytes,
        stat_path=f"/sys/class/block/{block}/stat"
        if block and tree.exists(f"sys/class/block/{block}/stat")
        else None,
    )


def _kind(mount: Mount | None, drives: list[Drive]) -> str:
    if mount and mount.filesystem in IN_MEMORY:
        return "memory"
    if mount and (mount.filesystem in OVER_NETWORK or mount.filesystem.startswith("fuse.")):
        return "network"
    kinds = {drive.kind for drive in drives}
    return kinds.pop() if len(kinds) == 1 else "unknown"


def _direct_io(directory: Path, kind: str, mount: Mount | None, logical: int | None) -> DirectIo:
    found = try_direct_io(directory, logical)
    if kind == "memory" and mount and mount.filesystem in IN_MEMORY:
        # Since Linux 6.6 tmpfs takes the flag, and still the bytes never leave memory.
        return DirectIo(
            writable=found.writable, reason=f"{mount.filesystem} keeps its files in memory"
        )
    return found


def _slowest(drives: list[Drive]) -> Drive | None:
    """The drive whose link carries least: it decides what a stripe can do."""
    return min(drives, key=lambda drive: drive.link_bytes_per_s or 0.0, default=None)


def _link_reason(kind: str, mount: Mount | None, drives: list[Drive]) -> str:
    reason = next((drive.link_reason for drive in drives if drive.link_reason), None)
    if reason:
        return reason
    if kind == "memory":
        return "it is memory"
    if kind == "network":
        return "it is reached over a network"
    if mount and mount.filesystem == "overlay":
        return "an overlay inside a container: the drive below it cannot be seen from here"
    return "no block device found below the directory"


def _room(directory: Path) -> tuple[int | None, int | None]:
    try:
        room = os.statvfs(directory)
    except OSError:
        return None, None
    return room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize

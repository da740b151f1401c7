"""Which mount a directory is on, and which whole drives are below it.

Reads /proc/self/mountinfo and follows /sys from a partition, a device-mapper or an md device to
the drives. Pure lookups: nothing is opened or written.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from kvbench.machine.tree import Tree

IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
OVER_NETWORK = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "ceph",
        "lustre",
        "beegfs",
        "gpfs",
        "wekafs",
        "glusterfs",
        "afs",
        "9p",
        "virtiofs",
    }
)
# Options that change what a measurement means; the others may hold names and addresses.
_TELLING_OPTIONS = re.compile(
    r"(ro|rw|sync|dirsync|(no|rel|strict|lazy)?atime|nodiratime|(no)?discard(=async)?|(no)?barrier"
    r"|dax(=\w+)?|data=\w+|compress(-force)?(=[\w:]+)?|nodatacow|nodatasum|commit=\d+"
    r"|[rw]size=\d+|cache=\w+|size=\w+|huge=\w+|ssd|autodefrag)"
)
_UNNAMED_DEVICE = "0:"  # major 0: btrfs, overlay, tmpfs, network: no block device of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo."""

    mount_point: str
    device: str  # "259:1"
    filesystem: str
    source: str
    options: list[str]  # of the mount, then of the file system

    @property
    def telling_options(self) -> list[str]:
        """Those that change what a measurement means, each once."""
        return list(dict.fromkeys(o for o in self.options if _TELLING_OPTIONS.fullmatch(o)))


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in the order in which they were made; a malformed line is left out."""
    mounts: list[Mount] = []
    for line in text.splitlines():
        head, dash, tail = line.partition(" - ")
        left, right = head.split(), tail.split()
        if not dash or len(left) < 6 or len(right) < 2:  # noqa: PLR2004 - proc_pid_mountinfo(5)
            continue
        options = left[5].split(",") + (right[2].split(",") if len(right) > 2 else [])  # noqa: PLR2004
        mounts.append(
            Mount(
                mount_point=_unescape(left[4]),
                device=left[2],
                filesystem=right[0],
                source=_unescape(right[1]),
                options=options,
            )
        )
    return mounts


def find_mount(mounts: list[Mount], directory: str) -> Mount | None:
    """The mount that holds an absolute directory: the deepest, and of equals the newest."""
    path = PurePosixPath(directory)
    holders = [mount for mount in mounts if path.is_relative_to(mount.mount_point)]
    return max(
        enumerate(holders), key=lambda pair: (len(pair[1].mount_point), pair[0]), default=(0, None)
    )[1]


def below_overlay(mounts: list[Mount], mount: Mount) -> Mount | None:
    """The mount that holds an overlay's upper directory, where writes go.

    Inside a container that path is the host's: it then leads back to an overlay, which has no
    block device, and the drive cannot be seen from here.
    """
    upper = next((o.partition("=")[2] for o in mount.options if o.startswith("upperdir=")), None)
    return find_mount(mounts, _unescape(upper)) if upper else None


def block_device(tree: Tree, mount: Mount) -> str | None:
    """The kernel's name of the block device below a mount: `"nvme0n1p1"`, `"dm-0"`."""
    if not mount.device.startswith(_UNNAMED_DEVICE):
        found = tree.resolve(f"sys/dev/block/{mount.device}")
        if found:
            return PurePosixPath(found).name
    if mount.source.startswith("/dev/"):
        # /dev/mapper/vg-data is a link to ../dm-0; without the node the name itself must do.
        name = PurePosixPath(tree.resolve(mount.source) or mount.source).name
        return name if tree.resolve(f"sys/class/block/{name}") else None
    return None


def whole_drives(tree: Tree, block: str) -> list[str]:
    """The drives that a block device is made of, itself when it is one, each once, sorted."""
    slaves = tree.names(f"sys/class/block/{block}/slaves")
    if slaves:
        return sorted({drive for slave in slaves for drive in whole_drives(tree, slave)})
    path = tree.resolve(f"sys/class/block/{block}")
    if path and tree.exists(f"{path}/partition"):
        return whole_drives(tree, PurePosixPath(path).parent.name)
    return [block]


def _unescape(text: str) -> str:
    r"""Mountinfo writes blanks and backslashes in octal: `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)

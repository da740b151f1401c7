"""What one whole drive is, and what its link carries, from /sys/class/block.

A link's figure is the line rate after encoding, in one direction: no drive reads faster, and a
drive behind a hypervisor's virtual disk has none to see.
"""

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kvbench.machine.pcie import Link, parse_link_speed, pcie_rate, pcie_source
from kvbench.machine.tree import Tree

_KINDS = (
    ("nvme", "nvme"),
    ("vd", "virtio"),
    ("xvd", "xen"),
    ("loop", "loop"),
    ("zram", "memory"),
    ("ram", "memory"),
    ("pmem", "memory"),
    ("nbd", "network"),
    ("rbd", "network"),
    ("drbd", "network"),
)
_SATA_ENCODING = 8 / 10  # 8b/10b in all generations of SATA


@dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """One drive. `link_bytes_per_s` is one direction; None has its reason beside it."""

    name: str
    kind: str
    model: str | None = None
    rotational: bool | None = None
    numa_node: int | None = None
    link: Link = field(default_factory=Link)
    link_bytes_per_s: float | None = None
    link_source: str | None = None
    link_reason: str | None = None


def probe_drive(tree: Tree, name: str) -> Drive:
    """The drive of this kernel name."""
    block = f"sys/class/block/{name}"
    rotational = tree.number(f"{block}/queue/rotational")
    kind = _kind(tree, name)
    # A virtual disk says "rotational" unless its hypervisor says otherwise: that tells nothing.
    facts = None if rotational is None or kind in {"virtio", "xen"} else rotational == 1
    if kind == "nvme" or name.startswith("nvme"):
        return _nvme(tree, name, facts)
    model = " ".join(
        word
        for word in (tree.text(f"{block}/device/{fact}") for fact in ("vendor", "model"))
        if word
    )
    if kind == "sata":
        return _sata(tree, name, tree.text(f"{block}/device/model"), facts)
    reasons = {
        "virtio": "a virtual disk shows no link",
        "xen": "a virtual disk shows no link",
        "loop": "a loop device has no link",
        "memory": "it is memory",
        "network": "it is reached over a network",
    }
    return Drive(
        name=name,
        kind=kind,
        model=model if kind == "scsi" and model else None,
        rotational=facts,
        link_reason=reasons.get(kind, "the kernel names no link speed for it"),
    )


def _kind(tree: Tree, name: str) -> str:
    for prefix, kind in _KINDS:
        if re.match(rf"{prefix}[a-z0-9]", name):
            return kind
    if re.match(r"sd[a-z]", name):
        path = tree.resolve(f"sys/class/block/{name}") or ""
        return "sata" if re.search(r"/ata\d+/", path) else "scsi"
    return "unknown"


def _nvme(tree: Tree, name: str, rotational: bool | None) -> Drive:
    device = f"sys/class/block/{name}/device"
    # With multipath the device is a subsystem, and the controllers are entries of it.
    paths = [entry for entry in tree.names(device) if re.fullmatch(r"nvme\d+", entry)]
    controller = f"{device}/{paths[0]}" if paths else device
    model = tree.text(f"{controller}/model")
    transport = tree.text(f"{controller}/transport") or "pcie"
    if transport != "pcie":
        return Drive(
            name=name,
            kind="network",
            model=model,
            rotational=rotational,
            link_reason=f"NVMe over {transport}: the network is the link",
        )
    pci = f"{controller}/device"
    link = Link(
        generation=parse_link_speed(tree.text(f"{pci}/current_link_speed")),
        width=_width(tree.number(f"{pci}/current_link_width")),
        generation_max=parse_link_speed(tree.text(f"{pci}/max_link_speed")),
        width_max=_width(tree.number(f"{pci}/max_link_width")),
    )
    rate = pcie_rate(link.generation, link.width)
    node = tree.number(f"{pci}/numa_node")
    return Drive(
        name=name,
        kind="nvme",
        model=model,
        rotational=rotational,
        numa_node=node if node is not None and node >= 0 else None,
        link=link,
        link_bytes_per_s=rate,
        link_source=pcie_source(link.generation, link.width),
        link_reason=None if rate else "the PCIe link shows no speed: usual for emulated NVMe",
    )


def _sata(tree: Tree, name: str, model: str | None, rotational: bool | None) -> Drive:
    path = tree.resolve(f"sys/class/block/{name}") or ""
    port = next(
        (
            str(parent)
            for parent in PurePosixPath(path).parents
            if re.fullmatch(r"ata\d+", parent.name)
        ),
        "",
    )
    speeds = [
        tree.text(f"{port}/{link}/ata_link/{link}/sata_spd") or ""
        for link in tree.names(port)
        if link.startswith("link")
    ]
    gigabits = next((m[1] for s in speeds if (m := re.match(r"([\d.]+) Gbps", s))), None)
    return Drive(
        name=name,
        kind="sata",
        model=model,
        rotational=rotational,
        link_bytes_per_s=float(gigabits) * 1e9 * _SATA_ENCODING / 8 if gigabits else None,
        link_source=f"SATA: {gigabits} Gbit/s, 8b/10b" if gigabits else None,
        link_reason=None if gigabits else "the SATA port shows no speed",
    )


def _width(lanes: int | None) -> int | None:
    """Lanes; the kernel writes 0 or 255 for a width that it does not know."""
    return lanes if lanes and lanes <= 32 else None  # noqa: PLR2004 - the widest link in the standard

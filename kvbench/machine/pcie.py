"""What a PCIe link can carry, from its generation and width.

Line rate times lanes times line encoding, one direction. Packet headers and flow control take
a further part that depends on the payload size, so no transfer quite reaches these figures.
"""

import re
from dataclasses import dataclass

# Transfers per second and lane, and the share left by the line encoding: 8b/10b, then 128b/130b,
# then flits of 256 bytes with 236 for packets (PCI Express Base Specification 6.0, section 4.2.3).
_GENERATIONS = {
    1: (2.5e9, 8 / 10, "8b/10b"),
    2: (5.0e9, 8 / 10, "8b/10b"),
    3: (8.0e9, 128 / 130, "128b/130b"),
    4: (16.0e9, 128 / 130, "128b/130b"),
    5: (32.0e9, 128 / 130, "128b/130b"),
    6: (64.0e9, 236 / 256, "236 of 256 bytes a flit"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A PCIe link as negotiated now, and the most that both its ends can do."""

    generation: int | None = None
    width: int | None = None  # lanes
    generation_max: int | None = None
    width_max: int | None = None


def pcie_rate(generation: int | None, width: int | None) -> float | None:
    """Bytes per second in one direction; None for a generation or width that is not known."""
    if generation not in _GENERATIONS or not width:
        return None
    transfers_per_s, encoding, _ = _GENERATIONS[generation]
    return transfers_per_s * width * encoding / 8


def pcie_source(generation: int | None, width: int | None) -> str | None:
    """The formula of `pcie_rate` with its numbers, for a report."""
    if generation not in _GENERATIONS or not width:
        return None
    transfers_per_s, _, encoding = _GENERATIONS[generation]
    return f"PCIe {generation} x{width}: {transfers_per_s / 1e9:g} GT/s x {width} lanes, {encoding}"


def parse_link_speed(text: str | None) -> int | None:
    """The generation of a sysfs link speed, `"16.0 GT/s PCIe"`; None for `"Unknown"`."""
    match = re.match(r"\s*([\d.]+)\s*GT/s", text or "")
    if not match:
        return None
    speeds = {f"{speed:g}": generation for generation, (speed, _, _) in _GENERATIONS.items()}
    return speeds.get(f"{float(match[1]) * 1e9:g}")

"""Theoretical memory bandwidth, from what the firmware says about the memory modules.

Rate x bus width x populated channels. SMBIOS structure 17 holds rate and width (DSP0134, section
7.18); udev's database repeats it for everyone, the raw table is for root alone. The channel is
only in a module's locator, as free text: where it cannot be read there is no figure, because
two modules on one channel share its bandwidth.
"""

import re
import struct
from dataclasses import dataclass

from kvbench.machine.tree import Tree

_UDEV = "run/udev/data/+dmi:id"
_TABLE = "sys/firmware/dmi/tables/DMI"
_MEMORY_DEVICE = 17
_END_OF_TABLE = 127
_UNKNOWN_WORD = 0xFFFF
_SANE_TRANSFERS = range(100, 100_000)  # MT/s; hypervisors write 0 or nonsense

# Ways in which firmware writes socket and channel, most explicit first.
_SOCKET = re.compile(r"(?:CPU|PROC|SOCKET|NODE|\bP)[ _]?(\d+)", re.IGNORECASE)
_CHANNELS = (
    re.compile(r"CHANNEL[ _-]?([A-Z0-9])", re.IGNORECASE),  # P0 CHANNEL A; ChannelA-DIMM0
    re.compile(r"(?<![A-Z])C(\d+)D\d+", re.IGNORECASE),  # CPU0_C0D0
    re.compile(r"DIMM_P\d+_([A-Z])\d", re.IGNORECASE),  # DIMM_P0_A0
    re.compile(r"DIMM[ _]?([A-Z])\d?\b", re.IGNORECASE),  # DIMM_A1; P1-DIMMA1
)
_CONTROLLER = re.compile(r"CONTROLLER[ _-]?(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimm:
    """One populated memory module."""

    transfers_per_s: float
    width_bits: int  # of data, without ECC bits
    locators: tuple[str, str]  # the module's and its bank's


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """A figure with its formula, or the reason why there is none."""

    bytes_per_s: float | None = None
    source: str | None = None
    reason: str | None = None


def memory_bandwidth(tree: Tree) -> Bandwidth:
    """Bytes per second of all populated channels together."""
    text, table = tree.text(_UDEV), tree.data(_TABLE)
    dimms = parse_udev(text) if text else []
    if not dimms and table:
        dimms = parse_smbios(table)
    if dimms:
        return bandwidth_of(dimms)
    if table or (text and "MEMORY_DEVICE" in text):
        return Bandwidth(reason="the firmware names no memory module with its speed")
    if tree.exists(_TABLE):
        return Bandwidth(reason="the SMBIOS table is readable by root alone: run with sudo once")
    return Bandwidth(reason="no SMBIOS table: usual in virtual machines and containers")


def bandwidth_of(dimms: list[Dimm]) -> Bandwidth:
    """The figure for these modules; modules that share a channel count once."""
    slowest = min(dimm.transfers_per_s for dimm in dimms)
    channels: dict[tuple[str, str, str], int] = {}
    for dimm in dimms:
        channel = channel_of(dimm)
        if channel is None:
            return Bandwidth(
                reason=f"cannot tell the memory channel from locator {dimm.locators[0]!r}"
            )
        channels[channel] = max(dimm.width_bits, channels.get(channel, 0))
    return Bandwidth(
        bytes_per_s=slowest * sum(channels.values()) / 8,
        source=f"SMBIOS: {slowest / 1e6:g} MT/s x {sum(channels.values())} bit on "
        f"{len(channels)} channels / 8",
    )


def channel_of(dimm: Dimm) -> tuple[str, str, str] | None:
    """(socket, memory controller, channel) of a module, from its locators."""
    text = " ".join(dimm.locators)
    for pattern in _CHANNELS:
        match = pattern.search(text)
        if match:
            socket, controller = _SOCKET.search(text), _CONTROLLER.search(text)
            return (
                socket[1] if socket else "",
                controller[1] if controller else "",
                match[1].upper(),
            )
    return None


def parse_udev(text: str) -> list[Dimm]:
    """The populated modules in udev's database entry of the DMI device."""
    modules: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"E:\s?MEMORY_DEVICE_(\d+)_(\w+)=(.*)", line.strip())
        if match:
            modules.setdefault(int(match[1]), {})[match[2]] = match[3]
    dimms: list[Dimm] = []
    for _, facts in sorted(modules.items()):
        speed = facts.get("CONFIGURED_SPEED_MTS") or facts.get("SPEED_MTS") or ""
        width = facts.get("DATA_WIDTH", "")
        if facts.get("SIZE") and width.isdigit():
            dimm = _dimm(speed, int(width), facts.get("LOCATOR", ""), facts.get("BANK_LOCATOR", ""))
            dimms += [dimm] if dimm else []
    return dimms


def parse_smbios(table: bytes) -> list[Dimm]:
    """The populated modules in a raw SMBIOS structure table; a damaged tail is left out."""
    dimms: list[Dimm] = []
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        end = table.find(b"\0\0", at + length)
        if length < 4 or end < 0 or kind == _END_OF_TABLE:  # noqa: PLR2004 - the header has 4 bytes
            break
        if kind == _MEMORY_DEVICE:
            dimm = _memory_device(table[at : at + length], table[at + length : end].split(b"\0"))
            dimms += [dimm] if dimm else []
        at = end + 2
    return dimms


def _memory_device(body: bytes, strings: list[bytes]) -> Dimm | None:
    """Structure 17: data width at 0x0A, size at 0x0C, speed at 0x15, configured speed at 0x20."""
    if len(body) < 0x22:  # noqa: PLR2004 - up to and with the configured speed: SMBIOS 2.7
        return None
    width, size = struct.unpack_from("<HH", body, 0x0A)
    if size == 0 or width == _UNKNOWN_WORD:
        return None  # an empty slot, or one that tells nothing
    (speed,) = struct.unpack_from("<H", body, 0x15)
    (configured,) = struct.unpack_from("<H", body, 0x20)
    names = [
        strings[i - 1].decode(errors="replace") if 0 < i <= len(strings) else ""
        for i in body[0x10:0x12]
    ]
    return _dimm(str(configured or speed), width, names[0], names[1])


def _dimm(speed: str, width_bits: int, locator: str, bank: str) -> Dimm | None:
    if not speed.isdigit() or int(speed) not in _SANE_TRANSFERS or not width_bits:
        return None
    return Dimm(transfers_per_s=int(speed) * 1e6, width_bits=width_bits, locators=(locator, bank))

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kvbench.machine.dimms import Dimm, bandwidth_of, channel_of, memory_bandwidth, parse_smbios
from kvbench.machine.tree import Tree

LayOut = Callable[[Mapping[str, str | bytes]], Path]

UDEV = "run/udev/data/+dmi:id"


def udev(modules: list[tuple[str, str]], speed: int = 3200) -> str:
    """udev's entry with a populated module for each (locator, bank)."""
    lines = ["I:123", "E:MEMORY_ARRAY_NUM_DEVICES=16"]
    for i, (locator, bank) in enumerate(modules):
        lines += [
            f"E:MEMORY_DEVICE_{i}_TOTAL_WIDTH=72",
            f"E:MEMORY_DEVICE_{i}_DATA_WIDTH=64",
            f"E:MEMORY_DEVICE_{i}_SIZE=34359738368",
            f"E:MEMORY_DEVICE_{i}_LOCATOR={locator}",
            f"E:MEMORY_DEVICE_{i}_BANK_LOCATOR={bank}",
            f"E:MEMORY_DEVICE_{i}_SPEED_MTS=4800",
            f"E:MEMORY_DEVICE_{i}_CONFIGURED_SPEED_MTS={speed}",
        ]
    empty = len(modules)
    lines += [f"E:MEMORY_DEVICE_{empty}_PRESENT=0", f"E:MEMORY_DEVICE_{empty}_LOCATOR=DIMM_Z1"]
    return "\n".join(lines) + "\n"


def smbios_device(size: int, speed: int, configured: int, locator: bytes, bank: bytes) -> bytes:
    """Structure 17 of SMBIOS 2.8: 0x28 bytes, then its strings."""
    body = bytearray(0x28)
    body[0:4] = struct.pack("<BBH", 17, 0x28, 0x1100)
    struct.pack_into("<HHH", body, 0x08, 72, 64, size)
    body[0x10], body[0x11] = 1, 2
    struct.pack_into("<H", body, 0x15, speed)
    struct.pack_into("<H", body, 0x20, configured)
    return bytes(body) + locator + b"\0" + bank + b"\0\0"


TABLE = (
    bytes([0, 4, 0, 0])
    + b"BIOS\0\0"
    + smbios_device(32768, 4800, 4400, b"DIMM 0", b"P0 CHANNEL A")
    + smbios_device(0, 0, 0, b"DIMM 1", b"P0 CHANNEL A")
    + smbios_device(32768, 4800, 4400, b"DIMM 0", b"P0 CHANNEL B")
    + bytes([127, 4, 0, 0])
    + b"\0\0"
)


def test_bandwidth_is_configured_rate_times_width_times_channels(lay_out: LayOut) -> None:
    channels = [(f"DIMM_{letter}1", f"P0 CHANNEL {letter}") for letter in "ABCDEFGH"]
    found = memory_bandwidth(Tree(lay_out({UDEV: udev(channels)})))

    assert found.bytes_per_s == 3200e6 * 8 * 8  # EPYC with 8 x DDR4-3200: 204.8 GB/s
    assert found.source == "SMBIOS: 3200 MT/s x 512 bit on 8 channels / 8"


def test_two_modules_on_one_channel_count_once(lay_out: LayOut) -> None:
    modules = [("DIMM_A1", ""), ("DIMM_A2", ""), ("DIMM_B1", ""), ("DIMM_B2", "")]

    assert memory_bandwidth(Tree(lay_out({UDEV: udev(modules)}))).bytes_per_s == 3200e6 * 8 * 2


def test_the_same_channel_of_two_sockets_counts_twice(lay_out: LayOut) -> None:
    modules = [("P1-DIMMA1", ""), ("P2-DIMMA1", "")]

    assert memory_bandwidth(Tree(lay_out({UDEV: udev(modules)}))).bytes_per_s == 3200e6 * 8 * 2


def test_locators_that_name_no_channel_give_a_reason_and_no_figure(lay_out: LayOut) -> None:
    found = memory_bandwidth(Tree(lay_out({UDEV: udev([("DIMM 0", ""), ("DIMM 1", "")])})))

    assert found.bytes_per_s is None
    assert "'DIMM 0'" in (found.reason or "")


@pytest.mark.parametrize("speed", [0, 65535000])
def test_a_hypervisors_nonsense_is_not_a_speed(lay_out: LayOut, speed: int) -> None:
    found = memory_bandwidth(Tree(lay_out({UDEV: udev([("DIMM_A1", "")], speed=speed)})))

    assert found.bytes_per_s is None
    assert found.reason


def test_the_raw_table_is_read_where_udev_has_none(lay_out: LayOut) -> None:
    found = memory_bandwidth(Tree(lay_out({"sys/firmware/dmi/tables/DMI": TABLE})))

    assert found.bytes_per_s == 4400e6 * 8 * 2


def test_a_table_cut_anywhere_gives_the_whole_modules_before_the_cut() -> None:
    first, second = (TABLE.index(channel) + len(channel) + 2 for channel in (b"EL A", b"EL B"))
    for cut in range(len(TABLE)):
        assert len(parse_smbios(TABLE[:cut])) == (cut >= first) + (cut >= second), cut


def test_no_table_and_an_unreadable_table_are_told_apart(lay_out: LayOut) -> None:
    assert "no SMBIOS table" in (memory_bandwidth(Tree(lay_out({}))).reason or "")
    # A directory in its place cannot be read by anyone, root included.
    root = lay_out({"sys/firmware/dmi/tables/DMI/": ""})
    assert "root" in (memory_bandwidth(Tree(root)).reason or "")


@pytest.mark.parametrize(
    ("locator", "bank", "channel"),
    [
        ("DIMM 0", "P0 CHANNEL A", ("0", "", "A")),
        ("CPU1_DIMM_C2", "NODE 1", ("1", "", "C")),
        ("CPU0_C3D1", "", ("0", "", "3")),
        ("P2-DIMMH1", "P1_Node0_Channel7_Dimm0", ("2", "", "7")),
        ("Controller1-ChannelA-DIMM0", "BANK 0", ("", "1", "A")),
        ("A1", "Not Specified", None),  # the letter is a socket on some boards
        ("PROC 1 DIMM 3", "", None),
    ],
)
def test_channels_are_read_from_the_ways_firmware_writes_them(
    locator: str, bank: str, channel: tuple[str, str, str] | None
) -> None:
    assert channel_of(Dimm(transfers_per_s=1e9, width_bits=64, locators=(locator, bank))) == channel


def test_the_slowest_module_sets_the_rate() -> None:
    fast = Dimm(transfers_per_s=3200e6, width_bits=64, locators=("DIMM_A1", ""))
    slow = Dimm(transfers_per_s=2666e6, width_bits=64, locators=("DIMM_B1", ""))

    assert bandwidth_of([fast, slow]).bytes_per_s == 2666e6 * 16

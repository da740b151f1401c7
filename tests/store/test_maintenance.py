"""Looking at a store, checking it and making it smaller; whatever stops that, nothing is lost."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.store import maintenance
from kvbench.store.block import CorruptBlockError
from kvbench.store.drives import Drives, capacity_for
from kvbench.store.identity import DATA, HEAD_BYTES, OtherStoreError
from kvbench.store.index import Index
from kvbench.store.index_file import INDEX
from kvbench.store.lock import StoreInUseError
from kvbench.store.maintenance import compact, inspect, verify
from kvbench.store.nvme import NvmeTier
from kvbench.store.record_io import RecordIO
from kvbench.store.records import HEADER_BYTES
from tests.store.on_drives import (
    LAYOUT,
    NAMESPACE,
    RECORD,
    blocks,
    crash,
    fill,
    flip,
    key_of,
    opened,
    read,
    stamp_of,
    write,
)

SLOTS = 40


@pytest.fixture(params=[1, 2], ids=["one drive", "two drives"])
def folders(tmp_path: Path, request: pytest.FixtureRequest) -> list[Path]:
    """A store with every third of 40 slots in use, closed."""
    names = [tmp_path / f"drive {at}" for at in range(request.param)]
    made = opened(*names, slots=SLOTS)
    fill(made, range(0, SLOTS, 3))
    made.close()
    return names


IN_USE = range(0, SLOTS, 3)


def place(folders: list[Path], slot: int) -> tuple[Path, int]:
    tier = opened(*folders, slots=None)
    drive, offset = tier.drives.place(slot)
    tier.close()
    return folders[drive] / DATA, offset


def keys(folders: list[Path]) -> list[bytes]:
    """The keys that a store has, each of which it must be able to serve."""
    tier = opened(*folders, slots=None)
    found = blocks(tier)
    wanted = {key_of(slot): stamp_of(slot) for slot in IN_USE}
    assert read(tier, list(found)) == [wanted[key] for key in found.values()]
    tier.close()
    return sorted(found.values())


EVERY = sorted(key_of(slot) for slot in IN_USE)


# ---------------------------------------------------------------- inspect


def test_inspecting_says_what_is_there_and_changes_nothing(folders: list[Path]) -> None:
    before = {path: path.read_bytes() for each in folders for path in each.iterdir()}
    found = inspect(folders)
    assert (found.block_bytes, found.parts) == (LAYOUT.block_bytes, LAYOUT.parts)
    assert found.namespace == NAMESPACE.hex()
    assert (found.drives, found.slots, found.blocks) == (len(folders), SLOTS, 14)
    assert found.capacity_bytes == sum((each / DATA).stat().st_size for each in folders)
    assert found.tenants == {"t0": 14}
    assert found.closed_cleanly
    assert sum(found.written_bytes_by_day.values()) == 14 * RECORD
    assert (found.in_use_by, found.damage, found.quarantined) == (None, None, {})
    after = {path: path.read_bytes() for each in folders for path in each.iterdir()}
    assert {path: data for path, data in after.items() if path.suffix == ".kvb"} == {
        path: data for path, data in before.items() if path.suffix == ".kvb"
    }
    assert after[folders[0] / INDEX] == before[folders[0] / INDEX]


def test_a_store_in_use_can_be_inspected_up_to_its_last_commit(folders: list[Path]) -> None:
    tier = opened(*folders, slots=None)
    tier.recover()
    write(tier, [1], [1])
    tier.flush()
    write(tier, [2], [2])
    found = inspect(folders)
    assert found.blocks == 15
    assert not found.closed_cleanly
    assert found.in_use_by is not None
    assert "is in use by process" in found.in_use_by
    tier.close()
    assert inspect(folders).blocks == 16


def test_an_index_that_is_damaged_or_gone_is_said_to_be(folders: list[Path]) -> None:
    (folders[0] / INDEX).write_bytes(b"no index" * 1000)
    found = inspect(folders)
    assert found.blocks is None
    assert found.damage is not None
    assert "the next opening rebuilds it" in found.damage
    (folders[0] / INDEX).unlink()
    assert "there is none" in (inspect(folders).damage or "")
    assert inspect(folders).slots == SLOTS
    assert not (folders[0] / INDEX).exists(), "inspecting made one"


@pytest.mark.parametrize("what", [inspect, verify, compact])
def test_what_is_no_store_is_one_clear_error(
    what: Callable[[list[Path]], object], tmp_path: Path, folders: list[Path]
) -> None:
    with pytest.raises(UsageError, match="missing is not a directory"):
        what([tmp_path / "missing"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"empty holds no store: there is no blocks\.kvb in it"):
        what([empty])
    assert list(empty.iterdir()) == []
    if len(folders) > 1:
        with pytest.raises(OtherStoreError, match="number 1 of the 2 directories"):
            what(folders[:1])
    flip(folders[0] / DATA, 20)
    flip(folders[0] / DATA, 4096 + 20)
    with pytest.raises(UsageError, match="both pages at its head are damaged"):
        what(folders)


@pytest.mark.parametrize("what", [verify, compact])
def test_a_store_in_use_is_not_touched(
    what: Callable[[list[Path]], object], folders: list[Path]
) -> None:
    tier = opened(*folders, slots=None)
    with pytest.raises(StoreInUseError, match="in use by process"):
        what(folders)
    tier.close()


# ---------------------------------------------------------------- verify


def test_a_store_that_is_well_has_every_record_checked(folders: list[Path]) -> None:
    seen: list[tuple[int, int]] = []
    found = verify(folders, progress=lambda done, total: seen.append((done, total)))
    assert (found.checked, found.damaged, found.quarantined) == (14, [], [])
    assert seen[-1] == (14, 14)
    assert keys(folders) == EVERY


def test_damage_is_found_wherever_it_is_and_named(folders: list[Path]) -> None:
    for slot, byte in ((3, 0), (9, HEADER_BYTES), (15, RECORD - 1)):
        path, offset = place(folders, slot)
        flip(path, offset + byte)
    found = verify(folders)
    assert found.checked == 14
    assert [(each.slot, each.key) for each in found.damaged] == [
        (slot, key_of(slot).hex()) for slot in (3, 9, 15)
    ]
    assert [each.reason for each in found.damaged][1:] == (
        ["the payload does not match its checksums"] * 2
    )
    assert "instead of" in found.damaged[0].reason


def test_a_row_that_names_another_blocks_record_is_damage(folders: list[Path]) -> None:
    with sqlite3.connect(folders[0] / INDEX) as base:
        base.execute("UPDATE meta SET value = 0 WHERE name = 'clean'")
        base.execute("DELETE FROM snapshot")  # which would know better
        base.execute("UPDATE blocks SET key = ? WHERE slot = 6", (key_of(1000),))
    base.close()
    (damaged,) = verify(folders).damaged
    assert damaged.slot == 6
    assert "is of another block" in damaged.reason


def test_a_quarantined_slot_is_released_only_if_it_holds_what_is_written_to_it(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = opened(*folders, slots=None)
    tier.recover()
    tier.quarantine([3, 6], "bit rot")
    crash(tier)
    assert verify(folders).quarantined == [3, 6]
    real = RecordIO.read

    def bad(self: RecordIO, slots: list[int], outs: list[object]) -> list[object]:
        found: list[object] = real(self, slots, outs)  # type: ignore[arg-type, assignment]
        if 6 in slots:
            outs[slots.index(6)][100] ^= 1  # type: ignore[index]
        return found

    monkeypatch.setattr(RecordIO, "read", bad)
    found = verify(folders, release=True)
    assert (found.released, found.quarantined) == ([3], [6])
    monkeypatch.undo()
    after = opened(*folders, slots=None)
    recovered = after.recover()
    assert recovered.quarantined == [6]
    assert 3 not in recovered.slots
    (empty,) = read(after, [3])
    assert isinstance(empty, CorruptBlockError), "what it was tried with is not left in it"
    assert write(after, [3], [3]) == [None]
    after.close()


# ---------------------------------------------------------------- compact


def sizes(folders: list[Path]) -> int:
    return sum((each / DATA).stat().st_size for each in folders)


def test_a_compacted_store_is_as_small_as_its_blocks_and_has_them_all(
    folders: list[Path],
) -> None:
    order = opened(*folders, slots=None)
    wanted = order.recover().keys
    order.close()
    done = compact(folders)
    assert done.before_bytes == capacity_for(SLOTS, LAYOUT, len(folders))
    assert done.after_bytes == capacity_for(14, LAYOUT, len(folders)) == sizes(folders)
    assert (done.moved, done.dropped) == (sum(slot >= 14 for slot in IN_USE), [])
    assert keys(folders) == EVERY
    after = opened(*folders, slots=14)
    assert after.recover().keys == wanted, "still in the order in which they were written"
    after.close()
    (folders[0] / INDEX).unlink()
    assert keys(folders) == EVERY
    again = compact(folders)
    assert (again.moved, again.before_bytes) == (0, again.after_bytes)


def test_a_size_can_be_given_and_has_to_hold_the_blocks(folders: list[Path]) -> None:
    most = capacity_for(20, LAYOUT, len(folders)) + 100
    assert compact(folders, to_bytes=most).after_bytes == sizes(folders) <= most
    assert keys(folders) == EVERY
    with pytest.raises(UsageError, match=r"14 blocks need \d+ bytes, more than .* give --to \d+"):
        compact(folders, to_bytes=capacity_for(13, LAYOUT, len(folders)))
    with pytest.raises(UsageError, match="to make it larger open it with a larger capacity"):
        compact(folders, to_bytes=capacity_for(21, LAYOUT, len(folders)))
    assert keys(folders) == EVERY


def test_blocks_are_not_moved_into_quarantined_slots(folders: list[Path]) -> None:
    tier = opened(*folders, slots=None)
    tier.recover()
    tier.quarantine([1, 2, 14, 35], "bad")
    tier.close()
    done = compact(folders)
    # 14 blocks and, before their end, three slots that cannot be used.
    assert done.after_bytes == capacity_for(17, LAYOUT, len(folders))
    after = opened(*folders, slots=None)
    assert after.recover().quarantined == [1, 2, 14]
    after.close()
    assert keys(folders) == EVERY


def test_an_empty_store_keeps_one_slot(tmp_path: Path) -> None:
    opened(tmp_path, slots=SLOTS).close()
    assert compact([tmp_path]).after_bytes == HEAD_BYTES + RECORD


def test_a_damaged_block_that_would_have_to_move_is_dropped_and_named(
    folders: list[Path],
) -> None:
    path, offset = place(folders, 39)
    flip(path, offset + HEADER_BYTES + 5)
    done = compact(folders)
    (dropped,) = done.dropped
    assert (dropped.slot, dropped.key) == (39, key_of(39).hex())
    assert keys(folders) == sorted(set(EVERY) - {key_of(39)})


class StopError(Exception):
    """Stands for a kill."""


def die_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int, after: bool) -> None:
    """Stop the process, so to speak, before or after the n-th call of a method."""
    real = getattr(owner, name)
    seen = 0

    def method(*arguments: object, **more: object) -> object:
        nonlocal seen
        seen += 1
        if seen == call and not after:
            raise StopError
        result = real(*arguments, **more)
        if seen == call:
            raise StopError
        return result

    monkeypatch.setattr(owner, name, method)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "BATCH_BYTES", 3 * RECORD)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("index", ["with its index", "without"])
@pytest.mark.parametrize(
    ("owner", "name", "call", "after"),
    [
        (RecordIO, "write", 1, False),
        (RecordIO, "write", 2, True),
        (Drives, "sync", 2, False),
        (Drives, "sync", 2, True),
        (Index, "commit", 2, False),
        (Index, "commit", 2, True),
        (Index, "cut", 1, False),
        (Index, "cut", 1, True),
        (Drives, "cut", 1, False),
        (Drives, "cut", 1, True),
    ],
)
def test_a_kill_in_the_middle_of_a_compaction_loses_nothing(  # noqa: PLR0913, PLR0917  fixtures
    folders: list[Path],
    owner: type,
    name: str,
    call: int,
    after: bool,
    index: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(NvmeTier, "close", crash)
        die_at(patch, owner, name, call, after)
        with pytest.raises(StopError):
            compact(folders)
    if index == "without":
        (folders[0] / INDEX).unlink()
    else:
        tier = opened(*folders, slots=None)
        tier.recover()
        assert tier.facts()["found_by"] == "index, rows", "it was right at every instant"
        tier.close()
    assert keys(folders) == EVERY
    compact(folders)
    assert keys(folders) == EVERY
    assert sizes(folders) == capacity_for(14, LAYOUT, len(folders))


@pytest.mark.usefixtures("small_steps")
def test_copies_that_a_kill_left_torn_do_not_stand_in_for_the_blocks_they_are_of(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(NvmeTier, "close", crash)
        die_at(patch, Drives, "sync", 1, after=False)
        with pytest.raises(StopError):
            compact(folders)
    (folders[0] / INDEX).unlink()
    torn = 0
    for slot in (1, 2, 4):  # the first that are free
        path, offset = place(folders, slot)
        torn += path.read_bytes()[offset] != 0
        flip(path, offset + HEADER_BYTES + 77)
    assert torn == 3
    assert keys(folders) == EVERY


def test_a_kill_between_the_heads_and_the_cut_is_finished_by_the_next_opening(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(NvmeTier, "close", crash)

        def stop(*_: object) -> None:
            raise StopError

        patch.setattr("kvbench.store.drives.os.truncate", stop)
        with pytest.raises(StopError):
            compact(folders)
    assert sizes(folders) == capacity_for(SLOTS, LAYOUT, len(folders))
    assert keys(folders) == EVERY
    assert sizes(folders) == capacity_for(14, LAYOUT, len(folders))

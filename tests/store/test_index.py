"""The index is a shortcut that may be lost: what it promises, and what becomes of a damaged one."""

import errno
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvbench.store import index as index_module
from kvbench.store.block import Layout
from kvbench.store.identity import Identity, new_identity
from kvbench.store.index import EPOCH_BITS, Index, Row, open_index
from kvbench.store.index_file import DAMAGED, INDEX, peek
from kvbench.store.records import Columns
from kvbench.store.snapshot import SNAPSHOT_ROWS, IndexDamagedError, pack, unpack

IDENTITY = new_identity(Layout(4096), bytes(32), 1)
SLOTS = 1000


def row(slot: int, sequence: int = 0, tenant: str = "") -> Row:
    parent = (slot - 1).to_bytes(32, "big") if slot % 4 else None
    return Row(slot, slot.to_bytes(32, "big"), parent, tenant, slot % 4, sequence)


def rows_of(found: Columns) -> list[Row]:
    return [
        Row(*each)
        for each in zip(
            found.slots,
            found.keys,
            found.parents,
            found.tenants,
            found.positions,
            found.sequences,
            strict=True,
        )
    ]


def columns_of(rows: list[Row]) -> Columns:
    slots, keys, parents, tenants, positions, sequences = map(list, zip(*rows, strict=True))
    return Columns(slots, keys, parents, positions, tenants, sequences)


def refilled(index: Index, *found: Columns) -> None:
    """The blocks are these, as the records say."""
    with index.refill() as fill:
        for some in found:
            fill(some)


def crash(index: Index) -> None:
    """What a kill leaves: whatever was committed. Once more is no error."""
    index.close(slots=SLOTS, clean=False)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = open_index(tmp_path, IDENTITY)
    refilled(opened, Columns())
    yield opened
    crash(opened)


@pytest.fixture
def reopened(tmp_path: Path) -> Iterator[Callable[[], Index]]:
    """Opens the index again, as often as it is called."""
    opened: list[Index] = []

    def again() -> Index:
        opened.append(Index(tmp_path / INDEX, IDENTITY))
        return opened[-1]

    yield again
    for each in opened:
        crash(each)


def put(index: Index, *rows: Row) -> None:
    index.touch()
    index.add(rows, 100 * len(rows))
    index.commit(index.waiting())


# ---------------------------------------------------------------- rows


def test_committed_rows_are_there_after_a_kill_oldest_write_first(
    index: Index, reopened: Callable[[], Index]
) -> None:
    rows = [row(7, 30, "a"), row(2, 10, "b"), row(5, 20, "a")]
    put(index, *rows)
    crash(index)
    found = reopened()
    assert not found.clean
    assert rows_of(found.load(SLOTS)) == [rows[1], rows[2], rows[0]]


def test_rows_that_wait_are_not_there_after_a_kill(
    index: Index, reopened: Callable[[], Index]
) -> None:
    put(index, row(1))
    index.add([row(2)], 100)
    crash(index)
    assert reopened().load(SLOTS).slots == [1]


def test_what_is_forgotten_is_gone_at_once_committed_or_not(
    index: Index, reopened: Callable[[], Index]
) -> None:
    put(index, row(1), row(2))
    index.add([row(3), row(4)], 200)
    index.forget([1, 3])
    index.commit(index.waiting())
    crash(index)
    assert reopened().load(SLOTS).slots == [2, 4]


def test_a_row_struck_while_the_drive_was_synced_is_not_committed(index: Index) -> None:
    index.touch()
    index.add([row(1), row(2)], 200)
    batch = index.waiting()
    index.forget([1])  # another thread, before the commit
    index.commit(batch)
    assert index.load(SLOTS).slots == [2]
    assert index.waiting() == []


def test_a_row_replaced_while_the_drive_was_synced_waits_for_the_next_commit(
    index: Index,
) -> None:
    index.touch()
    index.add([row(1, 10)], 100)
    batch = index.waiting()
    index.add([row(1, 20)], 100)
    index.commit(batch)
    assert len(index.load(SLOTS)) == 0
    index.commit(index.waiting())
    assert index.load(SLOTS).sequences == [20]


def test_a_move_is_committed_whole_or_not_at_all(
    index: Index, reopened: Callable[[], Index]
) -> None:
    put(index, row(9))
    index.add([row(9)._replace(slot=1)], 100)
    index.commit(index.waiting(), drop=[9])
    crash(index)
    assert reopened().load(SLOTS).slots == [1]


def test_rows_are_due_when_many_wait_or_one_waits_for_long(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.touch()
    assert not index.due()
    index.add([row(1)], 100)
    assert not index.due()
    monkeypatch.setattr(index_module, "LONGEST_WAIT_S", -1.0)
    assert index.due()
    monkeypatch.setattr(index_module, "LONGEST_WAIT_S", 1e9)
    monkeypatch.setattr(index_module, "MOST_WAITING", 2)
    assert not index.due()
    index.add([row(2)], 100)
    assert index.due()
    index.commit(index.waiting())
    assert not index.due()


def test_a_full_drive_is_enospc_and_the_rows_go_on_waiting(index: Index) -> None:
    index.touch()
    (pages,) = index.base.execute("PRAGMA page_count").fetchone()
    index.base.execute(f"PRAGMA max_page_count={pages + 1}")
    index.add([row(slot) for slot in range(SLOTS)], SLOTS)
    with pytest.raises(OSError, match="full") as caught:
        index.commit(index.waiting())
    assert caught.value.errno == errno.ENOSPC
    assert len(index.waiting()) == SLOTS
    assert len(index.load(SLOTS)) == 0
    index.base.execute("PRAGMA max_page_count=1000000")
    index.commit(index.waiting())
    assert len(index.load(SLOTS)) == SLOTS


# ---------------------------------------------------------------- order of writes


def test_sequence_numbers_never_come_again_after_a_kill(
    index: Index, reopened: Callable[[], Index]
) -> None:
    first = index.sequences(10)
    assert index.sequences(1) == first + 10
    crash(index)  # nothing was committed but that it began
    after = reopened()
    assert after.sequences(1) > first + 10


def test_sequence_numbers_after_a_rebuild_are_above_those_of_the_records(
    index: Index, tmp_path: Path
) -> None:
    newest = index.sequences(1) + 5
    crash(index)
    (tmp_path / INDEX).unlink()
    lost = open_index(tmp_path, IDENTITY)
    complete = [lost.complete]
    refilled(lost, columns_of([row(1, newest)]))
    assert [*complete, lost.complete] == [False, True]
    assert lost.sequences(1) > newest
    crash(lost)


def test_what_was_found_to_be_older_while_the_drives_were_read_is_struck(index: Index) -> None:
    with index.refill() as fill:
        fill(columns_of([row(1, 5), row(2, 6)]))
        fill(columns_of([row(3, 7)]))
        index.strike([2])
    assert index.load(SLOTS).slots == [1, 3]


def test_a_rebuild_that_fails_half_way_leaves_the_rows_as_they_were(index: Index) -> None:
    refilled(index, columns_of([row(1, 5)]))
    newest = 5 << EPOCH_BITS

    def fails() -> None:
        with index.refill() as fill:
            fill(columns_of([row(2, newest)]))
            raise OSError(errno.EIO, "the drive has gone")

    with pytest.raises(OSError, match="the drive has gone"):
        fails()
    assert index.load(SLOTS).slots == [1]
    assert index.sequences(1) > newest  # of a record that is there, listed or not
    crash(index)


# ---------------------------------------------------------------- the snapshot


def a_thousand_rows() -> list[Row]:
    order = np.random.default_rng(4).permutation(SLOTS).tolist()
    return [row(slot, at, f"tenant {slot % 5}") for at, slot in enumerate(order)]


def test_snapshot_and_rows_say_the_same(index: Index, reopened: Callable[[], Index]) -> None:
    rows = a_thousand_rows()
    put(index, *rows)
    index.close(slots=SLOTS, clean=True)
    by_snapshot = reopened()
    assert by_snapshot.clean
    assert rows_of(by_snapshot.load(SLOTS)) == rows
    by_snapshot.touch()
    crash(by_snapshot)
    by_rows = reopened()
    assert not by_rows.clean
    assert rows_of(by_rows.load(SLOTS)) == rows


def test_a_snapshot_of_more_blocks_than_one_part_holds_gives_them_back() -> None:
    rows = [row(slot, slot) for slot in range(SNAPSHOT_ROWS + 1)]
    parts = list(pack(columns_of(rows)))
    assert [part[:2] for part in parts] == [(0, len(rows)), (1, SNAPSHOT_ROWS), (2, 1)]
    assert rows_of(unpack(parts, len(rows))) == rows
    with pytest.raises(IndexDamagedError, match="it holds 65536 of 65537 blocks"):
        unpack(parts[:2], len(rows))
    with pytest.raises(IndexDamagedError, match="out of range"):
        unpack(parts, len(rows) - 1)


@pytest.mark.parametrize("change", ["touch", "forget", "quarantine", "sequences"])
def test_the_first_change_makes_the_snapshot_invalid_before_it_returns(
    index: Index, change: str, reopened: Callable[[], Index]
) -> None:
    put(index, row(1), row(2))
    index.close(slots=SLOTS, clean=True)
    changed = reopened()
    if change == "touch":
        changed.touch()
    elif change == "forget":
        changed.forget([2])
    elif change == "quarantine":
        changed.quarantine([2], "bad")
    else:
        changed.sequences(1)
    crash(changed)
    after = reopened()
    assert not after.clean
    assert after.load(SLOTS).slots == ([1] if change in {"forget", "quarantine"} else [1, 2])


def left_by_a_kill_after_changes(
    index: Index, reopened: Callable[[], Index]
) -> tuple[Index, list[Row]]:
    """A thousand rows and their snapshot, then some changes; the rows as they are now."""
    rows = a_thousand_rows()
    put(index, *rows)
    index.close(slots=SLOTS, clean=True)
    changed = reopened()
    first = changed.sequences(4)
    stored_anew = row(9, first)._replace(key=rows[3].key)  # and slot 3 was not forgotten
    overwritten = row(5, first + 1, "new")._replace(key=bytes([7]) * 32)
    put(changed, stored_anew, overwritten)
    by_slot = {each.slot: each for each in rows} | {9: stored_anew, 5: overwritten}
    changed.forget([20, 21])
    changed.commit([], drop=[22])
    moved = by_slot[30]._replace(slot=22)  # with its sequence number, as `NvmeTier.move` does
    changed.add([moved], 100)
    changed.commit(changed.waiting(), drop=[30])
    by_slot[22] = moved
    for slot in (20, 21, 30, rows[3].slot):
        del by_slot[slot]
    crash(changed)
    return reopened(), sorted(by_slot.values(), key=lambda each: each.sequence)


def test_after_a_kill_a_snapshot_of_before_and_what_changed_since_say_what_the_rows_say(
    index: Index, reopened: Callable[[], Index], monkeypatch: pytest.MonkeyPatch
) -> None:
    after, now = left_by_a_kill_after_changes(index, reopened)
    with monkeypatch.context() as patch:
        patch.delattr(Index, "_from_rows")  # not needed
        assert rows_of(after.load(SLOTS)) == now
    after.base.execute("DELETE FROM snapshot")
    assert rows_of(after.load(SLOTS)) == now


@pytest.mark.parametrize("wrong", ["damaged", "a part is missing", "most is newer"])
def test_a_snapshot_of_before_that_is_of_no_use_is_left_alone(
    index: Index, wrong: str, reopened: Callable[[], Index]
) -> None:
    after, now = left_by_a_kill_after_changes(index, reopened)
    if wrong == "damaged":
        after.base.execute("UPDATE snapshot SET data = zeroblob(length(data)) WHERE part = 1")
    elif wrong == "a part is missing":
        after.base.execute("DELETE FROM snapshot WHERE part = 0")
    else:
        changed = [each._replace(sequence=each.sequence + (9 << EPOCH_BITS)) for each in now[:600]]
        now = [*now[600:], *changed]
        put(after, *changed)
    assert rows_of(after.load(SLOTS)) == now


def test_reading_alone_leaves_the_snapshot_valid_also_after_a_kill(
    index: Index, reopened: Callable[[], Index]
) -> None:
    put(index, row(1))
    index.close(slots=SLOTS, clean=True)
    reading = reopened()
    reading.load(SLOTS)
    crash(reading)
    after = reopened()
    assert after.clean


def test_a_damaged_snapshot_is_told_by_its_checksum_and_the_rows_are_read(
    index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture, reopened: Callable[[], Index]
) -> None:
    rows = a_thousand_rows()
    put(index, *rows)
    index.close(slots=SLOTS, clean=True)
    with sqlite3.connect(tmp_path / INDEX) as base:
        (data,) = base.execute("SELECT data FROM snapshot WHERE part = 1").fetchone()
        flipped = bytearray(data)
        flipped[40_000] ^= 1
        base.execute("UPDATE snapshot SET data = ? WHERE part = 1", (bytes(flipped),))
    base.close()
    damaged = reopened()
    assert rows_of(damaged.load(SLOTS)) == rows
    assert "its snapshot is damaged" in caplog.text
    damaged.close(slots=SLOTS, clean=True)
    mended = reopened()
    assert mended.clean
    assert rows_of(mended.load(SLOTS)) == rows


# ---------------------------------------------------------------- damage


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(1).bytes(50_000))


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def without_meta(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("DROP TABLE meta")
    base.close()


def another_format(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
    base.close()


def another_store(path: Path) -> None:
    other = replace(IDENTITY, store=bytes(16))
    with sqlite3.connect(path) as base:
        base.execute("UPDATE meta SET value = ? WHERE name = 'identity'", (other.as_text(),))
    base.close()


def no_epoch(path: Path) -> None:
    with sqlite3.connect(path) as base:
        base.execute("UPDATE meta SET value = -1 WHERE name = 'epoch'")
    base.close()


@pytest.mark.parametrize(
    "damage", [nothing, noise, half, without_meta, another_format, another_store, no_epoch]
)
def test_a_damaged_index_is_put_aside_and_never_an_error(
    index: Index, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    put(index, *a_thousand_rows())
    index.close(slots=SLOTS, clean=True)
    (tmp_path / DAMAGED).write_bytes(b"one that was put aside before")
    damage(tmp_path / INDEX)
    found = open_index(tmp_path, IDENTITY)
    assert not found.complete
    found.close(slots=SLOTS, clean=False)
    assert {each.name for each in tmp_path.iterdir()} == {INDEX, DAMAGED}


WRONG_ROWS: dict[str, tuple[str, str]] = {
    "slot": ("UPDATE blocks SET slot = 1000 WHERE slot = 999", "out of range"),
    "negative slot": ("UPDATE blocks SET slot = -1 WHERE slot = 1", "out of range"),
    "short key": ("UPDATE blocks SET key = x'00' WHERE slot = 5", "has not 32 bytes"),
    "short parent": ("UPDATE blocks SET parent = x'00' WHERE slot = 5", "has not 32 bytes"),
    "text key": ("UPDATE blocks SET key = 'text' WHERE slot = 5", "wrong type"),
    "no tenant": ("UPDATE blocks SET tenant = 77 WHERE slot = 5", "wrong type"),
    "text position": ("UPDATE blocks SET position = 'x' WHERE slot = 5", "wrong type"),
    "real position": ("UPDATE blocks SET position = 1.5 WHERE slot = 5", "wrong type"),
    "negative position": ("UPDATE blocks SET position = -1 WHERE slot = 5", "below 0"),
}


@pytest.mark.parametrize("wrong", WRONG_ROWS)
def test_rows_that_cannot_be_right_are_damage(index: Index, wrong: str) -> None:
    put(index, *a_thousand_rows())
    statement, said = WRONG_ROWS[wrong]
    index.base.execute(statement)
    with pytest.raises(IndexDamagedError, match=said):
        index.load(SLOTS)


def test_of_two_rows_with_one_key_the_one_written_later_counts(index: Index) -> None:
    old, new, other = row(2, 10, "a"), row(7, 30, "b")._replace(key=row(2).key), row(5, 20, "c")
    put(index, old, new, other)
    assert rows_of(index.load(SLOTS)) == [other, new]


def test_a_store_is_known_by_its_index_alone(index: Index, tmp_path: Path) -> None:
    assert peek(tmp_path) == IDENTITY
    crash(index)
    noise(tmp_path / INDEX)
    assert peek(tmp_path) is None
    (tmp_path / INDEX).unlink()
    assert peek(tmp_path) is None


def test_text_of_an_identity_that_is_none_is_no_store(index: Index, tmp_path: Path) -> None:
    index.base.execute("UPDATE meta SET value = '{}' WHERE name = 'identity'")
    assert peek(tmp_path) is None
    assert isinstance(IDENTITY, Identity)


# ---------------------------------------------------------------- quarantine and wear


def test_quarantined_slots_and_their_reasons_stay_until_released(
    index: Index, reopened: Callable[[], Index]
) -> None:
    put(index, row(1), row(2))
    index.quarantine([2, 3], "EIO")
    crash(index)
    after = reopened()
    assert after.quarantined() == {2: "EIO", 3: "EIO"}
    assert after.load(SLOTS).slots == [1]
    after.release([3])
    crash(after)
    assert reopened().quarantined() == {2: "EIO"}


def test_bytes_written_add_up_over_openings_committed_or_not(
    index: Index, monkeypatch: pytest.MonkeyPatch, reopened: Callable[[], Index]
) -> None:
    monkeypatch.setattr(index_module, "_today", lambda: "2026-01-01")
    put(index, row(1), row(2))
    assert index.wear() == {"2026-01-01": 200}
    monkeypatch.setattr(index_module, "_today", lambda: "2026-01-02")
    index.add([row(3)], 100)
    assert index.wear() == {"2026-01-01": 200, "2026-01-02": 100}
    index.commit(index.waiting())
    crash(index)
    after = reopened()
    put(after, row(4))
    assert after.wear() == {"2026-01-01": 200, "2026-01-02": 200}


def test_cutting_strikes_rows_and_quarantine_behind_the_end_and_shrinks_the_file(
    index: Index, tmp_path: Path, caplog: pytest.LogCaptureFixture, reopened: Callable[[], Index]
) -> None:
    caplog.set_level(logging.WARNING)
    put(index, *a_thousand_rows())
    index.quarantine([700, 5], "bad")
    index.close(slots=SLOTS, clean=True)
    before = (tmp_path / INDEX).stat().st_size
    shorter = reopened()
    shorter.cut(10)
    shorter.close(slots=10, clean=True)
    after = reopened()
    assert sorted(after.load(10).slots) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert after.quarantined() == {5: "bad"}
    assert (tmp_path / INDEX).stat().st_size < before / 3
    assert caplog.text == ""

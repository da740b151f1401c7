"""The index of an NVMe tier: which block lies in which slot, in SQLite, for a fast start.

It is only ever a shortcut. Everything in it can be rebuilt from the records, but for the list of
quarantined slots, and a wrong row costs a miss and never a wrong byte, because a record says itself
which block it is. So a damaged index is never an error of the opener: `open_index` puts it aside.

When a row is committed its record is on the drive (the caller syncs the data files first). Rows
wait in memory until `commit`; `forget` strikes them there too. Three promises, and what they cost:

- `commit` and `quarantine` survive a loss of power (synchronous=FULL: one sync of the log).
- `forget` survives the end of the process at once, and a loss of power from the next commit on
  (synchronous=NORMAL: no sync; the log is replayed in order, so no later row outlives an earlier
  deletion). A row that comes back names a slot whose record is of another block, or torn.
- After a clean close the columns also lie in a snapshot, ten times as fast to read as rows. The
  first change after that invalidates it in the same transaction, before a record is overwritten.
  After a kill it still serves for the rows that have the same slot and sequence number as then.

May import: kvbench.errors, kvbench.store. numpy, not torch.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kvbench.store.identity import Identity
from kvbench.store.index_file import (
    INDEX,
    as_os_error,
    connect,
    is_damage,
    put_aside,
    read_meta,
)
from kvbench.store.records import Columns
from kvbench.store.snapshot import IndexDamagedError, check, pack, still_true, unpack

MOST_WAITING, LONGEST_WAIT_S = 8192, 1.0  # rows in memory, and for how long
EPOCH_BITS = 40  # of a sequence number; above them the number of openings that wrote
MOST_EPOCHS = 1 << 22
LEAST_SHARED = 3  # blocks in a snapshot of before for one that came later, or it is not worth it

_PARTS = "SELECT part, rows, sum, data FROM snapshot ORDER BY part"

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One block."""

    slot: int
    key: bytes
    parent: bytes | None
    tenant: str
    position: int
    sequence: int


def open_index(directory: Path, identity: Identity) -> "Index":
    """The index of a store; one that is damaged, or of another store, is put aside for a new one.

    Raises:
        OSError: the drive is full, read-only or refuses.
    """
    path = directory / INDEX
    try:
        return Index(path, identity)
    except IndexDamagedError as damage:
        put_aside(path, str(damage))
    return Index(path, identity)


class Index:
    """One open index. May be called by many threads.

    `complete` is false for a new one, until `replace` has filled it: the records may know more.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self._base_lock = threading.Lock()  # one statement, one transaction at a time
        self._lock = threading.Lock()  # what waits in memory; never held while SQLite works
        self._waiting: dict[int, Row] = {}
        self._waiting_since_s = 0.0
        self._written_bytes = 0
        self._changed = False
        self._next = 0
        self._base: sqlite3.Connection | None = None
        try:
            self._open(identity)
        except sqlite3.Error as error:
            self._disconnect()
            if not is_damage(error, path):
                raise as_os_error(error, path) from None
            raise IndexDamagedError(str(error)) from None
        except (IndexDamagedError, KeyError, TypeError, ValueError) as error:
            self._disconnect()
            raise IndexDamagedError(str(error)) from None

    def _open(self, identity: Identity) -> None:
        base = self._base = connect(self.path)
        meta = read_meta(base, identity)
        self.clean = bool(meta["clean"])
        self.complete = bool(meta["complete"])
        self._epoch = int(meta["epoch"])
        if not 0 <= self._epoch < MOST_EPOCHS:
            raise IndexDamagedError(f"it was opened {self._epoch} times")
        self._tenants = {
            str(name): int(number) for number, name in base.execute("SELECT id, name FROM tenants")
        }

    # ------------------------------------------------------------ reading

    def load(self, slots: int) -> Columns:
        """All blocks, oldest write first, from the snapshot if it holds, else from the rows.

        Raises:
            IndexDamagedError: they cannot all be right.
        """
        with self._base_lock, self._as_damage():
            if self.clean:
                try:
                    return unpack(self.base.execute(_PARTS), slots)
                except (IndexDamagedError, IndexError, TypeError, ValueError) as error:
                    log.warning("%s: its snapshot is damaged (%s); rows are read", self.path, error)
                    self.clean = False
            return self._from_both(slots) or self._from_rows(slots)

    def _from_both(self, slots: int) -> Columns | None:
        """The blocks of the rows; what a snapshot of before still says of them is faster to read.

        None if there is no such snapshot, or too little of it is left, or anything looks wrong:
        then the rows have to say it all.
        """
        try:
            old = unpack(self.base.execute(_PARTS), slots)
            query = "SELECT count(*) FROM blocks WHERE sequence > ?"
            (newer,) = self.base.execute(query, (max(old.sequences),)).fetchone()
            if newer * LEAST_SHARED > len(old):
                return None
            pairs = chain.from_iterable(self.base.execute("SELECT slot, sequence FROM blocks"))
            found, changed = still_true(old, pairs, slots)
            if not changed:
                return found
            found.extend(self._rows(slots, str(changed)))
        except (IndexDamagedError, IndexError, TypeError, ValueError):
            return None
        return _newest(found)

    def _from_rows(self, slots: int) -> Columns:
        return _newest(self._rows(slots))

    def _rows(self, slots: int, among: str | None = None) -> Columns:
        """All rows, or those `among` slots in JSON, in the order of their slots."""
        names = {number: name for name, number in self._tenants.items()}
        found = Columns()
        numbers: list[int] = []
        query = "SELECT slot, key, parent, position, tenant, sequence FROM blocks"
        where = "" if among is None else " WHERE slot IN (SELECT value FROM json_each(?))"
        cursor = self.base.execute(
            f"{query}{where} ORDER BY slot", () if among is None else (among,)
        )
        while rows := cursor.fetchmany(256):  # few at a time stay in the processor's cache
            columns = list(zip(*rows, strict=True))
            found.slots += columns[0]
            found.keys += columns[1]
            found.parents += columns[2]
            found.positions += columns[3]
            numbers += columns[4]
            found.sequences += columns[5]
        try:
            check(found, slots)
            found.tenants = list(map(names.__getitem__, numbers))
        except (KeyError, TypeError, ValueError) as error:
            raise IndexDamagedError(f"a row has a value of the wrong type ({error})") from None
        return found

    def quarantined(self) -> dict[int, str]:
        """The slots that are not to be used, and why. Raises IndexDamagedError."""
        with self._base_lock, self._as_damage():
            return dict(self.base.execute("SELECT slot, reason FROM quarantine ORDER BY slot"))

    def wear(self) -> dict[str, int]:
        """Bytes written on each day (UTC), what is not committed yet included. Raises OSError."""
        with self._base_lock, self._as_system_error():
            days = dict(self.base.execute("SELECT day, bytes FROM wear ORDER BY day"))
        with self._lock:
            if self._written_bytes:
                days[_today()] = days.get(_today(), 0) + self._written_bytes
        return days

    # ------------------------------------------------------------ changing

    def sequences(self, count: int) -> int:
        """The first of so many new sequence numbers; higher than any that a record has.

        Also the sign that something is about to change: from the first call on the index counts
        as not cleanly closed, durably, before this returns.

        Raises:
            OSError: that cannot be recorded.
        """
        if not self._changed:
            self.touch()
        with self._lock:
            first = self._next
            self._next += count
        return first

    def touch(self) -> None:
        """Something is about to change: the snapshot no longer holds. Raises OSError."""
        with self._base_lock:
            if self._changed:
                return
            with self._transaction():
                self.base.execute("UPDATE meta SET value = 0 WHERE name = 'clean'")
                self.base.execute(
                    "UPDATE meta SET value = ? WHERE name = 'epoch'", (self._epoch + 1,)
                )
            self._epoch += 1
            self._next = self._epoch << EPOCH_BITS
            self.clean = False
            self._changed = True

    def add(self, rows: Sequence[Row], written_bytes: int) -> None:
        """These blocks are on their way to the drive; their rows wait for `commit`."""
        with self._lock:
            if not self._waiting:
                self._waiting_since_s = time.monotonic()
            for row in rows:
                self._waiting[row.slot] = row
            self._written_bytes += written_bytes

    def due(self) -> bool:
        """Whether enough rows wait, or for long enough, that they should be committed."""
        if not self._waiting:
            return False
        return (
            len(self._waiting) >= MOST_WAITING
            or time.monotonic() - self._waiting_since_s > LONGEST_WAIT_S
        )

    def waiting(self) -> list[Row]:
        """The rows that wait. Sync the data files, then `commit` these."""
        with self._lock:
            return list(self._waiting.values())

    def commit(self, batch: Sequence[Row], drop: Sequence[int] = ()) -> None:
        """Make these rows durable, those that nobody has struck since; `drop` other slots' rows.

        Raises:
            OSError: they are not; they go on waiting.
        """
        with self._base_lock:
            with self._lock:
                rows = [row for row in batch if self._waiting.get(row.slot) is row]
                written = self._written_bytes
            if not rows and not written and not drop:
                return
            with self._transaction():
                self._strike(drop)
                numbers = self._numbers([row.tenant for row in rows])
                self._insert(
                    (*row[:3], number, *row[4:]) for row, number in zip(rows, numbers, strict=True)
                )
                if written:
                    self.base.execute(
                        "INSERT INTO wear VALUES(?, ?) "
                        "ON CONFLICT(day) DO UPDATE SET bytes = bytes + excluded.bytes",
                        (_today(), written),
                    )
            with self._lock:
                self._written_bytes -= written
                for row in rows:
                    if self._waiting.get(row.slot) is row:
                        del self._waiting[row.slot]
                self._waiting_since_s = time.monotonic()

    def forget(self, slots: Sequence[int]) -> None:
        """These slots hold no block. Raises OSError."""
        self.touch()
        self._unwait(slots)
        with self._base_lock, self._transaction(durable=False):
            self._strike(slots)

    def quarantine(self, slots: Sequence[int], reason: str) -> None:
        """These slots hold no block and are not to be used. Raises OSError."""
        self.touch()
        self._unwait(slots)
        with self._base_lock, self._transaction():
            self._strike(slots)
            self.base.executemany(
                "INSERT OR REPLACE INTO quarantine VALUES(?, ?, ?)",
                zip(slots, repeat(reason[:500]), repeat(_today())),
            )

    def release(self, slots: Sequence[int]) -> None:
        """These slots may be used again. Raises OSError."""
        self.touch()
        with self._base_lock, self._transaction():
            self.base.executemany("DELETE FROM quarantine WHERE slot = ?", zip(slots))

    @contextlib.contextmanager
    def refill(self) -> Generator[Callable[[Columns], None]]:
        """The blocks are those that the body hands to what it is given, and `strike`s again.

        All of them or, if the body or the drive fails, those that were there before.

        Raises:
            OSError: it cannot be recorded; also from within the body.
        """
        newest = self._epoch

        def fill(found: Columns) -> None:
            nonlocal newest
            newest = max(newest, max(found.sequences, default=0) >> EPOCH_BITS)
            numbers = self._numbers(found.tenants)
            columns = found.slots, found.keys, found.parents, numbers, found.positions
            with self._as_system_error():
                self._insert(zip(*columns, found.sequences, strict=True))

        try:
            with self._base_lock, self._transaction():
                self.base.execute("DELETE FROM blocks")
                yield fill
                self.base.executemany(
                    "UPDATE meta SET value = ? WHERE name = ?",
                    [(0, "clean"), (1, "complete"), (newest, "epoch")],
                )
            self.clean, self.complete = False, True
        finally:
            self._epoch = newest  # also if the rest fails: numbers must not be used again

    def strike(self, slots: Sequence[int]) -> None:
        """Within `refill`: these were not the newest records of their blocks."""
        with self._as_system_error():
            self._strike(slots)

    def close(self, *, slots: int, clean: bool) -> None:
        """Close it. `clean`: all that waited is committed, so a snapshot is written with it.

        Raises:
            OSError: it is closed, but not cleanly; the rows are as they were committed.
        """
        try:
            if clean and self.complete and not self.clean:
                with self._base_lock, self._as_system_error():
                    self._write_snapshot(slots)
        finally:
            self._disconnect()

    def cut(self, slots: int) -> None:
        """There are only so many slots from now on; the file gives back what is free in it.

        Raises:
            OSError: that cannot be recorded.
        """
        self.touch()
        with self._base_lock:
            with self._transaction():
                self.base.execute("DELETE FROM blocks WHERE slot >= ?", (slots,))
                self.base.execute("DELETE FROM quarantine WHERE slot >= ?", (slots,))
                self.base.execute("DELETE FROM snapshot")  # `close` writes another
            with self._as_system_error():
                self.base.execute("VACUUM")

    # ------------------------------------------------------------ inside

    @property
    def base(self) -> sqlite3.Connection:
        """The open database."""
        assert self._base is not None, "the index is closed"
        return self._base

    def _write_snapshot(self, slots: int) -> None:
        try:
            found = self._from_rows(slots)
        except IndexDamagedError as error:
            log.warning("%s: %s; it will be rebuilt", self.path, error)
            with self._transaction():
                self.base.execute("UPDATE meta SET value = 0 WHERE name = 'complete'")
            return
        with self._transaction():
            self.base.execute("DELETE FROM snapshot")
            self.base.executemany("INSERT INTO snapshot VALUES(?, ?, ?, ?)", pack(found))
            self.base.execute("DELETE FROM tenants WHERE id NOT IN (SELECT tenant FROM blocks)")
            self.base.execute("UPDATE meta SET value = 1 WHERE name = 'clean'")
        self.clean = True

    def _insert(self, rows: Iterable[tuple[int, bytes, bytes | None, int, int, int]]) -> None:
        self.base.executemany("INSERT OR REPLACE INTO blocks VALUES(?, ?, ?, ?, ?, ?)", rows)

    def _numbers(self, names: Sequence[str]) -> Iterator[int]:
        """The numbers of tenants, of new ones too."""
        for name in set(names) - self._tenants.keys():
            number = max(self._tenants.values(), default=0) + 1
            self.base.execute("INSERT INTO tenants VALUES(?, ?)", (number, name))
            self._tenants[name] = number
        return map(self._tenants.__getitem__, names)

    def _strike(self, slots: Sequence[int]) -> None:
        self.base.executemany("DELETE FROM blocks WHERE slot = ?", zip(slots))

    def _unwait(self, slots: Sequence[int]) -> None:
        with self._lock:
            for slot in slots:
                self._waiting.pop(slot, None)

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool = True) -> Generator[None]:
        """All or nothing; the caller holds `_base_lock`."""
        tenants = dict(self._tenants)
        with self._as_system_error():
            self.base.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self.base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.base.execute("COMMIT")
            except BaseException:
                self._tenants = tenants
                with contextlib.suppress(sqlite3.Error):  # it rolled back by itself
                    self.base.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _as_system_error(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise as_os_error(error, self.path) from error

    @contextlib.contextmanager
    def _as_damage(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IndexDamagedError(str(error)) from error

    def _disconnect(self) -> None:
        base, self._base = self._base, None
        if base is not None:
            with contextlib.suppress(sqlite3.Error):  # damaged, or the drive is full
                base.close()


def _newest(found: Columns) -> Columns:
    """Oldest write first, and of each key the row that was written last."""
    by_age = np.argsort(np.array(found.sequences, np.int64), kind="stable")
    order: list[int] = by_age.tolist()
    if len(set(found.keys)) < len(found.keys):
        # A damaged block had not been forgotten yet when its key was stored anew.
        last = {found.keys[i]: i for i in order}
        return found.take(sorted(last.values(), key=found.sequences.__getitem__))
    return found.take(order) if (np.diff(by_age) != 1).any() else found


def _today() -> str:
    return datetime.now(UTC).date().isoformat()

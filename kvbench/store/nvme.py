"""Blocks on one or several local drives: the tier that outlives the process.

A record (`kvbench.store.records`) is written by one transfer, neighbours by one transfer together,
past the page cache and from the caller's own memory if that is page-aligned. Why no crash can make
it hand out a wrong byte, or lose a block whose flush returned:

- A record is torn, whole or old, whatever stops its write; a header that is torn fails its CRC32,
  a payload that does not belong to its header fails its checksums, and a whole record of another
  block says so. The store compares all three, on every read, so the index need not be right.
- `flush` syncs the data files and then commits the rows. Killed in between, or before, nothing
  was promised; killed later, both are there. Nobody overwrites a slot before `forget` has deleted
  its row, and `forget` returns before that, so after a kill a row names its own record. After a
  loss of power a deletion may be undone, which finds a record of another block: a miss.
- Slots that were written and not flushed are in no row after a crash: they are free again.
- Without the index the highest sequence number of a key wins. Those of one opening are all higher
  than those of the openings before, which the index knows before the first record is written, so
  what a crash left behind never wins against what was flushed after it.
- A block that was forgotten and not overwritten comes back if the index is lost. It is still the
  block of its key.

Checks no payloads, chooses no victims, starts no threads but to rebuild an index.

May import: kvbench.errors, kvbench.store. numpy, not torch.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from kvbench.errors import UsageError
from kvbench.store import aio
from kvbench.store.block import (
    Bytes,
    CorruptBlockError,
    Layout,
    Stamp,
    checksums,
    payload_matches,
)
from kvbench.store.drives import Drives, Striping
from kvbench.store.identity import Identity, new_identity, same_store
from kvbench.store.index import Index, Row, open_index
from kvbench.store.index_file import peek, put_aside
from kvbench.store.posix import mapped_buffer
from kvbench.store.rebuild import scan
from kvbench.store.record_io import RecordIO
from kvbench.store.records import PAGE_BYTES, Columns
from kvbench.store.snapshot import IndexDamagedError
from kvbench.store.tier import Fact, Recovered
from kvbench.units import GIB, exact_bytes, format_bytes

RETRY_S = 1.0  # after a commit on the way has failed; `flush` tries at once

log = logging.getLogger(__name__)


class NvmeTier:
    """Slots on drives. `directories` are one for each drive, in the same order at every opening.

    `capacity_bytes` bounds the data files together (the index adds some 0.2 KiB a block); None
    takes an existing store as it is. It may grow from one opening to the next; `kvbench store
    compact` shrinks it. `namespace` is the 32-byte digest of `kvbench.keys`.

    Raises:
        StoreInUseError: another opener has it.
        OtherStoreError: a directory holds blocks of another namespace, layout or format.
        TierUnavailableError: no directory, or an engine that is not here.
        OSError: no room (ENOSPC; `min_free_bytes` stay free), or the drive refuses.
        UsageError: the capacity holds no block, or is less than the store has.
    """

    name = "nvme"
    durable = True
    stalls = True
    checks = False

    def __init__(
        self,
        directories: Sequence[Path],
        layout: Layout,
        *,
        capacity_bytes: int | None,
        namespace: bytes,
        engine: str = "posix",
        min_free_bytes: int = GIB,
    ) -> None:
        self._layout = layout
        wanted = new_identity(layout, namespace, len(directories))
        self.drives = Drives(directories, engine=engine, min_free_bytes=min_free_bytes)
        try:
            head = self.drives.known()
            identity = head.identity if head is not None else peek(self.drives.directories[0])
            identity = same_store(self.drives.directories[0], identity, wanted)
            before = head.slots if head is not None else None
            self.drives.open(identity, _slots(self.drives, wanted, before, capacity_bytes))
            self.index: Index = open_index(self.drives.directories[0], identity)
        except BaseException:
            self.drives.close()
            raise
        self._io = RecordIO(self.drives)
        self._found_by = "nothing"
        self._flush_lock = threading.Lock()
        self._failed_s = -RETRY_S

    @property
    def layout(self) -> Layout:
        """The shape of its blocks."""
        return self._layout

    @property
    def slots(self) -> int:
        """How many blocks it holds."""
        return self.drives.slots

    @property
    def parts_alone(self) -> bool:
        """Whether parts begin and end at pages, so that one can be read without the rest."""
        return self._layout.part_bytes % PAGE_BYTES == 0

    @property
    def at_once(self) -> bool:
        """Whether the kernel takes many transfers in one call, and the engine is its own."""
        return self.drives.engine == "posix" and aio.queue() is not None

    def view(self, slot: int) -> Bytes | None:
        """None: a drive is not memory."""
        del slot
        return None

    def facts(self) -> dict[str, Fact]:
        """Engine, direct I/O, drives, bytes of a record and ever written, how blocks were found."""
        written: int | None = None
        with contextlib.suppress(OSError):  # an index in trouble is no reason to know nothing
            written = sum(self.wear().values())
        return {
            "memory": "files on drives",
            "engine": self.drives.engine,
            "direct_io": all(file.direct for file in self.drives.files),
            "drives": len(self.drives.files),
            "record_bytes": self.drives.format.record_bytes,
            "written_bytes": written,
            "found_by": self._found_by,
        }

    def wear(self) -> dict[str, int]:
        """Bytes written on each day (UTC, ISO date) by all openings. Raises OSError."""
        return self.index.wear()

    # ------------------------------------------------------------ blocks

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """Put a block into each slot; see `Tier.write`.

        Nothing is written, and all have the error, if the index cannot record that something
        changes.

        Raises:
            UsageError: a stamp or a payload is not of this layout; nothing was written.
        """
        try:
            first = self.index.sequences(len(slots))
        except OSError as error:
            return [error] * len(slots)
        errors = self._write(slots, stamps, payloads, range(first, first + len(slots)))
        self._commit_if_due()
        return errors

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """Fetch each slot's payload, or one part of it; see `Tier.read`.

        Raises:
            UsageError: a buffer is not of the right size.
        """
        if part is None:
            return self._io.read(slots, outs)
        return [self._io.read_part(slot, out, part) for slot, out in zip(slots, outs, strict=True)]

    def forget(self, slots: Sequence[int]) -> None:
        """These slots hold no block any more. Raises OSError: the index cannot record it."""
        self._io.forget(slots)
        self.index.forget(slots)

    def quarantine(self, slots: Sequence[int], reason: str) -> None:
        """Never to be used again, also after a restart. Raises OSError."""
        self._io.forget(slots)
        self.index.quarantine(slots, reason)
        for slot in slots:
            with contextlib.suppress(OSError):  # if it can be: then a rebuilt index leaves it out
                self._io.erase(slot)

    def flush(self) -> None:
        """Sync the data files, then commit the rows of everything written before the call.

        Raises:
            OSError: it might not survive a loss of power; it is not forgotten, try again.
        """
        with self._flush_lock:
            self._commit()

    # ------------------------------------------------------------ opening and closing

    def recover(self) -> Recovered:
        """The blocks that it holds: by the index, or by the records if the index is of no use.

        Raises:
            OSError: the drive refuses.
        """
        try:
            columns, bad = self._from_index()
        except IndexDamagedError as damage:
            self.index.close(slots=self.slots, clean=False)
            put_aside(self.index.path, str(damage))
            self.index = open_index(self.drives.directories[0], self.drives.identity)
            columns, bad = self._from_records(), {}
        if self.drives.shortened:
            lost = [slot for slot in columns.slots if not self.drives.held(slot)]
            if lost:
                log.warning("a data file had lost its end, and %d blocks with it", len(lost))
                self.index.forget(lost)
                columns = _without(columns, lost)
        return Recovered(
            slots=columns.slots,
            keys=columns.keys,
            parents=columns.parents,
            positions=columns.positions,
            tenants=columns.tenants,
            quarantined=sorted(bad),
        )

    def close(self) -> None:
        """Flush, mark the index as cleanly closed, close the files and let the lock go.

        Raises:
            OSError: it is closed and its lock is free, but what was not flushed may be lost.
        """
        clean = False
        try:
            self.flush()
            clean = True
        finally:
            try:
                self.index.close(slots=self.slots, clean=clean)
            finally:
                self.drives.close()

    # ------------------------------------------------------------ maintenance

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> dict[int, Exception]:
        """Move blocks to free slots of lower numbers, so that a crash leaves each of them in one.

        The record keeps its sequence number. Should the index be lost half-way, there are two of
        one number, and of those `scan` takes the one in the higher slot, which is sure to be whole.

        Returns the sources that could not be read, or were damaged; those stay where they are.

        Raises:
            OSError: a drive refuses.
        """
        size = self.drives.format.payload_bytes
        outs = [
            row[: self._layout.block_bytes]
            for row in mapped_buffer(len(sources) * size).reshape(len(sources), size)
        ]
        failed: dict[int, Exception] = {}
        whole: list[int] = []
        stamps: list[Stamp] = []
        sequences: list[int] = []
        for at, stamp in enumerate(self.read(sources, outs)):
            if isinstance(stamp, Exception):
                failed[sources[at]] = stamp
            elif not payload_matches(stamp, outs[at], self._layout):
                failed[sources[at]] = CorruptBlockError("its payload has other checksums")
            else:
                whole.append(at)
                stamps.append(stamp)
                sequences.append(self._io.header(sources[at])[1])
        self.index.touch()
        errors = self._write(
            [targets[at] for at in whole], stamps, [outs[at] for at in whole], sequences
        )
        for error in errors:
            if error is not None:
                raise error
        old = [sources[at] for at in whole]
        with self._flush_lock:
            self._commit(drop=old)
        self._io.forget(old)
        return failed

    def revive(self, slot: int) -> Exception | None:
        """Try a quarantined slot with a record of its own; None if it is usable again, and free.

        Raises:
            OSError: the index cannot record it.
        """
        pattern = mapped_buffer(self.drives.format.payload_bytes)[: self._layout.block_bytes]
        pattern[:] = np.random.default_rng(slot).integers(0, 256, pattern.nbytes, np.uint8)
        stamp = Stamp(bytes(32), None, 0, "", checksums(pattern, self._layout))
        first = self.index.sequences(1)
        (error,) = self._io.write((slot,), (stamp,), (pattern,), (first,))
        if error is None:
            try:
                self.drives.sync()
                back = mapped_buffer(self.drives.format.payload_bytes)[: self._layout.block_bytes]
                (found,) = self._io.read((slot,), (back,))
                self._io.erase(slot)
            except OSError as failed:
                return failed
            if isinstance(found, Exception):
                return found
            if found != stamp or not payload_matches(stamp, back, self._layout):
                return CorruptBlockError("what was written came back as something else")
            self.index.release((slot,))
        return error

    # ------------------------------------------------------------ inside

    def _write(
        self,
        slots: Sequence[int],
        stamps: Sequence[Stamp],
        payloads: Sequence[Bytes],
        sequences: Sequence[int],
    ) -> list[Exception | None]:
        errors = self._io.write(slots, stamps, payloads, sequences)
        rows = [
            Row(slot, stamp.key, stamp.parent, stamp.tenant, stamp.position, sequence)
            for slot, stamp, sequence, error in zip(slots, stamps, sequences, errors, strict=True)
            if error is None
        ]
        self.index.add(rows, len(rows) * self.drives.format.record_bytes)
        return errors

    def _commit(self, drop: Sequence[int] = ()) -> None:
        """Sync, then commit; the caller holds the flush lock."""
        batch = self.index.waiting()
        if batch:
            self.drives.sync()
            self.drives.check_free(self.index.path)  # rows make it grow
        self.index.commit(batch, drop)

    def _commit_if_due(self) -> None:
        """Commit on the way, so that a crash without a flush loses little."""
        if not self.index.due() or time.monotonic() - self._failed_s < RETRY_S:
            return
        if not self._flush_lock.acquire(blocking=False):
            return  # another thread is at it
        try:
            self._commit()
        except OSError as error:
            self._failed_s = time.monotonic()
            log.warning("cannot commit what was written: %s; the next flush tries again", error)
        finally:
            self._flush_lock.release()

    def _from_index(self) -> tuple[Columns, dict[int, str]]:
        bad = {slot: why for slot, why in self.index.quarantined().items() if slot < self.slots}
        if not self.index.complete:
            columns = self._from_records()
        else:
            columns = self.index.load(self.slots)
            self._found_by = "index, snapshot" if self.index.clean else "index, rows"
        if bad and not bad.keys().isdisjoint(columns.slots):
            columns = _without(columns, bad)
        return columns, bad

    def _from_records(self) -> Columns:
        try:
            with self.index.refill() as fill:  # while the drives are being read
                columns = scan(self.drives, fill, self.index.strike)
        except OSError as error:
            log.warning("the index cannot be rebuilt now (%s); the next opening tries again", error)
            columns = scan(self.drives)
        self._found_by = "records" if any(self.drives.found_bytes) else "nothing"
        return columns


def _without(columns: Columns, slots: Iterable[int]) -> Columns:
    gone = set(slots)
    return columns.take([at for at, slot in enumerate(columns.slots) if slot not in gone])


def _slots(drives: Drives, wanted: Identity, before: int | None, capacity_bytes: int | None) -> int:
    """How many slots a store is to have that had so many before; None: it cannot say."""
    striping = Striping(wanted.drives, wanted.record_format().record_bytes)
    had = drives.slots_on_disk(striping.record_bytes) if before is None else before
    where = drives.directories[0]
    if capacity_bytes is None:
        if not had:
            raise UsageError(f"{where} holds no store: give a capacity to make one")
        return had
    slots = striping.slots_in(capacity_bytes)
    if not slots:
        raise UsageError(
            f"a capacity of {exact_bytes(max(0, capacity_bytes))} holds no block of "
            f"{exact_bytes(wanted.layout.block_bytes)}: it takes at least "
            f"{exact_bytes(striping.capacity(1))}"
        )
    if slots < had:
        raise UsageError(
            f"{where} holds a store of {format_bytes(striping.capacity(had))} and was to be opened "
            f"with {format_bytes(capacity_bytes)}: `kvbench store compact` makes it smaller"
        )
    return slots

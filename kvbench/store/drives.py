"""The data files of a store: one preallocated file a drive, and which slot lies where in them.

A slot's place depends on the number of drives alone, never on how many slots there are: a file can
grow at its end. Locks are taken here, and held until the files are closed.
Reads and writes no record, and decides nothing about blocks.

May import: kvbench.errors, kvbench.store. numpy, not torch; engines are imported when one is asked
for.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kvbench.errors import TierUnavailableError, UsageError
from kvbench.store.block import Bytes, Layout
from kvbench.store.identity import (
    DATA,
    HEAD_BYTES,
    Head,
    Identity,
    OtherStoreError,
    read_head,
    write_head,
)
from kvbench.store.lock import LockFile
from kvbench.store.posix import BlockFile, preallocate
from kvbench.store.records import RecordFormat
from kvbench.units import MIB, format_bytes

LOCK = "lock"
STRIPE_BYTES = 4 * MIB  # neighbours in slots are neighbours on a drive over so many bytes
ENGINES = ("posix", "kvikio", "nixl")


class Engine(Protocol):
    """What moves bytes to and from one file. Buffers are uint8 [n], aligned as the file wants."""

    @property
    def direct(self) -> bool:
        """Whether the page cache is bypassed."""
        ...

    def readv(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Fill the buffers one after the other; how many bytes came. Raises OSError."""
        ...

    def writev(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Write the buffers one after the other; how many bytes went. Raises OSError.

        If it cannot be one transfer, the first buffer of each record, its header, goes last.
        """
        ...

    def sync(self) -> None:
        """Wait until all that was written would survive a loss of power. Raises OSError."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


@dataclass(frozen=True, slots=True)
class Striping:
    """Which slot lies where: `stripe` slots on one drive, the next on the next drive."""

    drives: int
    record_bytes: int

    @property
    def stripe(self) -> int:
        """Slots that lie one after the other on a drive before the next drive has its turn."""
        return max(1, STRIPE_BYTES // self.record_bytes)

    def place(self, slot: int) -> tuple[int, int]:
        """The drive of a slot, and the offset in bytes of its record in that drive's file."""
        if self.drives == 1:
            return 0, HEAD_BYTES + slot * self.record_bytes
        chunk, within = divmod(slot, self.stripe)
        above, drive = divmod(chunk, self.drives)
        return drive, HEAD_BYTES + (above * self.stripe + within) * self.record_bytes

    def slot(self, drive: int, record: int) -> int:
        """The slot of the record that has this number in a drive's file."""
        above, within = divmod(record, self.stripe)
        return (above * self.drives + drive) * self.stripe + within

    def file_bytes(self, drive: int, slots: int) -> int:
        """Bytes of a drive's file if the store has so many slots."""
        rounds, rest = divmod(slots, self.stripe * self.drives)
        mine = min(max(rest - drive * self.stripe, 0), self.stripe)
        return HEAD_BYTES + (rounds * self.stripe + mine) * self.record_bytes

    def slots_in(self, capacity_bytes: int) -> int:
        """Slots whose files together have at most so many bytes."""
        return max(0, capacity_bytes - self.drives * HEAD_BYTES) // self.record_bytes

    def capacity(self, slots: int) -> int:
        """Bytes of all files together."""
        return self.drives * HEAD_BYTES + slots * self.record_bytes


def capacity_for(slots: int, layout: Layout, drives: int = 1) -> int:
    """The `capacity_bytes` of a tier with so many slots."""
    return Striping(drives, RecordFormat(layout, bytes(32)).record_bytes).capacity(slots)


class Drives:
    """The open, locked data files of a store.

    `found_bytes` says how long each file was before it was opened: what lies beyond was cut off,
    or is new. `identity` of a new store is made here.
    """

    def __init__(self, directories: Sequence[Path], *, engine: str, min_free_bytes: int) -> None:
        if engine not in ENGINES:
            raise UsageError(f"engine {engine!r}: expected one of {', '.join(ENGINES)}")
        self.directories = [Path(each) for each in directories]
        if not self.directories or len({each.resolve() for each in self.directories}) < len(
            self.directories
        ):
            raise UsageError("a store needs one directory or several different ones")
        for each in self.directories:
            if not each.is_dir():
                raise TierUnavailableError(
                    f"{each} is not a directory: create it on the drive that is to hold blocks"
                )
        self.engine = engine
        self.min_free_bytes = min_free_bytes
        self.slots = 0
        self.found_bytes: list[int] = []
        self.files: list[Engine] = []
        self._locks: list[LockFile] = []
        try:
            for each in self.directories:
                self._locks.append(LockFile(each / LOCK))
            self.heads = [read_head(each) for each in self.directories]
        except BaseException:
            self.close()
            raise

    @property
    def paths(self) -> list[Path]:
        """The data files."""
        return [each / DATA for each in self.directories]

    def known(self) -> Head | None:
        """What the files say that they are; None for a new store, or if none of them can say.

        Raises:
            OtherStoreError: they are not the files of one store, or not in its order.
        """
        found = [head for head in self.heads if head is not None]
        if not found:
            return None
        first = found[0]
        for at, head in enumerate(self.heads):
            if head is None:
                if not self.paths[at].exists():
                    raise OtherStoreError(
                        f"{self.directories[at]} has no {DATA}, though the store was made with it: "
                        "is its drive mounted? To begin anew, empty the other directories"
                    )
                continue
            if head.identity.store != first.identity.store:
                raise OtherStoreError(
                    f"{self.directories[at]} belongs to another store than {self.directories[0]}: "
                    "name the directories of one store"
                )
            if (head.drive, head.identity.drives) != (at, len(self.heads)):
                raise OtherStoreError(
                    f"{self.directories[at]} is number {head.drive + 1} of the "
                    f"{head.identity.drives} directories of its store, and was named as number "
                    f"{at + 1} of {len(self.heads)}: name them all, in the order they were made in"
                )
        # A growth that was interrupted had reached some of the files; a compaction all of them.
        return max(found, key=lambda head: head.slots)

    def slots_on_disk(self, record_bytes: int) -> int:
        """How many slots the files have room for as they are, whatever they hold."""
        sizes = [path.stat().st_size if path.exists() else 0 for path in self.paths]
        return sum(max(0, size - HEAD_BYTES) // record_bytes for size in sizes)

    def open(self, identity: Identity, slots: int) -> None:
        """Make the files as large as so many slots need, and open them.

        `shortened` says afterwards whether one of them was shorter than it should have been.

        Raises:
            OSError: no space (ENOSPC), or a file cannot be opened.
        """
        self.identity, self.slots = identity, slots
        self.format = identity.record_format()
        self.striping = Striping(identity.drives, self.format.record_bytes)
        self.found_bytes = [path.stat().st_size if path.exists() else 0 for path in self.paths]
        self.shortened = any(
            head is None or found < self.striping.file_bytes(at, head.slots)
            for at, (head, found) in enumerate(zip(self.heads, self.found_bytes, strict=True))
        )
        sizes = [self.striping.file_bytes(at, slots) for at in range(identity.drives)]
        for at, (path, size) in enumerate(zip(self.paths, sizes, strict=True)):
            head = Head(identity=identity, drive=at, slots=slots)
            if self.found_bytes[at] < size:
                self.check_free(path, size - self.found_bytes[at])
                preallocate(path, size)
            if self.heads[at] != head:
                write_head(path, head)
            if self.found_bytes[at] > size:
                os.truncate(path, size)  # a compaction had got so far
            _sync_directory(path.parent)
        for path in self.paths:
            self.files.append(self._engine(path))  # what is open is closed if the next fails

    def check_free(self, path: Path, more_bytes: int = 0) -> None:
        """Refuse to leave less than `min_free_bytes` on a drive, after so many bytes more.

        Raises:
            OSError: ENOSPC.
        """
        room = os.statvfs(path.parent)
        free = room.f_bavail * room.f_frsize
        if free - more_bytes < self.min_free_bytes:
            raise OSError(
                errno.ENOSPC,
                f"{format_bytes(free)} are free, {format_bytes(more_bytes)} are needed and "
                f"{format_bytes(self.min_free_bytes)} are to stay free: make room, or give the "
                "store less",
                str(path),
            )

    def place(self, slot: int) -> tuple[int, int]:
        """The drive of a slot, and the offset of its record."""
        return self.striping.place(slot)

    def held(self, slot: int) -> bool:
        """Whether the slot's record lay in its file, whole, when that was opened."""
        drive, offset = self.striping.place(slot)
        return offset + self.format.record_bytes <= self.found_bytes[drive]

    def runs(self, slots: Sequence[int], most: int) -> Iterator[list[int]]:
        """Indexes into `slots`, grouped so that the records of a group are neighbours in a file."""
        order = sorted(range(len(slots)), key=slots.__getitem__)
        run: list[int] = []
        expected = (-1, 0)
        for index in order:
            drive, offset = self.striping.place(slots[index])
            if run and ((drive, offset) != expected or len(run) == most):
                yield run
                run = []
            run.append(index)
            expected = (drive, offset + self.format.record_bytes)
        if run:
            yield run

    def cut(self, slots: int) -> None:
        """Make the files as small as so many slots allow. Raises OSError."""
        for at, path in enumerate(self.paths):
            write_head(path, Head(identity=self.identity, drive=at, slots=slots))
        for at, path in enumerate(self.paths):
            os.truncate(path, self.striping.file_bytes(at, slots))
            _sync_directory(path.parent)
        self.slots = slots

    def sync(self) -> None:
        """Wait until everything written would survive a loss of power.

        Raises:
            OSError: a drive could not promise it.
        """
        for file in self.files:
            file.sync()

    def close(self) -> None:
        """Close the files, then let the locks go."""
        for file in self.files:
            with contextlib.suppress(OSError):  # a drive that has gone; nothing was promised
                file.close()
        self.files = []
        for lock in self._locks:
            lock.close()
        self._locks = []

    def _engine(self, path: Path) -> Engine:
        if self.engine == "kvikio":
            from kvbench.store.kvikio_file import KvikioFile  # noqa: PLC0415  loads libcuda

            return KvikioFile(
                path, write=True, queue_depth=16, block_bytes=self.format.payload_bytes
            )
        if self.engine == "nixl":
            from kvbench.store.nixl_file import NixlFile  # noqa: PLC0415  an extra

            return NixlFile(path)
        return BlockFile(path, write=True)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

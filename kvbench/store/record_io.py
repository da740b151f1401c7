"""Records to and from the data files: neighbours in one transfer, from the caller's own memory.

A transfer that fails or stops short is done again record by record, so that each block has its own
result. May be called by many threads, for different slots. Knows no index, checks no payloads.

May import: kvbench.errors, kvbench.store. numpy, not torch.
"""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

from kvbench.errors import UsageError
from kvbench.store import aio
from kvbench.store.block import Bytes, CorruptBlockError, Stamp
from kvbench.store.copying import address_of
from kvbench.store.drives import Drives, Engine
from kvbench.store.posix import BlockFile, mapped_buffer
from kvbench.store.records import HEADER_BYTES, PAGE_BYTES
from kvbench.units import MIB

MOST_RUN_BYTES = 4 * MIB  # of payload in one transfer
MOST_RUN = 256  # records of one transfer: two buffers each, and the kernel takes 1024 (IOV_MAX)
MOST_STAMPS = 4096  # that are remembered for reads of single parts

Transfer = Callable[[Sequence[Bytes], int], int]


class RecordIO:
    """Reads and writes the records of open drives."""

    def __init__(self, drives: Drives) -> None:
        self._drives = drives
        self._format = drives.format
        self._layout = drives.format.layout
        self._most = max(1, min(MOST_RUN, MOST_RUN_BYTES // self._format.payload_bytes))
        self._own = threading.local()
        self._stamps: dict[int, Stamp] = {}  # of blocks that are being read part by part
        self._stamps_lock = threading.Lock()

    def write(
        self,
        slots: Sequence[int],
        stamps: Sequence[Stamp],
        payloads: Sequence[Bytes],
        sequences: Sequence[int],
    ) -> list[Exception | None]:
        """Put a record into each slot; the error of each that could not be written whole.

        Raises:
            UsageError: a stamp or a payload is not of this layout; nothing was written.
        """
        self._fits(payloads, self._layout.block_bytes)
        self.forget(slots)
        results: list[Exception | None] = [None] * len(slots)
        for runs in self._rounds(slots):
            headers = self._headers(sum(map(len, runs)))
            pieces: list[list[Bytes]] = []
            at = 0
            for run in runs:
                buffers: list[Bytes] = []
                for i in run:
                    self._format.encode(headers[at], stamps[i], sequences[i])
                    buffers += (headers[at], self._outgoing(payloads[i], at))
                    at += 1
                pieces.append(buffers)
            for run, buffers, whole in self._at_once("write", slots, runs, pieces):
                if not whole:
                    self._write_run(run, slots, buffers, results)
        return results

    def read(self, slots: Sequence[int], outs: Sequence[Bytes]) -> list[Stamp | Exception]:
        """Fetch each slot's payload into uint8 [block_bytes]; its stamp, or why it has none.

        Raises:
            UsageError: a buffer is not of that size.
        """
        self._fits(outs, self._layout.block_bytes)
        results: list[Stamp | Exception] = [CorruptBlockError("not read")] * len(slots)
        for runs in self._rounds(slots):
            headers = self._headers(sum(map(len, runs)))
            pieces: list[list[Bytes]] = []
            at = 0
            for run in runs:
                buffers: list[Bytes] = []
                for i in run:
                    buffers += (headers[at], self._incoming(outs[i], at))
                    at += 1
                pieces.append(buffers)
            for run, buffers, whole in self._at_once("read", slots, runs, pieces):
                self._read_run(run, slots, buffers, results, whole=whole)
                for at, i in enumerate(run):
                    data = buffers[2 * at + 1]
                    if data is not outs[i]:
                        outs[i][:] = data[: self._layout.block_bytes]
        return results

    def read_part(self, slot: int, out: Bytes, part: int) -> Stamp | Exception:
        """Fetch one part into uint8 [part_bytes]; the stamp of the block, or why it has none.

        A stamp that was read before is not read again: what matters is that it is the block's.

        Raises:
            UsageError: the buffer is not of that size.
        """
        size = self._layout.part_bytes
        self._fits((out,), size)
        if size % PAGE_BYTES:
            whole = mapped_buffer(self._format.payload_bytes)[: self._layout.block_bytes]
            (found,) = self.read((slot,), (whole,))
            out[:] = self._layout.part(whole, part)
            return found
        with self._stamps_lock:
            stamp = self._stamps.get(slot)
        try:
            if stamp is None:
                stamp, _ = self.header(slot)
                with self._stamps_lock:
                    if len(self._stamps) >= MOST_STAMPS:
                        del self._stamps[next(iter(self._stamps))]
                    self._stamps[slot] = stamp
            target = out if _aligned(out) else self._bounce(0)[:size]
            self._exactly("read", slot, (target,), HEADER_BYTES + part * size)
        except (OSError, CorruptBlockError) as error:
            return error
        if target is not out:
            out[:] = target
        return stamp

    def header(self, slot: int) -> tuple[Stamp, int]:
        """The stamp and the sequence number of a slot's record.

        Raises:
            OSError: it cannot be read.
            CorruptBlockError: there is no whole header.
        """
        header = self._headers()[0]
        self._exactly("read", slot, (header,), 0)
        return self._format.decode(header)

    def erase(self, slot: int) -> None:
        """Leave no header in a slot. Raises OSError."""
        header = self._headers()[0]
        header[:] = 0
        self._exactly("write", slot, (header,), 0)

    def forget(self, slots: Sequence[int]) -> None:
        """These slots are about to hold something else."""
        if self._stamps:
            with self._stamps_lock:
                for slot in slots:
                    self._stamps.pop(slot, None)

    # ------------------------------------------------------------ transfers

    def _rounds(self, slots: Sequence[int]) -> Iterator[list[list[int]]]:
        """Runs of neighbours, as many at a time as may be under way at once."""
        runs: list[list[int]] = []
        records = 0
        for run in self._drives.runs(slots, self._most):
            if runs and records + len(run) > self._most:
                yield runs
                runs, records = [], 0
            runs.append(run)
            records += len(run)
        if runs:
            yield runs

    def _at_once(
        self,
        verb: str,
        slots: Sequence[int],
        runs: Sequence[list[int]],
        pieces: Sequence[list[Bytes]],
    ) -> Iterator[tuple[list[int], list[Bytes], bool]]:
        """Each run with its buffers, and whether they have been moved whole.

        Of several runs all are under way at the same time, where the kernel has such calls. What
        it did not move whole is left for another try, run by run.
        """
        places = [self._drives.place(slots[run[0]]) for run in runs]
        files = [self._drives.files[drive] for drive, _ in places]
        queue = aio.queue() if len(runs) > 1 else None
        if queue is None or not all(isinstance(file, BlockFile) for file in files):
            for run, buffers in zip(runs, pieces, strict=True):
                yield run, buffers, False
            return
        transfers = [
            aio.Transfer(cast("BlockFile", file).fd, buffers, offset)
            for file, buffers, (_, offset) in zip(files, pieces, places, strict=True)
        ]
        done = queue.run(verb, transfers)
        size = self._format.record_bytes
        for run, buffers, moved in zip(runs, pieces, done, strict=True):
            yield run, buffers, moved == len(run) * size

    def _write_run(
        self,
        run: Sequence[int],
        slots: Sequence[int],
        buffers: Sequence[Bytes],
        results: list[Exception | None],
    ) -> None:
        try:
            self._exactly("write", slots[run[0]], buffers, 0)
        except OSError as error:
            if len(run) == 1:
                results[run[0]] = error
                with contextlib.suppress(OSError):  # else its checksums tell, when it is read
                    self.erase(slots[run[0]])
                return
            for at, i in enumerate(run):
                self._write_run((i,), slots, buffers[2 * at : 2 * at + 2], results)

    def _read_run(
        self,
        run: Sequence[int],
        slots: Sequence[int],
        buffers: Sequence[Bytes],
        results: list[Stamp | Exception],
        *,
        whole: bool = False,
    ) -> None:
        try:
            if not whole:
                self._exactly("read", slots[run[0]], buffers, 0)
        except (OSError, CorruptBlockError) as error:
            if len(run) == 1:
                results[run[0]] = error
                return
            for at, i in enumerate(run):
                self._read_run((i,), slots, buffers[2 * at : 2 * at + 2], results)
            return
        for at, i in enumerate(run):
            try:
                results[i], _ = self._format.decode(buffers[2 * at])
            except CorruptBlockError as error:
                results[i] = error

    def _exactly(self, verb: str, slot: int, buffers: Sequence[Bytes], within: int) -> None:
        """Move all of the buffers to or from a slot's record, from a byte of it on.

        Raises:
            OSError: the drive refuses, or takes no more.
            CorruptBlockError: the file ends there.
        """
        drive, offset = self._drives.place(slot)
        file: Engine = self._drives.files[drive]
        move: Transfer = file.readv if verb == "read" else file.writev
        total = sum([each.nbytes for each in buffers])
        done = move(buffers, offset + within)
        while 0 < done < total:  # the kernel may stop half-way and go on when asked again
            more = move(_rest(buffers, done), offset + within + done)
            if more <= 0:
                break
            done += more
        if done == total:
            return
        said = f"short {verb}: {done} of {total} bytes of the record in slot {slot}"
        if verb == "read":
            raise CorruptBlockError(f"{said}, the data file ends there")
        raise OSError(errno.EIO, said, str(self._drives.paths[drive]))

    # ------------------------------------------------------------ memory

    def _headers(self, count: int = 1) -> list[Bytes]:
        """This thread's headers, one for each record under way; at most `_most`."""
        assert count <= self._most
        headers: list[Bytes] | None = getattr(self._own, "headers", None)
        if headers is None:
            area = mapped_buffer(self._most * HEADER_BYTES)
            headers = self._own.headers = list(area.reshape(self._most, HEADER_BYTES))
        return headers

    def _bounce(self, at: int) -> Bytes:
        """This thread's own room for a payload with its padding, one for each record under way."""
        rooms: list[Bytes] | None = getattr(self._own, "rooms", None)
        if rooms is None:
            size = self._format.payload_bytes
            rooms = self._own.rooms = list(
                mapped_buffer(self._most * size).reshape(self._most, size)
            )
        return rooms[at]

    def _outgoing(self, payload: Bytes, at: int) -> Bytes:
        if payload.nbytes == self._format.payload_bytes and _aligned(payload):
            return payload
        room = self._bounce(at)
        room[: payload.nbytes] = payload
        room[payload.nbytes :] = 0
        return room

    def _incoming(self, out: Bytes, at: int) -> Bytes:
        if out.nbytes == self._format.payload_bytes and _aligned(out):
            return out
        return self._bounce(at)

    @staticmethod
    def _fits(buffers: Sequence[Bytes], size_bytes: int) -> None:
        for each in buffers:
            if each.nbytes != size_bytes:
                raise UsageError(f"a buffer of {each.nbytes} bytes, expected {size_bytes}")


def _aligned(buffer: Bytes) -> bool:
    """Whether a drive can move it directly."""
    return address_of(buffer) % PAGE_BYTES == 0 and bool(buffer.flags.c_contiguous)


def _rest(buffers: Sequence[Bytes], done: int) -> list[Bytes]:
    """What is left of the buffers after so many bytes."""
    rest: list[Bytes] = []
    for each in buffers:
        if done >= each.nbytes:
            done -= each.nbytes
            continue
        rest.append(each[done:])
        done = 0
    return rest

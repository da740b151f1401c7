"""Which blocks the records themselves say are there, when the index cannot say it.

Small records are read in large pieces, one after the other; of large ones only the headers, many
at a time. Payloads are not read: who reads a block checks it.

May import: kvbench.errors, kvbench.store. numpy, not torch.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kvbench.store import aio
from kvbench.store.block import Bytes
from kvbench.store.drives import Drives
from kvbench.store.identity import HEAD_BYTES
from kvbench.store.posix import BlockFile, ShortTransferError, mapped_buffer
from kvbench.store.records import HEADER_BYTES, Columns
from kvbench.units import KIB, MIB

PIECE_BYTES = 8 * MIB
SEQUENTIAL_BYTES = 32 * KIB  # records up to this size are read whole: faster than one by one
HEADERS = 1024  # of larger records in one task
THREADS_SEQUENTIAL, THREADS_RANDOM = 3, 4

log = logging.getLogger(__name__)


def scan(
    drives: Drives,
    found_some: Callable[[Columns], None] = lambda _: None,
    found_newer: Callable[[list[int]], None] = lambda _: None,
) -> Columns:
    """The blocks of all records whose header is whole, oldest write first.

    Of several records of one key the one that was written last counts; of two that were written
    as one (a move that was interrupted) the one in the higher slot, which is the original.
    `found_some` is called with the records as they are read, on the caller's thread, and in the end
    `found_newer` with the slots of those that do not count.

    Raises:
        OSError: a file cannot be opened; and what the two raise.
    """
    found = Columns()
    for drive in range(len(drives.files)):
        for some in _scan_drive(drives, drive):
            found_some(some)
            found.extend(some)
    if not len(found):
        return found
    sequences = np.array(found.sequences, np.int64)
    order: list[int] = np.lexsort((np.array(found.slots, np.int64), sequences)).tolist()
    newest = {found.keys[i]: i for i in order}  # the last of a key stays
    if len(newest) == len(order):
        return found.take(order)
    kept = set(newest.values())
    found_newer([found.slots[i] for i in order if i not in kept])
    return found.take(sorted(kept, key=lambda i: (found.sequences[i], found.slots[i])))


def _scan_drive(drives: Drives, drive: int) -> Iterator[Columns]:
    record = drives.format.record_bytes
    end = min(
        drives.found_bytes[drive], drives.striping.file_bytes(drive, drives.slots)
    )  # what was made longer just now holds nothing
    records = max(0, end - HEAD_BYTES) // record
    sequential = record <= SEQUENTIAL_BYTES
    step = PIECE_BYTES // record if sequential else HEADERS
    threads = THREADS_SEQUENTIAL if sequential else THREADS_RANDOM
    own = threading.local()
    width = record if sequential else HEADER_BYTES

    with (
        BlockFile(drives.paths[drive]) as file,
        ThreadPoolExecutor(threads, thread_name_prefix="rebuild") as pool,
    ):
        if not file.direct:
            file.drop_cache()

        def one(first: int) -> Columns:
            count = min(step, records - first)
            area: Bytes | None = getattr(own, "area", None)
            if area is None:
                area = own.area = mapped_buffer(step * width)
            rows = area.reshape(step, width)[:count]
            if sequential:
                whole = [_read(file, rows.reshape(-1), HEAD_BYTES + first * record)] * count
            else:
                whole = _read_headers(file, rows, HEAD_BYTES + first * record, record)
            for at in [at for at in range(count) if not whole[at]]:
                if not _read(file, rows[at, :HEADER_BYTES], HEAD_BYTES + (first + at) * record):
                    rows[at, :HEADER_BYTES] = 0  # no block: its record cannot be read
            slots = [drives.striping.slot(drive, at) for at in range(first, first + count)]
            return drives.format.decode_many(rows, slots)

        yield from pool.map(one, range(0, records, step))


def _read_headers(file: BlockFile, rows: Bytes, offset_bytes: int, apart_bytes: int) -> list[bool]:
    """Many headers by one call of the kernel, if it has such a call: which of them came."""
    queue = aio.queue()
    if queue is None:
        return [False] * len(rows)
    transfers = [
        aio.Transfer(file.fd, [row], offset_bytes + at * apart_bytes) for at, row in enumerate(rows)
    ]
    return [done == HEADER_BYTES for done in queue.run("read", transfers)]


def _read(file: BlockFile, buffer: Bytes, offset_bytes: int) -> bool:
    """Whether the buffer was filled; a sector that cannot be read is nobody's reason to give up."""
    try:
        file.read(buffer, offset_bytes)
    except (OSError, ShortTransferError) as error:
        log.warning("%s at %d: %s", file.path, offset_bytes, error)
        return False
    return True

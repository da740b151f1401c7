"""What every worker does around its store: the same blocks, the same memory, the same clock.

A worker is a process in the environment of one store. It reads rounds from its standard input, a
JSON object a line, and answers each on a descriptor of its own, because libraries print. In a
round it opens a new store in an empty folder, stores every block, has the caches dropped, finds
and reads every block, and compares every byte; only the calls of the store are timed.

Needs Python 3.11 and numpy: this runs in every environment. Imports nothing of kvbench.
"""

import argparse
import dataclasses
import hashlib
import json
import mmap
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]  # [blocks, block_bytes]
Options = dict[str, str | int]
READY = "ready"  # the first answer: imports, which would disturb the rounds of others, are over
SETTLE_S = 0.5  # between storing and reading, for a drive that finishes in its own time


class Store(Protocol):
    """A store that was opened in an empty folder, for the rows of one array."""

    @property
    def facts(self) -> dict[str, str]:
        """What a reader should know of it: version, kind of I/O, whether it waits for the drive."""
        ...

    def write(self) -> None:
        """Store every row; returns when the store calls that done."""
        ...

    def look_up(self) -> int:
        """Ask for every block; how many are there."""
        ...

    def read(self) -> int:
        """Read every block back into its row; how many the store reports as read."""
        ...

    def close(self) -> None:
        """Give back threads and files."""
        ...


OpenStore = Callable[[Path, Blocks, Options], Store]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one round of one store took. A block counts only if all its bytes were right."""

    write_s: float
    look_up_s: float
    read_s: float
    found_blocks: int
    reported_blocks: int  # read, says the store
    right_blocks: int  # read, and as they were stored
    drive_written_bytes: int  # by this process in `write`, as the kernel counts them
    drive_read_bytes: int  # in `read`: less than the blocks means that a cache in memory had them
    memory_bytes: int  # most that the process took beyond the rows, while it stored or read
    write_cpu_s: float  # of all its threads
    read_cpu_s: float
    facts: dict[str, str]


def key(index: int) -> bytes:
    """The 32-byte key of a block."""
    return hashlib.sha256(b"%d" % index).digest()


def fill(rows: Blocks, seed: int) -> None:
    """Incompressible bytes, the same for the same seed in every process."""
    for index, row in enumerate(rows):
        row[:] = _block(row.size, seed, index)


def right(rows: Blocks, seed: int) -> int:
    """How many rows hold every byte that `fill` wrote."""
    return sum(
        bool(np.array_equal(row, _block(row.size, seed, index))) for index, row in enumerate(rows)
    )


def drop_caches(folder: Path) -> None:
    """Have the drive finish, and the kernel forget the pages of the files in a folder."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    time.sleep(SETTLE_S)


def run_round(
    open_store: OpenStore, folder: Path, rows: Blocks, seed: int, options: Options
) -> Round:
    """Store, drop caches, find, read, compare."""
    fill(rows, seed)
    store = open_store(folder, rows, options)
    writing = _Phase()
    store.write()
    writing.end()
    drop_caches(folder)
    rows[:] = 0
    looking = _Phase()
    found = store.look_up()
    looking.end()
    reading = _Phase()
    reported = store.read()
    reading.end()
    facts = store.facts
    store.close()
    return Round(
        write_s=writing.seconds,
        look_up_s=looking.seconds,
        read_s=reading.seconds,
        found_blocks=found,
        reported_blocks=reported,
        right_blocks=right(rows, seed),
        drive_written_bytes=writing.written_bytes,
        drive_read_bytes=reading.read_bytes,
        memory_bytes=max(writing.memory_bytes, reading.memory_bytes),
        write_cpu_s=writing.cpu_s,
        read_cpu_s=reading.cpu_s,
        facts=facts,
    )


def serve(open_store: OpenStore) -> None:
    """Answer rounds until the input ends. What goes wrong ends the process, with a traceback."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, required=True, help="descriptor for answers")
    parser.add_argument("--blocks", type=int, required=True)
    parser.add_argument("--block-bytes", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--huge-pages", action="store_true")
    chosen = parser.parse_args()
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # page-aligned, as O_DIRECT wants it
    memory = mmap.mmap(-1, chosen.blocks * chosen.block_bytes, flags=kind)
    if chosen.huge_pages:
        memory.madvise(mmap.MADV_HUGEPAGE)
    rows: Blocks = np.frombuffer(memory, dtype=np.uint8).reshape(chosen.blocks, chosen.block_bytes)
    with os.fdopen(chosen.answers, "w", encoding="utf-8") as answers:
        answers.write(READY + "\n")
        answers.flush()
        for line in sys.stdin:
            request = json.loads(line)
            folder = Path(request["folder"])
            done = run_round(open_store, folder, rows, request["seed"], chosen.options)
            memory.madvise(mmap.MADV_DONTNEED)  # whoever waits for his turn holds none
            answers.write(json.dumps(dataclasses.asdict(done)) + "\n")
            answers.flush()


class _Phase:
    """Time, CPU time, traffic of the drive and growth of memory from here to `end`."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again
        self._memory_bytes = _status_bytes("VmRSS")
        self._read_bytes, self._written_bytes = _drive_bytes()
        self._start_cpu_s = time.process_time()
        self._start_s = time.perf_counter()

    def end(self) -> None:
        """Stop the clock first."""
        self.seconds = time.perf_counter() - self._start_s
        self.cpu_s = time.process_time() - self._start_cpu_s
        read_bytes, written_bytes = _drive_bytes()
        self.read_bytes = read_bytes - self._read_bytes
        self.written_bytes = written_bytes - self._written_bytes
        self.memory_bytes = _status_bytes("VmHWM") - self._memory_bytes


def _block(block_bytes: int, seed: int, index: int) -> Blocks:
    words = np.random.Generator(np.random.SFC64([seed, index])).integers(
        0, 2**64, block_bytes // 8, dtype=np.uint64
    )
    return words.view(np.uint8)


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _drive_bytes() -> tuple[int, int]:
    """Bytes that this process had fetched from, and sent to, storage (proc(5))."""
    counts = dict(
        line.split(": ") for line in Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    )
    return int(counts["read_bytes"]), int(counts["write_bytes"])

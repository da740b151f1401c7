"""The store's DRAM tier against memcpy: put, get and lookup, interleaved, ratios of medians.

    python benchmarks/store_against_memcpy.py [--rounds 5]

`put` and `get` move blocks by requests of 64 through the store's API, checksums on (every block is
hashed when it is stored and compared when it is read). memcpy is the C library's, of the same
blocks in the same order, by as many threads as the store's DRAM tier has, and by one: what an
engine would do by itself. `overhead` is what a block of a get costs beyond its memcpy.
"""

import argparse
import ctypes
import os
import statistics
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.options import Options
from kvbench.store.posix import mapped_buffer
from kvbench.store.request import Request
from kvbench.store.store import TieredStore
from kvbench.units import KIB, MIB, exact_bytes

BATCH = 64
SIZES = ((MIB, 512), (64 * KIB, 4096), (4 * KIB, 16_384))  # block bytes, blocks

_libc = ctypes.CDLL(None)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def rows_of(count: int, block_bytes: int) -> Bytes:
    """Incompressible rows in huge pages, touched."""
    rows = mapped_buffer(count * block_bytes, huge_pages=True).reshape(count, block_bytes)
    some = np.random.default_rng(1).integers(0, 256, block_bytes, dtype=np.uint8)
    for number, row in enumerate(rows):
        row[:] = some
        row[:4] = number % 251
    return rows


def memcpy_s(target: Bytes, source: Bytes, threads: int) -> float:
    """Seconds to copy every row, each thread a share of the rows."""

    def copy(first: int) -> None:
        size = source.shape[1]
        to, of = target.ctypes.data, source.ctypes.data
        for number in range(first, len(source), threads):
            _libc.memcpy(to + number * size, of + number * size, size)

    workers = [threading.Thread(target=copy, args=(first,)) for first in range(threads)]
    start_s = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start_s


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def in_turn(requests: list[partial[Request]]) -> None:
    """One request is begun while the one before it is served, as an engine would."""
    before: Request | None = None
    for begin in requests:
        now = begin()
        if before is not None:
            assert set(before.result()) == {Status.OK}
        before = now
    assert before is not None
    assert set(before.result()) == {Status.OK}


def compare(block_bytes: int, blocks: int, threads: int, rounds: int) -> None:
    """One block size, one number of threads."""
    layout = Layout(block_bytes)
    store = TieredStore([DramTier(layout, blocks)], Options(memory_threads=threads))
    source, target = rows_of(blocks, block_bytes), rows_of(blocks, block_bytes)
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds + 1):  # the first is a warm-up: pages are touched, pools started
        keys = [os.urandom(32) for _ in range(blocks)]

        def put(keys: list[bytes] = keys) -> None:
            requests = [
                partial(store.put, keys[at : at + BATCH], list(source[at : at + BATCH]))
                for at in range(0, blocks, BATCH)
            ]
            in_turn(requests)

        def get(keys: list[bytes] = keys) -> None:
            requests = [
                partial(store.get_into, keys[at : at + BATCH], list(target[at : at + BATCH]))
                for at in range(0, blocks, BATCH)
            ]
            in_turn(requests)

        def lookup(keys: list[bytes] = keys) -> None:
            for at in range(0, blocks, 32):
                store.lookup(keys[at : at + 32]).release()

        seconds.setdefault("put", []).append(timed(put))
        seconds.setdefault("memcpy", []).append(memcpy_s(target, source, threads))
        target[:] = 0
        seconds.setdefault("get", []).append(timed(get))
        assert (target == source).all(), "wrong bytes"
        seconds.setdefault("memcpy of one thread", []).append(memcpy_s(target, source, 1))
        seconds.setdefault("lookup", []).append(timed(lookup))
    store.close()
    middle = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    print(f"{exact_bytes(block_bytes)} blocks, {threads} thread(s), {rounds} rounds")
    for name in ("put", "get"):
        print(
            f"  {name}: {blocks * block_bytes / middle[name] / 1e9:.2f} GB/s, "
            f"{middle['memcpy'] / middle[name]:.3f} x memcpy of as many threads, "
            f"{middle['memcpy of one thread'] / middle[name]:.3f} x of one; "
            f"overhead {(middle[name] - middle['memcpy']) / blocks * 1e6:.1f} us a block"
        )
    print(f"  lookup: {blocks / middle['lookup'] / 1e6:.2f} million keys/s in batches of 32")


def main() -> None:
    """Compare at each block size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for block_bytes, blocks in SIZES:
        for threads in (1, 2):
            compare(block_bytes, blocks, threads, arguments.rounds)


if __name__ == "__main__":
    main()

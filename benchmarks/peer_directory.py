"""The directory of a peer: time of a lookup, rate of entries, bytes of an entry, time of removal.

    python benchmarks/peer_directory.py [--peers 1 8 64 128] [--entries 2000000] [--lookups 500]

`--entries` are shared out among the peers. Cases: "alike", all peers hold 700 blocks of each prefix
that is asked for, besides blocks of their own; "stairs", each holds another length of it; "apart",
each prefix is one peer's. A prefix has 1,000 blocks, and each lookup is of another prefix than the
one before, as requests are, so that little of it is in the processor's caches. Bytes are those that
Python's allocator has in use afterwards, by `tracemalloc`, of everything that the directory holds.
"""

import argparse
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from kvbench.peer.directory import Directory, Effect, Limits, hint, pack
from kvbench.peer.model import Peer

PREFIXES = 100
BLOCKS = 1000
PIECE = 4096
CASES: dict[str, Callable[[int, int, int], int]] = {  # blocks of a prefix that a peer holds
    "alike": lambda peer, peers, prefix: 700,  # noqa: ARG005  one signature
    "stairs": lambda peer, peers, prefix: BLOCKS * (peer + 1) // peers,  # noqa: ARG005
    "apart": lambda peer, peers, prefix: BLOCKS if prefix % peers == peer else 0,
}


def peer_of(number: int) -> Peer:
    """A peer that holds nothing yet."""
    return Peer(
        id=number.to_bytes(16, "big"),
        name=str(number),
        epoch=1,
        block_bytes=2**20,
        parts=1,
        namespaces=(),
        host="",
        endpoints={},
        capacities={},
    )


def fill(
    directory: Directory, case: str, peers: int, own: int, prefixes: Sequence[Sequence[bytes]]
) -> int:
    """Snapshots of all peers; how many entries."""
    generator = np.random.default_rng(1)
    entries = 0
    for number in range(peers):
        peer = peer_of(number)
        directory.join(peer)
        filling = directory.fill(peer.id, 1, 0)
        for at, prefix in enumerate(prefixes):
            shared = [hint(key) for key in prefix[: CASES[case](number, peers, at)]]
            filling.add(pack(shared))
            entries += len(shared)
        for part in pieces(own):
            filling.add(generator.integers(0, 2**60, part, dtype=np.uint64).tobytes())
        if filling.commit() is not Effect.APPLIED:
            raise SystemExit("a snapshot was not taken")
        entries += own
    return entries


def pieces(count: int) -> Iterator[int]:
    """A count in parts."""
    while count:
        part = min(count, PIECE)
        yield part
        count -= part


def look(directory: Directory, prefixes: Sequence[Sequence[bytes]], lookups: int) -> list[float]:
    """Seconds of each lookup."""
    times: list[float] = []
    for _ in range(lookups):
        prefix = random.choice(prefixes)
        start_s = time.perf_counter()
        directory.holders(prefix)
        times.append(time.perf_counter() - start_s)
    return sorted(times)


def measure(case: str, peers: int, own: int, lookups: int) -> str:
    """A line of the table."""
    prefixes = [[random.randbytes(32) for _ in range(BLOCKS)] for _ in range(PREFIXES)]
    directory = Directory(Limits(entries_a_peer=2**26, entries=2**28))
    tracemalloc.start()
    entries = fill(directory, case, peers, own, prefixes)
    used_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    directory = Directory(Limits(entries_a_peer=2**26, entries=2**28))
    start_s = time.process_time()
    fill(directory, case, peers, own, prefixes)
    fill_s = time.process_time() - start_s
    times = look(directory, prefixes, lookups)
    start_s = time.perf_counter()
    directory.leave(peer_of(0).id)
    leave_s = time.perf_counter() - start_s
    start_s = time.process_time()
    directory.tidy()
    tidy_s = time.process_time() - start_s
    p99 = times[int(0.99 * len(times))]
    return (
        f"{case:7} {peers:5} {entries:10,} {statistics.median(times) * 1e6:9.1f} {p99 * 1e6:9.1f} "
        f"{entries / fill_s / 1e6:9.2f} {used_bytes / entries:9.1f} "
        f"{len(directory._masks) / entries:8.2f} {leave_s * 1e6:9.0f} {tidy_s * 1e3:9.1f}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, nargs="+", default=[1, 8, 64, 128])
    parser.add_argument("--entries", type=int, default=2_000_000)
    parser.add_argument("--lookups", type=int, default=500)
    arguments = parser.parse_args()
    random.seed(1)
    print(
        "case    peers    entries  lookup us    p99 us  M entries/s  bytes/entry  distinct  "
        "leave us  tidy ms"
    )
    for case in CASES:
        for peers in arguments.peers:
            print(measure(case, peers, arguments.entries // peers, arguments.lookups), flush=True)


if __name__ == "__main__":
    main()

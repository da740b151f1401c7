"""A local hit with one live peer against the same hit with none, interleaved, ratios of medians.

    python benchmarks/peer_local_hit.py [--rounds 300]

The peer is another store in this process that listens on TCP and has the same blocks; the directory
says so. `get` is a request of so many blocks that are all local, `lookup` the lease of them. Bar:
1.1 x. Which of the two is timed first alternates.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from kvbench.peer.directory import Directory, hint, pack
from kvbench.peer.fetch import Fetcher
from kvbench.peer.holder import Holder
from kvbench.peer.model import Peer
from kvbench.peer.shares import Share, tag_of
from kvbench.peer.store import PeerStore
from kvbench.peer.tcp import TcpListener, TcpTransport
from kvbench.store.block import Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.store import TieredStore
from kvbench.units import KIB, MIB, exact_bytes

SIZES = ((MIB, 64), (MIB, 1), (64 * KIB, 64), (64 * KIB, 1))  # block bytes, blocks of a request
BAR = 1.1


def peer_of(store: TieredStore, name: str, digest: bytes, endpoint: str = "") -> Peer:
    """What a store says of itself."""
    return Peer(
        id=os.urandom(16),
        name=name,
        epoch=store.events(limit=0).epoch,
        block_bytes=store.layout.block_bytes,
        parts=store.layout.parts,
        namespaces=(tag_of(digest),),
        host=name,
        endpoints={"tcp": endpoint} if endpoint else {},
        capacities={},
    )


def timed_s(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def interleaved(alone: Callable[[], object], shared: Callable[[], object], rounds: int) -> float:
    """The ratio of medians, printed with both of them."""
    seconds: tuple[list[float], list[float]] = [], []
    for number in range(rounds + 20):  # the first 20 warm up
        pair = [(0, alone), (1, shared)]
        for which, call in pair if number % 2 else reversed(pair):
            took_s = timed_s(call)
            if number >= 20:
                seconds[which].append(took_s)
    one, two = (statistics.median(each) for each in seconds)
    print(f"alone {one * 1e6:9.1f} us, with a peer {two * 1e6:9.1f} us, ratio {two / one:.3f}")
    return two / one


def compare(block_bytes: int, blocks: int, rounds: int) -> list[float]:
    """One block size, one size of request."""
    layout, digest = Layout(block_bytes), os.urandom(32)
    keys = [os.urandom(32) for _ in range(blocks)]
    rows = np.random.default_rng(1).integers(0, 256, (blocks, block_bytes), dtype=np.uint8)
    target = np.zeros_like(rows)
    mine, theirs = (TieredStore([DramTier(layout, blocks)]) for _ in range(2))
    for store in (mine, theirs):
        assert set(store.put(keys, rows).result()) == {Status.OK}
    holder = Holder(theirs, [Share(digest)], peer_of(theirs, "other", digest))
    listener = TcpListener(holder)
    other = peer_of(theirs, "other", digest, listener.endpoint)
    directory = Directory()
    directory.join(other)
    directory.snapshot(other.id, other.epoch, 0, pack([hint(key) for key in keys]))
    fetcher = Fetcher([TcpTransport(peer_of(mine, "me", digest))], directory, layout)
    shared = PeerStore(mine, fetcher, digest)
    assert fetcher.reach(digest, keys) == blocks, "the peer is not to be had"
    print(f"{exact_bytes(block_bytes)} x {blocks:2d}  get     ", end="")
    ratios = [
        interleaved(
            lambda: mine.get_into(keys, target).result(),
            lambda: shared.get_into(keys, target).result(),
            rounds,
        )
    ]
    assert (target == rows).all(), "wrong bytes"
    print(f"{exact_bytes(block_bytes)} x {blocks:2d}  lookup  ", end="")
    ratios.append(
        interleaved(
            lambda: mine.lookup(keys).release(), lambda: shared.lookup(keys).release(), rounds
        )
    )
    assert shared.stats().peers.asked == 0, "a peer was asked for what is here"
    shared.close()
    listener.close()
    theirs.close()
    return ratios


def main() -> None:
    """Compare at each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    ratios = [ratio for size in SIZES for ratio in compare(*size, arguments.rounds)]
    print(f"the worst ratio is {max(ratios):.3f}, the bar {BAR}")


if __name__ == "__main__":
    main()

"""What the benchmarks of transports share: a holder full of known blocks, and pulls of them all."""

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from kvbench.peer.holder import Holder
from kvbench.peer.model import Channel, Peer, Pull
from kvbench.peer.shares import Share
from kvbench.peer.shm import host_digest
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.store import TieredStore
from kvbench.units import KIB, MIB

BATCH = 64
HELD_BYTES = 512 * MIB  # what the holder has: more than the caches
SIZES = (64 * KIB, MIB, 4 * MIB)
DIGEST = bytes(range(32))
DEADLINE_S = 60.0


class Held(NamedTuple):
    """A holder with its blocks in memory, as `kvbench peer serve` has it."""

    holder: Holder
    store: TieredStore
    tier: DramTier
    me: Peer


def keys_of(blocks: int) -> list[bytes]:
    """The same in both processes."""
    return [number.to_bytes(32, "little") for number in range(1, blocks + 1)]


def peer_of(layout: Layout, epoch: int) -> Peer:
    """This process."""
    return Peer(
        id=os.urandom(16),
        name="benchmark",
        epoch=epoch,
        block_bytes=layout.block_bytes,
        parts=layout.parts,
        namespaces=(),
        host=host_digest(),
        endpoints={},
        capacities={},
    )


def held(block_bytes: int) -> Held:
    """HELD_BYTES of blocks that begin with their number."""
    layout = Layout(block_bytes)
    blocks = HELD_BYTES // block_bytes
    tier = DramTier(layout, blocks)
    store = TieredStore([tier])
    some = np.random.default_rng(1).integers(0, 256, block_bytes, dtype=np.uint8)
    for number, key in enumerate(keys_of(blocks)):
        some[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        assert store.put([key], some.reshape(1, -1)).result() == [Status.OK]
    me = peer_of(layout, store.events(limit=0).epoch)
    return Held(Holder(store, [Share(DIGEST)], me, files=[tier]), store, tier, me)


def pull_batch(channel: Channel, rows: Bytes, first: int, epoch: int) -> None:
    """The batch of blocks from number `first` on into its rows."""
    targets = list(rows[first : first + BATCH])
    outcomes = channel.pull(
        Pull(
            namespace=DIGEST,
            epoch=epoch,
            keys=[(first + at + 1).to_bytes(32, "little") for at in range(len(targets))],
            targets=targets,
            expires_s=time.monotonic() + DEADLINE_S,
        )
    )
    assert all(outcome.reason is None for outcome in outcomes), f"{outcomes} did not arrive"


def pull_all(channel: Channel, rows: Bytes, epoch: int) -> None:
    """Every block once, in batches."""
    for first in range(0, len(rows), BATCH):
        pull_batch(channel, rows, first, epoch)


def check(rows: Bytes, name: str) -> None:
    """Every row is the block that belongs there; forget them."""
    assert (rows[:, :8].copy().view("<u8")[:, 0] == np.arange(len(rows))).all(), f"{name}: wrong"
    rows[:] = 0


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def medians(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Seconds of each, the median of so many rounds after a warm-up, in another order each time."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name in random.sample(list(works), len(works)):
            took_s = works[name]()
            if turn:
                seconds[name].append(took_s)
    return {name: statistics.median(each) for name, each in seconds.items()}

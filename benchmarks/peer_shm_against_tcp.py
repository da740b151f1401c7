"""Blocks from a peer on this machine by shared memory, against TCP on loopback; ratios of medians.

    python benchmarks/peer_shm_against_tcp.py [--rounds 7] [--sizes 65536 1048576 4194304]

One holder, in another process with its blocks in a DRAM tier, serves both ways; this one pulls
batches of 64 into the same rows by one channel of each, every block checked against its checksum
(and the rows compared once, at the end). `copy` is the same copy with checksums within this process
alone: what shared memory cannot exceed. Each round runs all over all blocks, in another order.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from msgspec import msgpack, structs

from kvbench.peer.holder import Holder
from kvbench.peer.model import Channel, Peer, Pull
from kvbench.peer.shares import Share
from kvbench.peer.shm import ShmListener, ShmTransport, host_digest
from kvbench.peer.tcp import TcpListener, TcpTransport
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.copying import copy_with_sums
from kvbench.store.dram import DramTier
from kvbench.store.posix import mapped_buffer
from kvbench.store.store import TieredStore
from kvbench.units import KIB, MIB, exact_bytes

BATCH = 64
HELD_BYTES = 512 * MIB  # what the holder has: more than the caches
SIZES = (64 * KIB, MIB, 4 * MIB)
DIGEST = bytes(range(32))
DEADLINE_S = 60.0


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


def hold(block_bytes: int) -> None:
    """The other process: serve until standard input closes."""
    layout = Layout(block_bytes)
    blocks = HELD_BYTES // block_bytes
    tier = DramTier(layout, blocks)
    store = TieredStore([tier])
    some = np.random.default_rng(1).integers(0, 256, block_bytes, dtype=np.uint8)
    for number, key in enumerate(keys_of(blocks)):
        some[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        assert store.put([key], some.reshape(1, -1)).result() == [Status.OK]
    me = peer_of(layout, store.events(limit=0).epoch)
    holder = Holder(store, [Share(DIGEST)], me)
    shm, tcp = ShmListener(holder, tier), TcpListener(holder)
    me = structs.replace(me, endpoints={"shm": shm.endpoint, "tcp": tcp.endpoint})
    print(msgpack.encode(me).hex(), flush=True)
    sys.stdin.read()
    shm.close()
    tcp.close()


def pull_all(channel: Channel, rows: Bytes, epoch: int) -> None:
    """Every block once, in batches."""
    keys = keys_of(len(rows))
    wrong = 0
    for first in range(0, len(rows), BATCH):
        batch = slice(first, first + BATCH)
        outcomes = channel.pull(
            Pull(
                namespace=DIGEST,
                epoch=epoch,
                keys=keys[batch],
                targets=list(rows[batch]),
                expires_s=time.monotonic() + DEADLINE_S,
            )
        )
        wrong += sum(outcome.reason is not None for outcome in outcomes)
    assert not wrong, f"{wrong} blocks did not arrive"


def copy_all(own: Bytes, rows: Bytes, layout: Layout) -> None:
    """Every block once, from memory of this process."""
    for first in range(0, len(rows), BATCH):
        batch = slice(first, first + BATCH)
        copy_with_sums(list(own[batch]), list(rows[batch]), layout)


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def compare(block_bytes: int, rounds: int) -> None:
    """One block size."""
    layout = Layout(block_bytes)
    command = [sys.executable, __file__, "--hold", str(block_bytes)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdin is not None
    holder = msgpack.decode(bytes.fromhex(other.stdout.readline()), type=Peer)
    blocks, me = HELD_BYTES // block_bytes, peer_of(layout, 0)
    rows = mapped_buffer(HELD_BYTES, huge_pages=True).reshape(blocks, block_bytes)
    own = mapped_buffer(HELD_BYTES, huge_pages=True).reshape(blocks, block_bytes)
    own[:] = 1
    soon_s = time.monotonic() + DEADLINE_S
    shm = ShmTransport(me).connect(holder, soon_s)
    tcp = TcpTransport(me).connect(holder, soon_s)
    works: dict[str, Callable[[], None]] = {
        "tcp": lambda: pull_all(tcp, rows, holder.epoch),
        "shm": lambda: pull_all(shm, rows, holder.epoch),
        "copy": lambda: copy_all(own, rows, layout),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name in random.sample(list(works), len(works)):
            took_s = timed(works[name])
            if turn:
                seconds[name].append(took_s)
    for channel in (tcp, shm):
        rows[:] = 0
        pull_all(channel, rows, holder.epoch)
        assert (rows[:, :8].copy().view("<u8")[:, 0] == np.arange(blocks)).all(), "wrong blocks"
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    print(f"{exact_bytes(block_bytes)} blocks, batches of {BATCH}, {rounds} rounds")
    for name, each in middle.items():
        rate = HELD_BYTES / each / 1e9
        print(f"  {name}: {rate:.2f} GB/s, {middle['tcp'] / each:.2f} x tcp", flush=True)
    shm.close()
    tcp.close()
    other.stdin.close()
    other.wait()


def main() -> None:
    """Compare at each block size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--hold", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        hold(arguments.hold)
        return
    for block_bytes in arguments.sizes:
        compare(block_bytes, arguments.rounds)


if __name__ == "__main__":
    main()

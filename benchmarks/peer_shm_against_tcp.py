"""Blocks from a peer on this machine by shared memory, against TCP on loopback; ratios of medians.

    python -m benchmarks.peer_shm_against_tcp [--rounds 7] [--sizes 65536 1048576 4194304]

One holder, in another process with its blocks in a DRAM tier, serves both ways; this one pulls
batches of 64 into the same rows by one channel of each, every block checked against its checksum
(and the rows compared once, at the end). `copy` is the same copy with checksums within this process
alone: what shared memory cannot exceed. Each round runs all over all blocks, in another order.
"""

import argparse
import subprocess
import sys
import time

from msgspec import msgpack, structs

from benchmarks.peer_blocks import (
    BATCH,
    DEADLINE_S,
    HELD_BYTES,
    SIZES,
    check,
    held,
    medians,
    peer_of,
    pull_all,
    timed,
)
from kvbench.peer.model import Peer
from kvbench.peer.shm import ShmListener, ShmTransport
from kvbench.peer.tcp import TcpListener, TcpTransport
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums
from kvbench.store.posix import mapped_buffer
from kvbench.units import exact_bytes


def hold(block_bytes: int) -> None:
    """The other process: serve until standard input closes."""
    holder, _, tier, me = held(block_bytes)
    shm, tcp = ShmListener(holder, tier), TcpListener(holder)
    me = structs.replace(me, endpoints={"shm": shm.endpoint, "tcp": tcp.endpoint})
    print(msgpack.encode(me).hex(), flush=True)
    sys.stdin.read()
    shm.close()
    tcp.close()


def copy_all(own: Bytes, rows: Bytes, layout: Layout) -> None:
    """Every block once, from memory of this process."""
    for first in range(0, len(rows), BATCH):
        batch = slice(first, first + BATCH)
        copy_with_sums(list(own[batch]), list(rows[batch]), layout)


def compare(block_bytes: int, rounds: int) -> None:
    """One block size."""
    layout = Layout(block_bytes)
    command = [sys.executable, "-m", "benchmarks.peer_shm_against_tcp", "--hold", str(block_bytes)]
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
    works = {
        "tcp": lambda: timed(lambda: pull_all(tcp, rows, holder.epoch)),
        "shm": lambda: timed(lambda: pull_all(shm, rows, holder.epoch)),
        "copy": lambda: timed(lambda: copy_all(own, rows, layout)),
    }
    middle = medians(works, rounds)
    rows[:] = 0
    for name, channel in (("tcp", tcp), ("shm", shm)):
        pull_all(channel, rows, holder.epoch)
        check(rows, name)
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

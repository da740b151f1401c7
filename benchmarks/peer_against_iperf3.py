"""Blocks from a peer over TCP on loopback, against iperf3 and a bare socket; ratios of medians.

    python benchmarks/peer_against_iperf3.py [--rounds 7] [--streams 1 2]

The holder is another process, with its blocks in a DRAM tier; this one pulls batches of 64 into
rows, every block checked against its checksum on arrival (and the rows compared once, at the end).
iperf3 moves as many bytes by one stream of 128 KiB writes, from and into one buffer each. `socket`
is what Python alone can do: the same blocks by sendmsg into the same rows by recv_into, unchecked.
Each round runs all of them in turn, in another order.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
from msgspec import structs

from kvbench.peer.holder import Holder
from kvbench.peer.model import Peer, Pull
from kvbench.peer.shares import Share
from kvbench.peer.tcp import TcpChannel, TcpListener, TcpTransport
from kvbench.store.block import Bytes, Layout, Status
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
        host="",
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
    keys = keys_of(blocks)
    for number, key in enumerate(keys):
        some[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
        assert store.put([key], some.reshape(1, -1)).result() == [Status.OK]
    me = peer_of(layout, store.events().epoch)
    listener = TcpListener(Holder(store, [Share(DIGEST)], me, files=[tier]))
    views = [
        lent.view.data
        for lent in store.lend(keys, ttl_s=1e6).blocks
        if lent and lent.view is not None
    ]
    bare = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_bare, args=(bare, views), daemon=True).start()
    ports = listener.endpoint, bare.getsockname()[1]
    print(json.dumps([me.id.hex(), me.epoch, *ports]), flush=True)
    sys.stdin.read()
    listener.close()


def serve_bare(bare: socket.socket, views: list[memoryview]) -> None:
    """For every byte that comes: all blocks."""
    while True:
        sock, _ = bare.accept()
        while sock.recv(1):
            for first in range(0, len(views), BATCH):
                left = views[first : first + BATCH]
                while left:
                    sent = sock.sendmsg(left)
                    while left and sent >= len(left[0]):
                        sent -= len(left.pop(0))
                    if sent:
                        left[0] = left[0][sent:]


def pull_all(channels: list[TcpChannel], rows: Bytes, epoch: int) -> None:
    """Every block once, in batches, over all channels."""
    keys = keys_of(len(rows))
    firsts = iter(range(0, len(rows), BATCH))
    lock, wrong = threading.Lock(), [0]

    def work(channel: TcpChannel) -> None:
        while True:
            with lock:
                first = next(firsts, None)
            if first is None:
                return
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
            wrong[0] += sum(outcome.reason is not None for outcome in outcomes)

    threads = [threading.Thread(target=work, args=(channel,)) for channel in channels[1:]]
    for thread in threads:
        thread.start()
    work(channels[0])
    for thread in threads:
        thread.join()
    assert not wrong[0], f"{wrong[0]} blocks did not arrive"


def receive_bare(sock: socket.socket, rows: Bytes) -> None:
    """All blocks, unchecked."""
    sock.sendall(b"x")
    for row in rows:
        sock.recv_into(row.data, 0, socket.MSG_WAITALL)


def iperf3_s(port: int, size_bytes: int) -> float:
    """Seconds that iperf3 takes for so many bytes, by its own count."""
    command = ["iperf3", "-c", "127.0.0.1", "-p", str(port), "-n", str(size_bytes), "-J"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    bits_per_s: float = said["end"]["sum_received"]["bits_per_second"]
    return size_bytes * 8 / bits_per_s


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    start_s = time.perf_counter()
    work()
    return time.perf_counter() - start_s


def compare(block_bytes: int, streams: list[int], rounds: int, iperf3_port: int) -> None:
    """One block size."""
    layout = Layout(block_bytes)
    command = [sys.executable, __file__, "--hold", str(block_bytes)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdin is not None
    identity, epoch, endpoint, bare_port = json.loads(other.stdout.readline())
    holder = structs.replace(
        peer_of(layout, epoch), id=bytes.fromhex(identity), endpoints={"tcp": endpoint}
    )
    transport = TcpTransport(peer_of(layout, 0))
    most = max(streams)
    channels = [transport.connect(holder, time.monotonic() + DEADLINE_S) for _ in range(most)]
    bare = socket.create_connection(("127.0.0.1", bare_port))
    blocks = HELD_BYTES // block_bytes
    rows = mapped_buffer(HELD_BYTES, huge_pages=True).reshape(blocks, block_bytes)
    works: dict[str, Callable[[], float]] = {
        "iperf3": lambda: iperf3_s(iperf3_port, HELD_BYTES),
        "socket": lambda: timed(lambda: receive_bare(bare, rows)),
    }
    for count in streams:
        name = f"tcp, {count} stream(s)"
        works[name] = lambda count=count: timed(lambda: pull_all(channels[:count], rows, epoch))  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name in random.sample(list(works), len(works)):
            took_s = works[name]()
            if turn:
                seconds[name].append(took_s)
    rows[:] = 0
    pull_all(channels[:1], rows, epoch)
    assert (rows[:, :8].copy().view("<u8")[:, 0] == np.arange(blocks)).all(), "wrong blocks"
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    print(f"{exact_bytes(block_bytes)} blocks, batches of {BATCH}, {rounds} rounds")
    for name, each in middle.items():
        print(
            f"  {name}: {HELD_BYTES / each / 1e9:.2f} GB/s, "
            f"{middle['iperf3'] / each:.2f} x iperf3, {middle['socket'] / each:.2f} x socket"
        )
    for channel in channels:
        channel.close()
    bare.close()
    other.stdin.close()
    other.wait()


def main() -> None:
    """Compare at each block size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--hold", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.hold:
        hold(arguments.hold)
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen(
        ["iperf3", "-s", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(0.5)
    try:
        for block_bytes in arguments.sizes:
            compare(block_bytes, arguments.streams, arguments.rounds, port)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

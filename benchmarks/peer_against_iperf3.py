"""Blocks from a peer over TCP on loopback, against iperf3 and a bare socket; ratios of medians.

    python -m benchmarks.peer_against_iperf3 [--rounds 7] [--streams 1 2]

The holder is another process, with its blocks in a DRAM tier; this one pulls batches of 64 into
rows, every block checked against its checksum on arrival (and the rows compared once, at the end).
iperf3 moves as many bytes by one stream of 128 KiB writes, from and into one buffer each. `socket`
is what Python alone can do: the same blocks by sendmsg into the same rows by recv_into, unchecked.
Each round runs all of them in turn, in another order.
"""

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from msgspec import structs

from benchmarks.peer_blocks import (
    BATCH,
    DEADLINE_S,
    HELD_BYTES,
    SIZES,
    check,
    held,
    keys_of,
    medians,
    peer_of,
    pull_all,
    pull_batch,
    timed,
)
from kvbench.peer.tcp import TcpChannel, TcpListener, TcpTransport
from kvbench.store.block import Bytes, Layout
from kvbench.store.posix import mapped_buffer
from kvbench.units import exact_bytes


def hold(block_bytes: int) -> None:
    """The other process: serve until standard input closes."""
    holder, store, tier, me = held(block_bytes)
    listener = TcpListener(holder)
    views = [
        lent.view.data
        for lent in store.lend(keys_of(tier.slots), ttl_s=1e6).blocks
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


def pull_by_all(channels: list[TcpChannel], rows: Bytes, epoch: int) -> None:
    """Every block once, in batches, over all channels."""
    firsts = iter(range(0, len(rows), BATCH))
    lock = threading.Lock()

    def work(channel: TcpChannel) -> None:
        while True:
            with lock:
                first = next(firsts, None)
            if first is None:
                return
            pull_batch(channel, rows, first, epoch)

    with ThreadPoolExecutor(len(channels)) as pool:
        list(pool.map(work, channels))


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


def compare(block_bytes: int, streams: list[int], rounds: int, iperf3_port: int) -> None:
    """One block size."""
    layout = Layout(block_bytes)
    command = [sys.executable, "-m", "benchmarks.peer_against_iperf3", "--hold", str(block_bytes)]
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
    works = {
        "iperf3": lambda: iperf3_s(iperf3_port, HELD_BYTES),
        "socket": lambda: timed(lambda: receive_bare(bare, rows)),
    }
    for count in streams:
        name = f"tcp, {count} stream(s)"
        works[name] = partial(timed, partial(pull_by_all, channels[:count], rows, epoch))
    middle = medians(works, rounds)
    rows[:] = 0
    pull_all(channels[0], rows, epoch)
    check(rows, "tcp")
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

"""Blocks from a peer by NIXL, against NIXL alone on the same descriptors; ratios of medians.

    python benchmarks/peer_against_nixl.py [--rounds 7] [--sizes 65536 1048576 4194304]

The holder is another process, with its blocks in a DRAM tier that NIXL has registered; this one
pulls batches of 64 into rows, every block checked against its checksum (and the rows compared once,
at the end). `nixl` is the library alone: one READ of the same 64 slots straight into the same rows,
registered once, from descriptors prepared once; unchecked, and nothing asked of the holder. Each
round runs both over all blocks, in another order. UCX chooses how; UCX_TLS makes it choose another.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import msgpack, structs

from kvbench.peer.holder import Holder
from kvbench.peer.model import Channel, Peer, Pull
from kvbench.peer.nixl import NixlListener, NixlTransport
from kvbench.peer.shares import Share
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.nixl_file import load_nixl
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
    me = peer_of(layout, store.events(limit=0).epoch)
    listener = NixlListener(Holder(store, [Share(DIGEST)], me), tier)
    slots = [lent.slot for lent in store.lend(keys, ttl_s=1e6).blocks if lent is not None]
    me = structs.replace(me, endpoints={"nixl": listener.endpoint})
    address = tier.view(0).__array_interface__["data"][0]
    said = [msgpack.encode(me).hex(), listener.metadata.hex(), address, slots]
    print(json.dumps([*said, tier.slot_bytes]), flush=True)
    sys.stdin.read()
    os._exit(0)


class Raw:
    """NIXL alone: rows and slots registered and prepared, as an engine would have them."""

    def __init__(self, metadata: bytes, descriptors: Sequence[Any], rows: Bytes) -> None:
        api, _ = load_nixl()
        config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self.agent = api.nixl_agent("raw", config)
        address = rows.__array_interface__["data"][0]
        self.agent.register_memory([(address, rows.nbytes, 0, "")], "DRAM")
        name = self.agent.add_remote_agent(metadata)
        size = rows.shape[1]
        local = [(address + i * size, size, 0) for i in range(len(rows))]
        self.local = self.agent.prep_xfer_dlist("", local, "DRAM")
        self.remote = self.agent.prep_xfer_dlist(name, list(descriptors), "DRAM")
        self.blocks = len(rows)

    def read_all(self) -> None:
        """Every block once, a READ for each batch."""
        for first in range(0, self.blocks, BATCH):
            which = np.arange(first, min(first + BATCH, self.blocks), dtype=np.int32)
            handle = self.agent.make_prepped_xfer("READ", self.local, which, self.remote, which)
            state = self.agent.transfer(handle)
            while state == "PROC":
                state = self.agent.check_xfer_state(handle)
            assert state == "DONE", state
            handle.release()


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


def check(rows: Bytes, name: str) -> None:
    """Every row is the block that belongs there; forget them."""
    assert (rows[:, :8].copy().view("<u8")[:, 0] == np.arange(len(rows))).all(), f"{name}: wrong"
    rows[:] = 0


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
    said, metadata, address, slots, slot_bytes = json.loads(other.stdout.readline())
    holder = msgpack.decode(bytes.fromhex(said), type=Peer)
    blocks = HELD_BYTES // block_bytes
    rows = mapped_buffer(HELD_BYTES, huge_pages=True).reshape(blocks, block_bytes)
    rows[:] = 0
    channel = NixlTransport(peer_of(layout, 0)).connect(holder, time.monotonic() + DEADLINE_S)
    descriptors = [(address + slot * slot_bytes, block_bytes, 0) for slot in slots]
    raw = Raw(bytes.fromhex(metadata), descriptors, rows)
    works: dict[str, Callable[[], None]] = {
        "nixl": raw.read_all,
        "kvbench": lambda: pull_all(channel, rows, holder.epoch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):  # the first is a warm-up
        for name in random.sample(list(works), len(works)):
            took_s = timed(works[name])
            if turn:
                seconds[name].append(took_s)
    rows[:] = 0
    for name, work in works.items():
        work()
        check(rows, name)
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    print(f"{exact_bytes(block_bytes)} blocks, batches of {BATCH}, {rounds} rounds, {channel.path}")
    for name, each in middle.items():
        rate = HELD_BYTES / each / 1e9
        print(f"  {name}: {rate:.2f} GB/s, {middle['nixl'] / each:.2f} x nixl", flush=True)
    channel.close()
    other.kill()
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
    for block_bytes in arguments.sizes:
        compare(block_bytes, arguments.rounds)
    sys.stdout.flush()
    os._exit(0)  # see `kvbench.peer.nixl`: UCX may crash as the process ends


if __name__ == "__main__":
    main()

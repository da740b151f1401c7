"""Blocks from a peer by NIXL, against NIXL alone on the same descriptors; ratios of medians.

    python -m benchmarks.peer_against_nixl [--rounds 7] [--sizes 65536 1048576 4194304]

The holder is another process, with its blocks in a DRAM tier that NIXL has registered; this one
pulls batches of 64 into rows, every block checked against its checksum (and the rows compared once,
at the end). `nixl` is the library alone: one READ of the same 64 slots straight into the same rows,
registered once, from descriptors prepared once; unchecked, and nothing asked of the holder. Each
round runs both over all blocks, in another order. UCX chooses how; UCX_TLS makes it choose another.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from msgspec import msgpack, structs

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
    timed,
)
from kvbench.peer.model import Peer
from kvbench.peer.nixl import NixlListener, NixlTransport
from kvbench.store.block import Bytes, Layout
from kvbench.store.nixl_file import load_nixl
from kvbench.store.posix import mapped_buffer
from kvbench.units import exact_bytes


def hold(block_bytes: int) -> None:
    """The other process: serve until standard input closes."""
    holder, store, tier, me = held(block_bytes)
    listener = NixlListener(holder, tier)
    slots = [
        lent.slot for lent in store.lend(keys_of(tier.slots), ttl_s=1e6).blocks if lent is not None
    ]
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


def compare(block_bytes: int, rounds: int) -> None:
    """One block size."""
    layout = Layout(block_bytes)
    command = [sys.executable, "-m", "benchmarks.peer_against_nixl", "--hold", str(block_bytes)]
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
    reads: dict[str, Callable[[], None]] = {
        "nixl": raw.read_all,
        "kvbench": lambda: pull_all(channel, rows, holder.epoch),
    }
    middle = medians({name: partial(timed, read) for name, read in reads.items()}, rounds)
    rows[:] = 0
    for name, read in reads.items():
        read()
        check(rows, name)
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

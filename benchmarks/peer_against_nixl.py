"""Blocks from a peer by NIXL, against NIXL alone on the same descriptors; ratios of medians.

    python -m benchmarks.peer_against_nixl [--rounds 7] [--sizes 65536 1048576 4194304]

The holder is another process, with its blocks in a DRAM tier that NIXL has registered; this one
pulls batches of 64 into rows, every block checked against its checksum (and the rows compared once,
at the end). All contenders read the same 64 slots into the same rows:

- `nixl`, the library alone: one READ a batch, from rows registered and descriptors prepared once;
  unchecked, and nothing asked of the holder.
- `bound`, the library with what checking costs at least: READs of 4 MiB, while another thread has
  the checksums of those before computed. Nothing is asked or lent, so this is what two cores allow.
- `kvbench`: a channel's pulls, which ask, lease, read, check and release.

They take turns batch by batch, each at another place so that none finds blocks in the caches that
another has read, and in another order each time, since others on the machine disturb whole
seconds; `best tenth` is the ratio of what the least disturbed tenth of the batches took. The
CPU time is that of this process, a batch. UCX chooses how; UCX_TLS makes it choose another.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

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
    peer_of,
    pull_batch,
)
from kvbench.peer.model import Peer
from kvbench.peer.nixl import NixlListener, NixlTransport
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import sums_of
from kvbench.store.nixl_file import load_nixl
from kvbench.store.posix import mapped_buffer
from kvbench.units import exact_bytes

PART_BYTES = 4 * 2**20


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
        self.rows = rows
        self._layout = Layout(size)

    def read(self, first: int, count: int = BATCH) -> None:
        """One READ of so many blocks."""
        which = np.arange(first, min(first + count, len(self.rows)), dtype=np.int32)
        handle = self.agent.make_prepped_xfer("READ", self.local, which, self.remote, which)
        state = self.agent.transfer(handle)
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        assert state == "DONE", state
        handle.release()

    def read_checked(self, first: int) -> None:
        """A batch in READs of PART_BYTES, and the checksums of what came before meanwhile."""
        count = max(1, PART_BYTES // self._layout.block_bytes)
        end = min(first + BATCH, len(self.rows))
        done: SimpleQueue[int] = SimpleQueue()

        def read_all() -> None:
            for at in range(first, end, count):
                self.read(at, min(count, end - at))
                done.put(at)

        thread = threading.Thread(target=read_all)
        thread.start()
        for _ in range(first, end, count):
            at = done.get(timeout=DEADLINE_S)
            sums_of(list(self.rows[at : min(at + count, end)]), self._layout)
        thread.join()


class Took(NamedTuple):
    """What one contender's batches took."""

    wall_s: list[float]
    cpu_s: list[float]

    @property
    def best_s(self) -> float:
        """The median of the fastest tenth."""
        return statistics.median(sorted(self.wall_s)[: -(-len(self.wall_s) // 10)])


def alternate(
    works: Mapping[str, Callable[[int], None]], blocks: int, rounds: int
) -> dict[str, Took]:
    """All batches by each contender, so many rounds after a warm-up, in turns."""
    took = {name: Took([], []) for name in works}
    batches = -(-blocks // BATCH)
    ahead = {name: i * batches // len(works) * BATCH for i, name in enumerate(works)}
    for turn in range(rounds + 1):
        for first in range(0, blocks, BATCH):
            for name in random.sample(list(works), len(works)):
                wall_s, cpu_s = time.perf_counter(), time.process_time()
                works[name]((first + ahead[name]) % (batches * BATCH))
                if turn:
                    took[name].cpu_s.append(time.process_time() - cpu_s)
                    took[name].wall_s.append(time.perf_counter() - wall_s)
    return took


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
    works: dict[str, Callable[[int], None]] = {
        "nixl": raw.read,
        "bound": raw.read_checked,
        "kvbench": lambda first: pull_batch(channel, rows, first, holder.epoch),
    }
    took = alternate(works, blocks, rounds)
    rows[:] = 0
    for name, work in works.items():
        for first in range(0, blocks, BATCH):
            work(first)
        check(rows, name)
    print(f"{exact_bytes(block_bytes)} blocks, batches of {BATCH}, {rounds} rounds, {channel.path}")
    nixl, batch_bytes = took["nixl"], min(BATCH, blocks) * block_bytes
    middle_s = statistics.median(nixl.wall_s)
    for name, each in took.items():
        wall_s, cpu_s = statistics.median(each.wall_s), statistics.median(each.cpu_s)
        print(
            f"  {name}: {batch_bytes / wall_s / 1e9:.2f} GB/s, {middle_s / wall_s:.2f} x nixl, "
            f"best tenth {batch_bytes / each.best_s / 1e9:.2f} GB/s, "
            f"{nixl.best_s / each.best_s:.2f} x nixl, {cpu_s * 1e3:.2f} ms CPU",
            flush=True,
        )
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

"""How many requests a second go through one pool, by policy; and what memory a long trace takes.

Usage: python benchmarks/replay_speed.py [TRACE] [--blocks 10000] [--requests 0]

With a trace (Mooncake's JSONL): each policy's replay, compiled before, the best of five by the
process's own time, so that other work on the machine does not count. With `--requests`: so many
requests of made-up conversations, once through LRU and leaf-LRU, and the most memory that was used.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from kvbench.policy import NAMES
from kvbench.sim.columns import Columns
from kvbench.sim.replay import Replay, replay
from kvbench.sim.replay_bound import bound
from kvbench.sim.replay_hits import hit_ratios
from kvbench.sim.trace.read import read_columns

RUNS = 5
LIVE, TURNS, NEW_BLOCKS = 2_000, 10, 2  # conversations at a time, their turns, blocks a turn
BYTES_PER_KIB, BYTES_PER_GIB = 2**10, 2**30  # getrusage gives KiB


def long_trace(requests: int) -> Columns:
    """Conversations in turns: a common first block, then two blocks more at each turn."""
    number = np.arange(requests, dtype=np.int64)
    turn = (number // LIVE) % TURNS
    sizes = 1 + NEW_BLOCKS * (turn + 1)
    starts = np.zeros(requests + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    ids = np.zeros(starts[-1], np.int32)
    for earlier in range(TURNS):  # the blocks that this turn of its conversation brought
        has = turn >= earlier
        first = number[has] - LIVE * (turn[has] - earlier)
        for block in range(NEW_BLOCKS):
            at = starts[:-1][has] + 1 + NEW_BLOCKS * earlier + block
            ids[at] = 1 + NEW_BLOCKS * first + block
    return Columns(
        name="made up",
        digest="0" * 16,
        block_tokens=512,
        arrival_s=number / 4.0,
        input_tokens=(512 * sizes).astype(np.int32),
        output_tokens=np.ones(requests, np.int32),
        starts=starts,
        ids=ids,
        unique_blocks=1 + NEW_BLOCKS * requests,
    )


def speeds(columns: Columns, blocks: int) -> None:
    """A line for each policy."""
    print(f"{columns.requests} requests, {len(columns.ids)} blocks; a pool of {blocks} blocks")
    for name in (*NAMES, "bound"):
        found = found_by(name, columns, blocks)  # compiles
        best_s = float("inf")
        for _ in range(RUNS):
            began_s = time.process_time()
            found_by(name, columns, blocks)
            best_s = min(best_s, time.process_time() - began_s)
        ratio = hit_ratios(columns, found).block
        rate = columns.requests / best_s / 1e6
        print(f"{name:18} {rate:6.2f} M requests/s   block hits {ratio:.4f} (simulated)")


def found_by(name: str, columns: Columns, blocks: int) -> Replay:
    """A replay with a policy, or with foresight."""
    return bound(columns, blocks) if name == "bound" else replay(columns, name, blocks)


def long(requests: int, blocks: int) -> None:
    """A long trace once through two policies."""
    columns = long_trace(requests)
    for name in ("lru", "leaf-lru"):
        began_s = time.process_time()
        found = replay(columns, name, blocks)
        took_s = time.process_time() - began_s
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_PER_KIB / BYTES_PER_GIB
        ratio = hit_ratios(columns, found).block
        print(
            f"{name:9} {requests} requests, {len(columns.ids)} blocks: {took_s:.1f} s, "
            f"block hits {ratio:.4f} (simulated), at most {most:.2f} GiB so far"
        )


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path, nargs="?")
    parser.add_argument("--blocks", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=0)
    options = parser.parse_args()
    if options.trace is not None:
        speeds(read_columns(options.trace), options.blocks)
    if options.requests:
        long(options.requests, 100 * options.blocks)


if __name__ == "__main__":
    main()

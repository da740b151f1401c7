"""The store on a drive against fio: gets at depth 16, and puts that are flushed; interleaved.

    python -m benchmarks.store_against_fio --dir DIRECTORY [--rounds 5] [--blocks 1024]

Same drive, same number and size of blocks, O_DIRECT on both sides, fresh keys each round. The
store verifies every block (XXH3-64), and its records hold a header of 4 KiB more than fio's
blocks; only payload counts. fio is one job of libaio at the same depth. A flushed put ends when
`flush` has returned for every block, fio with its end_fsync. The store has the drive alone, so that
every block goes there straight; with --in-memory a tier of memory lies above it, through which all
of them pass.
Every byte that was got is compared with what was put, outside the time.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np

from kvbench.measure.scratch import Scratch
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.config import StoreConfig, open_store
from kvbench.store.drives import capacity_for
from kvbench.store.options import Options
from kvbench.store.posix import mapped_buffer
from kvbench.store.request import Request
from kvbench.store.store import TieredStore
from kvbench.units import KIB, MIB, exact_bytes

DEPTH = 16
IN_FLIGHT = 2  # requests: the next one waits at the drive when the last blocks of one arrive
BATCH = 64
CONTENTS = 256  # blocks of different bytes, used in turn; as many fit into the store's memory
SETTLE_S = 2.0  # both sides begin rested: cloud drives have burst credits


def fio_s(path: Path, block_bytes: int, blocks: int, verb: str) -> float:
    """Seconds that fio takes for so many blocks, each once, in random order."""
    command = [
        *("fio", f"--name={verb}", f"--filename={path}", f"--rw=rand{verb}", "--direct=1"),
        *(f"--bs={block_bytes}", f"--size={blocks * block_bytes}", "--ioengine=libaio"),
        *(f"--iodepth={DEPTH}", "--output-format=json", "--randrepeat=0"),
        *(() if verb == "read" else ("--end_fsync=1", "--overwrite=1")),
    ]
    # Its buffers in huge pages, as the store's are: half of a virtual disk's speed is in that.
    environment = os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    job = json.loads(done.stdout)["jobs"][0]
    # Of a write, the job's time and not its I/O's: the sync at the end belongs to it.
    milliseconds = job["job_runtime"] if verb == "write" else job[verb]["runtime"]
    return float(milliseconds / 1e3)


def done(request: Request) -> None:
    """Wait for it; every block has to be well."""
    statuses = Counter(request.result())
    assert set(statuses) == {Status.OK}, f"{statuses} {set(request.reasons.values())}"


def put_s(store: TieredStore, keys: list[bytes], source: Bytes) -> float:
    """Seconds to put and flush every block.

    A store with memory above its drive has each batch flushed while the next ones are put, or what
    is put would push out what is not written yet.
    """
    start_s = time.perf_counter()
    in_memory = len(store.stats().tiers) > 1
    waiting: list[Request] = []
    for at in range(0, len(keys), BATCH):
        some = keys[at : at + BATCH]
        waiting.append(
            store.put(some, [source[n % len(source)] for n in range(at, at + len(some))])
        )
        if in_memory:
            done(waiting.pop())
            waiting.append(store.flush(some))
        if len(waiting) > IN_FLIGHT:
            done(waiting.pop(0))
    for request in waiting:
        done(request)
    if not in_memory:
        done(store.flush(keys))
    return time.perf_counter() - start_s


def get_s(store: TieredStore, keys: list[bytes], source: Bytes) -> float:
    """Seconds to get every block in random order; the comparing is not in it."""
    order = np.random.default_rng(len(keys)).permutation(len(keys)).tolist()
    targets = [
        mapped_buffer(BATCH * source.shape[1], huge_pages=True).reshape(BATCH, -1)
        for _ in range(IN_FLIGHT)
    ]
    for target in targets:
        target[:] = 0
    spent_s = 0.0
    for at in range(0, len(order), BATCH * IN_FLIGHT):
        batches = [order[at + n * BATCH : at + (n + 1) * BATCH] for n in range(IN_FLIGHT)]
        start_s = time.perf_counter()
        requests = [
            store.get_into([keys[n] for n in batch], list(target[: len(batch)]))
            for batch, target in zip(batches, targets, strict=True)
            if batch
        ]
        for request in requests:
            done(request)
        spent_s += time.perf_counter() - start_s
        for batch, target in zip(batches, targets, strict=True):
            for n, row in zip(batch, target, strict=False):
                assert (row == source[n % len(source)]).all(), "wrong bytes"
    return spent_s


def compare(folder: Path, block_bytes: int, blocks: int, rounds: int, in_memory: bool) -> None:
    """One block size; `in_memory`: with a tier of memory above the drive."""
    layout = Layout(block_bytes)
    source = mapped_buffer(CONTENTS * block_bytes, huge_pages=True).reshape(CONTENTS, block_bytes)
    source[:] = np.random.default_rng(2).integers(0, 256, source.shape, dtype=np.uint8)
    file = folder / "fio.dat"
    fio_s(file, block_bytes, blocks, "write")  # lays it out
    config = StoreConfig(
        layout=layout,
        dram_bytes=CONTENTS * block_bytes if in_memory else 0,
        directories=[folder / "store"],
        require_drives=True,
        nvme_bytes=capacity_for(blocks + blocks // 8, layout),  # evicted by the batch
        min_free_bytes=0,
        options=Options(promotion="never"),
    )
    (folder / "store").mkdir()
    seconds: dict[str, list[float]] = {"put": [], "fio write": [], "get": [], "fio read": []}
    with open_store(config) as store:
        put_s(store, [os.urandom(32) for _ in range(blocks)], source)  # every slot is written once
        for _ in range(rounds):
            keys = [os.urandom(32) for _ in range(blocks)]
            time.sleep(SETTLE_S)
            seconds["put"].append(put_s(store, keys, source))
            time.sleep(SETTLE_S)
            seconds["fio write"].append(fio_s(file, block_bytes, blocks, "write"))
            if in_memory:  # what is still there would not be read from the drive: put others
                fillers = [os.urandom(32) for _ in range(len(source))]
                assert set(store.put(fillers, list(source)).result()) == {Status.OK}
            tiers = store.lookup(keys, ttl_s=0.01).tiers
            assert tiers == ("nvme",) * blocks, f"{tiers.count('nvme')} of {blocks} on the drive"
            time.sleep(SETTLE_S)
            seconds["get"].append(get_s(store, keys, source))
            time.sleep(SETTLE_S)
            seconds["fio read"].append(fio_s(file, block_bytes, blocks, "read"))
        store.close(flush=False)
    print(f"{exact_bytes(block_bytes)} x {blocks}, {rounds} rounds")
    for ours, theirs in (("put", "fio write"), ("get", "fio read")):
        for name in (ours, theirs):
            rates = [blocks * block_bytes / each / 1e9 for each in seconds[name]]
            print(f"  {name:10} GB/s " + " ".join(f"{rate:.3f}" for rate in rates))
        ratio = statistics.median(seconds[theirs]) / statistics.median(seconds[ours])
        print(f"  {ours} / {theirs}, medians: {ratio:.3f}", flush=True)


def main() -> None:
    """Compare at each block size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=1024, help="of 1 MiB; of 64 KiB 8 times more")
    parser.add_argument("--in-memory", action="store_true", help="a tier of memory above the drive")
    arguments = parser.parse_args()
    for block_bytes, blocks in ((MIB, arguments.blocks), (64 * KIB, 8 * arguments.blocks)):
        with Scratch(arguments.dir) as scratch:
            compare(scratch.path, block_bytes, blocks, arguments.rounds, arguments.in_memory)


if __name__ == "__main__":
    main()

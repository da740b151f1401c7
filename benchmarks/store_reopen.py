"""How long a store with many blocks takes to open: by snapshot, by rows, and from the records.

Small blocks, because there can be more of them: the time goes with their number. Prints one line a
way; exits with 1 if an opening finds other blocks than were written, or takes longer than `--index`
and `--rebuild` allow. The files are removed afterwards.

    python benchmarks/store_reopen.py [--blocks N] [--dir DIR] [--rounds N]
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from kvbench.store.block import Bytes, Layout, Stamp, checksums
from kvbench.store.drives import capacity_for
from kvbench.store.index_file import INDEX
from kvbench.store.nvme import NvmeTier
from kvbench.store.posix import mapped_buffer
from kvbench.store.records import PAGE_BYTES
from kvbench.store.tier import Recovered
from kvbench.units import GIB, format_bytes

LAYOUT = Layout(PAGE_BYTES)
NAMESPACE = hashlib.sha256(b"benchmarks/store_reopen").digest()
RUN = 256
PREFIX = 64  # blocks of one prefix


def opened(directory: Path, blocks: int) -> NvmeTier:
    """The tier, new or as it was left."""
    return NvmeTier(
        [directory],
        LAYOUT,
        capacity_bytes=capacity_for(blocks, LAYOUT),
        namespace=NAMESPACE,
        min_free_bytes=GIB,
    )


def stamp_of(slot: int, payload: Bytes) -> Stamp:
    """A stamp that follows from the slot, all but its checksum."""
    key = hashlib.sha256(slot.to_bytes(8, "little")).digest()
    position = slot % PREFIX
    parent = hashlib.sha256((slot - 1).to_bytes(8, "little")).digest() if position else None
    return Stamp(key, parent, position, f"tenant {slot % 7}", checksums(payload, LAYOUT))


def build(directory: Path, blocks: int) -> None:
    """Fill every slot, in runs."""
    tier = opened(directory, blocks)
    tier.recover()
    area = mapped_buffer(RUN * PAGE_BYTES).reshape(RUN, PAGE_BYTES)
    area[:] = np.random.default_rng(1).integers(0, 256, area.shape, np.uint8)
    for first in range(0, blocks, RUN):
        slots = range(first, min(first + RUN, blocks))
        rows = [area[slot - first] for slot in slots]
        stamps = [stamp_of(slot, row) for slot, row in zip(slots, rows, strict=True)]
        if any(tier.write(slots, stamps, rows)):
            raise SystemExit(f"a block from slot {first} on could not be written")
    tier.close()


def reopen(directory: Path, blocks: int) -> tuple[tuple[float, float], str, Recovered, NvmeTier]:
    """Seconds from nothing to all columns, and those of the processor; how they were found."""
    start, start_cpu = time.perf_counter(), time.process_time()
    tier = opened(directory, blocks)
    found = tier.recover()
    took = time.perf_counter() - start, time.process_time() - start_cpu
    return took, str(tier.facts()["found_by"]), found, tier


def crash(tier: NvmeTier) -> None:
    """Leave the index as after kill -9 of a process that had begun to write."""
    tier.index.touch()
    tier.index.close(slots=tier.slots, clean=False)
    tier.drives.close()


def main() -> None:
    """Build, close, and open again in three ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=Path.cwd())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--index", type=float, default=2.0, help="seconds allowed with an index")
    parser.add_argument("--rebuild", type=float, default=20.0, help="seconds allowed without")
    options = parser.parse_args()
    blocks: int = options.blocks
    failed = False
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        directory = Path(name)
        start = time.perf_counter()
        build(directory, blocks)
        print(
            f"{blocks} blocks, {format_bytes(capacity_for(blocks, LAYOUT))}, "
            f"index {format_bytes((directory / INDEX).stat().st_size)}, "
            f"built and closed in {time.perf_counter() - start:.1f} s"
        )
        for way, allowed in (
            ("index, snapshot", options.index),
            ("index, rows", options.index),
            ("records", options.rebuild),
        ):
            times: list[tuple[float, float]] = []
            for _ in range(options.rounds):
                if way == "records":
                    (directory / INDEX).unlink()
                took, found_by, found, tier = reopen(directory, blocks)
                times.append(took)
                right = found_by == way and found.slots == list(range(blocks))
                del found
                if way == "index, rows":
                    crash(tier)
                else:
                    tier.close()
                    if way == "index, snapshot" and len(times) == options.rounds:
                        crash(opened(directory, blocks))
                failed = failed or not right
                if not right:
                    print(f"{way}: found by {found_by}, and not what was written")
            median, cpu = (statistics.median(each) for each in zip(*times, strict=True))
            failed = failed or median > allowed
            listed = " ".join(f"{wall:.2f}" for wall, _ in times)
            print(
                f"{way:16} {median:6.2f} s, allowed {allowed:g} s ({listed}; processor {cpu:.2f} s)"
            )
    sys.exit(failed)


if __name__ == "__main__":
    main()

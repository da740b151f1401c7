"""The performance model against the real store: 200 mixed loads from its DRAM and NVMe tiers.

    python -m benchmarks.model_fidelity --dir DIR [--loads 200] [--repeats 3] [--seed 1]

A load gets blocks through the store's API, checksums on: so many bytes in blocks of one size, by
requests of so many blocks, so many requests in flight. A few points are measured first and a curve
is fitted to each tier; then loads drawn at random are predicted and run, some of them two at a
time. A load is run a few times and the median counts. Between groups of loads the points are
measured again: how far those are from the first time, and runs of a load from each other, is the
machine's own spread, printed beside the error. Block sizes and depths of loads include such as were
not calibrated.
"""

import argparse
import itertools
import math
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvbench.sim.model.curve import Curve, Point, fit
from kvbench.sim.model.transfer import pair_s
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.config import StoreConfig, open_store
from kvbench.store.drives import capacity_for
from kvbench.store.options import Options
from kvbench.store.posix import mapped_buffer
from kvbench.store.request import Request
from kvbench.units import KIB, MIB, exact_bytes

TIERS = ("dram", "nvme")
CALIBRATED = (64 * KIB, 512 * KIB, 2 * MIB)  # block sizes that points are measured at
SIZES = (64 * KIB, 256 * KIB, 512 * KIB, 1 * MIB, 2 * MIB)  # that loads are drawn from
BATCHES, DEPTHS = (1, 4, 16), (1, 4)  # of points; loads have any between
STORE_BYTES = {"dram": 128 * MIB, "nvme": 256 * MIB}
POINT_BYTES = {"dram": 256 * MIB, "nvme": 64 * MIB}
LOAD_BYTES = {"dram": (128 * MIB, 512 * MIB), "nvme": (32 * MIB, 128 * MIB)}
PAIRS = 0.3  # share of loads that have another beside them
GROUP = 20  # loads between two calibrations


@dataclass(frozen=True, slots=True)
class Load:
    """Blocks to get from one tier."""

    tier: str
    block_bytes: int
    batch: int
    depth: int
    size_bytes: int


class Shelf:
    """One store of one tier and block size, filled, and rows to read into."""

    def __init__(self, tier: str, block_bytes: int, directory: Path) -> None:
        blocks = STORE_BYTES[tier] // block_bytes
        layout = Layout(block_bytes)
        options = Options(promotion="never", demotion="never")
        if tier == "dram":
            config = StoreConfig(layout=layout, dram_bytes=STORE_BYTES[tier], options=options)
        else:
            config = StoreConfig(
                require_drives=True,
                layout=layout,
                dram_bytes=64 * MIB,
                directories=[directory],
                nvme_bytes=capacity_for(blocks + blocks // 4, layout),
                min_free_bytes=0,
                options=options,
            )
        self.store = open_store(config)
        self.keys = [os.urandom(32) for _ in range(blocks)]
        self._fill(tier, block_bytes)

    def _fill(self, tier: str, block_bytes: int) -> None:
        step = max(1, 16 * MIB // block_bytes)
        rows = rows_of(step, block_bytes)
        spare = [os.urandom(32) for _ in range(64 * MIB // block_bytes)] if tier == "nvme" else []
        for keys, durable in ((self.keys, tier == "nvme"), (spare, False)):
            for at in range(0, len(keys), step):
                some = keys[at : at + step]
                check(self.store.put(some, list(rows[: len(some)])))
                if durable:  # then the spare ones take their place in memory
                    check(self.store.flush(some))

    def run(self, load: Load, rows: Bytes) -> float:
        """Seconds until every block of the load has arrived."""
        count = max(1, load.size_bytes // load.block_bytes)
        order = np.random.default_rng(7).permutation(len(self.keys))
        flying: deque[Request] = deque()
        start_s = time.perf_counter()
        for number, at in enumerate(range(0, count, load.batch)):
            some = range(at, min(at + load.batch, count))
            if len(flying) == load.depth:
                check(flying.popleft())
            first = number % load.depth * load.batch
            keys = [self.keys[order[each % len(order)]] for each in some]
            flying.append(self.store.get_into(keys, list(rows[first : first + len(keys)])))
        while flying:
            check(flying.popleft())
        return time.perf_counter() - start_s


def check(request: Request) -> None:
    """Wait; every block has to be there."""
    statuses = set(request.result())
    assert statuses == {Status.OK}, statuses


def rows_of(count: int, block_bytes: int) -> Bytes:
    """Rows of incompressible bytes."""
    rows = mapped_buffer(count * block_bytes, huge_pages=True).reshape(count, block_bytes)
    rows[:] = np.random.default_rng(1).integers(0, 256, block_bytes, dtype=np.uint8)
    return rows


class Machine:
    """All stores, and two sets of rows: one for each load of a pair."""

    def __init__(self, shelves: dict[tuple[str, int], Shelf]) -> None:
        self._shelves = shelves
        self._memory = [mapped_buffer(128 * MIB, huge_pages=True) for _ in range(2)]
        for memory in self._memory:
            memory[:] = 1  # no load is the first to touch a page

    def run(self, load: Load, lane: int = 0) -> float:
        """One load by itself, or beside the other lane's."""
        needed = load.depth * load.batch
        rows = self._memory[lane][: needed * load.block_bytes].reshape(needed, load.block_bytes)
        return self._shelves[load.tier, load.block_bytes].run(load, rows)

    def run_pair(self, loads: Sequence[Load]) -> list[float]:
        """Two at once."""
        seconds = [0.0, 0.0]
        begin = threading.Barrier(2)

        def work(lane: int) -> None:
            begin.wait()
            seconds[lane] = self.run(loads[lane], lane)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seconds


@contextmanager
def machine_in(directory: Path) -> Iterator[Machine]:
    """Stores of every tier and size; their files are gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="kvbench-fidelity-", dir=directory))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        shelves: dict[tuple[str, int], Shelf] = {}
        for tier in TIERS:
            for size in SIZES:
                folder = scratch / f"{tier}-{size}"
                folder.mkdir()
                shelves[tier, size] = shelf = Shelf(tier, size, folder)
                stack.callback(shelf.store.close, flush=False)
        yield Machine(shelves)


Rates = dict[tuple[str, int, int, int], list[float]]  # tier, block, batch, depth → bytes/s
Slowed = dict[tuple[str, str], list[float]]  # tier and the one beside it → times as long


def measure(machine: Machine, rates: Rates, slowed: Slowed, order: np.random.Generator) -> None:
    """Every point once, and how loads of each pair of tiers slow each other."""
    points = list(itertools.product(TIERS, CALIBRATED, BATCHES, DEPTHS))
    for number in order.permutation(len(points)):  # as loads come: hardly two alike in a row
        tier, block, batch, depth = points[number]
        load = Load(tier, block, batch, depth, POINT_BYTES[tier])
        rate = load.size_bytes / machine.run(load)
        rates.setdefault((tier, block, batch, depth), []).append(rate)
    for one, other in (("dram", "dram"), ("nvme", "nvme"), ("dram", "nvme")):
        pair = [Load(tier, 512 * KIB, 16, 2, POINT_BYTES[tier]) for tier in (one, other)]
        alone = [machine.run(load) for load in pair]
        # Equal ends, so that both are slowed from the beginning to the end.
        scale = max(alone) / min(alone)
        quick = alone.index(min(alone))
        longer = int(pair[quick].size_bytes * scale)
        pair[quick] = Load(pair[quick].tier, 512 * KIB, 16, 2, longer)
        together = machine.run_pair(pair)
        for this, that, took in ((one, other, together[0]), (other, one, together[1])):
            slowed.setdefault((this, that), []).append(max(1.0, took / max(alone)))


def curves_of(rates: Rates) -> dict[str, Curve]:
    """Curves of the medians of all that was measured so far."""
    made: dict[str, Curve] = {}
    for tier in TIERS:
        points = [
            Point(
                block_bytes=block,
                batch=batch,
                depth=depth,
                bytes_per_s=statistics.median(values),
                low=min(values),
                high=max(values),
            )
            for (of, block, batch, depth), values in rates.items()
            if of == tier
        ]
        made[tier] = fit(points, f"store, {tier}, {len(points)} points")
    return made


def draw(random: np.random.Generator) -> Load:
    """A load at random."""
    tier = TIERS[int(random.integers(2))]
    low, high = LOAD_BYTES[tier]
    block = int(random.choice(SIZES))
    batch = int(random.integers(1, 17))
    size = int(math.exp(random.uniform(math.log(low), math.log(high))))
    return Load(tier, block, batch, int(random.integers(1, 5)), max(size, block))


@dataclass(frozen=True, slots=True)
class Told:
    """A load, what was predicted of it and what it took."""

    load: Load
    paired: bool
    predicted_s: float
    low_s: float
    high_s: float
    took_s: float  # median
    runs_s: tuple[float, ...]

    @property
    def error(self) -> float:
        """Relative, with its sign."""
        return self.predicted_s / self.took_s - 1


def predict(
    curves: dict[str, Curve], slowed: Slowed, loads: Sequence[Load]
) -> list[tuple[float, float, float]]:
    """Seconds of one load or of two at a time: middle, low, high."""
    alone = [
        curves[load.tier].seconds(
            load.size_bytes, block_bytes=load.block_bytes, batch=load.batch, depth=load.depth
        )
        for load in loads
    ]
    if len(loads) == 1:
        return [(alone[0].value, alone[0].low, alone[0].high)]
    one, other = loads[0].tier, loads[1].tier
    by = statistics.median(slowed[one, other]), statistics.median(slowed[other, one])
    ends = pair_s((alone[0].value, alone[1].value), by)
    return [
        (end, end * each.low / each.value, end * each.high / each.value)
        for end, each in zip(ends, alone, strict=True)
    ]


def report(told: Sequence[Told]) -> None:
    """Errors by kind of load."""
    kinds = {
        "all": list(told),
        **{
            f"{tier} alone": [t for t in told if t.load.tier == tier and not t.paired]
            for tier in TIERS
        },
        **{
            f"{tier} of a pair": [t for t in told if t.load.tier == tier and t.paired]
            for tier in TIERS
        },
        **{
            f"blocks of {exact_bytes(size)}": [t for t in told if t.load.block_bytes == size]
            for size in SIZES
        },
    }
    print(f"{'loads':<22} {'n':>4} {'median |error|':>15} {'90th':>7} {'bias':>7} {'in range':>9}")
    for name, some in kinds.items():
        if not some:
            continue
        off = sorted(abs(t.error) for t in some)
        inside = sum(t.low_s <= t.took_s <= t.high_s for t in some) / len(some)
        print(
            f"{name:<22} {len(some):>4} {100 * statistics.median(off):>13.1f} % "
            f"{100 * off[int(0.9 * (len(off) - 1))]:>5.1f} % "
            f"{100 * statistics.median(t.error for t in some):>5.1f} % {100 * inside:>7.0f} %"
        )


def spread(rates: Rates, told: Sequence[Told]) -> None:
    """How far what is measured again is from the first time: what no model can predict."""
    again = sorted(abs(run / t.runs_s[0] - 1) for t in told for run in t.runs_s[1:])
    if again:
        print(
            f"the machine's own spread: a load run again at once is "
            f"{100 * statistics.median(again):.1f} % off its first run (median), "
            f"90th percentile {100 * again[int(0.9 * (len(again) - 1))]:.1f} %"
        )
    off = {
        tier: sorted(
            abs(value / values[0] - 1)
            for (of, *_), values in rates.items()
            if of == tier
            for value in values[1:]
        )
        for tier in TIERS
    }
    for tier, values in off.items():
        print(
            f"the machine's own spread, {tier}: a point measured again is "
            f"{100 * statistics.median(values):.1f} % off its first time (median of "
            f"{len(values)}), 90th percentile {100 * values[int(0.9 * (len(values) - 1))]:.1f} %"
        )


def main() -> None:
    """Calibrate, predict, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="on the drive to measure")
    parser.add_argument("--loads", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    rates: Rates = {}
    slowed: Slowed = {}
    refreshed: list[Told] = []
    first: list[Told] = []
    with machine_in(arguments.dir) as machine:
        measure(machine, {}, {}, random)  # a warm-up: pages are touched, threads started
        for _ in range(3):
            measure(machine, rates, slowed, random)
        once = curves_of(rates)
        slowed_once = {pair: list(values) for pair, values in slowed.items()}
        while len(refreshed) < arguments.loads:
            now = curves_of(rates)
            for _ in range(GROUP):
                if len(refreshed) >= arguments.loads:
                    break
                paired = random.random() < PAIRS / (2 - PAIRS)  # of turns: a pair is two loads
                loads = [draw(random) for _ in range(2 if paired else 1)]
                guesses = predict(now, slowed, loads), predict(once, slowed_once, loads)
                runs = [
                    machine.run_pair(loads) if paired else [machine.run(loads[0])]
                    for _ in range(arguments.repeats)
                ]
                took = [tuple(each) for each in zip(*runs, strict=True)]
                for told, said in zip((refreshed, first), guesses, strict=True):
                    told += [
                        Told(load, paired, *guess, statistics.median(seconds), seconds)
                        for load, guess, seconds in zip(loads, said, took, strict=True)
                    ]
            measure(machine, rates, slowed, random)
    for tier, curve in curves_of(rates).items():
        print(
            f"{tier}: 1/B {1e-9 / curve.s_per_byte if curve.s_per_byte else math.inf:.2f} GB/s, "
            f"{1e6 * curve.s_per_block:.1f} us a block, {1e6 * curve.s_per_request:.0f} us a "
            f"request, latency {1e6 * curve.latency_s:.0f} us a request and "
            f"{1e6 * curve.block_latency_s:.0f} us a block, "
            f"range {curve.low:.2f} to {curve.high:.2f}"
        )
    for (one, other), values in slowed.items():
        print(f"{one} beside {other}: takes {statistics.median(values):.2f} times as long")
    print("\ncalibrated once, before all loads")
    report(first)
    print("\ncalibrated again before every group, medians of all so far")
    report(refreshed)
    print()
    spread(rates, first)


if __name__ == "__main__":
    main()

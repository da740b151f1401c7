"""How often does the gate cry wolf, and what can it see? `scripts/operating_characteristics`.

Simulates reports of 30 metrics in four groups whose noise has the awkward features of real
machines (autocorrelated iterations, unlucky processes, slow spells, offsets between sessions that
metrics share), gives their process medians to `kvbench.compare.gate`, the code behind
`kvbench compare`, and prints false alarms for each 1000 comparisons of the same code and the power
against known slowdowns. Everything printed is simulated; no machine was measured.

Arrays are logs, + is slower; axes are comparisons R, metrics M, processes P, iterations n.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal, stats

from kvbench.compare.gate import (
    FAMILY_ALPHA,
    Change,
    Decision,
    change,
    decide,
    noise_floor,
    smallest_visible,
)
from kvbench.compare.metrics import MARGINS
from kvbench.measure.pairs import Stopping
from kvbench.measure.stats import ratio_half_width

Floats = NDArray[np.float64]
PROCESSES = 10
SLOWDOWNS = (0.05, 0.10, 0.20, 0.30)
INJECTIONS = 400
CHUNK = 25
MOST_PAIRS = 30  # of `kvbench ab`


class Group(NamedTuple):
    """Noise of one group; every sd is of logs."""

    name: str
    metrics: int
    margin: float
    session: float  # sd between two visits to a machine
    process: float  # sd between processes of one visit
    iteration: float  # sd inside a process
    rho: float  # lag-1 autocorrelation inside a process
    spikes: float  # share of iterations that stall
    unlucky: tuple[float, float] = (0.0, 0.0)  # share of processes, and how much slower
    spells: tuple[float, float] = (0.0, 0.0)  # share of iterations in slow spells, how much slower


GROUPS = (
    Group("hbm", 8, MARGINS["hbm"], 0.003, 0.004, 0.006, 0.3, 0.005),
    Group("dram", 8, MARGINS["dram"], 0.008, 0.010, 0.020, 0.5, 0.010, unlucky=(0.15, 0.04)),
    Group("nvme", 8, MARGINS["nvme"], 0.020, 0.020, 0.060, 0.8, 0.030, spells=(0.15, 0.25)),
    Group("p99", 6, MARGINS["p99"], 0.030, 0.040, 0.080, 0.5, 0.030, unlucky=(0.10, 0.10)),
)
OF = np.repeat(np.arange(len(GROUPS)), [group.metrics for group in GROUPS])
METRICS = len(OF)
TIER_MARGINS = np.log1p([group.margin for group in GROUPS])
METRIC_MARGINS = TIER_MARGINS[OF]
SPELL_STAYS = 0.95  # chance that a slow spell goes on: about 20 iterations


def column(field: str) -> Floats:
    """A field of the groups, for each metric, as [M, 1]."""
    return np.array([getattr(GROUPS[group], field) for group in OF], dtype=np.float64)[:, None]


class Machine:
    """Draws reports of the same code on one simulated machine."""

    def __init__(self, seed: int, iterations: int) -> None:
        self._random = np.random.default_rng(seed)
        self._n = iterations

    def interleaved(self, count: int, processes: int) -> tuple[Floats, Floats]:
        """Process medians [count, M, processes] of two sides that share a session's drift."""
        walk = np.cumsum(self._shared_normals(count, processes), axis=-1) / np.sqrt(processes)
        shape = (count, METRICS, processes)
        sides = [
            self._report(column("session") * (walk + 0.3 * self._random.standard_normal(shape)))
            for _ in range(2)
        ]
        return sides[0], sides[1]

    def session(self, count: int, processes: int) -> Floats:
        """Process medians of `count` separate sessions, each with an offset of its own."""
        offset = column("session") * self._shared_normals(count, 1)
        return self._report(np.broadcast_to(offset, (count, METRICS, processes)))

    def _report(self, drift: Floats) -> Floats:
        count, _, processes = drift.shape
        level = drift + column("process") * self._shared_normals(count, processes)
        share, shift = (
            np.array([GROUPS[group].unlucky[part] for group in OF])[:, None] for part in (0, 1)
        )
        level += (self._random.random(level.shape) < share) * shift
        inside = [np.median(self._iterations(group, count, processes), -1) for group in GROUPS]
        return level + np.concatenate(inside, axis=1)

    def _shared_normals(self, count: int, processes: int) -> Floats:
        """Unit normals, half of whose variance all metrics of a report have in common."""
        common = self._random.standard_normal((count, 1, processes))
        own = self._random.standard_normal((count, METRICS, processes))
        normals: Floats = (common + own) / np.sqrt(2)
        return normals

    def _iterations(self, group: Group, count: int, processes: int) -> Floats:
        shape = (count, group.metrics, processes, self._n)
        white = self._random.standard_normal(shape, dtype=np.float32)
        start = group.rho * self._random.standard_normal((*shape[:-1], 1))
        filtered, _ = signal.lfilter(
            [1.0], [1.0, -group.rho], white * np.sqrt(1 - group.rho**2), axis=-1, zi=start
        )
        y: Floats = group.iteration * filtered
        stalled = self._random.random(shape, dtype=np.float32) < group.spikes
        y[stalled] += self._random.exponential(0.5, np.count_nonzero(stalled))
        share, shift = group.spells
        if share:
            y += shift * self._spells(shape, share)
        return y

    def _spells(self, shape: tuple[int, ...], share: float) -> NDArray[np.bool_]:
        """A two-state Markov chain along the iterations; True while slow."""
        enter = (1 - SPELL_STAYS) * share / (1 - share)
        draw = self._random.random(shape, dtype=np.float32)
        slow = np.empty(shape, dtype=np.bool_)
        slow[..., 0] = draw[..., 0] < share
        for at in range(1, shape[-1]):
            chance: Floats = np.where(slow[..., at - 1], SPELL_STAYS, enter)
            slow[..., at] = np.less(draw[..., at], chance)
        return slow


class Verdicts(NamedTuple):
    """Both families of many comparisons, judged by the shipped code."""

    metrics: Decision
    tiers: Decision
    changes: Change

    @property
    def red(self) -> NDArray[np.bool_]:
        """Whether a comparison has any SLOWER."""
        families = np.concatenate((self.metrics.slower, self.tiers.slower), axis=-1)
        either: NDArray[np.bool_] = np.logical_or.reduce(families, axis=-1)
        return either


def tier_means(y: Floats) -> Floats:
    """Mean over the metrics of each group: [..., M, P] to [..., groups, P]."""
    return np.stack([y[..., group == OF, :].mean(-2) for group in range(len(GROUPS))], axis=-2)


def judge(
    base: Floats, new: Floats, *, interleaved: bool, history: Floats | None = None
) -> Verdicts:
    """`history` is [K, M, P]: sessions of the same code, for the noise floor."""
    floors: list[tuple[Floats, Floats] | None] = [None, None]
    if history is not None:
        floors = [noise_floor(history), noise_floor(tier_means(history))]
    changes = change(base, new, interleaved=interleaved, floor=floors[0])
    tiers = change(tier_means(base), tier_means(new), interleaved=interleaved, floor=floors[1])
    return Verdicts(decide(changes, METRIC_MARGINS), decide(tiers, TIER_MARGINS), changes)


def upper_limit(hits: NDArray[np.bool_]) -> float:
    """Exact one-sided 95 % limit of a rate (Clopper and Pearson)."""
    found = int(hits.sum())
    return float(stats.beta.ppf(0.95, found + 1, len(hits) - found)) if found < len(hits) else 1.0


class Goals:
    """What must hold, collected while it is measured."""

    def __init__(self) -> None:
        self.missed: list[str] = []
        self.met = 0

    def check(self, text: str, holds: bool) -> None:
        """Note one."""
        if holds:
            self.met += 1
        else:
            self.missed.append(text)


def show(title: str, header: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    """A table on standard output."""
    print(f"\n{title}\n{'':<34}" + "".join(f"{each:>16}" for each in header))
    for name, cells in rows:
        print(f"{name:<34}" + "".join(f"{each:>16}" for each in cells), flush=True)


def false_alarms(machine: Machine, runs: int, goals: Goals) -> tuple[Floats, Floats]:
    """Same code on both sides. Returns the interleaved sides at `PROCESSES`, for what follows."""
    rows: list[tuple[str, list[str]]] = []
    kept: list[tuple[Floats, Floats]] = []
    for processes in (5, PROCESSES):
        pairs = [machine.interleaved(CHUNK, processes) for _ in range(runs // CHUNK)]
        base, new = (np.concatenate(side) for side in zip(*pairs, strict=True))
        red = judge(base, new, interleaved=True).red
        rows.append((f"interleaved, P={processes}", [*_rate(red), str(len(red))]))
        # 12 of 2000 has an exact 95 % limit of 9.7 in 1000.
        goals.check(f"false alarms interleaved, P={processes}", upper_limit(red) <= 0.010)
        kept.append((base, new))
        quiet, floored = _two_sessions(machine, runs, processes)
        rows.append((f"two sessions assumed quiet, P={processes}", [*_rate(quiet), str(runs)]))
        rows.append((f"two sessions, floor of 8, P={processes}", [*_rate(floored), str(runs)]))
        goals.check(f"false alarms with a floor, P={processes}", upper_limit(floored) <= 0.010)
    show(
        f"False alarms: any of {METRICS} metrics or {len(GROUPS)} tiers SLOWER, same code",
        ["in 1000", "95 % limit", "comparisons"],
        rows,
    )
    return kept[-1]


def _two_sessions(
    machine: Machine, runs: int, processes: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    quiet: list[NDArray[np.bool_]] = []
    floored: list[NDArray[np.bool_]] = []
    for _ in range(runs // CHUNK):
        base, new = (machine.session(CHUNK, processes) for _ in range(2))
        history = machine.session(8, processes)  # another calibration for every chunk
        quiet.append(judge(base, new, interleaved=False).red)
        floored.append(judge(base, new, interleaved=False, history=history).red)
    return np.concatenate(quiet), np.concatenate(floored)


def _rate(hits: NDArray[np.bool_]) -> list[str]:
    return [f"{1000 * hits.mean():.1f}", f"{1000 * upper_limit(hits):.1f}"]


def stopped_at(base: Floats, new: Floats, stopping: Stopping) -> NDArray[np.int64]:
    """At how many pairs `kvbench ab` would have ended each metric: [R, M, P] to [R, M].

    A p99 ends with the rate of its row: here of one of the nvme rows.
    """
    most = base.shape[-1]
    counts = np.full(base.shape[:-1], most)
    for at in np.ndindex(counts.shape):
        rates = np.exp(-base[at]), np.exp(-new[at])
        for pairs in range(stopping.least, most):
            if ratio_half_width(*(list(side[:pairs]) for side in rates)) <= stopping.half_width:
                counts[at] = pairs
                break
    names = [group.name for group in GROUPS]
    p99, nvme = (np.flatnonzero(names.index(name) == OF) for name in ("p99", "nvme"))
    counts[:, p99] = counts[:, nvme[: len(p99)]]
    return counts


def judge_stopped(base: Floats, new: Floats, counts: NDArray[np.int64]) -> Verdicts:
    """Verdicts on the first `counts` pairs of each metric; tiers on those that all share."""
    shared = np.stack([counts[:, at == OF].min(-1) for at in range(len(GROUPS))], axis=-1)
    changes = _change_of_first(base, new, counts)
    tiers = _change_of_first(tier_means(base), tier_means(new), shared)
    return Verdicts(decide(changes, METRIC_MARGINS), decide(tiers, TIER_MARGINS), changes)


def _change_of_first(base: Floats, new: Floats, counts: NDArray[np.int64]) -> Change:
    d, se, df = (np.empty(counts.shape) for _ in range(3))
    for pairs in np.unique(counts):
        where = counts == pairs
        found = change(base[where][:, :pairs], new[where][:, :pairs], interleaved=True)
        d[where], se[where], df[where] = found.d, found.se, found.df
    return Change(d, se, df)


def adaptive(machine: Machine, runs: int, goals: Goals) -> None:
    """The same with `kvbench ab`'s stopping rule: alarms, and alarms at the margin itself."""
    stopping = Stopping()
    pairs = [machine.interleaved(CHUNK, MOST_PAIRS) for _ in range(runs // CHUNK)]
    base, new = (np.concatenate(side) for side in zip(*pairs, strict=True))
    counts = stopped_at(base, new, stopping)
    red = judge_stopped(base, new, counts).red
    goals.check("false alarms with the stopping rule", upper_limit(red) <= 0.010)
    at_margin = judge_stopped(base, new + METRIC_MARGINS[:, None], counts).red
    goals.check(
        f"true change equals every margin: {at_margin.mean():.3f} SLOWER, nominal 0.05",
        upper_limit(at_margin) <= 0.08,
    )
    fixed = judge(
        base[..., :PROCESSES], (new + METRIC_MARGINS[:, None])[..., :PROCESSES], interleaved=True
    ).red
    show(
        f"`ab` stops a metric at ±{stopping.half_width:.0%}, {stopping.least} to {MOST_PAIRS} "
        "pairs: any SLOWER",
        ["in 1000", "95 % limit", "comparisons"],
        [
            ("same code", [*_rate(red), str(len(red))]),
            ("every metric at its margin", [*_rate(at_margin), str(len(red))]),
            (f"the same, always {PROCESSES} pairs", [*_rate(fixed), str(len(red))]),
        ],
    )
    rows: list[tuple[str, list[str]]] = []
    for at, group in enumerate(GROUPS):
        own = at == OF
        slowed = new.copy()
        slowed[:, own] += np.log1p(0.10)
        verdicts = judge_stopped(base, slowed, counts)
        found = verdicts.metrics.slower[:, own]
        tier = found.any(-1) | verdicts.tiers.slower[:, at]
        rows.append(
            (
                group.name,
                [f"{counts[:, own].mean():.1f}", f"{found.mean():.2f}", f"{tier.mean():.2f}"],
            )
        )
    show("Mean pairs, and share SLOWER at +10 %", ["pairs", "metric", "tier"], rows)


WANTED = {
    ("metric", "hbm", 0.05): 0.95,
    ("metric", "dram", 0.10): 0.95,
    ("metric", "nvme", 0.20): 0.80,
    ("tier", "dram", 0.05): 0.80,
    ("tier", "nvme", 0.10): 0.80,
}


def power(base: Floats, new: Floats, seed: int, goals: Goals) -> None:
    """One metric, or a whole tier, is really slower: how often is it flagged?"""
    random = np.random.default_rng(seed)
    base, new = base[:INJECTIONS], new[:INJECTIONS]
    for scope in ("metric", "tier"):
        rows: list[tuple[str, list[str]]] = []
        for at, group in enumerate(GROUPS):
            members = np.flatnonzero(at == OF)
            cells: list[str] = []
            for slowdown in SLOWDOWNS:
                slowed = new.copy()
                one = random.choice(members, len(new))
                where = (np.arange(len(new)), one) if scope == "metric" else (slice(None), members)
                slowed[where] += np.log1p(slowdown)
                verdicts = judge(base, slowed, interleaved=True)
                found = verdicts.metrics.slower[where]
                if scope == "tier":
                    found = found.any(-1) | verdicts.tiers.slower[:, at]
                rate = float(found.mean())
                cells.append(f"{rate:.2f}")
                wanted = WANTED.get((scope, group.name, slowdown))
                if wanted is not None:
                    text = f"power {scope} {group.name} +{slowdown:.0%}: {rate:.2f} >= {wanted}"
                    goals.check(text, rate >= wanted)
            rows.append((group.name, cells))
        what = "one metric slower" if scope == "metric" else "a whole tier slower"
        show(
            f"Power, interleaved, P={PROCESSES}, {what}: share of {len(new)} flagged",
            [f"+{slowdown:.0%}" for slowdown in SLOWDOWNS],
            rows,
        )


def honesty(base: Floats, new: Floats, goals: Goals) -> None:
    """Is the printed MDE true, is the test calibrated, and does it say SAME when it can?"""
    verdicts = judge(base, new, interleaved=True)
    raw = verdicts.changes.p_above(np.zeros(METRICS))
    few = Change(
        *(each[:200] for each in (verdicts.changes.d, verdicts.changes.se, verdicts.changes.df))
    )
    visible = smallest_visible(few, METRIC_MARGINS, METRICS)
    size = float((raw < 0.05).mean())
    goals.check(f"a nominal 5 % test rejects {size:.3f}, not 0.03 to 0.06", 0.03 <= size <= 0.06)
    uniform = min(
        float(stats.kstest(raw[:, metric], "uniform").pvalue) for metric in range(METRICS)
    )
    goals.check(f"p under A/A uniform: least KS p {uniform:.4f}", uniform > 0.01 / METRICS)
    rows: list[tuple[str, list[str]]] = []
    for at, group in enumerate(GROUPS):
        own = at == OF
        mde = float(np.median(visible[:, own]))
        shifted = change(base[:, own], new[:, own] + np.log1p(mde), interleaved=True)
        hardest = FAMILY_ALPHA / METRICS
        there = float((shifted.p_above(TIER_MARGINS[at]) <= hardest).mean())
        same = float(verdicts.metrics.same[:, own].mean())
        rows.append((group.name, [f"{mde:.1%}", f"{there:.2f}", f"{same:.3f}"]))
        goals.check(f"power at the printed MDE, {group.name}: {there:.2f}", 0.70 <= there <= 0.90)
        if group.name in {"hbm", "dram"}:
            goals.check(f"SAME for {same:.1%} of {group.name}", same >= 0.95)
    show(
        f"Printed MDE (80 %), power really reached there, share called SAME under A/A; "
        f"nominal 5 % rejects {size:.3f}, least KS p {uniform:.4f} of {METRICS}",
        ["MDE", "power there", "SAME"],
        rows,
    )


def main() -> int:
    """Print the tables; 1 with --check if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="400 comparisons instead of 2000")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a goal is missed")
    parser.add_argument("--iterations", type=int, default=150, help="of a process; default 150")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    began_s, goals = time.monotonic(), Goals()
    machine = Machine(chosen.seed, chosen.iterations)
    print("simulated: noise models of statistics, no machine; tests by kvbench.compare.gate")
    base, new = false_alarms(machine, 400 if chosen.quick else 2000, goals)
    adaptive(machine, 400 if chosen.quick else 2000, goals)
    power(base, new, chosen.seed, goals)
    honesty(base, new, goals)
    total = goals.met + len(goals.missed)
    print(f"\n{goals.met} of {total} goals met, {time.monotonic() - began_s:.0f} s")
    for text in goals.missed:
        print(f"  MISSED {text}")
    return 1 if chosen.check and goals.missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""The test behind every verdict, on arrays: is NEW slower than BASE by more than a margin?

All values are y = ln(time) or -ln(rate) of one worker process, so + is slower. The last axis of
what is measured holds processes; the last axis of what is tested holds the tests of one family;
any axes before it are carried along, so that a simulation of thousands of comparisons
(scripts/operating_characteristics) drives these very functions.
Knows nothing of reports, rows or files.

The design is a one-sided minimum-effect t test (Murphy and Myors 1999) at the level of processes,
since iterations of one process are no independent replicates (Kalibera and Jones, ISMM 2013),
with Holm's correction (1979) over each family; docs/statistics.md gives its measured operating
characteristics.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # pyright: ignore[reportMissingTypeStubs]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

ALPHA = 0.05  # family-wise, of one comparison: half for the metrics, half for the tiers
FAMILY_ALPHA = ALPHA / 2
MIN_PROCESSES = 5  # a side; below, there is no verdict
PAIRED_FROM = 8  # pairs; below, Welch's test has more power on the same interleaved data
POWER = 0.80  # at which the smallest visible slowdown is stated
SAME_WITHIN = 2.0  # times the margin: what SAME has been shown not to exceed


@dataclass(frozen=True, slots=True)
class Change:
    """Estimated ln(NEW / BASE) of time, its standard error and degrees of freedom; equal shapes."""

    d: Floats
    se: Floats
    df: Floats

    def p_above(self, bound: Floats) -> Floats:
        """P value of H0: the true change is at most `bound`; exact where nothing varies."""
        return _tail(self.d - bound, self.se, self.df)

    def p_below(self, bound: Floats) -> Floats:
        """P value of H0: the true change is at least `bound`."""
        return _tail(bound - self.d, self.se, self.df)

    def upper(self, probability: float) -> Floats:
        """One-sided confidence bound; the lower one for a probability below one half."""
        quantile: Floats = special.stdtrit(self.df, probability)
        return self.d + quantile * self.se


@dataclass(frozen=True, slots=True)
class Decision:
    """What the tests of one family say; arrays of one shape, the last axis the family."""

    p_slower: Floats
    p_slower_adjusted: Floats
    p_faster_adjusted: Floats
    rank: Ints  # of p_slower in its family, from 1
    slower: Bools
    faster: Bools
    same: Bools


def paired(base: Floats, new: Floats) -> Change:
    """Test on the differences of pairs: float64 [..., P] each, P pairs."""
    differences = new - base
    pairs = base.shape[-1]
    se = differences.std(-1, ddof=1) / np.sqrt(pairs)
    return Change(differences.mean(-1), _no_rounding(se), np.full_like(se, pairs - 1.0))


def welch(base: Floats, new: Floats, floor: tuple[Floats, Floats] | None = None) -> Change:
    """Welch's test: float64 [..., P] and [..., Q].

    `floor` is the variance that two sessions add to a difference, and its degrees of freedom; it
    enters the standard error and, by Satterthwaite's formula, the degrees of freedom.
    """
    terms: list[tuple[Floats, Floats]] = [
        (side.var(-1, ddof=1) / side.shape[-1], np.array(side.shape[-1] - 1.0))
        for side in (base, new)
    ]
    if floor is not None:
        terms.append(floor)
    total: Floats = np.asarray(sum(variance for variance, _ in terms))
    squares: Floats = np.asarray(sum(variance**2 / df for variance, df in terms))
    alike = float(base.shape[-1] + new.shape[-1] - 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        df: Floats = np.where(squares > 0, total**2 / squares, alike)
    return Change(new.mean(-1) - base.mean(-1), _no_rounding(np.sqrt(total)), df)


def change(
    base: Floats, new: Floats, *, interleaved: bool, floor: tuple[Floats, Floats] | None = None
) -> Change:
    """The test that the design and the number of processes call for, never the smaller p.

    Raises:
        ValueError: fewer than `MIN_PROCESSES` on a side.
    """
    fewest = min(base.shape[-1], new.shape[-1])
    if fewest < MIN_PROCESSES:
        raise ValueError(f"{MIN_PROCESSES} processes a side needed, got {fewest}")
    if interleaved and fewest >= PAIRED_FROM:
        return paired(base, new)
    return welch(base, new, None if interleaved else floor)


def noise_floor(sessions: Floats) -> tuple[Floats, Floats]:
    """Variance that two sessions add to a difference, beyond their processes, and its df.

    `sessions` is float64 [K, ..., P]: K sessions of the same code on one machine. Twice the
    variance of the session means, less what the spread of processes explains of it.
    """
    explained = (sessions.var(-1, ddof=1) / sessions.shape[-1]).mean(0)
    between = sessions.mean(-1).var(0, ddof=1)
    variance: Floats = 2 * np.maximum(between - explained, 0.0)
    return variance, np.full(variance.shape, len(sessions) - 1.0)


def decide(changes: Change, margins: Floats, alpha: float = FAMILY_ALPHA) -> Decision:
    """Test one family; `margins` are logs, ln(1 + m), broadcast against the changes.

    SLOWER and FASTER are each corrected over the family. SAME is two one-sided tests at 5 % each
    against ±ln(1 + 2 m), and says of one metric what its interval says: it needs no correction,
    since it never turns a comparison red.
    """
    p_slower = changes.p_above(margins)
    slower_adjusted, rank = holm(p_slower)
    faster_adjusted, _ = holm(changes.p_below(-margins))
    within = np.log1p(SAME_WITHIN * np.expm1(margins))
    same = (changes.upper(0.95) < within) & (changes.upper(0.05) > -within)
    return Decision(
        p_slower=p_slower,
        p_slower_adjusted=slower_adjusted,
        p_faster_adjusted=faster_adjusted,
        rank=rank,
        slower=slower_adjusted <= alpha,
        faster=faster_adjusted <= alpha,
        same=same,
    )


def holm(p: Floats) -> tuple[Floats, Ints]:
    """Holm-adjusted p values over the last axis, and each one's rank, from 1."""
    tests: int = p.shape[-1]
    order: Ints = np.argsort(p, axis=-1, kind="stable")
    steps: Floats = np.take_along_axis(p, order, -1) * (tests - np.arange(tests))
    adjusted, rank = np.empty_like(p), np.empty(p.shape, dtype=np.int64)
    monotone: Floats = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    np.put_along_axis(adjusted, order, monotone, -1)
    np.put_along_axis(rank, order, np.arange(1, tests + 1) + np.zeros_like(order), -1)
    return adjusted, rank


def smallest_visible(
    changes: Change, margins: Floats, tests: int, alpha: float = FAMILY_ALPHA
) -> Floats:
    """Slowdown, as a share, that is flagged with 80 % power at the hardest step of Holm (MDE80).

    From the noncentral t distribution, with a median-unbiased standard error; the textbook sum of
    two quantiles promises too much.
    """
    unbiased = changes.se * np.sqrt(changes.df / (2 * special.gammaincinv(changes.df / 2, 0.5)))
    shift: Floats = _noncentrality(changes.df, alpha / max(tests, 1))
    visible: Floats = np.expm1(margins + shift * unbiased)
    return visible


def _noncentrality(df: Floats, level: float) -> Floats:
    """Shift at which a t test of this level has `POWER`; solved once for each distinct df."""
    rounded, back = np.unique(np.round(df, 1), return_inverse=True)
    critical: Floats = special.stdtrit(rounded, 1 - level)
    low: Floats = np.zeros_like(rounded)
    high: Floats = 4 * critical + 10.0
    for _ in range(50):
        middle: Floats = (low + high) / 2
        enough = special.nctdtr(rounded, middle, critical) <= 1 - POWER
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    found: Floats = high[back].reshape(np.shape(df))
    return found


def _tail(distance: Floats, se: Floats, df: Floats) -> Floats:
    """P(T > distance / se); without any spread the distance alone decides."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p: Floats = special.stdtr(df, -distance / se)
    return np.where(se > 0, p, np.where(distance > 0, 0.0, 1.0))


def _no_rounding(se: Floats) -> Floats:
    """Equal values have a spread of 1e-17 in floating point, which is none."""
    return np.where(se > 1e-12, se, 0.0)  # noqa: PLR2004  far below any clock's resolution

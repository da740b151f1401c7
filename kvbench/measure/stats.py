"""How far a number can be trusted: intervals, warm-up cuts, autocorrelation.

Two levels are kept apart. Samples inside one process decide when that process has sampled
enough; processes decide what the interval of a row is, because samples of one process share its
page placement, its core and its minute, and so are no independent replicates.
Does not know what was measured, or in which unit.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MISS = 0.05  # chance that an interval does not hold the true value
EXACT_BELOW = 200  # samples; above, the normal approximation of the ranks is off by less than one
MAD_SLOW = 10.0  # a sample this many MAD slower than the median counts as slow
LEAST_PROCESSES_FOR_RANKS = 6  # the range of 5 values holds the median with 93.75 %, of 6 96.9 %
MSER_BATCH = 5  # White 1997: MSER-5 averages batches of five before it looks for the cut
DRIFT_LIMIT = 0.10  # a run whose fitted line still moves by this share of its mean is not steady,
DRIFT_CERTAIN = 3.0  # if the slope is this many standard errors from none

# Effective samples below which a percentile is not stated: the expected number of samples beyond
# it is then under ten, and what is printed would be little more than the maximum.
LEAST_FOR_PERCENTILE = {50.0: 20, 90.0: 100, 99.0: 1_000, 99.9: 10_000}


def median_interval(samples: Floats) -> tuple[float, float]:
    """The 95 % confidence interval of the median from order statistics; no shape is assumed.

    Infinite below six samples, where no pair of ranks covers the median with 95 %.
    """
    ordered, n = np.sort(samples), len(samples)
    if n < LEAST_PROCESSES_FOR_RANKS:
        return -math.inf, math.inf
    rank = _low_rank(n)
    return float(ordered[rank]), float(ordered[n - 1 - rank])


def _low_rank(n: int) -> int:
    """Largest k with P(median < k-th smallest) <= MISS / 2, counted from 0."""
    if n > EXACT_BELOW:
        return max(0, math.floor(n / 2 - 1.96 * math.sqrt(n) / 2) - 1)
    tail, total = 0, 2**n
    for k in range(n):
        tail += math.comb(n, k)
        if 2 * tail > MISS * total:
            return k - 1
    raise AssertionError("a binomial tail reaches one half")


def relative_half_width(samples: Floats) -> float:
    """Half the 95 % interval of the median over the median, widened for autocorrelation."""
    low, high = median_interval(samples)
    if not math.isfinite(high - low):
        return math.inf
    widening = math.sqrt(len(samples) / effective_count(samples))
    return (high - low) / 2 / float(np.median(samples)) * widening


def autocorrelation(samples: Floats) -> float:
    """Lag-1 autocorrelation, 0 for a constant series or fewer than three samples."""
    if len(samples) < 3:  # noqa: PLR2004  two points always lie on a line
        return 0.0
    centred = samples - samples.mean()
    power = float(centred @ centred)
    return float(centred[1:] @ centred[:-1]) / power if power > 0 else 0.0


def effective_count(samples: Floats) -> float:
    """How many independent samples these are worth: n (1 - r) / (1 + r) for r > 0.

    Kalibera & Jones, "Rigorous benchmarking in reasonable time", ISMM 2013. Never above n: a
    negative correlation is no licence to claim more samples than there are.
    """
    r = min(max(autocorrelation(samples), 0.0), 0.99)
    return max(1.0, len(samples) * (1 - r) / (1 + r))


def warmup_cut(samples: Floats) -> int:
    """How many leading samples to drop: MSER-5, at most half of them.

    Drops the prefix of batches that minimises the standard error of the mean of the rest.
    """
    batches = len(samples) // MSER_BATCH
    if batches < 4:  # noqa: PLR2004  fewer batches have no variance worth minimising
        return 0
    means = samples[: batches * MSER_BATCH].reshape(batches, MSER_BATCH).mean(axis=1)
    errors = [float(means[k:].var()) / (batches - k) for k in range(batches // 2 + 1)]
    return int(np.argmin(errors)) * MSER_BATCH


def is_steady(samples: Floats) -> bool:
    """Whether no line fits that moves by `DRIFT_LIMIT` of the mean and is more than noise.

    The slope's standard error is widened for the autocorrelation of what the line leaves over: a
    series that wanders has a slope in any short stretch.
    """
    n = len(samples)
    if n < 4:  # noqa: PLR2004  three points leave one degree of freedom for the noise
        return True
    x = np.arange(n) - (n - 1) / 2
    slope = float(x @ samples) / float(x @ x)
    if abs(slope) * (n - 1) < DRIFT_LIMIT * float(samples.mean()):
        return True
    rest = samples - samples.mean() - slope * x
    error = math.sqrt(float(rest @ rest) / (n - 2) / float(x @ x))
    error *= math.sqrt(n / effective_count(rest))
    return abs(slope) < DRIFT_CERTAIN * error


def slow_fraction(rates: Floats) -> float:
    """Share of samples slower than the median rate by more than ten MAD: a second, slow mode."""
    centre = float(np.median(rates))
    mad = float(np.median(np.abs(rates - centre)))
    return float(np.mean(rates < centre - MAD_SLOW * mad)) if mad > 0 else 0.0


def process_interval(values: Sequence[float]) -> tuple[float, float, float, str] | None:
    """Median of process values with its 95 % interval: (median, low, high, method).

    From six processes on the interval is that of order statistics; below, a t interval on the
    logarithms. None for one process: no spread between processes was seen.
    """
    if len(values) < 2:  # noqa: PLR2004
        return None
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    median = float(np.median(ordered))
    if len(values) >= LEAST_PROCESSES_FOR_RANKS:
        low, high = median_interval(ordered)
        return median, low, high, f"order statistics of {len(values)} processes, 95 %"
    logs = np.log(ordered)
    half = _t_half_width(logs)
    centre = float(logs.mean())
    # With a skewed handful the median can lie just outside; an interval that leaves out the
    # number it belongs to would be absurd in print.
    low, high = math.exp(centre - half), math.exp(centre + half)
    return (
        median,
        min(low, median),
        max(high, median),
        f"t on logs of {len(values)} processes, 95 %",
    )


def ratio_half_width(base: Sequence[float], new: Sequence[float]) -> float:
    """Half-width of the 95 % t interval of mean ln(new / base) of pairs; infinite below two."""
    if len(base) < 2:  # noqa: PLR2004
        return math.inf
    ratios = np.asarray(new, dtype=np.float64) / np.asarray(base, dtype=np.float64)
    return _t_half_width(np.log(ratios))


def _t_half_width(values: Floats) -> float:
    # 0.5 s that not every command spends
    from scipy.special import stdtrit  # noqa: PLC0415  # pyright: ignore[reportMissingTypeStubs]

    quantile = float(stdtrit(len(values) - 1, 1 - MISS / 2))
    return quantile * float(values.std(ddof=1)) / math.sqrt(len(values))

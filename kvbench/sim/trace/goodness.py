"""How like two traces are: distances between their distributions, and between their LRU curves."""

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvbench.sim.columns import Columns
from kvbench.sim.curve import NEVER, Curve, lru_curve, stack_distances
from kvbench.sim.trace.stats import Ideal, ideal_rates, reuse_gaps_s

F64 = NDArray[np.float64]


class Goodness(msgspec.Struct, frozen=True, kw_only=True):
    """Kolmogorov-Smirnov distances (0: alike, 1: disjoint), then hit rates. None: nothing reused.

    A KS distance is the largest difference between two cumulative distributions. Of two samples of
    one distribution with n values each it is below 1.36 sqrt(2 / n) in 95 of 100 cases, but uses
    of blocks come in runs, a whole prefix at a time, so that for reuse n is the requests.
    """

    input_tokens: float
    output_tokens: float
    inter_arrival: float  # of all requests; 0 s counts
    reuse_distance: float | None  # other blocks between two uses of one
    reuse_time: float | None  # seconds between two uses
    first_reuse_time: float | None  # seconds from the first use to the second
    curve_difference: float | None  # largest difference of LRU block hit rates, any capacity
    ideal: Ideal | None
    ideal_of_twin: Ideal | None


def goodness_of_fit(real: Columns, twin: Columns) -> Goodness:
    """How a twin differs from the trace that it was fitted to, over as many requests of both."""
    count = min(real.requests, twin.requests)
    real, twin = real.first(count), twin.first(count)
    lengths = {
        "input_tokens": ks_distance(real.input_tokens, twin.input_tokens),
        "output_tokens": ks_distance(real.output_tokens, twin.output_tokens),
        "inter_arrival": ks_distance(np.diff(real.arrival_s), np.diff(twin.arrival_s)),
    }
    curve, other = (lru_curve(each) if each.has_blocks else None for each in (real, twin))
    if curve is None or other is None:
        return Goodness(
            **lengths,
            reuse_distance=None,
            reuse_time=None,
            first_reuse_time=None,
            curve_difference=None,
            ideal=None,
            ideal_of_twin=None,
        )
    distances = [each[each != NEVER] for each in (stack_distances(real), stack_distances(twin))]
    gaps_s, first_s = zip(reuse_gaps_s(real), reuse_gaps_s(twin), strict=True)
    return Goodness(
        **lengths,
        reuse_distance=_ks_or_none(*distances),
        reuse_time=_ks_or_none(*gaps_s),
        first_reuse_time=_ks_or_none(*first_s),
        curve_difference=_curve_difference(curve, other),
        ideal=ideal_rates(real, curve),
        ideal_of_twin=ideal_rates(twin, other),
    )


def ks_distance(one: NDArray[np.number], other: NDArray[np.number]) -> float:
    """Largest difference between the empirical cumulative distributions; neither may be empty."""
    one, other = np.sort(one), np.sort(other)
    values = np.concatenate((one, other))
    shares = [np.searchsorted(each, values, side="right") / len(each) for each in (one, other)]
    return float(np.max(np.abs(shares[0] - shares[1])))


def _ks_or_none(one: NDArray[np.number], other: NDArray[np.number]) -> float | None:
    return ks_distance(one, other) if len(one) and len(other) else None


def _curve_difference(one: Curve, other: Curve) -> float:
    size = max(len(one.block_hits), len(other.block_hits))
    rates = [
        np.pad(each.block_hits, (0, size - len(each.block_hits)), mode="edge") / each.references
        for each in (one, other)
    ]
    return float(np.max(np.abs(rates[0] - rates[1])))

"""Latencies of single operations as HdrHistograms, which merge over processes without loss.

Three significant digits from 1 ns to one hour. The percentiles that are stated, and the count
that each one needs, are decided in `summarise`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray

from kvbench.measure.result import Latency
from kvbench.measure.stats import LEAST_FOR_PERCENTILE

LOWEST_NS, HIGHEST_NS, DIGITS = 1, 3_600 * 10**9, 3
S_PER_NS = 1e-9
_LIBRARY: Any = HdrHistogram


def encode(latencies_ns: NDArray[np.int64]) -> str:
    """The histogram of int64 [n] nanoseconds: compressed, base64."""
    histogram = _new()
    values, counts = np.unique(_rounded(latencies_ns), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)
    return _encoded(histogram)


def summarise(
    histograms: Sequence[str], *, effective_count: float
) -> tuple[Latency, dict[str, str]]:
    """Percentiles over all processes, and why each missing one is missing.

    A percentile is stated only if `effective_count` independent samples leave at least ten
    beyond it; an operation's latency depends on the one before, so 1000 samples are fewer.
    """
    merged = _new()
    for text in histograms:
        merged.add(_LIBRARY.decode(text))
    stated: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    for percentile, least in LEAST_FOR_PERCENTILE.items():
        name = f"p{percentile:g}".replace(".", "_")
        if effective_count >= least:
            stated[name] = merged.get_value_at_percentile(percentile) * S_PER_NS
        else:
            stated[name] = None
            missing[f"latency_s.{name}"] = (
                f"{effective_count:.0f} effective samples, {least} needed: raise --time-limit"
            )
    return (
        Latency(
            count=merged.get_total_count(),
            effective_count=effective_count,
            mean=merged.get_mean_value() * S_PER_NS,
            max=merged.get_max_value() * S_PER_NS,
            histogram=_encoded(merged),
            **stated,
        ),
        missing,
    )


def _new() -> Any:  # noqa: ANN401  the library has no types
    return _LIBRARY(LOWEST_NS, HIGHEST_NS, DIGITS)


def _encoded(histogram: Any) -> str:  # noqa: ANN401  the library has no types
    return str(histogram.encode().decode("ascii"))


def thin(values: Sequence[float], most: int) -> list[float]:
    """At most `most` of the values, evenly spaced, in their order."""
    if len(values) <= most:
        return list(values)
    return [values[int(at)] for at in np.linspace(0, len(values) - 1, most)]


def _rounded(latencies_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Down to four significant digits: far fewer values to record.

    Down, because the histogram answers with the upper end of a bucket: together within 0.1 %.
    """
    clipped = np.clip(latencies_ns, LOWEST_NS, HIGHEST_NS).astype(np.float64)
    scale = 10.0 ** np.maximum(np.floor(np.log10(clipped)) - DIGITS, 0)
    rounded: NDArray[np.int64] = (np.floor(clipped / scale) * scale).astype(np.int64)
    return rounded

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvbench.measure.latency import encode, summarise, thin
from kvbench.measure.stats import LEAST_FOR_PERCENTILE

PLENTY = 1e6  # effective samples
Int64s = NDArray[np.int64]
SHAPES: dict[str, Callable[[np.random.Generator], NDArray[np.float64]]] = {
    "a drive": lambda rng: rng.lognormal(math.log(90e3), 0.3, 100_000),
    "heavy tail": lambda rng: rng.lognormal(math.log(1e6), 2.0, 100_000),
    "two modes": lambda rng: (
        np.where(rng.random(100_000) < 0.98, 1e5, 8e6) * rng.lognormal(0, 0.05, 100_000)
    ),
    "a few nanoseconds": lambda rng: rng.uniform(1, 400, 20_000),
}


def drawn(shape: str) -> Int64s:
    values = SHAPES[shape](np.random.default_rng(5))
    return np.maximum(values, 1).astype(np.int64)


def stated(*parts: Int64s, effective_count: float = PLENTY) -> dict[str, float | None]:
    latency, _ = summarise([encode(part) for part in parts], effective_count=effective_count)
    return {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99, "p99_9": latency.p99_9}


@pytest.mark.parametrize("shape", SHAPES)
def test_percentiles_are_those_of_the_samples_to_a_thousandth(shape: str) -> None:
    samples = drawn(shape)
    # The smallest sample that so many per cent of them do not exceed, as the histogram counts.
    ordered, n = np.sort(samples), len(samples)
    ranks = {"p50": n // 2, "p90": n * 9 // 10, "p99": n * 99 // 100, "p99_9": n * 999 // 1000}
    for name, found in stated(samples).items():
        assert found == pytest.approx(ordered[ranks[name] - 1] * 1e-9, rel=1e-3), name


# At the edges of the histogram's buckets, and where rounding to fewer digits would add the most.
@pytest.mark.parametrize(
    "latency_ns",
    [1, 2047, 2048, 7473, 1_000_999, 1_077_517_880, 100_739_113_058, 3_600 * 10**9],
)
def test_one_latency_is_kept_to_a_thousandth_whatever_its_size(latency_ns: int) -> None:
    found = stated(np.array([latency_ns]))
    assert found["p50"] == pytest.approx(latency_ns * 1e-9, rel=1e-3)


def test_mean_maximum_and_count_are_those_of_the_samples() -> None:
    samples = drawn("two modes")
    latency, _ = summarise([encode(samples)], effective_count=PLENTY)
    assert latency.count == len(samples)
    assert latency.mean == pytest.approx(samples.mean() * 1e-9, rel=1e-3)
    assert latency.max == pytest.approx(samples.max() * 1e-9, rel=1e-3)


@pytest.mark.parametrize("pieces", [2, 7])
def test_processes_together_are_exactly_as_if_one_had_seen_it_all(pieces: int) -> None:
    samples = drawn("heavy tail")
    parts = np.split(samples, np.sort(np.random.default_rng(1).integers(0, len(samples), pieces)))
    together, _ = summarise([encode(part) for part in parts if len(part)], effective_count=PLENTY)
    alone, _ = summarise([encode(samples)], effective_count=PLENTY)
    assert together == alone


def test_a_slow_process_is_in_the_tail_and_not_averaged_away() -> None:
    fast, slow = np.full(9_000, 100_000), np.full(1_000, 5_000_000)
    found = stated(fast, slow)
    assert found["p50"] == pytest.approx(100e-6, rel=1e-3)
    assert found["p90"] == pytest.approx(100e-6, rel=1e-3)
    assert found["p99"] == pytest.approx(5e-3, rel=1e-3)


def test_the_merged_histogram_can_be_merged_again() -> None:
    samples = drawn("a drive")
    once, _ = summarise([encode(samples)], effective_count=PLENTY)
    assert once.histogram is not None
    twice, _ = summarise([once.histogram], effective_count=PLENTY)
    assert twice == once


@pytest.mark.parametrize(("name", "percentile"), [("p50", 50.0), ("p90", 90.0), ("p99", 99.0)])
def test_a_percentile_is_stated_from_its_least_count_on_and_not_before(
    name: str, percentile: float
) -> None:
    least = LEAST_FOR_PERCENTILE[percentile]
    samples = np.full(100_000, 12_345)
    assert stated(samples, effective_count=least)[name] == pytest.approx(12.345e-6, rel=1e-3)
    assert stated(samples, effective_count=least - 0.5)[name] is None


def test_many_samples_that_are_worth_few_give_no_tail_and_each_gap_says_why() -> None:
    latency, missing = summarise([encode(drawn("a drive"))], effective_count=150.4)
    assert (latency.count, latency.effective_count) == (100_000, 150.4)
    assert latency.p50 is not None
    assert latency.p90 is not None
    assert (latency.p99, latency.p99_9) == (None, None)
    assert missing == {
        "latency_s.p99": "150 effective samples, 1000 needed: raise --time-limit",
        "latency_s.p99_9": "150 effective samples, 10000 needed: raise --time-limit",
    }


def test_with_enough_samples_nothing_is_missing() -> None:
    latency, missing = summarise([encode(drawn("a drive"))], effective_count=10_000)
    assert missing == {}
    assert latency.p99_9 is not None


@pytest.mark.parametrize(("latency_ns", "kept_s"), [(0, 1e-9), (-5, 1e-9), (10**14, 3600.0)])
def test_what_lies_outside_the_histogram_counts_at_its_end(latency_ns: int, kept_s: float) -> None:
    latency, _ = summarise([encode(np.array([latency_ns]))], effective_count=PLENTY)
    assert latency.count == 1
    assert latency.max == pytest.approx(kept_s, rel=1e-3)


def test_a_long_run_encodes_small() -> None:
    assert len(encode(drawn("heavy tail"))) < 20_000


@given(values=st.lists(st.floats(0, 1), max_size=50), most=st.integers(1, 60))
def test_thinned_samples_are_some_of_them_in_their_order_both_ends_kept(
    values: list[float], most: int
) -> None:
    numbered = [index + value / 2 for index, value in enumerate(values)]  # distinct, ascending
    kept = thin(numbered, most)
    assert len(kept) == min(most, len(numbered))
    assert kept == sorted(set(kept) & set(numbered))
    if len(numbered) >= 2 and most >= 2:
        assert (kept[0], kept[-1]) == (numbered[0], numbered[-1])


def test_thinned_samples_are_evenly_spaced() -> None:
    gaps = np.diff(thin([float(n) for n in range(10_000)], 1000))
    assert (gaps.min(), gaps.max()) == (10.0, 11.0)

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from kvbench.measure import stats


def test_the_interval_of_a_median_covers_it_as_often_as_promised() -> None:
    generator = np.random.default_rng(1)
    for n in (6, 12, 60, 400):
        draws = generator.lognormal(0.0, 0.3, (2000, n))  # skewed; the true median is 1
        covered = sum(low <= 1.0 <= high for low, high in map(stats.median_interval, draws))
        # 95 % promised; the interval is conservative for small n. 3 sd of 2000 tries are 1.5 %.
        assert 0.935 <= covered / 2000 <= 0.995


def test_five_samples_have_no_95_percent_interval() -> None:
    assert stats.median_interval(np.arange(5.0)) == (-math.inf, math.inf)
    assert stats.relative_half_width(np.arange(5.0)) == math.inf


def test_six_samples_have_their_range_as_interval() -> None:
    assert stats.median_interval(np.array([5.0, 1.0, 3.0, 2.0, 6.0, 4.0])) == (1.0, 6.0)


def test_correlated_samples_count_for_fewer() -> None:
    generator = np.random.default_rng(2)
    noise = generator.standard_normal(20_000)
    series = np.empty_like(noise)
    series[0] = noise[0]
    for k in range(1, len(noise)):
        series[k] = 0.8 * series[k - 1] + noise[k]
    # Theory for AR(1) with r = 0.8: n * 0.2 / 1.8.
    assert stats.effective_count(series) == pytest.approx(20_000 / 9, rel=0.15)
    assert stats.effective_count(noise) == pytest.approx(20_000, rel=0.05)


def test_alternating_samples_never_count_for_more_than_they_are() -> None:
    assert stats.effective_count(np.array([1.0, 2.0] * 50)) == 100


def test_a_slow_start_is_cut_and_a_flat_run_is_not() -> None:
    generator = np.random.default_rng(3)
    flat = 100 + generator.standard_normal(100)
    slow_start = flat.copy()
    slow_start[:15] -= np.linspace(50, 5, 15)
    assert 10 <= stats.warmup_cut(slow_start) <= 25
    assert stats.warmup_cut(flat) <= 50
    assert abs(np.median(slow_start[stats.warmup_cut(slow_start) :]) - 100) < 1


def test_a_run_that_keeps_moving_is_not_steady() -> None:
    assert not stats.is_steady(np.linspace(100, 120, 50))
    assert stats.is_steady(np.linspace(100, 105, 50))


def test_noise_that_wanders_is_seldom_called_a_drift_and_a_drift_in_noise_is_seen() -> None:
    generator = np.random.default_rng(4)

    def wandering() -> stats.Floats:
        steps = generator.standard_normal(60)
        series = [steps[0]]
        for step in steps[1:]:
            series.append(0.6 * series[-1] + 0.8 * step)
        return 100 + 8 * np.array(series)

    false_alarms = sum(not stats.is_steady(wandering()) for _ in range(300))
    seen = sum(not stats.is_steady(wandering() + np.linspace(-30, 30, 60)) for _ in range(300))
    assert false_alarms <= 30
    assert seen >= 270


def test_a_second_slow_mode_is_seen() -> None:
    rates = np.concatenate([100 + np.linspace(-1, 1, 90), np.full(10, 50.0)])
    assert stats.slow_fraction(rates) == pytest.approx(0.10)
    assert stats.slow_fraction(np.full(10, 7.0)) == 0.0


def test_one_process_has_no_interval() -> None:
    assert stats.process_interval([1.0]) is None


def test_the_interval_over_three_processes_is_the_t_interval_of_their_logarithms() -> None:
    found = stats.process_interval([90.0, 100.0, 110.0])
    assert found is not None
    median, low, high, _ = found
    logs = np.log([90.0, 100.0, 110.0])
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)  # t table, 2 degrees of freedom
    assert median == 100.0
    assert low == pytest.approx(math.exp(logs.mean() - half), rel=1e-6)
    assert high == pytest.approx(math.exp(logs.mean() + half), rel=1e-6)


@given(st.lists(st.floats(1e6, 1e12), min_size=2, max_size=30))
def test_an_interval_holds_the_figure_it_belongs_to(values: list[float]) -> None:
    found = stats.process_interval(values)
    assert found is not None
    median, low, high, _ = found
    assert low <= median <= high


def test_the_half_width_of_a_ratio_is_that_of_a_t_interval_and_shrinks_with_pairs() -> None:
    base = [100.0, 102.0, 98.0, 101.0, 99.0]
    new = [110.0, 111.0, 109.0, 108.0, 112.0]
    logs = [math.log(b / a) for a, b in zip(base, new, strict=True)]
    expected = scipy_stats.t.ppf(0.975, 4) * np.std(logs, ddof=1) / math.sqrt(5)
    assert stats.ratio_half_width(base, new) == pytest.approx(expected, rel=1e-9)
    assert stats.ratio_half_width(base * 4, new * 4) < expected / 2
    assert stats.ratio_half_width(base, [2 * each for each in base]) == pytest.approx(0, abs=1e-12)
    assert stats.ratio_half_width([1.0], [2.0]) == math.inf

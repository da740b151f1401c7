"""The test itself, against scipy's own tests, exact cases and simulated truth."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvbench.compare.gate import (
    FAMILY_ALPHA,
    Change,
    change,
    decide,
    holm,
    noise_floor,
    paired,
    smallest_visible,
    welch,
)

ZERO = np.array(0.0)


def draw(*shape: int, seed: int = 1, sd: float = 0.01) -> np.ndarray:
    values: np.ndarray = sd * np.random.default_rng(seed).standard_normal(shape)
    return values


def test_the_paired_test_is_scipys() -> None:
    base, new = draw(10, seed=1), draw(10, seed=2) + 0.01
    want: Any = stats.ttest_rel(new, base, alternative="greater")
    assert paired(base, new).p_above(ZERO) == pytest.approx(want.pvalue, rel=1e-9)


def test_welchs_test_is_scipys_with_unequal_sizes() -> None:
    base, new = draw(6, seed=1), draw(9, seed=2, sd=0.03) + 0.01
    want: Any = stats.ttest_ind(new, base, equal_var=False, alternative="greater")
    assert welch(base, new).p_above(ZERO) == pytest.approx(want.pvalue, rel=1e-9)


def test_a_slowdown_of_exactly_the_margin_is_not_flagged() -> None:
    margin = np.log1p(np.array([0.05]))
    slower = draw(200, 1, 10, seed=3) + np.log1p(0.05)
    decided = decide(change(draw(200, 1, 10, seed=4), slower, interleaved=True), margin)
    assert decided.slower.mean() <= 0.06  # nominal: 0.025


def test_a_larger_slowdown_is_flagged_and_its_mirror_image_is_faster() -> None:
    margin = np.log1p(np.array([0.03]))
    base, new = draw(1, 10, seed=5), draw(1, 10, seed=6) + 0.10
    assert decide(change(base, new, interleaved=True), margin).slower.all()
    assert decide(change(new, base, interleaved=True), margin).faster.all()
    assert not decide(change(new, base, interleaved=True), margin).slower.any()


def test_the_number_of_pairs_decides_between_the_tests_never_the_data() -> None:
    for processes, df in ((7, None), (8, 7.0)):
        base, new = draw(processes, seed=7), draw(processes, seed=8)
        found = change(base, new, interleaved=True).df
        assert float(found) == df if df else float(found) != processes - 1


def test_fewer_than_five_processes_are_refused() -> None:
    with pytest.raises(ValueError, match="5 processes a side needed, got 4"):
        change(draw(4), draw(10), interleaved=False)


@pytest.mark.parametrize(("shift", "slower"), [(0.0, False), (0.0099, False), (0.0101, True)])
def test_without_any_spread_the_margin_alone_decides(shift: float, slower: bool) -> None:
    base = np.full((1, 10), 3.3)
    found = change(base, base + shift, interleaved=True)
    decided = decide(found, np.array([0.01]))
    assert decided.slower.tolist() == [slower]
    assert decided.p_slower.tolist() in ([0.0], [1.0])


def test_same_needs_both_bounds() -> None:
    # Faster by far but too noisy to be FASTER: not slower is not the same.
    base = draw(1, 10, seed=9, sd=0.15)
    decided = decide(
        change(base, draw(1, 10, seed=10, sd=0.15) - 0.2, interleaved=True), ZERO + 0.05
    )
    assert not decided.same.any()
    assert decide(change(base, base + 0.001, interleaved=True), ZERO + 0.05).same.all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_holm_agrees_with_its_definition(values: list[float]) -> None:
    adjusted, rank = holm(np.array(values))
    order = sorted(range(len(values)), key=lambda at: values[at])
    largest = 0.0
    for step, at in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - step) * values[at]))
        assert adjusted[at] == pytest.approx(largest)
        assert rank[at] == step + 1


def test_holm_is_scipys_family_wise_error_under_many_true_nulls() -> None:
    p = np.random.default_rng(11).random((4000, 30))
    assert (holm(p)[0] <= FAMILY_ALPHA).any(-1).mean() == pytest.approx(FAMILY_ALPHA, abs=0.008)


def test_the_floor_makes_two_sessions_of_one_machine_exchangeable() -> None:
    random = np.random.default_rng(12)
    offsets = 0.03 * random.standard_normal((2, 2000, 1))
    base, new = offsets + 0.01 * random.standard_normal((2, 2000, 10))
    history = 0.03 * random.standard_normal((8, 1)) + 0.01 * random.standard_normal((8, 10))
    variance, df = noise_floor(history)
    assert float(variance) == pytest.approx(2 * 0.03**2, rel=0.9)
    alone = welch(base, new).p_above(ZERO) < 0.05
    floored = welch(base, new, (variance, df)).p_above(ZERO) < 0.05
    assert alone.mean() > 0.3  # without it the day is called a regression
    assert floored.mean() < 0.10


def test_a_floor_of_machines_without_an_offset_is_nothing() -> None:
    variance, _ = noise_floor(draw(500, 8, seed=13).reshape(20, 25, 8))
    assert np.median(variance) < 0.2 * 2 * 0.01**2


@pytest.mark.parametrize("interleaved", [True, False])
def test_power_at_the_smallest_visible_slowdown_is_about_80_percent(interleaved: bool) -> None:
    margin, tests = np.log1p(0.03), 12
    base, new = draw(4000, 10, seed=14), draw(4000, 10, seed=15)
    visible = smallest_visible(
        change(base, new, interleaved=interleaved), np.full(4000, margin), tests
    )
    slowed = new + np.log1p(np.median(visible))
    p = change(base, slowed, interleaved=interleaved).p_above(np.array(margin))
    assert (p <= FAMILY_ALPHA / tests).mean() == pytest.approx(0.8, abs=0.05)


def test_the_smallest_visible_slowdown_is_finite_for_thousands_of_tests() -> None:
    few = Change(ZERO, ZERO + 0.01, ZERO + 4.0)
    assert 0.3 < float(smallest_visible(few, ZERO + 0.05, 5000)) < 1.0

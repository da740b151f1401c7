"""Summaries: definitions checked by hand on a few requests."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.sim.outcome import Outcome
from kvbench.sim.scenario import Objective
from kvbench.sim.summary import request_path, summarise
from tests.reports.simulations import SCENARIO, make_outcome


def four() -> Outcome:
    """Served: 2 of 4 blocks hit, none, all 4 (one token computed); then one refused."""
    outcome = make_outcome(4)
    hits = np.zeros((4, 5), np.int64)
    hits[0, :2] = 1
    hits[2, 4] = 4
    nan = math.nan
    requests = replace(
        outcome.requests,
        node=np.array([0, 1, 0, -1]),
        hit_blocks=hits,
        input_tokens=np.array([2_000, 1_600, 2_000, 9_000]),
        output_tokens=np.array([100, 50, 1, 70]),
        cached_tokens=np.array([1_024, 0, 1_999, 0]),
        queue_s=np.array([1.0, 2.0, 0.0, nan]),
        load_s=np.array([0.5, 0.0, 0.0, nan]),
        transfer_s=np.array([0.0, 0.0, 0.5, nan]),
        compute_s=np.array([0.5, 1.0, 0.5, nan]),
        hand_off_s=np.array([0.0, 0.0, 0.0, nan]),
        ttft_s=np.array([2.0, 3.0, 1.0, nan]),
        tpot_s=np.array([0.2, 0.05, nan, nan]),
    )
    return replace(outcome, requests=requests)


def test_hit_rates_are_over_what_was_served_in_blocks_and_in_tokens() -> None:
    it = summarise(four(), SCENARIO)

    assert it.block_hit_rate == pytest.approx((2 + 0 + 4) / 12)
    assert it.token_hit_rate == pytest.approx((1_024 + 1_999) / 5_600)


def test_sources_add_up_to_the_hit_rates() -> None:
    it = summarise(four(), SCENARIO)

    found = {each.name: each for each in it.sources}
    assert found["hbm"].block == pytest.approx(1 / 12)
    assert found["hbm"].token == pytest.approx(512 / 5_600)
    assert found["central"].token == pytest.approx(1_999 / 5_600)
    assert sum(each.block for each in it.sources) == pytest.approx(it.block_hit_rate or 0)
    assert sum(each.token for each in it.sources) == pytest.approx(it.token_hit_rate or 0)


def test_parts_of_the_critical_path_add_up_to_the_mean_ttft() -> None:
    it = summarise(four(), SCENARIO)

    assert it.parts_s is not None
    assert sum(msgspec.structs.astuple(it.parts_s)) == pytest.approx(it.ttft_s.mean)
    assert it.parts_s.queue == pytest.approx(1.0)


def test_goodput_counts_what_met_both_limits_and_a_lone_token_cannot_miss_tpot() -> None:
    scenario = msgspec.structs.replace(SCENARIO, objective=Objective(ttft_s=2.5, tpot_s=0.1))

    it = summarise(four(), scenario)

    assert it.good == 1  # the third; the first misses TPOT, the second TTFT, the fourth refused
    assert it.good_share == pytest.approx(1 / 4)
    assert it.goodput_per_s == pytest.approx(1 / 600)
    assert (it.served, it.refused) == (3, 1)


def test_cost_is_dollars_over_the_simulated_time_for_the_tokens_that_were_served() -> None:
    cost = summarise(four(), SCENARIO, dollars_per_hour=60.0).cost

    assert cost is not None
    dollars = 60.0 * 600 / 3600
    assert cost.per_million_tokens == pytest.approx(dollars * 1e6 / (5_600 + 151))
    assert cost.per_million_output_tokens == pytest.approx(dollars * 1e6 / 151)


def test_without_prices_there_is_no_cost_and_it_says_why() -> None:
    it = summarise(four(), SCENARIO)

    assert it.cost is None
    assert it.missing["cost"] == "no prices were given"


def test_a_percentile_without_ten_requests_beyond_it_is_missing_with_a_reason() -> None:
    few, many = summarise(make_outcome(110), SCENARIO), summarise(make_outcome(1_200), SCENARIO)

    assert few.ttft_s.p50 is not None
    assert few.ttft_s.p90 is None
    assert "99 requests have it, 100 needed" in few.missing["ttft_s.p90"]
    assert many.ttft_s.p99 is not None
    assert "ttft_s.p99" not in many.missing


def test_the_ttft_curve_never_falls_and_ends_at_the_slowest() -> None:
    outcome = make_outcome(1_200)
    curve = summarise(outcome, SCENARIO).ttft_curve

    shares, times = zip(*curve, strict=True)
    assert list(shares) == sorted(shares)
    assert list(times) == sorted(times)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert times[-1] == pytest.approx(np.nanmax(outcome.requests.ttft_s))


def test_utilisation_is_of_the_mean_and_of_the_busiest_node() -> None:
    busy = {each.name: each for each in summarise(four(), SCENARIO).busy}

    assert busy["prefill"].mean == pytest.approx(200 / 600)
    assert busy["prefill"].most == pytest.approx(300 / 600)
    assert busy["prefill"].bytes is None
    assert busy["dram read"].bytes == pytest.approx(4e9)
    assert "network" not in busy  # nothing went over it


def test_nothing_served_gives_no_figures_and_no_crash() -> None:
    outcome = four()
    nobody = replace(
        outcome.requests,
        node=np.full(4, -1),
        ttft_s=np.full(4, math.nan),
        tpot_s=np.full(4, math.nan),
    )

    it = summarise(replace(outcome, requests=nobody), SCENARIO, dollars_per_hour=1.0)

    assert it.served == 0
    assert (it.block_hit_rate, it.ttft_s.mean, it.parts_s, it.cost) == (None, None, None, None)
    assert it.missing["cost"] == "no request was served"


def test_a_request_that_was_refused_has_no_path() -> None:
    path = request_path(four(), 3)

    assert (path.node, path.parts_s, path.ttft_s) == (None, None, None)
    assert request_path(four(), 2).hit_blocks["central"] == 4
    with pytest.raises(UsageError, match="0 to 3"):
        request_path(four(), 4)

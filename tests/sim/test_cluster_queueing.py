"""A cluster that only waits and computes is a queue whose times are known from theory."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from kvbench.sim.cluster import simulate
from kvbench.sim.columns import Columns
from kvbench.sim.jit import COMPILES
from kvbench.sim.scenario import Decode, Prefill, Router
from tests.sim.clusters import columns, scenario

pytestmark = [
    pytest.mark.timeout(600),  # compiling takes a minute where nothing is on disk yet
    pytest.mark.skipif(not COMPILES, reason="needs numba: it would take minutes without"),
]

REQUESTS = 1_000_000  # of which the mean wait is known to about half a percent
UTILISATION = 0.5
TOLERANCE = 0.02
MEAN_TOKENS = 10_000  # long enough that whole tokens do not matter


def traffic(rate_per_s: float, tokens: NDArray[np.int32], seed: int) -> Columns:
    draw = np.random.default_rng(seed)
    arrival_s = np.cumsum(draw.exponential(1 / rate_per_s, len(tokens)))
    return columns(arrival_s.tolist(), tokens=tokens.tolist())


def exponential(seed: int) -> NDArray[np.int32]:
    drawn = np.random.default_rng(seed).exponential(MEAN_TOKENS, REQUESTS)
    return np.maximum(1, np.round(drawn)).astype(np.int32)


def erlang_c(servers: int, load: float) -> float:
    """The probability to wait."""
    first = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(first) + last)


ONE_SECOND = Prefill(fixed_s=0.0, per_token_s=1 / MEAN_TOKENS, per_token2_s=0.0)


def test_one_node_of_constant_work_waits_as_an_m_d_1_queue() -> None:
    tokens = np.full(REQUESTS, MEAN_TOKENS, np.int32)
    outcome = simulate(traffic(UTILISATION, tokens, 1), scenario(prefill=ONE_SECOND))
    expected_s = UTILISATION * 1.0 / (2 * (1 - UTILISATION))  # Pollaczek and Khinchine
    assert outcome.requests.queue_s.mean() == pytest.approx(expected_s, rel=TOLERANCE)
    busy = outcome.use.prefill_busy_s[0] / outcome.use.duration_s
    assert busy == pytest.approx(UTILISATION, rel=TOLERANCE)


def test_every_wait_is_that_of_lindleys_recurrence() -> None:
    trace = traffic(UTILISATION, exponential(2)[:5000], 3)
    queue_s = simulate(trace, scenario(prefill=ONE_SECOND)).requests.queue_s
    work_s = trace.input_tokens / MEAN_TOKENS
    expected_s = 0.0
    for i in range(1, 5000):
        gap_s = trace.arrival_s[i] - trace.arrival_s[i - 1]
        expected_s = max(0.0, expected_s + work_s[i - 1] - gap_s)
        assert queue_s[i] == pytest.approx(expected_s, abs=1e-6)


@pytest.mark.parametrize("nodes", [1, 3])
def test_nodes_that_take_the_least_work_wait_as_an_m_m_c_queue(nodes: int) -> None:
    trace = traffic(UTILISATION * nodes, exponential(4), 5)
    outcome = simulate(
        trace, scenario(nodes=nodes, prefill=ONE_SECOND, router=Router(name="least-work"))
    )
    # Rate and work are those that were drawn: what is tested is the queue, not the draw.
    work_s = trace.input_tokens.mean() / MEAN_TOKENS
    load = REQUESTS / trace.arrival_s[-1] * work_s
    expected_s = erlang_c(nodes, load) / (nodes - load) * work_s
    assert outcome.requests.queue_s.mean() == pytest.approx(expected_s, rel=TOLERANCE)


def test_littles_law_holds_for_requests_that_decode() -> None:
    draw = np.random.default_rng(6)
    count, rate_per_s = 100_000, 20.0
    trace = columns(
        np.cumsum(draw.exponential(1 / rate_per_s, count)).tolist(),
        tokens=[100] * count,
        outputs=draw.integers(2, 60, count).tolist(),
    )
    outcome = simulate(
        trace,
        scenario(
            nodes=2,
            router=Router(name="least-outstanding"),
            prefill=Prefill(fixed_s=0.01, per_token_s=0.0, per_token2_s=0.0),
            decode=Decode(fixed_s=0.005, per_sequence_s=0.0002, per_context_token_s=1e-7),
        ),
    )
    rows, duration_s = outcome.requests, outcome.use.duration_s
    # How many are in the cluster, seen at moments that have nothing to do with arrivals ...
    moments_s = np.linspace(0.02, 0.98, 200_003) * duration_s + rows.arrival_s[0]
    begun = np.searchsorted(rows.arrival_s, moments_s, side="right")
    ended = np.searchsorted(np.sort(rows.finish_s), moments_s, side="right")
    # ... is the rate at which they come, times how long each says that it took.
    stay_s = rows.ttft_s + rows.tpot_s * (rows.output_tokens - 1)
    expected = count / duration_s * stay_s.mean()
    assert (begun - ended).mean() == pytest.approx(expected, rel=TOLERANCE)

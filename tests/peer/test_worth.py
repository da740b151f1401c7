"""Whether to fetch or to recompute."""

import pytest

from kvbench.peer.worth import HYSTERESIS, Worth
from kvbench.units import MIB

PEER, PATH = b"p" * 16, "tcp"


def worth_of(recompute_s_per_block: float | None = 0.01, probe_s: float = 10.0) -> Worth:
    return Worth(recompute_s_per_block, latency_s=0.001, bytes_per_s=1e9, probe_s=probe_s)


def learn(worth: Worth, latency_s: float, bytes_per_s: float, pulls: int = 60) -> None:
    """Small pulls and large ones, as they come by turns."""
    estimate = worth.of(PEER, PATH)
    for number in range(pulls):
        size_bytes = (64 * 1024, 16 * MIB)[number % 2]
        estimate.took(size_bytes, latency_s + size_bytes / bytes_per_s)


@pytest.mark.parametrize(
    ("latency_s", "bytes_per_s"), [(0.0002, 5e9), (0.02, 1e8), (0.1, 12e6), (0.001, 1e9)]
)
def test_an_estimate_comes_to_what_pulls_really_take(latency_s: float, bytes_per_s: float) -> None:
    worth = worth_of()
    learn(worth, latency_s, bytes_per_s)
    for size_bytes in (64 * 1024, 4 * MIB, 16 * MIB):
        truth_s = latency_s + size_bytes / bytes_per_s
        assert worth.of(PEER, PATH).expected_s(size_bytes) == pytest.approx(truth_s, rel=0.3)


def test_a_transfer_that_is_faster_than_recomputing_is_worth_it() -> None:
    worth = worth_of(recompute_s_per_block=0.01)
    assert worth.asks(PEER, PATH, 16 * MIB, 16)


def test_a_transfer_that_is_slower_than_recomputing_is_not() -> None:
    worth = worth_of(recompute_s_per_block=0.01)
    learn(worth, 0.02, 12e6)
    assert not worth.asks(PEER, PATH, 16 * MIB, 16)


def test_without_a_cost_of_recomputing_every_fetch_is_worth_it() -> None:
    worth = worth_of(recompute_s_per_block=None)
    learn(worth, 1.0, 1e6)
    assert worth.asks(PEER, PATH, 16 * MIB, 1)


def test_latency_makes_few_blocks_not_worth_what_many_are() -> None:
    worth = worth_of(recompute_s_per_block=0.002)
    learn(worth, 0.02, 5e9)
    assert worth.asks(PEER, PATH, 64 * MIB, 64)
    assert not worth.asks(PEER, PATH, MIB, 1)


def test_the_answer_changes_back_only_when_fetching_is_clearly_better() -> None:
    worth = worth_of(recompute_s_per_block=1.0)
    estimate = worth.of(PEER, PATH)
    estimate.latency_s, estimate.bytes_per_s = 0.0, 1.0
    assert worth.asks(PEER, PATH, 99, 100)
    assert not worth.asks(PEER, PATH, 101, 100)
    assert not worth.asks(PEER, PATH, 99, 100), "it flutters"
    assert worth.asks(PEER, PATH, int(100 / HYSTERESIS) - 1, 100)
    assert worth.asks(PEER, PATH, 99, 100)


def test_a_pull_that_was_late_is_learned_from() -> None:
    worth = worth_of(recompute_s_per_block=0.01)
    for _ in range(10):
        worth.of(PEER, PATH).missed(16 * MIB, 2.0)
    assert not worth.asks(PEER, PATH, 16 * MIB, 16)


def test_a_pull_that_was_given_no_time_says_nothing() -> None:
    worth = worth_of()
    before_s = worth.of(PEER, PATH).expected_s(MIB)
    worth.of(PEER, PATH).missed(MIB, before_s / 2)
    assert worth.of(PEER, PATH).expected_s(MIB) == before_s


def test_a_peer_that_is_not_worth_it_is_tried_now_and_then_and_can_recover() -> None:
    worth = worth_of(recompute_s_per_block=0.01, probe_s=10.0)
    learn(worth, 0.5, 12e6)
    assert not worth.asks(PEER, PATH, 16 * MIB, 16)
    assert worth.probe_due(PEER, PATH, 100.0)
    assert not worth.probe_due(PEER, PATH, 109.0), "more than one in its time"
    assert worth.probe_due(PEER, PATH, 110.0)
    learn(worth, 0.0002, 5e9)
    assert worth.asks(PEER, PATH, 16 * MIB, 16)
    assert not worth.probe_due(PEER, PATH, 200.0), "nothing has to be tried any more"


def test_what_is_learned_of_one_path_or_peer_says_nothing_of_others() -> None:
    worth = worth_of(recompute_s_per_block=0.01)
    learn(worth, 0.5, 12e6)
    assert not worth.asks(PEER, PATH, 16 * MIB, 16)
    assert worth.asks(PEER, "shm", 16 * MIB, 16)
    assert worth.asks(b"q" * 16, PATH, 16 * MIB, 16)


def test_nothing_is_kept_of_a_peer_that_is_gone() -> None:
    worth = worth_of()
    learn(worth, 0.5, 12e6)
    worth.forget(PEER)
    assert worth.of(PEER, PATH).pulls == 0


def test_an_estimate_stays_finite_whatever_is_measured() -> None:
    worth = worth_of()
    for seconds in (0.0, 0.0, 1e9, 0.0):
        for size_bytes in (0, 1, 2**34):
            worth.of(PEER, PATH).took(size_bytes, seconds)
    assert 0 <= worth.of(PEER, PATH).expected_s(MIB) < float("inf")

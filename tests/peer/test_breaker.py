"""When a peer is left alone, and when it is asked again."""

import pytest

from kvbench.peer.breaker import MOST_DAMAGED, TRANSITIONS, Breaker, Event, State


def test_one_failure_leaves_a_peer_alone() -> None:
    breaker = Breaker()
    breaker.failed(10.0)
    assert not breaker.closed
    assert breaker.opened == 1


def test_a_peer_that_failed_is_probed_after_a_pause_and_not_before() -> None:
    breaker = Breaker(pause_s=1.0)
    breaker.failed(10.0)
    assert not breaker.due(10.9)
    assert breaker.due(11.0)
    breaker.probe()
    assert not breaker.due(99.0), "a second probe while one is under way"
    assert not breaker.closed, "callers wait for a peer that is only being probed"


def test_the_pause_doubles_up_to_its_limit_while_probes_fail() -> None:
    breaker, now_s, pauses = Breaker(1.0, 30.0), 0.0, []
    breaker.failed(now_s)
    for _ in range(7):
        start_s = now_s
        while not breaker.due(now_s):
            now_s += 0.5
        pauses.append(now_s - start_s)
        breaker.probe()
        breaker.failed(now_s)
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_a_probe_that_finds_the_peer_closes_the_breaker() -> None:
    breaker = Breaker()
    breaker.failed(0.0)
    breaker.probe()
    breaker.reached()
    assert breaker.closed


def test_a_peer_that_can_be_reached_and_never_answers_is_asked_more_and_more_seldom() -> None:
    breaker = Breaker(1.0, 30.0)
    breaker.failed(0.0)
    breaker.probe()
    breaker.reached()
    breaker.failed(2.0)
    assert not breaker.due(3.9)
    assert breaker.due(4.0)


def test_an_answer_makes_the_pause_short_again() -> None:
    breaker = Breaker(1.0, 30.0)
    breaker.failed(0.0)
    breaker.probe()
    breaker.failed(1.0)
    breaker.answered()
    assert breaker.closed
    breaker.failed(50.0)
    assert breaker.due(51.0)


def test_failures_of_what_was_under_way_do_not_make_the_pause_longer() -> None:
    breaker = Breaker(1.0, 30.0)
    for _ in range(8):
        breaker.failed(0.0)
    assert breaker.opened == 1
    assert breaker.due(1.0)


def test_a_caller_without_time_is_not_held_against_a_peer() -> None:
    breaker = Breaker()
    breaker.late(0.0, waited_s=0.03, expected_s=0.1)
    assert breaker.closed


def test_a_peer_that_is_silent_for_twice_as_long_as_it_should_take_has_failed() -> None:
    breaker = Breaker()
    breaker.late(0.0, waited_s=0.2, expected_s=0.1)
    assert not breaker.closed


def test_short_deadlines_that_pass_in_silence_add_up() -> None:
    breaker = Breaker()
    for _ in range(3):
        breaker.late(0.0, waited_s=0.005, expected_s=0.001)
        assert breaker.closed
    breaker.late(0.0, waited_s=0.005, expected_s=0.001)
    assert not breaker.closed


def test_an_answer_ends_the_silence() -> None:
    breaker = Breaker()
    for _ in range(20):
        breaker.late(0.0, waited_s=0.015, expected_s=0.001)
        breaker.answered()
    assert breaker.closed


def test_one_corrupt_block_does_not_close_off_a_peer_but_several_in_a_row_do() -> None:
    breaker = Breaker()
    for _ in range(MOST_DAMAGED - 1):
        breaker.damaged(0.0)
    breaker.answered()
    for _ in range(MOST_DAMAGED - 1):
        breaker.damaged(0.0)
    assert breaker.closed
    breaker.damaged(0.0)
    assert not breaker.closed


@pytest.mark.parametrize("state", State)
def test_an_answer_closes_the_breaker_from_every_state(state: State) -> None:
    assert TRANSITIONS[state][Event.ANSWERED] is State.CLOSED


def test_only_an_open_breaker_can_be_probed() -> None:
    assert [state for state in State if Event.PROBED in TRANSITIONS[state]] == [State.OPEN]

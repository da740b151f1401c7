"""Threads that share a step: who does what, where, and what happens when one of them fails."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.errors import TierUnavailableError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine, NumaNode
from kvbench.measure.body import Context
from kvbench.measure.suite import Plan
from kvbench_suites.team import Team, share_of, team_cores

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def affinity() -> Iterator[None]:
    """A team pins the thread that makes it; the next test wants all cores again."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture
def context(llama: KVGeometry) -> Callable[..., Context]:
    def one(*, threads: int = 1, cpu_node: int = -1, machine: Machine | None = None) -> Context:
        return Context(
            params={"threads": threads, "cpu_node": cpu_node},
            geometry=llama,
            machine=machine or Machine(),
            plan=Plan(),
            seed=7,
            process=0,
            scratch=None,
        )

    return one


@given(total=st.integers(0, 10**9), count=st.integers(1, 300), align=st.sampled_from([1, 64, 4096]))
def test_shares_cover_the_whole_range_once_in_order_and_nothing_else(
    total: int, count: int, align: int
) -> None:
    shares = [share_of(total, number, count, align=align) for number in range(count)]
    assert shares[0][0] == 0
    assert shares[-1][1] == total
    for (first, last), (after, _) in itertools.pairwise(shares):
        assert first <= last == after
        assert last % align == 0
    assert all(last - first <= total / count + align for first, last in shares), "no one has it all"


def test_a_team_does_each_part_once_a_step_on_a_core_of_its_own() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    seen: list[tuple[int, set[int], int]] = []
    lock = threading.Lock()

    def part(number: int) -> None:
        with lock:
            seen.append((number, os.sched_getaffinity(0), threading.get_ident()))

    cores = CORES[:2][::-1]
    team = Team(cores, part)
    for _ in range(3):
        team.step()
    team.close()
    assert sorted(number for number, *_ in seen) == [0, 0, 0, 1, 1, 1]
    assert all(where == {cores[number]} for number, where, _ in seen)
    by_number = {number: {who for n, _, who in seen if n == number} for number in (0, 1)}
    assert by_number[0] == {threading.get_ident()}, "the caller is one of the team"
    assert len(by_number[1]) == 1
    assert by_number[1] != by_number[0]


def test_the_parts_of_a_step_run_at_the_same_time() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    meeting = threading.Barrier(2, timeout=10)
    team = Team(CORES[:2], lambda _number: meeting.wait())  # alone, nobody would come
    team.step()
    team.step()
    team.close()


def test_a_step_is_over_only_when_the_slowest_part_is() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    done: list[int] = []

    def part(number: int) -> None:
        time.sleep(0.1 * number)
        done.append(number)

    team = Team(CORES[:2], part)
    team.step()
    assert sorted(done) == [0, 1]
    team.close()


def test_a_team_of_one_is_the_caller_alone_on_its_core() -> None:
    threads = threading.active_count()
    seen: list[tuple[int, int, set[int]]] = []
    team = Team(
        CORES[-1:],
        lambda number: seen.append((number, threading.get_ident(), os.sched_getaffinity(0))),
    )
    team.step()
    assert threading.active_count() == threads
    team.close()
    assert seen == [(0, threading.get_ident(), {CORES[-1]})]


@pytest.mark.parametrize("failing", [0, 1])
def test_what_a_part_raises_is_raised_by_the_step_and_the_team_can_still_go_home(
    failing: int,
) -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    threads = threading.active_count()

    def part(number: int) -> None:
        if number == failing:
            raise ZeroDivisionError(f"part {number}")

    team = Team(CORES[:2], part)
    with pytest.raises(ZeroDivisionError, match=f"part {failing}"):
        team.step()
    began_s = time.monotonic()
    team.close()
    assert time.monotonic() - began_s < 5, "nobody waits for one that will not come"
    assert threading.active_count() == threads


def test_closing_a_team_ends_its_threads() -> None:
    if len(CORES) < 2:
        pytest.skip("one core")
    threads = threading.active_count()
    team = Team(CORES[:2], lambda _number: None)
    assert threading.active_count() == threads + 1
    team.close()
    assert threading.active_count() == threads


def test_more_threads_than_cores_are_refused(context: Callable[..., Context]) -> None:
    many = len(CORES) + 1
    with pytest.raises(
        TierUnavailableError,
        match=f"{many} threads need as many cores and this process may use {len(CORES)}$",
    ):
        team_cores(context(threads=many))
    assert team_cores(context(threads=len(CORES))) == CORES


def test_cores_are_those_of_the_node_that_was_asked_for(context: Callable[..., Context]) -> None:
    nodes = [NumaNode(index=0, cpus=[999]), NumaNode(index=3, cpus=[CORES[-1], 998])]
    machine = Machine(numa_nodes=nodes)
    assert team_cores(context(machine=machine, cpu_node=3)) == [CORES[-1]]
    with pytest.raises(TierUnavailableError, match=r"may use 0 of NUMA node 0$"):
        team_cores(context(machine=machine, cpu_node=0))

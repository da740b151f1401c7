import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kvbench.measure import stream
from kvbench.measure.body import Completions
from kvbench.measure.stream import Lanes, LaneStuckError, Outcome


class Operation:
    """Takes its time, and remembers who was in flight with it."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self.lock = threading.Lock()
        self.in_flight = 0
        self.seen: list[int] = []  # in flight, itself included, when an operation began
        self.calls: list[tuple[int, int]] = []
        self.spans_ns: dict[tuple[int, int], tuple[int, int]] = {}

    def __call__(self, lane: int, n: int) -> None:
        began = time.perf_counter_ns()
        with self.lock:
            self.in_flight += 1
            self.seen.append(self.in_flight)
            self.calls.append((lane, n))
        time.sleep(self.duration_s)
        with self.lock:
            self.in_flight -= 1
            self.spans_ns[lane, n] = (began, time.perf_counter_ns())


Make = Callable[..., Lanes]


@pytest.fixture
def make() -> Iterator[Make]:
    """Lanes that are stopped whatever a test finds."""
    made: list[Lanes] = []

    def one(depth: int, operate: Callable[[int, int], object], slowdown: float = 0.0) -> Lanes:
        made.append(Lanes(depth, operate, slowdown=slowdown))
        return made[-1]

    yield one
    for lanes in made:
        lanes.stop()


def together(parts: list[Completions]) -> Completions:
    return Completions(
        np.concatenate([part.end_ns for part in parts]),
        np.concatenate([part.latency_ns for part in parts]),
    )


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_the_queue_depth_is_held_while_the_stream_runs(make: Make, depth: int) -> None:
    operation = Operation(0.01)
    lanes = make(depth, operation)
    lanes.start()
    lanes.poll(0.2)
    lanes.stop()
    assert max(operation.seen) == depth, "never more"
    later = operation.seen[2 * depth :]  # the lanes have all begun
    # One that has ended is followed at once: at most the ones that end together are missing.
    assert np.mean(later) > 0.5 * depth
    busy_s = sum(last - first for first, last in operation.spans_ns.values()) * 1e-9
    ends = [last for _, last in operation.spans_ns.values()]
    begins = [first for first, _ in operation.spans_ns.values()]
    wall_s = (max(ends) - min(begins)) * 1e-9
    assert busy_s / wall_s > 0.9 * depth, "in flight on average"


def test_each_lane_counts_its_own_operations_from_zero_without_a_gap(make: Make) -> None:
    operation = Operation(0.001)
    lanes = make(3, operation)
    lanes.start()
    lanes.poll(0.05)
    lanes.stop()
    for lane, count in enumerate(lanes.counts()):
        assert [n for where, n in operation.calls if where == lane] == list(range(count))
        assert count > 3


# ---------------------------------------------------------------- slowed on purpose


@pytest.mark.parametrize(("slowdown", "depth"), [(1.0, 3), (0.25, 1), (0.08, 4), (2.5, 2)])
def test_a_slowed_stream_does_the_share_of_operations_that_it_does_not_tell_of(
    make: Make, slowdown: float, depth: int
) -> None:
    calls: list[tuple[int, int]] = []

    def operate(lane: int, n: int) -> None:
        calls.append((lane, n))
        time.sleep(0.0005)

    lanes = make(depth, operate, slowdown)
    lanes.start()
    parts = [lanes.poll(0.2)]
    lanes.stop()
    told = len(together([*parts, lanes.poll(0)]).end_ns)
    assert told > 20
    assert abs(len(calls) - told * (1 + slowdown)) <= depth, "but for whole operations"
    assert lanes.slowed() == (len(calls) - told) / told
    # They take their own places in the lane's order, so every block that was moved is checked.
    for lane, count in enumerate(lanes.counts()):
        assert [n for where, n in calls if where == lane] == list(range(count))


def test_what_is_not_told_of_is_in_no_latency(make: Make) -> None:
    lanes = make(1, lambda _lane, _n: time.sleep(0.005), 1.0)
    lanes.start()
    parts = [lanes.poll(0.1) for _ in range(3)]
    lanes.stop()
    found = together([*parts, lanes.poll(0)])
    assert np.median(found.latency_ns) < 7.5e6, "one sleep, not two"
    assert np.median(np.diff(found.end_ns)) > 9e6, "from one that is told of to the next: two"


def test_lanes_do_not_all_fall_behind_at_once(make: Make) -> None:
    first: dict[int, int] = {}  # lane → the first place in its order that was not told of

    def operate(lane: int, n: int) -> None:
        time.sleep(0.001)
        if len(lanes._ends_ns[lane]) < n:
            first.setdefault(lane, n - 1)

    lanes = make(4, operate, 0.25)
    lanes.start()
    lanes.poll(0.1)
    lanes.stop()
    assert first == {0: 4, 1: 3, 2: 2, 3: 1}


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns every few operations, so that a race has thousands of chances."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
def test_no_completion_is_lost_or_told_twice_however_often_it_is_polled(make: Make) -> None:
    # Operations that take no time, so that lanes append while they are read.
    lanes = make(3, lambda _lane, _n: None)
    lanes.start()
    parts = [lanes.poll(0) for _ in range(200)]
    lanes.stop()
    parts.append(lanes.poll(0))
    assert all(len(part.end_ns) == len(part.latency_ns) for part in parts)
    ends = together(parts).end_ns
    assert len(ends) == sum(lanes.counts())
    assert sum(len(part.end_ns) > 0 for part in parts) > 50
    again = lanes.poll(0)
    assert len(again.end_ns) == 0
    assert again.end_ns.dtype == again.latency_ns.dtype == np.int64


def test_a_completion_that_comes_while_it_is_polled_is_told_by_the_next_poll(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The thread switch that no test can force: a lane appends as the poll reads its list.
    lanes = make(1, lambda _lane, _n: None)
    latencies = [10]

    class Growing(list[int]):
        def __getitem__(self, at: Any) -> Any:
            found = super().__getitem__(at)
            latencies.append(10 * (len(self) + 1))
            self.append(len(self) + 1)
            return found

    monkeypatch.setattr(lanes, "_latencies_ns", [latencies])
    monkeypatch.setattr(lanes, "_ends_ns", [Growing([1])])
    for n in range(1, 5):
        part = lanes.poll(0)
        assert (part.end_ns.tolist(), part.latency_ns.tolist()) == ([n], [10 * n])


def test_every_end_that_a_poll_can_see_has_its_latency_already(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = make(1, lambda _lane, _n: None)
    latencies: list[int] = []
    found: list[bool] = []

    class Watched(list[int]):
        def append(self, end: int) -> None:
            found.append(len(latencies) > len(self))
            super().append(end)

    monkeypatch.setattr(lanes, "_latencies_ns", [latencies])
    monkeypatch.setattr(lanes, "_ends_ns", [Watched()])
    lanes.start()
    lanes.poll(0.01)
    lanes.stop()
    assert found
    assert all(found)


def test_a_completion_carries_its_own_end_and_its_own_latency(make: Make) -> None:
    durations_s = (0.005, 0.015, 0.03)
    spans: dict[tuple[int, int], tuple[int, int]] = {}

    def operate(lane: int, n: int) -> None:
        began = time.perf_counter_ns()
        time.sleep(durations_s[lane])
        spans[lane, n] = (began, time.perf_counter_ns())

    lanes = make(len(durations_s), operate)
    lanes.start()
    parts = [lanes.poll(0.02) for _ in range(8)]
    lanes.stop()
    found = together([*parts, lanes.poll(0)])
    for end, latency in zip(found.end_ns.tolist(), found.latency_ns.tolist(), strict=True):
        # The operation that ended just before this end, and whose time lies inside this latency.
        inside = [
            last - first
            for first, last in spans.values()
            if end - latency <= first and last <= end and latency - (last - first) < 2e6
        ]
        assert inside, f"no operation took {latency} ns and ended at {end}"
    slow = found.latency_ns >= 30e6
    assert slow.sum() >= lanes.counts()[2] > 0  # a shorter sleep may be as late on a busy machine


def test_what_a_lane_raises_is_raised_by_the_next_poll_and_the_others_stop(make: Make) -> None:
    calls: list[int] = []

    def operate(lane: int, n: int) -> None:
        calls.append(lane)
        time.sleep(0.002)
        if (lane, n) == (2, 3):
            raise ZeroDivisionError("lane 2 broke")

    lanes = make(4, operate)
    lanes.start()
    time.sleep(0.1)
    with pytest.raises(ZeroDivisionError, match="lane 2 broke"):
        lanes.poll(0)
    so_far = len(calls)
    time.sleep(0.05)
    assert len(calls) == so_far, "no lane goes on with half a stream"
    with pytest.raises(ZeroDivisionError):
        lanes.poll(0)
    assert lanes.counts()[2] == 3, "the one that failed is not counted"


def test_what_fails_while_the_stream_stops_is_not_swallowed(make: Make) -> None:
    begun = threading.Event()

    def operate(_lane: int, _n: int) -> None:
        begun.set()
        time.sleep(0.1)
        raise OSError("the last one failed")

    lanes = make(1, operate)
    lanes.start()
    begun.wait(10)
    lanes.stop()
    with pytest.raises(OSError, match="the last one failed"):
        lanes.poll(0)


def test_stopping_waits_for_what_is_in_flight_and_it_counts(make: Make) -> None:
    operation = Operation(0.15)
    lanes = make(3, operation)
    lanes.start()
    time.sleep(0.05)
    assert lanes.counts() == [0, 0, 0]
    lanes.stop()
    assert operation.in_flight == 0
    assert lanes.counts() == [1, 1, 1]
    assert len(lanes.poll(0).end_ns) == 3
    time.sleep(0.05)
    assert lanes.counts() == [1, 1, 1], "none begins after the stop"


def test_an_operation_that_never_comes_back_is_an_error_and_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "JOIN_S", 0.1)
    release = threading.Event()
    lanes = Lanes(2, lambda _lane, _n: release.wait(30))
    lanes.start()
    began_s = time.monotonic()
    with pytest.raises(LaneStuckError, match="did not complete within 0 s"):
        lanes.stop()
    assert time.monotonic() - began_s < 5
    release.set()
    lanes.stop()


def test_lanes_that_were_never_started_stop_at_once(make: Make) -> None:
    lanes = make(2, Operation(0))
    lanes.stop()
    assert len(lanes.poll(0).end_ns) == 0
    assert lanes.counts() == [0, 0]


def test_an_operation_can_say_when_it_was_over_how_long_it_took_and_what_it_moved(
    make: Make,
) -> None:
    ended = threading.Event()

    def operate(_lane: int, n: int) -> Outcome:
        if n >= 3:
            ended.set()
            return Outcome(9, 9, 0)  # nothing moved: not told of
        return Outcome(100 + n, 10 * n, 1000 * (n + 1))

    lanes = make(1, operate)
    lanes.start()
    ended.wait(10)
    lanes.stop()
    done = lanes.poll(0)
    assert done.end_ns.tolist() == [100, 101, 102]
    assert done.latency_ns.tolist() == [0, 10, 20]
    assert done.sizes(0).tolist() == [1000, 2000, 3000]
    assert lanes.counts()[0] > 3
    assert lanes.slowed() == 0.0, "an operation that moved nothing is not one that was not told of"


def test_operations_of_one_size_have_that_of_the_stream(make: Make) -> None:
    lanes = make(1, Operation(0.001))
    lanes.start()
    time.sleep(0.05)
    lanes.stop()
    done = lanes.poll(0)
    assert done.sizes(512).tolist() == [512] * len(done.end_ns) != []

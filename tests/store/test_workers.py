"""Pools of threads and the clock: limits, order, tasks that raise, closing."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kvbench.store import workers
from kvbench.store.workers import Alarm, Workers
from tests.store.blocks import WAIT_S


class Noted:
    """A task that does something and notes how it ended."""

    def __init__(self, do: Callable[[], object] = lambda: None) -> None:
        self._do = do
        self.over = threading.Event()
        self.reason: str | None = None

    def run(self) -> None:
        self._do()
        self.over.set()

    def fail(self, reason: str) -> None:
        self.reason = reason
        self.over.set()


def error() -> None:
    raise RuntimeError("a bug")


@pytest.fixture
def pool() -> Iterator[Workers]:
    made = Workers("pool", 1, limit=2)
    yield made
    made.close()


@pytest.fixture
def clock() -> Iterator[Alarm]:
    made = Alarm("clock")
    yield made
    made.close()


def occupy(pool: Workers) -> threading.Event:
    """Keep the pool's one thread busy until the event is set."""
    begun, release = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait()

    assert pool.submit(Noted(hang))
    assert begun.wait(WAIT_S)
    return release


def test_tasks_run_in_the_order_in_which_they_came(pool: Workers) -> None:
    order: list[int] = []
    release = occupy(pool)
    tasks = [Noted(lambda n=n: order.append(n)) for n in range(2)]  # type: ignore[misc]
    assert all(pool.submit(task) for task in tasks)
    release.set()
    assert all(task.over.wait(WAIT_S) for task in tasks)
    assert order == [0, 1]


def test_a_full_queue_takes_nothing(pool: Workers) -> None:
    release = occupy(pool)
    assert [pool.submit(Noted()) for _ in range(3)] == [True, True, False]
    assert pool.depth == 2
    release.set()


def test_a_task_that_raises_is_told_and_logged_and_the_thread_goes_on(
    pool: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Noted(error), Noted()
    pool.submit(bad)
    assert bad.over.wait(WAIT_S)
    assert bad.reason == "RuntimeError: a bug"
    assert "pool: a task failed" in caplog.text
    pool.submit(good)
    assert good.over.wait(WAIT_S)
    assert good.reason is None


def test_a_task_that_raises_when_it_is_told_that_it_raised_ends_no_thread(pool: Workers) -> None:
    class Worse(Noted):
        def fail(self, reason: str) -> None:
            super().fail(reason)
            error()

    bad, good = Worse(error), Noted()
    pool.submit(bad)
    assert bad.over.wait(WAIT_S)
    pool.submit(good)
    assert good.over.wait(WAIT_S)


def test_clearing_fails_what_waits_and_not_what_is_under_way(pool: Workers) -> None:
    release = occupy(pool)
    waiting = [Noted(), Noted()]
    for task in waiting:
        pool.submit(task)
    pool.clear("the drive is gone")
    assert [task.reason for task in waiting] == ["the drive is gone"] * 2
    assert pool.depth == 0
    assert pool.busy_longest_s() > 0
    release.set()


def test_the_longest_task_under_way_is_known_and_a_beat_makes_it_young(pool: Workers) -> None:
    assert pool.busy_longest_s() == 0
    beaten, release = threading.Event(), threading.Event()
    begun = threading.Event()

    def long() -> None:
        begun.set()
        release.wait()
        pool.beat()
        beaten.set()
        again.wait()

    again = threading.Event()
    task = Noted(long)
    pool.submit(task)
    assert begun.wait(WAIT_S)
    threading.Event().wait(0.1)
    assert pool.busy_longest_s() >= 0.1
    before = time.monotonic()
    release.set()
    assert beaten.wait(WAIT_S)
    assert pool.busy_longest_s() <= time.monotonic() - before
    again.set()
    assert task.over.wait(WAIT_S)


def test_closing_finishes_what_is_queued_and_takes_nothing_more(pool: Workers) -> None:
    release = occupy(pool)
    queued = [Noted(), Noted()]
    for task in queued:
        pool.submit(task)
    release.set()
    assert pool.close()
    assert all(task.over.is_set() and task.reason is None for task in queued)
    assert not pool.submit(Noted())


def test_closing_does_not_wait_for_a_thread_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "HANGS_S", 0.1)
    pool = Workers("pool", 2, limit=2)
    release = occupy(pool)
    start_s = time.monotonic()
    assert not pool.close()
    assert time.monotonic() - start_s < WAIT_S / 4
    release.set()


def test_a_task_is_not_kept_after_it_ran(pool: Workers) -> None:
    gone = threading.Event()

    class Kept(Noted):
        def __del__(self) -> None:
            gone.set()

    pool.submit(Kept())
    assert gone.wait(WAIT_S)


# ---------------------------------------------------------------- the clock


def test_the_clock_calls_in_the_order_of_the_times(clock: Alarm) -> None:
    order: list[str] = []
    done = threading.Event()
    now_s = time.monotonic()
    clock.at(now_s + 0.15, done.set)
    clock.at(now_s + 0.10, lambda: order.append("second"))
    clock.at(now_s + 0.05, lambda: order.append("first"))
    assert done.wait(WAIT_S)
    assert order == ["first", "second"]
    assert time.monotonic() >= now_s + 0.15


def test_an_earlier_time_is_not_kept_waiting_by_a_later_one(clock: Alarm) -> None:
    called = threading.Event()
    clock.at(time.monotonic() + 1000, lambda: None)
    clock.at(0.0, called.set)
    assert called.wait(WAIT_S)


def test_a_call_that_raises_does_not_stop_the_clock(
    clock: Alarm, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()
    clock.at(0.0, error)
    clock.at(0.0, called.set)
    assert called.wait(WAIT_S)
    with caplog.at_level(logging.ERROR):
        assert "a call of the clock failed" in caplog.text


def test_a_call_may_ask_for_another(clock: Alarm) -> None:
    called = threading.Event()
    clock.at(0.0, lambda: clock.at(0.0, called.set))
    assert called.wait(WAIT_S)


def test_a_closed_clock_calls_nothing() -> None:
    clock = Alarm("clock")
    called = threading.Event()
    clock.at(time.monotonic() + 0.05, called.set)
    clock.close()
    assert not called.wait(0.15)

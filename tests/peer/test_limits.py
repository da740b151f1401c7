"""How much fetching may take of a machine: in order, with deadlines, and cancelled."""

import threading
from collections.abc import Callable

import pytest

from kvbench.errors import UsageError
from kvbench.peer.limits import FetchOptions, Limits, Staging, TokenBucket
from kvbench.peer.model import Reason

WAIT_S = 20.0


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, condition: threading.Condition, timeout_s: float) -> None:
        del condition
        self.now_s += timeout_s


def waiting_for(limits: Limits, count: int) -> None:
    """Return once so many wait: they say so before they do."""
    tries = 0
    pause = threading.Event()
    while limits.waiting < count:
        pause.wait(0.001)
        tries += 1
        assert tries < WAIT_S * 1000


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_what_fits_enters_at_once() -> None:
    limits = Limits(100)
    assert limits.enter(60, expires_s=0.0) is None
    assert limits.enter(40, expires_s=0.0) is None
    assert limits.in_flight_bytes == 100


def test_who_does_not_get_in_by_his_deadline_is_told_busy_and_takes_nothing() -> None:
    clock = Clock()
    limits = Limits(100, clock=clock, wait=clock.wait)
    limits.enter(100, 200.0)
    assert limits.enter(1, 100.5) is Reason.BUSY
    assert clock.now_s == pytest.approx(100.5)
    assert limits.in_flight_bytes == 100
    assert limits.waiting == 0


def test_who_is_cancelled_while_he_waits_leaves_the_queue() -> None:
    clock = Clock()
    limits = Limits(100, clock=clock, wait=clock.wait)
    limits.enter(100, 200.0)
    assert limits.enter(1, 200.0, lambda: clock.now_s > 100.1) is Reason.CANCELLED
    assert limits.waiting == 0


def test_a_pull_larger_than_the_limit_goes_when_it_is_alone() -> None:
    limits = Limits(100)
    assert limits.enter(500, 0.0) is None
    assert limits.enter(1, 0.0) is Reason.BUSY
    limits.leave(500)
    assert limits.enter(1, 0.0) is None


def test_first_come_is_first_served_though_a_later_one_would_fit() -> None:
    limits, order = Limits(100), list[str]()
    limits.enter(60, 0.0)

    def large() -> None:
        limits.enter(80, float("inf"))
        order.append("large")
        limits.leave(80)

    def small() -> None:
        limits.enter(10, float("inf"))
        order.append("small")

    first = in_thread(large)
    waiting_for(limits, 1)
    second = in_thread(small)
    waiting_for(limits, 2)
    assert limits.in_flight_bytes == 60, "the small one overtook"
    limits.leave(60)
    first.join(WAIT_S)
    second.join(WAIT_S)
    assert sorted(order) == ["large", "small"]
    assert limits.in_flight_bytes == 10


def test_who_gives_up_lets_the_next_one_in() -> None:
    limits, entered = Limits(100), threading.Event()
    stop = threading.Event()
    limits.enter(60, 0.0)
    first = in_thread(lambda: limits.enter(80, float("inf"), stop.is_set))
    waiting_for(limits, 1)

    def small() -> None:
        assert limits.enter(10, float("inf")) is None
        entered.set()

    second = in_thread(small)
    waiting_for(limits, 2)
    stop.set()
    assert entered.wait(WAIT_S)
    first.join(WAIT_S)
    second.join(WAIT_S)


def test_many_threads_never_have_more_in_flight_than_the_limit() -> None:
    limits, most, lock = Limits(100), [0], threading.Lock()

    def work() -> None:
        for size in (70, 30, 50, 20):
            assert limits.enter(size, float("inf")) is None
            with lock:
                most[0] = max(most[0], limits.in_flight_bytes)
            limits.leave(size)

    threads = [in_thread(work) for _ in range(8)]
    for thread in threads:
        thread.join(WAIT_S)
    assert 0 < most[0] <= 100
    assert limits.in_flight_bytes == 0


def test_bandwidth_stays_under_its_cap() -> None:
    clock = Clock()
    limits = Limits(10**9, 1000.0, burst_bytes=100, clock=clock, wait=clock.wait)
    start_s = clock.now_s
    for _ in range(50):
        assert limits.enter(100, 10_000.0) is None
        limits.leave(100)
    # 50 pulls of 100 bytes, of which the burst went at once.
    assert clock.now_s - start_s == pytest.approx(4.9, abs=0.05)


def test_what_was_never_sent_does_not_count_towards_the_cap() -> None:
    clock = Clock()
    limits = Limits(10**9, 1000.0, burst_bytes=100, clock=clock, wait=clock.wait)
    limits.enter(100, 10_000.0)
    limits.leave(100, unused_bytes=100)
    assert limits.enter(100, clock.now_s) is None


def test_a_pull_larger_than_the_burst_is_paid_off_afterwards() -> None:
    bucket = TokenBucket(1000.0, 100.0, 0.0)
    assert bucket.wait_s(1000, 0.0) == 0.0
    bucket.take(1000, 0.0)
    assert bucket.wait_s(100, 0.0) == pytest.approx(1.0)
    assert bucket.wait_s(100, 1.0) == 0.0


def test_a_bucket_that_rests_holds_no_more_than_its_burst() -> None:
    bucket = TokenBucket(1000.0, 100.0, 0.0)
    bucket.take(100, 1000.0)
    assert bucket.wait_s(100, 1000.0) == pytest.approx(0.1)


def test_staging_gives_memory_again_and_keeps_no_more_than_it_may() -> None:
    staging = Staging(5000, area_blocks=4, keep=1)
    area, blocks = staging.take(3)
    assert [block.shape for block in blocks] == [(5000,)] * 3
    other, _ = staging.take(4)
    blocks[0][:] = 1
    blocks[1][:] = 2
    assert blocks[0].min() == blocks[0].max() == 1, "blocks overlap"
    staging.give(area)
    staging.give(other)
    again, _ = staging.take(1)
    assert again is area
    fresh, _ = staging.take(1)
    assert fresh is not other


@pytest.mark.parametrize("name", ["deadline_s", "streams", "in_flight_bytes", "hedge_s"])
def test_a_limit_that_is_not_positive_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        FetchOptions(**{name: 0})  # type: ignore[arg-type]

"""What wrappers count, time and slow down, on a clock that only they move."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Layout, Stamp, checksums
from kvbench.store.dram import DramTier
from kvbench.store.faults import Fail, Fault, FaultyTier
from kvbench.store.wrappers import CountingTier, ThrottledTier, TimedTier, Wrapper

LAYOUT = Layout(4000, parts=4)


class Clock:
    """Seconds that pass only when somebody sleeps, and as much too long as `late`."""

    def __init__(self, late: float = 0.0) -> None:
        self.now = 100.0
        self.late = late

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


def blocks(count: int) -> tuple[list[Stamp], list[Bytes]]:
    payloads = [np.full(LAYOUT.block_bytes, i, dtype=np.uint8) for i in range(count)]
    return [Stamp(bytes(32), None, i, "", checksums(p, LAYOUT)) for i, p in enumerate(payloads)], (
        payloads
    )


def outs(count: int, size: int = LAYOUT.block_bytes) -> list[Bytes]:
    return [np.zeros(size, dtype=np.uint8) for _ in range(count)]


# ---------------------------------------------------------------- timed


def test_a_timed_tier_adds_up_calls_blocks_bytes_and_seconds_of_each_operation() -> None:
    clock = Clock()
    slow = FaultyTier(DramTier(LAYOUT, 8), sleep=clock.sleep)
    tier = TimedTier(slow, clock)
    stamps, payloads = blocks(3)
    slow.add(Fault(operation="write", kind=Fail(), nth=2))
    clock.sleep(1)  # not its own
    tier.write([0, 1, 2], stamps, payloads)
    throttled = TimedTier(
        ThrottledTier(slow, bytes_per_s=4000, clock=clock, sleep=clock.sleep), clock
    )
    throttled.read([0, 2], outs(2))
    throttled.read([0], outs(1, 1000), 3)
    throttled.read([1], outs(1))
    throttled.flush()
    write, read = tier.times()["write"], throttled.times()["read"]
    assert (write.calls, write.blocks, write.failed, write.size_bytes) == (1, 2, 1, 8000)
    assert (read.calls, read.blocks, read.failed, read.size_bytes) == (3, 3, 1, 9000)
    assert write.seconds == 0
    assert read.seconds == pytest.approx(2 + 0.25 + 1)
    assert throttled.times()["flush"].calls == 1
    assert throttled.times()["write"].calls == 0


def test_times_are_a_copy_that_stays_as_it_was() -> None:
    tier = TimedTier(DramTier(LAYOUT, 8))
    stamps, payloads = blocks(1)
    before = tier.times()
    tier.write([0], stamps, payloads)
    assert before["write"].calls == 0
    assert tier.times()["write"].calls == 1
    assert tier.times()["write"].seconds > 0


# ---------------------------------------------------------------- counting


def test_a_counting_tier_counts_calls_blocks_and_the_reads_of_each_slot() -> None:
    tier = CountingTier(DramTier(LAYOUT, 8))
    stamps, payloads = blocks(3)
    tier.recover()
    tier.write([0, 1, 2], stamps, payloads)
    tier.read([0, 2], outs(2))
    tier.read([2], outs(1, 1000), 0)
    tier.view(1)
    tier.forget([0, 1])
    tier.quarantine([2], "a test says so")
    tier.flush()
    tier.close()
    once = dict.fromkeys(("recover", "write", "view", "forget", "quarantine", "flush", "close"), 1)
    assert tier.calls == once | {"read": 2}
    assert {name: count for name, count in tier.blocks.items() if count} == {
        "write": 3,
        "read": 3,
        "view": 1,
        "forget": 2,
        "quarantine": 1,
    }
    assert tier.read_slots == {0: 1, 2: 2}


def test_threads_lose_no_count() -> None:
    tier = CountingTier(DramTier(LAYOUT, 8))
    begin = threading.Barrier(4)

    def work(number: int) -> None:
        begin.wait()
        for _ in range(300):
            tier.read([number], outs(1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert tier.calls["read"] == tier.blocks["read"] == 1200
    assert tier.read_slots == dict.fromkeys(range(4), 300)


# ---------------------------------------------------------------- throttled


def throttled(
    clock: Clock, *, bytes_per_s: float = 4000.0, latency_s: float = 0.0, queue_depth: int = 1
) -> ThrottledTier:
    tier = ThrottledTier(
        DramTier(LAYOUT, 64),
        bytes_per_s=bytes_per_s,
        latency_s=latency_s,
        queue_depth=queue_depth,
        clock=clock,
        sleep=clock.sleep,
    )
    stamps, payloads = blocks(64)
    tier.inner.write(range(64), stamps, payloads)
    return tier


def test_at_depth_one_each_block_takes_latency_and_its_share_of_the_bandwidth() -> None:
    clock = Clock()
    tier = throttled(clock, latency_s=0.5)
    start = clock.now
    tier.read(range(6), outs(6))
    assert clock.now - start == pytest.approx(6 * (0.5 + 1.0))
    stamps, payloads = blocks(2)
    start = clock.now
    tier.write([0, 1], stamps, payloads)
    assert clock.now - start == pytest.approx(2 * (0.5 + 1.0))


def test_with_places_enough_latency_is_paid_once_and_the_line_is_full() -> None:
    clock = Clock()
    tier = throttled(clock, latency_s=3.0, queue_depth=4)
    start = clock.now
    tier.read(range(20), outs(20))
    assert clock.now - start == pytest.approx(3.0 + 20 * 1.0)


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_depth_and_latency_bound_the_rate_as_littles_law_says(depth: int) -> None:
    clock = Clock()
    tier = throttled(clock, bytes_per_s=4000 * 1000, latency_s=1.0, queue_depth=depth)
    start = clock.now
    tier.read(list(range(48)), outs(48))
    assert clock.now - start == pytest.approx(48 / depth * 1.001, rel=0.02)


def test_a_part_takes_its_share_of_the_line() -> None:
    clock = Clock()
    tier = throttled(clock)
    start = clock.now
    tier.read(range(8), outs(8, 1000), 2)
    assert clock.now - start == pytest.approx(8 * 0.25)


def test_an_idle_device_saves_nothing_up() -> None:
    clock = Clock()
    tier = throttled(clock)
    tier.read([0], outs(1))
    clock.now += 50
    start = clock.now
    tier.read(range(2), outs(2))
    assert clock.now - start == pytest.approx(2.0)


def test_what_a_sleep_took_too_long_is_made_up_for() -> None:
    clock = Clock(late=0.1)
    tier = throttled(clock)
    start = clock.now
    for slot in range(40):
        tier.read([slot], outs(1))
    assert clock.now - start == pytest.approx(40.0 + 0.1)


def test_threads_share_one_line() -> None:
    """On the real clock: never faster than the device would be, whoever asks."""
    tier = ThrottledTier(DramTier(LAYOUT, 8), bytes_per_s=4000 * 400, queue_depth=8)
    stamps, payloads = blocks(4)
    tier.inner.write(range(4), stamps, payloads)
    begin = threading.Barrier(5)

    def work(slot: int) -> None:
        begin.wait()
        for _ in range(20):
            tier.read([slot], outs(1))

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(work, slot) for slot in range(4)]
        begin.wait()
        start = time.monotonic()
        for each in done:
            each.result()
        took = time.monotonic() - start
    assert took >= 4 * 20 / 400 * 0.95


def test_a_throttled_tier_stalls_as_a_drive_does_and_says_how_fast_it_is() -> None:
    tier = throttled(Clock(), latency_s=0.5, queue_depth=2)
    assert tier.stalls
    facts = tier.facts()
    assert facts["throttled_bytes_per_s"] == 4000
    assert facts["throttled_latency_s"] == 0.5
    assert facts["throttled_queue_depth"] == 2
    assert facts["memory"] == tier.inner.facts()["memory"]


@pytest.mark.parametrize(
    "wrong", [{"bytes_per_s": 0.0}, {"latency_s": -1.0}, {"queue_depth": 0}], ids=str
)
def test_a_device_without_speed_or_depth_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="have to be positive"):
        throttled(Clock(), **wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------- all


def test_a_wrapper_is_what_its_inner_tier_is() -> None:
    inner = DramTier(LAYOUT, 8, name="elsewhere")
    tier = Wrapper(CountingTier(inner))
    assert (tier.name, tier.layout, tier.slots) == ("elsewhere", LAYOUT, 8)
    assert (tier.durable, tier.stalls, tier.parts_alone) == (False, False, True)
    assert tier.facts() == inner.facts()

from typing import ClassVar

import numpy as np
import pytest

from kvbench.errors import CorruptDataError, TooFewSamplesError
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.clock import FakeClock
from kvbench.measure.sampler import Samples, sample
from kvbench.measure.suite import Plan


def ignore(_bytes_per_s: float, _samples: int, _half_width: float | None) -> None: ...


class Parts:
    """What both kinds of body have and these tests do not use."""

    clock: ClassVar[str] = "fake"

    def set_up(self, context: Context) -> None: ...
    def tear_down(self) -> None: ...
    def verify(self) -> int:
        return 0

    def observed(self) -> Observed:
        return Observed(path="test")


class Steps(Parts):
    """Steps of 1000 bytes that take the given times, then the last one for ever."""

    def __init__(self, clock: FakeClock, durations_s: list[float]) -> None:
        self._clock = clock
        self._durations_s = durations_s
        self.count = 0

    def step(self) -> int:
        self._clock.advance(self._durations_s[min(self.count, len(self._durations_s) - 1)])
        self.count += 1
        return 1000


class Stream(Parts):
    """Completes one operation of 1000 bytes every `gap_s`, from `depth` lanes."""

    operation_bytes = 1000

    def __init__(self, clock: FakeClock, gap_s: float) -> None:
        self._clock = clock
        self._gap_ns = gap_s * 1e9
        self._done = 0
        self.stopped = False

    def start(self) -> None: ...

    def poll(self, wait_s: float) -> Completions:
        self._clock.advance(wait_s)
        last = int(self._clock.now_s() * 1e9 / self._gap_ns)
        ends = (np.arange(self._done, last) + 1) * self._gap_ns
        self._done = last
        return Completions(ends.astype(np.int64), np.full(len(ends), int(self._gap_ns)))

    def stop(self) -> None:
        self.stopped = True

    def watch(self) -> Watch | None:
        return None

    def slowed(self) -> float:
        return 0.0


def run_steps(durations_s: list[float], plan: Plan) -> Samples:
    clock = FakeClock()
    return sample(Steps(clock, durations_s), clock, plan, ignore)


def test_steady_steps_stop_at_the_least_count_because_the_interval_is_narrow() -> None:
    found = run_steps([0.01], Plan(warmup_s=0.1, min_samples=12, min_time_s=0.1))
    assert (found.stopped_by, len(found.rates)) == ("interval", 12)
    assert found.bytes_per_s == pytest.approx(100_000)


def test_a_quick_agreement_is_not_believed_before_the_least_time() -> None:
    found = run_steps([0.001], Plan(warmup_s=0.1, min_samples=12, min_time_s=0.5))
    assert found.elapsed_s >= 0.4


def test_noisy_steps_stop_when_time_is_up() -> None:
    noisy = (0.01 * np.random.default_rng(0).lognormal(0, 1, 10_000)).tolist()
    found = run_steps(noisy, Plan(warmup_s=0.1, time_limit_s=2.0, target_half_width=1e-4))
    assert found.stopped_by == "time"
    assert found.half_width is not None
    assert found.half_width > 1e-4


def test_steps_stop_at_the_most_samples() -> None:
    noisy = (1e-6 * np.random.default_rng(0).lognormal(0, 1, 10_000)).tolist()
    found = run_steps(noisy, Plan(warmup_s=1e-5, max_samples=500, target_half_width=1e-6))
    assert found.stopped_by == "samples"
    assert len(found.rates) + found.warmup_samples >= 500


def test_a_slow_warm_up_is_not_in_the_figure() -> None:
    found = run_steps([0.5] * 3 + [0.01], Plan(warmup_s=1.0))
    assert found.bytes_per_s == pytest.approx(100_000)
    assert found.payload_bytes > found.timed_bytes, "warm-up moved bytes too"


def test_the_median_of_steps_is_the_figure_and_no_outlier_is_dropped() -> None:
    durations = ([0.01] * 9 + [1.0]) * 100
    found = run_steps(durations, Plan(warmup_s=0.01, time_limit_s=30, target_half_width=1e-9))
    assert found.bytes_per_s == pytest.approx(100_000)
    assert found.rates.min() == pytest.approx(1000)


def test_a_step_without_bytes_is_an_error_and_no_fast_step() -> None:
    clock = FakeClock()
    body = Steps(clock, [0.01])
    body.step = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(CorruptDataError, match="no bytes"):
        sample(body, clock, Plan(warmup_s=0.01), ignore)


@pytest.mark.parametrize("gap_s", [1e-5, 3.7e-4, 0.011, 0.3])
def test_a_stream_gives_bytes_over_time_exactly_whatever_the_operation_takes(gap_s: float) -> None:
    clock = FakeClock()
    body = Stream(clock, gap_s)
    found = sample(body, clock, Plan(warmup_s=0.5, time_limit_s=5.0), ignore)
    assert found.bytes_per_s == pytest.approx(1000 / gap_s, rel=1e-4)
    assert found.statistic == "elapsed"
    assert body.stopped


def test_a_stall_in_a_stream_is_in_the_figure() -> None:
    # Throughput is completed bytes over elapsed time; a median would hide the stall.
    class Stalling(Stream):
        def poll(self, wait_s: float) -> Completions:
            done = super().poll(wait_s)
            stalled = (done.end_ns // 10**9) % 2 == 1  # every other second nothing completes
            return Completions(done.end_ns[~stalled], done.latency_ns[~stalled])

    clock = FakeClock()
    plan = Plan(warmup_s=0.5, time_limit_s=10.0, min_time_s=10.0)
    found = sample(Stalling(clock, 0.001), clock, plan, ignore)
    assert found.bytes_per_s == pytest.approx(500_000, rel=0.15)


def test_a_stream_that_completes_nothing_is_refused() -> None:
    clock = FakeClock()
    with pytest.raises(TooFewSamplesError, match="too few"):
        sample(Stream(clock, 100.0), clock, Plan(warmup_s=0.1, time_limit_s=1.0), ignore)


def test_latencies_are_those_of_the_timed_part() -> None:
    clock = FakeClock()
    found = sample(Stream(clock, 0.001), clock, Plan(warmup_s=0.5, time_limit_s=1.0), ignore)
    assert len(found.latencies_ns) * 1000 == found.timed_bytes
    assert set(found.latencies_ns.tolist()) == {1_000_000}


def test_operations_of_different_sizes_count_by_their_bytes() -> None:
    # Every second operation moves nine times as much; a window is one of them.
    class Uneven(Stream):
        operation_bytes = 0

        def poll(self, wait_s: float) -> Completions:
            done = super().poll(wait_s)
            large = np.round(done.end_ns / self._gap_ns).astype(np.int64) % 2 == 0
            sizes = np.where(large, 1800, 200).astype(np.int64)
            return Completions(done.end_ns[::-1], done.latency_ns, sizes[::-1])

    clock = FakeClock()
    found = sample(Uneven(clock, 0.03), clock, Plan(warmup_s=0.5, time_limit_s=8.0), ignore)
    assert set(np.round(found.rates * 0.03).tolist()) == {200.0, 1800.0}
    assert (np.abs(np.diff(found.rates * 0.03)) > 1000).all(), "each with its own size, in order"
    assert found.bytes_per_s == pytest.approx(1000 / 0.03, rel=0.02)
    assert found.timed_bytes == pytest.approx(found.bytes_per_s * found.elapsed_s)
    assert found.payload_bytes > found.timed_bytes > 0

"""Clocks: what a step's time is, and what must never be part of it."""

import time
from types import SimpleNamespace

import pytest

from kvbench.errors import TierUnavailableError
from kvbench.measure import clock as clocks
from kvbench.measure.clock import Clock, CudaClock, FakeClock, HostClock, Stretched


class Device:
    """Stands in for torch: work is enqueued in no time and done when the device gets to it."""

    def __init__(self, available: bool = True) -> None:
        self.enqueued_until_s = 0.0  # when the device will have done all that was enqueued
        self.host_s = 0.0  # how far the host has waited
        self.cuda = SimpleNamespace(
            is_available=lambda: available,
            current_stream=lambda: SimpleNamespace(synchronize=self.wait),
            Event=lambda enable_timing: DeviceEvent(self, enable_timing),
        )

    def enqueue(self, seconds: float) -> None:
        self.enqueued_until_s = max(self.enqueued_until_s, self.host_s) + seconds

    def wait(self) -> None:
        self.host_s = max(self.host_s, self.enqueued_until_s)


class DeviceEvent:
    def __init__(self, device: Device, enable_timing: bool) -> None:
        assert enable_timing, "torch refuses elapsed_time on an event made without it"
        self.device = device
        self.at_s: float | None = None
        self.waited = False

    def record(self, stream: object) -> None:
        assert stream is not None
        self.at_s = max(self.device.enqueued_until_s, self.device.host_s)
        self.waited = False

    def synchronize(self) -> None:
        assert self.at_s is not None
        self.device.host_s = max(self.device.host_s, self.at_s)
        self.waited = True

    def elapsed_time(self, end: "DeviceEvent") -> float:
        assert end.waited, "torch raises cudaErrorNotReady for an event that was not waited for"
        assert self.at_s is not None
        assert end.at_s is not None
        return (end.at_s - self.at_s) * 1e3


@pytest.mark.parametrize("clock", [HostClock(), FakeClock(), CudaClock(Device())])
def test_a_clock_hands_back_what_the_step_returned_and_runs_it_once(clock: Clock) -> None:
    calls: list[int] = []

    def step() -> int:
        calls.append(1)
        return 4096

    assert clock.time(step)[0] == 4096
    assert calls == [1]


def test_the_host_clock_measures_the_step_in_seconds() -> None:
    def step() -> int:
        time.sleep(0.02)
        return 1

    _, took_s = HostClock().time(step)

    # A sleep is never shorter than asked; how much longer it is depends on who else runs here.
    assert 0.02 <= took_s < 2.0


def test_the_cuda_clock_measures_the_device_not_the_call_that_enqueued() -> None:
    device = Device()

    def step() -> int:
        device.enqueue(0.25)
        return 1

    assert CudaClock(device).time(step) == (1, 0.25)
    assert device.host_s == pytest.approx(0.25), "the step's work was still running on return"


def test_work_enqueued_before_the_step_is_not_part_of_the_cuda_sample() -> None:
    device = Device()
    clock = CudaClock(device)
    device.enqueue(5.0)

    def step() -> int:
        # What the host does while the device still works on the backlog would be hidden by it.
        assert device.host_s == 5.0
        device.enqueue(0.5)
        return 1

    assert clock.time(step)[1] == pytest.approx(0.5)


def test_the_cuda_clock_can_time_again_after_a_step_that_failed() -> None:
    device = Device()
    clock = CudaClock(device)

    def failing() -> int:
        device.enqueue(1.0)
        raise TierUnavailableError("out of memory")

    def working() -> int:
        device.enqueue(0.5)
        return 1

    with pytest.raises(TierUnavailableError):
        clock.time(failing)

    assert clock.time(working)[1] == pytest.approx(0.5)


def test_the_cuda_clock_without_a_device_says_what_to_check() -> None:
    with pytest.raises(TierUnavailableError, match=r"torch sees none: check nvidia-smi"):
        CudaClock(Device(available=False))


def test_the_fake_clock_moves_only_when_it_is_told_to() -> None:
    clock = FakeClock()

    def step() -> int:
        clock.advance(1.5)
        return 7

    assert clock.time(lambda: 1) == (1, 0.0)
    assert clock.time(step) == (7, 1.5)
    assert clock.now_s() == 1.5


@pytest.mark.parametrize("seconds", [-0.1, float("nan")])
def test_the_fake_clock_refuses_to_go_back(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"cannot advance by"):
        FakeClock().advance(seconds)


@pytest.mark.parametrize("clock", [HostClock(), CudaClock(Device())])
def test_the_time_for_limits_goes_on_by_itself(clock: Clock) -> None:
    before_s = clock.now_s()
    time.sleep(0.001)
    assert clock.now_s() - before_s >= 0.001


# ---------------------------------------------------------------- slowed on purpose


@pytest.mark.parametrize("clock", [HostClock(), FakeClock(), CudaClock(Device())])
def test_a_stretched_step_is_run_once_and_its_bytes_are_handed_back(clock: Clock) -> None:
    calls: list[int] = []

    def step() -> int:
        calls.append(1)
        return 4096

    assert Stretched(clock, 0.5).time(step)[0] == 4096
    assert calls == [1]


def test_on_the_fake_clock_a_share_is_exact_and_follows_each_step() -> None:
    fake = FakeClock()
    clock = Stretched(fake, 0.08)

    def step() -> int:
        fake.advance(seconds)
        return 1

    for seconds in (1.0, 3.0):
        assert clock.time(step)[1] == pytest.approx(1.08 * seconds)
    assert clock.now_s() == fake.now_s() == pytest.approx(4.32)


def test_on_the_host_a_stretched_step_really_takes_longer() -> None:
    plain_s: list[float] = []

    def step() -> int:
        began_s = time.perf_counter()
        time.sleep(0.01)
        plain_s.append(time.perf_counter() - began_s)
        return 1

    _, took_s = Stretched(HostClock(), 2.0).time(step)
    assert took_s >= 3 * plain_s[0]
    assert took_s < 3 * plain_s[0] + 1.0, "no more than another load can explain"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device whose host lives in the same made-up time, a microsecond for each look at it."""
    device = Device()

    def look_ns() -> int:
        device.host_s += 1e-6
        return round(device.host_s * 1e9)

    monkeypatch.setattr(clocks, "time", SimpleNamespace(perf_counter_ns=look_ns))
    return device


def test_the_cuda_span_grows_by_the_share_of_each_step(device: Device) -> None:
    clock = Stretched(CudaClock(device), 0.08)

    def step() -> int:
        device.enqueue(seconds)
        return 1

    for seconds in (0.002, 0.004, 0.002):
        assert clock.time(step)[1] == pytest.approx(1.08 * seconds, abs=5e-6)


def test_a_cuda_step_whose_launches_take_longer_than_its_work_is_stretched_as_a_whole(
    device: Device,
) -> None:
    def step() -> int:
        for _ in range(10):
            device.host_s += 1e-4  # a launch
            device.enqueue(1e-5)
        return 1

    assert Stretched(CudaClock(device), 1.0).time(step)[1] == pytest.approx(2.02e-3, rel=0.01)


@pytest.mark.gpu
def test_a_stretched_copy_on_a_real_device_takes_longer_by_the_share() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    size = 2**30
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> int:
        target.copy_(source)
        return size

    plain = CudaClock()
    clocks_in_turn = (plain, Stretched(plain, 0.10))
    spans_s = [[clock.time(copy)[1] for clock in clocks_in_turn] for _ in range(50)]
    first_s, second_s = (sorted(column)[25] for column in zip(*spans_s, strict=True))
    assert second_s / first_s == pytest.approx(1.10, abs=0.03)


@pytest.mark.gpu
def test_cuda_events_see_a_real_copy_take_longer_than_an_empty_step() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    clock = CudaClock()
    size = 256 * 2**20
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> int:
        target.copy_(source)
        return size

    clock.time(copy)  # the first use of a stream and of the allocator
    _, copy_s = clock.time(copy)
    _, empty_s = clock.time(lambda: 0)

    # 256 MiB read and written take over 60 µs even at 8 TB/s, more than any device can do today.
    assert copy_s > 60e-6
    assert empty_s < copy_s

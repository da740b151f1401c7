"""Clocks: how long one step took, seen by something that knows when its work is complete.

`HostClock` is for steps that return when their bytes have arrived, `CudaClock` for steps that only
enqueue on a CUDA stream, `FakeClock` for tests and simulated devices, where the step itself says
how long it takes. No clock repeats a step, discards a sample or computes a rate: the sampler does.
`Stretched` makes every step longer by a share, on purpose, for a gate that has to be seen red.

May import: kvbench.errors. torch is imported only when a `CudaClock` is made.
"""

import time
from collections.abc import Callable
from typing import Protocol, cast

from kvbench.errors import TierUnavailableError

_S_PER_NS = 1e-9
_S_PER_MS = 1e-3


class Clock(Protocol):
    """Times one step, and tells the time for limits."""

    def time(self, step: Callable[[], int]) -> tuple[int, float]:
        """Run `step` once: what it returned, and the seconds until its work was complete."""
        ...

    def now_s(self) -> float:
        """Seconds since some fixed moment; never goes back. For time limits, not for results."""
        ...

    def stretch(self, step: Callable[[], int], share: float) -> Callable[[], int]:
        """The same step, longer by `share` of its own time as this clock sees it."""
        ...


class Stretched:
    """A clock under which every step takes `share` longer than it does under the clock below.

    The time is really spent, inside the span that the clock below measures; no number is changed.
    """

    def __init__(self, clock: Clock, share: float) -> None:
        self._clock = clock
        self.share = share

    def time(self, step: Callable[[], int]) -> tuple[int, float]:
        """Run `step` once and wait: what it returned, and the seconds of both."""
        return self._clock.time(self._clock.stretch(step, self.share))

    def now_s(self) -> float:
        """What the clock below says."""
        return self._clock.now_s()

    def stretch(self, step: Callable[[], int], share: float) -> Callable[[], int]:
        """Longer by one share, and the whole by the other."""
        return self._clock.stretch(self._clock.stretch(step, self.share), share)


class HostClock:
    """`perf_counter_ns` around a step that returns only when its work is complete."""

    def time(self, step: Callable[[], int]) -> tuple[int, float]:
        """Run `step` once: what it returned, and the seconds it took, read in nanoseconds."""
        start_ns = time.perf_counter_ns()
        result = step()
        end_ns = time.perf_counter_ns()
        return result, (end_ns - start_ns) * _S_PER_NS

    def now_s(self) -> float:
        """Seconds of the monotonic host clock."""
        return time.perf_counter()

    def stretch(self, step: Callable[[], int], share: float) -> Callable[[], int]:
        """The step, and then this thread keeps busy: a sleep would be too long by 50 µs."""

        def stretched() -> int:
            began_ns = time.perf_counter_ns()
            result = step()
            ended_ns = time.perf_counter_ns()
            _spin_until(ended_ns + round(share * (ended_ns - began_ns)))
            return result

        return stretched


class CudaClock:
    """CUDA events on the current stream around a step that enqueues work there.

    The span is measured by the device, from the moment the first event is reached to the moment
    everything that the step enqueued on that stream is done; work on other streams is not seen.
    A step of short operations is therefore charged for the launches between them, as a user is.
    The first event is recorded on an idle stream, so that a backlog is never part of a sample.
    """

    def __init__(self, torch_module: object = None) -> None:
        """Make the two events.

        Args:
            torch_module: what to use for `torch`; tests pass a stand-in. Imported when left out.

        Raises:
            TierUnavailableError: torch sees no CUDA device.
        """
        if torch_module is None:
            import torch  # noqa: PLC0415 - half a second, and only this clock needs it

            torch_module = torch
        self._cuda = cast("_Torch", torch_module).cuda
        if not self._cuda.is_available():
            raise TierUnavailableError(
                "CUDA events need a CUDA device and torch sees none: "
                "check nvidia-smi, CUDA_VISIBLE_DEVICES and that torch is a CUDA build"
            )
        self._start = self._cuda.Event(enable_timing=True)
        self._end = self._cuda.Event(enable_timing=True)
        self._done = self._cuda.Event(enable_timing=True)

    def time(self, step: Callable[[], int]) -> tuple[int, float]:
        """Run `step` once: what it returned, and the device's seconds until its work was done.

        The resolution of an event is about half a microsecond (CUDA Runtime API, section Event
        Management), so an empty step may read 0.0. The device is done when this returns.
        """
        stream = self._cuda.current_stream()
        stream.synchronize()
        self._start.record(stream)
        result = step()
        self._end.record(stream)
        self._end.synchronize()
        return result, self._start.elapsed_time(self._end) * _S_PER_MS

    def now_s(self) -> float:
        """Seconds of the monotonic host clock; the device is not asked."""
        return time.perf_counter()

    def stretch(self, step: Callable[[], int], share: float) -> Callable[[], int]:
        """The step, and then the current stream stays empty until its time is over.

        The host learns from an event how long the device took, waits until (1 + share) times that
        has passed since the call, and lets `time` record the end. Both ends of the span are then
        set by the host's calls, and the few microseconds from a call to its event cancel. Chosen
        over a kernel that spins (`torch.cuda._sleep`), which counts cycles of a clock that moves
        with load, takes a length that was learnt from other steps, and is private to torch.

        What is not exact: the host needs some ten microseconds to hear of the event, so a share
        of a step that is shorter than this comes out longer. Tested with a stand-in for torch;
        on a device only by the test marked `gpu`, which has not been run on one.
        """

        def stretched() -> int:
            stream = self._cuda.current_stream()
            began_ns = time.perf_counter_ns()
            result = step()
            self._done.record(stream)
            self._done.synchronize()
            took_s = self._start.elapsed_time(self._done) * _S_PER_MS
            _spin_until(began_ns + round((1 + share) * took_s / _S_PER_NS))
            return result

        return stretched


class FakeClock:
    """A clock that moves only when it is told to, by the step it times."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def advance(self, seconds: float) -> None:
        """Move on.

        Raises:
            ValueError: a negative number of seconds, which would turn time back.
        """
        if not seconds >= 0:  # also refuses nan
            raise ValueError(f"a clock cannot advance by {seconds} s: expected 0 or more")
        self._now_s += seconds

    def time(self, step: Callable[[], int]) -> tuple[int, float]:
        """Run `step` once: what it returned, and the seconds by which it advanced this clock."""
        start_s = self._now_s
        return step(), self._now_s - start_s

    def now_s(self) -> float:
        """Seconds by which this clock was advanced in all."""
        return self._now_s

    def stretch(self, step: Callable[[], int], share: float) -> Callable[[], int]:
        """The step, and then this clock moves on by `share` of what the step moved it."""

        def stretched() -> int:
            start_s = self._now_s
            result = step()
            self.advance(share * (self._now_s - start_s))
            return result

        return stretched


def _spin_until(moment_ns: int) -> None:
    while time.perf_counter_ns() < moment_ns:
        pass


class _Stream(Protocol):
    def synchronize(self) -> None: ...


class _Event(Protocol):
    def record(self, stream: _Stream) -> None: ...
    def synchronize(self) -> None: ...
    def elapsed_time(self, end: "_Event") -> float: ...


class _Cuda(Protocol):
    def is_available(self) -> bool: ...
    def current_stream(self) -> _Stream: ...
    def Event(self, *, enable_timing: bool) -> _Event: ...  # noqa: N802 - torch's name


class _Torch(Protocol):
    @property
    def cuda(self) -> _Cuda: ...

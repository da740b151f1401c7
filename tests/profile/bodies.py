"""Bodies for the tests of profiling: real work, small; and some that fail."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import ClassVar

import numpy as np

from kvbench.errors import TierUnavailableError
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.stream import Lanes
from kvbench.store.spans import IO, REQUEST, Spans

STEP_BYTES = 1 << 16


class Stepping:
    """Copies in host memory, and Python in between."""

    clock: ClassVar[str] = "host"
    timeline: ClassVar[dict[str, str]] = {"_move": "copy"}

    def set_up(self, context: Context) -> None:
        del context
        self.source = np.ones(STEP_BYTES, dtype=np.uint8)
        self.target = np.zeros_like(self.source)

    def step(self) -> int:
        for _ in range(3):
            self._move()
            until_s = time.perf_counter() + 0.0005
            while time.perf_counter() < until_s:
                pass
        return STEP_BYTES

    def _move(self) -> None:
        np.copyto(self.target, self.source)
        time.sleep(0.001)

    def verify(self) -> int:
        assert np.array_equal(self.source, self.target)
        return STEP_BYTES

    def observed(self) -> Observed:
        return Observed(path="host memory")

    def tear_down(self) -> None:
        pass


class Streaming(Stepping):
    """Three lanes that sleep for a millisecond an operation."""

    timeline: ClassVar[dict[str, str]] = {"_operate": "step"}
    operation_bytes = 4096

    def start(self) -> None:
        self.lanes = Lanes(3, self._operate)
        self.lanes.start()

    def poll(self, wait_s: float) -> Completions:
        return self.lanes.poll(wait_s)

    def stop(self) -> None:
        self.lanes.stop()

    def watch(self) -> Watch | None:
        return None

    def slowed(self) -> float:
        return 0.0

    def verify(self) -> int:
        return 0

    def _operate(self, _lane: int, _n: int) -> None:
        time.sleep(0.001)


class Pool:
    """As much of a store as a timeline sees: requests wait for one of two workers, who sleep."""

    def __init__(self) -> None:
        self.spans: Spans | None = None
        self.numbers = count(1)
        self.workers = ThreadPoolExecutor(2, thread_name_prefix="nvme")

    def spans_into(self, spans: Spans) -> None:
        self.spans = spans

    def get(self, size_bytes: int) -> Future[None]:
        number, asked_ns = next(self.numbers), time.perf_counter_ns()
        return self.workers.submit(self._serve, number, asked_ns, size_bytes)

    def _serve(self, number: int, asked_ns: int, size_bytes: int) -> None:
        begun_ns = time.perf_counter_ns()
        time.sleep(0.002)
        read_ns = time.perf_counter_ns()
        if self.spans is not None:
            self.spans.note("batch", IO, begun_ns, read_ns, size_bytes)
            self.spans.note("queued", REQUEST, asked_ns, begun_ns, request=number)
            self.spans.note("read", REQUEST, begun_ns, read_ns, request=number)
            ended_ns = time.perf_counter_ns()
            self.spans.note("get", REQUEST, asked_ns, ended_ns, size_bytes, number)


class Storing(Stepping):
    """Six gets at a time from something like a store, which notes its spans itself."""

    timeline: ClassVar[dict[str, str]] = {}

    def set_up(self, context: Context) -> None:
        super().set_up(context)
        self.store = Pool()

    def spans_into(self, spans: Spans) -> None:
        self.store.spans_into(spans)

    def step(self) -> int:
        for request in [self.store.get(STEP_BYTES) for _ in range(6)]:
            request.result()
        return 6 * STEP_BYTES

    def verify(self) -> int:
        return 0

    def tear_down(self) -> None:
        self.store.workers.shutdown()


class Failing(Streaming):
    """Its lanes meet a drive that gives up in the middle."""

    def _operate(self, lane: int, n: int) -> None:
        super()._operate(lane, n)
        if n == 40:
            raise OSError(5, "Input/output error", "read.dat")


class Absent(Stepping):
    def set_up(self, context: Context) -> None:
        raise TierUnavailableError(f"no such memory here, seed {context.seed}")


class Crashing(Stepping):
    def step(self) -> int:
        raise ZeroDivisionError("a bug")


class Dying(Stepping):
    def step(self) -> int:
        os.abort()


class Hanging(Stepping):
    def step(self) -> int:
        time.sleep(600)
        return 1


class WithTorch(Stepping):
    """Copies by torch on the CPU."""

    timeline: ClassVar[dict[str, str]] = {}

    def set_up(self, context: Context) -> None:
        import torch  # noqa: PLC0415  one test uses it

        super().set_up(context)
        self.tensors = torch.as_tensor(self.target), torch.as_tensor(self.source)

    def step(self) -> int:
        target, source = self.tensors
        target.copy_(source)
        time.sleep(0.001)
        return STEP_BYTES

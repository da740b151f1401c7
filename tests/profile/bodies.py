"""Bodies for the tests of profiling: real work, small; and some that fail."""

import os
import time
from typing import ClassVar

import numpy as np

from kvbench.errors import TierUnavailableError
from kvbench.measure.body import Completions, Context, Observed, Watch
from kvbench.measure.stream import Lanes

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

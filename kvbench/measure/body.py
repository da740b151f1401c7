"""What a case body is. A body does work and says how many bytes it moved.

It never measures time, prints or computes a bandwidth: the sampler does. Setting up, checking
the data and tidying away are separate calls, outside the clock.

Two kinds. A `StepBody` does one sample of work per call and is timed call by call: copies and
kernels. A `StreamBody` keeps operations in flight until it is stopped and reports each
completion: storage at a queue depth, where a barrier after every batch would measure the barrier.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import Caution
from kvbench.measure.suite import Plan, Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a body may know: its parameters, the model, the machine, and where it may write."""

    params: dict[str, Value]
    geometry: KVGeometry
    machine: Machine
    plan: Plan
    seed: int  # the same for all processes of a run: they share the data files
    process: int
    scratch: Path | None  # None where no case of the run needs a directory
    half: int = 0  # 1 on the second side of a pair, whose processes have the same seed and number
    slowdown: float = 0.0  # share of work that a StreamBody is to do beyond what it tells of

    def count(self, name: str) -> int:
        """A parameter that is a number."""
        return int(self.params[name])

    def word(self, name: str) -> str:
        """A parameter that is a word."""
        return str(self.params[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The path that bytes took, as far as it can be known, and the evidence for it."""

    path: str | None  # None: it cannot be known, and a caution says why
    evidence: dict[str, Any] = field(default_factory=dict[str, Any])
    cautions: tuple[Caution, ...] = ()
    device_payload_bytes: int | None = None  # what the watched device had to move; None: all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What to look at before and after the timed part of a storage case."""

    files: tuple[Path, ...]
    stat_path: Path | None  # /sys/block/*/stat of the device below
    direction: str  # "read" | "write" | "both"


@dataclass(frozen=True, slots=True)
class Completions:
    """Operations that completed since the last poll, in no order.

    Without `size_bytes` all are of the stream's `operation_bytes`; with it each has its own.
    """

    end_ns: NDArray[np.int64]
    latency_ns: NDArray[np.int64]
    size_bytes: NDArray[np.int64] | None = None

    def sizes(self, operation_bytes: int) -> NDArray[np.int64]:
        """The payload of each, int64 [n]."""
        if self.size_bytes is not None:
            return self.size_bytes
        return np.full(len(self.end_ns), operation_bytes, dtype=np.int64)


class Body(Protocol):
    """What both kinds have."""

    clock: ClassVar[str]  # "host" | "cuda": which clock can see the work complete

    def set_up(self, context: Context) -> None:
        """Allocate and fill. Raises TierUnavailableError where the machine cannot do it."""
        ...

    def verify(self) -> int:
        """Bytes checked against what was sent. Raises CorruptDataError on a difference."""
        ...

    def observed(self) -> Observed:
        """The path that the bytes took; called after the timed part."""
        ...

    def tear_down(self) -> None:
        """Release everything; called also after a failure in `set_up`."""
        ...


@runtime_checkable
class Watched(Protocol):
    """A body whose bytes come from a drive: every stream, and steps that say so."""

    def watch(self) -> Watch | None:
        """The files and device counters that tell where the bytes really came from."""
        ...


@runtime_checkable
class StepBody(Body, Protocol):
    """Work that is timed call by call."""

    def step(self) -> int:
        """Do one sample of work; return the payload bytes that arrived.

        Under the host clock it returns when the bytes have arrived; under the CUDA clock it
        enqueues on the current stream and the clock waits.
        """
        ...


@runtime_checkable
class StreamBody(Body, Protocol):
    """Work that goes on by itself."""

    operation_bytes: int  # 0 where operations differ: then `Completions` says how much each moved

    def start(self) -> None:
        """Begin; operations are in flight from here on."""
        ...

    def poll(self, wait_s: float) -> Completions:
        """Wait, then return what completed since the last poll. Raises what an operation raised."""
        ...

    def stop(self) -> None:
        """Let operations in flight finish and start no more."""
        ...

    def watch(self) -> Watch | None:
        """The files and device counters that tell where the bytes really came from."""
        ...

    def slowed(self) -> float:
        """Work done beyond what was told of, as a share of it: about `Context.slowdown`.

        A StepBody has no such thing: the clock makes its steps longer.
        """
        ...

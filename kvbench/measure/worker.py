"""The process that measures one case once: `python -m kvbench.measure.worker`.

Reads one `Assignment` as a line of JSON from standard input and answers with lines of JSON on
standard output: estimates, then one result or one failure. It ends when its standard input is
closed, so it cannot outlive the run that started it. What a library prints to standard output
goes to standard error instead.
"""

import errno
import gc
import importlib
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np

from kvbench.errors import CorruptDataError, KvbenchError, TierUnavailableError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.body import Body, Context, StepBody, StreamBody, Watch, Watched
from kvbench.measure.clock import Clock, CudaClock, FakeClock, HostClock, Stretched
from kvbench.measure.evidence import device_bytes, resident_share
from kvbench.measure.latency import encode, thin
from kvbench.measure.result import ProcessResult
from kvbench.measure.sampler import Samples, sample
from kvbench.measure.simulated import Device, SimulatedStep, SimulatedStream
from kvbench.measure.stats import LEAST_FOR_PERCENTILE
from kvbench.measure.stream import LaneStuckError
from kvbench.measure.suite import Plan

MOST_SAMPLES_KEPT = 1000
S_PER_NS = 1e-9


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to measure."""

    body: str  # "module:Class"
    stream: bool
    traffic_per_payload: float
    params: dict[str, int | str | bool]
    plan: Plan
    geometry: KVGeometry
    machine: Machine
    seed: int
    process: int
    scratch: str | None = None
    device: Device | None = None  # simulate this instead
    half: int = 0  # 1 on the second side of a pair
    inject: float = 0.0  # share by which to slow the work down, on purpose
    tracer: str = "none"  # of `kvbench profile`: who looks on beside its own recorder


class Estimate(msgspec.Struct, frozen=True, tag="estimate"):
    """How it is going."""

    bytes_per_s: float
    samples: int
    half_width: float | None


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """What the worker begins to do: "set up", "measure" or "verify"."""

    name: str


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """Why there is no result. `state` is a row's state: skipped, invalid or failed."""

    state: str
    code: str
    text: str


class Result(msgspec.Struct, frozen=True, tag="result"):
    """What was measured."""

    value: ProcessResult


Message = Estimate | Phase | Failure | Result
Send = Callable[[Message], None]
SendAny = Callable[[msgspec.Struct], None]
_T = TypeVar("_T")


def main() -> None:
    """Measure the case on standard input."""
    serve(run)


def serve(work: Callable[[Assignment, SendAny], msgspec.Struct]) -> None:
    """Do `work` on the assignment on standard input; what it sends and returns is the answer.

    Ends the process. `kvbench.profile.child` does other work in a process like this one.
    """
    out = _take_over_stdout()
    line = sys.stdin.buffer.readline()
    assignment = msgspec.json.decode(line, type=Assignment)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def send(message: msgspec.Struct) -> None:
        out.write(msgspec.json.encode(message) + b"\n")
        out.flush()

    try:
        send(work(assignment, send))
    except BaseException:  # noqa: BLE001  the last line of it becomes the row's reason
        traceback.print_exc()
        _leave(1)
    _leave(0)


def run(assignment: Assignment, send: Send) -> Result | Failure:
    """Set up, sample, check and tidy away; a known failure becomes a `Failure`."""
    return attempt(assignment, lambda body, clock: Result(_measure(assignment, body, clock, send)))


def attempt(  # noqa: PLR0911  one a failure
    assignment: Assignment, work: Callable[[StepBody | StreamBody, Clock], _T]
) -> _T | Failure:
    """Do `work` with the assignment's body, and tidy away; a known failure becomes a `Failure`."""
    try:
        body, clock = _make(assignment)
        try:
            return work(body, clock)
        finally:
            body.tear_down()
    except TierUnavailableError as error:
        return Failure("skipped", "unavailable", str(error))
    except CorruptDataError as error:
        return Failure("invalid", error.code, str(error))
    except KvbenchError as error:
        return Failure("failed", error.code, str(error))
    except LaneStuckError as error:
        return Failure("failed", "stuck", str(error))
    except MemoryError as error:
        return Failure("failed", "out_of_memory", str(error) or "out of memory")
    except OSError as error:
        return _os_failure(error)


def _os_failure(error: OSError) -> Failure:
    where = f" ({Path(error.filename).name})" if isinstance(error.filename, str) else ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Failure(
            "failed",
            "disk_full",
            f"{error.strerror}{where}: free some space, name another --dir or a smaller --data",
        )
    return Failure("failed", "io_error", f"{error.strerror or error}{where}")


def _make(assignment: Assignment) -> tuple[StepBody | StreamBody, Clock]:
    if assignment.device is not None:
        fake = FakeClock()
        kind = SimulatedStream if assignment.stream else SimulatedStep
        return kind(assignment.device, fake), fake
    module, _, name = assignment.body.partition(":")
    body = getattr(importlib.import_module(module), name)()
    return body, CudaClock() if body.clock == "cuda" else HostClock()


def context_of(assignment: Assignment) -> Context:
    """What the body may know."""
    return Context(
        params=assignment.params,
        geometry=assignment.geometry,
        machine=assignment.machine,
        plan=assignment.plan,
        seed=assignment.seed,
        process=assignment.process,
        scratch=Path(assignment.scratch) if assignment.scratch else None,
        half=assignment.half,
        slowdown=assignment.inject if assignment.stream else 0.0,
    )


def _measure(
    assignment: Assignment,
    body: StepBody | StreamBody,
    clock: Clock,
    send: Send,
) -> ProcessResult:
    if assignment.inject and not isinstance(body, StreamBody):
        clock = Stretched(clock, assignment.inject)
    send(Phase("set up"))
    body.set_up(context_of(assignment))
    send(Phase("measure"))
    watch = body.watch() if isinstance(body, Watched) else None
    before = _look(watch)
    gc.collect()
    gc.disable()  # a collection inside a sample would be charged to the tier
    samples = sample(
        body,
        clock,
        assignment.plan,
        lambda bytes_per_s, samples, half_width: send(Estimate(bytes_per_s, samples, half_width)),
    )
    gc.enable()
    after = _look(watch)
    send(Phase("verify"))
    verified_bytes = body.verify()
    result = _process_result(assignment, samples, body, (before, after), verified_bytes)
    slowed = clock.share if isinstance(clock, Stretched) else 0.0
    slowed = body.slowed() if isinstance(body, StreamBody) else slowed
    return msgspec.structs.replace(result, inject=slowed)


def _process_result(
    assignment: Assignment,
    samples: Samples,
    body: Body,
    looks: tuple[tuple[int | None, float | None], tuple[int | None, float | None]],
    verified_bytes: int,
) -> ProcessResult:
    (device_before, resident_before), (device_after, resident_after) = looks
    observed = body.observed()
    has_latencies = samples.latencies_ns.size > 0
    effective_latencies = samples.effective_latencies
    device = None
    if device_before is not None and device_after is not None:
        device = device_after - device_before
    return ProcessResult(
        process=assignment.process,
        statistic=samples.statistic,
        bytes_per_s=samples.bytes_per_s,
        payload_bytes=samples.payload_bytes,
        timed_bytes=samples.timed_bytes,
        traffic_bytes=round(samples.payload_bytes * assignment.traffic_per_payload),
        elapsed_s=samples.elapsed_s,
        sample_bytes_per_s=thin(samples.rates.tolist(), MOST_SAMPLES_KEPT),
        sample_count=len(samples.rates),
        warmup_samples=samples.warmup_samples,
        stopped_by=samples.stopped_by,
        half_width=samples.half_width,
        autocorrelation=samples.autocorrelation,
        slow_fraction=samples.slow_fraction,
        steady=samples.steady,
        device_bytes=device,
        device_payload_bytes=observed.device_payload_bytes,
        resident_before=resident_before,
        resident_after=resident_after,
        verified_bytes=verified_bytes,
        path_observed=observed.path,
        path_evidence=observed.evidence,
        cautions=list(observed.cautions),
        latency_count=int(samples.latencies_ns.size),
        latency_effective_count=effective_latencies,
        latency_p99_s=_p99_s(samples, effective_latencies),
        latency_histogram=encode(samples.latencies_ns) if has_latencies else None,
    )


def _p99_s(samples: Samples, effective_count: float) -> float | None:
    """This process's own; None where so few samples leave fewer than ten beyond it."""
    if effective_count < LEAST_FOR_PERCENTILE[99.0]:
        return None
    return float(np.percentile(samples.latencies_ns, 99)) * S_PER_NS


def _look(watch: Watch | None) -> tuple[int | None, float | None]:
    """The device's byte counter and the largest resident share of the files."""
    if watch is None:
        return None, None
    shares = [share for file in watch.files if (share := resident_share(file)) is not None]
    return device_bytes(watch.stat_path, watch.direction), max(shares, default=None)


def _take_over_stdout() -> BinaryIO:
    """Keep the real standard output for messages; whatever else is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def _leave(status: int) -> None:
    """End at once: Python's own farewell would wait for the thread that watches the parent."""
    sys.stderr.flush()
    os._exit(status)


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(3)  # the parent is gone or has had enough: no clean-up can be wanted by anyone


if __name__ == "__main__":
    main()

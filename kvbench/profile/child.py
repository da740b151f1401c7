"""The process that is recorded: `python -m kvbench.profile.child`, much like a worker.

Reads an `Assignment` from standard input, whose time limit is how long to record, and answers
with phases, then batches of slices and one recording, or one failure. The body is set up, warmed
up and checked afterwards as in a measurement; statistics are not its business.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kvbench.measure.body import StepBody, StreamBody
from kvbench.measure.clock import Clock
from kvbench.measure.stream import Lanes
from kvbench.measure.suite import Plan
from kvbench.measure.worker import Assignment, Failure, Phase, SendAny, attempt, context_of, serve
from kvbench.profile.proton_tracer import ProtonTracer
from kvbench.profile.recorder import Recorder
from kvbench.profile.slices import IO, MOST_SLICES, PYTHON, STEP, WAIT, Batch, Recording
from kvbench.profile.torch_tracer import TorchTracer
from kvbench.store.kvikio_file import KvikioFile
from kvbench.store.posix import BlockFile
from kvbench.store.spans import Spanned

POLL_S = 0.01
LEAST_WARMUPS = 2
BATCH = 10_000
# Classes whose objects are watched whatever the case is, and what their methods are.
WATCHED: tuple[tuple[type, Mapping[str, str]], ...] = (
    (BlockFile, {"read": IO, "write": IO, "sync": IO, "drop_cache": IO}),
    (KvikioFile, {"read": IO, "write": IO}),
    (Lanes, Lanes.timeline),
)
S_PER_NS = 1e-9


def main() -> None:
    """Record the case on standard input."""
    serve(run)


def run(assignment: Assignment, send: SendAny) -> Recording | Failure:
    """Set up, warm up, record, check and tidy away; a known failure becomes a `Failure`."""

    def work(body: StepBody | StreamBody, clock: Clock) -> Recording:
        send(Phase("set up"))
        body.set_up(context_of(assignment))
        send(Phase("measure"))
        recording = record(body, clock, assignment.plan, assignment.tracer)
        send(Phase("verify"))
        verified_bytes = body.verify()
        observed = body.observed()
        for first in range(0, len(recording.slices), BATCH):
            send(Batch(recording.slices[first : first + BATCH]))
        return msgspec.structs.replace(
            recording,
            slices=[],
            verified_bytes=verified_bytes,
            path_observed=observed.path,
            cautions=list(observed.cautions),
        )

    return attempt(assignment, work)


def record(
    body: StepBody | StreamBody, clock: Clock, plan: Plan, tracer: str = "none"
) -> Recording:
    """Record a body that is set up, for the plan's time limit, after its warm-up.

    `tracer` is "torch" to have torch.profiler look on as well, "proton" or "none".

    Raises:
        TierUnavailableError: Proton was asked for and has no GPU.
    """
    recorder = Recorder("kvbench")
    operation_bytes = body.operation_bytes if isinstance(body, StreamBody) else 0
    recorder.watch_object(body, getattr(type(body), "timeline", {}), operation_bytes)
    if isinstance(body, Spanned):
        body.spans_into(recorder)  # the body's stores tell of their requests themselves
    torch = TorchTracer() if tracer == "torch" else None
    proton = ProtonTracer() if tracer == "proton" else None
    with contextlib.ExitStack() as stack:
        for owner, categories in WATCHED:
            stack.enter_context(recorder.watching(owner, categories))
        if torch is not None:
            stack.enter_context(torch)
        if proton is not None:
            stack.enter_context(proton)
        gc.collect()
        gc.disable()  # as a worker does: a collection would be charged to the tier
        stack.callback(gc.enable)
        if isinstance(body, StreamBody):
            window = _record_stream(body, plan, recorder)
        else:
            window = _record_steps(body, clock, plan, recorder)
    recorder.close()
    tracks, slices = recorder.taken()
    tools: dict[str, Any] = {}
    if torch is not None:
        torch.add_to(tracks, slices)
        tools["torch.profiler"] = torch.said()
    if proton is not None:
        tools["Proton"] = proton.said()
    return Recording(
        start_ns=window.start_ns,
        end_ns=window.end_ns,
        tracks=tracks,
        slices=slices,
        stopped_by=window.stopped_by,
        cpu_s=window.cpu_s,
        warmup_s=plan.warmup_s,
        verified_bytes=0,
        path_observed=None,
        cautions=[],
        tools=tools,
    )


@dataclass(frozen=True, slots=True)
class _Window:
    start_ns: int
    end_ns: int
    stopped_by: str
    cpu_s: float


def _record_stream(body: StreamBody, plan: Plan, recorder: Recorder) -> _Window:
    body.start()
    try:
        body.poll(plan.warmup_s)
        window = _window(plan.time_limit_s, lambda: body.poll(POLL_S), recorder, WAIT)
    finally:
        body.stop()
    body.poll(0)  # raises what an operation raised meanwhile
    return window


def _record_steps(body: StepBody, clock: Clock, plan: Plan, recorder: Recorder) -> _Window:
    step = recorder.wrapped(body.step, "step", STEP)
    # Once it has enqueued its work, a step of a GPU leaves the host waiting.
    rest = WAIT if body.clock == "cuda" else PYTHON
    sample = recorder.wrapped(lambda: clock.time(step), "sample", rest)
    deadline_s = time.perf_counter() + plan.warmup_s
    warmups = 0
    while warmups < LEAST_WARMUPS or time.perf_counter() < deadline_s:
        clock.time(body.step)
        warmups += 1
    return _window(plan.time_limit_s, sample, recorder, PYTHON)


def _window(
    length_s: float, work: Callable[[], object], recorder: Recorder, category: str
) -> _Window:
    """Repeat `work` on this thread for so long, or until there are too many slices."""
    most = recorder.count() + MOST_SLICES
    stopped_by = ""
    cpu_s = time.process_time()
    start_ns = end_ns = time.perf_counter_ns()
    while not stopped_by:
        work()
        end_ns = time.perf_counter_ns()
        if recorder.count() >= most:
            stopped_by = "slices"
        elif (end_ns - start_ns) * S_PER_NS >= length_s:
            stopped_by = "time"
    cpu_s = time.process_time() - cpu_s
    recorder.note("window", category, start_ns, end_ns)
    return _Window(start_ns, end_ns, stopped_by, cpu_s)


if __name__ == "__main__":
    main()

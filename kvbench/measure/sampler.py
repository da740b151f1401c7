"""Takes samples from a case body until they are enough.

Enough means: the 95 % interval of the median is within the target, or the plan's limit on samples
or time was reached; the result says which. Warm-up is cut twice: by time while sampling, and by
MSER-5 afterwards. Nothing is dropped as an outlier.
Does not know what the body does, and reads time only from the clock it is given.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kvbench.errors import CorruptDataError, TooFewSamplesError
from kvbench.measure.body import StepBody, StreamBody
from kvbench.measure.clock import Clock
from kvbench.measure.stats import (
    autocorrelation,
    effective_count,
    is_steady,
    relative_half_width,
    slow_fraction,
    warmup_cut,
)
from kvbench.measure.suite import Plan

Floats = NDArray[np.float64]
Int64s = NDArray[np.int64]

POLL_S = 0.05
LEAST_RECHECK_S = 0.25
WINDOW_S = 0.02  # a stream's samples are about this long: long against a thread switch
LEAST_WARMUPS = 2
RECHECK_GROWTH = 1.25  # the stopping rule sorts all samples, so it looks at 12, 15, 18, 22, ...
S_PER_NS = 1e-9


OnEstimate = Callable[[float, int, float | None], None]
"""Told now and then how it is going: bytes per second, samples so far, relative half-width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What one process measured."""

    statistic: str  # "elapsed" | "median"
    bytes_per_s: float
    payload_bytes: int  # everything that completed, warm-up included
    timed_bytes: int  # what `elapsed_s` was spent on
    elapsed_s: float
    rates: Floats  # float64 [n], bytes per second, in order, warm-up cut
    warmup_samples: int
    stopped_by: str  # "interval" | "samples" | "time"
    half_width: float | None
    latencies_ns: Int64s  # int64 [m] of single operations; empty for steps of many

    @property
    def autocorrelation(self) -> float:
        """Lag 1."""
        return autocorrelation(self.rates)

    @property
    def slow_fraction(self) -> float:
        """Share of samples in a second, slower mode."""
        return slow_fraction(self.rates)

    @property
    def steady(self) -> bool:
        """Whether the rate had stopped moving."""
        return is_steady(self.rates)

    @property
    def effective_latencies(self) -> float:
        """What the latencies are worth as independent samples."""
        return (
            effective_count(self.latencies_ns.astype(np.float64)) if self.latencies_ns.size else 0
        )


def sample(
    body: StepBody | StreamBody, clock: Clock, plan: Plan, on_estimate: OnEstimate
) -> Samples:
    """Sample a body that is set up.

    Raises:
        CorruptDataError: a step moved no bytes.
        TooFewSamplesError: a stream completed next to nothing.
    """
    if isinstance(body, StreamBody):
        return _sample_stream(body, clock, plan, on_estimate)
    return _sample_steps(body, clock, plan, on_estimate)


def _sample_steps(body: StepBody, clock: Clock, plan: Plan, on_estimate: OnEstimate) -> Samples:
    deadline_s = clock.now_s() + plan.warmup_s
    warmups = warmup_bytes = 0
    # First touch, then once more; a clock that does not move must not warm up for ever.
    while warmups < LEAST_WARMUPS or (clock.now_s() < deadline_s and warmups < plan.max_samples):
        warmup_bytes += clock.time(body.step)[0]  # a CUDA step has only been enqueued
        warmups += 1
    payloads: list[int] = []
    durations_s: list[float] = []

    def rates() -> Floats:
        lengths_s: Floats = np.maximum(np.array(durations_s), 1e-9)
        return np.array(payloads, dtype=np.float64) / lengths_s

    began_s = clock.now_s()
    next_check = plan.min_samples
    stopped_by = ""
    while not stopped_by:
        payload, duration_s = clock.time(body.step)
        if payload <= 0:
            raise CorruptDataError("a step completed no bytes")
        payloads.append(payload)
        durations_s.append(duration_s)
        sampled_s = clock.now_s() - began_s
        if len(payloads) >= next_check or sampled_s >= plan.time_limit_s:
            next_check = int(len(payloads) * RECHECK_GROWTH) + 1
            stopped_by = _stop(rates(), plan, sampled_s, on_estimate)
    taken = rates()
    cut = warmup_cut(taken)
    kept = taken[cut:]
    lengths_s = np.array(durations_s[cut:])
    return Samples(
        statistic="median",
        bytes_per_s=float(np.median(kept)),
        payload_bytes=warmup_bytes + sum(payloads),
        timed_bytes=sum(payloads[cut:]),
        elapsed_s=float(lengths_s.sum()),
        rates=kept,
        warmup_samples=warmups + cut,
        stopped_by=stopped_by,
        half_width=_finite(relative_half_width(kept)),
        latencies_ns=np.empty(0, dtype=np.int64),
    )


def _sample_stream(body: StreamBody, clock: Clock, plan: Plan, on_estimate: OnEstimate) -> Samples:
    ends: list[Int64s] = []
    latencies: list[Int64s] = []
    sizes: list[Int64s] = []
    body.start()
    began_s = clock.now_s()
    next_check_s = plan.warmup_s + min(plan.min_time_s, plan.time_limit_s)
    stopped_by = ""
    try:
        while not stopped_by:
            done = body.poll(POLL_S)
            ends.append(done.end_ns)
            latencies.append(done.latency_ns)
            sizes.append(done.sizes(body.operation_bytes))
            passed_s = clock.now_s() - began_s
            if passed_s < next_check_s:
                continue  # sorting all completions takes the GIL from the lanes: seldom
            next_check_s = max(passed_s * RECHECK_GROWTH, passed_s + LEAST_RECHECK_S)
            next_check_s = min(next_check_s, plan.warmup_s + plan.time_limit_s)
            windows = _windows(np.concatenate(ends), np.concatenate(sizes), plan.warmup_s)
            stopped_by = _stop(windows.rates, plan, passed_s - plan.warmup_s, on_estimate)
    finally:
        body.stop()
    in_flight = body.poll(0)  # what completed while it stopped: moved, but outside the timing
    samples = _stream_samples(
        np.concatenate(ends), np.concatenate(latencies), np.concatenate(sizes), plan, stopped_by
    )
    tail_bytes = int(in_flight.sizes(body.operation_bytes).sum())
    return replace(samples, payload_bytes=samples.payload_bytes + tail_bytes)


def _stream_samples(
    ends_ns: Int64s, latencies_ns: Int64s, sizes_bytes: Int64s, plan: Plan, stopped_by: str
) -> Samples:
    windows = _windows(ends_ns, sizes_bytes, plan.warmup_s)
    if len(windows.rates) == 0:
        raise TooFewSamplesError(
            f"{len(ends_ns)} operations completed, too few for one sample; raise --time-limit"
        )
    cut = min(warmup_cut(windows.rates), len(windows.rates) - 1)
    kept = windows.rates[cut:]
    first_ns = int(windows.edges_ns[cut])
    last_ns = int(windows.edges_ns[-1])
    # Counted from one completion to another, so bytes and time belong together exactly.
    inside = (ends_ns > first_ns) & (ends_ns <= last_ns)
    timed_bytes = int(sizes_bytes[inside].sum())
    elapsed_s = (last_ns - first_ns) * S_PER_NS
    in_order = np.argsort(ends_ns[inside], kind="stable")
    return Samples(
        statistic="elapsed",
        bytes_per_s=timed_bytes / elapsed_s,
        payload_bytes=int(sizes_bytes.sum()),
        timed_bytes=timed_bytes,
        elapsed_s=elapsed_s,
        rates=kept,
        warmup_samples=windows.warmup + cut,
        stopped_by=stopped_by,
        half_width=_finite(relative_half_width(kept)),
        latencies_ns=latencies_ns[inside][in_order],
    )


@dataclass(frozen=True, slots=True)
class _Windows:
    rates: Floats
    edges_ns: Int64s  # int64 [n + 1]; each edge is a completion
    warmup: int  # completions before the first edge


def _windows(ends_ns: Int64s, sizes_bytes: Int64s, warmup_s: float) -> _Windows:
    """Equal counts of completions, each about `WINDOW_S` long on average.

    A window of fixed length would hold a whole number of operations and so be wrong by up to one
    in a few; a window from completion to completion is exact.
    """
    order = np.argsort(ends_ns, kind="stable")
    ordered: Int64s = ends_ns[order]
    if len(ordered) == 0:
        return _Windows(np.empty(0), ordered, 0)
    # The stream began before its first completion by about one latency; the cut need not be exact.
    start = int(np.searchsorted(ordered, int(ordered[0]) + round(warmup_s / S_PER_NS)))
    kept = ordered[start:]
    if len(kept) < 2:  # noqa: PLR2004  one completion is no interval
        return _Windows(np.empty(0), kept, start)
    span_s = (int(kept[-1]) - int(kept[0])) * S_PER_NS
    each = max(1, round(WINDOW_S * (len(kept) - 1) / span_s)) if span_s > 0 else len(kept) - 1
    edges = kept[::each]
    lengths_s = np.diff(edges) * S_PER_NS
    # The bytes of a window are those that completed after its first edge, up to its last.
    moved = np.diff(np.cumsum(sizes_bytes[order][start:])[::each])
    rates = moved / np.maximum(lengths_s, S_PER_NS)
    return _Windows(rates, edges, start)


def _stop(rates: Floats, plan: Plan, sampled_s: float, on_estimate: OnEstimate) -> str:
    """Which rule ends the sampling now, or nothing."""
    half_width = relative_half_width(rates) if len(rates) else float("inf")
    if len(rates):
        on_estimate(float(np.median(rates)), len(rates), _finite(half_width))
    enough = len(rates) >= plan.min_samples and sampled_s >= min(plan.min_time_s, plan.time_limit_s)
    if enough and half_width <= plan.target_half_width:
        return "interval"
    if len(rates) >= plan.max_samples:
        return "samples"
    return "time" if sampled_s >= plan.time_limit_s else ""


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None

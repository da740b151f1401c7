"""Where the time of a trace went, from the trace alone: what is printed can be checked by anyone.

Wall time is given to one part at each instant, so that the parts sum to it: the first of kernel,
copy, I/O, Python that any thread or stream is in, its innermost slice deciding; idle is the rest.
So "I/O wait" means that something was in flight and nothing moved bytes in memory meanwhile, and
not that Python was free: what each thread did is told apart from that. Requests to a store are no
thread's time, and have a list of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvbench.measure.stats import LEAST_FOR_PERCENTILE
from kvbench.profile.slices import COPY, IO, KERNEL, PYTHON, STEP, WAIT

IDLE = "idle"
PARTS = (KERNEL, COPY, IO, PYTHON, IDLE)  # in the order in which an instant is given away
PART_OF = {KERNEL: KERNEL, COPY: COPY, IO: IO, STEP: PYTHON, PYTHON: PYTHON, WAIT: IDLE}
NS_PER_US = 1000
S_PER_NS = 1e-9

Segment = tuple[int, int, int]  # start and end in nanoseconds, index into PARTS


@dataclass(frozen=True, slots=True)
class ThreadUse:
    """One thread or stream: seconds in each part, which sum to the wall time."""

    process: str
    name: str
    parts_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Calls:
    """I/O calls, or requests, of one name that lie wholly inside the window.

    A percentile may lack samples.
    """

    name: str
    count: int
    p50_s: float | None
    p99_s: float | None
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a trace says."""

    wall_s: float
    parts_s: Mapping[str, float]  # of PARTS; they sum to `wall_s`
    threads: tuple[ThreadUse, ...]
    payload_bytes: int  # of steps and operations that ended inside the window
    calls: tuple[Calls, ...]
    requests: tuple[Calls, ...] = ()  # to a store, and their phases

    @property
    def bytes_per_s(self) -> float:
        """Payload over wall time."""
        return self.payload_bytes / self.wall_s


def summarise(trace: Mapping[str, Any]) -> Summary:
    """Sums over the slices of a trace that `kvbench.profile.trace` wrote."""
    wall_ns = _ns(trace["otherData"]["window_us"])
    names: dict[tuple[int, int], str] = {}
    processes: dict[int, str] = {}
    tracks: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for event in trace["traceEvents"]:
        key = (event["pid"], event["tid"])
        if event["ph"] == "X":
            tracks.setdefault(key, []).append(event)
        elif event["ph"] == "M" and event["name"] == "thread_name":
            names[key] = event["args"]["name"]
        elif event["ph"] == "M" and event["name"] == "process_name":
            processes[event["pid"]] = event["args"]["name"]
    segments = {key: innermost(tracks[key]) for key in names if key in tracks}
    return Summary(
        wall_s=wall_ns * S_PER_NS,
        parts_s=_seconds(first_parts(segments.values(), wall_ns)),
        threads=tuple(
            ThreadUse(processes[key[0]], names[key], _seconds(first_parts([each], wall_ns)))
            for key, each in segments.items()
        ),
        payload_bytes=_payload_bytes(trace["traceEvents"]),
        calls=_calls(trace["traceEvents"]),
        requests=_requests(trace["traceEvents"]),
    )


def innermost(events: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """The slices of one track as stretches that do not overlap, each of its innermost slice."""
    segments: list[Segment] = []
    open_: list[tuple[int, int]] = []  # end and part of the slices that enclose this moment
    at_ns = 0

    def advance(to_ns: int) -> None:
        nonlocal at_ns
        while open_:
            end_ns, part = open_[-1]
            stop_ns = min(end_ns, to_ns)
            if stop_ns > at_ns:
                segments.append((at_ns, stop_ns, part))
                at_ns = stop_ns
            if end_ns > to_ns:
                return
            open_.pop()

    for event in sorted(events, key=lambda one: (one["ts"], -one["dur"])):
        start_ns = _ns(event["ts"])
        advance(start_ns)
        at_ns = max(at_ns, start_ns)
        end_ns = start_ns + _ns(event["dur"])
        open_.append((end_ns, PARTS.index(PART_OF[event["cat"]])))
    advance(max((end_ns for end_ns, _ in open_), default=0))
    return segments


def first_parts(tracks: Iterable[Sequence[Segment]], wall_ns: int) -> NDArray[np.int64]:
    """int64 [len(PARTS)]: nanoseconds of the wall time given to each part."""
    every = [segment for track in tracks for segment in track]
    totals = np.zeros(len(PARTS), dtype=np.int64)
    idle = PARTS.index(IDLE)
    if not every:
        totals[idle] = wall_ns
        return totals
    table = np.array(every, dtype=np.int64)
    times = np.concatenate((table[:, 0], table[:, 1], [0, wall_ns]))
    changes = np.zeros((len(times), len(PARTS)), dtype=np.int64)
    rows = np.arange(len(table))
    changes[rows, table[:, 2]] = 1
    changes[len(table) + rows, table[:, 2]] = -1
    order = np.argsort(times, kind="stable")
    in_part = np.cumsum(changes[order], axis=0)[:-1] > 0
    in_part[:, idle] = True  # what is left
    np.add.at(totals, np.argmax(in_part, axis=1), np.diff(times[order]))
    return totals


def _payload_bytes(events: Iterable[Mapping[str, Any]]) -> int:
    return sum(
        event["args"].get("bytes", 0)
        for event in events
        if event.get("cat") == STEP and "args" in event and _ended(event)
    )


def _ended(event: Mapping[str, Any]) -> bool:
    """Whether its end lies inside the window."""
    return event.get("args", {}).get("cut") not in {"end", "both"}


def _calls(events: Iterable[Mapping[str, Any]]) -> tuple[Calls, ...]:
    durations: dict[str, list[int]] = {}
    for event in events:
        if event.get("cat") == IO and "cut" not in event.get("args", {}):
            durations.setdefault(event["name"], []).append(_ns(event["dur"]))
    return _of_each_name(durations)


def _requests(events: Iterable[Mapping[str, Any]]) -> tuple[Calls, ...]:
    durations: dict[str, list[int]] = {}
    open_: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event["ph"] == "b":
            durations.setdefault(event["name"], [])  # a request before its phases
            open_.setdefault(event["id2"]["local"], []).append(event)
        elif event["ph"] == "e":
            began = open_[event["id2"]["local"]].pop()
            if "cut" not in began.get("args", {}):
                durations[event["name"]].append(_ns(event["ts"]) - _ns(began["ts"]))
    return _of_each_name({name: each for name, each in durations.items() if each})


def _of_each_name(durations: Mapping[str, list[int]]) -> tuple[Calls, ...]:
    return tuple(
        Calls(
            name=name,
            count=len(each),
            p50_s=_percentile_s(each, 50.0),
            p99_s=_percentile_s(each, 99.0),
            max_s=max(each) * S_PER_NS,
        )
        for name, each in durations.items()
    )


def _percentile_s(durations_ns: list[int], percentile: float) -> float | None:
    if len(durations_ns) < LEAST_FOR_PERCENTILE[percentile]:
        return None
    return float(np.percentile(durations_ns, percentile)) * S_PER_NS


def _seconds(totals_ns: NDArray[np.int64]) -> dict[str, float]:
    return {part: int(each) * S_PER_NS for part, each in zip(PARTS, totals_ns, strict=True)}


def _ns(us: float) -> int:
    return round(us * NS_PER_US)

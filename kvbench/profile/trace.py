"""A recording as a Chrome trace: the JSON that Perfetto, `vizviewer` and chrome://tracing open.

Threads and streams are complete events ("X"); requests to a store, which overlap, are pairs of
nestable asynchronous ones ("b", "e"), an `id2` for each line of one request; the rest is metadata
("M"). Times are microseconds from the beginning of the window, with three decimals, so that no
nanosecond is lost. Writes no file.
Format: "Trace Event Format", Google, 2016.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from kvbench.profile.slices import REQUEST, Recording, Slice, Track, lines

SCHEMA = "kvbench.trace/1"
NS_PER_US = 1000


def chrome_trace(recording: Recording, about: dict[str, Any]) -> dict[str, Any]:
    """The trace of a recording that was cut to its window; `about` goes into `otherData`."""
    used = sorted({each.track for each in recording.slices})
    return {
        # First, so that the beginning of the file tells what it is.
        "otherData": {
            "schema": SCHEMA,
            **about,
            "window_us": (recording.end_ns - recording.start_ns) / NS_PER_US,
            "warmup_s": recording.warmup_s,
            "stopped_by": recording.stopped_by,
            "cpu_s": recording.cpu_s,
            "verified_bytes": recording.verified_bytes,
            "path_observed": recording.path_observed,
            "cautions": msgspec.to_builtins(recording.cautions),
            "tools": recording.tools,
        },
        "displayTimeUnit": "ms",
        "traceEvents": [
            *_metadata([recording.tracks[number] for number in used]),
            *(
                _event(each, recording.tracks[each.track], recording.start_ns)
                for each in recording.slices
                if each.category != REQUEST
            ),
            *_requests(recording),
        ],
    }


def encode(trace: dict[str, Any]) -> bytes:
    """Its JSON."""
    return msgspec.json.encode(trace) + b"\n"


def _metadata(tracks: list[Track]) -> list[dict[str, Any]]:
    """Names of processes and threads, and the order in which they are shown."""
    events: list[dict[str, Any]] = []
    named: set[int] = set()
    for place, track in enumerate(sorted(tracks, key=_place)):
        if track.pid not in named:
            named.add(track.pid)
            events.append(_meta("process_name", track, track.pid, {"name": track.process}))
            sort = {"sort_index": len(named)}
            events.append(_meta("process_sort_index", track, track.pid, sort))
        events.append(_meta("thread_name", track, track.tid, {"name": track.thread}))
        events.append(_meta("thread_sort_index", track, track.tid, {"sort_index": place}))
    return events


def _meta(name: str, track: Track, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": track.pid, "tid": tid, "args": args}


def _place(track: Track) -> tuple[int, bool, list[tuple[int, str]]]:
    """The main thread first, then by name, lane-2 before lane-10."""
    words = re.findall(r"(\d+)|(\D+)", track.thread)
    return track.pid, track.tid != track.pid, [(int(n or 0), word) for n, word in words]


def _event(each: Slice, track: Track, zero_ns: int) -> dict[str, Any]:
    args = _args(each)
    event: dict[str, Any] = {
        "ph": "X",
        "name": each.name,
        "cat": each.category,
        "ts": (each.start_ns - zero_ns) / NS_PER_US,
        "dur": (each.end_ns - each.start_ns) / NS_PER_US,
        "pid": track.pid,
        "tid": track.tid,
    }
    return {**event, "args": args} if args else event


def _args(each: Slice) -> dict[str, Any]:
    args: dict[str, Any] = {"bytes": each.size_bytes} if each.size_bytes else {}
    if each.cut:
        args["cut"] = each.cut
    return args


def _requests(recording: Recording) -> Iterator[dict[str, Any]]:
    """Each request around its phases, line after line.

    Two phases of one request that overlap, such as reads from two tiers, need a line each.
    """
    groups: dict[int, list[Slice]] = {}
    for number, each in enumerate(recording.slices):
        if each.category == REQUEST:
            groups.setdefault(each.request or -1 - number, []).append(each)
    every = [line for group in groups.values() for line in lines(group)]
    for number, line in enumerate(every, 1):
        yield from _line(line, str(number), recording)


def _line(line: list[Slice], name: str, recording: Recording) -> Iterator[dict[str, Any]]:
    """Slices in order, each begun within or after the one before: their pairs, in order."""

    def half(phase: str, each: Slice) -> dict[str, Any]:
        ns = each.start_ns if phase == "b" else each.end_ns
        track = recording.tracks[each.track]
        return {
            "ph": phase,
            "name": each.name,
            "cat": REQUEST,
            "id2": {"local": name},
            "ts": (ns - recording.start_ns) / NS_PER_US,
            "pid": track.pid,
            "tid": track.tid,
        }

    open_: list[Slice] = []
    for each in line:
        while open_ and open_[-1].end_ns <= each.start_ns:
            yield half("e", open_.pop())
        args = {**_args(each), **({"request": each.request} if each.request else {})}
        yield {**half("b", each), **({"args": args} if args else {})}
        open_.append(each)
    while open_:
        yield half("e", open_.pop())

"""A strict reader of Chrome traces, and sums over their slices by another way than the product's.

Written from the format ("Trace Event Format", Google, 2016), not from the writer.
"""

import math
from typing import Any

import numpy as np

PRIORITY = ("kernel", "copy", "io", "python", "idle")
PART = {"kernel": "kernel", "copy": "copy", "io": "io", "step": "python", "python": "python"}
METADATA = {
    "process_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}
REQUIRED = {
    "X": {"ph", "name", "cat", "ts", "dur", "pid", "tid"},
    "b": {"ph", "name", "cat", "id2", "ts", "pid", "tid"},
    "e": {"ph", "name", "cat", "id2", "ts", "pid", "tid"},
    "M": {"ph", "name", "pid", "tid", "args"},
}
MAY_HAVE = {"X": {"args"}, "b": {"args"}, "e": set[str](), "M": set[str]()}
Span = tuple[str, int, int, dict[str, Any]]  # name, start and end in nanoseconds, arguments


def ns(us: float) -> int:
    return round(us * 1000)


def faults(trace: Any) -> list[str]:
    """What is wrong with it; empty if nothing is."""
    if not isinstance(trace, dict) or not isinstance(trace.get("traceEvents"), list):
        return ["no object with a list of traceEvents"]
    events = trace["traceEvents"]
    wrong = [(number, _wrong(event)) for number, event in enumerate(events)]
    found = [f"event {number}: {each}" for number, each in wrong if each]
    if trace.get("displayTimeUnit") not in {"ms", "ns"}:
        found.append("displayTimeUnit is neither ms nor ns")
    good = [event for event, (_, each) in zip(events, wrong, strict=True) if not each]
    found += _names(good)
    complete: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in good:
        if event["ph"] == "X":
            complete.setdefault((event["pid"], event["tid"]), []).append(event)
    for thread, own in complete.items():
        found += _crossings(thread, own)
    for line, own in _lines(good).items():
        found += pairs(line, own)[1]
    return found


def _names(events: list[dict[str, Any]]) -> list[str]:
    """Metadata that is said twice, or missing."""
    said: dict[tuple[Any, ...], int] = {}
    for event in events:
        if event["ph"] == "M":
            whom = event["pid"] if event["name"].startswith("process") else event["tid"]
            key = (event["name"], event["pid"], whom)
            said[key] = said.get(key, 0) + 1
    found = [f"{key} is said {count} times" for key, count in said.items() if count != 1]
    threads = {(event["pid"], event["tid"]) for event in events if event["ph"] != "M"}
    for pid, tid in sorted(threads):
        if ("thread_name", pid, tid) not in said:
            found.append(f"thread {tid} of {pid} has no name")
        if ("process_name", pid, pid) not in said:
            found.append(f"process {pid} has no name")
    return found


def _wrong(event: Any) -> str:
    if not isinstance(event, dict) or event.get("ph") not in REQUIRED:
        return "neither a complete event nor half of one nor metadata"
    keys = set(event)
    required = REQUIRED[event["ph"]]
    if not required <= keys or keys - required - MAY_HAVE[event["ph"]]:
        return f"has the keys {sorted(keys)}"
    if not all(type(event[name]) is int and event[name] >= 0 for name in ("pid", "tid")):
        return "pid or tid is no whole number"
    if not isinstance(event["name"], str) or not event["name"]:
        return "has no name"
    if not isinstance(event.get("args", {}), dict):
        return "args is no object"
    return _wrong_metadata(event) if event["ph"] == "M" else _wrong_slice(event)


def _wrong_metadata(event: dict[str, Any]) -> str:
    argument, kind = METADATA.get(event["name"], ("", object))
    good = list(event["args"]) == [argument] and type(event["args"][argument]) is kind
    return "" if good else f"metadata {event['name']} with {event['args']}"


def _wrong_slice(event: dict[str, Any]) -> str:
    for name in ("ts", "dur") if event["ph"] == "X" else ("ts",):
        value = event[name]
        if type(value) not in {int, float} or not math.isfinite(value) or value < 0:
            return f"{name} is {value!r}"
    if event["ph"] != "X":
        id2 = event["id2"]
        if not isinstance(id2, dict) or list(id2) != ["local"] or type(id2["local"]) is not str:
            return f"id2 is {id2!r}"
    return "" if isinstance(event["cat"], str) and event["cat"] else "has no category"


def _crossings(key: tuple[int, int], events: list[dict[str, Any]]) -> list[str]:
    """Pairs of slices of one thread that overlap, neither within the other."""
    found: list[str] = []
    open_: list[int] = []
    for start, end in sorted(
        ((ns(each["ts"]), ns(each["ts"]) + ns(each["dur"])) for each in events),
        key=lambda one: (one[0], -one[1]),
    ):
        while open_ and open_[-1] <= start:
            open_.pop()
        if open_ and end > open_[-1]:
            found.append(f"thread {key}: a slice from {start} ends at {end}, after {open_[-1]}")
        open_.append(end)
    return found


def pairs(key: tuple[int, str], events: list[dict[str, Any]]) -> tuple[list[Span], list[str]]:
    """The spans of one line of asynchronous events, and what is wrong with it.

    The end that follows a beginning belongs to the last that is open; viewers sort by time and
    keep the order of the file within one instant.
    """
    spans: list[Span] = []
    found: list[str] = []
    open_: list[dict[str, Any]] = []
    last = 0
    for event in events:
        at = ns(event["ts"])
        if at < last:
            found.append(f"line {key}: {event['name']} at {at} comes after {last}")
        last = at
        if event["ph"] == "b":
            open_.append(event)
        elif not open_:
            found.append(f"line {key}: {event['name']} ends at {at} and never began")
        else:
            began = open_.pop()
            if (began["name"], began["cat"]) != (event["name"], event["cat"]):
                found.append(f"line {key}: {event['name']} ends at {at} inside {began['name']}")
            spans.append((began["name"], ns(began["ts"]), at, began.get("args", {})))
    found += [f"line {key}: {event['name']} never ends" for event in open_]
    return spans, found


def requests(trace: Any) -> list[list[Span]]:
    """The spans of each line of asynchronous events, in the order in which they ended."""
    return [pairs(line, events)[0] for line, events in _lines(trace["traceEvents"]).items()]


def _lines(events: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] in {"b", "e"}:
            found.setdefault((event["pid"], event["id2"]["local"]), []).append(event)
    return found


def parts_ns(trace: Any, tid: int | None = None) -> dict[str, int]:
    """Nanoseconds of the window by part, of all threads or of one.

    Each thread is painted, long slices first, so that the innermost is what shows; then threads
    are laid over each other, the first part of PRIORITY on top.
    """
    wall = ns(trace["otherData"]["window_us"])
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    edges = {0, wall}
    for event in slices:
        edges |= {ns(event["ts"]), ns(event["ts"]) + ns(event["dur"])}
    times = np.array(sorted(edges))
    idle = PRIORITY.index("idle")
    together = np.full(len(times) - 1, idle)
    for thread in {(event["pid"], event["tid"]) for event in slices}:
        if tid is not None and thread[1] != tid:
            continue
        paint = np.full(len(times) - 1, idle)
        own = [event for event in slices if (event["pid"], event["tid"]) == thread]
        for event in sorted(own, key=lambda one: -one["dur"]):
            start, end = ns(event["ts"]), ns(event["ts"]) + ns(event["dur"])
            first, last = np.searchsorted(times, (start, end))
            paint[first:last] = PRIORITY.index(PART.get(event["cat"], "idle"))
        together = np.minimum(together, paint)
    lengths = np.diff(times)
    return {part: int(lengths[together == n].sum()) for n, part in enumerate(PRIORITY)}

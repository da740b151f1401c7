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
    "M": {"ph", "name", "pid", "tid", "args"},
}


def ns(us: float) -> int:
    return round(us * 1000)


def faults(trace: Any) -> list[str]:
    """What is wrong with it; empty if nothing is."""
    found: list[str] = []
    if not isinstance(trace, dict) or not isinstance(trace.get("traceEvents"), list):
        return ["no object with a list of traceEvents"]
    if trace.get("displayTimeUnit") not in {"ms", "ns"}:
        found.append("displayTimeUnit is neither ms nor ns")
    complete: dict[tuple[int, int], list[dict[str, Any]]] = {}
    said: dict[tuple[Any, ...], int] = {}
    for number, event in enumerate(trace["traceEvents"]):
        wrong = _wrong(event)
        if wrong:
            found.append(f"event {number}: {wrong}")
        elif event["ph"] == "X":
            complete.setdefault((event["pid"], event["tid"]), []).append(event)
        else:
            whom = event["pid"] if event["name"].startswith("process") else event["tid"]
            key = (event["name"], event["pid"], whom)
            said[key] = said.get(key, 0) + 1
    found += [f"{key} is said {count} times" for key, count in said.items() if count != 1]
    for pid, tid in complete:
        if ("thread_name", pid, tid) not in said:
            found.append(f"thread {tid} of {pid} has no name")
        if ("process_name", pid, pid) not in said:
            found.append(f"process {pid} has no name")
    for thread, events in complete.items():
        found += _crossings(thread, events)
    return found


def _wrong(event: Any) -> str:
    if not isinstance(event, dict) or event.get("ph") not in REQUIRED:
        return "neither a complete event nor metadata"
    keys = set(event)
    if not REQUIRED[event["ph"]] <= keys or keys - REQUIRED[event["ph"]] - {"args"}:
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
    for name in ("ts", "dur"):
        value = event[name]
        if type(value) not in {int, float} or not math.isfinite(value) or value < 0:
            return f"{name} is {value!r}"
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

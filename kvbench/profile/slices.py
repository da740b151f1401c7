"""What was recorded: slices of time on tracks, and the window that is looked at.

A track is one thread, or one stream of a GPU. Slices of a track lie inside each other or apart,
but for those of requests to a store: these overlap, and their track only says who noted them.
Times are nanoseconds of `time.perf_counter_ns` in the process that was recorded.
"""

from typing import Any

import msgspec

from kvbench.measure.result import Caution

MOST_SLICES = 200_000  # about 25 MB of JSON, which the Perfetto viewer still opens at once

# What a slice is, the first that any track is in deciding what an instant is called. A step is
# the unit of work whose payload counts; outside its inner slices it is Python's time.
KERNEL, COPY, IO, STEP, PYTHON, WAIT = "kernel", "copy", "io", "step", "python", "wait"
# Not of a thread: a request to a store, or a phase of one. It names no instant; these overlap.
REQUEST = "request"
CATEGORIES = (KERNEL, COPY, IO, STEP, PYTHON, WAIT, REQUEST)


class Track(msgspec.Struct, frozen=True, kw_only=True):
    """Where slices lie: a thread of a process, or a stream of a device that is shown as one."""

    process: str
    thread: str
    pid: int
    tid: int


class Slice(msgspec.Struct, frozen=True, array_like=True):
    """One stretch of time on a track. `size_bytes` is what it moved, 0 if it moves nothing."""

    track: int
    name: str
    category: str
    start_ns: int
    end_ns: int
    size_bytes: int = 0
    cut: str = ""  # "start" | "end" | "both": reaches beyond the window at that side
    request: int = 0  # of the category REQUEST: which one; 0 is one that has no other slices


class Batch(msgspec.Struct, frozen=True, tag="batch"):
    """Some of a recording's slices on their way; the recording comes after the last, without."""

    slices: list[Slice]


class Recording(msgspec.Struct, frozen=True, kw_only=True, tag="recording"):
    """One case, recorded."""

    start_ns: int  # of the window
    end_ns: int
    tracks: list[Track]
    slices: list[Slice]
    stopped_by: str  # "time" | "slices": at the limit on their number
    cpu_s: float  # processor time of the process inside the window, all threads together
    warmup_s: float
    verified_bytes: int
    path_observed: str | None
    cautions: list[Caution]
    tools: dict[str, Any] = {}  # what else looked on, and what it said of itself


def windowed(recording: Recording, most: int = MOST_SLICES) -> Recording:
    """The same, its slices cut to the window and in order, at most `most` of them.

    Where there are more, the window ends when the first one too many begins: what is left out is
    time at the end, never slices in between.
    """
    first_ns, last_ns = recording.start_ns, recording.end_ns
    inside = [
        each for each in recording.slices if each.end_ns > first_ns and each.start_ns < last_ns
    ]
    inside.sort(key=lambda each: (each.start_ns, -each.end_ns))
    stopped_by = recording.stopped_by
    if len(inside) > most:
        stopped_by = "slices"
        last_ns = max(inside[most].start_ns, first_ns + 1)
        inside = [each for each in inside[:most] if each.start_ns < last_ns]
    return msgspec.structs.replace(
        recording,
        end_ns=last_ns,
        stopped_by=stopped_by,
        slices=[_cut(each, first_ns, last_ns) for each in inside],
    )


def lines(slices: list[Slice]) -> list[list[Slice]]:
    """The same in as few lists as this order needs, in each of which they nest or lie apart."""
    result: list[list[Slice]] = []
    open_ends_ns: list[list[int]] = []  # of the slices of each list that enclose this moment
    for each in sorted(slices, key=lambda one: (one.start_ns, -one.end_ns)):
        for ends_ns in open_ends_ns:
            while ends_ns and ends_ns[-1] <= each.start_ns:
                ends_ns.pop()
        room = (n for n, ends in enumerate(open_ends_ns) if not ends or each.end_ns <= ends[-1])
        line = next(room, len(result))
        if line == len(result):
            result.append([])
            open_ends_ns.append([])
        result[line].append(each)
        open_ends_ns[line].append(each.end_ns)
    return result


def nested(slices: list[Slice]) -> list[Slice]:
    """Slices of one track, in order, each ending no later than the one that it began in.

    Recorded by another clock than ours, a call may seem to outlast its caller by a few ticks.
    """
    result: list[Slice] = []
    open_ends_ns: list[int] = []
    for each in sorted(slices, key=lambda one: (one.start_ns, -one.end_ns)):
        while open_ends_ns and open_ends_ns[-1] <= each.start_ns:
            open_ends_ns.pop()
        end_ns = min([each.end_ns, *open_ends_ns[-1:]])
        open_ends_ns.append(end_ns)
        result.append(msgspec.structs.replace(each, end_ns=end_ns))
    return result


def _cut(each: Slice, first_ns: int, last_ns: int) -> Slice:
    early, late = each.start_ns < first_ns, each.end_ns > last_ns
    if not early and not late:
        return each
    return msgspec.structs.replace(
        each,
        start_ns=max(each.start_ns, first_ns),
        end_ns=min(each.end_ns, last_ns),
        cut="both" if early and late else "start" if early else "end",
    )

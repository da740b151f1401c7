"""torch.profiler (Kineto) beside our own recorder: host operations, copies and kernels of a GPU.

Its events come from another clock. Marks that both clocks saw bring them onto ours, and `said`
tells how far off that may be. Torch's view of a host thread is a track of its own, so that two
clocks never share one. Kineto's own events (spans, flows, annotations) are left out.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, Self

import msgspec

from kvbench.profile.slices import COPY, KERNEL, PYTHON, WAIT, Slice, Track, nested

MARK = "kvbench mark"
MARKS = 16
NS_PER_US = 1000
# Tracks that are no thread of ours have numbers that no thread on Linux can have (at most 2**22).
VIRTUAL = 1 << 24
CATEGORIES = {
    "cpu_op": PYTHON,
    "cuda_runtime": PYTHON,
    "cuda_driver": PYTHON,
    "gpu_memcpy": COPY,
    "gpu_memset": COPY,
    "kernel": KERNEL,
}
HOST = frozenset({"cpu_op", "cuda_runtime", "cuda_driver"})


class TorchTracer:
    """A context in which torch.profiler records; afterwards `add_to` hands over what it saw."""

    def __init__(self) -> None:
        # Only cases that use torch pay for it: seconds, and memory.
        import torch  # noqa: PLC0415
        from torch.profiler import ProfilerActivity, profile, record_function  # noqa: PLC0415

        self._version = str(torch.__version__)
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._mark: Any = record_function
        self._profile: Any = profile(activities=activities)
        self._marks_ns: list[tuple[int, int]] = []  # our clock just before and after torch's
        self._error_ns = 0

    def __enter__(self) -> Self:
        self._profile.start()
        for _ in range(MARKS):
            before_ns = time.perf_counter_ns()
            with self._mark(MARK):
                self._marks_ns.append((before_ns, time.perf_counter_ns()))
        return self

    def __exit__(self, *_: object) -> None:
        self._profile.stop()

    def said(self) -> dict[str, Any]:
        """Its version, and how far its clock may be off ours; after `add_to`."""
        return {"torch": self._version, "clock_error_s": self._error_ns * 1e-9}

    def add_to(self, tracks: list[Track], slices: list[Slice]) -> None:
        """Append what torch saw, on our clock, to tracks and slices of ours."""
        with tempfile.TemporaryDirectory(prefix="kvbench-") as directory:
            path = Path(directory) / "kineto.json"
            self._profile.export_chrome_trace(str(path))
            events = msgspec.json.decode(path.read_bytes())["traceEvents"]
        offset_ns, self._error_ns = clock_offset(events, self._marks_ns)
        merge(events, offset_ns, tracks, slices)


def clock_offset(events: list[dict[str, Any]], marks_ns: list[tuple[int, int]]) -> tuple[int, int]:
    """What to add to torch's times to get ours, and the error that this may have, in ns.

    Torch's clock was read between our two readings around each mark; the closest pair decides.
    """
    seen_ns = sorted(_ns(event["ts"]) for event in events if event.get("name") == MARK)
    if len(seen_ns) != len(marks_ns):
        raise AssertionError(f"torch.profiler kept {len(seen_ns)} of {len(marks_ns)} marks")
    before_ns, after_ns, torch_ns = min(
        ((*mark, torch_ns) for mark, torch_ns in zip(marks_ns, seen_ns, strict=True)),
        key=lambda one: one[1] - one[0],
    )
    return (before_ns + after_ns) // 2 - torch_ns, -(-(after_ns - before_ns) // 2)


def merge(
    events: list[dict[str, Any]], offset_ns: int, tracks: list[Track], slices: list[Slice]
) -> None:
    """Kineto's complete events of the kinds that we show, as slices on tracks of their own."""
    names = {(track.pid, track.tid): track.thread for track in tracks}
    numbers: dict[tuple[int, int], int] = {}
    found: dict[int, list[Slice]] = {}
    for event in events:
        kind = event.get("cat")
        if event.get("ph") != "X" or kind not in CATEGORIES:
            continue
        key = (int(event["pid"]), int(event["tid"]))
        if key not in numbers:
            numbers[key] = len(tracks)
            tracks.append(_track(key, kind, names.get(key)))
        start_ns = _ns(event["ts"]) + offset_ns
        number = numbers[key]
        found.setdefault(number, []).append(
            Slice(
                track=number,
                name=event["name"],
                category=_category(kind, event["name"]),
                start_ns=start_ns,
                end_ns=start_ns + _ns(event["dur"]),
                size_bytes=int(event.get("args", {}).get("bytes", 0)),
            )
        )
    for each in found.values():
        slices += nested(each)


def _category(kind: str, name: str) -> str:
    """A host call that only waits for the device is no work of Python's."""
    return WAIT if kind in HOST and "Synchronize" in name else CATEGORIES[kind]


def _track(key: tuple[int, int], kind: str, thread: str | None) -> Track:
    pid, tid = key
    if kind in HOST:
        name = f"torch on {thread or f'thread {tid}'}"
        return Track(process="kvbench", thread=name, pid=pid, tid=VIRTUAL + tid)
    # Kineto's process is the device here, its thread the stream.
    return Track(process=f"GPU {pid}", thread=f"stream {tid}", pid=VIRTUAL + pid, tid=tid)


def _ns(us: float) -> int:
    return round(us * NS_PER_US)

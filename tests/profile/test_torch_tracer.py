"""What torch.profiler saw beside our own slices: real on the CPU, written by hand for a GPU.

No GPU has run this: the events of one below follow what torch writes, and are not from one.
"""

from typing import Any

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.body import Context
from kvbench.measure.clock import HostClock
from kvbench.profile.child import record
from kvbench.profile.slices import Slice, Track, windowed
from kvbench.profile.summary import summarise
from kvbench.profile.torch_tracer import MARK, VIRTUAL, clock_offset, merge
from kvbench.profile.trace import chrome_trace
from kvbench.store.posix import BlockFile
from tests.conftest import QUICK
from tests.profile.bodies import WithTorch
from tests.profile.trace_format import faults, parts_ns


def event(cat: str, name: str, ts: float, dur: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 5, "tid": 5, **more}


def test_torch_operations_lie_inside_the_steps_that_called_them(
    llama: KVGeometry, machine: Machine
) -> None:
    body = WithTorch()
    params: dict[str, int | str | bool] = {}
    body.set_up(
        Context(
            params=params,
            geometry=llama,
            machine=machine,
            plan=QUICK,
            seed=1,
            process=0,
            scratch=None,
        )
    )
    untouched = BlockFile.read
    recording = windowed(record(body, HostClock(), QUICK, "torch"))
    assert BlockFile.read is untouched
    trace = chrome_trace(recording, {"case": "a"})
    assert faults(trace) == []
    parts = {part: round(each * 1e9) for part, each in summarise(trace).parts_s.items()}
    assert parts == parts_ns(trace)
    error_ns = round(recording.tools["torch.profiler"]["clock_error_s"] * 1e9)
    assert error_ns < 200_000
    (torch_track,) = (
        n for n, track in enumerate(recording.tracks) if track.thread == "torch on main"
    )
    copies = [each for each in recording.slices if each.name == "aten::copy_"]
    steps = [each for each in recording.slices if each.name == "step"]
    assert len(copies) == len(steps) > 10
    for copy, step in zip(copies, steps, strict=True):
        assert copy.track == torch_track
        assert step.start_ns - error_ns <= copy.start_ns
        assert copy.end_ns <= step.end_ns + error_ns


def test_the_mark_with_the_closest_readings_decides_the_offset() -> None:
    events = [event("user_annotation", MARK, ts, 1.0) for ts in (100.0, 200.0, 300.0)]
    marks = [(1_000, 9_000), (100_500, 100_900), (203_000, 209_000)]
    assert clock_offset(events, marks) == (100_700 - 200_000, 200)


def test_kernels_and_copies_of_a_gpu_get_tracks_of_its_streams() -> None:
    tracks = [Track(process="kvbench", thread="main", pid=5, tid=5)]
    slices = [Slice(0, "step", "step", 0, 100_000, 64)]
    gpu = {"pid": 0, "tid": 7}
    events = [
        event("cpu_op", "aten::copy_", 1.0, 20.0),
        event("cuda_runtime", "cudaMemcpyAsync", 2.0, 18.0),
        event("cuda_runtime", "cudaEventSynchronize", 30.0, 60.0),
        {**event("gpu_memcpy", "Memcpy DtoD", 10.0, 30.0, args={"bytes": 512}), **gpu},
        {**event("kernel", "gather_words", 50.0, 25.0), **gpu},
        event("user_annotation", MARK, 0.0, 1.0),
        {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
        {**event("Trace", "PyTorch Profiler (0)", 0.0, 90.0), "pid": "Spans", "tid": "x"},
    ]
    merge(events, 1_000, tracks, slices)
    assert tracks[1:] == [
        Track(process="kvbench", thread="torch on main", pid=5, tid=VIRTUAL + 5),
        Track(process="GPU 0", thread="stream 7", pid=VIRTUAL, tid=7),
    ]
    assert slices[1:] == [
        Slice(1, "aten::copy_", "python", 2_000, 22_000),
        Slice(1, "cudaMemcpyAsync", "python", 3_000, 21_000),
        Slice(1, "cudaEventSynchronize", "wait", 31_000, 91_000),
        Slice(2, "Memcpy DtoD", "copy", 11_000, 41_000, 512),
        Slice(2, "gather_words", "kernel", 51_000, 76_000),
    ]

"""Where the time went: known answers, and any trace against sums by another way."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.profile.slices import Recording, Slice, Track, windowed
from kvbench.profile.summary import PARTS, summarise
from kvbench.profile.trace import chrome_trace
from tests.profile.trace_format import faults, parts_ns

MS = 1_000_000


def track(number: int, thread: str) -> Track:
    return Track(process="kvbench", thread=thread, pid=100, tid=100 + number)


def recording(*slices: Slice, end_ns: int = 10 * MS, threads: int = 3) -> Recording:
    return Recording(
        start_ns=0,
        end_ns=end_ns,
        tracks=[track(number, f"lane-{number}") for number in range(threads)],
        slices=list(slices),
        stopped_by="time",
        cpu_s=0.0,
        warmup_s=0.1,
        verified_bytes=0,
        path_observed=None,
        cautions=[],
    )


def trace_of(*slices: Slice, end_ns: int = 10 * MS) -> dict[str, Any]:
    return chrome_trace(windowed(recording(*slices, end_ns=end_ns)), {"case": "a"})


def ms(trace: dict[str, Any]) -> dict[str, float]:
    """The parts that are not zero, in milliseconds."""
    found = summarise(trace).parts_s
    return {part: found[part] * 1000 for part in PARTS if found[part]}


def test_io_inside_a_call_is_io_and_the_rest_of_the_call_is_python() -> None:
    trace = trace_of(
        Slice(0, "operate", "step", 2 * MS, 8 * MS, 4096),
        Slice(0, "read", "io", 3 * MS, 7 * MS, 4096),
    )
    assert ms(trace) == pytest.approx({"io": 4, "python": 2, "idle": 4})


def test_while_one_thread_copies_the_time_is_copy_whatever_the_others_do() -> None:
    trace = trace_of(
        Slice(0, "read", "io", 0, 10 * MS),
        Slice(1, "move", "copy", 2 * MS, 5 * MS),
        Slice(2, "run", "python", 0, 10 * MS),
    )
    assert ms(trace) == pytest.approx({"copy": 3, "io": 7})


def test_a_kernel_comes_before_a_copy() -> None:
    trace = trace_of(Slice(0, "k", "kernel", 0, 6 * MS), Slice(1, "c", "copy", 4 * MS, 9 * MS))
    assert ms(trace) == pytest.approx({"kernel": 6, "copy": 3, "idle": 1})


def test_waiting_inside_python_is_idle_time() -> None:
    trace = trace_of(
        Slice(0, "window", "python", 0, 10 * MS), Slice(0, "sample", "wait", 1 * MS, 9 * MS)
    )
    assert ms(trace) == pytest.approx({"python": 2, "idle": 8})


def test_each_thread_is_told_apart_from_the_others() -> None:
    trace = trace_of(
        Slice(0, "read", "io", 0, 10 * MS), Slice(1, "operate", "step", 0, 4 * MS, 512)
    )
    first, second = summarise(trace).threads
    assert first.parts_s["io"] == pytest.approx(0.010)
    assert second.parts_s["python"] == pytest.approx(0.004)
    assert second.parts_s["idle"] == pytest.approx(0.006)


def test_a_read_that_fills_the_whole_window_is_io_and_not_the_call_around_it() -> None:
    # Cut to the window, all three look alike; the order in which they began must be kept.
    trace = trace_of(
        Slice(0, "read", "io", -1, 11 * MS, 4096),
        Slice(0, "operate", "step", -2, 12 * MS, 4096),
        Slice(0, "run", "python", -3, 13 * MS),
    )
    assert ms(trace) == pytest.approx({"io": 10})


def test_only_work_that_ended_inside_the_window_is_payload() -> None:
    summary = summarise(
        trace_of(
            Slice(0, "operate", "step", -5, 2 * MS, 1000),
            Slice(0, "operate", "step", 2 * MS, 4 * MS, 100),
            Slice(0, "operate", "step", 4 * MS, 11 * MS, 10),
            Slice(1, "read", "io", 1 * MS, 2 * MS, 7),
        )
    )
    assert summary.payload_bytes == 1100
    assert summary.bytes_per_s == pytest.approx(1100 / 0.010)


def test_a_call_that_the_window_cut_is_no_latency() -> None:
    reads = [Slice(0, "read", "io", n * MS, n * MS + 500_000) for n in range(1, 9)]
    (calls,) = summarise(trace_of(Slice(1, "read", "io", -MS, 9 * MS), *reads)).calls
    assert calls.count == 8
    assert calls.max_s == pytest.approx(0.0005)


def test_a_percentile_without_the_samples_for_it_is_not_stated() -> None:
    def calls(count: int) -> list[float | None]:
        step = 10 * MS // count
        reads = [Slice(0, "read", "io", n * step, n * step + step // 2) for n in range(count)]
        (found,) = summarise(trace_of(*reads)).calls
        return [found.p50_s, found.p99_s]

    assert calls(19) == [None, None]
    assert calls(999)[1] is None
    half = 10 * MS // 1000 // 2 * 1e-9
    assert calls(1000) == [pytest.approx(half), pytest.approx(half)]


def test_an_empty_window_is_idle() -> None:
    assert ms(trace_of()) == pytest.approx({"idle": 10})


def test_requests_to_a_store_are_no_time_of_a_thread_and_no_payload() -> None:
    work = (
        Slice(0, "operate", "step", 2 * MS, 8 * MS, 4096),
        Slice(0, "read", "io", 3 * MS, 7 * MS, 4096),
    )
    asked = (
        Slice(0, "get", "request", 0, 9 * MS, 4096, request=1),
        Slice(1, "get", "request", 1 * MS, 10 * MS, 4096, request=2),
    )
    without, beside = summarise(trace_of(*work)), summarise(trace_of(*work, *asked))
    assert beside.parts_s == without.parts_s
    assert beside.threads == without.threads
    assert (beside.payload_bytes, beside.calls) == (4096, without.calls)


def test_requests_and_their_phases_are_listed_if_they_lie_wholly_inside_the_window() -> None:
    asked = [
        Slice(0, "get", "request", -MS, 5 * MS, request=1),
        Slice(0, "read", "request", 4 * MS, 5 * MS, request=1),
        Slice(1, "get", "request", 1 * MS, 4 * MS, request=2),
        Slice(1, "read", "request", 2 * MS, 4 * MS, request=2),
        Slice(0, "put", "request", 9 * MS, 12 * MS),
    ]
    summary = summarise(trace_of(*asked))
    listed = {each.name: (each.count, round(each.max_s * 1e9)) for each in summary.requests}
    assert listed == {"get": (1, 3 * MS), "read": (2, 2 * MS)}
    assert summary.calls == ()
    assert list(listed) == ["get", "read"], "a request comes before its phases"


@st.composite
def nests(draw: st.DrawFn, number: int) -> list[Slice]:
    """Slices of one track that lie inside each other or apart."""
    found: list[Slice] = []

    def fill(start_ns: int, end_ns: int, depth: int) -> None:
        cuts = draw(st.lists(st.integers(start_ns, end_ns), max_size=6).map(sorted))
        for first, last in zip(cuts[::2], cuts[1::2], strict=False):
            if first == last:
                continue
            category = draw(st.sampled_from(["kernel", "copy", "io", "step", "python", "wait"]))
            found.append(Slice(number, category, category, first, last, 1))
            if depth:
                fill(first, last, depth - 1)

    fill(-200, 1200, 2)
    # Recorded when they end, so the inner ones come first.
    return sorted(found, key=lambda each: (each.end_ns, -each.start_ns))


@given(tracks=st.tuples(nests(0), nests(1), nests(2)))
@settings(max_examples=200, deadline=None)
def test_the_parts_of_any_trace_sum_to_its_wall_time_and_to_its_slices(
    tracks: tuple[list[Slice], ...],
) -> None:
    trace = trace_of(*(each for slices in tracks for each in slices), end_ns=1000)
    assert faults(trace) == []
    summary = summarise(trace)
    parts = {part: round(each * 1e9) for part, each in summary.parts_s.items()}
    assert sum(parts.values()) == 1000
    assert parts == parts_ns(trace)
    for thread in summary.threads:
        own = {part: round(each * 1e9) for part, each in thread.parts_s.items()}
        assert own == parts_ns(trace, tid=100 + int(thread.name.removeprefix("lane-")))

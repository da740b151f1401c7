"""The file: a valid Chrome trace, cut to its window, that names every thread."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.profile.slices import Slice, Track, nested, windowed
from kvbench.profile.trace import SCHEMA, chrome_trace, encode
from tests.profile.test_summary import MS, recording, trace_of
from tests.profile.trace_format import faults, requests


def test_a_slice_beyond_the_window_is_cut_and_says_where() -> None:
    cut = windowed(
        recording(
            Slice(0, "a", "io", -5, 1),
            Slice(0, "b", "io", 1, 2),
            Slice(0, "c", "io", 9 * MS, 11 * MS),
            Slice(1, "d", "io", -5, 11 * MS),
            Slice(2, "before", "io", -5, 0),
            Slice(2, "after", "io", 10 * MS, 11 * MS),
        )
    )
    assert [(each.name, each.start_ns, each.end_ns, each.cut) for each in cut.slices] == [
        ("d", 0, 10 * MS, "both"),
        ("a", 0, 1, "start"),
        ("b", 1, 2, ""),
        ("c", 9 * MS, 10 * MS, "end"),
    ]


def test_too_many_slices_shorten_the_window_and_leave_no_holes() -> None:
    many = recording(
        Slice(1, "run", "python", -1, 11 * MS),
        *(Slice(0, f"r{n}", "io", n * 10, n * 10 + 8) for n in range(100)),
    )
    cut = windowed(many, most=21)
    assert cut.stopped_by == "slices"
    assert cut.end_ns == 200  # the twenty-first read begins there
    assert [each.name for each in cut.slices] == ["run", *(f"r{n}" for n in range(20))]
    assert windowed(many, most=101).stopped_by == "time"


def test_a_call_that_seems_to_outlast_its_caller_is_shortened() -> None:
    slices = [
        Slice(0, "caller", "python", 0, 100),
        Slice(0, "call", "python", 50, 103),
        Slice(0, "inner", "python", 60, 104),
        Slice(0, "next", "python", 103, 110),
    ]
    assert [(each.name, each.end_ns) for each in nested(slices)] == [
        ("caller", 100),
        ("call", 100),
        ("inner", 100),
        ("next", 110),
    ]


def trace() -> dict[str, Any]:
    made = recording(
        Slice(11, "read", "io", 1234, 5678, 4096),
        Slice(3, "operate", "step", 1, 2),
        Slice(0, "window", "wait", 0, 10 * MS),
    )
    lanes = [Track(process="p", thread=f"lane-{n}", pid=7, tid=90 - n) for n in range(11)]
    tracks = [Track(process="p", thread="main", pid=7, tid=7), *lanes]
    return chrome_trace(msgspec.structs.replace(made, tracks=tracks), {"case": "a"})


def test_the_trace_is_what_the_format_asks_for_and_loses_no_nanosecond() -> None:
    read = json.loads(encode(trace()))
    assert faults(read) == []
    (event,) = (each for each in read["traceEvents"] if each["name"] == "read")
    assert (event["ts"], event["dur"]) == (1.234, 4.444)
    assert event["args"] == {"bytes": 4096}


def test_threads_are_shown_main_first_and_then_by_number() -> None:
    order = {
        event["tid"]: event["args"]["sort_index"]
        for event in trace()["traceEvents"]
        if event["name"] == "thread_sort_index"
    }
    assert sorted(order, key=lambda tid: order[tid]) == [7, 88, 80]  # main, lane-2, lane-10


def test_the_beginning_of_the_file_says_what_it_is() -> None:
    assert f'"{SCHEMA}"'.encode() in encode(trace())[:200]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"dur": -1}, "dur is -1"),
        ({"ts": float("nan")}, "ts is nan"),
        ({"tid": "lane-1"}, "pid or tid"),
        ({"tid": 12345}, "thread 12345 of 7 has no name"),
        ({"cat": ""}, "has no category"),
        ({"ph": "B"}, "neither a complete event"),
        ({"extra": 1}, "has the keys"),
        ({"ts": 0.5, "dur": 1.0, "tid": 88}, "ends at 1500, after"),
    ],
)
def test_the_reader_of_these_tests_refuses_a_broken_trace(
    change: dict[str, Any], complaint: str
) -> None:
    broken = trace()
    event = next(each for each in broken["traceEvents"] if each["name"] == "read")
    if "tid" in change and change["tid"] == 88:
        other = {**event, "tid": 88, "ts": 0.0, "dur": 1.0}
        broken["traceEvents"].append(other)
    event.update(change)
    assert any(complaint in each for each in faults(broken)), faults(broken)


# ---------------------------------------------------------------- requests


def get(number: int, start_ms: int, end_ms: int, *, thread: int = 0) -> Slice:
    return Slice(thread, "get", "request", start_ms * MS, end_ms * MS, 64, request=number)


def phase(name: str, number: int, start_ms: int, end_ms: int, *, thread: int = 0) -> Slice:
    return Slice(thread, name, "request", start_ms * MS, end_ms * MS, request=number)


def test_requests_that_overlap_are_drawn_each_around_its_phases_and_on_no_thread() -> None:
    made = trace_of(
        get(7, 1, 5),
        phase("queued", 7, 1, 2),
        phase("read", 7, 2, 5, thread=1),
        get(8, 2, 7),
        phase("queued", 8, 2, 4),
        phase("read", 8, 4, 7, thread=2),
        Slice(1, "read", "io", 2 * MS, 5 * MS, 64),
    )
    assert faults(made) == []
    seven, eight = {"request": 7}, {"request": 8}
    assert requests(made) == [
        [
            ("queued", 1 * MS, 2 * MS, seven),
            ("read", 2 * MS, 5 * MS, seven),
            ("get", 1 * MS, 5 * MS, {"bytes": 64, **seven}),
        ],
        [
            ("queued", 2 * MS, 4 * MS, eight),
            ("read", 4 * MS, 7 * MS, eight),
            ("get", 2 * MS, 7 * MS, {"bytes": 64, **eight}),
        ],
    ]
    threads = [event for event in made["traceEvents"] if event["ph"] == "X"]
    assert [event["cat"] for event in threads] == ["io"]


def test_phases_of_one_request_that_overlap_have_a_line_each_and_the_same_number() -> None:
    made = trace_of(get(3, 0, 9), phase("read dram", 3, 1, 4), phase("read nvme", 3, 2, 8))
    assert faults(made) == []
    first, second = requests(made)
    assert [(span[0], span[3]["request"]) for span in first] == [("read dram", 3), ("get", 3)]
    assert [(span[0], span[3]["request"]) for span in second] == [("read nvme", 3)]


def test_requests_without_a_number_are_not_taken_for_phases_of_each_other() -> None:
    made = trace_of(get(0, 0, 9), get(0, 1, 2), get(0, 3, 4))
    assert faults(made) == []
    assert [len(line) for line in requests(made)] == [1, 1, 1]
    assert requests(made)[0] == [("get", 0, 9 * MS, {"bytes": 64})]


def test_a_request_that_reaches_beyond_the_window_is_cut_and_says_where() -> None:
    (line,) = requests(trace_of(get(1, -2, 4), phase("read", 1, 3, 4)))
    assert line == [
        ("read", 3 * MS, 4 * MS, {"request": 1}),
        ("get", 0, 4 * MS, {"bytes": 64, "cut": "start", "request": 1}),
    ]


@given(
    spans=st.lists(
        st.tuples(st.integers(0, 3), st.integers(-5, 15), st.integers(0, 8)), max_size=30
    )
)
def test_any_requests_make_a_valid_trace_that_loses_none(spans: list[tuple[int, int, int]]) -> None:
    slices = [
        Slice(0, f"s{start}", "request", start, start + length, request=number)
        for number, start, length in spans
    ]
    cut = windowed(recording(*slices, end_ns=10))
    made = chrome_trace(cut, {"case": "a"})
    assert faults(made) == []
    drawn = [span for line in requests(made) for span in line]
    told = [(name, start, end, args.get("request", 0)) for name, start, end, args in drawn]
    kept = [(each.name, each.start_ns, each.end_ns, each.request) for each in cut.slices]
    assert sorted(told) == sorted(kept)
    for line in requests(made):
        assert len({args.get("request", 0) for _, _, _, args in line}) == 1


def broken_by(change: dict[str, Any], phase_: str) -> list[str]:
    made = trace_of(get(1, 1, 5), phase("read", 1, 2, 4))
    next(each for each in made["traceEvents"] if each["ph"] == phase_).update(change)
    return faults(made)


@pytest.mark.parametrize(
    ("change", "which", "complaint"),
    [
        ({"id2": "1"}, "b", "id2 is '1'"),
        ({"id2": {"local": 1}}, "b", "id2 is {'local': 1}"),
        ({"id2": {"local": "9"}}, "b", "get never ends"),
        ({"id2": {"local": "9"}}, "e", "read ends at 4000000 and never began"),
        ({"name": "got"}, "e", "got ends at 4000000 inside read"),
        ({"cat": "io"}, "e", "read ends at 4000000 inside read"),
        ({"ts": 1.0}, "e", "read at 1000 comes after"),
        ({"ts": -1.0}, "b", "ts is -1.0"),
        ({"args": {}}, "e", "has the keys"),
        ({"tid": 4711}, "b", "thread 4711 of 100 has no name"),
    ],
)
def test_the_reader_of_these_tests_refuses_broken_requests(
    change: dict[str, Any], which: str, complaint: str
) -> None:
    assert any(complaint in each for each in broken_by(change, which)), broken_by(change, which)

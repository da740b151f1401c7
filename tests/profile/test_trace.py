"""The file: a valid Chrome trace, cut to its window, that names every thread."""

import json
from typing import Any

import msgspec
import pytest

from kvbench.profile.slices import Slice, Track, nested, windowed
from kvbench.profile.trace import SCHEMA, chrome_trace, encode
from tests.profile.test_summary import MS, recording
from tests.profile.trace_format import faults


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

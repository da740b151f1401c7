"""The summary of a trace in words and columns, at several widths."""

from typing import Any

import pytest

from kvbench.profile.slices import COPY, IO, KERNEL, PYTHON
from kvbench.profile.summary import IDLE, Calls, Summary, ThreadUse
from kvbench.profile.text import render

ABOUT: dict[str, Any] = {
    "case": "nvme.read/posix/64KiB/qd32/random",
    "warmup_s": 0.3,
    "cpu_s": 0.5,
    "path_observed": "POSIX, O_DIRECT",
    "verified_bytes": 2**20,
    "cautions": [],
    "tools": {"Proton": {"kernels": [{"name": "gather", "launches": 7, "time_s": 0.014}]}},
    "stopped_by": "time",
}


def parts_s(io_s: float) -> dict[str, float]:
    return {KERNEL: 0.0, COPY: 0.0, IO: io_s, PYTHON: 1.0 - io_s, IDLE: 0.0}


LANES = Summary(
    wall_s=1.0,
    parts_s=parts_s(0.99),
    threads=tuple(
        ThreadUse("kvbench", f"lane-{n}", parts_s(share)) for n, share in enumerate((0.9, 1.0))
    ),
    payload_bytes=2**30,
    calls=(Calls("read", 1500, 0.0024, None, 0.0645),),
    requests=(Calls("get", 700, 0.0052, None, 0.0911),),
)


def lines(width: int) -> list[str]:
    return list(render(LANES, ABOUT, width))


@pytest.mark.parametrize("width", [79, 100, 200])
def test_columns_and_what_stands_beside_them_keep_to_the_width(width: int) -> None:
    sentences = ("warm-up", ".")  # their ends; they are wrapped by who prints them
    rows = [each for each in lines(width) if not each.endswith(sentences)]
    assert max(map(len, rows)) <= width
    assert any(each.startswith("thread    ") for each in rows)


def test_the_range_of_many_lanes_moves_below_them_where_it_does_not_fit_beside() -> None:
    beside = next(each for each in lines(200) if each.startswith("lane-0 to lane-1 "))
    assert beside.endswith("   I/O wait 90.0% to 100.0%")
    narrow = lines(100)
    at = next(n for n, each in enumerate(narrow) if each.startswith("lane-0 to lane-1 "))
    assert narrow[at] + "   I/O wait 90.0% to 100.0%" == beside
    assert narrow[at + 1] == "  I/O wait 90.0% to 100.0%"


def test_where_columns_do_not_fit_each_figure_has_its_title_beside_it() -> None:
    narrow = lines(50)
    assert (
        "lane-0 to lane-1: GPU kernel 0.0%, copy 0.0%, I/O wait 95.0%, Python 5.0%, idle 0.0%; "
        "I/O wait 90.0% to 100.0%"
    ) in narrow
    assert "read: count 1500, p50 2400.0 µs, p99 too few, longest 64500.0 µs" in narrow
    assert "gather: launches 7, total s 0.014, mean 2000.0 µs" in narrow
    assert "I/O wait         0.990     99.0%" in narrow, "this table still fits"


def test_requests_to_a_store_have_a_table_of_their_own() -> None:
    wide = lines(100)
    at = next(n for n, each in enumerate(wide) if each.startswith("request "))
    assert wide[at].split() == ["request", "count", "p50", "p99", "longest"]
    assert wide[at + 1].split() == ["get", "700", "5200.0", "µs", "too", "few", "91100.0", "µs"]
    assert "get: count 700, p50 5200.0 µs, p99 too few, longest 91100.0 µs" in lines(50)

"""The bars: where the point, the interval, the zero line and the margin are drawn."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvbench.compare.record import Finding, Verdict
from kvbench_reports.compare.forest import Axis, axis_of, bar, scale
from tests.reports.comparisons import tested as checked
from tests.reports.comparisons import untested

AXIS = Axis(low=-0.2, high=0.2, width=41)  # a column is 1 %
SHARES = st.floats(-0.99, 50)


def finding(change: float, low: float | None, high: float | None, margin: float = 0.05) -> Finding:
    return checked(
        "nvme.read/a", Verdict.UNSURE, (change, 0.0, 0.0), low=low, high=high, margin=margin
    )


def test_point_interval_zero_and_margin_stand_where_they_are() -> None:
    drawn = bar(finding(0.10, 0.07, 0.14), AXIS)
    assert {sign: drawn.index(sign) for sign in "│┊├●┤"} == {
        "│": 20,
        "┊": 25,
        "├": 27,
        "●": 30,
        "┤": 34,
    }


def test_zero_and_margin_can_be_seen_inside_an_interval() -> None:
    drawn = bar(finding(0.01, -0.05, 0.10), AXIS)
    assert drawn.strip() == "├────┼●───┊────┤"


@pytest.mark.parametrize(
    ("change", "low", "high", "first", "last"),
    [
        (0.0, -0.5, 0.5, "◄", "►"),
        (0.15, 0.10, 0.5, " ", "►"),
        (0.5, 0.4, 0.6, " ", "►"),
        (-0.5, -0.6, -0.4, "◄", "┊"),
        (0.5, None, None, " ", "►"),
    ],
)
def test_what_leaves_the_axis_ends_in_an_arrow(
    change: float, low: float | None, high: float | None, first: str, last: str
) -> None:
    drawn = bar(finding(change, low, high), AXIS)
    assert (drawn[0], drawn[-1]) == (first, last)


def test_a_change_without_an_interval_is_a_point() -> None:
    assert bar(finding(0.10, None, None), AXIS).strip() == "│    ┊    ●"


def test_an_untested_finding_has_no_bar() -> None:
    nothing = untested("nvme.read/a", Verdict.NEW, "not in BASE")
    assert bar(nothing, AXIS) == ""
    assert axis_of([nothing], 40) is None


@given(
    st.lists(st.tuples(SHARES, SHARES, SHARES), min_size=1, max_size=20),
    st.integers(14, 60),
    st.floats(0, 10),
)
@example([(0.0, 0.0, 0.0)], 14, 0.0)
@example([(0.0, 0.0, 5e-324)], 14, 0.0)
def test_every_bar_and_both_lines_above_stay_within_the_axis(
    changes: list[tuple[float, float, float]], width: int, margin: float
) -> None:
    findings = [finding(middle, low, high, margin) for low, middle, high in map(sorted, changes)]
    axis = axis_of(findings, width)
    assert axis is not None
    assert axis.low < 0 < axis.high
    assert scale(axis)[0][axis.column(0.0)] == "0"
    for text in (*scale(axis), *(bar(each, axis) for each in findings)):
        assert len(text) <= width
    assert all(set(bar(each, axis)) & {"●", "►", "◄"} for each in findings)


@given(st.lists(SHARES, min_size=2, max_size=20), st.integers(14, 60))
def test_a_larger_change_is_never_drawn_further_left(shares: list[float], width: int) -> None:
    axis = axis_of([finding(share, share, share) for share in shares], width)
    assert axis is not None
    columns = [axis.column(share) for share in sorted(shares)]
    assert columns == sorted(columns)


def test_one_wild_interval_does_not_flatten_the_others() -> None:
    usual = [finding(0.01 * i, 0.01 * i - 0.02, 0.01 * i + 0.02) for i in range(5)]
    axis = axis_of([*usual, finding(0.02, -0.45, 9.0)], 40)
    assert axis is not None
    assert axis.high < 0.15


def test_a_tick_at_the_end_gives_way_to_those_near_zero() -> None:
    labels, _ = scale(Axis(low=-0.205, high=0.205, width=18))
    assert labels.split() == ["-10", "0", "+10"]


def test_ticks_are_round_apart_and_always_name_zero() -> None:
    labels, sides = scale(AXIS)
    assert labels.split() == ["-20", "-15", "-10", "-5", "0", "+5", "+10", "+15", "+20"]
    assert labels.index(" 0 ") + 1 == sides.index("│") == 20
    assert sides.split() == ["faster", "│", "slower"]

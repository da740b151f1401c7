"""How figures read."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kvbench_reports import words

POSITIVE = st.floats(1e-12, 1e15, allow_nan=False)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.0234, 3, "1.02"),
        (9.996, 3, "10.0"),  # not 10.00: rounding moved it up a decade
        (0.0834, 3, "0.0834"),
        (42_137.0, 3, "42,100"),
        (147.0, 2, "150"),
        (0.0, 3, "0"),
    ],
)
def test_a_number_has_the_digits_asked_for(value: float, digits: int, text: str) -> None:
    assert words.number(value, digits) == text


@given(POSITIVE, st.integers(2, 4))
@example(9.995, 3)
@example(0.00099995, 4)
def test_a_printed_number_is_the_number_to_its_last_digit(value: float, digits: int) -> None:
    text = words.number(value, digits)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.51 * 10 ** (1 - digits))


@pytest.mark.parametrize(
    ("half_width", "digits"), [(0.2, 2), (0.031, 3), (0.0101, 3), (0.0099, 4), (1e-6, 4), (3.0, 2)]
)
def test_digits_end_where_the_interval_begins(half_width: float, digits: int) -> None:
    assert words.digits_of(1.02, 1.02 - half_width, 1.02 + half_width / 2) == digits


def test_an_interval_of_no_width_allows_the_most_digits_and_no_interval_three() -> None:
    assert words.digits_of(1.02, 1.02, 1.02) == 4
    assert words.digits_of(1.02, None, None) == 3


def test_the_wider_side_of_an_interval_is_the_one_printed() -> None:
    assert words.interval_percent(2.0, 1.9, 2.02) == "5.0"
    assert words.interval_percent(2.0, 1.99, 2.24) == "12"
    assert words.interval_percent(2.0, None, 2.24) == words.NONE


def test_an_interval_wider_than_its_value_is_not_given_to_the_digit() -> None:
    assert words.interval_percent(2.0, 0.1, 43.0) == ">100"
    assert words.interval_percent(2.0, 0.0, 4.0) == "100"


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0.0, "0.0"), (0.0004, "<0.1"), (0.0994, "9.9"), (0.0996, "10"), (0.974, "97"), (1.04, "104")],
)
def test_a_share_has_one_decimal_below_ten_percent(fraction: float, text: str) -> None:
    assert words.percent(fraction) == text


def test_a_column_of_sizes_has_the_unit_of_its_smallest() -> None:
    scale = words.size_scale([64 * 2**10, 2 * 2**20])
    assert scale[0] == "KiB"
    assert [words.size(value, scale) for value in (64 * 2**10, 2 * 2**20)] == ["64", "2,048"]
    assert words.size(1_124_352, words.size_scale([1_124_352])) == "1.072"


def test_a_column_of_times_has_the_unit_of_its_middle() -> None:
    assert words.time_scale([83e-6, 4e-3, 7e-3])[0] == "ms"
    assert words.time_scale([2e-9])[0] == "ns"
    assert words.time_scale([])[0] == "s"


@given(st.text())
@example("a\x1b[31mb")
@example("one\r\ntwo\u2028three")
@example("\u202eabc")
@example("\ud800")
def test_text_from_a_file_stays_on_its_line_and_cannot_steer_the_terminal(text: str) -> None:
    assert words.clean(text).isprintable()


def test_what_cannot_be_printed_is_shown_as_an_escape() -> None:
    assert words.clean("red \x1b[31m\n now") == r"red \x1b[31m now"

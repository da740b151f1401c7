"""How the words of a comparison read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench_reports import words


@pytest.mark.parametrize(
    ("share", "decimals", "text"),
    [
        (0.145, 1, "+14.5"),
        (-0.0514, 1, "-5.1"),
        (0.0, 1, "0.0"),
        (-0.0004, 1, "0.0"),  # not -0.0: rounding left nothing to have a sign
        (0.0042, 2, "+0.42"),
        (12.5, 1, "+1,250.0"),
        (1e6, 1, ">+9,999"),
        (math.nan, 1, words.NONE),
        (math.inf, 1, words.NONE),
        (None, 1, words.NONE),
    ],
)
def test_a_change_has_a_sign_unless_it_is_none(
    share: float | None, decimals: int, text: str
) -> None:
    assert words.signed_percent(share, decimals) == text


@given(st.floats(-1, 1e9), st.integers(0, 3))
def test_a_change_is_never_long(share: float, decimals: int) -> None:
    assert len(words.signed_percent(share, decimals)) <= len("+9,998.999")


@pytest.mark.parametrize(
    ("share", "text"), [(0.05, "5"), (0.025, "2.5"), (0.001, "0.1"), (1, "100")]
)
def test_a_chosen_share_reads_as_it_was_written(share: float, text: str) -> None:
    assert words.short_percent(share) == text


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        ("2026-11-25T16:01:07Z", "2026-11-25 16:01 UTC"),
        ("2026-11-25T16:01:07+02:00", "2026-11-25 14:01 UTC"),
        ("2026-11-25T16:01:07", "2026-11-25T16:01:07"),  # of no known zone
        ("yesterday\n", "yesterday"),
    ],
)
def test_an_instant_is_in_utc_and_another_text_stays(instant: str, text: str) -> None:
    assert words.moment(instant) == text


@pytest.mark.parametrize(
    ("rate", "unit"), [(2e12, "TB/s"), (6.5e9, "GB/s"), (731e6, "MB/s"), (12e3, "kB/s"), (0, "B/s")]
)
def test_a_rate_is_in_the_unit_in_which_it_is_readable(rate: float, unit: str) -> None:
    assert words.rate_scale([rate])[0] == unit


@given(st.text())
def test_cleaned_text_is_one_printable_line(text: str) -> None:
    assert words.clean(text).isprintable()
    assert words.clean(words.clean(text)) == words.clean(text)

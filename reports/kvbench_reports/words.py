"""How figures and names read, the same in every format for people.

Digits are limited by the interval, a column has one unit, and text that came out of a file can
neither move the cursor nor break a line. Takes numbers in base units, returns text; knows nothing
of rows, columns or formats.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from statistics import median

from kvbench.units import GIB, KIB, MIB

NONE = "\N{EN DASH}"  # a figure that is missing; never 0
_DEFAULT_DIGITS, _LEAST_DIGITS, _MOST_DIGITS = 3, 2, 4
_NOTHING = 1e-30  # below, there is no unit, and rounding would overflow
_SMALLEST_SHARE = 0.001  # one tenth of a percent, the last digit that `percent` prints
_WHOLE_FROM = 0.0995  # 9.95 % would round to 10.0
_MOST_CHANGE = 99.99  # a share; beyond, only that it is beyond is of interest
_TIMES = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
_RATES = (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3), ("B/s", 1.0))
_SIZES = (("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1))

_STARTS_A_FORMULA = ("=", "+", "-", "@")

Scale = tuple[str, float]  # a unit and its value in base units


def clean(text: str) -> str:
    """One line of printable characters: what cannot be printed is written as an escape."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def spreadsheet_text(text: str) -> str:
    """A cleaned line that no spreadsheet takes for a formula; a number keeps its sign."""
    line = clean(text)
    return f"'{line}" if line.startswith(_STARTS_A_FORMULA) and not _is_number(line) else line


def number(value: float, digits: int = _DEFAULT_DIGITS) -> str:
    """Plain decimals to so many significant digits, thousands separated: `1.02`, `42,100`."""
    if abs(value) < _NOTHING:
        return "0"
    rounded = round(value, digits - 1 - _exponent(value))
    # Asked again after rounding: 9.996 to three digits is 10.0, not 10.00.
    return f"{rounded:,.{max(0, digits - 1 - _exponent(rounded))}f}"


def digits_of(value: float, low: float | None, high: float | None) -> int:
    """How many digits of `value` its interval supports: down to the first of the half width."""
    if low is None or high is None:
        return _DEFAULT_DIGITS
    half_width = max(high - value, value - low)
    if half_width <= 0:
        return _MOST_DIGITS
    supported = _exponent(value) - _exponent(half_width) + 1
    return min(_MOST_DIGITS, max(_LEAST_DIGITS, supported))


def interval_percent(value: float, low: float | None, high: float | None) -> str:
    """The wider side of an interval in percent of the value, without a sign: `3.1`, `>100`."""
    if low is None or high is None or value <= 0:
        return NONE
    share = max(high - value, value - low) / value
    return ">100" if share > 1 else percent(share)


def percent(fraction: float) -> str:
    """A share in percent, without the sign: `97`, `8.4`, `<0.1`."""
    if 0 < fraction < _SMALLEST_SHARE:
        return "<0.1"
    return f"{100 * fraction:.{0 if fraction >= _WHOLE_FROM else 1}f}"


def signed_percent(share: float | None, decimals: int = 1) -> str:
    """A change in percent with its sign: `+14.5`, `-5.1`, `0.0`; `>+9,999` beyond."""
    if share is None or not math.isfinite(share):
        return NONE
    if share > _MOST_CHANGE:
        return f">+{100 * _MOST_CHANGE:,.0f}"
    text = f"{100 * share:+,.{decimals}f}"
    return text[1:] if float(text[1:].replace(",", "")) == 0 else text


def short_percent(share: float) -> str:
    """A chosen share in percent, as it was written: `5`, `2.5`."""
    return f"{100 * share:.4g}"


def moment(text: str) -> str:
    """An ISO instant as `2026-11-25 16:01 UTC`; another text as it is."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return clean(text)
    if instant.tzinfo is None:
        return clean(text)
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def size_scale(values_bytes: Iterable[int]) -> Scale:
    """The largest binary unit in which no value is below one."""
    least = min(values_bytes, default=1)
    return next((scale for scale in _SIZES if least >= scale[1]), _SIZES[-1])


def time_scale(values_s: Iterable[float]) -> Scale:
    """The unit in which the middle value is readable."""
    return _middle_scale(values_s, _TIMES)


def rate_scale(values_bytes_per_s: Iterable[float]) -> Scale:
    """The decimal unit in which the middle value is readable."""
    return _middle_scale(values_bytes_per_s, _RATES)


def size(value_bytes: int, scale: Scale) -> str:
    """A size in a unit, exact when it is a whole number of it."""
    scaled = value_bytes / scale[1]
    return f"{scaled:,.0f}" if scaled == int(scaled) else number(scaled, _MOST_DIGITS)


def count(how_many: int, noun: str) -> str:
    """`1 row`, `2 rows`, `1,024 rows`."""
    return f"{how_many:,} {noun}{'' if how_many == 1 else 's'}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _middle_scale(values: Iterable[float], scales: tuple[Scale, ...]) -> Scale:
    middle = median(list(values) or [1.0])
    return next((scale for scale in scales if middle >= scale[1]), scales[-1])


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value)))

"""Base units. Every stored number is in seconds or bytes; scaling happens here, for text.

Sizes are printed with binary prefixes (a block of 2 MiB), rates with decimal ones (GB/s, as
drives and links are sold).
"""

import re
from fractions import Fraction

from kvbench.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_BINARY = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_RATES = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))
# Half a unit in the last of three digits: 999.6 kB/s must become "1 MB/s", never "1e+03 kB/s".
_ROUNDS_UP = 0.9995
# As many digits as any size has: int() would refuse thousands of them with its own error.
_AMOUNT = re.compile(
    r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*(?:([kmgtp])(i?))?(b?)\s*", re.IGNORECASE | re.ASCII
)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_bytes(text: str) -> int:
    """`"4MiB"`, `"256k"`, `"1GB"` or `"4096"` in bytes; `KiB` and `k` are 1024, `KB` is 1000.

    Raises:
        UsageError: the text is not a size, or not a whole number of bytes.
    """
    size = _amount(text, bare=1024)
    if size is None:
        raise UsageError(f"{text!r} is not a size: write for example 4096, 256KiB, 2MiB or 1GB")
    if size.denominator != 1:
        raise UsageError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_rate(text: str) -> float:
    """`"7GB/s"` or `"900MB/s"` in bytes per second, decimal unless the prefix has an `i`.

    Raises:
        UsageError: the text is not a rate, or it is 0.
    """
    head, slash, tail = text.rpartition("/")
    if re.search(r"[A-Z]i?b\s*$", head):
        raise UsageError(f"{text!r} may mean bits: write bytes, for example 7GB/s")
    rate = _amount(head, bare=1000)
    if not slash or tail.strip().lower() != "s" or not rate:
        raise UsageError(f"{text!r} is not a rate above 0: write for example 7GB/s or 900MB/s")
    return float(rate)


def format_bytes(value: float) -> str:
    """A size with a binary prefix: `2 MiB`, `1.5 GiB`, `12 B`."""
    for factor, unit in _BINARY:
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g} B"


def exact_bytes(value: int) -> str:
    """A size for a name, never rounded: `2MiB`, `1125KiB`, `262148B`."""
    for factor, unit in _BINARY:
        if value >= factor and value % factor == 0:
            return f"{value // factor}{unit}"
    return f"{value}B"


def format_rate(bytes_per_s: float) -> str:
    """A rate with a decimal prefix and three digits: `1.02 GB/s`."""
    return _scale(bytes_per_s, _RATES)


def _amount(text: str, *, bare: int) -> Fraction | None:
    """A number of bytes, exact; None if the text is none. `G` without `i` or `B` is `bare`³."""
    match = _AMOUNT.fullmatch(text)
    if not match:
        return None
    number, prefix, binary, unit = match.groups("")
    base = 1024 if binary else 1000 if unit else bare
    factor: int = base ** _POWERS[prefix.lower()]
    return Fraction(number) * factor


def _scale(value: float, scales: tuple[tuple[float, str], ...]) -> str:
    # What is smaller than every unit, 0 as well, is printed in the smallest.
    factor, unit = next((one for one in scales if abs(value) >= one[0] * _ROUNDS_UP), scales[-1])
    number = value / factor
    digits = ".3g" if abs(number) < 1000 * _ROUNDS_UP else ".0f"  # beyond the largest unit
    return f"{number:{digits}} {unit}"

"""Base units. Every stored number is in seconds or bytes; scaling happens here, for text.

Sizes are printed with binary prefixes (a block of 2 MiB), rates with decimal ones (GB/s, as
drives and links are sold), times with decimal ones.
"""

import re

from kvbench.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_BINARY = ((2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_RATES = ((1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))
_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?)b?\s*", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_bytes(text: str) -> int:
    """`"4MiB"`, `"256k"`, `"1GB"` or `"4096"` in bytes; `KiB` and `k` are 1024, `KB` is 1000.

    Raises:
        UsageError: the text is not a size, or not a whole number of bytes.
    """
    match = _SIZE.fullmatch(text)
    if not match:
        raise UsageError(f"{text!r} is not a size: write for example 4096, 256KiB, 2MiB or 1GB")
    number, prefix, binary = match.groups()
    decimal = text.strip().lower().endswith("b") and prefix and not binary
    value = float(number) * (1000 if decimal else 1024) ** _POWERS[prefix.lower()]
    if value != int(value):
        raise UsageError(f"{text!r} is not a whole number of bytes")
    return int(value)


def parse_rate(text: str) -> float:
    """`"7GB/s"` or `"900MB/s"` in bytes per second, decimal unless the prefix has an `i`.

    Raises:
        UsageError: the text is not a rate.
    """
    head, slash, tail = text.strip().rpartition("/")
    if not slash or tail.strip().lower() != "s":
        raise UsageError(f"{text!r} is not a rate: write for example 7GB/s or 900MB/s")
    return float(parse_bytes(head))


def format_bytes(value: float) -> str:
    """A size with a binary prefix: `2 MiB`, `1.5 GiB`, `12 B`."""
    for factor, unit in _BINARY:
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g} B"


def format_rate(bytes_per_s: float) -> str:
    """A rate with a decimal prefix and three digits: `1.02 GB/s`."""
    return _scale(bytes_per_s, _RATES)


def format_time(value_s: float) -> str:
    """A time with three digits: `612 µs`."""
    return _scale(value_s, _TIMES)


def _scale(value: float, scales: tuple[tuple[float, str], ...]) -> str:
    if value == 0:
        return f"0 {scales[-1][1] if scales is _RATES else 's'}"
    # Half a unit in the last printed digit: 999.6 kB/s must become "1 MB/s", never "1e+03 kB/s".
    for factor, unit in scales:
        if abs(value) >= factor * 0.9995:
            return f"{value / factor:.3g} {unit}"
    factor, unit = scales[-1]
    return f"{value / factor:.3g} {unit}"

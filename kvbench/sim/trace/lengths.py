"""Traces that have lengths only, as CSV: Azure's LLM inference traces and BurstGPT.

What is used again cannot be told from them. Columns are found by their names in the first line.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from kvbench.sim.columns import Columns
from kvbench.sim.trace.hashed import Lines
from kvbench.sim.trace.lines import seen, wrong_line
from kvbench.sim.trace.requests import MOONCAKE_BLOCK_TOKENS
from kvbench.sim.trace.rows import Rows

AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURST = ("Timestamp", "Request tokens", "Response tokens")

_NS_PER_S = 1_000_000_000
# 2023: 2023-11-16 18:15:46.6805900 (ticks of 100 ns); 2024: microseconds and +00:00
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:\+00:00|Z)?")
_COUNT = re.compile(rb"-?\d{1,18}(?:\.0)?")  # .0 where a table held gaps once
_NUMBER = re.compile(rb"-?\d{1,18}(?:\.\d{1,18})?(?:[eE][+-]?\d{1,2})?")


def read_azure(path: Path, lines: Lines) -> Columns:
    """`TIMESTAMP` (a date, UTC), `ContextTokens`, `GeneratedTokens`.

    Rows without a token of input are counted in `notes` and left out.

    Raises:
        UsageError: a row is wrong; it names the line and what was seen there.
    """
    rows, first_ns, empty = Rows(path, 1.0), -1, 0
    for number, (stamp, context, generated) in _cells(path, lines, AZURE):
        match = _STAMP.fullmatch(stamp)
        second = _second(match[1]) if match else None
        if match is None or second is None:
            raise wrong_line(
                path, number, f"TIMESTAMP {seen(stamp)}: expected like 2023-11-16 18:15:46.6805900"
            )
        now_ns = second * _NS_PER_S + int((match[2] or b"0").ljust(9, b"0"))
        tokens, answer = _count(path, number, context), _count(path, number, generated)
        if tokens == 0 <= answer:
            empty += 1
            continue
        first_ns = now_ns if first_ns < 0 else first_ns
        if now_ns < first_ns:
            raise wrong_line(path, number, f"TIMESTAMP {seen(stamp)} is before the first")
        # Relative before it becomes a float, which has no room for a date in nanoseconds.
        rows.add(number, (now_ns - first_ns) / _NS_PER_S, (tokens, answer))
    notes = (f"{empty} rows without a token of input left out",) if empty else ()
    return rows.columns(block_tokens=MOONCAKE_BLOCK_TOKENS, notes=notes)


def read_burst(path: Path, lines: Lines) -> Columns:
    """`Timestamp` (s), `Request tokens`, `Response tokens`; the other columns are ignored.

    A row with no response tokens is a request that failed (BurstGPT's README): such rows are
    counted in `notes` and left out, as are those without a token of input.

    Raises:
        UsageError: a row is wrong; it names the line and what was seen there.
    """
    rows, failed, empty = Rows(path, 1.0), 0, 0
    for number, (stamp, request, response) in _cells(path, lines, BURST):
        if not _NUMBER.fullmatch(stamp):
            raise wrong_line(path, number, f"Timestamp {seen(stamp)}: expected seconds")
        tokens, answer = _count(path, number, request), _count(path, number, response)
        if answer == 0 <= tokens:
            failed += 1
        elif tokens == 0 <= answer:
            empty += 1
        else:
            rows.add(number, float(stamp), (tokens, answer))
    notes = [f"{failed} failed requests (0 response tokens) left out"] if failed else []
    notes += [f"{empty} rows without a token of input left out"] if empty else []
    return rows.columns(block_tokens=MOONCAKE_BLOCK_TOKENS, notes=tuple(notes))


def _cells(
    path: Path, lines: Lines, names: tuple[str, str, str]
) -> Iterator[tuple[int, tuple[bytes, bytes, bytes]]]:
    """The three cells of each row after the first line, which names the columns."""
    lines = iter(lines)
    number, head = next(lines)
    columns = [cell.strip() for cell in head.split(b",")]
    missing = [name for name in names if name.encode() not in columns]
    if missing:
        raise wrong_line(
            path,
            number,
            f"no column {missing[0]!r}: expected {', '.join(names)}; seen: {seen(head)}",
        )
    one, two, three = (columns.index(name.encode()) for name in names)
    for number, line in lines:
        cells = line.split(b",")
        if len(cells) != len(columns):
            raise wrong_line(
                path, number, f"{len(cells)} cells: expected {len(columns)}; seen: {seen(line)}"
            )
        yield number, (cells[one], cells[two], cells[three])


def _count(path: Path, number: int, cell: bytes) -> int:
    if not _COUNT.fullmatch(cell):
        raise wrong_line(path, number, f"{seen(cell)}: expected a whole number of tokens")
    return int(cell.removesuffix(b".0"))


@lru_cache(maxsize=4)  # thousands of rows may fall into one second
def _second(stamp: bytes) -> int | None:
    """Seconds since 1970, or None if there is no such date."""
    try:
        when = datetime.fromisoformat(stamp.decode())
    except ValueError:
        return None
    return int(when.replace(tzinfo=UTC).timestamp())

"""Traces with hash ids, one JSON object a line: Mooncake's (FAST'25) and Qwen-Bailian's (ATC'25).

Fields that are not named here are ignored.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvbench.sim.columns import Columns
from kvbench.sim.trace.blocks import block_hashes, prefix_hashes
from kvbench.sim.trace.lines import seen, wrong_line
from kvbench.sim.trace.requests import MOONCAKE_BLOCK_TOKENS
from kvbench.sim.trace.rows import Interning, Rows

BAILIAN_BLOCK_TOKENS = 16  # `blksz_16` in the names of the published files

Lines = Iterable[tuple[int, bytes]]


class _Row(msgspec.Struct):
    timestamp: float
    input_length: int  # tokens
    output_length: int
    hash_ids: list[int]


@dataclass(frozen=True, slots=True)
class _Kind:
    block_tokens: int
    time_unit_s: float
    interning: Interning


def read_mooncake(path: Path, lines: Lines) -> Columns:
    """`timestamp` (ms), `input_length`, `output_length` (tokens), `hash_ids`.

    There is one id for each block of 512 tokens of the input, the last possibly partial. An id
    names its whole prefix, so it always follows the same one; a row that breaks this would shift
    every hit rate.

    Raises:
        UsageError: a row is wrong; it names the line and what was seen there.
    """
    return _read(path, lines, _Kind(MOONCAKE_BLOCK_TOKENS, 1e-3, prefix_hashes))


def read_bailian(path: Path, lines: Lines) -> Columns:
    """`timestamp` (s), `input_length`, `output_length`, `hash_ids`; chat, turn and type are unused.

    There is one id for each block of 16 tokens. Whether an id names its prefix or its own tokens
    only is not relied on: where an id follows different ones, a prefix is named by the whole chain.

    Raises:
        UsageError: a row is wrong; it names the line and what was seen there.
    """
    return _read(path, lines, _Kind(BAILIAN_BLOCK_TOKENS, 1.0, block_hashes))


def _read(path: Path, lines: Lines, kind: _Kind) -> Columns:
    decoder = msgspec.json.Decoder(_Row)
    rows = Rows(path, kind.time_unit_s)
    for number, line in lines:
        try:
            row = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise wrong_line(path, number, f"{error}; seen: {seen(line)}") from None
        rows.add(number, row.timestamp, (row.input_length, row.output_length))
        rows.add_hashes(number, row.hash_ids, kind.block_tokens)
    return rows.columns(block_tokens=kind.block_tokens, interning=kind.interning)

"""Writes a trace as JSON lines: Mooncake's format, or Qwen-Bailian's where blocks are 16 tokens."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace.hashed import BAILIAN_BLOCK_TOKENS
from kvbench.sim.trace.requests import MOONCAKE_BLOCK_TOKENS

_AT_ONCE = 4096  # requests: a part of a long trace is in memory as text, never all of it
_MS_PER_S = 1000.0


def write_trace(columns: Columns, path: Path) -> None:
    """Replace `path`; times are in whole milliseconds. Reading it gives the same columns.

    Raises:
        UsageError: it cannot be written, or neither format has blocks of this size; what stood
            there is as it was.
    """
    if columns.block_tokens not in {MOONCAKE_BLOCK_TOKENS, BAILIAN_BLOCK_TOKENS}:
        raise UsageError(
            f"blocks of {columns.block_tokens} tokens: a trace can be written with "
            f"{MOONCAKE_BLOCK_TOKENS} (Mooncake) or {BAILIAN_BLOCK_TOKENS} (Bailian)"
        )
    if not columns.has_blocks:
        raise UsageError(f"{columns.name} has no block hashes: nothing can be written as a trace")
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for text in _texts(columns):
                file.write(text)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    except BaseException:  # interrupted
        temporary.unlink(missing_ok=True)
        raise


def _texts(columns: Columns) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    bailian = columns.block_tokens == BAILIAN_BLOCK_TOKENS
    for begin in range(0, columns.requests, _AT_ONCE):
        end = min(begin + _AT_ONCE, columns.requests)
        times_ms = np.rint(columns.arrival_s[begin:end] * _MS_PER_S).astype(np.int64).tolist()
        starts = columns.starts[begin : end + 1].tolist()
        ids = columns.ids[starts[0] : starts[-1]].tolist()
        lengths = zip(
            columns.input_tokens[begin:end].tolist(),
            columns.output_tokens[begin:end].tolist(),
            strict=True,
        )
        rows: list[dict[str, object]] = []
        for i, (tokens, answer) in enumerate(lengths):
            row: dict[str, object] = {"timestamp": times_ms[i]}
            if bailian:  # what its reader tells it by; a twin knows of no chats
                row = {"chat_id": begin + i, "timestamp": times_ms[i] / _MS_PER_S}
            row |= {"input_length": tokens, "output_length": answer}
            row["hash_ids"] = ids[starts[i] - starts[0] : starts[i + 1] - starts[0]]
            rows.append(row)
        yield encoder.encode_lines(rows)

"""Reads a trace in any of the formats that kvbench knows, told by its content or by name."""

import itertools
import os
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec
import xxhash

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.trace import cache as kept_columns
from kvbench.sim.trace.hashed import Lines, read_bailian, read_mooncake
from kvbench.sim.trace.lengths import AZURE, BURST, read_azure, read_burst
from kvbench.sim.trace.lines import numbered_lines, seen, wrong_line
from kvbench.sim.trace.logs import LOG_BLOCK_TOKENS, read_json_log, read_vllm_log
from kvbench.sim.trace.requests import Trace, requests_of

Reader: TypeAlias = Callable[[Path, Lines], Columns]
LOGS = ("json-log", "vllm-log")
_READERS: dict[str, Reader] = {
    "mooncake": read_mooncake,
    "bailian": read_bailian,
    "azure": read_azure,
    "burstgpt": read_burst,
}
FORMATS = (*_READERS, *LOGS)

_AT_ONCE_BYTES = 1024 * 1024
_LOG_LINE = re.compile(rb"\b(?:DEBUG|INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d\b")


def read_columns(
    path: Path, *, format_: str | None = None, block_tokens: int | None = None, cache: bool = True
) -> Columns:
    """A trace as arrays.

    Args:
        path: a regular file.
        format_: one of FORMATS; by default told by the first line.
        block_tokens: of a log with token ids, the tokens of a block (16 if None); the block of
            other formats is fixed, and another one is refused.
        cache: keep the columns beside a file of 256 KiB or more, and use what is kept.

    Raises:
        UsageError: the file cannot be read, is of no known kind, or a row is wrong; it names the
            line and what was seen there.
    """
    if block_tokens is not None and block_tokens < 1:
        raise UsageError(f"blocks of {block_tokens} tokens: expected at least 1")
    size, digest = _identity(path)
    lines = numbered_lines(path)
    first = next(lines, None)
    if first is None:
        raise UsageError(f"{path} has no requests: expected one a line")
    name = format_ or _told(path, *first)
    reader = _reader(name, block_tokens)
    source = kept_columns.Source(path, size, digest, f"{name} {block_tokens or 0}")
    keeping = cache and size >= kept_columns.LEAST_BYTES
    if keeping and (columns := kept_columns.kept(source)):
        return columns
    columns = replace(reader(path, itertools.chain([first], lines)), digest=digest)
    if keeping and _identity(path) == (size, digest):  # not while it is being written
        kept_columns.keep(source, columns)
    return columns


def read_trace(path: Path) -> Trace:
    """A trace as objects, for the replay in the store, with what is used again.

    Raises:
        UsageError: as for `read_columns`; also if it has lengths only.
    """
    columns = read_columns(path)
    if not columns.has_blocks:
        raise UsageError(
            f"{path} has token counts and no block hashes: what is used again cannot be told; use "
            "a trace with hash or token ids, such as one in Mooncake's JSONL format"
        )
    return requests_of(columns)


def _identity(path: Path) -> tuple[int, str]:
    """Size and XXH3-64 of the file, in bounded memory."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"cannot read trace {path}: it is no regular file")
            hasher, size = xxhash.xxh3_64(), 0
            while piece := file.read(_AT_ONCE_BYTES):
                hasher.update(piece)
                size += len(piece)
    except OSError as error:
        raise UsageError(f"cannot read trace {path}: {error.strerror}") from None
    return size, hasher.hexdigest()


def _reader(name: str, block_tokens: int | None) -> Reader:
    if name in LOGS:
        read = read_json_log if name == "json-log" else read_vllm_log
        return partial(
            read, block_tokens=LOG_BLOCK_TOKENS if block_tokens is None else block_tokens
        )
    if name not in _READERS:
        raise UsageError(f"trace format {name!r}: expected one of {', '.join(FORMATS)}")
    if block_tokens is not None:
        raise UsageError(f"the block size of a {name} trace is fixed: only that of a log is chosen")
    return _READERS[name]


def _told(path: Path, number: int, line: bytes) -> str:
    """The format that a file's first line shows."""
    if line.startswith(b"{"):
        return _told_by_fields(line)
    cells = {cell.strip() for cell in line.split(b",")}
    for name, columns in (("azure", AZURE), ("burstgpt", BURST)):
        if columns[0].encode() in cells:
            return name
    if _LOG_LINE.search(line) or line.startswith(b"INFO:"):
        return "vllm-log"
    raise wrong_line(
        path,
        number,
        f"the beginning of no format that is known; seen: {seen(line)}, expected one of "
        f"{', '.join(FORMATS)} (named with --format)",
    )


def _told_by_fields(line: bytes) -> str:
    try:
        fields = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "mooncake"  # whose reader says what is wrong with the line
    if "hash_ids" in fields:
        return "bailian" if "chat_id" in fields else "mooncake"
    if fields.keys() & {"prompt_token_ids", "input_ids", "event"}:
        return "json-log"
    return "mooncake"

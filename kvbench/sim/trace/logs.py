"""Request logs with token ids: blocks are named by `kvbench.keys`, chained over the tokens.

Two forms. JSON lines: SGLang's (`--log-requests-format json`), or any with token ids and a time.
Text: vLLM's (`--enable-log-requests`). Text is never tokenised here: a log without ids is refused.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.keys import Namespace, block_keys
from kvbench.sim.columns import Columns
from kvbench.sim.trace.blocks import prefix_hashes
from kvbench.sim.trace.hashed import Lines
from kvbench.sim.trace.lines import seen, wrong_line
from kvbench.sim.trace.rows import Rows

LOG_BLOCK_TOKENS = 16  # vLLM's default
_HOW = (
    "log them (SGLang: --log-requests-level 3; vLLM: --enable-log-requests, and with newer ones "
    "VLLM_LOGGING_LEVEL=DEBUG)"
)

Tokens = list[int | Literal["..."]]  # SGLang puts the dots where it cut


class _Meta(msgspec.Struct):
    completion_tokens: int | None = None


class _Out(msgspec.Struct):
    meta_info: _Meta | None = None
    output_ids: list[int] | None = None


class _Object(msgspec.Struct):
    input_ids: Tokens | None = None


class _Row(msgspec.Struct):
    """Either one request, or an event of SGLang's."""

    timestamp: float | str | None = None
    arrival_time: float | str | None = None
    prompt_token_ids: Tokens | None = None
    input_ids: Tokens | None = None
    output_token_ids: list[int] | None = None
    output_ids: list[int] | None = None
    output_tokens: int | None = None
    completion_tokens: int | None = None
    event: str | None = None
    rid: str | None = None
    obj: _Object | None = None
    out: _Out | None = None


def read_json_log(path: Path, lines: Lines, *, block_tokens: int = LOG_BLOCK_TOKENS) -> Columns:
    """`prompt_token_ids` or `input_ids`, and `arrival_time` or `timestamp` (s, or an ISO date).

    The length of the answer comes from `output_token_ids`, `output_ids`, `output_tokens` or
    `completion_tokens`. Of SGLang's events, "request.received" is a request and
    "request.finished" says the length of its answer; others are ignored.

    Raises:
        UsageError: a row is wrong, or has no or not all token ids; it names the line.
    """
    log = _Log(path, block_tokens)
    decoder = msgspec.json.Decoder(_Row)
    for number, line in lines:
        try:
            row = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise wrong_line(path, number, f"{error}; seen: {seen(line)}") from None
        if row.event == "request.finished":
            if row.rid is not None and row.out is not None:
                log.answered(row.rid, _finished(row.out))
        elif row.event in {None, "request.received"}:
            tokens = row.prompt_token_ids or row.input_ids or (row.obj and row.obj.input_ids)
            when = row.timestamp if row.arrival_time is None else row.arrival_time
            log.add(number, _seconds(path, number, when), tokens or [])
            log.names(row.rid, _answer(row))
    return log.columns()


# INFO 12-06 14:09:27 logger.py:37] Received request cmpl-1-0: prompt: 'x', params: …,
# prompt_token_ids: [1, 2], …   and from 2025 on, at DEBUG, "Request cmpl-1-0 details: prompt: …"
_TIME = re.compile(r"\b(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)\b")
_INPUT = re.compile(r"\b(?:Received request (\S+): prompt:|Request (\S+) details: prompt:)")
_INPUT_IDS = re.compile(r"prompt_token_ids: (None|\[[\d, ]*\])")
_OUTPUT = re.compile(r"\bGenerated response (\S+?)(?: \(streaming complete\)| details)*: ")
_OUTPUT_IDS = re.compile(r"output_token_ids: \[([\d, ]*)\]")
_LEAP_YEAR = 2024  # the log says no year; so that it may say 02-29


def read_vllm_log(path: Path, lines: Lines, *, block_tokens: int = LOG_BLOCK_TOKENS) -> Columns:
    """Lines of vLLM's request logger; all others are ignored. Its clock has whole seconds.

    The length of the answer comes from "Generated response" lines (`--enable-log-outputs`).
    `--max-log-len` shortens the ids without saying so: do not set it.

    Raises:
        UsageError: a request has no token ids, or there is no request; it names the line.
    """
    log = _Log(path, block_tokens)
    for number, raw in lines:
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise wrong_line(path, number, f"{error.reason}; expected UTF-8") from None
        head = _INPUT.search(line)
        if head is None:
            _note_answer(log, line)
            continue
        # The last one: a prompt may hold these very words, and it stands before.
        found = [*_INPUT_IDS.finditer(line, head.end())]
        ids = found[-1][1] if found else "None"
        when = _TIME.search(line, 0, head.start())
        if when is None:
            raise wrong_line(path, number, "no time of the form 12-31 23:59:59 before the request")
        tokens = [] if ids == "None" else _integers(ids[1:-1])
        log.add(number, _log_seconds(path, number, when), tokens)
        log.names(head[1] or head[2], None)
    return log.columns()


@dataclass(slots=True)
class _Log:
    """What has been read so far."""

    path: Path
    block_tokens: int
    rows: Rows = field(init=False)
    index: dict[bytes, int] = field(default_factory=dict[bytes, int])
    requests: dict[str, int] = field(default_factory=dict[str, int])  # by their names
    unknown: set[int] = field(default_factory=set[int])  # whose answer's length is

    def __post_init__(self) -> None:
        self.rows = Rows(self.path, 1.0)

    def add(self, number: int, time_s: float, tokens: Sequence[int | str]) -> None:
        """A request of line `number`."""
        if not tokens:
            raise wrong_line(self.path, number, f"no token ids: {_HOW}")
        if "..." in tokens:
            raise wrong_line(
                self.path, number, "token ids were cut (SGLang needs --log-requests-level 3)"
            )
        ids = [token for token in tokens if isinstance(token, int)]
        self.rows.add(number, time_s, (len(ids), 0))
        try:
            keys = block_keys(_namespace(self.block_tokens), ids)
        except UsageError as error:
            raise wrong_line(self.path, number, str(error)) from None
        if rest := len(ids) % self.block_tokens:
            # A partial block has no key of its own: what it follows, and its tokens, say it all.
            before = keys[-1] if keys else b""
            keys.append(before + np.array(ids[-rest:], np.uint32).tobytes())
        hashes = [self.index.setdefault(key, len(self.index)) for key in keys]
        self.rows.add_hashes(number, hashes, self.block_tokens)

    def names(self, name: str | None, output_tokens: int | None) -> None:
        """What the request that was added last is called, and how long its answer was."""
        at = len(self.rows.outputs) - 1
        if output_tokens is None:
            self.unknown.add(at)
        else:
            self._set(at, output_tokens)
        if name is not None:
            self.requests[name] = at

    def answered(self, name: str, output_tokens: int | None) -> None:
        """How long the answer of a request was, if it is known here and not told before."""
        at = self.requests.get(name)
        if at is not None and at in self.unknown and output_tokens is not None:
            self.unknown.discard(at)
            self._set(at, output_tokens)

    def _set(self, at: int, output_tokens: int) -> None:
        if not 0 <= output_tokens < 2**31:
            raise wrong_line(
                self.path,
                self.rows.lines[at],
                f"{output_tokens} tokens of output: expected at least 0",
            )
        self.rows.outputs[at] = output_tokens

    def columns(self) -> Columns:
        """All of it."""
        if not self.rows.times:
            raise UsageError(f"{self.path} has no request with token ids: {_HOW}")
        notes = (f"{len(self.unknown)} requests say no length of their answer: 0 taken",)
        return self.rows.columns(
            block_tokens=self.block_tokens,
            interning=prefix_hashes,
            notes=notes if self.unknown else (),
        )


def _namespace(block_tokens: int) -> Namespace:
    """One for every trace: only equal or not matters here, not what the model was."""
    return Namespace(
        model="trace",
        revision="any",
        geometry="any",
        cache_dtype="any",
        layout="any",
        block_tokens=block_tokens,
        layers=(0, 1),
        heads=(0, 1),
    )


def _answer(row: _Row) -> int | None:
    for ids in (row.output_token_ids, row.output_ids):
        if ids is not None:
            return len(ids)
    return row.output_tokens if row.output_tokens is not None else row.completion_tokens


def _finished(out: _Out) -> int | None:
    if out.meta_info is not None and out.meta_info.completion_tokens is not None:
        return out.meta_info.completion_tokens
    return None if out.output_ids is None else len(out.output_ids)


def _note_answer(log: _Log, line: str) -> None:
    head = _OUTPUT.search(line)
    if head is None:
        return
    found = [*_OUTPUT_IDS.finditer(line, head.end())]
    if not found:
        return
    tokens = len(_integers(found[-1][1]))
    log.answered(head[1], tokens)
    log.answered(f"{head[1]}-0", tokens)  # as /v1/completions names the first of its prompts


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]


def _seconds(path: Path, number: int, when: float | str | None) -> float:
    """Seconds since 1970, or since whatever the log counts from."""
    if isinstance(when, str):
        try:
            date = datetime.fromisoformat(when)
        except ValueError:
            raise wrong_line(path, number, f"time {when[:40]!r}: expected an ISO date") from None
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    if when is None or not math.isfinite(when):
        raise wrong_line(path, number, "no arrival_time or timestamp: expected seconds or a date")
    return when


def _log_seconds(path: Path, number: int, when: "re.Match[str]") -> float:
    month, day, hour, minute, second = (int(part) for part in when.groups())
    try:
        date = datetime(_LEAP_YEAR, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise wrong_line(path, number, f"time {when[0]!r}: {error}") from None
    return date.timestamp()

"""The file of a history: one line a session, appended and never rewritten.

Schema `kvbench.history/1`, JSON lines. Knows what goes into a line, who may write and what a torn
line looks like; what the lines say is for `kvbench.history.trends`. Prints nothing.
"""

import contextlib
import datetime as dt
import fcntl
import math
import os
import re
import stat
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from kvbench.compare.metrics import metrics_of, p99_id
from kvbench.errors import UsageError
from kvbench.measure.result import Report, read_bytes

SCHEMA_NAME = "kvbench.history"
SCHEMA_MAJOR = 1
SCHEMA = f"{SCHEMA_NAME}/{SCHEMA_MAJOR}"
# What every line of ours starts with, and so what the rest of a torn one starts with.
_START = f'{{"schema":"{SCHEMA_NAME}/'.encode()

Positive = Annotated[float, msgspec.Meta(gt=0)]
Instant = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the sizes of blocks; two models are two histories."""

    name: str
    cache_dtype: str
    block_bytes: int


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a session: geometric means over its processes, in base units."""

    id: str
    definition_hash: str
    bytes_per_s: Positive
    log_se: float | None  # standard error of the mean log rate; null for one process
    processes: int
    latency_p99_s: Positive | None = None  # where all processes have one
    path: str | None = None  # observed


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the file: one finished report, or one side of a `kvbench ab`."""

    schema: str = SCHEMA
    session_id: str
    side: str | None
    started_at: Instant
    commit: str | None
    kvbench_version: str
    suite: str
    model: Model
    machine: str  # fingerprint
    cpu: str | None
    gpus: list[str]  # names
    kernel: str | None
    driver: str | None
    simulated: str | None  # the device profile
    rows: list[Kept]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a file holds, in its order, and what in it was left out."""

    entries: list[Entry]
    notes: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became of each report: its source and its entry."""

    added: list[tuple[str, Entry]]
    known: list[tuple[str, Entry]]  # were there already; CI may retry
    notes: list[str]  # about the file


def make_entry(report: Report, source: str) -> Entry:
    """The line of a report; `source` names it in errors.

    Raises:
        UsageError: the report is unfinished, was slowed on purpose, has no time or no figure.
    """
    if report.inject:
        globs = ", ".join(report.inject)
        raise UsageError(f"{source} was slowed on purpose (--inject {globs}): it is not history")
    if report.finished_at is None:
        raise UsageError(
            f"{source} is not finished: it is not history; `kvbench run --resume` goes on with it"
        )
    rows = _kept(report)
    if not rows:
        raise UsageError(f"{source} has no row with a figure: there is nothing to keep")
    model, machine = report.model, report.machine
    return Entry(
        session_id=report.session_id,
        side=report.side,
        started_at=_instant(report.started_at, source),
        commit=report.commit,
        kvbench_version=report.kvbench_version,
        suite=report.suite,
        model=Model(
            name=model.name, cache_dtype=str(model.cache_dtype), block_bytes=model.block_bytes
        ),
        machine=machine.fingerprint,
        cpu=machine.cpu.model,
        gpus=[gpu.name or "unknown GPU" for gpu in machine.visible_gpus],
        kernel=machine.os.kernel,
        driver=machine.cuda.driver_version,
        simulated=report.simulated,
        rows=rows,
    )


def add_reports(reports: Sequence[tuple[str, Report]], path: Path) -> Added:
    """Append a line for each report that is not there yet: all of them, or none.

    Writers wait for each other, and what is written is on the disk when this returns. A last line
    that a crash has torn stays as it is and gets its newline first; `notes` names it.

    Raises:
        UsageError: a report is no history, the file is none, or it cannot be written.
    """
    entries = [(source, make_entry(report, source)) for source, report in reports]
    added: list[tuple[str, Entry]] = []
    known: list[tuple[str, Entry]] = []
    with _locked(path) as file:
        data = _read_all(file)
        history = _decode(data, str(path))
        have = {_identity(entry) for entry in history.entries}
        for source, entry in entries:
            (known if _identity(entry) in have else added).append((source, entry))
            have.add(_identity(entry))
        lines = b"".join(msgspec.json.encode(entry) + b"\n" for _, entry in added)
        if lines:
            newline = b"\n" if data and not data.endswith(b"\n") else b""
            _append(file, newline + lines, len(data))
    return Added(added=added, known=known, notes=history.notes)


def read_history(path: Path) -> History:
    """The entries of a file.

    Raises:
        UsageError: it cannot be read, a line is not of a history, or it is of a newer major.
    """
    return _decode(read_bytes(path), str(path))


def _instant(text: str, source: str) -> dt.datetime:
    try:
        instant = dt.datetime.fromisoformat(text)
    except ValueError:
        instant = None
    if instant is None or instant.tzinfo is None:
        raise UsageError(
            f"{source} started at {text[:40]!r}: expected a time with its zone, "
            "such as 2026-11-25T16:01:07+00:00"
        )
    return instant


def _kept(report: Report) -> list[Kept]:
    metrics = metrics_of(report)
    kept: list[Kept] = []
    for row in report.rows:
        rate, tail = metrics.get(row.id), metrics.get(p99_id(row.id))
        if rate is None or min(rate.values) <= 0:
            continue
        count, logs = len(rate.values), -rate.y
        kept.append(
            Kept(
                id=row.id,
                definition_hash=row.definition_hash,
                bytes_per_s=math.exp(float(logs.mean())),
                log_se=float(logs.std(ddof=1)) / math.sqrt(count) if count > 1 else None,
                processes=count,
                latency_p99_s=math.exp(float(tail.y.mean())) if tail else None,
                path=row.path_observed,
            )
        )
    return kept


class _Head(msgspec.Struct):
    schema: str


def _identity(entry: Entry) -> tuple[str, str | None]:
    return entry.session_id, entry.side


def _decode(data: bytes, source: str) -> History:
    # The first of two alike counts: git may have merged two branches that both had it.
    entries: dict[tuple[str, str | None], Entry] = {}
    notes: list[str] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{source}:{number}"
        entry = _decode_line(line, where)
        if entry is None:
            notes.append(f"{where} is torn (a crash while it was written?) and was left out")
        else:
            entries.setdefault(_identity(entry), entry)
    return History(entries=list(entries.values()), notes=notes)


def _decode_line(line: bytes, where: str) -> Entry | None:
    """The entry in a line; None for one of ours that was not written to its end."""
    try:
        head = msgspec.json.decode(line, type=_Head)
    except (msgspec.DecodeError, RecursionError) as error:
        if line.startswith(_START) or _START.startswith(line):
            return None
        raise UsageError(f"{where} is not a line of a kvbench history: {error}") from None
    name, _, major = head.schema.partition("/")
    if name != SCHEMA_NAME or not re.fullmatch("[0-9]{1,6}", major):
        raise UsageError(
            f"{where} is not a line of a kvbench history: schema {head.schema[:60]!r}, "
            f"expected {SCHEMA!r}"
        )
    if int(major) > SCHEMA_MAJOR:
        raise UsageError(
            f"{where} has schema {head.schema!r}, this kvbench reads up to {SCHEMA!r}: "
            "upgrade kvbench to read it"
        )
    try:
        return msgspec.json.decode(line, type=Entry)
    except msgspec.DecodeError as error:
        raise UsageError(f"{where} is damaged: {error}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Generator[int]:
    """A descriptor of the file, made where there is none, that no other writer has."""
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; name another --file") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise UsageError(f"cannot write {path}: it is not a regular file; name another --file")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)  # and the lock with it


def _read_all(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as stream:
        return stream.read()


def _append(file: int, data: bytes, size_bytes: int) -> None:
    """Add `data` in a single write and put it on the disk; nothing stays of it if that fails."""
    try:
        written = os.write(file, data)
        if written == len(data):
            os.fsync(file)
            return
        reason = f"{written} of {len(data)} bytes were written"
    except OSError as error:
        reason = error.strerror or str(error)
    os.ftruncate(file, size_bytes)
    raise UsageError(f"cannot write the history: {reason}; nothing was added")

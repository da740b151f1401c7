"""What was measured, and the file it is kept in: schema `kvbench.report/1`.

Base units only. A figure that is missing is null and `missing` says why; it is never 0, never a
string. Fields that this version does not know are kept when a report is read and written again.
Prints nothing and computes nothing: rows are made in `kvbench.measure.rows`.
"""

import contextlib
import os
import re
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import msgspec

from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine

SCHEMA_NAME = "kvbench.report"
SCHEMA_MAJOR = 1
SCHEMA = f"{SCHEMA_NAME}/{SCHEMA_MAJOR}"
BESIDE = "+"  # in an id, before its load's; a shell and a glob take it for what it is
DIRTY = "-dirty"  # behind a commit: tracked files were changed
OTHER_SIDE = "other_side"  # reason code of a row whose counterpart of `kvbench ab` has no result
# Caution of both rows of a case whose pairs were ended before they knew the ratio well enough
IMPRECISE = "imprecise_pairs"


class State(StrEnum):
    """What a row is worth. Only `ok`, `degraded` and `simulated` rows hold a figure."""

    OK = "ok"
    DEGRADED = "degraded"  # measured, but not by the path that was asked for; the reason says how
    INVALID = "invalid"  # a figure came out and must not be believed; it is not printed
    SKIPPED = "skipped"  # this machine cannot run it
    FAILED = "failed"  # it was tried and did not finish
    SIMULATED = "simulated"  # from a simulated device: true of no machine


HAS_FIGURE = frozenset({State.OK, State.DEGRADED, State.SIMULATED})


class Caution(msgspec.Struct, frozen=True, kw_only=True):
    """A doubt about a row or a run, with the command that removes it where there is one."""

    code: str
    message: str
    fix: str | None = None


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Time of single operations, from all processes together, in seconds.

    A percentile needs enough effective samples (docs/statistics in the docs folder); one without
    is null. `histogram` is an HdrHistogram of nanoseconds, compressed, base64.
    """

    count: int
    effective_count: float
    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    p99_9: float | None = None
    max: float | None = None
    histogram: str | None = None


class ProcessResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one fresh worker process measured. The process is the unit of replication.

    `payload_bytes`, `traffic_bytes` and `device_bytes` count the same span, warm-up included, so
    that they can be held against each other. `bytes_per_s` is `timed_bytes` over `elapsed_s` for a
    stream of operations and the median sample for a step (`statistic` says which).
    `sample_bytes_per_s` holds at most 1000 of
    `sample_count` samples, evenly thinned, in the order they were taken.
    """

    process: int
    statistic: str  # "elapsed" | "median"
    bytes_per_s: float
    payload_bytes: int
    traffic_bytes: int
    timed_bytes: int  # warm-up left out
    elapsed_s: float  # of the timed bytes
    sample_bytes_per_s: list[float]
    sample_count: int
    warmup_samples: int
    stopped_by: str  # "interval" | "samples" | "time"
    half_width: float | None  # of the 95 % interval of the median, relative to it
    autocorrelation: float | None  # lag 1
    slow_fraction: float | None  # samples more than 10 MAD slower than the median
    steady: bool | None  # no slope left after the warm-up was cut
    device_bytes: int | None = None
    device_payload_bytes: int | None = None  # what the device had to move; None: all the payload
    resident_before: float | None = None  # share of the file in the page cache
    resident_after: float | None = None
    verified_bytes: int = 0
    path_observed: str | None = None
    path_evidence: dict[str, Any] = {}
    cautions: list[Caution] = []
    latency_count: int = 0
    latency_effective_count: float = 0.0
    latency_p99_s: float | None = None  # where this process alone has the samples for it
    latency_histogram: str | None = None
    block: int | None = None  # of `kvbench ab`: processes of one block ran side by side in time
    order: str | None = None  # "AB" | "BA": which side of the block ran first
    inject: float = 0.0  # share by which the worker slowed itself on purpose
    load_bytes_per_s: float | None = None  # of the case beside it, meanwhile


class Row(msgspec.Struct, kw_only=True):
    """One case's result."""

    id: str
    tier: str
    operation: str
    params: dict[str, int | str | bool]
    beside: str | None = None  # the id of the case that was its load, of which `id` has it too
    state: State
    reason: str | None = None
    reason_code: str | None = None
    definition_hash: str = ""
    better: str = "higher"
    payload_bytes: int | None = None
    traffic_bytes: int | None = None
    device_bytes: int | None = None
    bytes_per_s: float | None = None
    bytes_per_s_low: float | None = None
    bytes_per_s_high: float | None = None
    interval_method: str | None = None
    latency_s: Latency | None = None
    limit_bytes_per_s: float | None = None
    limit_source: str | None = None
    limit_fraction: float | None = None
    path_requested: str | None = None
    path_observed: str | None = None
    warnings: list[Caution] = []
    missing: dict[str, str] = {}  # field → why it is null
    processes: list[ProcessResult] = []
    elapsed_s: float | None = None  # of the whole case, start-up and checks included

    @property
    def alone_id(self) -> str:
        """The id of the same case without its load; its own where it has none."""
        return self.id.removesuffix(f"{BESIDE}{self.beside}") if self.beside else self.id


class Report(msgspec.Struct, kw_only=True):
    """One run: the machine, the model and a row for every case, also those that did not run."""

    schema: str = SCHEMA
    kvbench_version: str
    session_id: str
    suite: str
    command: list[str]
    started_at: str  # ISO 8601, UTC
    finished_at: str | None = None  # null while it runs and when it was interrupted
    simulated: str | None = None  # the device profile, when the devices were simulated
    inject: dict[str, float] = {}  # glob → share by which matching cases were slowed on purpose
    side: str | None = None  # of `kvbench ab`: how this side's workers were started
    commit: str | None = None  # of the git repository of the working directory
    commit_of_kvbench: bool = False  # that repository is kvbench's own
    plan: dict[str, int | float]
    machine: Machine
    model: KVGeometry
    warnings: list[Caution] = []
    rows: list[Row]


def encode_report(report: Report, raw: dict[str, Any] | None = None) -> bytes:
    """JSON of a report; with `raw`, what it was read from, fields unknown here are kept."""
    if raw is None:
        return msgspec.json.encode(report) + b"\n"
    merged = _keep_unknown(msgspec.to_builtins(report), raw)
    return msgspec.json.encode(merged) + b"\n"


def decode_report(data: bytes, source: str, *, samples: bool = True) -> Report:
    """The report in `data`; `source` names it in errors. Without `samples` those are left empty.

    Raises:
        UsageError: not a kvbench report, damaged, or of a newer major version.
    """
    try:
        report = msgspec.json.decode(data, type=Report if samples else _ThinReport)
    except (msgspec.MsgspecError, RecursionError) as error:
        _check_schema(data, source)  # says more than that a field of another version is wrong
        raise UsageError(f"{source} is damaged: {error}") from None
    if report.schema != SCHEMA:
        _check_schema(data, source)
    return report


def _check_schema(data: bytes, source: str) -> None:
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"{source} is not a kvbench report: {error}") from None
    name, _, major = head.schema.partition("/")
    if name != SCHEMA_NAME or not re.fullmatch("[0-9]{1,6}", major):
        raise UsageError(
            f"{source} is not a kvbench report: schema {head.schema[:60]!r}, expected {SCHEMA!r}"
        )
    if int(major) > SCHEMA_MAJOR:
        raise UsageError(
            f"{source} has schema {head.schema!r}, this kvbench reads up to {SCHEMA!r}: "
            "upgrade kvbench to read it"
        )


def read_report(path: Path, *, samples: bool = True) -> Report:
    """The report in a file; without `samples` and histograms in a third of the time.

    Raises:
        UsageError: the file cannot be read or is not a report.
    """
    return decode_report(read_bytes(path), str(path), samples=samples)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, its absence an error for the user."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def write_report(report: Report, path: Path, raw: dict[str, Any] | None = None) -> None:
    """Replace `path` by the report: a reader sees the old file or the new one, never half.

    Raises:
        UsageError: the file cannot be written.
    """
    target = path.resolve()  # of a link, what it points to
    temporary = target.with_name(f".{os.getpid()}.kvbench.tmp")
    try:
        temporary.write_bytes(encode_report(report, raw))
        if target.exists():
            temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}; name another with -o") from None
    except BaseException:  # interrupted
        temporary.unlink(missing_ok=True)
        raise


def keep_previous(path: Path) -> None:
    """Copy a finished report that is about to be replaced to `NAME.previous.json` beside it.

    An unfinished one is not worth the finished one that may stand there.

    Raises:
        UsageError: there is no room for it, or the directory cannot be written.
    """
    target = path.resolve()
    if not target.exists() or read_report(target).finished_at is None:
        return
    previous = target.with_name(f"{target.stem}.previous{target.suffix}")
    if previous.exists():
        read_report(previous)  # somebody else's file of that name is not replaced
    temporary = target.with_name(f".{os.getpid()}.kvbench.tmp")
    try:
        shutil.copy2(target, temporary)
        temporary.replace(previous)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UsageError(f"cannot keep the old {path}: {error.strerror}") from None


def report_schema() -> dict[str, Any]:
    """The JSON Schema of a report; `reports/schema.json` holds it and a test compares them."""
    return msgspec.json.schema(Report)


class _Head(msgspec.Struct):
    schema: str


# The same with the bulky fields under names that no report has: they are skipped, not decoded.
class _ThinProcess(
    ProcessResult,
    frozen=True,
    kw_only=True,
    rename={"sample_bytes_per_s": "-", "latency_histogram": "--", "path_evidence": "---"},
):
    sample_bytes_per_s: list[float] = []


class _ThinRow(Row, kw_only=True):
    processes: list[_ThinProcess] = []  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]


class _ThinReport(Report, kw_only=True):
    rows: list[_ThinRow]  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]


def _keep_unknown(known: object, raw: object) -> object:
    if isinstance(known, dict) and isinstance(raw, dict):
        old, new = cast("dict[str, Any]", raw), cast("dict[str, Any]", known)
        merged = {key: _keep_unknown(value, old.get(key)) for key, value in new.items()}
        return merged | {key: value for key, value in old.items() if key not in new}
    if isinstance(known, list) and isinstance(raw, list):
        olds, news = cast("list[Any]", raw), cast("list[Any]", known)
        padded = olds + [None] * (len(news) - len(olds))
        return [_keep_unknown(new, old) for new, old in zip(news, padded, strict=False)]
    return cast("object", known)

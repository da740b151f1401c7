"""What a history says: a trend for each row of each machine and model, and where it changed.

Everything is on the scale of the gate: logs, + is slower, a change is in time. Change points are
found by PELT (Killick, Fearnhead & Eckley, JASA 2012) in its implementation in ruptures; they
assume sessions that vary independently, so a machine that drifts has more of them than commits
explain. Reads and prints nothing.
"""

import datetime as dt
import importlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from fnmatch import fnmatchcase

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvbench.compare.metrics import p99_id
from kvbench.compare.record import Kind
from kvbench.errors import UsageError
from kvbench.history.entries import Entry, Kept, Model

SCHEMA = "kvbench.trends/1"
Floats = NDArray[np.float64]

LEAST_SEGMENT = 3  # sessions; statistics.md section 4: change points of fewer are noise
LEAST_POINTS = 2 * LEAST_SEGMENT
LEAST_FOR_NOISE = 4  # sessions: three differences between neighbours
# Schwarz' criterion for steps in a mean is 2 sd² log(n) a step (Yao, Statistics & Probability
# Letters 1988), for an sd that is known. Ours is estimated from few differences and often too
# small, so the factor is larger: 1500 simulated series a length of independent normal noise had a
# change point 4 to 5 times in 100 at 6 to 10 points, 1 in 100 at 30, never at 100. Where sessions
# correlate by .3 with the one before it is 11 in 100 at 30 points.
PENALTY = 5.0
# The sd of a normal variable over its median absolute value: 1 / Phi^-1(3/4).
MAD_TO_SD = 1.4826
LEAST_SD = 1e-3  # of a session: rates are printed to 0.1 %, nobody looks for smaller steps
OUTLIER_SD = 2.0  # further than this outside of both its neighbours, one session is no step


class Missing(StrEnum):
    """Why a trend has no list of change points."""

    TOO_FEW = "too few points for change points"
    NO_RUPTURES = "ruptures is not installed"


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One session of a trend; `value` in bytes per second, or seconds for a p99."""

    session_id: str
    started_at: dt.datetime
    commit: str | None
    kvbench_version: str
    kernel: str | None
    driver: str | None
    path: str | None
    value: float
    log_se: float | None  # of a rate
    processes: int


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """From one level to another."""

    index: int  # of the first point on the new level
    session_id: str
    started_at: dt.datetime
    commit: str | None
    change: float  # of the median, as a share of time: +0.04 is 4 % slower
    sessions: int  # on the new level
    with_it: list[
        str
    ]  # what else is not as it was in the session before: "kernel: 6.1 before, 6.8 now"


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """One metric under one definition, oldest session first."""

    id: str  # the row's, with ` p99` behind it for latency
    kind: Kind
    row: str
    definition_hash: str
    retired: bool  # a later session has the row under another definition
    earlier: int  # sessions that have the row under other definitions: series of their own
    points: list[Point]
    change: float | None  # from first to last, as a share of time; null for one point
    noise_sd: float | None  # of a session about its level, in logs; null for too few points
    changes: list[Change] | None
    changes_missing: Missing | None = None


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions that may be held against each other."""

    machine: str  # fingerprint
    cpu: str | None
    gpus: list[str]
    model: Model
    simulated: str | None
    side: str | None  # of `kvbench ab`; a side is a configuration of its own
    sessions: int
    trends: list[Trend]


class Trends(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a history says."""

    schema: str = SCHEMA
    path: str
    sessions: int
    first: dt.datetime
    last: dt.datetime
    groups: list[Group]
    notes: list[str]  # about the file


def find_trends(
    entries: Sequence[Entry],
    *,
    path: str,
    notes: Sequence[str] = (),
    only: str | None = None,
    last: int | None = None,
) -> Trends:
    """The trends of a history; `only` is a glob for rows, `last` how many points of each to use.

    Raises:
        UsageError: there is no session, or no row whose id matches.
    """
    if not entries:
        raise UsageError(f"{path} holds no session yet: `kvbench history add REPORT` adds one")
    _check_matches(entries, only)
    ordered = sorted(entries, key=lambda entry: entry.started_at)
    by_key: dict[tuple[str, str, str, int, str | None, str | None], list[Entry]] = {}
    for entry in ordered:
        model = entry.model
        sizes = (model.name, model.cache_dtype, model.block_bytes)
        key = (entry.machine, *sizes, entry.simulated, entry.side)
        by_key.setdefault(key, []).append(entry)
    groups = [_group(alike, only, last) for alike in by_key.values()]
    return Trends(
        path=path,
        sessions=len(ordered),
        first=ordered[0].started_at,
        last=ordered[-1].started_at,
        groups=[group for group in groups if group.trends],
        notes=list(notes),
    )


def encode_trends(trends: Trends) -> bytes:
    """JSON of the trends."""
    return msgspec.json.encode(trends) + b"\n"


def noise_sd(y: Floats) -> float:
    """Standard deviation of a session about its level, from neighbours: a step counts once.

    The median absolute difference of neighbours, scaled as for a normal distribution; the median
    of it because steps and single bad sessions must not count as noise.

    Args:
        y: float64 [n], logs, n >= 2.
    """
    return MAD_TO_SD * float(np.median(np.abs(np.diff(y)))) / math.sqrt(2)


def change_points(y: Floats, *, least_sd: float = LEAST_SD) -> list[int]:
    """Indices of the first points on a new level, each level `LEAST_SEGMENT` points or more.

    Args:
        y: float64 [n], logs, n >= `LEAST_POINTS`, oldest first.
        least_sd: what the noise is at least, however alike the points happen to be.

    Raises:
        ImportError: ruptures is not installed.
    """
    # Two seconds, and an extra without types: only where a series is long enough.
    ruptures = importlib.import_module("ruptures")
    sd = max(noise_sd(y), least_sd)
    scaled = _without_outliers((y - np.median(y)) / sd)
    # The linear kernel's cost is that of Pelt("l2"), in C: a thousand times as fast.
    search = ruptures.KernelCPD(kernel="linear", min_size=LEAST_SEGMENT).fit(scaled.reshape(-1, 1))
    ends: list[int] = search.predict(pen=PENALTY * math.log(len(y)))
    return [int(end) for end in ends[:-1]]


def _without_outliers(scaled: Floats) -> Floats:
    """Single points pulled to their neighbours: PELT would find a step before and one after."""
    n = len(scaled)
    before, after = np.arange(n) - 1, np.arange(n) + 1
    before[0], after[-1] = 2, n - 3  # at the ends, the nearest two
    neighbours = np.stack([scaled[before], scaled[after]])
    low, high = neighbours.min(axis=0) - OUTLIER_SD, neighbours.max(axis=0) + OUTLIER_SD
    clipped: Floats = np.clip(scaled, low, high)
    return clipped


def _check_matches(entries: Iterable[Entry], only: str | None) -> None:
    ids = dict.fromkeys(row.id for entry in entries for row in entry.rows)
    if only is not None and not any(fnmatchcase(each, only) for each in ids):
        first = ", ".join(itertools.islice(ids, 3))
        raise UsageError(f"--only {only!r} matches no row; there are {len(ids)}: {first}, …")


def _group(entries: Sequence[Entry], only: str | None, last: int | None) -> Group:
    newest = entries[-1]
    return Group(
        machine=newest.machine,
        cpu=newest.cpu,
        gpus=newest.gpus,
        model=newest.model,
        simulated=newest.simulated,
        side=newest.side,
        sessions=len(entries),
        trends=list(_trends(entries, only, last)),
    )


def _trends(entries: Sequence[Entry], only: str | None, last: int | None) -> Iterator[Trend]:
    series: dict[tuple[str, Kind], dict[str, list[Point]]] = {}
    for entry, row, kind, value in _values(entries):
        if only is None or fnmatchcase(row.id, only):
            by_definition = series.setdefault((row.id, kind), {})
            points = by_definition.pop(row.definition_hash, [])
            points.append(_point(entry, row, kind, value))
            by_definition[row.definition_hash] = points  # at the end: the last one is in use
    for (row_id, kind), by_definition in series.items():
        in_all = sum(map(len, by_definition.values()))
        current = next(reversed(by_definition))
        for definition, points in by_definition.items():
            yield _trend(
                Trend(
                    id=p99_id(row_id) if kind is Kind.P99 else row_id,
                    kind=kind,
                    row=row_id,
                    definition_hash=definition,
                    retired=definition != current,
                    earlier=in_all - len(points),
                    points=points[-last:] if last else points,
                    change=None,
                    noise_sd=None,
                    changes=None,
                )
            )


def _values(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Kept, Kind, float]]:
    for entry in entries:
        for row in entry.rows:
            yield entry, row, Kind.RATE, row.bytes_per_s
            if row.latency_p99_s is not None:
                yield entry, row, Kind.P99, row.latency_p99_s


def _point(entry: Entry, row: Kept, kind: Kind, value: float) -> Point:
    return Point(
        session_id=entry.session_id,
        started_at=entry.started_at,
        commit=entry.commit,
        kvbench_version=entry.kvbench_version,
        kernel=entry.kernel,
        driver=entry.driver,
        path=row.path,
        value=value,
        log_se=row.log_se if kind is Kind.RATE else None,
        processes=row.processes,
    )


def _trend(trend: Trend) -> Trend:
    """The trend with what follows from its points."""
    points = trend.points
    logs = np.log([point.value for point in points])
    y: Floats = logs if trend.kind is Kind.P99 else -logs
    changes, missing = _changes(points, y)
    return msgspec.structs.replace(
        trend,
        change=math.expm1(float(y[-1] - y[0])) if len(points) > 1 else None,
        noise_sd=noise_sd(y) if len(points) >= LEAST_FOR_NOISE else None,
        changes=changes,
        changes_missing=missing,
    )


def _changes(points: Sequence[Point], y: Floats) -> tuple[list[Change] | None, Missing | None]:
    if len(points) < LEAST_POINTS:
        return None, Missing.TOO_FEW
    # Sessions vary at least as much as their own processes say.
    errors = [point.log_se for point in points if point.log_se is not None]
    least_sd = max(LEAST_SD, float(np.median(errors)) if errors else 0.0)
    try:
        starts = change_points(y, least_sd=least_sd)
    except ImportError:
        return None, Missing.NO_RUPTURES
    changes: list[Change] = []
    for before, start, end in zip([0, *starts], starts, [*starts[1:], len(y)], strict=False):
        point = points[start]
        step = float(np.median(y[start:end]) - np.median(y[before:start]))
        changes.append(
            Change(
                index=start,
                session_id=point.session_id,
                started_at=point.started_at,
                commit=point.commit,
                change=math.expm1(step),
                sessions=end - start,
                with_it=list(_differences(points[start - 1], point)),
            )
        )
    return changes, None


def _differences(before: Point, after: Point) -> Iterator[str]:
    for name, old, new in (
        ("kernel", before.kernel, after.kernel),
        ("driver", before.driver, after.driver),
        ("kvbench", before.kvbench_version, after.kvbench_version),
        ("path", before.path, after.path),
    ):
        if old != new:
            yield f"{name}: {old or 'none'} before, {new or 'none'} now"

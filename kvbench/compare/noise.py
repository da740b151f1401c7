"""The noise floor of a machine: how far two sessions of the same code lie apart.

Schema `kvbench.noise/1`. Processes of one session share a boot, a temperature and a neighbour, so
their spread alone makes a test of two sessions call the day a regression. The floor comes from
at least five sessions; docs/statistics.md has its figures.
"""

import datetime as dt
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvbench import __version__
from kvbench.compare.gate import MIN_PROCESSES, Change, noise_floor, smallest_visible
from kvbench.compare.metrics import GROUPS, MARGINS, OTHER_MARGIN, Metric, metrics_of
from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import Caution, Report, read_bytes

SCHEMA = "kvbench.noise/1"
LEAST_SESSIONS = 5  # K = 3 gave as few false alarms, but its F wanders by a factor of three
STALE_DAYS = 30
Floats = NDArray[np.float64]


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of all sessions, on the scale of the gate (logs, + is slower)."""

    group: str
    definition_hash: str
    variance: float  # that two sessions add to a difference
    process_sd: float  # of one process inside a session
    values: list[list[float]]  # [sessions][processes]


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """What `kvbench calibrate` keeps."""

    schema: str = SCHEMA
    kvbench_version: str
    measured_at: str  # start of the last session, ISO 8601
    suites: list[str]
    sessions: int
    simulated: str | None
    machine: Machine  # of the last session
    model: KVGeometry
    metrics: dict[str, Floor]

    def floor_of(self, metric: Metric) -> tuple[float, float] | None:
        """Variance and degrees of freedom for a metric that was calibrated as it is now."""
        floor = self.metrics.get(metric.id)
        if floor is None or floor.definition_hash != metric.row.definition_hash:
            return None
        return floor.variance, len(floor.values) - 1.0

    def floor_of_mean(self, ids: Sequence[str]) -> tuple[float, float] | None:
        """The same for the mean over metrics; None where one of them was not calibrated."""
        if not all(each in self.metrics for each in ids):
            return None
        sessions = _mean_sessions([self.metrics[each].values for each in ids])
        if sessions is None:
            return None
        variance, df = noise_floor(sessions)
        return float(variance), float(df)


def make_noise(reports: Sequence[tuple[str, Report]]) -> Noise:
    """The floor from reports of the same code on one machine; each comes with its name for errors.

    Raises:
        UsageError: too few reports or processes, a report that is unfinished or was slowed on
            purpose, two of one session, or of different machines, models or definitions.
    """
    if len(reports) < LEAST_SESSIONS:
        raise UsageError(
            f"{len(reports)} sessions given, at least {LEAST_SESSIONS} are needed for a noise floor"
        )
    _check_alike(reports)
    ordered = sorted((report for _, report in reports), key=lambda each: each.started_at)
    found = [metrics_of(report) for report in ordered]
    metrics: dict[str, Floor] = {}
    for name in found[0]:
        each = [metrics_in[name] for metrics_in in found if name in metrics_in]
        if len(each) < LEAST_SESSIONS:
            continue
        if len({metric.row.definition_hash for metric in each}) > 1:
            raise UsageError(f"{name} was not the same case in all sessions: calibrate again")
        floor = _floor(each)
        if floor is not None:
            metrics[name] = floor
    if not metrics:
        raise UsageError(
            f"no metric has {MIN_PROCESSES} processes in each of {LEAST_SESSIONS} sessions: "
            "use --processes 5 or more"
        )
    last = ordered[-1]
    return Noise(
        kvbench_version=__version__,
        measured_at=last.started_at,
        suites=sorted({report.suite for report in ordered}),
        sessions=len(ordered),
        simulated=last.simulated,
        machine=last.machine,
        model=last.model,
        metrics=metrics,
    )


def _floor(sessions: Sequence[Metric]) -> Floor | None:
    fewest = min(len(metric.values) for metric in sessions)
    if fewest < MIN_PROCESSES:
        return None
    values = np.stack([metric.y[:fewest] for metric in sessions])
    variance, _ = noise_floor(values)
    return Floor(
        group=sessions[0].group,
        definition_hash=sessions[0].row.definition_hash,
        variance=float(variance),
        process_sd=float(np.sqrt(values.var(-1, ddof=1).mean())),
        values=values.tolist(),
    )


def _check_alike(reports: Sequence[tuple[str, Report]]) -> None:
    first_name, first = reports[0]
    seen: dict[str, str] = {}
    for name, report in reports:
        if report.inject:
            raise UsageError(f"{name} was slowed on purpose (--inject): it is no noise")
        if report.finished_at is None:
            raise UsageError(f"{name} is not finished: `kvbench run … --resume` goes on with it")
        if report.session_id in seen:
            raise UsageError(
                f"{name} and {seen[report.session_id]} are one session; a session split in two "
                "says nothing of how sessions differ"
            )
        seen[report.session_id] = name
        for what, here, there in (
            ("simulated profile", report.simulated, first.simulated),
            ("machine", report.machine.fingerprint, first.machine.fingerprint),
            ("model", report.model, first.model),
        ):
            if here != there and not (what == "machine" and report.simulated):
                raise UsageError(f"{name} and {first_name} are not of one {what}")


def read_noise(path: Path) -> Noise:
    """A file that `kvbench calibrate` wrote.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        noise = msgspec.json.decode(read_bytes(path), type=Noise)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise UsageError(f"{path} is no noise floor of `kvbench calibrate`: {error}") from None
    if noise.schema != SCHEMA:
        raise UsageError(f"{path} has schema {noise.schema!r}, this kvbench reads {SCHEMA!r}")
    return noise


def encode_noise(noise: Noise) -> bytes:
    """JSON of a noise floor."""
    return msgspec.json.encode(noise) + b"\n"


def age_cautions(noise: Noise, report: Report, path: str) -> list[Caution]:
    """Why a floor may no longer be this machine's: 30 days, another kernel or driver."""
    fix = f"kvbench calibrate {report.suite} -o {path}"
    old: list[str] = []
    days = (_instant(report.started_at) - _instant(noise.measured_at)).days
    if abs(days) > STALE_DAYS:
        old.append(f"is {days} days old" if days > 0 else f"is {-days} days younger than NEW")
    then, now = noise.machine, report.machine
    if report.simulated:
        return []  # neither time nor kernel changes a profile
    for what, before, after in (
        ("kernel", then.os.kernel, now.os.kernel),
        ("driver", then.cuda.driver_version, now.cuda.driver_version),
    ):
        if before != after:
            old.append(f"is of {what} {before or 'none'}, NEW has {after or 'none'}")
    return [Caution(code="old_noise", message=f"the noise floor {text}", fix=fix) for text in old]


class Foresight(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted from a calibration: the slowdown seen in a group with 80 % power, as shares."""

    group: str
    processes: int
    metrics: int
    interleaved: float  # median over its metrics, `kvbench ab`
    two_sessions: float  # `kvbench compare --noise`
    tier_interleaved: float | None  # of all of them together; None for a single metric
    tier_two_sessions: float | None


def foresee(noise: Noise, processes: Sequence[int] = (5, 10, 20)) -> list[Foresight]:
    """What comparisons on this machine will be able to see, by group and number of processes."""
    groups = list(dict.fromkeys((*GROUPS, *(each.group for each in noise.metrics.values()))))
    tiers = sum(1 for group in groups if len(_members(noise, group)) > 1)
    table: list[Foresight] = []
    for group, count in itertools.product(groups, processes):
        members = _members(noise, group)
        if not members:
            continue
        sds = np.array([noise.metrics[each].process_sd for each in members])
        floors = np.array([noise.metrics[each].variance for each in members])
        df = noise.sessions - 1.0
        alone, apart = _visible(sds, floors, count, group, len(noise.metrics), df)
        tier: tuple[float, float] | None = None
        if len(members) > 1:
            sessions = _mean_sessions([noise.metrics[each].values for each in members])
            if sessions is not None:
                variance, _ = noise_floor(sessions)
                sd = np.sqrt(sessions.var(-1, ddof=1).mean())
                tier = _visible(np.array([sd]), np.array([variance]), count, group, tiers, df)
        table.append(
            Foresight(
                group=group,
                processes=count,
                metrics=len(members),
                interleaved=alone,
                two_sessions=apart,
                tier_interleaved=tier[0] if tier else None,
                tier_two_sessions=tier[1] if tier else None,
            )
        )
    return table


def _members(noise: Noise, group: str) -> list[str]:
    return [name for name, floor in noise.metrics.items() if floor.group == group]


def _visible(
    process_sd: Floats, variance: Floats, processes: int, group: str, tests: int, floor_df: float
) -> tuple[float, float]:
    """Median smallest visible slowdown: interleaved, and over two sessions with the floor."""
    margin = np.log1p(np.full(process_sd.shape, MARGINS.get(group, OTHER_MARGIN)))
    within = 2 * process_sd**2 / processes
    df = np.full(process_sd.shape, processes - 1.0)
    nothing = np.zeros_like(within)
    interleaved = Change(nothing, np.sqrt(within), df)
    total = within + variance
    terms = within**2 / (2 * df) + variance**2 / floor_df
    df_all = np.where(terms > 0, total**2 / np.where(terms > 0, terms, 1.0), 2 * df)
    apart = Change(nothing, np.sqrt(total), df_all)
    return (
        float(np.median(smallest_visible(interleaved, margin, tests))),
        float(np.median(smallest_visible(apart, margin, tests))),
    )


def _mean_sessions(metrics: Sequence[list[list[float]]]) -> Floats | None:
    """Mean over metrics of [sessions][processes]; None where metrics have other sessions."""
    if len({len(sessions) for sessions in metrics}) != 1:
        return None
    fewest = min(len(session) for sessions in metrics for session in sessions)
    cut = [[session[:fewest] for session in sessions] for sessions in metrics]
    mean: Floats = np.asarray(cut, dtype=np.float64).mean(axis=0)
    return mean


def noise_schema() -> dict[str, Any]:
    """The JSON Schema of a noise floor."""
    return msgspec.json.schema(Noise)


def summary(noise: Noise) -> Mapping[str, str]:
    """Which machine and model it is of, in words."""
    return {
        "machine": noise.machine.cpu.model or "unknown CPU",
        "model": noise.model.name,
        "fingerprint": noise.machine.fingerprint,
    }


def _instant(text: str) -> dt.datetime:
    try:
        instant = dt.datetime.fromisoformat(text)
    except ValueError:
        return dt.datetime.now(dt.UTC)
    return instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)

"""The noise floor of a machine: how far two sessions of the same code lie apart.

Schema `kvbench.noise/1`. Processes of one session share a boot, a temperature and a neighbour, so
their spread alone makes a test of two sessions call the day a regression. The floor comes from
at least five sessions; docs/statistics.md has its figures.
"""

import datetime as dt
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import special  # pyright: ignore[reportMissingTypeStubs]

from kvbench import __version__
from kvbench.compare.gate import MIN_PROCESSES, PAIRED_FROM, Change, noise_floor, smallest_visible
from kvbench.compare.metrics import GROUPS, MARGINS, OTHER_MARGIN, Metric, metrics_of
from kvbench.errors import UsageError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine, redact_argument, shell_quoted
from kvbench.measure.result import Caution, Report, read_bytes

SCHEMA = "kvbench.noise/1"
LEAST_SESSIONS = 5  # K = 3 gave as few false alarms, but its F wanders by a factor of three
STALE_DAYS = 30
Floats = NDArray[np.float64]
_DATE = re.compile(r"-\d{4}-\d\d-\d\d$")
_OUT = re.compile(r"--out=|-o")


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """One metric of all sessions, on the scale of the gate (logs, + is slower)."""

    group: str
    definition_hash: str
    variance: float  # that two sessions add to a difference
    process_sd: float  # of one process inside a session
    sessions: list[int]  # which of the calibration's have the metric, in time order, from 0
    values: list[list[float]]  # [sessions][processes]


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """What `kvbench calibrate` keeps."""

    schema: str = SCHEMA
    kvbench_version: str
    measured_at: str  # start of the last session, ISO 8601
    suite: str
    sessions: int
    simulated: str | None
    machine: Machine  # of the last session
    model: KVGeometry
    metrics: dict[str, Floor]
    command: list[str] = []  # argv of the calibration, redacted; empty for one of given reports

    def floor_of(self, metric: Metric) -> tuple[float, float] | None:
        """Variance and degrees of freedom for a metric that was calibrated as it is now."""
        floor = self.metrics.get(metric.id)
        if floor is None or floor.definition_hash != metric.row.definition_hash:
            return None
        return floor.variance, len(floor.values) - 1.0

    def floor_of_mean(self, ids: Sequence[str]) -> tuple[float, float] | None:
        """The same for the mean over metrics, of the sessions that all of them have.

        None where one of them was not calibrated, or they share too few sessions.
        """
        if not all(each in self.metrics for each in ids):
            return None
        sessions = _mean_sessions([self.metrics[each] for each in ids])
        if sessions is None:
            return None
        variance, df = noise_floor(sessions)
        return float(variance), float(df)


def make_noise(reports: Sequence[tuple[str, Report]], command: Sequence[str] = ()) -> Noise:
    """The floor from reports of the same code on one machine; each comes with its name for errors.

    A metric needs `LEAST_SESSIONS` sessions with `MIN_PROCESSES` processes each; others do not
    count for it. `command` is the argv, redacted, that measured them.

    Raises:
        UsageError: too few reports or processes, a report that is unfinished or was slowed on
            purpose, two of one session, or of different machines, models, suites, plans or
            definitions.
    """
    if len(reports) < LEAST_SESSIONS:
        raise UsageError(
            f"{len(reports)} sessions given, at least {LEAST_SESSIONS} are needed for a noise floor"
        )
    _check_alike(reports)
    ordered = sorted((report for _, report in reports), key=lambda each: each.started_at)
    found = [metrics_of(report) for report in ordered]
    metrics: dict[str, Floor] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(found)):
        have = {at: metrics_in[name] for at, metrics_in in enumerate(found) if name in metrics_in}
        each = {at: metric for at, metric in have.items() if len(metric.values) >= MIN_PROCESSES}
        if len(each) < LEAST_SESSIONS:
            continue
        if len({metric.row.definition_hash for metric in each.values()}) > 1:
            raise UsageError(f"{name} was not the same case in all sessions: calibrate again")
        metrics[name] = _floor(each)
    if not metrics:
        raise UsageError(
            f"no metric has {MIN_PROCESSES} processes in each of {LEAST_SESSIONS} sessions: "
            "use --processes 5 or more"
        )
    last = ordered[-1]
    return Noise(
        kvbench_version=__version__,
        measured_at=last.started_at,
        suite=last.suite,
        sessions=len(ordered),
        simulated=last.simulated,
        machine=last.machine,
        model=last.model,
        metrics=metrics,
        command=list(command),
    )


def _floor(sessions: Mapping[int, Metric]) -> Floor:
    """Of one metric; its sessions by their place in time."""
    metrics = list(sessions.values())
    fewest = min(len(metric.values) for metric in metrics)
    values = np.stack([metric.y[:fewest] for metric in metrics])
    variance, _ = noise_floor(values)
    return Floor(
        group=metrics[0].group,
        definition_hash=metrics[0].row.definition_hash,
        variance=float(variance),
        process_sd=float(np.sqrt(values.var(-1, ddof=1).mean())),
        sessions=list(sessions),
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
            ("suite", report.suite, first.suite),
            ("plan", report.plan | {"seed": 0}, first.plan | {"seed": 0}),
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
    for name, floor in noise.metrics.items():
        if len(floor.sessions) != len(floor.values):
            raise UsageError(
                f"{path} is damaged: {name} has values of {len(floor.values)} sessions and names "
                f"{len(floor.sessions)}; calibrate again"
            )
    return noise


def encode_noise(noise: Noise) -> bytes:
    """JSON of a noise floor."""
    return msgspec.json.encode(noise) + b"\n"


def age_cautions(noise: Noise, report: Report, path: str) -> list[Caution]:
    """Why a floor may no longer be this machine's: 30 days, another kernel or driver.

    `path` is the floor's file; the fix measures it anew into one beside it.
    """
    if report.simulated:
        return []  # neither time nor kernel changes a profile
    old: list[str] = []
    days = (_instant(report.started_at) - _instant(noise.measured_at)).days
    if abs(days) > STALE_DAYS:
        old.append(f"is {days} days old" if days > 0 else f"is {-days} days younger than NEW")
    then, now = noise.machine, report.machine
    for what, before, after in (
        ("kernel", then.os.kernel, now.os.kernel),
        ("driver", then.cuda.driver_version, now.cuda.driver_version),
    ):
        if before != after:
            old.append(f"is of {what} {before or 'none'}, NEW has {after or 'none'}")
    fix = _again(noise, report, path)
    return [Caution(code="old_noise", message=f"the noise floor {text}", fix=fix) for text in old]


def _again(noise: Noise, report: Report, path: str) -> str:
    """The calibration's command into a new file, since `calibrate` keeps the old one's sessions."""
    old = Path(redact_argument(path or "kvbench-noise.json"))
    day = _instant(report.started_at).date().isoformat()
    new = f"{_DATE.sub('', old.stem)}-{day}.json"
    if new == old.name:
        new = f"{old.stem}-2.json"
    words = _without_out(noise.command) or ["calibrate", report.suite]
    return " ".join(map(shell_quoted, ["kvbench", *words, "-o", str(old.with_name(new))]))


def _without_out(command: Sequence[str]) -> list[str]:
    """Words of a command line without where the result goes, and without --resume."""
    words: list[str] = []
    follows = False
    for word in command:
        if follows:
            follows = False
        elif word in {"-o", "--out"}:
            follows = True
        elif word != "--resume" and not _OUT.match(word):
            words.append(word)
    return words


class Foresight(msgspec.Struct, frozen=True, kw_only=True):
    """Predicted from a calibration: the slowdown seen in a group with 80 % power, as shares."""

    group: str
    processes: int
    metrics: int
    interleaved: float  # median over its metrics, `kvbench ab`
    two_sessions: float  # `kvbench compare --noise`
    tier_interleaved: float | None  # of all of them together; None for a single metric
    tier_two_sessions: float | None


class _Spread(NamedTuple):
    """What a calibration knows of metrics or of a mean over them; arrays of one shape."""

    process_sd: Floats
    variance: Floats  # that two sessions add to a difference
    df: Floats  # of that variance


def foresee(noise: Noise, processes: Sequence[int] = (5, 10, 20)) -> list[Foresight]:
    """What comparisons on this machine will be able to see, by group and number of processes."""
    groups = list(dict.fromkeys((*GROUPS, *(each.group for each in noise.metrics.values()))))
    members = {group: _members(noise, group) for group in groups}
    tiers = sum(1 for floors in members.values() if len(floors) > 1)
    table: list[Foresight] = []
    for group, count in itertools.product(groups, processes):
        floors = members[group]
        if not floors:
            continue
        margin = float(np.log1p(MARGINS.get(group, OTHER_MARGIN)))
        spread = _Spread(
            np.array([each.process_sd for each in floors]),
            np.array([each.variance for each in floors]),
            np.array([len(each.values) - 1.0 for each in floors]),
        )
        alone, apart = _visible(spread, count, margin, len(noise.metrics))
        sessions = _mean_sessions(floors) if len(floors) > 1 else None
        tier: tuple[float | None, float | None] = (None, None)
        if sessions is not None:
            sd = np.sqrt(sessions.var(-1, ddof=1).mean())
            tier = _visible(_Spread(sd, *noise_floor(sessions)), count, margin, tiers)
        table.append(
            Foresight(
                group=group,
                processes=count,
                metrics=len(floors),
                interleaved=alone,
                two_sessions=apart,
                tier_interleaved=tier[0],
                tier_two_sessions=tier[1],
            )
        )
    return table


def _members(noise: Noise, group: str) -> list[Floor]:
    return [floor for floor in noise.metrics.values() if floor.group == group]


def _visible(spread: _Spread, processes: int, margin: float, tests: int) -> tuple[float, float]:
    """Median smallest visible slowdown: interleaved, and over two sessions with the floor."""
    within = 2 * spread.process_sd**2 / processes
    alone = np.full_like(within, processes - 1.0)  # degrees of freedom of one side, or of pairs
    welch_df = np.full_like(within, _welch_df(processes))
    nothing, margins = np.zeros_like(within), np.full_like(within, margin)
    seen = _as_estimated(within, 2 * alone)
    interleaved = Change(nothing, np.sqrt(seen), welch_df)
    if processes >= PAIRED_FROM:  # as `gate.change` chooses
        interleaved = Change(nothing, np.sqrt(_as_estimated(within, alone)), alone)
    total = seen + spread.variance
    terms = seen**2 / welch_df + spread.variance**2 / spread.df
    df_all = np.where(terms > 0, total**2 / np.where(terms > 0, terms, 1.0), welch_df)
    apart = Change(nothing, np.sqrt(total), df_all)
    return (
        float(np.median(smallest_visible(interleaved, margins, tests))),
        float(np.median(smallest_visible(apart, margins, tests))),
    )


def _welch_df(processes: int) -> float:
    """Median degrees of freedom of Welch's test on sides that vary alike: below 2 (P - 1).

    They fall with the ratio of the two estimated variances, in either direction; half of all
    ratios lie between the quartiles of F.
    """
    alone = processes - 1.0
    ratio = float(special.fdtri(alone, alone, 0.75))
    return alone * (1 + ratio) ** 2 / (1 + ratio**2)


def _as_estimated(variance: Floats, df: Floats) -> Floats:
    """The median of estimates of a variance, which are too small more often than too large.

    `smallest_visible` makes up for that, and the variance of a calibration, of all its processes,
    is in no need of it.
    """
    median: Floats = variance * special.gammaincinv(df / 2, 0.5) / (df / 2)
    return median


def _mean_sessions(floors: Sequence[Floor]) -> Floats | None:
    """Mean over metrics, float64 [sessions, processes], of the sessions that all of them have."""
    by_session = [dict(zip(each.sessions, each.values, strict=True)) for each in floors]
    shared = sorted(set[int].intersection(*map(set, by_session)))
    if len(shared) < LEAST_SESSIONS:
        return None
    fewest = min(len(values[at]) for values in by_session for at in shared)
    cut = [[values[at][:fewest] for at in shared] for values in by_session]
    mean: Floats = np.asarray(cut, dtype=np.float64).mean(axis=0)
    return mean


def noise_schema() -> dict[str, Any]:
    """The JSON Schema of a noise floor."""
    return msgspec.json.schema(Noise)


def _instant(text: str) -> dt.datetime:
    try:
        instant = dt.datetime.fromisoformat(text)
    except ValueError:
        return dt.datetime.now(dt.UTC)
    return instant if instant.tzinfo else instant.replace(tzinfo=dt.UTC)

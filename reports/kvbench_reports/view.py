"""A report as people read it: one view per tier, what is said once below it, and the warnings.

Decides what is said and what is folded, not how it is laid out: the terminal table and Markdown
both print these views.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from kvbench.geometry import KVGeometry
from kvbench.measure.result import HAS_FIGURE, Caution, Report, Row, State
from kvbench_reports.figures import Column, figures, limits
from kvbench_reports.words import clean, count

TIERS = ("hbm", "dram", "nvme", "peer")
_UNEXPLAINED = "no reason recorded"
_NUMBER = re.compile(r"\d[\d,.]*")
_GAPS = {  # a column, and the fields of a row whose absence leaves a gap in it
    "interval": ("bytes_per_s_low", "bytes_per_s_high"),
    "limit": ("limit_bytes_per_s", "limit_fraction"),
    "p50": ("latency_s.p50", "latency_s"),
    "p99": ("latency_s.p99", "latency_s"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row that was tried. `note` says why it is not plainly `ok`."""

    case: str
    state: State
    cells: dict[str, str]  # by the column's key
    warnings: tuple[str, ...]  # their labels
    note: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Neighbouring rows that this machine cannot run, for one reason."""

    cases: tuple[str, ...]
    reason: str

    @property
    def title(self) -> str:
        """The case's id, or how many cases there are."""
        return self.cases[0] if len(self.cases) == 1 else count(len(self.cases), "case")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something said once under a table; it may be left out together with all of `columns`."""

    text: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierView:
    """Everything to print about one tier. Without columns no row has a figure."""

    tier: str
    summary: str
    columns: tuple[Column, ...]
    lines: tuple[Line | Skipped, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A doubt, once, with how many rows have it: none when it is about the run."""

    label: str
    caution: Caution
    rows: int

    @property
    def extent(self) -> str:
        """What it is about: `3 rows` or `whole run`."""
        return count(self.rows, "row") if self.rows else "whole run"


def state_counts(rows: Iterable[Row]) -> str:
    """`8 ok, 1 invalid`, in the order of the states."""
    found = Counter(row.state for row in rows)
    return ", ".join(f"{found[state]} {state}" for state in State if found[state])


def collect_warnings(report: Report) -> tuple[Warned, ...]:
    """The warnings of the run, then of the rows, each once, labelled w1, w2 and so on."""
    cautions: dict[tuple[str, str], Caution] = {}
    rows: Counter[tuple[str, str]] = Counter()
    for warnings, weight in [(report.warnings, 0), *((row.warnings, 1) for row in report.rows)]:
        for key, caution in {_identity(caution): caution for caution in warnings}.items():
            if key not in cautions or cautions[key].fix is None:
                cautions[key] = caution
            rows[key] += weight
    return tuple(
        Warned(label=f"w{index}", caution=caution, rows=rows[key])
        for index, (key, caution) in enumerate(cautions.items(), start=1)
    )


def tier_views(report: Report, warned: Sequence[Warned]) -> list[TierView]:
    """A view of each tier that has rows: hbm, dram, nvme, peer, then any other."""
    labels = {_identity(warning.caution): warning.label for warning in warned}
    tiers = dict.fromkeys((*TIERS, *(row.tier for row in report.rows)))
    by_tier = {tier: [row for row in report.rows if row.tier == tier] for tier in tiers}
    return [_tier(rows, report.model, labels) for rows in by_tier.values() if rows]


def _tier(rows: Sequence[Row], model: KVGeometry, labels: dict[tuple[str, str], str]) -> TierView:
    tried = [row for row in rows if row.state is not State.SKIPPED]
    columns, cells = figures(tried, model)
    cells_left = iter(cells)
    lines: list[Line | Skipped] = []
    for reason, group in groupby(rows, key=_skip_reason):
        if reason is None:
            lines += [_line(row, next(cells_left), labels) for row in group]
        else:
            lines.append(Skipped(cases=tuple(clean(row.id) for row in group), reason=reason))
    return TierView(
        tier=clean(rows[0].tier),
        summary=state_counts(rows),
        columns=columns,
        lines=tuple(lines),
        notes=tuple(_notes([row for row in tried if row.state in HAS_FIGURE])),
    )


def _line(row: Row, cells: dict[str, str], labels: dict[tuple[str, str], str]) -> Line:
    doubts = {_identity(caution) for caution in row.warnings}
    return Line(
        case=clean(row.id),
        state=row.state,
        cells=cells,
        warnings=tuple(label for key, label in labels.items() if key in doubts),
        note=_why_not_ok(row),
    )


def _why_not_ok(row: Row) -> str | None:
    if row.state in {State.OK, State.SIMULATED}:
        return None  # a reason that they share is said once, under the table
    reason = clean(row.reason or _UNEXPLAINED)
    if row.state is not State.DEGRADED:
        return reason
    # Runners name both paths in the reason where the path is the reason.
    paths = (("requested", row.path_requested), ("observed", row.path_observed))
    untold = [
        f"{name}: {clean(path) if path else 'not recorded'}"
        for name, path in paths
        if not path or clean(path) not in reason
    ]
    return f"{reason} (path {', '.join(untold)})" if untold else reason


def _notes(rows: Sequence[Row]) -> Iterator[Note]:
    """What is said once about the rows of a tier that hold a figure."""
    for limit in limits(rows):
        yield Note(text=limit.text, columns=("limit",))
    paths = _tally(row.path_observed for row in rows)
    if paths:
        alone = len(paths) == 1
        named = paths if alone else (_times(path, rows_by) for path, rows_by in paths.items())
        yield Note(text="path observed: " + "; ".join(named))
    shared = (State.OK, State.SIMULATED)
    for reason, rows_with in _tally(row.reason for row in rows if row.state in shared).items():
        yield Note(text=_times(reason, rows_with))
    yield from _gaps(rows)


def _gaps(rows: Sequence[Row]) -> Iterator[Note]:
    """Why columns have gaps. Reasons that differ only in their numbers are said once."""
    found: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for row in rows:
        columns_of: dict[str, list[str]] = {}
        for column, fields in _GAPS.items():
            why = next((row.missing[field] for field in fields if field in row.missing), None)
            if why:
                columns_of.setdefault(clean(why), []).append(column)
        for why, gaps in columns_of.items():
            found.setdefault((tuple(gaps), _NUMBER.sub("0", why)), []).append(why)
    for (columns, _), reasons in found.items():
        names = ", ".join("95 % interval" if key == "interval" else key for key in columns)
        where = count(len(reasons), "row") + (", for example" if len(set(reasons)) > 1 else "")
        text = f"no {names} in {where}: {reasons[0]}"
        yield Note(text=text, columns=columns)


def _tally(texts: Iterable[str | None]) -> Counter[str]:
    return Counter(clean(text) for text in texts if text)


def _times(text: str, rows: int) -> str:
    return f"{text} ({count(rows, 'row')})"


def _skip_reason(row: Row) -> str | None:
    return clean(row.reason or _UNEXPLAINED) if row.state is State.SKIPPED else None


def _identity(caution: Caution) -> tuple[str, str]:
    return caution.code, caution.message

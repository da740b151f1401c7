"""Who is tested with whom: rows of two reports matched by id and definition.

What has no counterpart, or is not the same thing on both sides, becomes a finding here; the rest
becomes pairs of process values for `judge`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from kvbench.compare.gate import MIN_PROCESSES
from kvbench.compare.metrics import OTHER_MARGIN, Metric, chosen, on_gate_scale, tier_id
from kvbench.compare.noise import Noise
from kvbench.compare.record import Design, Finding, Kind, Verdict
from kvbench.measure.result import OTHER_SIDE, Report, Row, State

INTERLEAVED = frozenset({Design.PAIRED, Design.INTERLEAVED})


class Pair(NamedTuple):
    """One metric of both reports; a side is None where it has none."""

    base: Metric | None
    new: Metric | None

    @property
    def metric(self) -> Metric:
        """The one that names it: NEW's where there is one."""
        metric = self.new or self.base
        if metric is None:
            raise AssertionError("a pair has a side")
        return metric


class Tested(NamedTuple):
    """A metric or a tier with the process values that are held against each other."""

    id: str
    kind: Kind
    group: str
    base: Sequence[float]  # of each process, or of each shared block: base units, a tier's y
    new: Sequence[float]
    floor: tuple[float, float] | None  # variance and df that two sessions add
    pair: Pair | None  # None for a tier
    members: tuple[str, ...] = ()


class Matched(NamedTuple):
    """What can be tested, and findings about the rest."""

    metrics: list[Tested]
    findings: list[Finding]


def match(
    reports: tuple[Report, Report],
    metrics: tuple[Mapping[str, Metric], Mapping[str, Metric]],
    margins: Mapping[str, float],
    design: Design,
    noise: Noise | None,
    only: Sequence[str] = (),
) -> Matched:
    """Match the metrics of BASE and NEW, of rows that `only` chose; `noise` for two sessions."""
    rows = [{row.id: row for row in report.rows} for report in reports]
    in_base, in_new = metrics
    matched = Matched([], [])
    for name in dict.fromkeys((*in_base, *in_new)):
        pair = Pair(in_base.get(name), in_new.get(name))
        finding: Finding | None = None
        if pair.base is None:
            finding = _appeared(pair, rows[0].get(pair.metric.row.id), margins)
        elif pair.new is None:
            finding = _vanished(pair, rows[1].get(pair.metric.row.id), margins)
        elif unlike := _unlike(pair.base.row, pair.new.row):
            reason, fails = unlike
            finding = untested(pair, Verdict.NOT_COMPARABLE, margins, reason, fails=fails)
        else:
            tested = _values(name, pair.base, pair.new, design, noise)
            if isinstance(tested, str):
                finding = untested(pair, Verdict.UNSURE, margins, tested)
            else:
                matched.metrics.append(tested)
        if finding is not None:
            matched.findings.append(finding)
    if design in INTERLEAVED:
        matched.findings.extend(_broken((rows[0], rows[1]), margins, only))
    return matched


def _broken(
    rows: tuple[Mapping[str, Row], Mapping[str, Row]],
    margins: Mapping[str, float],
    only: Sequence[str],
) -> Iterator[Finding]:
    """Cases that one side could not do: pairs need both, so the other side has no figure either."""
    base, new = rows
    for row in chosen(new.values(), only):
        other = base.get(row.id)
        if other is None:
            continue
        if other.reason_code == OTHER_SIDE:
            verdict, broken, name = Verdict.MISSING, row, "NEW"
        elif row.reason_code == OTHER_SIDE:
            verdict, broken, name = Verdict.NEW, other, "BASE"
        else:
            continue
        yield Finding(
            id=row.id,
            kind=Kind.RATE,
            group=row.tier,
            margin=margin_of(row.tier, margins),
            verdict=verdict,
            reason=f"{broken.state} in {name}: {broken.reason or 'no reason given'}",
            fails=verdict is Verdict.MISSING,
            row=row.id,
        )


def tiers(metrics: Sequence[Tested], noise: Noise | None) -> list[Tested]:
    """The mean over the metrics of each group that has several: a log geometric mean."""
    found: list[Tested] = []
    for group in dict.fromkeys(each.group for each in metrics):
        members = [each for each in metrics if each.group == group]
        if len(members) < 2:  # noqa: PLR2004  a tier of one metric is that metric
            continue
        kind = members[0].kind  # of a group all are rates, or all are latencies
        base = _mean(kind, [each.base for each in members])
        new = _mean(kind, [each.new for each in members])
        ids = tuple(each.id for each in members)
        floor = noise.floor_of_mean(ids) if noise else None
        if noise is None or floor is not None:
            found.append(Tested(tier_id(group), Kind.TIER, group, base, new, floor, None, ids))
    return found


def _mean(kind: Kind, sides: Sequence[Sequence[float]]) -> list[float]:
    """Mean y over metrics, process by process, as far as all of them have processes."""
    shared = min(map(len, sides))
    mean = on_gate_scale(kind, [values[:shared] for values in sides]).mean(axis=0)
    return [float(each) for each in mean]


def margin_of(group: str, margins: Mapping[str, float]) -> float:
    """The slowdown that is tolerated in a group, as a share."""
    return margins.get(group, OTHER_MARGIN)


def untested(
    pair: Pair, verdict: Verdict, margins: Mapping[str, float], reason: str, *, fails: bool = False
) -> Finding:
    """A finding without a test."""
    metric = pair.metric
    return Finding(
        id=metric.id,
        kind=metric.kind,
        group=metric.group,
        margin=margin_of(metric.group, margins),
        verdict=verdict,
        reason=reason,
        fails=fails,
        row=metric.row.id,
        base=pair.base.median if pair.base else None,
        new=pair.new.median if pair.new else None,
        base_values=list(pair.base.values) if pair.base else [],
        new_values=list(pair.new.values) if pair.new else [],
    )


def _values(
    name: str, base: Metric, new: Metric, design: Design, noise: Noise | None
) -> Tested | str:
    """What is held against each other, or why it cannot be."""
    before, after = base.values, new.values
    if design in INTERLEAVED:
        before, after = _shared_blocks(base, new)
    fewest = min(len(before), len(after))
    if fewest < MIN_PROCESSES:
        return f"{len(before)} and {len(after)} processes: {MIN_PROCESSES} a side needed"
    floor = noise.floor_of(new) if noise else None
    if noise is not None and floor is None:
        return "not in the noise floor: calibrate again"
    return Tested(name, new.kind, new.group, before, after, floor, Pair(base, new))


def _shared_blocks(base: Metric, new: Metric) -> tuple[tuple[float, ...], tuple[float, ...]]:
    before = dict(zip(base.blocks, base.values, strict=True))
    after = dict(zip(new.blocks, new.values, strict=True))
    shared = [block for block in before if block is not None and block in after]
    return tuple(before[block] for block in shared), tuple(after[block] for block in shared)


def _appeared(pair: Pair, old: Row | None, margins: Mapping[str, float]) -> Finding:
    reason = "not in BASE" if old is None else f"{old.state} in BASE"
    if pair.metric.kind is Kind.P99 and old is not None and old.bytes_per_s is not None:
        reason = "BASE has too few operations for a p99"
    return untested(pair, Verdict.NEW, margins, reason)


def _vanished(pair: Pair, row: Row | None, margins: Mapping[str, float]) -> Finding:
    if pair.metric.kind is Kind.P99 and row is not None and row.bytes_per_s is not None:
        # It was measured; whether a percentile has enough samples is luck near the limit.
        reason = "NEW has too few operations for a p99: raise --time-limit"
        return untested(pair, Verdict.UNSURE, margins, reason)
    why = "not in NEW" if row is None else f"{row.state} in NEW: {row.reason or 'no reason given'}"
    return untested(pair, Verdict.MISSING, margins, why, fails=True)


def _unlike(base: Row, new: Row) -> tuple[str, bool] | None:
    """Why two rows of one id are not one thing, and whether that turns the gate red."""
    if base.definition_hash != new.definition_hash:
        return "the case is defined differently in the two reports", False
    paths = base.path_observed, new.path_observed
    if None not in paths and paths[0] != paths[1]:
        return f"BASE went by {paths[0]}, NEW by {paths[1]}", True
    if State.DEGRADED in (base.state, new.state) and base.state is not new.state:
        return f"{base.state} in BASE, {new.state} in NEW", True
    return None

"""What faults of a peer cost: time lost, local hits meanwhile, breakers, wrong blocks.

Figures come from the evidence of a row's processes. The worst of all processes is told where it is
the worst that matters, and else their median. Lays nothing out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import msgspec

from kvbench.measure.result import HAS_FIGURE, Report, Row
from kvbench_reports.words import NONE, clean, count, number, time_scale

EVIDENCE = "faults"
NOTE = (
    "lost: what a request took beyond the median of those before the fault, the largest and the "
    "99th percentile from the fault on, of the worst process; breaker: from the fault until the "
    "peer was left alone; whole: from the end of the fault until a request got all its blocks; "
    "local hits: with the fault, of what they took before, median of the processes; every block "
    "that was called OK was compared whole"
)


class _Seen(msgspec.Struct):
    """What one process's evidence says; times in seconds."""

    scripts: int
    requests_in_fault: int
    whole_in_fault: int
    late: int
    healthy_p50_s: float
    lost_max_s: float
    lost_p99_s: float | None
    local_healthy_p50_s: float | None
    local_healthy_p99_s: float | None
    local_fault_p50_s: float | None
    local_fault_p99_s: float | None
    breaker_open_s: list[float]
    clean_s: list[float]
    wrong_blocks: int
    checked_blocks: int
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One row: one fault, as often as it happened."""

    case: str
    faults: int
    requests: int  # from a fault on, until all was well again
    late: int  # of them, beyond their deadline
    usual_s: float  # median of a request before
    lost_max_s: float
    lost_p99_s: float | None
    breaker_s: tuple[float, ...]  # one for each time that it opened
    whole_s: tuple[float, ...]  # one for each fault after which a request was whole again
    local_p50: float | None  # of what it was
    local_p99: float | None
    wrong: int
    checked: int
    reasons: dict[str, int]  # blocks that were asked for and did not come

    @property
    def lost_text(self) -> str:
        """`at most 241 ms, p99 22.9 ms`."""
        return f"at most {seconds(self.lost_max_s)}, p99 {seconds(self.lost_p99_s)}"

    @property
    def breaker_text(self) -> str:
        """`open 2 of 2 times, after at most 249 ms`, or `never open`."""
        return self._times("open ", self.breaker_s)

    @property
    def whole_text(self) -> str:
        """`2 of 2 times, after at most 1.30 s`, or `never`."""
        return self._times("", self.whole_s)

    @property
    def local_text(self) -> str:
        """`p50 1.02 x, p99 1.31 x`."""
        p50, p99 = (
            NONE if each is None else f"{each:.2f} x" for each in (self.local_p50, self.local_p99)
        )
        return f"p50 {p50}, p99 {p99}"

    @property
    def wrong_text(self) -> str:
        """`0 of 22,104`."""
        return f"{self.wrong:,} of {self.checked:,}"

    @property
    def reasons_text(self) -> str:
        """`12 late, 24 gone`."""
        return (
            ", ".join(f"{blocks:,} {clean(why)}" for why, blocks in self.reasons.items()) or "none"
        )

    @property
    def sentence(self) -> str:
        """All of it."""
        return (
            f"{self.case}: {count(self.faults, 'fault')}, {count(self.requests, 'request')} from "
            f"them on; lost {self.lost_text} (usually a request takes {seconds(self.usual_s)}); "
            f"{self.late:,} beyond the deadline; breaker {self.breaker_text}; whole again "
            f"{self.whole_text}; local hits {self.local_text}; wrong blocks {self.wrong_text}; "
            f"did not come: {self.reasons_text}"
        )

    def _times(self, what: str, found: Sequence[float]) -> str:
        if not found:
            return f"never {what}".strip()
        return f"{what}{len(found):,} of {self.faults:,} times, after at most {seconds(max(found))}"


def costs(report: Report) -> list[Cost]:
    """The rows of faults that hold a figure, in their order."""
    found: list[Cost] = []
    for row in report.rows:
        seen = _seen(row) if row.state in HAS_FIGURE else []
        if seen:
            found.append(_cost(row, seen))
    return found


def seconds(value_s: float | None) -> str:
    """`12.3 ms`."""
    if value_s is None:
        return NONE
    if not value_s:
        return "0 s"
    unit, factor = time_scale([value_s])
    return f"{number(value_s / factor)} {unit}"


def _seen(row: Row) -> list[_Seen]:
    """What the processes say; none where one says it in another way."""
    try:
        return [
            msgspec.convert(process.path_evidence[EVIDENCE], _Seen)
            for process in row.processes
            if EVIDENCE in process.path_evidence
        ]
    except msgspec.ValidationError:
        return []


def _cost(row: Row, seen: Sequence[_Seen]) -> Cost:
    reasons: Counter[str] = Counter()
    for each in seen:
        reasons.update(each.reasons)
    p99 = [each.lost_p99_s for each in seen if each.lost_p99_s is not None]
    return Cost(
        case=clean(row.id),
        faults=sum(each.scripts for each in seen),
        requests=sum(each.requests_in_fault for each in seen),
        late=sum(each.late for each in seen),
        usual_s=median(each.healthy_p50_s for each in seen),
        lost_max_s=max(each.lost_max_s for each in seen),
        lost_p99_s=max(p99, default=None),
        breaker_s=tuple(took for each in seen for took in each.breaker_open_s),
        whole_s=tuple(took for each in seen for took in each.clean_s),
        local_p50=_ratio([(each.local_fault_p50_s, each.local_healthy_p50_s) for each in seen]),
        local_p99=_ratio([(each.local_fault_p99_s, each.local_healthy_p99_s) for each in seen]),
        wrong=sum(each.wrong_blocks for each in seen),
        checked=sum(each.checked_blocks for each in seen),
        reasons=dict(reasons),
    )


def _ratio(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """The median of those that are known."""
    known = [with_fault / before for with_fault, before in pairs if with_fault and before]
    return median(known) if known else None

"""One family of tests, judged together: each finding with its verdict and everything behind it."""

from collections.abc import Mapping, Sequence

import numpy as np

from kvbench.compare.gate import (
    PAIRED_FROM,
    SAME_WITHIN,
    Change,
    Decision,
    change,
    decide,
    smallest_visible,
)
from kvbench.compare.match import INTERLEAVED, Tested, margin_of
from kvbench.compare.metrics import on_gate_scale
from kvbench.compare.record import Design, Finding, Kind, Verdict

LOOKS = {Verdict.SLOWER: "slower", Verdict.FASTER: "faster", Verdict.SAME: "the same"}


def judge(family: Sequence[Tested], design: Design, margins: Mapping[str, float]) -> list[Finding]:
    """Test a family; Holm's correction is over exactly its members."""
    if not family:
        return []
    changes = _changes(family, design)
    logs = np.log1p([margin_of(each.group, margins) for each in family])
    decision = decide(changes, logs)
    visible = smallest_visible(changes, logs, len(family))
    low, high = np.expm1(changes.upper(0.025)), np.expm1(changes.upper(0.975))
    findings: list[Finding] = []
    for at, each in enumerate(family):
        margin = margin_of(each.group, margins)
        verdict, reason = _verdict(decision, at, design, margin)
        base, new = each.pair or (None, None)
        findings.append(
            Finding(
                id=each.id,
                kind=each.kind,
                group=each.group,
                margin=margin,
                verdict=verdict,
                reason=reason,
                fails=verdict is Verdict.SLOWER,
                row=new.row.id if new else None,
                base=base.median if base else None,
                new=new.median if new else None,
                change=float(np.expm1(changes.d[at])),
                low=float(low[at]),
                high=float(high[at]),
                mde=float(visible[at]),
                test=_test_name(each, design, float(changes.se[at])),
                df=float(changes.df[at]),
                standard_error=float(changes.se[at]),
                floor_sd=float(np.sqrt(each.floor[0])) if each.floor else None,
                p_slower=float(decision.p_slower[at]),
                p_slower_adjusted=float(decision.p_slower_adjusted[at]),
                p_faster_adjusted=float(decision.p_faster_adjusted[at]),
                rank=int(decision.rank[at]),
                tests=len(family),
                base_values=list(each.base),
                new_values=list(each.new),
                members=list(each.members),
            )
        )
    return findings


def looks(finding: Finding, verdict: Verdict) -> bool:
    """Whether it would have the verdict if the two sessions were known to be alike."""
    return finding.reason is not None and finding.reason.startswith(_looks(verdict))


def _looks(verdict: Verdict) -> str:
    return f"looks {LOOKS[verdict]};"


def _changes(family: Sequence[Tested], design: Design) -> Change:
    """The test of every member; those with equally many processes in one go."""
    alike: dict[tuple[Kind, int, int], list[int]] = {}
    for at, each in enumerate(family):
        alike.setdefault((each.kind, len(each.base), len(each.new)), []).append(at)
    d, se, df = (np.empty(len(family)) for _ in range(3))
    for (kind, _, _), members in alike.items():
        base = on_gate_scale(kind, [family[at].base for at in members])
        new = on_gate_scale(kind, [family[at].new for at in members])
        floors = [floor for at in members if (floor := family[at].floor) is not None]
        columns = np.array(floors, dtype=np.float64).T  # variance, df: for all members or for none
        extra = (columns[0], columns[1]) if floors else None
        found = change(base, new, interleaved=design in INTERLEAVED, floor=extra)
        d[members], se[members], df[members] = found.d, found.se, found.df
    return Change(d, se, df)


def _verdict(
    decision: Decision, at: int, design: Design, margin: float
) -> tuple[Verdict, str | None]:
    found = Verdict.UNSURE
    for verdict, hits in (
        (Verdict.SAME, decision.same),
        (Verdict.FASTER, decision.faster),
        (Verdict.SLOWER, decision.slower),  # the gravest has the last word
    ):
        if hits[at]:
            found = verdict
    if found is Verdict.UNSURE:
        return found, (
            f"neither shown slower by more than {100 * margin:.3g} % nor shown within "
            f"±{100 * SAME_WITHIN * margin:.3g} %"
        )
    if design is Design.UNKNOWN:
        text = f"{_looks(found)} two sessions without a noise floor cannot show it"
        return Verdict.UNSURE, text
    return found, None


def _test_name(tested: Tested, design: Design, se: float) -> str:
    sides = len(tested.base), len(tested.new)
    if se == 0:
        return "exact: nothing varies"
    if design in INTERLEAVED and min(sides) >= PAIRED_FROM:
        return f"paired t, {sides[0]} pairs"
    floor = " and noise floor" if tested.floor else ""
    return f"Welch t, {sides[0]} and {sides[1]} processes{floor}"

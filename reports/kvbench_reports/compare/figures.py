"""The figures of a finding as cells, and the order in which findings are read.

BASE and NEW have one unit and the digits that the interval of their change supports. Cells are
text without padding; nothing here knows of layout.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from kvbench.compare.record import Comparison, Finding, Kind, Verdict
from kvbench_reports.words import (
    NONE,
    Scale,
    count,
    digits_of,
    number,
    rate_scale,
    signed_percent,
    time_scale,
)

_FINE_MARGIN = 0.005  # a share; margins this small need a second decimal of a percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """What is printed of one finding; a tier has `of` where a metric has BASE and NEW."""

    base: str
    new: str
    unit: str
    change: str
    low: str
    high: str
    of: str = ""

    @property
    def empty(self) -> bool:
        """Nothing is known of this finding but its verdict."""
        return {self.base, self.new, self.change} == {NONE}


def ranked(comparison: Comparison) -> dict[Verdict, list[Finding]]:
    """Findings by verdict, worst first, also within one: what fails the gate, then by change."""
    found: dict[Verdict, list[Finding]] = {verdict: [] for verdict in Verdict}
    for finding in comparison.findings:
        found[finding.verdict].append(finding)
    for findings in found.values():
        findings.sort(key=_rank)
    return found


def decimals(findings: Iterable[Finding]) -> int:
    """Of changes in percent: one, and two where a margin is that small."""
    return 2 if min((each.margin for each in findings), default=1.0) < _FINE_MARGIN else 1


def cells_of(finding: Finding, places: int) -> Cells:
    """The cells of a finding; `places` are the decimals of a percentage."""
    unit, factor = scale_of(finding)
    digits = _digits(finding)
    base, new = (
        NONE if value is None else number(value / factor, digits)
        for value in (finding.base, finding.new)
    )
    return Cells(
        base=base,
        new=new,
        unit=unit if (base, new) != (NONE, NONE) else "",
        change=signed_percent(finding.change, places),
        low=signed_percent(finding.low, places),
        high=signed_percent(finding.high, places),
        of=count(len(finding.members), "metric") if finding.members else "",
    )


def scale_of(finding: Finding) -> Scale:
    """The one unit for both sides of a finding; a tier has none."""
    values = [value for value in (finding.base, finding.new) if value is not None]
    if finding.kind is Kind.RATE:
        return rate_scale(values)
    return time_scale(values) if finding.kind is Kind.P99 else ("", 1.0)


def _rank(finding: Finding) -> tuple[bool, float, bool, str]:
    change = finding.change if finding.change is not None else 0.0
    if finding.verdict is Verdict.FASTER:
        change = -change  # the largest speed-up is what one wants to see of these
    return not finding.fails, -change, finding.kind is not Kind.TIER, finding.id


def _digits(finding: Finding) -> int:
    """Of BASE and NEW: what a ratio with this interval supports."""
    change, low, high = finding.change, finding.low, finding.high
    if change is None or low is None or high is None or not math.isfinite(high - low):
        return digits_of(1.0, None, None)
    half_width = max(high - change, change - low) / (1 + change) if change > -1 else 1.0
    value = finding.new or finding.base or 1.0
    return digits_of(value, value * (1 - half_width), value * (1 + half_width))

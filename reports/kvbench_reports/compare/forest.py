"""The forest plot in characters: a change and its interval on an axis that all rows share.

The axis is linear in the share of time, slower to the right. It holds every change up to twice as
slow; an interval that leaves it ends in an arrow, so that one wild row does not flatten the rest.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from kvbench.compare.record import Finding

ZERO, MARGIN, POINT = "│", "┊", "●"
LEGEND = f"{POINT} change  ├─┤ 95 % interval  {ZERO} no change  {MARGIN} margin  ► goes on"
_LEAST, _MOST = -0.5, 1.0  # shares of time; beyond, an arrow says enough
_NARROW = 0.001  # a share on either side that an axis shows at least: nothing smaller matters
_USUAL = 2.0  # intervals are shown up to so many times the middle one
_BEYOND_MARGIN = 1.25
_STEPS = tuple(digit * 10.0**power for power in (-5, -4, -3, -2, -1) for digit in (1, 2, 5))
_SIDES = ("faster", "slower")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """From `low` to `high`, shares of time, over `width` columns."""

    low: float
    high: float
    width: int

    def column(self, share: float) -> int:
        """Where a share is drawn; what lies outside, at the end."""
        place = (share - self.low) / (self.high - self.low) * (self.width - 1)
        return round(min(max(place, 0.0), self.width - 1.0))


def axis_of(findings: Iterable[Finding], width: int) -> Axis | None:
    """An axis for these findings; None when none was tested."""
    tested = [each for each in findings if each.change is not None and math.isfinite(each.change)]
    if not tested:
        return None
    changes = [each.change for each in tested if each.change is not None]
    intervals = [(each.low, each.high) for each in tested if _drawable(each)]
    ends = [(low, high) for low, high in intervals if low is not None and high is not None]
    usual = _USUAL * median([max(-low, high) for low, high in ends] or [0.0])
    margin = _BEYOND_MARGIN * max(each.margin for each in tested)
    low = min([-margin, -_NARROW, *changes, *(max(low, -usual) for low, _ in ends)])
    high = max([margin, _NARROW, *changes, *(min(high, usual) for _, high in ends)])
    least, most = max(low, _LEAST), min(high, _MOST)
    pad = 0.02 * (most - least)
    return Axis(low=least - pad, high=most + pad, width=width)


def bar(finding: Finding, axis: Axis) -> str:
    """A finding on the axis, without blanks behind; empty when it was not tested."""
    if finding.change is None or not math.isfinite(finding.change):
        return ""
    cells = [" "] * axis.width
    zero = axis.column(0.0)
    cells[zero] = ZERO
    if _drawable(finding) and finding.low is not None and finding.high is not None:
        first, last = axis.column(finding.low), axis.column(finding.high)
        cells[first : last + 1] = "─" * (last - first + 1)
        if first < zero < last:
            cells[zero] = "┼"
        _mark_margin(cells, finding, axis)
        cells[first] = "◄" if finding.low < axis.low else "├"
        cells[last] = "►" if finding.high > axis.high else "┤"
    else:
        _mark_margin(cells, finding, axis)
    if axis.low <= finding.change <= axis.high:
        cells[axis.column(finding.change)] = POINT
    else:
        cells[axis.column(finding.change)] = "►" if finding.change > axis.high else "◄"
    return "".join(cells).rstrip()


def scale(axis: Axis) -> tuple[str, str]:
    """Two lines above the bars: ticks in percent, and which side is which."""
    step = next((step for step in _STEPS if _has_room(axis, step)), _STEPS[-1])
    labels = [" "] * axis.width
    # Those at the ends may be moved inwards, onto others: the ones near zero come first.
    for tick in sorted(_ticks(axis, step), key=abs):
        _place(labels, _tick(tick * step), axis.column(tick * step))
    sides = [" "] * axis.width
    zero = axis.column(0.0)
    sides[zero] = ZERO
    faster, slower = _SIDES
    if zero > len(faster):
        sides[zero - 1 - len(faster) : zero - 1] = faster
    if zero + 1 + len(slower) < axis.width:
        sides[zero + 2 : zero + 2 + len(slower)] = slower
    return "".join(labels).rstrip(), "".join(sides).rstrip()


def _mark_margin(cells: list[str], finding: Finding, axis: Axis) -> None:
    place = axis.column(finding.margin)
    if finding.margin <= axis.high and place != axis.column(0.0):
        cells[place] = MARGIN


def _place(cells: list[str], text: str, centre: int) -> None:
    """Write a label around its column, unless it would touch another one."""
    first = min(max(centre - len(text) // 2, 0), len(cells) - len(text))
    if first < 0:
        return
    around: Sequence[str] = cells[max(first - 1, 0) : first + len(text) + 1]
    if not "".join(around).strip():
        cells[first : first + len(text)] = text


def _tick(share: float) -> str:
    return f"{100 * share:+.4g}" if share else "0"


def _ticks(axis: Axis, step: float) -> range:
    """The multiples of a step that lie on the axis."""
    return range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)


def _has_room(axis: Axis, step: float) -> bool:
    """Whether all labels stand apart."""
    apart = math.floor(step / (axis.high - axis.low) * (axis.width - 1))
    if apart == 0:
        return False
    ticks = _ticks(axis, step)
    return apart > max((len(_tick(tick * step)) for tick in (*ticks[:1], *ticks[-1:])), default=0)


def _drawable(finding: Finding) -> bool:
    ends = (finding.low, finding.high)
    return all(end is not None and math.isfinite(end) for end in ends)

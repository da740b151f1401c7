"""What the formats for machines share: which figures may leave, under which name, in which words.

gha_bench and bmf feed services that draw a series for each name. A figure of a simulated device,
or of a run that was slowed on purpose, therefore carries that in its *name*: it can never continue
the series of a real machine. Takes records, returns text and numbers; knows nothing of any one
format.
"""

import math

from kvbench.compare.record import Comparison, Finding, Kind
from kvbench.measure.result import HAS_FIGURE, Caution, Report, Row, State
from kvbench.units import format_rate
from kvbench_reports.words import clean, number, short_percent, signed_percent, time_scale


def rate_of(row: Row) -> float | None:
    """Bytes per second, unless there are none or they must not be believed."""
    usable = row.state in HAS_FIGURE and row.bytes_per_s is not None and row.bytes_per_s > 0
    return row.bytes_per_s if usable else None


def latencies_of(row: Row) -> dict[str, float]:
    """`p50` and `p99` of single operations in seconds, those that the row has."""
    if row.state not in HAS_FIGURE or row.latency_s is None:
        return {}
    found = {"p50": row.latency_s.p50, "p99": row.latency_s.p99}
    return {name: value for name, value in found.items() if value is not None and value > 0}


def bounds(finding: Finding) -> tuple[float, float] | None:
    """The 95 % interval of the change, laid around NEW's value: bytes per second or seconds.

    It holds the doubt about BASE too, since it is the interval that the verdict rests on. None
    for a finding that was not tested.
    """
    new, change, low, high = finding.new, finding.change, finding.low, finding.high
    if new is None or change is None or low is None or high is None:
        return None
    if min(change, low) <= -1 or not math.isfinite(high):  # processes that differ beyond measure
        return None
    least, most = (1 + low) / (1 + change), (1 + high) / (1 + change)  # in time
    return (new * least, new * most) if finding.kind is Kind.P99 else (new / most, new / least)


def row_name(report: Report, row: Row, percentile: str = "") -> str:
    """The name of a row's figure: its id, the percentile, and marks where it is not plainly so."""
    simulated = row.state is State.SIMULATED or report.simulated is not None
    return _marked(
        f"{clean(row.id)} {percentile}".rstrip(),
        simulated=simulated,
        injected=bool(report.inject),
    )


def finding_name(comparison: Comparison, finding: Finding) -> str:
    """The name of NEW's figure in a finding, the one that `row_name` gives it in a report."""
    return _marked(
        clean(finding.id),
        simulated=comparison.simulated is not None,
        injected=bool(comparison.new.inject),
    )


def simulated_text(profile: str) -> str:
    """`simulated device (profile nvme-gen4), true of no machine`."""
    return f"simulated device (profile {clean(profile)}), true of no machine"


def inject_text(inject: dict[str, float]) -> str:
    """`slowed on purpose: nvme.read*=+8%`; nothing when nothing was."""
    each = (f"{clean(glob)}={100 * share:+.3g}%" for glob, share in inject.items())
    return f"slowed on purpose: {', '.join(each)}" if inject else ""


def origins(comparison: Comparison) -> list[str]:
    """What a reader has to know of both sides before believing a change: simulated, injected."""
    sides = (("BASE", comparison.base), ("NEW", comparison.new))
    simulated = [] if comparison.simulated is None else [simulated_text(comparison.simulated)]
    injected = ((name, side.inject) for name, side in sides if side.inject)
    return [*simulated, *(f"{name} was {inject_text(inject)}" for name, inject in injected)]


def change_text(finding: Finding) -> str | None:
    """`+14.5% in time, 95% interval +9.8% to +19.4%, margin 5%`; None when it was not tested."""
    if finding.change is None:
        return None
    parts = [f"{_signed(finding.change)} in time"]
    if finding.low is not None and finding.high is not None:
        parts.append(f"95% interval {_signed(finding.low)} to {_signed(finding.high)}")
    return ", ".join([*parts, f"margin {short_percent(finding.margin)}%"])


def values_text(finding: Finding) -> str | None:
    """`base 6.5 GB/s, new 5.68 GB/s`, or the side that there is; None for a tier."""
    sides = (("base", finding.base), ("new", finding.new))
    known = [f"{side} {_value(finding, value)}" for side, value in sides if value is not None]
    return ", ".join(known) or None


def evidence_text(finding: Finding) -> str | None:
    """What stands behind the verdict: the test, its p, its place in the family, what it can see."""
    parts = [clean(finding.test)] if finding.test else []
    if finding.p_slower_adjusted is not None:
        parts.append(f"p of slower {finding.p_slower_adjusted:.2g} by Holm")
    if finding.rank is not None and finding.tests is not None:
        parts.append(f"rank {finding.rank} of {finding.tests}")
    if finding.mde is not None:
        parts.append(f"could have seen {_signed(finding.mde)}")
    return ", ".join(parts) or None


def time_text(value_s: float) -> str:
    """A time with three digits in its own unit: `7.70 ms`."""
    unit, factor = time_scale([value_s])
    return f"{number(value_s / factor)} {unit}"


def caution_text(caution: Caution) -> str:
    """`wide_interval: processes differ …. Fix: kvbench run …`, on one line."""
    fix = f". Fix: {clean(caution.fix)}" if caution.fix else ""
    return f"{clean(caution.code)}: {clean(caution.message)}{fix}"


def _marked(name: str, *, simulated: bool, injected: bool) -> str:
    marks = [mark for mark, is_so in (("simulated", simulated), ("injected", injected)) if is_so]
    return f"{name} ({', '.join(marks)})" if marks else name


def _value(finding: Finding, value: float) -> str:
    return time_text(value) if finding.kind is Kind.P99 else format_rate(value)


def _signed(share: float) -> str:
    return f"{signed_percent(share)}%"

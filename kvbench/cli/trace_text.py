"""Statistics of a trace and of a twin as lines of at most 60 columns, in ASCII."""

from typing import TYPE_CHECKING

from kvbench.sim.trace.goodness import Goodness
from kvbench.sim.trace.stats import Reuse, Spread, Stats

if TYPE_CHECKING:
    from kvbench.sim.columns import Columns
    from kvbench.sim.curve import Curve

WIDTH = 60
_PLOT_ROWS = 10
_PLOT_COLUMNS = 50
_AXIS = 8  # columns left of the plot
_DEFINITIONS = {
    "block": "block",
    "token": "token",
    "half_block": "half-block",
    "mean_of_requests_token": "mean of requests, tokens",
    "mean_of_requests_block": "mean of requests, blocks",
    "full_blocks_only": "full blocks only",
    "last_block_never": "last block never hits",
}


def stats_text(stats: Stats, curve: "Curve | None") -> str:
    """All of it, as a user reads it."""
    lines = [
        f"{stats.name}"[:WIDTH],
        f"{stats.requests:,} requests in {stats.duration_s:,.1f} s, {stats.rate_per_s:.3g}/s",
        f"{stats.distinct_timestamps:,} distinct timestamps",
        "",
        f"{'':18}{'mean':>10}{'p50':>8}{'p90':>8}{'p99':>8}{'max':>8}",
        _spread("input tokens", stats.input_tokens),
        _spread("output tokens", stats.output_tokens),
    ]
    if stats.reuse is None or curve is None:
        lines += ["", "Lengths only: what is used again cannot be told."]
    else:
        lines += _reuse_lines(stats.reuse)
        lines += ["", "LRU hit rate (block) against capacity in blocks", *_plot(curve)]
    return "\n".join([*lines, *(f"note: {note}" for note in stats.notes)])


def made_text(twin: "Columns", out: str, source: str) -> str:
    """What was written."""
    return (
        f"{out}: {twin.requests:,} made-up requests,\n"
        f"{float(twin.arrival_s[-1]):,.1f} s, {len(twin.ids):,} blocks, "
        f"{twin.unique_blocks:,} different\nmade from: {source}"
    )


def fit_text(fit: Goodness, requests: int) -> str:
    """Goodness of fit."""
    names = {
        "input_tokens": "input tokens",
        "output_tokens": "output tokens",
        "inter_arrival": "time between arrivals",
        "reuse_distance": "reuse distance",
        "reuse_time": "reuse time",
        "first_reuse_time": "time to first reuse",
    }
    lines = ["", f"Goodness of fit over {requests:,} requests; KS distance, 0 is alike"]
    for field, name in names.items():
        value: float | None = getattr(fit, field)
        lines.append(f"  {name:<34}{'-' if value is None else f'{value:.3f}':>8}")
    if fit.ideal is None or fit.ideal_of_twin is None or fit.curve_difference is None:
        return "\n".join([*lines, "Nothing is used again in one of the two."])
    lines.append(f"  {'LRU curve, largest difference':<34}{fit.curve_difference:>8.3f}")
    lines += ["Ideal hit rate", f"  {'':<34}{'trace':>8}{'twin':>8}"]
    for field, name in _DEFINITIONS.items():
        one, other = getattr(fit.ideal, field), getattr(fit.ideal_of_twin, field)
        lines.append(f"  {name:<34}{one:>8.4f}{other:>8.4f}")
    return "\n".join(lines)


def _spread(name: str, spread: Spread) -> str:
    return (
        f"{name:<18}{spread.mean:>10,.1f}{spread.p50:>8,.0f}{spread.p90:>8,.0f}"
        f"{spread.p99:>8,.0f}{spread.max:>8,.0f}"
    )


def _reuse_lines(reuse: Reuse) -> list[str]:
    first_s = reuse.first_reuse_s
    lines = [
        "",
        f"Blocks of {reuse.block_tokens} tokens",
        f"  {'references':<34}{reuse.references:>14,}",
        f"  {'different':<34}{reuse.unique_blocks:>14,}",
        f"  {'different first blocks':<34}{reuse.distinct_first_blocks:>14,}",
        f"  {'ever used again':<34}{reuse.reused_share:>14.2%}",
        f"  {'used once':<34}{1 - reuse.reused_share:>14.2%}",
        f"  {'reuses of the 1 % most used':<34}{reuse.top_1_percent_share:>14.2%}",
        f"  {'reuses of the 10 % most used':<34}{reuse.top_10_percent_share:>14.2%}",
    ]
    if first_s is not None:
        text = f"{first_s.p50:,.1f} / {first_s.p90:,.1f}"
        lines.append(f"  {'first reuse after s, p50 / p90':<34}{text:>14}")
    lines += ["", "Ideal hit rate (nothing is evicted), by definition"]
    for field, name in _DEFINITIONS.items():
        lines.append(f"  {name:<34}{getattr(reuse.ideal, field):>14.4f}")
    lines += ["", f"LRU{'capacity':>15}{'block':>12}{'token':>12}{'half-block':>12}"]
    for each in reuse.curve:
        lines.append(
            f"{each.capacity_blocks:>18,}{each.block:>12.4f}{each.token:>12.4f}"
            f"{each.half_block:>12.4f}"
        )
    for share, blocks in reuse.needed_blocks.items():
        lines.append(f"  {share} of the ideal block hits needs {blocks:,} blocks")
    return lines


def _plot(curve: "Curve") -> list[str]:
    """Logarithmic in capacity from 1 block to all, linear in hit rate from 0."""
    most = len(curve.block_hits) - 1
    steps = [most ** (i / (_PLOT_COLUMNS - 1)) for i in range(_PLOT_COLUMNS)]
    rates = [curve.at(round(step)).block for step in steps]
    top = max(rates[-1], 1e-9)
    heights = [round(rate / top * _PLOT_ROWS) for rate in rates]
    lines: list[str] = []
    for row in range(_PLOT_ROWS, 0, -1):
        label = f"{top * row / _PLOT_ROWS:6.3f} |" if row % 2 == 0 else "       |"
        lines.append((label + "".join("#" if h >= row else " " for h in heights)).rstrip())
    lines.append(" 0.000 +" + "-" * _PLOT_COLUMNS)
    end = f"{most:,}"
    return [*lines, " " * _AXIS + "1" + end.rjust(_PLOT_COLUMNS - 1)]

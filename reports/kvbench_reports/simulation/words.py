"""What a sweep shows, in sentences: what each step changes, and from where on nothing does.

Every sentence follows from the figures, none recommends. A difference within `NOTHING` is called
nothing, since one trace and one seed show no interval; a sweep over `seed` shows a range.
"""

import itertools
from collections.abc import Iterator, Sequence

from kvbench.sim.options import Axis, Value
from kvbench.sim.record import Run, Simulation, Summary
from kvbench_reports.simulation.figures import (
    Metric,
    figure_words,
    metrics_of,
    value_words,
)
from kvbench_reports.words import NONE, count, number

NOTHING = 0.02  # of the larger of two figures
_NOTHING = f"{100 * NOTHING:g} %"
MOST_SENTENCES = 12
MOST_RANKED = 5  # values of one option in a sentence: the best and the worst
_TIMES_FROM = 2.0  # a ratio, from which "4.1 times" reads better than "+310 %"
_NO_INTERVAL = "one trace and one seed: how much another would change is not known"
_ARROW = " \N{RIGHTWARDS ARROW} "

Group = list[tuple[Value, Summary]]  # along one axis, all else alike


def what_if(simulation: Simulation) -> list[str]:
    """The sentences of a sweep; none for a single run."""
    metrics = metrics_of(simulation)
    sentences: list[str] = []
    for axis in simulation.sweep:
        for others, group in _groups(simulation.runs, axis):
            if len(group) > 1:
                sentences += [f"{others}{each}" for each in _sentences(axis, group, metrics)]
    if not sentences:
        return []
    more = len(sentences) - MOST_SENTENCES
    shown = sentences[:MOST_SENTENCES]
    if more > 0:
        shown.append(f"{count(more, 'more comparison')} of this kind: see the table")
    if front := pareto_sentence(simulation):
        shown.append(front)
    if not any(axis.option == "seed" for axis in simulation.sweep):
        shown.append(_NO_INTERVAL)
    return shown


def pareto(simulation: Simulation) -> list[int]:
    """Runs that no other one beats in both cost and mean TTFT, cheapest first."""
    points = [
        (run.summary.cost.per_million_tokens, run.summary.ttft_s.mean, index)
        for index, run in enumerate(simulation.runs)
        if run.summary and run.summary.cost and run.summary.ttft_s.mean is not None
    ]
    front: list[int] = []
    best = float("inf")
    for _, ttft_s, index in sorted(points):
        if ttft_s < best:
            front.append(index)
            best = ttft_s
    return front


def pareto_sentence(simulation: Simulation) -> str:
    """How many runs are on the front; empty without prices."""
    front = pareto(simulation)
    if not front:
        return ""
    of = sum(run.summary is not None for run in simulation.runs)
    return (
        f"cost against mean TTFT: {len(front)} of {count(of, 'run')} "
        f"{'is' if len(front) == 1 else 'are'} beaten by no other in both"
    )


def _groups(runs: Sequence[Run], axis: Axis) -> Iterator[tuple[str, Group]]:
    """Runs that differ in one option alone, in the order of its values; failed ones left out."""
    found: dict[str, Group] = {}
    for run in runs:
        others = ", ".join(
            f"{name} {value_words(value)}"
            for name, value in run.changed.items()
            if name != axis.option
        )
        if run.summary is not None:
            group = found.setdefault(f"{others}: " if others else "", [])
            group.append((run.changed[axis.option], run.summary))
    yield from found.items()


def _sentences(axis: Axis, group: Group, metrics: Sequence[Metric]) -> list[str]:
    if axis.option == "seed":
        return [_seeds(group, metrics)]
    numbers = [value for value, _ in group if _is_number(value)]
    if len(numbers) == len(group):
        return _steps(axis.option, sorted(group, key=lambda each: float(each[0] or 0)), metrics)
    return [_ranked(axis.option, group, metrics)]


def _steps(option: str, group: Group, metrics: Sequence[Metric]) -> list[str]:
    """`dram_gib 64 → 256: hit rate 21 % → 33 %, …`; `beyond 256 nothing changes by more …`."""
    flat = _flat_from(group, metrics)
    first, last = value_words(group[0][0]), value_words(group[-1][0])
    if flat == 0:
        return [f"{option} {first} to {last}: nothing changes by more than {_NOTHING}"]
    steps: list[str] = []
    for (low, before), (high, after) in itertools.pairwise(group[: flat + 1]):
        changed = [each for each in metrics if _differs(each.of(before), each.of(after))]
        named = [each for each in changed if each.headline] or changed
        changes = [f"{each.words} {_from_to(each, before, after)}" for each in named]
        only = "only " if changed and len(changed) == 1 < len(metrics) else ""
        said = only + ", ".join(changes) or f"nothing changes by more than {_NOTHING}"
        steps.append(f"{option} {value_words(low)}{_ARROW}{value_words(high)}: {said}")
    if flat < len(group) - 1:
        flat_value = value_words(group[flat][0])
        steps.append(f"beyond {option} {flat_value} nothing changes by more than {_NOTHING}")
    return steps


def _from_to(metric: Metric, before: Summary, after: Summary) -> str:
    ends = (metric.of(before), metric.of(after))
    return _ARROW.join(NONE if end is None else figure_words(metric, end) for end in ends)


def _flat_from(group: Group, metrics: Sequence[Metric]) -> int:
    """The first place from which on no metric of a later place differs from there."""
    for index in range(len(group)):
        here = group[index][1]
        if not any(
            _differs(metric.of(here), metric.of(later))
            for _, later in group[index + 1 :]
            for metric in metrics
        ):
            return index
    return len(group) - 1


def _ranked(option: str, group: Group, metrics: Sequence[Metric]) -> str:
    """`router by mean TTFT: a 2.2 s; b 2.25 s (as a, within 2 %); c 9.1 s (4.1 times)`."""
    metric = next((each for each in metrics if each.key == "ttft_mean"), None)
    known = [(value, figure, it) for value, it in group if metric and (figure := metric.of(it))]
    if metric is None or not known:
        return f"{option}: no run has a mean TTFT"
    known.sort(key=lambda each: each[1])
    best_value, best, _ = known[0]
    hits = next((each for each in metrics if each.key == "block"), None)
    parts: list[str] = []
    for value, figure, summary in known:
        aside = [] if value is best_value else [_against(figure, best, value_words(best_value))]
        if hits and (rate := hits.of(summary)) is not None:
            aside.append(f"{hits.words} {figure_words(hits, rate)}")
        text = f"{value_words(value)} {figure_words(metric, figure)}"
        parts.append(f"{text} ({', '.join(aside)})" if aside else text)
    if len(parts) > MOST_RANKED:
        left_out = len(parts) - MOST_RANKED
        parts[MOST_RANKED - 1 : -1] = [f"{left_out} more between"]
    return f"{option} by {metric.words}: {'; '.join(parts)}"


def _against(figure: float, best: float, name: str) -> str:
    if not _differs(figure, best):
        return f"as {name}, within {_NOTHING}"
    ratio = figure / best
    return f"{number(ratio)} times" if ratio >= _TIMES_FROM else f"{100 * (ratio - 1):+.0f} %"


def _seeds(group: Group, metrics: Sequence[Metric]) -> str:
    parts: list[str] = []
    for metric in (each for each in metrics if each.headline):
        values = [value for _, it in group if (value := metric.of(it)) is not None]
        if values:
            low, high = (figure_words(metric, end) for end in (min(values), max(values)))
            parts.append(f"{metric.words} {low if low == high else f'{low} to {high}'}")
    return f"over {count(len(group), 'seed')}: {', '.join(parts) or NONE}"


def _differs(one: float | None, two: float | None) -> bool:
    if one is None or two is None:
        return one is not two
    return abs(one - two) > NOTHING * max(abs(one), abs(two))


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

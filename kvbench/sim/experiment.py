"""A base, what is swept, and a trace become a `Simulation`: scenarios, runs, the record.

Where the runs are computed is the caller's choice. Prints and writes nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvbench import __version__
from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.curve import lru_curve
from kvbench.sim.options import Axis, Options, Prices, Value, grid
from kvbench.sim.record import Ideal, Run, Simulation, State, Traffic
from kvbench.sim.study import Study, check_names, make_study
from kvbench.sim.sweep import Done, Job, cut

_IDEAL_POINTS = 60  # of a curve, evenly on a logarithmic axis
RunAll = Callable[[Columns, Sequence[Job]], list[Done]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is to be simulated."""

    columns: Columns
    generated: bool  # the trace is a twin that kvbench makes up
    options: Options
    axes: tuple[Axis, ...] = ()
    prices: Prices | None = None
    request: int | None = None  # whose critical path is wanted of every run
    notes: tuple[str, ...] = ()


def run_experiment(experiment: Experiment, run_all: RunAll) -> Simulation:
    """All runs. One of a sweep that fails is a run with its reason.

    Raises:
        UsageError: a value is out of range, or a single run fails.
    """
    columns = experiment.columns
    planned = grid(experiment.options.check(), experiment.axes)
    for _, options in planned:
        check_names(options)
    studies = [_study(options, columns, alone=not experiment.axes) for _, options in planned]
    jobs = [
        Job(
            scenario=study.scenario,
            requests=options.requests,
            rate_scale=options.rate_scale,
            dollars_per_hour=experiment.prices.per_hour(options) if experiment.prices else None,
            request=experiment.request,
        )
        for (_, options), study in zip(planned, studies, strict=True)
        if isinstance(study, Study)
    ]
    done = iter(run_all(columns, jobs))
    runs = [
        _run(changed, study, next(done))
        if isinstance(study, Study)
        else Run(changed=_shown(changed), state=State.FAILED, reason=study)
        for (changed, _), study in zip(planned, studies, strict=True)
    ]
    if not experiment.axes and runs[0].state is State.FAILED:
        raise UsageError(runs[0].reason)
    return Simulation(
        kvbench_version=__version__,
        trace=traffic(columns, generated=experiment.generated),
        options=msgspec.structs.replace(
            experiment.options, tiers=_without_directory(experiment.options.tiers)
        ),
        prices=experiment.prices,
        sweep=[
            Axis(option=axis.option, values=[_shown_value(axis.option, x) for x in axis.values])
            for axis in experiment.axes
        ],
        notes=[*experiment.notes, *columns.notes, *_notes(columns)],
        ideal=_ideal(cut(columns, experiment.options.requests, 1.0)),
        runs=runs,
    )


def traffic(columns: Columns, *, generated: bool) -> Traffic:
    """A trace in a few figures."""
    return Traffic(
        name=columns.name,
        digest=columns.digest,
        generated=generated,
        block_tokens=columns.block_tokens,
        has_blocks=columns.has_blocks,
        requests=columns.requests,
        duration_s=float(columns.arrival_s[-1] - columns.arrival_s[0]),
        input_tokens=int(columns.input_tokens.sum(dtype="int64")),
        output_tokens=int(columns.output_tokens.sum(dtype="int64")),
        unique_blocks=columns.unique_blocks,
    )


def _study(options: Options, columns: Columns, *, alone: bool) -> Study | str:
    """The study, or in a sweep the reason why there is none."""
    try:
        return make_study(options, cut(columns, options.requests, 1.0))
    except UsageError as error:
        if alone:
            raise
        return str(error)


def _run(changed: dict[str, Value], study: Study, done: Done) -> Run:
    scenario = study.scenario
    capacity = {tier.name: tier.capacity_blocks for tier in scenario.tiers}
    if scenario.central is not None:
        capacity["central"] = scenario.central.capacity_blocks
    return Run(
        changed=_shown(changed),
        state=State.SIMULATED if done.summary is not None else State.FAILED,
        reason=done.reason,
        calibrations=list(study.calibrations),
        outside=list(study.outside),
        capacity_blocks=capacity,
        summary=done.summary,
        request=done.request,
    )


def _notes(columns: Columns) -> list[str]:
    if columns.has_blocks:
        return []
    return [
        f"{columns.name} has lengths and no blocks: nothing is used again, so tiers, architecture "
        "and what a router knows of caches change nothing"
    ]


def _ideal(columns: Columns) -> Ideal | None:
    if not columns.has_blocks:
        return None
    curve = lru_curve(columns)
    most = columns.unique_blocks
    capacities = sorted({round(most ** (at / _IDEAL_POINTS)) for at in range(_IDEAL_POINTS + 1)})
    return Ideal(
        capacity_blocks=capacities,
        block_hit_rate=[curve.at(capacity).block for capacity in capacities],
    )


def _shown(changed: dict[str, Value]) -> dict[str, Value]:
    return {name: _shown_value(name, value) for name, value in changed.items()}


def _shown_value(name: str, value: Value) -> Value:
    return _without_directory(value) if name == "tiers" and isinstance(value, str) else value


def _without_directory(tiers: str | None) -> str | None:
    """Results are shared: they name no path of this machine."""
    return None if tiers is None else Path(tiers).name

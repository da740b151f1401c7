"""`kvbench ab`: two sides measured in turns in one session, and the verdict on their difference."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvbench.cli import compare, measuring
from kvbench.errors import InterruptedRunError, NothingMeasuredError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

    from kvbench.cli.measuring import Request
    from kvbench.measure.pairs import PairedSession, Stopping

MOST_PAIRS = 30
HALF_WIDTH = "2%"
BUDGET_S = 1800.0
SideText = Annotated[
    str,
    typer.Argument(
        metavar="SIDE",
        help="env:VAR=value … (env: for none), python:VENV/bin/python or git:REF of kvbench.",
    ),
]


def ab(  # noqa: PLR0913  the options of the command are its interface
    a: SideText,
    b: SideText,
    suite: measuring.SuiteName,
    *,
    model: measuring.Model = measuring.DEFAULT_MODEL,
    directory: measuring.Directory = Path(),
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="Reports NAME.base.json and NAME.new.json; default kvbench-ab-SUITE.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(min=5, max=1000, help="Most pairs of fresh worker processes for each case."),
    ] = MOST_PAIRS,
    precision: Annotated[
        str,
        typer.Option(
            help="Pairs of a case end once they know B/A to ± this, at 95 %; 0 for all of them."
        ),
    ] = HALF_WIDTH,
    time_budget: Annotated[
        float,
        typer.Option(
            min=1, help="Seconds for all cases; then 10 pairs for each that is left, no more."
        ),
    ] = BUDGET_S,
    only: measuring.Only = None,
    time_limit: measuring.TimeLimit = None,
    data: measuring.Data = None,
    limit: measuring.LimitRates = None,
    kv_dtype: measuring.KvDtype = "bf16",
    block_size: measuring.BlockSize = 16,
    tp: measuring.TensorParallel = 1,
    simulate: measuring.Simulate = None,
    seed: measuring.Seed = None,
    inject: Annotated[
        list[str] | None,
        typer.Option(help="Slow matching cases of side B on purpose, such as 'nvme.*=+8%'."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the cases that the reports lack.")
    ] = False,
    margin: compare.Margin = None,
    strict: compare.Strict = False,
    all_: compare.All = False,
    format_: compare.Format = "table",
) -> None:
    """Measure A and B in turns, pair by pair in random order, and say whether B is slower.

    Pairs are added until B/A is known to --precision, never until a difference shows. What drifts
    meets both sides alike, so this sees far smaller changes than two separate runs.
    Exit status as of `kvbench compare`.
    """
    # Not at the top: --help needs none of it.
    from kvbench.compare.compare import Options
    from kvbench.compare.compare import compare as hold_against
    from kvbench.compare.metrics import parse_margins, parse_share
    from kvbench.measure.pairs import Stopping

    compare.check_format(format_)
    options = Options(margins=parse_margins(margin or ()), strict=strict)
    half_width = parse_share(precision)
    if half_width is None:
        raise UsageError(f"--precision {precision!r}: expected below 100 %, such as 2%")
    stopping = Stopping(half_width=half_width, budget_s=time_budget)
    asked = measuring.Asked(
        suite=suite,
        model=model,
        directory=directory,
        processes=processes,
        only=only,
        time_limit=time_limit,
        data=data,
        limit=limit,
        kv_dtype=kv_dtype,
        block_size=block_size,
        tp=tp,
        simulate=simulate,
        seed=seed,
        inject=inject,
    )
    request = measuring.make_request(asked)
    paths = _paths(out or Path(f"kvbench-ab-{request.suite.name}"))
    session = _measure(request, (a, b), paths, stopping, resume=resume)
    if session.measured == 0:
        raise NothingMeasuredError(
            f"no case has a figure on both sides: `kvbench report {paths[1]}` says why"
        )
    names = str(paths[0]), str(paths[1])
    compare.finish(
        hold_against(session.base, session.new, names, options), format_, None, all_=all_
    )


def _paths(out: Path) -> tuple[Path, Path]:
    stem = out.name.removesuffix(".json")
    return out.with_name(f"{stem}.base.json"), out.with_name(f"{stem}.new.json")


def _measure(
    request: "Request",
    sides: tuple[str, str],
    paths: tuple[Path, Path],
    stopping: "Stopping",
    *,
    resume: bool,
) -> "PairedSession":
    """Both reports, on disk after each case."""
    from kvbench.measure.pairs import PairedSession
    from kvbench.measure.side import parse_side

    for path in paths:
        measuring.check_writable(path)
    base, new = (parse_side(side) for side in sides)
    if base.python != new.python and base.file == new.file:
        typer.echo("kvbench: both interpreters import one and the same kvbench", err=True)
    cases, setting = measuring.prepare(request)
    settings = replace(setting, side=base, inject={}), replace(setting, side=new)
    session = PairedSession(request.suite.name, cases, settings, sys.argv[1:], stopping)
    if resume and all(path.exists() for path in paths):
        session.resume(*paths)
    with (
        measuring.scratch_for(request, session.pending, setting) as scratch,
        _interruption(session, paths),
    ):
        if scratch is not None:
            session.use(scratch)
        _watch(session, request, paths)
    return session


def _watch(session: "PairedSession", request: "Request", paths: tuple[Path, Path]) -> None:
    from kvbench.cli.live import make_live

    processes = 2 * request.plan.processes
    with make_live(session.pending, replace(request.plan, processes=processes)) as live:
        for event in session.run(*paths):
            live.show(event)


@contextlib.contextmanager
def _interruption(
    session: "PairedSession", paths: tuple[Path, Path]
) -> "Generator[None, None, None]":
    """Say how to go on."""
    try:
        yield
    except InterruptedRunError as error:
        total = len(session.cases)
        done = total - len(session.pending)
        if not done:
            raise
        raise InterruptedRunError(
            error.number,
            f": {done} of {total} cases are in {paths[0]} and {paths[1]}; repeat the command with "
            "--resume to go on",
        ) from None

"""`kvbench run`: measure a suite, show it live, keep a report, print the tables."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvbench.cli import measuring
from kvbench.errors import NothingMeasuredError

if TYPE_CHECKING:
    from kvbench.cli.measuring import Request


def run(  # noqa: PLR0913  the options of the command are its interface
    suite: measuring.SuiteName,
    *,
    model: measuring.Model = measuring.DEFAULT_MODEL,
    directory: measuring.Directory = Path(),
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Report; default kvbench-SUITE.json here.")
    ] = None,
    processes: measuring.Processes = None,
    only: measuring.Only = None,
    time_limit: measuring.TimeLimit = None,
    data: measuring.Data = None,
    limit: measuring.LimitRates = None,
    kv_dtype: measuring.KvDtype = "bf16",
    block_size: measuring.BlockSize = 16,
    tp: measuring.TensorParallel = 1,
    simulate: measuring.Simulate = None,
    seed: measuring.Seed = None,
    inject: measuring.Inject = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the cases that -o has no row of.")
    ] = False,
) -> None:
    """Measure one suite in fresh worker processes and write a report after each case."""
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
    report_path = out or Path(f"kvbench-{request.suite.name}.json")
    if _measure(request, report_path, resume=resume) == 0:
        raise NothingMeasuredError(
            "no row holds a figure: the reasons stand in the table; `kvbench doctor` shows what "
            "this machine lacks"
        )


def _measure(request: "Request", report_path: Path, *, resume: bool) -> int:
    """Measure, keep the report, print the tables; how many rows hold a figure."""
    # Not at the top: --help needs none of it.
    from kvbench.cli.report import stdout_console
    from kvbench.measure.session import Session
    from kvbench_reports import table

    cases, setting = measuring.prepare(request)
    measuring.check_writable(report_path)
    session = Session(request.suite.name, cases, setting, sys.argv[1:])
    if resume and report_path.exists():
        session.resume(report_path)
    with measuring.scratch_for(request, session.pending, setting) as scratch:
        if scratch is not None:
            session.use(scratch)
        measuring.watch(session, report_path)
    table.show(session.report, stdout_console(), str(report_path))
    return session.measured

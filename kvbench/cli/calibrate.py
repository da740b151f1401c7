"""`kvbench calibrate`: the noise floor of this machine, from sessions of the same code."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvbench.cli import measuring
from kvbench.errors import UsageError

if TYPE_CHECKING:
    from kvbench.cli.measuring import Request
    from kvbench.measure.result import Report

LEAST_SESSIONS = 8  # when it measures itself; 5 given reports are accepted


def calibrate(  # noqa: PLR0913  the options of the command are its interface
    what: Annotated[
        list[str],
        typer.Argument(metavar="SUITE|REPORT…", help="A suite to repeat, or 5 reports or more."),
    ],
    *,
    sessions: Annotated[
        int, typer.Option(min=LEAST_SESSIONS, max=100, help="Sessions to measure.")
    ] = LEAST_SESSIONS,
    pause: Annotated[
        float,
        typer.Option(min=0, max=86_400, help="Seconds to wait between sessions: longer is truer."),
    ] = 0.0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the noise floor goes.")] = Path(
        "kvbench-noise.json"
    ),
    model: measuring.Model = measuring.DEFAULT_MODEL,
    directory: measuring.Directory = Path(),
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the sessions that are finished.")
    ] = False,
) -> None:
    """Repeat a suite in sessions and keep how far they lie apart, for `compare --noise`.

    The sessions' reports stay in a directory beside the noise floor, NAME.sessions.
    """
    # Not at the top: --help needs none of it.
    from kvbench.cli.output import check_replaceable, write_whole
    from kvbench.cli.report import stdout_console
    from kvbench.compare.noise import SCHEMA, encode_noise, foresee, make_noise
    from kvbench.compare.selfcheck import self_check
    from kvbench.measure.result import read_report
    from kvbench_reports import noise as renderer

    check_replaceable(out, SCHEMA)
    if all(word.endswith(".json") for word in what):
        reports = [(word, read_report(Path(word))) for word in what]
    elif len(what) > 1:
        raise UsageError(f"{' '.join(what)}: expected one suite, or reports that end in .json")
    else:
        asked = measuring.Asked(
            suite=what[0],
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
        )
        reports = _measure(measuring.make_request(asked), out, sessions, pause, resume=resume)
    noise = make_noise(reports)
    write_whole(out, encode_noise(noise))
    renderer.show(noise, foresee(noise), self_check(reports), stdout_console(), str(out))


def _measure(
    request: "Request", out: Path, sessions: int, pause_s: float, *, resume: bool
) -> "list[tuple[str, Report]]":
    """The sessions' reports, each on disk as soon as it is there."""
    from kvbench.compare.gate import MIN_PROCESSES
    from kvbench.measure.result import read_report
    from kvbench.measure.session import Session

    if request.plan.processes < MIN_PROCESSES:
        request = replace(request, plan=replace(request.plan, processes=MIN_PROCESSES))
    folder = out.with_name(f"{out.stem}.sessions")
    if folder.exists() and not resume and any(folder.glob("session-*.json")):
        raise UsageError(
            f"{folder} holds sessions of an earlier calibration: --resume keeps them, another -o "
            "or removing the directory starts anew"
        )
    folder.mkdir(parents=True, exist_ok=True)
    reports: list[tuple[str, Report]] = []
    for number in range(1, sessions + 1):
        path = folder / f"session-{number:02d}.json"
        kept = path.exists()
        if not kept or read_report(path).finished_at is None:
            if reports and pause_s:
                time.sleep(pause_s)
            typer.echo(f"session {number} of {sessions}", err=True)
            cases, setting = measuring.prepare(replace(request, seed=request.seed + number))
            session = Session(request.suite.name, cases, setting, sys.argv[1:])
            if kept:
                session.resume(path)
            with measuring.scratch_for(request, session.pending, setting) as scratch:
                if scratch is not None:
                    session.use(scratch)
                measuring.watch(session, path)
        reports.append((str(path), read_report(path)))
    return reports

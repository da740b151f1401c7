"""`kvbench calibrate`: the noise floor of this machine, from sessions of the same code."""

import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvbench.cli import measuring
from kvbench.errors import InterruptedRunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Sized

    from kvbench.cli.measuring import Request
    from kvbench.measure.result import Report
    from kvbench.measure.session import Session

LEAST_SESSIONS = 8  # when it measures itself; 5 given reports are accepted
LEAST_PROCESSES = 5  # as `gate.MIN_PROCESSES`, whose import --help does not wait for


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
    processes: Annotated[
        int | None,
        typer.Option(
            min=LEAST_PROCESSES, max=1000, help="Fresh worker processes for each case of a session."
        ),
    ] = None,
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
        bool, typer.Option("--resume", help="Go on with the sessions that are there.")
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
    from kvbench.machine import redact_argument
    from kvbench.measure.result import read_report
    from kvbench_reports import noise as renderer

    check_replaceable(out, SCHEMA)
    command: list[str] = []
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
        command = [redact_argument(word) for word in sys.argv[1:]]
    noise = make_noise(reports, command)
    write_whole(out, encode_noise(noise))
    renderer.show(noise, foresee(noise), self_check(reports), stdout_console(), str(out))


def _measure(
    request: "Request", out: Path, sessions: int, pause_s: float, *, resume: bool
) -> "list[tuple[str, Report]]":
    """The sessions' reports, each on disk as soon as it is there."""
    from kvbench.measure.result import read_report

    request = _with_enough_processes(request)
    folder = out.with_name(f"{out.stem}.sessions")
    if folder.exists() and not resume and any(folder.glob("session-*.json")):
        raise UsageError(
            f"{folder} holds sessions of an earlier calibration: --resume keeps them, another -o "
            "or removing the directory starts anew"
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"session-{number:02d}.json" for number in range(1, sessions + 1)]
    # All of them before any measuring: one of another suite, plan, model or machine ends it here.
    begun: dict[Path, Session] = {}
    for number, path in enumerate(paths, 1):
        if path.exists():
            begun[path] = _session(request, number)
            begun[path].resume(path)
    finished = {
        path
        for path, session in begun.items()
        if not session.pending and read_report(path).finished_at is not None
    }
    with _interruption(finished, sessions, folder):
        for number, path in enumerate(paths, 1):
            if path in finished:
                continue
            if number > 1:
                time.sleep(pause_s)
            typer.echo(f"session {number} of {sessions}", err=True)
            session = begun.get(path) or _session(request, number)
            with measuring.scratch_for(request, session.pending, session.setting) as scratch:
                if scratch is not None:
                    session.use(scratch)
                measuring.watch(session, path)
            finished.add(path)
    return [(str(path), read_report(path)) for path in paths]


def _with_enough_processes(request: "Request") -> "Request":
    asked = request.plan.processes
    if asked >= LEAST_PROCESSES:
        return request
    typer.echo(
        f"kvbench: {LEAST_PROCESSES} processes for each case, not the {asked} of the suite "
        f"{request.suite.name}: a noise floor needs them",
        err=True,
    )
    return replace(request, plan=replace(request.plan, processes=LEAST_PROCESSES))


def _session(request: "Request", number: int) -> "Session":
    from kvbench.measure.session import Session

    cases, setting = measuring.prepare(replace(request, seed=request.seed + number))
    return Session(request.suite.name, cases, setting, sys.argv[1:])


@contextlib.contextmanager
def _interruption(finished: "Sized", sessions: int, folder: Path) -> "Generator[None, None, None]":
    """Say how to go on; before the first session is finished, `watch` says it of its rows."""
    try:
        yield
    except InterruptedRunError as error:
        if not finished:
            raise
        raise InterruptedRunError(
            error.number,
            f": {len(finished)} of {sessions} sessions are in {folder}; repeat the command with "
            "--resume to go on",
        ) from None

"""`kvbench run`: measure a suite, show it live, keep a report, print the tables."""

import contextlib
import math
import os
import secrets
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvbench.errors import InterruptedRunError, NothingMeasuredError, UsageError
from kvbench.units import MIB, format_bytes, parse_bytes, parse_rate

if TYPE_CHECKING:
    from kvbench.geometry import KVGeometry
    from kvbench.machine import Machine
    from kvbench.measure.runner import Setting
    from kvbench.measure.session import Session
    from kvbench.measure.simulated import Profile
    from kvbench.measure.suite import Plan, Suite

SEED_BITS = 31
LIMITED = ("hbm", "link", "dram", "nvme")  # link: GPU to host


def run(  # noqa: PLR0913  the options of the command are its interface
    suite: Annotated[str, typer.Argument(help="A suite of `kvbench list`, or a TOML file.")],
    *,
    model: Annotated[
        str, typer.Option(help="Preset, or the path of a Hugging Face config.json.")
    ] = "llama-3.1-8b",
    directory: Annotated[
        Path, typer.Option("--dir", help="Directory on the drive under test; made when missing.")
    ] = Path(),
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Report; default kvbench-SUITE.json here.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Fresh worker processes for each case.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only cases whose id matches this glob; repeatable.")
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(min=0.01, max=86_400, help="Seconds of sampling in each process."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Size of each data file on the drive, such as 4GiB.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            help="Data-sheet rate of hbm, link, dram or nvme, such as nvme=7GB/s; repeatable."
        ),
    ] = None,
    kv_dtype: Annotated[str, typer.Option(help="Type of the cached elements.")] = "bf16",
    block_size: Annotated[int, typer.Option(min=1, help="Tokens in a block.")] = 16,
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks.")] = 1,
    simulate: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", help="Simulated devices instead of this machine's."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**SEED_BITS - 1, help="Of data and orders; random if not given."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the cases that -o has no row of.")
    ] = False,
) -> None:
    """Measure one suite in fresh worker processes and write a report after each case."""
    # Not at the top: --help needs none of it.
    from kvbench.geometry import load_geometry
    from kvbench.measure.simulated import load_profile
    from kvbench_suites import find_suite

    chosen = find_suite(suite)
    if time_limit is not None and not math.isfinite(time_limit):
        raise UsageError(f"--time-limit {time_limit}: expected seconds")
    changes: dict[str, Any] = {
        "processes": processes,
        "time_limit_s": time_limit,
        "data_bytes": _size(data),
    }
    request = Request(
        suite=chosen,
        plan=replace(chosen.plan, **{k: v for k, v in changes.items() if v is not None}),
        geometry=load_geometry(
            model, cache_dtype=kv_dtype, block_size=block_size, tensor_parallel=tp
        ),
        directory=directory,
        report_path=out or Path(f"kvbench-{chosen.name}.json"),
        only=tuple(only or ()),
        profile=load_profile(simulate) if simulate is not None else None,
        limits=dict(_limit(text) for text in limit or ()),
        seed=secrets.randbits(SEED_BITS) if seed is None else seed,
        time_limit_given=time_limit is not None,
        resume=resume,
    )
    measured = _measure(request)
    if measured == 0:
        raise NothingMeasuredError(
            "no row holds a figure: the reasons stand in the table; `kvbench doctor` shows what "
            "this machine lacks"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command's arguments, checked."""

    suite: "Suite"
    plan: "Plan"
    geometry: "KVGeometry"
    directory: Path
    report_path: Path
    only: tuple[str, ...]
    profile: "Profile | None"
    limits: dict[str, float]
    seed: int
    time_limit_given: bool
    resume: bool


def _measure(request: Request) -> int:
    """Measure, keep the report, print the tables; how many rows hold a figure."""
    from kvbench.cli.report import stdout_console
    from kvbench.machine import probe_machine
    from kvbench.measure.runner import Setting, needs_data
    from kvbench.measure.scratch import Scratch
    from kvbench.measure.session import Session, select
    from kvbench_reports import table

    machine = probe_machine(_nearest_existing(request.directory))
    cases = select(request.suite.build(request.geometry, machine), request.only)
    if request.time_limit_given:  # the command line has the last word
        cases = [replace(case, time_limit_s=None) for case in cases]
    setting = Setting(
        geometry=request.geometry,
        machine=machine,
        plan=request.plan,
        profile=request.profile,
        limits=request.limits,
        seed=request.seed,
    )
    _check_writable(request.report_path)
    session = Session(request.suite.name, cases, setting, sys.argv[1:])
    if request.resume and request.report_path.exists():
        session.resume(request.report_path)
    data = {case.operation.name for case in session.pending if needs_data(case, setting)}
    with contextlib.ExitStack() as stack:
        if data:
            _check_room(request.plan.data_bytes * len(data), machine)
            session.use(stack.enter_context(Scratch(request.directory)).path)
        _watch(session, setting, request.report_path)
    table.show(session.report, stdout_console(), str(request.report_path))
    return session.measured


def _watch(session: "Session", setting: "Setting", report_path: Path) -> None:
    """Run the session in front of the user; an interruption says how to go on."""
    from kvbench.cli.live import make_live

    try:
        with make_live(session.pending, setting) as live:
            for event in session.run(report_path):
                live.show(event)
    except InterruptedRunError as error:
        total = len(session.cases)
        done = total - len(session.pending)
        if not done:
            raise
        raise InterruptedRunError(
            error.number,
            f": {done} of {total} rows are in {report_path}; repeat the command with --resume "
            "to go on",
        ) from None


def _check_room(needed_bytes: int, machine: "Machine") -> None:
    """Data that cannot fit are refused before anything is measured."""
    free_bytes = machine.storage.free_bytes if machine.storage else None
    if free_bytes is not None and needed_bytes > free_bytes:
        raise UsageError(
            f"the data files need {format_bytes(needed_bytes)} and {format_bytes(free_bytes)} are "
            "free: use a smaller --data, or name another --dir"
        )


def _nearest_existing(directory: Path) -> Path:
    """The directory, or the one it would be made in."""
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--dir {str(directory)!r} is not UTF-8: name another directory") from None
    return next(path for path in (directory, *directory.absolute().parents) if path.is_dir())


def _check_writable(path: Path) -> None:
    """A bad path fails before any measuring; nothing is left behind and nothing overwritten."""
    from kvbench.measure.result import read_report

    if path.exists():
        if not path.is_file():
            kind = "a directory" if path.is_dir() else "no regular file"
            raise UsageError(f"cannot write the report {path}: it is {kind}; name a file with -o")
        try:
            read_report(path)
        except UsageError as error:
            raise UsageError(f"will not overwrite: {error}; name another file with -o") from None
    probe = path.with_name(f".{os.getpid()}.kvbench.tmp")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"cannot write the report {path}: {error.strerror}; name another with -o"
        ) from None


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    size_bytes = parse_bytes(text)
    if size_bytes < MIB:
        raise UsageError(f"--data {text}: expected at least 1MiB")
    return size_bytes


def _limit(text: str) -> tuple[str, float]:
    tier, equals, rate = text.partition("=")
    if not equals or tier not in LIMITED:
        raise UsageError(
            f"--limit {text!r}: expected NAME=RATE, such as nvme=7GB/s; names are "
            f"{', '.join(LIMITED)}"
        )
    return tier, parse_rate(rate)

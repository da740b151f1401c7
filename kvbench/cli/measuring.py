"""What the commands that measure have in common: their options, and from options to cases.

`run`, `ab` and `calibrate` take the same options for what is measured and how long; each adds its
own for what becomes of it.
"""

import contextlib
import math
import os
import secrets
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvbench.errors import InterruptedRunError, UsageError
from kvbench.units import MIB, format_bytes, parse_bytes, parse_rate

if TYPE_CHECKING:
    from kvbench.geometry import KVGeometry
    from kvbench.machine import Machine
    from kvbench.measure.runner import Setting
    from kvbench.measure.session import Session
    from kvbench.measure.simulated import Profile
    from kvbench.measure.suite import Case, Plan, Suite

SEED_BITS = 31
LIMITED = ("hbm", "link", "dram", "nvme")  # link: GPU to host
DEFAULT_MODEL = "llama-3.1-8b"

SuiteName = Annotated[str, typer.Argument(help="A suite of `kvbench list`, or a TOML file.")]
Model = Annotated[str, typer.Option(help="Preset, or the path of a Hugging Face config.json.")]
Directory = Annotated[
    Path, typer.Option("--dir", help="Directory on the drive under test; made when missing.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, max=1000, help="Fresh worker processes for each case.")
]
Only = Annotated[
    list[str] | None, typer.Option(help="Only cases whose id matches this glob; repeatable.")
]
TimeLimit = Annotated[
    float | None,
    typer.Option(min=0.01, max=86_400, help="Seconds of sampling in each process."),
]
Data = Annotated[
    str | None, typer.Option(help="Size of each data file on the drive, such as 4GiB.")
]
LimitRates = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        help="Data-sheet rate of hbm, link, dram or nvme, such as nvme=7GB/s; repeatable.",
    ),
]
KvDtype = Annotated[str, typer.Option(help="Type of the cached elements.")]
BlockSize = Annotated[int, typer.Option(min=1, help="Tokens in a block.")]
TensorParallel = Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel ranks.")]
Simulate = Annotated[
    str | None,
    typer.Option(metavar="PROFILE", help="Simulated devices instead of this machine's."),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=2**SEED_BITS - 1, help="Of data and orders; random if not given."),
]
Inject = Annotated[
    list[str] | None,
    typer.Option(
        help="Slow matching cases on purpose, such as 'nvme.*=+8%', to prove that a gate can "
        "fail; repeatable."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of a command that measures, as they were given."""

    suite: str
    model: str
    directory: Path
    processes: int | None
    only: list[str] | None
    time_limit: float | None
    data: str | None
    limit: list[str] | None
    kv_dtype: str
    block_size: int
    tp: int
    simulate: str | None
    seed: int | None
    inject: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The same, checked."""

    suite: "Suite"
    plan: "Plan"
    geometry: "KVGeometry"
    directory: Path
    only: tuple[str, ...]
    profile: "Profile | None"
    limits: dict[str, float]
    inject: dict[str, float]
    seed: int
    time_limit_given: bool


def make_request(asked: Asked) -> Request:
    """Check options and load what they name.

    Raises:
        UsageError: one of them is wrong.
    """
    # Not at the top: --help needs none of it.
    from kvbench.geometry import load_geometry
    from kvbench.measure.inject import parse_injection
    from kvbench.measure.simulated import load_profile
    from kvbench_suites import find_suite

    suite = find_suite(asked.suite)
    if asked.time_limit is not None and not math.isfinite(asked.time_limit):
        raise UsageError(f"--time-limit {asked.time_limit}: expected seconds")
    changes: dict[str, Any] = {
        "processes": asked.processes,
        "time_limit_s": asked.time_limit,
        "data_bytes": _size(asked.data),
    }
    return Request(
        suite=suite,
        plan=replace(suite.plan, **{k: v for k, v in changes.items() if v is not None}),
        geometry=load_geometry(
            asked.model,
            cache_dtype=asked.kv_dtype,
            block_size=asked.block_size,
            tensor_parallel=asked.tp,
        ),
        directory=asked.directory,
        only=tuple(asked.only or ()),
        profile=load_profile(asked.simulate) if asked.simulate is not None else None,
        limits=dict(_limit(text) for text in asked.limit or ()),
        inject=parse_injection(asked.inject or ()),
        seed=secrets.randbits(SEED_BITS) if asked.seed is None else asked.seed,
        time_limit_given=asked.time_limit is not None,
    )


def prepare(request: Request) -> "tuple[list[Case], Setting]":
    """Probe the machine and make the suite's cases for it."""
    from kvbench.machine import probe_machine
    from kvbench.measure.runner import Setting
    from kvbench.measure.session import select

    machine = probe_machine(_nearest_existing(request.directory))
    cases = select(request.suite.build(request.geometry, machine), request.only)
    if request.time_limit_given:  # the command line has the last word
        cases = [replace(case, time_limit_s=None) for case in cases]
    return cases, Setting(
        geometry=request.geometry,
        machine=machine,
        plan=request.plan,
        profile=request.profile,
        limits=request.limits,
        inject=request.inject,
        seed=request.seed,
    )


@contextlib.contextmanager
def scratch_for(
    request: Request, cases: "list[Case]", setting: "Setting"
) -> Generator[Path | None, None, None]:
    """A directory for the data files of these cases, gone afterwards; None if they need none.

    Raises:
        UsageError: they cannot fit.
    """
    from kvbench.measure.runner import data_files
    from kvbench.measure.scratch import Scratch

    files = {name for case in cases for name in data_files(case, setting)}
    if not files:
        yield None
        return
    _check_room(request.plan.data_bytes * len(files), setting.machine)
    with Scratch(request.directory) as scratch:
        yield scratch.path


def watch(session: "Session", report_path: Path) -> None:
    """Run the session in front of the user; an interruption says how to go on."""
    from kvbench.cli.live import make_live

    try:
        with make_live(session.pending, session.setting.plan) as live:
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


def check_writable(path: Path) -> None:
    """A bad path fails before any measuring; nothing is left behind and nothing overwritten.

    Raises:
        UsageError: the report cannot be written there, or something else stands there.
    """
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

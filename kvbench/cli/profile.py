"""`kvbench profile`: a timeline of one case, and where its time went."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvbench.cli import measuring
from kvbench.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from kvbench.cli.measuring import Asked, Request
    from kvbench.machine import Machine
    from kvbench.measure.runner import Setting
    from kvbench.measure.suite import Case
    from kvbench_kernels.lint import Judged
    from kvbench_kernels.variant import Variant

SHOWN = 4  # cases that an error names


def profile(  # noqa: PLR0913  the options of the command are its interface
    case: Annotated[
        str,
        typer.Argument(
            help="A case by its id, or by a glob that matches one id of --suite; with --static "
            "also a kernel of `kvbench lint`."
        ),
    ],
    *,
    suite: Annotated[str, typer.Option(help="The suite, or TOML file, that has the case.")] = (
        "full"
    ),
    seconds: Annotated[
        float, typer.Option(min=0.01, max=60, help="How long to record, after the warm-up.")
    ] = 1.0,
    out: Annotated[Path, typer.Option("-o", "--out", help="The trace.")] = Path(
        "kvbench-trace.json"
    ),
    tracer: Annotated[
        str,
        typer.Option(
            metavar="TRACER",
            help="Who looks on beside our recorder: torch (torch.profiler), proton (totals of "
            "kernels) or none; auto is torch for cases on a GPU.",
        ),
    ] = "auto",
    static: Annotated[
        bool,
        typer.Option(
            "--static", help="Record nothing: print what the kernels of the case compile to."
        ),
    ] = False,
    model: measuring.Model = measuring.DEFAULT_MODEL,
    directory: measuring.Directory = Path(),
    data: measuring.Data = None,
    kv_dtype: measuring.KvDtype = "bf16",
    block_size: measuring.BlockSize = 16,
    tp: measuring.TensorParallel = 1,
    seed: measuring.Seed = None,
) -> None:
    """Record what one case does, as a Chrome trace, and print where the time went.

    Open the trace at https://ui.perfetto.dev, with `vizviewer` or in chrome://tracing. Recording
    costs time: rates are lower than those of `kvbench run`.
    """
    from kvbench.cli.output import check_replaceable, write_whole
    from kvbench.cli.report import stdout_console
    from kvbench.profile.take import TRACERS
    from kvbench.profile.trace import SCHEMA, encode
    from kvbench_reports.table import Part, print_parts

    if tracer not in TRACERS:
        raise UsageError(f"--tracer {tracer!r}: expected one of {', '.join(TRACERS)}")
    asked = measuring.Asked(
        suite=suite,
        model=model,
        directory=directory,
        processes=None,
        only=None,
        time_limit=None,
        data=data,
        limit=None,
        kv_dtype=kv_dtype,
        block_size=block_size,
        tp=tp,
        simulate=None,
        seed=seed,
    )
    if static:
        _print_static(case, asked)
        return
    request = measuring.make_request(asked)
    cases, setting = measuring.prepare(request)
    chosen = choose(cases, case, suite)
    check_replaceable(out, SCHEMA)
    if not os.access(out.parent, os.W_OK):
        raise UsageError(f"cannot write {out}: {out.parent} is closed to this user")
    trace = _record(chosen, request, setting, (seconds, tracer))
    write_whole(out, encode(trace))
    print_parts([Part(lambda width: _lines(trace, out, width))], stdout_console())


def choose(cases: "Sequence[Case]", wanted: str, suite: str) -> "Case":
    """The case of this id, or the only one that the glob matches.

    Raises:
        UsageError: there is none, or more than one.
    """
    for case in cases:
        if case.id == wanted:
            return case
    found = [case for case in cases if fnmatchcase(case.id, wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        more = ", …" if len(found) > SHOWN else ""
        ids = ", ".join(case.id for case in found[:SHOWN])
        raise UsageError(
            f"{wanted!r} matches {len(found)} cases of suite {suite} and one can be profiled: "
            f"{ids}{more}"
        )
    if _is_kernel(wanted):
        raise UsageError(
            f"{wanted!r} is no case of suite {suite} but a kernel: add --static to see what it "
            "compiles to, or name a case of `kvbench list`"
        )
    near = get_close_matches(wanted, [case.id for case in cases], n=SHOWN, cutoff=0.3)
    ids = ", ".join(near or [case.id for case in cases[:SHOWN]])
    raise UsageError(
        f"{wanted!r} is no case of suite {suite}; there are {len(cases)}, such as {ids} "
        "(--static also takes names of kernels)"
    )


def _is_kernel(wanted: str) -> bool:
    if "/" in wanted:  # of cases only: their misspellings need not wait until Triton is imported
        return False
    from kvbench_kernels.catalogue import variants

    return any(fnmatchcase(variant.name, wanted) for variant in variants())


def _lines(trace: Mapping[str, Any], out: Path, width: int) -> "Iterator[Text]":
    """Where the time of a trace went, and where the trace is."""
    from rich.text import Text

    from kvbench.profile.summary import summarise
    from kvbench.profile.text import render
    from kvbench_reports.layout import READABLE, prose

    for text in render(summarise(trace), trace["otherData"], min(width, READABLE)):
        yield from prose(text, width, hang=2) if text else (Text(),)
    told = f"{len(trace['traceEvents'])} events, to be opened at ui.perfetto.dev"
    if len(f"{out}: {told}") <= min(width, READABLE):
        yield Text(f"{out}: {told}")
    else:
        yield Text(f"{out}:")  # in one piece, to be copied
        yield from prose(told, width, indent=2)


def _record(
    case: "Case", request: "Request", setting: "Setting", how: tuple[float, str]
) -> dict[str, Any]:
    """The trace of a case: `how` is for how many seconds, and by which tracer."""
    from dataclasses import replace

    from kvbench.profile.take import take
    from kvbench.profile.trace import chrome_trace

    with measuring.scratch_for(request, [case], setting) as scratch, _status() as show:
        recording = take(
            case,
            replace(setting, scratch=scratch),
            how[0],
            tracer=how[1],
            on_phase=lambda phase: show(f"{phase}  {case.id}"),
        )
    return chrome_trace(recording, _about(case, request, setting.machine))


def _about(case: "Case", request: "Request", machine: "Machine") -> dict[str, Any]:
    """What was recorded, and where: for the trace to be understood later."""
    import datetime as dt

    import msgspec

    from kvbench import __version__

    return {
        "kvbench_version": __version__,
        "case": case.id,
        "suite": request.suite.name,
        "params": dict(case.params),
        "path_requested": case.operation.path(case.params),
        "taken_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "model": msgspec.to_builtins(request.geometry),
        "machine": msgspec.to_builtins(machine),
    }


def _print_static(wanted: str, asked: "Asked") -> None:
    """What kernels compile to: those of a case, or those whose name it is. Needs no GPU."""
    from kvbench.cli.lint import show_build
    from kvbench.cli.report import stdout_console
    from kvbench_kernels.lint import judge_one

    builds: list[Judged] = []
    with _status() as show:
        for variant in _kernels(wanted, asked):
            for capability in variant.capabilities:
                show(f"compile  {variant.name} for sm_{capability}")
                try:
                    builds.append(judge_one(variant, capability))
                except (RuntimeError, ValueError) as error:
                    raise UsageError(str(error)) from None
    for judged in builds:
        show_build(judged, stdout_console())


def _kernels(wanted: str, asked: "Asked") -> "list[Variant]":
    """The kernels of this name, or those that the case launches."""
    from kvbench.profile.kernels import launched
    from kvbench_kernels.catalogue import variants

    known = {each.name: each for each in variants()}
    names = [name for name in known if fnmatchcase(name, wanted)]
    if not names:
        cases, _ = measuring.prepare(measuring.make_request(asked))
        case = choose(cases, wanted, asked.suite)
        names = launched(case, list(known))
        if not names:
            some = ", ".join(list(known)[:SHOWN])
            raise UsageError(
                f"{case.id} launches no kernel of kvbench; name one of `kvbench lint`, such as "
                f"{some}"
            )
    return [known[name] for name in names]


@contextlib.contextmanager
def _status() -> Generator[Callable[[str], None]]:
    """Shows what is going on, where standard error is a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("") as status:
        yield status.update

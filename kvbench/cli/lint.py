"""`kvbench lint`: compile every kernel without a GPU and hold each build against its bars.

Measures nothing. Bytes in flight and issue ratios rest on assumed clocks and latencies: they rank
variants and predict no bandwidth.
"""

import contextlib
import fnmatch
import os
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from kvbench_kernels.lint import Judged
    from kvbench_kernels.static import Static
    from kvbench_kernels.variant import Variant

SCHEMA = "kvbench.lint/1"
FORMATS = ("table", "json")
WORKERS = 2
A_BAR_FAILED = 3  # as a regression: a verdict, not an error
GAP = "  "
LEAST_NAME = len("kernel")
TITLES = ("kernel", "sm", "loads", "stores", "regs", "SASS", "occ", "KiB", "issue", "bars")
_TEXT_COLUMNS = frozenset({"kernel", "loads", "stores", "bars"})


class _Took(NamedTuple):
    """Time on the wall, and of a processor in this process and in workers that have ended."""

    wall_s: float
    cpu_s: float

    @classmethod
    def so_far(cls) -> Self:
        used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return cls(time.monotonic(), sum(each.ru_utime + each.ru_stime for each in used))

    def since(self, began: Self) -> Self:
        return type(self)(self.wall_s - began.wall_s, self.cpu_s - began.cpu_s)


def lint(
    kernels: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KERNEL-GLOB]...", help="Only kernels whose name matches."),
    ] = None,
    *,
    arch: Annotated[
        list[str] | None,
        typer.Option(help="sm_80, sm_90 or sm_100; repeatable.", show_default="all three"),
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="table or json.")
    ] = "table",
    update_golden: Annotated[
        bool,
        typer.Option("--update-golden", help="Write down registers and instructions for S9."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write it there instead of printing it.")
    ] = None,
) -> None:
    """Compile every kernel for sm_80, sm_90 and sm_100 and check its code. Needs no GPU.

    Exit status: 0 all bars are kept, 3 one is not, 2 usage.
    """
    # Not at the top: --help needs none of it, and the kernels bring torch and triton.
    from kvbench.cli.output import check_output
    from kvbench.errors import UsageError

    if format_ not in FORMATS:
        raise UsageError(f"--format {format_!r}: expected one of {', '.join(FORMATS)}")
    if out is not None:
        check_output(out)
    from kvbench_kernels.bars import MOST_LINT_CPU_S, Verdict
    from kvbench_kernels.checks import interpreted

    if interpreted():
        raise UsageError(
            "TRITON_INTERPRET is set, and a process that interprets cannot compile: unset it"
        )
    chosen, capabilities = _choose(kernels or [], arch or [])
    began = _Took.so_far()
    found = _judge(chosen, capabilities, update_golden=update_golden)
    took = _Took.so_far().since(began)
    found.sort(key=_worst_first)
    _write(found, took, format_, out)
    failed = sum(bool(each.bars(Verdict.FAIL)) for each in found)
    reasons = [f"{failed} of {len(found)} builds fail a bar"] if failed else []
    if took.cpu_s > MOST_LINT_CPU_S:
        reasons.append(f"took {took.cpu_s:.0f} s of CPU, S12 allows {MOST_LINT_CPU_S:.0f}")
    if reasons:
        typer.echo(f"kvbench: exit {A_BAR_FAILED}: {'; '.join(reasons)}", err=True)
        raise typer.Exit(A_BAR_FAILED)


def show_build(judged: "Judged", console: "Console") -> None:
    """Print all that is known of one build: its figures, then every bar."""
    from kvbench_reports.table import Part, print_parts

    print_parts([Part(lambda width: _build_lines(judged, width))], console)


def _choose(globs: Sequence[str], archs: Sequence[str]) -> tuple[list["Variant"], list[int]]:
    from kvbench.errors import UsageError
    from kvbench_kernels.catalogue import variants
    from kvbench_kernels.variant import CAPABILITIES

    known = {f"sm_{each}": each for each in CAPABILITIES}
    for name in archs:
        if name not in known:
            raise UsageError(f"--arch {name!r}: expected one of {', '.join(known)}")
    capabilities = [known[name] for name in archs or known]
    everything = variants()
    for glob in globs:
        if not any(fnmatch.fnmatchcase(variant.name, glob) for variant in everything):
            names = ", ".join(variant.name for variant in everything[:3])
            raise UsageError(f"{glob!r} matches no kernel: expected a glob over names as {names}")
    chosen = [
        variant
        for variant in everything
        if any(fnmatch.fnmatchcase(variant.name, glob) for glob in globs or ["*"])
        and any(each in variant.capabilities for each in capabilities)
    ]
    if not chosen:
        raise UsageError(f"no kernel of {', '.join(globs)} is meant for {', '.join(archs)}")
    return chosen, capabilities


def _judge(
    chosen: "list[Variant]", capabilities: list[int], *, update_golden: bool
) -> "list[Judged]":
    from rich.console import Console

    from kvbench.errors import UsageError
    from kvbench_kernels import bars
    from kvbench_kernels.lint import WorkerError, count_builds, judge_all

    total = count_builds(chosen, capabilities)
    workers = min(WORKERS, os.cpu_count() or 1)
    builds = judge_all(
        chosen, capabilities, workers=workers, golden=bars.GOLDEN, update=update_golden
    )
    console = Console(stderr=True)
    found: list[Judged] = []
    # Closed even when Ctrl-C ends this loop: no worker is left behind.
    with contextlib.closing(builds), contextlib.ExitStack() as stack:
        status = stack.enter_context(console.status("")) if console.is_terminal else None
        try:
            for judged in builds:
                found.append(judged)
                if status is not None:
                    status.update(f"{len(found)} of {total} builds")
        except (WorkerError, ValueError) as error:
            raise UsageError(str(error)) from error
    return found


def _worst_first(judged: "Judged") -> tuple[float, ...]:
    from kvbench_kernels.bars import Verdict

    used = max((each.used or 0.0 for each in judged.findings), default=0.0)
    return (-len(judged.bars(Verdict.FAIL)), -len(judged.bars(Verdict.EXEMPT)), -used)


def _write(found: "list[Judged]", took: _Took, format_: str, out: Path | None) -> None:
    from kvbench.cli.output import emit
    from kvbench.cli.report import stdout_console
    from kvbench_reports.table import Part, plain_text, print_parts

    if format_ == "json":
        emit(_document(found, took), out)
        return
    parts = [
        Part(lambda width: _table(found, width)),
        *([Part(lambda width: _reasons(found, width))] if any(_told(found)) else []),
        Part(lambda width: _footer(found, took, width)),
    ]
    if out is None:
        print_parts(parts, stdout_console())
    else:
        emit(plain_text(parts), out)


def _document(found: "list[Judged]", took: _Took) -> str:
    import msgspec

    from kvbench_kernels.bars import BARS
    from kvbench_kernels.static import GPUS, TRITON_VERSION

    document = {
        "schema": SCHEMA,
        "triton": TRITON_VERSION,
        "took_s": took.wall_s,
        "took_cpu_s": took.cpu_s,
        "bars": BARS,
        "assumed": {f"sm_{capability}": gpu for capability, gpu in GPUS.items()},
        "builds": found,
    }
    return msgspec.json.format(msgspec.json.encode(document)).decode() + "\n"


def _table(found: "list[Judged]", width: int) -> Iterator["Text"]:
    """One line a build; its figures as prose below its name where columns do not fit."""
    from rich.text import Text

    from kvbench_reports.layout import prose

    rows = [_cells(each) for each in found]
    _, *widths = (max(map(len, column)) for column in zip(TITLES, *rows, strict=True))
    spare = width - sum(widths) - len(GAP) * len(widths)
    if spare < LEAST_NAME:
        for judged, (name, arch, *_, verdict) in zip(found, rows, strict=True):
            yield from prose(f"{name} sm_{arch}: {verdict}", width, style=_style(judged))
            yield from prose(_figures(judged), width, indent=2)
        return
    widths = [max(len(row[0]) for row in (TITLES, *rows) if len(row[0]) <= spare), *widths]
    yield Text(_line(TITLES, widths), style="bold")
    for judged, (name, *cells) in zip(found, rows, strict=True):
        beside = len(name) <= spare
        if not beside:
            yield Text(name)
        line = Text(_line((name if beside else "", *cells), widths))
        line.stylize(_style(judged), len(line) - len(cells[-1]))
        yield line


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell.ljust(size) if title in _TEXT_COLUMNS else cell.rjust(size)
        for title, cell, size in zip(TITLES, cells, widths, strict=True)
    )
    return GAP.join(padded).rstrip()


def _cells(judged: "Judged") -> tuple[str, ...]:
    static = judged.static
    head = (judged.variant, str(judged.capability))
    if static is None:
        return (*head, *("-",) * (len(TITLES) - 3), _verdict(judged))
    return (
        *head,
        _widths(static.accesses.loads),
        _widths(static.accesses.stores),
        str(static.registers),
        str(static.instructions),
        f"{static.occupancy:.0%}",
        f"{static.in_flight_bytes / 1024:.0f}",
        "-" if static.issue_ratio is None else f"{static.issue_ratio:.2f}",
        _verdict(judged),
    )


def _figures(judged: "Judged") -> str:
    static = judged.static
    return "no build" if static is None else ", ".join(_facts(static))


def _facts(static: "Static") -> Iterator[str]:
    yield f"loads {_widths(static.accesses.loads)}"
    yield f"stores {_widths(static.accesses.stores)}"
    yield f"{static.registers} registers"
    yield f"{static.instructions} instructions"
    yield f"occupancy {static.occupancy:.0%}"
    yield f"{static.in_flight_bytes / 1024:.0f} KiB in flight"
    if static.issue_ratio is not None:
        yield f"issue ratio {static.issue_ratio:.2f}"


def _widths(counts: Mapping[int, int]) -> str:
    """`4x16+1x4`: four accesses of 16 bytes and one of 4."""
    return "+".join(f"{count}x{width}" for width, count in counts.items()) or "-"


def _verdict(judged: "Judged") -> str:
    from kvbench_kernels.bars import Verdict

    failed, exempt = judged.bars(Verdict.FAIL), judged.bars(Verdict.EXEMPT)
    parts = [f"fails {' '.join(failed)}"] if failed else []
    if exempt:
        parts.append(f"exempt {' '.join(exempt)}")
    return ", ".join(parts) or "pass"


def _style(judged: "Judged") -> str:
    from kvbench_kernels.bars import Verdict

    if judged.bars(Verdict.FAIL):
        return "bold red"
    return "yellow" if judged.bars(Verdict.EXEMPT) else "green"


def _told(found: "Sequence[Judged]") -> Iterator[tuple[str, str]]:
    """What is not kept, why, and by which builds; failures first: style and text."""
    from kvbench_kernels.bars import Verdict

    styles = {Verdict.FAIL: "bold red", Verdict.EXEMPT: "yellow"}
    for verdict, style in styles.items():
        builds: dict[tuple[str, str], dict[str, list[int]]] = {}  # by what is said of them
        for judged in found:
            for each in judged.findings:
                if each.verdict is verdict:
                    of_kernel = builds.setdefault((each.bar, each.reason or each.text), {})
                    of_kernel.setdefault(judged.variant, []).append(judged.capability)
        for (bar, said), kernels in builds.items():
            names = (
                f"{name} {' '.join(f'sm_{each}' for each in sorted(archs))}"
                for name, archs in kernels.items()
            )
            yield style, f"{bar} {verdict.value}: {said}: {', '.join(names)}"


def _reasons(found: "Sequence[Judged]", width: int) -> Iterator["Text"]:
    from kvbench_reports.layout import prose

    for style, text in _told(found):
        yield from prose(text, width, style=style, hang=2)


def _footer(found: "Sequence[Judged]", took: _Took, width: int) -> Iterator["Text"]:
    from kvbench_kernels.bars import Verdict
    from kvbench_kernels.static import GPUS, TRITON_VERSION
    from kvbench_reports.layout import prose
    from kvbench_reports.words import count

    failed = sum(bool(each.bars(Verdict.FAIL)) for each in found)
    exempt = sum(bool(each.bars(Verdict.EXEMPT)) for each in found)
    kernels = len({each.variant for each in found})
    yield from prose(
        f"{count(kernels, 'variant')}, {count(len(found), 'build')}: {failed} failed, "
        f"{exempt} with an exemption; {took.wall_s:.0f} s, {took.cpu_s:.0f} s of CPU, "
        f"triton {TRITON_VERSION}",
        width,
    )
    assumed = "; ".join(
        f"{gpu.name} {gpu.peak_bytes_per_s / 1e12:g} TB/s, {gpu.sms} SMs, "
        f"{gpu.clock_hz / 1e9:g} GHz"
        for gpu in GPUS.values()
    )
    notes = (
        "loads, stores: instructions of a thread x bytes of each. KiB: bytes in flight an SM. "
        "issue: time to issue the instructions over time to move the bytes, - with a loop or "
        "without a byte model. Both are estimates that rank variants; they predict no bandwidth. "
        f"Assumed, not measured: {assumed}."
    )
    yield from prose(notes, width, style="dim")


def _build_lines(judged: "Judged", width: int) -> Iterator["Text"]:
    from kvbench_kernels.static import GPUS
    from kvbench_reports.layout import prose

    name = f"{judged.variant} sm_{judged.capability} ({GPUS[judged.capability].name})"
    yield from prose(f"{name}: {_verdict(judged)}", width, style=_style(judged))
    yield from prose(_figures(judged), width, indent=2)
    if judged.static is not None:
        yield from prose(", ".join(_more_facts(judged.static)), width, indent=2)
    for each in judged.findings:
        text = f"{each.bar:<4}{each.verdict.value}: {each.text}"
        yield from prose(text, width, indent=2, hang=4)


def _more_facts(static: "Static") -> Iterator[str]:
    yield f"{static.threads} threads a CTA"
    yield f"{static.ctas_per_sm} CTAs an SM"
    yield f"{static.shared_bytes:,} B of shared memory"
    yield f"{static.barriers} barriers"
    yield f"{static.ahead_bytes} B of loads a thread before its first store"
    yield f"triton {static.triton}"

"""`kvbench compare`: two reports into verdicts and an exit status that a pipeline can trust."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvbench.errors import UsageError

if TYPE_CHECKING:
    from kvbench.compare.record import Comparison

Margin = Annotated[
    list[str] | None,
    typer.Option(help="Slowdown tolerated: 8%, or nvme=8% for a group; repeatable."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit 5 when anything is UNSURE.")]
All = Annotated[bool, typer.Option("--all", help="All rows, also those that are the same.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="table, json, csv, markdown, html, junit, github, gha-bench, gha-bench-smaller "
        "or bmf.",
    ),
]
Explain = Annotated[
    str | None,
    typer.Option(metavar="ROW", help="Show what is behind one row's verdict, or a glob's."),
]
Out = Annotated[
    Path | None, typer.Option("-o", "--out", help="Write the format there; print the table.")
]


_KEPT: list[object] = []  # until the process ends, which `kvbench.cli.main` does without tidying


def compare(  # noqa: PLR0913  the options of the command are its interface
    base: Annotated[Path, typer.Argument(help="The report to hold against: the baseline.")],
    new: Annotated[Path, typer.Argument(help="The report that may have become slower.")],
    *,
    noise: Annotated[
        Path | None, typer.Option(help="Noise floor of this machine, from `kvbench calibrate`.")
    ] = None,
    margin: Margin = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only rows whose id matches this glob; repeatable.")
    ] = None,
    explain: Explain = None,
    all_: All = False,
    strict: Strict = False,
    assume_quiet: Annotated[
        bool,
        typer.Option("--assume-quiet", help="Two sessions differ no more than processes of one."),
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare different machines or models all the same.")
    ] = False,
    format_: Format = "table",
    out: Out = None,
) -> None:
    """Say what became slower, faster, or stayed the same, and what could not have been seen.

    Exit status: 0 passed, 3 slower, 4 not comparable or a row is missing, 5 unsure with --strict.
    """
    # Not at the top: --help needs none of it.
    from kvbench.cli.output import check_output
    from kvbench.compare.compare import Options
    from kvbench.compare.compare import compare as hold_against
    from kvbench.compare.metrics import parse_margins
    from kvbench.compare.noise import read_noise
    from kvbench.measure.result import read_report

    gc.disable()  # large reports are a million objects and no garbage: half of the time
    check_format(format_)
    margins = parse_margins(margin or ())
    if explain is not None and format_ != "table":
        raise UsageError("--explain is text: leave out --format, or --explain")
    if out is not None:
        check_output(out)
    if not base.exists():
        raise UsageError(
            f"no baseline yet: {base} does not exist; `kvbench run SUITE -o {base}` makes one"
        )
    options = Options(
        margins=margins,
        noise=read_noise(noise) if noise is not None else None,
        noise_path=str(noise or ""),
        only=tuple(only or ()),
        force=force,
        assume_quiet=assume_quiet,
        strict=strict,
    )
    before, after = (read_report(path, samples=False) for path in (base, new))
    comparison = hold_against(before, after, (str(base), str(new)), options)
    _KEPT.append((before, after))
    finish(comparison, format_, out, all_=all_, explain=explain)


def check_format(name: str) -> None:
    """Refuse an unknown format before anything is measured or computed.

    Raises:
        UsageError: there is none of that name.
    """
    from kvbench_reports.compare import COMPARE_FORMATS

    if name not in COMPARE_FORMATS:
        raise UsageError(f"--format {name!r}: expected one of {', '.join(COMPARE_FORMATS)}")


def finish(
    comparison: "Comparison",
    format_: str,
    out: Path | None,
    *,
    all_: bool = False,
    explain: str | None = None,
) -> None:
    """Print a comparison, say its exit status in one line, and exit with it.

    Raises:
        Exit: always, with the comparison's status.
    """
    if explain is not None:
        from kvbench.cli.output import emit
        from kvbench_reports.compare import explain as behind

        emit(behind.render(comparison, explain), out)
    else:
        show_comparison(comparison, format_, out, all_=all_)
    said = "; ".join(comparison.reasons) or "nothing shown slower"
    typer.echo(f"kvbench: exit {comparison.exit_code}: {said}", err=True)
    raise typer.Exit(comparison.exit_code)


def show_comparison(
    comparison: "Comparison",
    format_: str,
    out: Path | None,
    *,
    all_: bool = False,
    also_table: bool = True,
) -> None:
    """Print a comparison in a format; with `out` it goes there, and the table is printed too."""
    from kvbench.cli.output import emit
    from kvbench.cli.report import stdout_console
    from kvbench_reports import github
    from kvbench_reports.compare import COMPARE_FORMATS, table

    if format_ != "table" or out is not None:
        emit(COMPARE_FORMATS[format_](comparison), out)
    if format_ == "github":
        append_summary(github.summary_comparison(comparison))
    if (format_ == "table" and out is None) or (out is not None and also_table):
        table.show(comparison, stdout_console(), all_=all_)


def append_summary(text: str) -> None:
    """To the file that GitHub Actions shows on the job's page; nothing elsewhere."""
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write(text)

"""`kvbench history add` and `show`: keep what sessions measured, and see where it changed.

Advice, never a gate: `show` ends with 0 whatever it finds. Measures nothing, loads no torch.
"""

from pathlib import Path
from typing import Annotated

import typer

history = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Keep what sessions measured in a file, and see trends and change points in it.",
)

DEFAULT = Path("kvbench-history.jsonl")

File = Annotated[Path, typer.Option("--file", help="The history, one JSON line a session.")]


@history.command("add")
def add(
    reports: Annotated[
        list[Path], typer.Argument(help="Finished reports that `kvbench run` or `ab` wrote.")
    ],
    *,
    file: File = DEFAULT,
) -> None:
    """Add reports to a history; one that is there already is skipped."""
    # Not at the top: --help needs none of it.
    from kvbench.cli.report import stdout_console
    from kvbench.history import add_reports
    from kvbench.measure.result import read_report
    from kvbench_reports.history.added import show_added

    done = add_reports([(str(path), read_report(path)) for path in reports], file)
    show_added(done, stdout_console(), str(file))


@history.command("show")
def show(
    *,
    file: File = DEFAULT,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only rows whose id matches this glob.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=1, help="Only the last sessions of each row, so many.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="List every row and every change.")] = False,
    format_: Annotated[
        str, typer.Option("--format", help="table, json or csv.", metavar="FORMAT")
    ] = "table",
) -> None:
    """Show the trend of each row and where it changed. Advisory: it is not a gate."""
    from kvbench.cli.report import stdout_console
    from kvbench.errors import UsageError
    from kvbench.history import find_trends, read_history
    from kvbench_reports.history import HISTORY_FORMATS, table

    if format_ not in HISTORY_FORMATS:
        raise UsageError(f"--format {format_!r}: expected one of {', '.join(HISTORY_FORMATS)}")
    kept = read_history(file)
    trends = find_trends(kept.entries, path=str(file), notes=kept.notes, only=only, last=last)
    if format_ == "table":
        table.show(trends, stdout_console(), all_=all_)
        return
    if format_ == "csv":  # which has no place for them
        for note in kept.notes:
            typer.echo(note, err=True)
    # Bytes: a file is UTF-8 and has these line ends whatever the locale is.
    typer.echo(HISTORY_FORMATS[format_](trends).encode(), nl=False)

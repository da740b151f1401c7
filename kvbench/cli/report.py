"""`kvbench report`: print a report that was measured before. Measures nothing, loads no torch."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def report(
    file: Annotated[Path, typer.Argument(help="A report that `kvbench run` wrote.")],
    format_: Annotated[
        str, typer.Option("--format", help="table, json, csv or markdown.", metavar="FORMAT")
    ] = "table",
) -> None:
    """Print a report again: as tables, JSON, CSV or Markdown."""
    # Not at the top: `kvbench --help` needs neither the schema nor the renderers.
    import msgspec

    from kvbench.errors import UsageError
    from kvbench.measure.result import decode_report, read_bytes
    from kvbench_reports import FORMATS, json_, table

    if format_ not in FORMATS:
        raise UsageError(f"--format {format_!r}: expected one of {', '.join(FORMATS)}")
    data = read_bytes(file)
    measured = decode_report(data, str(file))
    if format_ == "table":
        table.show(measured, stdout_console(), str(file))
        return
    if format_ == "json":
        text = json_.render(measured, msgspec.json.decode(data))
    else:
        text = FORMATS[format_](measured)
    # Bytes: a file is UTF-8 and has these line ends whatever the locale is.
    typer.echo(text.encode(), nl=False)


def stdout_console() -> "Console":
    """A console on standard output, of a fixed width where no terminal and no COLUMNS gives one."""
    from rich.console import Console

    from kvbench_reports.table import PLAIN_WIDTH

    class StdoutConsole(Console):
        def on_broken_pipe(self) -> None:
            # Rich would exit with 1, which is left to crashes; `kvbench.cli.main` does better.
            raise BrokenPipeError

    known = sys.stdout.isatty() or _is_width(os.environ.get("COLUMNS", ""))
    return StdoutConsole(width=None if known else PLAIN_WIDTH)


def _is_width(text: str) -> bool:
    return text.isascii() and text.isdigit()

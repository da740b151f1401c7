"""`kvbench report`: print what was measured or compared before. Loads no torch."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def report(
    file: Annotated[
        Path, typer.Argument(help="What `kvbench run` wrote, or `kvbench compare --format json`.")
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="table, json, csv, markdown, html, junit, github, gha-bench, gha-bench-smaller "
            "or bmf.",
        ),
    ] = "table",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write it there instead of printing it.")
    ] = None,
) -> None:
    """Print a report or a comparison again, in any format."""
    # Not at the top: `kvbench --help` needs neither the schema nor the renderers.
    from kvbench.cli import compare
    from kvbench.cli.output import HEAD_BYTES, check_output, emit
    from kvbench.errors import UsageError
    from kvbench.measure.result import decode_report, read_bytes
    from kvbench_reports import FORMATS, github, json_, table

    if format_ not in FORMATS:
        raise UsageError(f"--format {format_!r}: expected one of {', '.join(FORMATS)}")
    if out is not None:
        check_output(out)
    data = read_bytes(file)
    if re.search(rb'"schema"\s*:\s*"kvbench\.comparison/', data[:HEAD_BYTES]):
        from kvbench.compare.record import decode_comparison

        compare.show_comparison(decode_comparison(data, str(file)), format_, out, also_table=False)
        return
    measured = decode_report(data, str(file))
    if format_ == "table" and out is None:
        table.show(measured, stdout_console(), str(file))
        return
    if format_ == "json":
        import msgspec

        text = json_.render(measured, msgspec.json.decode(data))
    else:
        text = FORMATS[format_](measured)
    emit(text, out)
    if format_ == "github":
        compare.append_summary(github.summary(measured))


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

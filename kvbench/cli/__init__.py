"""The command line: one module for each command, all of them named in `COMMANDS`.

A command parses, makes one library call and renders. Errors written for the user end here as one
line on standard error and an exit status; so do Ctrl-C and SIGTERM, after everything that was
opened has been tidied away.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer

from kvbench import __version__
from kvbench.cli import doctor, listing, plan, report, run
from kvbench.errors import InterruptedRunError, KvbenchError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("run", run.run),
    ("report", report.report),
    ("plan", plan.plan),
    ("doctor", doctor.doctor),
    ("list", listing.list_suites),
)
for _name, _command in COMMANDS:
    app.command(_name)(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kvbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Measure every tier a KV cache can live in, with a real model's block sizes."""


def main() -> None:
    """Run a command; print errors meant for the user without a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        app(prog_name="kvbench")
    except KvbenchError as error:
        typer.echo(f"kvbench: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """Unwind like any error for the user; a second signal must not stop the tidying."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise InterruptedRunError(signal.Signals(number))

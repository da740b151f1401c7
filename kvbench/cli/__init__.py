"""The command line: one module for each command, all of them named in `COMMANDS`.

A command parses, makes one library call and renders. Errors written for the user end here as one
line on standard error and an exit status; so do Ctrl-C and SIGTERM, which `kvbench.__main__` turns
into such an error, after everything that was opened has been tidied away.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from kvbench import __version__
from kvbench.cli import (
    ab,
    calibrate,
    compare,
    crossover,
    doctor,
    history,
    lint,
    listing,
    peer,
    plan,
    profile,
    report,
    run,
    simulate,
    store,
    trace,
)
from kvbench.errors import KvbenchError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("run", run.run),
    ("report", report.report),
    ("compare", compare.compare),
    ("ab", ab.ab),
    ("calibrate", calibrate.calibrate),
    ("crossover", crossover.crossover),
    ("plan", plan.plan),
    ("simulate", simulate.simulate),
    ("profile", profile.profile),
    ("doctor", doctor.doctor),
    ("lint", lint.lint),
    ("list", listing.list_suites),
)
for _name, _command in COMMANDS:
    app.command(_name)(_command)
app.add_typer(history.history, name="history")
app.add_typer(store.store, name="store")
app.add_typer(peer.peer, name="peer")
app.add_typer(trace.trace, name="trace")


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


# Click's own errors. Typer has carried its own copy of Click since 0.27, so the class is found by
# what it can do rather than by where it lives.
_ParserError: type[Exception] = next(
    each for each in reversed(typer.BadParameter.__mro__) if hasattr(each, "format_message")
)


def main() -> None:
    """Run a command; print errors meant for the user as one line, without a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: >&-
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  for good
    try:
        status = typer.main.get_command(app).main(prog_name="kvbench", standalone_mode=False)
        sys.stdout.flush()  # a full disk shows here, not in Python's own farewell
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except KvbenchError as error:
        status = _say(str(error), error.exit_code)
    except _ParserError as error:
        status = _parser_error(error)
    except OSError as error:
        # The system's refusals are the user's to act on: a full disk behind stdout, a directory
        # that is gone or closed to this user.
        name = f": {error.filename}" if error.filename is not None else ""
        status = _say(f"{error.strerror or error}{name}", KvbenchError.exit_code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # full, or closed: it has been said above
            stream.flush()
    # At once: Python would first free every object of a large report, which takes half a second.
    os._exit(status if isinstance(status, int) else 0)


def _parser_error(error: Exception) -> int:
    text = getattr(error, "format_message", error.__str__)()
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(text)
        return KvbenchError.exit_code
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kvbench"
    return _say(f"{text.rstrip('.')}; see {command} --help", KvbenchError.exit_code)


def _say(text: str, status: int) -> int:
    """One line on standard error; what a file name smuggles in does not reach the terminal."""
    line = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
    try:
        typer.echo(f"kvbench: {line}", err=True)
    except OSError:
        return status  # nobody listens; the status still tells
    if sys.stdout.closed or not sys.stdout.writable():
        return status
    try:
        sys.stdout.flush()
    except OSError:  # what made this error, often; Python would turn it into status 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status

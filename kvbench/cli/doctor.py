"""`kvbench doctor`: what this machine offers, what is missing, what it costs, what fixes it."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from kvbench.machine.check import Check

_INDENT = "  "


def doctor(
    directory: Annotated[
        Path,
        typer.Option(
            "--dir",
            help="Directory on the drive to measure.",
            show_default="the current directory",
        ),
    ] = Path(),
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the machine record and the checks as JSON.")
    ] = False,
) -> None:
    """Check what this machine offers to KV-cache measurements.

    For each thing: present, degraded, missing or unknown, what was seen, what it costs, and the
    command that fixes it. Changes nothing; one block is written to try O_DIRECT and removed.
    """
    import msgspec

    from kvbench.cli.report import stdout_console
    from kvbench.machine import probe_machine
    from kvbench.machine.doctor import checklist

    machine = probe_machine(directory)
    checks = checklist(machine)
    if as_json:
        document = msgspec.json.encode({"machine": machine, "checks": checks})
        typer.echo(msgspec.json.format(document).decode())
        return
    console = stdout_console()
    for check in checks:
        _print_check(console, check)
    console.print(_totals(checks), soft_wrap=True)


def _print_check(console: "Console", check: "Check") -> None:
    from rich.text import Text

    mark, style = _mark(check, console.encoding)
    console.print(Text.assemble((mark, style), f" {check.name}: {check.status}"))
    lines = _wrapped(check.seen, console.width)
    if check.cost:
        lines += _wrapped(f"costs: {check.cost}", console.width)
    if check.fix and check.fix_is_command:
        lines.append(f"{_INDENT}$ {check.fix}")  # never wrapped: it is there to be copied
    elif check.fix:
        lines += _wrapped(f"fix: {check.fix}", console.width)
    for line in lines:
        # Paths and model names may hold what this terminal cannot show.
        shown = line.encode(console.encoding, "replace").decode(console.encoding)
        console.print(Text(shown), soft_wrap=True)


def _wrapped(text: str, width: int) -> list[str]:
    """Indented lines no wider than the terminal, but for a path or an option that is."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _mark(check: "Check", encoding: str) -> tuple[str, str]:
    """The sign and its colour; ASCII where the terminal cannot show the others."""
    unicode_marks = "utf" in encoding.lower()
    return {
        "present": ("✓" if unicode_marks else "+", "green"),
        "degraded": ("!", "yellow"),
        "missing": ("✗" if unicode_marks else "x", "red"),
        "unknown": ("?", "cyan"),
    }[check.status]


def _totals(checks: "list[Check]") -> str:
    from kvbench.machine.check import Status

    counts = [f"{sum(check.status is status for check in checks)} {status}" for status in Status]
    return ", ".join(counts)

"""`kvbench list`: the suites, or the cases of one, what each needs and whether it is here."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from kvbench.machine import Machine
    from kvbench.measure.suite import Case

FEW = 3  # cases in a row that each say what they lack


def list_suites(
    suite: Annotated[
        str | None,
        typer.Argument(help="A suite, or a TOML file: list its cases.", show_default=False),
    ] = None,
    *,
    model: Annotated[
        str, typer.Option(help="Preset or config.json the block sizes are derived from.")
    ] = "llama-3.1-8b",
    directory: Annotated[
        Path, typer.Option("--dir", help="Directory on the drive under test.")
    ] = Path(),
    operations: Annotated[
        bool, typer.Option("--operations", help="List what a TOML suite can use.")
    ] = False,
) -> None:
    """List suites, the cases of one, or the operations that TOML suites are made of."""
    # Not at the top: --help needs none of it.
    from rich.markup import escape

    from kvbench.cli.report import stdout_console
    from kvbench.geometry import load_geometry
    from kvbench.machine import probe_machine
    from kvbench_suites import OPERATIONS, SUITES, find_suite

    console = stdout_console()
    if operations:
        for operation in OPERATIONS:
            console.print(f"[bold]{operation.name}[/bold]  {escape(operation.meaning)}")
            for parameter in operation.parameters:
                default = "" if parameter.default is None else f"; default {parameter.default}"
                text = f"{parameter.name}: {parameter.meaning} ({parameter.expected}{default})"
                console.print(f"    {escape(text)}", highlight=False)
        return
    geometry = load_geometry(model)
    machine = probe_machine(directory)
    if suite is None:
        for each in SUITES:
            cases = each.build(geometry, machine)
            here = sum(case.unmet(machine) is None for case in cases)
            console.print(
                f"[bold]{each.name:<12}[/bold] {len(cases):>4} cases, {here:>4} can run here   "
                f"{each.question}",
                highlight=False,
            )
        console.print("\n`kvbench list SUITE` shows its cases; `kvbench run SUITE` measures them.")
        return
    _print_cases(find_suite(suite).build(geometry, machine), machine, console)


def _print_cases(cases: "Sequence[Case]", machine: "Machine", console: "Console") -> None:
    """One line a case; what many in a row lack is said once, above them."""
    from rich.markup import escape

    for unmet, group in groupby(cases, key=lambda case: case.unmet(machine)):
        ids = [escape(case.id) for case in group]
        if unmet and len(ids) > FEW:
            console.print(f"[dim]{len(ids)} cases need:[/dim] {escape(unmet)}", highlight=False)
            for each in ids:
                console.print(f"  {each}", highlight=False)
            continue
        told = f"[dim]needs:[/dim] {escape(unmet)}" if unmet else "[green]ready[/green]"
        for each in ids:
            console.print(f"{each}  {told}", highlight=False)

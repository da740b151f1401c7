"""`kvbench crossover`: DMA or kernel for small blocks, and where quantising pays, from a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kvbench.crossover import Crossover

FORMATS = ("table", "toml", "json")


def crossover(
    file: Annotated[Path, typer.Argument(help="What `kvbench run kernels` wrote.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="table, toml or json.")
    ] = "table",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write the TOML fragment (or --format json) there."),
    ] = None,
) -> None:
    """Say from which batch on a kernel beats the copy engine, and below which rate to quantise.

    The TOML fragment holds for the card that was measured and for no other.
    """
    # Not at the top: --help needs none of it.
    import msgspec

    from kvbench.cli.output import check_output, emit
    from kvbench.cli.report import stdout_console
    from kvbench.crossover import config_fragment, find_crossover
    from kvbench.errors import UsageError
    from kvbench.measure.result import read_report

    if format_ not in FORMATS:
        raise UsageError(f"--format {format_!r}: expected one of {', '.join(FORMATS)}")
    if out is not None:
        check_output(out)
    found = find_crossover(read_report(file, samples=False))
    if format_ == "json":
        emit(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n", out)
        return
    if format_ == "toml" or out is not None:
        emit(config_fragment(found), out)
    if format_ == "table":
        _show(found, stdout_console())


def _show(found: "Crossover", console: "Console") -> None:
    where = f"SIMULATED ({found.simulated})" if found.simulated else found.card or "unknown card"
    console.print(f"{where} · {found.model}", highlight=False, markup=False)
    if found.small_blocks:
        _small_blocks(found, console)
    if found.loops:
        _loops(found, console)
    if found.break_even:
        _break_even(found, console)


def _table(*titles: str) -> "Table":
    """Cells are broken where the terminal is narrow, never cut."""
    from rich.table import Column, Table

    return Table(*(Column(title, overflow="fold") for title in titles), box=None)


def _small_blocks(found: "Crossover", console: "Console") -> None:
    from kvbench.units import exact_bytes, format_rate

    table = _table("way", "block", "batch", "programs", "copy engine", "kernel", "faster")
    for each in found.small_blocks:
        table.add_row(
            each.direction,
            exact_bytes(each.block_bytes),
            str(each.batch),
            str(each.programs),
            format_rate(each.dma_bytes_per_s),
            format_rate(each.kernel_bytes_per_s),
            each.faster,
        )
    console.print("\nSmall blocks, measured: one copy a block beside one kernel for all")
    console.print(table)


def _loops(found: "Crossover", console: "Console") -> None:
    from kvbench.units import exact_bytes, format_rate

    table = _table("way", "format", "block", "batch", "raw", "quantised", "faster")
    for each in found.loops:
        table.add_row(
            each.way,
            each.format,
            exact_bytes(each.block_bytes),
            str(each.batch),
            format_rate(each.raw_bytes_per_s),
            format_rate(each.quantised_bytes_per_s),
            each.faster,
        )
    console.print("\nTo host memory and back, measured: rates in bytes before quantising")
    console.print(table)


def _break_even(found: "Crossover", console: "Console") -> None:
    from kvbench.units import format_rate

    table = _table("way", "format", "stored", "kernel", "pays below", "in this report")
    for each in found.break_even:
        pays = [
            f"{name.split('/')[0]}: {'pays' if it else 'no'}" for name, it in each.tiers.items()
        ]
        table.add_row(
            each.way,
            each.format,
            f"{100 * each.stored_share:.3g} %",
            format_rate(each.kernel_bytes_per_s),
            "any rate"
            if each.pays_below_bytes_per_s is None
            else format_rate(each.pays_below_bytes_per_s),
            ", ".join(pays) or "no tier's rate",
        )
    console.print(
        "\nWhere quantising pays, COMPUTED from rows: one stage after the other, "
        "a tier's rate in stored bytes"
    )
    console.print(table)

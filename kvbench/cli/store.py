"""`kvbench store inspect`, `verify` and `compact`: what lies in the directories of a store.

Loads no torch, and needs neither the model nor the settings that the store is used with.
"""

import contextlib
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kvbench.store.maintenance import Damaged, Inspection

store = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into the directories of a store on drives, check them, make them smaller.",
)

DAMAGED = 3  # a verdict, as a regression is one
LISTED = 50  # damaged records, before the rest is only counted

Directories = Annotated[
    list[Path],
    typer.Argument(
        metavar="DIR...", help="The store's directory; of several drives all, in their order."
    ),
]


@store.command("inspect")
def inspect(
    directories: Directories,
    *,
    format_: Annotated[
        str, typer.Option("--format", help="table or json.", metavar="FORMAT")
    ] = "table",
) -> None:
    """Show layout, size, blocks, tenants, wear and health; also while the store is in use.

    Takes no lock and writes nothing. Of a store in use the figures are a moment's view, and say so.
    """
    # Not at the top: --help needs none of it.
    import msgspec

    from kvbench.errors import UsageError
    from kvbench.store import maintenance

    if format_ not in {"table", "json"}:
        raise UsageError(f"--format {format_!r}: expected one of table, json")
    found = maintenance.inspect(directories)
    if format_ == "json":
        typer.echo(msgspec.json.format(msgspec.json.encode(found)))
        return
    for name, value in _lines(found):
        typer.echo(f"{name:16}  {value}")


@store.command("verify")
def verify(
    directories: Directories,
    *,
    release: Annotated[
        bool,
        typer.Option("--release", help="Write to each quarantined slot; free those that hold it."),
    ] = False,
) -> None:
    """Read every record and check it. Nobody may have the store open.

    Exit status: 0 all are well, 3 some are damaged (they are listed, and never served).
    """
    from kvbench.store import maintenance

    with _progress("checked") as progress:
        found = maintenance.verify(directories, release=release, progress=progress)
    _list(found.damaged)
    typer.echo(
        f"{found.checked} records checked, {len(found.damaged)} damaged; "
        f"{len(found.quarantined)} slots in quarantine, {len(found.released)} released"
    )
    if found.damaged:
        raise typer.Exit(DAMAGED)


@store.command("compact")
def compact(
    directories: Directories,
    *,
    to: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="How large the data files may be; default: as blocks."),
    ] = None,
) -> None:
    """Move blocks to the front and give the rest of the drive back. Nobody may have it open.

    Whatever stops it loses nothing. Exit status: 0 done, 3 done, and damaged records were dropped.
    """
    from kvbench.store import maintenance
    from kvbench.units import format_bytes, parse_bytes

    to_bytes = None if to is None else parse_bytes(to)
    with _progress("moved") as progress:
        found = maintenance.compact(directories, to_bytes=to_bytes, progress=progress)
    _list(found.dropped)
    typer.echo(
        f"{format_bytes(found.before_bytes)} before, {format_bytes(found.after_bytes)} after; "
        f"{found.moved} blocks moved, {len(found.dropped)} damaged ones dropped"
    )
    if found.dropped:
        raise typer.Exit(DAMAGED)


def _lines(found: "Inspection") -> list[tuple[str, object]]:
    """What `inspect` found, as names and values."""
    from kvbench.units import format_bytes

    parts = f" in {found.parts} parts" if found.parts > 1 else ""
    lines: list[tuple[str, object]] = []
    if found.in_use_by is not None:
        lines.append(("in use", f"{found.in_use_by}: a moment's view, as of its last commit"))
    lines += [
        ("directories", ", ".join(found.directories)),
        ("block", f"{format_bytes(found.block_bytes)}{parts}"),
        ("namespace", found.namespace),
        ("capacity", f"{format_bytes(found.capacity_bytes)}, {found.slots} slots"),
        ("index", format_bytes(found.index_bytes)),
    ]
    if found.damage is not None:
        lines.append(("index damaged", found.damage))
    else:
        count = "not known: the next opening counts them" if found.blocks is None else found.blocks
        lines.append(("blocks", count))
        lines += [("  of tenant", f"{name!r}: {n}") for name, n in found.tenants.items()]
        lines.append(("quarantined", len(found.quarantined)))
        lines += [("  slot", f"{slot}: {why!r}") for slot, why in found.quarantined.items()]
        lines.append(("written", format_bytes(sum(found.written_bytes_by_day.values()))))
        days = found.written_bytes_by_day.items()
        lines += [(f"  {day}", format_bytes(written)) for day, written in days]
        lines.append(("closed cleanly", _closed(found)))
    return lines


def _closed(found: "Inspection") -> str:
    if found.in_use_by is not None:
        return "it is open"
    return "yes" if found.closed_cleanly else "no"


def _list(damaged: "list[Damaged]") -> None:
    for each in damaged[:LISTED]:
        typer.echo(f"slot {each.slot}  {each.key}  {each.reason}")
    if len(damaged) > LISTED:
        typer.echo(f"and {len(damaged) - LISTED} more")


@contextlib.contextmanager
def _progress(what: str) -> Generator[Callable[[int, int], None]]:
    """A counter on standard error while something goes on, if that is a terminal."""
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        if terminal:
            sys.stderr.write(f"\r{done} of {total} {what}")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

"""What became of the reports that were added to a history, a line for each."""

import shlex
from collections.abc import Iterator
from functools import partial

from rich.console import Console
from rich.text import Text

from kvbench.history import Added, Entry
from kvbench_reports.table import Part, print_parts
from kvbench_reports.words import clean, count

SHORT_SESSION = 8


def show_added(added: Added, console: Console, path: str) -> None:
    """Print a line for each report and each note about the file, and the next command."""
    print_parts([Part(partial(_lines, added, path))], console)


def _lines(added: Added, path: str, width: int) -> Iterator[Text]:
    del width  # a path is never cut
    for source, entry in added.added:
        yield Text(f"added    {_one(source, entry)}")
    for source, entry in added.known:
        yield Text(f"skipped  {_one(source, entry)}: it is there already")
    for note in added.notes:
        yield Text(clean(note), style="yellow")
    yield Text(f"next: kvbench history show --file {shlex.quote(clean(path))}", style="dim")


def _one(source: str, entry: Entry) -> str:
    side = f", side {clean(entry.side)}" if entry.side is not None else ""
    session, rows = clean(entry.session_id)[:SHORT_SESSION], count(len(entry.rows), "row")
    return f"{clean(source)} (session {session}{side}, {rows})"

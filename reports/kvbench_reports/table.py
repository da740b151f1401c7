"""The terminal table: parts for the head, each tier, the warnings and the closing lines.

Each part is laid out when it is printed, for the width it is printed at. Opens nothing, and prints
nothing but in `show` and `print_parts`, which are given the console.
"""

import io
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from kvbench.measure.result import Report, State
from kvbench_reports import faults, practical
from kvbench_reports import served as replays
from kvbench_reports.faults import Cost, costs
from kvbench_reports.head import SEPARATOR, SIMULATED, closing, head, simulated_notice
from kvbench_reports.interference import NOTE, Beside, interference
from kvbench_reports.layout import INDENT, READABLE, STYLES, prose, tier_lines
from kvbench_reports.practical import OfCopy, of_copy
from kvbench_reports.served import Served, served
from kvbench_reports.view import Warned, collect_warnings, tier_views
from kvbench_reports.words import clean

PLAIN_WIDTH = 100  # where there is no terminal to ask
# One character for one, so that columns stay in line; used where the encoding lacks the first.
_SUBSTITUTES = dict(zip("\N{EN DASH}─·µ±…│┼┊├┤●◄►", "---u~.|+:[]o<>", strict=True))


def tables(report: Report, path: str = "FILE") -> list[RenderableType]:
    """The parts of a report in the order they are read; `path` is what the next command reads."""
    warned = collect_warnings(report)
    again = f"kvbench report {shlex.quote(path)} --format markdown"
    views = tier_views(report, warned)
    beside = interference(report)
    copy, kernels = of_copy(report)
    replayed = served(report)
    faulty = costs(report)
    return [
        Part(partial(_head, report)),
        *(Part(partial(tier_lines, view)) for view in views),
        *([Part(partial(_of_copy, copy, kernels))] if kernels else []),
        *([Part(partial(_served, replayed))] if replayed else []),
        *([Part(partial(_faults, faulty))] if faulty else []),
        *([Part(partial(_interference, beside))] if beside else []),
        *([Part(partial(_warnings, warned))] if warned else []),
        Part(partial(_closing, report, again=again)),
    ]


def show(report: Report, console: Console, path: str = "FILE") -> None:
    """Print a report to a console, a blank line between its parts."""
    print_parts(tables(report, path), console)


def render(report: Report) -> str:
    """The tables as text without colour, `PLAIN_WIDTH` wide."""
    return plain_text(tables(report))


def print_parts(parts: Sequence[RenderableType], console: Console) -> None:
    """Print parts to a console, a blank line between them."""
    for index, part in enumerate(parts):
        if index:
            console.print()
        # Soft wrap leaves a long command in one piece, so that it can be copied.
        console.print(part, soft_wrap=True)


def plain_text(parts: Sequence[RenderableType]) -> str:
    """Parts as text without colour, `PLAIN_WIDTH` wide."""
    text = io.StringIO()
    print_parts(parts, Console(file=text, width=PLAIN_WIDTH, force_terminal=False))
    return text.getvalue()


@dataclass(frozen=True, slots=True)
class Part:
    """Something that Rich can print, once it knows the width."""

    lay_out: Callable[[int], Iterator[Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console
        for line in self.lay_out(options.max_width):
            line.rstrip()
            line.plain = _encodable(line.plain, options.encoding)
            yield line


def _encodable(text: str, encoding: str) -> str:
    if _can_encode(text, encoding):
        return text
    return "".join(
        letter if _can_encode(letter, encoding) else _SUBSTITUTES.get(letter, "?")
        for letter in text
    )


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _head(report: Report, width: int) -> Iterator[Text]:
    return labelled(head(report), width, {SIMULATED: f"bold {STYLES[State.SIMULATED]}"})


def labelled(
    lines: Sequence[tuple[str, Sequence[str]]], width: int, styles: Mapping[str, str]
) -> Iterator[Text]:
    """Labels and their facts, in two columns; `styles` are of the facts, by label."""
    labels = max(len(label) for label, _ in lines) + 2
    for label, facts in lines:
        for index, line in enumerate(_packed(facts, min(width, READABLE + labels) - labels)):
            name = "" if index else label
            yield Text.assemble((name.ljust(labels), "bold"), (line, styles.get(label, "")))


def _packed(facts: Sequence[str], width: int) -> Iterator[str]:
    """Facts joined into lines, broken between two of them where possible."""
    line = ""
    for fact in facts:
        joined = f"{line}{SEPARATOR}{fact}" if line else fact
        if len(joined) > width and line:
            yield line
            joined = fact
        *full, line = (wrapped.plain for wrapped in prose(joined, width))
        yield from full
    yield line


def _of_copy(copy: str, kernels: Sequence[OfCopy], width: int) -> Iterator[Text]:
    yield Text(f"of the device copy {copy}", style="bold")
    for each in kernels:
        yield from prose(each.sentence, width, hang=INDENT)
    yield from prose(practical.NOTE, width, style="dim", hang=2)


def _served(replayed: Sequence[Served], width: int) -> Iterator[Text]:
    yield Text("how the trace was served", style="bold")
    for each in replayed:
        yield from prose(each.sentence, width, hang=INDENT)
    yield from prose(replays.NOTE, width, style="dim", hang=2)


def _faults(faulty: Sequence[Cost], width: int) -> Iterator[Text]:
    yield Text("what faults cost", style="bold")
    for each in faulty:
        yield from prose(each.sentence, width, hang=INDENT)
    yield from prose(faults.NOTE, width, style="dim", hang=2)


def _interference(beside: Sequence[Beside], width: int) -> Iterator[Text]:
    yield Text("interference", style="bold")
    for each in beside:
        yield from prose(each.sentence, width, hang=INDENT)
    yield from prose(NOTE, width, style="dim", hang=2)


def _warnings(warned: Sequence[Warned], width: int) -> Iterator[Text]:
    yield Text("warnings", style="bold yellow")
    for warning in warned:
        caution = warning.caution
        text = f"{clean(caution.message)} ({clean(caution.code)}, {warning.extent})"
        yield from prose(f"{warning.label.ljust(INDENT)}{text}", width, hang=INDENT)
        if caution.fix:
            yield Text.assemble(" " * INDENT, ("fix: ", "dim"), (clean(caution.fix), "bold"))


def _closing(report: Report, width: int, again: str) -> Iterator[Text]:
    yield from prose(closing(report), width, style="bold", hang=INDENT)
    notice = simulated_notice(report)
    if notice:
        yield from prose(notice, width, style=f"bold {STYLES[State.SIMULATED]}", hang=INDENT)
    yield Text.assemble(("next: ", "dim"), again)

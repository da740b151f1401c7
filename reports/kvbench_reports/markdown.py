"""Markdown: a GitHub table for each tier, then what is said once about it, then the warnings.

Made to be pasted into an issue, a pull request or a job summary: no text of a report can end a
cell, or be taken for emphasis, HTML or a link.
"""

import re
from collections.abc import Iterator, Sequence

from kvbench.measure.result import Report
from kvbench_reports import faults, practical
from kvbench_reports import served as replays
from kvbench_reports.faults import Cost, costs
from kvbench_reports.head import SEPARATOR, closing, head, simulated_notice
from kvbench_reports.interference import NOTE, Beside, interference
from kvbench_reports.practical import OfCopy, of_copy
from kvbench_reports.served import Served, served, share
from kvbench_reports.view import Line, Skipped, TierView, Warned, collect_warnings, tier_views
from kvbench_reports.words import clean, percent

# Underscores inside a word are left alone: GitHub leaves them too, and names are full of them.
_SPECIAL = re.compile(r"[\\`*\[\]<|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")


def render(report: Report) -> str:
    """The whole report as GitHub-flavoured Markdown."""
    warned = collect_warnings(report)
    blocks = [[f"## kvbench report: suite {plain(report.suite)}"]]
    blocks.append([f"- **{name}**: {plain(SEPARATOR.join(facts))}" for name, facts in head(report)])
    for view in tier_views(report, warned):
        blocks.append([f"### {plain(view.tier)}: {view.summary}"])
        blocks.append(list(_table(view)))
        blocks.append([f"- {plain(note.text)}" for note in view.notes])
    copy, kernels = of_copy(report)
    if kernels:
        blocks += [[f"### of the device copy `{copy}`"], list(_of_copy(kernels))]
        blocks.append([f"- {plain(practical.NOTE)}"])
    replayed = served(report)
    if replayed:
        blocks += [["### how the trace was served"], list(_served(replayed))]
        blocks.append([f"- {plain(replays.NOTE)}"])
    faulty = costs(report)
    if faulty:
        blocks += [["### what faults cost"], list(_faults(faulty))]
        blocks.append([f"- {plain(faults.NOTE)}"])
    beside = interference(report)
    if beside:
        blocks += [["### interference"], list(_interference(beside)), [f"- {plain(NOTE)}"]]
    if warned:
        blocks += [["### warnings"], list(_warnings(warned))]
    blocks.append([f"**{plain(closing(report))}.**"])
    notice = simulated_notice(report)
    if notice:
        blocks.append([f"**{plain(notice)}.**"])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _table(view: TierView) -> Iterator[str]:
    titles = [f"{column.title} ({column.unit})" for column in view.columns]
    yield cells(["case", *titles, "state", "notes"])
    yield cells([":---", *("---:" for _ in titles), ":---", ":---"])
    for line in view.lines:
        if isinstance(line, Skipped):
            title = code_cell(line.title) if len(line.cases) == 1 else line.title
            yield cells([title, *("" for _ in titles), "skipped", plain(line.reason)])
        else:
            yield cells([code_cell(line.case), *_figures(view, line), _state(line), _note(line)])


def _figures(view: TierView, line: Line) -> list[str]:
    return [plain(line.cells[column.key]) for column in view.columns]


def _state(line: Line) -> str:
    return " ".join([line.state, *line.warnings])


def _note(line: Line) -> str:
    return plain(line.note or "")


def _of_copy(kernels: Sequence[OfCopy]) -> Iterator[str]:
    yield cells(["case", "of the copy (%)", "95 % (%)"])
    yield cells([":---", "---:", "---:"])
    for each in kernels:
        yield cells([code_cell(each.case), percent(each.share), plain(each.interval_text)])


def _served(replayed: Sequence[Served]) -> Iterator[str]:
    yield cells(
        [
            *("case", "hit, of blocks (%)", "by tier", "of tokens (%)", "rate", "latency"),
            *("evicted", "written to the drive", "left out", "over"),
        ]
    )
    yield cells([":---", "---:", ":---", *["---:"] * 2, *[":---"] * 5])
    for each in replayed:
        figures = [share(each.hit_blocks), plain(each.tiers_text), share(each.hit_tokens)]
        moved = [each.evicted_text, each.written_text, each.left_out_text, each.extent]
        yield cells([code_cell(each.case), *figures, each.rate, each.latency, *map(plain, moved)])


def _faults(faulty: Sequence[Cost]) -> Iterator[str]:
    yield cells(
        [
            *("case", "faults", "requests", "lost in a request", "usually", "late"),
            *("breaker", "whole again", "local hits", "wrong blocks", "did not come"),
        ]
    )
    yield cells([":---", "---:", "---:", *[":---"] * 2, "---:", *[":---"] * 5])
    for each in faulty:
        figures = [f"{each.faults:,}", f"{each.requests:,}", plain(each.lost_text)]
        figures += [faults.seconds(each.usual_s), f"{each.late:,}"]
        told = [each.breaker_text, each.whole_text, each.local_text, each.wrong_text]
        yield cells([code_cell(each.case), *figures, *map(plain, told), plain(each.reasons_text)])


def _interference(beside: Sequence[Beside]) -> Iterator[str]:
    yield cells(["case", "of alone (%)", "95 % (%)", "while", "runs at", "notes"])
    yield cells([":---", "---:", "---:", ":---", "---:", ":---"])
    for each in beside:
        figures = [plain(each.share_text), plain(each.interval_text)]
        load = [code_cell(each.load), plain(each.load_rate)]
        yield cells([code_cell(each.case), *figures, *load, plain(each.why)])


def _warnings(warned: Sequence[Warned]) -> Iterator[str]:
    for warning in warned:
        caution = warning.caution
        text = f"{plain(caution.message)} ({plain(caution.code)}, {warning.extent})"
        fix = f" Fix: {code(caution.fix)}" if caution.fix else ""
        yield f"- **{warning.label}** {text}.{fix}"


def cells(texts: Sequence[str]) -> str:
    """One line of a table; the texts are escaped before."""
    return f"| {' | '.join(texts)} |"


def plain(text: str) -> str:
    """Text that Markdown reads as text."""
    return _SPECIAL.sub(r"\\\g<0>", clean(text))


def code_cell(text: str) -> str:
    """A code span in a table."""
    return code(text).replace("|", r"\|")  # a pipe ends a cell even inside a code span


def code(text: str) -> str:
    """A code span; its fence is longer than any run of backticks in it."""
    line = clean(text)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{line}{space}{fence}"

"""What a run shows while it measures: a live line on a terminal, plain lines elsewhere.

Goes to standard error, so that standard output holds the tables alone.
"""

import contextlib
import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column

from kvbench.measure.pairs import PairFinished
from kvbench.measure.result import HAS_FIGURE, Row
from kvbench.measure.runner import CaseFinished, Event, ProcessStarted
from kvbench.measure.suite import Case, Plan
from kvbench.measure.worker import Estimate
from kvbench.units import format_rate

STARTUP_S = 0.6  # guess of a worker's start and check, until real cases have been timed


def make_live(cases: list[Case], plan: Plan) -> "TerminalLive | PlainLive":
    """The live view where standard error is a terminal, plain lines where it is not."""
    console = Console(stderr=True)
    if console.is_terminal:
        return TerminalLive(cases, plan, console)
    return PlainLive(len(cases))


class PlainLive:
    """One line a finished case: what a log wants."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def show(self, event: Event) -> None:
        """A line when a case is finished; runs of skipped cases are left to the table."""
        if not isinstance(event, CaseFinished):
            return
        self._done += 1
        with contextlib.suppress(OSError):  # a log that nobody reads any more is no reason to stop
            sys.stderr.write(f"[{self._done}/{self._total}] {line_of(event)}\n")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class TerminalLive:
    """Case, process, current estimate and time left, on one line that is rewritten."""

    def __init__(self, cases: list[Case], plan: Plan, console: Console) -> None:
        self._left = len(cases)
        self._nominal_s = plan.processes * (plan.warmup_s + plan.time_limit_s + STARTUP_S)
        self._measured = 0
        self._measured_s = 0.0
        fixed = Column(no_wrap=True, min_width=1)
        self._progress = Progress(
            TextColumn("{task.completed}/{task.total}", table_column=fixed),
            TextColumn("left ~{task.fields[left]}", table_column=fixed),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=len(cases), left="?")
        self._what = ""
        self._case_began_s = time.monotonic()

    def show(self, event: Event) -> None:
        """Rewrite the line."""
        if isinstance(event, ProcessStarted):
            if event.process == 0:
                self._case_began_s = time.monotonic()
            side = f"{event.side} " if event.side else ""
            self._what = f"{event.process + 1}/{event.processes} {side}{event.case.id}"
            self._describe(self._what)
        elif isinstance(event, CaseFinished):
            self._left -= 1
            if event.row.processes:
                self._measured += 1
                self._measured_s += event.row.elapsed_s or 0.0
            self._progress.advance(self._task)
            if event.row.state in HAS_FIGURE:
                self._progress.console.print(line_of(event), markup=False, highlight=False)
        elif isinstance(event.message, Estimate):
            now = event.message
            width = f" ±{now.half_width:.1%}" if now.half_width is not None else ""
            self._describe(f"{format_rate(now.bytes_per_s)}{width}  {self._what}")
        else:
            self._describe(f"{event.message.name}  {self._what}")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _describe(self, text: str) -> None:
        self._progress.update(self._task, description=text, left=self._time_left())

    def _time_left(self) -> str:
        each_s = self._measured_s / self._measured if self._measured else self._nominal_s
        spent_s = min(time.monotonic() - self._case_began_s, each_s)
        minutes, seconds = divmod(round(each_s * self._left - spent_s), 60)
        return f"{minutes}:{seconds:02d}"


def line_of(event: CaseFinished) -> str:
    """A finished case; of a pair both rates."""
    line = row_line(event.row)
    base = event.base.bytes_per_s if isinstance(event, PairFinished) else None
    return line if base is None else f"{line}  (A {format_rate(base)})"


def row_line(row: Row) -> str:
    """For example `nvme.read/posix/1MiB/qd16/random  1.02 GB/s`."""
    if row.bytes_per_s is not None:
        return f"{row.id}  {format_rate(row.bytes_per_s)}"
    return f"{row.id}  {row.state.value}: {row.reason}"

"""A/B in one session: for every case, blocks of two worker processes, one of each side.

The two processes of a block run one after the other, so that what drifts over minutes meets both
sides alike; which goes first is drawn at random, as often one as the other. Both have the block's
seed and process number: the same data, the same order. Both sides use the same data files. A is
the base, B is new, and only B may be slowed on purpose. Compares nothing: a paired test does.
"""

import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.measure.result import HAS_FIGURE, OTHER_SIDE, ProcessResult, Report, Row, State
from kvbench.measure.runner import (
    CaseFinished,
    Event,
    ProcessStarted,
    Setting,
    row_of,
    run_process,
    unrunnable,
)
from kvbench.measure.session import Session
from kvbench.measure.side import redact_side
from kvbench.measure.suite import Case
from kvbench.measure.worker import Failure

SIDES = "AB"  # base, new


@dataclass(frozen=True, slots=True)
class PairFinished(CaseFinished):
    """A case has both its rows; `row` is the new side's, so that one case is one event."""

    base: Row


class PairedSession:
    """Two reports in the making, of one session. `setting.side` says how each is started."""

    def __init__(
        self,
        suite: str,
        cases: Sequence[Case],
        settings: tuple[Setting, Setting],
        command: Sequence[str],
    ) -> None:
        base, new = settings
        if base.inject:
            raise ValueError("only the second side of a pair can be slowed on purpose")
        if (base.plan, base.seed, base.geometry) != (new.plan, new.seed, new.geometry):
            raise ValueError("the sides of a pair need one plan, one seed and one model")
        self._base = Session(suite, cases, base, command)
        self._new = Session(suite, cases, replace(new, half=1), command)
        self._new.report.session_id = self._base.report.session_id

    @property
    def base(self) -> Report:
        """Side A."""
        return self._base.report

    @property
    def new(self) -> Report:
        """Side B."""
        return self._new.report

    @property
    def cases(self) -> list[Case]:
        """All of the session."""
        return self._base.cases

    @property
    def pending(self) -> list[Case]:
        """Cases that lack a row on one side, or on both: rows of a pair come together."""
        lacking = {case.id for session in self._sessions for case in session.pending}
        return [case for case in self.cases if case.id in lacking]

    @property
    def measured(self) -> int:
        """Cases that hold a figure on both sides."""
        base, new = (
            {row.id for row in report.rows if row.state in HAS_FIGURE}
            for report in (self.base, self.new)
        )
        return len(base & new)

    def use(self, scratch: Path) -> None:
        """Let the cases of both sides write their data files there."""
        for session in self._sessions:
            session.use(scratch)

    def resume(self, base_path: Path, new_path: Path) -> int:
        """Take over what both reports of an interrupted session have; how many cases.

        Raises:
            UsageError: a report is of something else, or they are not of one session.
        """
        self._base.resume(base_path)
        self._new.resume(new_path)
        if self.base.session_id != self.new.session_id or self.base.plan != self.new.plan:
            raise UsageError(
                f"cannot resume: {base_path} and {new_path} are not of one session; name the two "
                "that one `kvbench ab` wrote"
            )
        unpaired = {case.id for case in self.pending}
        for session in self._sessions:
            session.discard(unpaired)
        return len(self.cases) - len(unpaired)

    def run(self, base_path: Path, new_path: Path) -> Iterator[Event]:
        """Measure what is missing, writing both reports after each case.

        Raises:
            UsageError: both reports would be one file, or one cannot be written.
        """
        if base_path.resolve() == new_path.resolve():
            raise UsageError(f"both sides' reports would be {base_path}: name two files")
        for case in self.pending:
            began_s = time.monotonic()
            base, new = yield from self._measure(case)
            # Of the case with both sides: their processes took turns.
            base.elapsed_s = new.elapsed_s = time.monotonic() - began_s
            self._base.add(base, base_path)
            self._new.add(new, new_path)
            yield PairFinished(case, new, base)
        self._base.finish(base_path)
        self._new.finish(new_path)

    @property
    def _sessions(self) -> tuple[Session, Session]:
        return self._base, self._new

    def _measure(self, case: Case) -> Generator[Event, None, tuple[Row, Row]]:
        """Both rows of a case, base first."""
        a, b = (_Half(letter, s.setting) for letter, s in zip(SIDES, self._sessions, strict=True))
        for half in (a, b):
            refused = unrunnable(case, half.setting)
            if refused is not None:
                why = refused.reason_code or "", refused.reason or ""
                half.failure = Failure(refused.state, *why)
        if a.failure is None and b.failure is None:
            yield from _run_blocks(case, a, b)
        a.blame(b)
        b.blame(a)
        rows = (row_of(case, half.setting, half.done, half.failure) for half in (a, b))
        return next(rows), next(rows)


@dataclass(slots=True)
class _Half:
    """What one side of a case has so far."""

    letter: str
    setting: Setting
    done: list[ProcessResult] = field(default_factory=list[ProcessResult])
    failure: Failure | None = None

    def blame(self, other: "_Half") -> None:
        """A side that is short of processes because the other failed says so."""
        short = len(self.done) < self.setting.plan.processes
        if self.failure is None and other.failure is not None and short:
            name = other.setting.side
            what = f"side {other.letter}{f' ({redact_side(name.name)})' if name else ''}"
            text = f"{what} has no result, and blocks are of both sides: {other.failure.text}"
            self.failure = Failure(State.FAILED, OTHER_SIDE, text)


def orders(processes: int, seed: int, case_id: str) -> list[str]:
    """For each block `AB` or `BA`: drawn at random, as many of one as of the other (± 1)."""
    generator = np.random.default_rng((seed, zlib.crc32(case_id.encode())))
    even = ["AB", "BA"] * (processes // 2)
    odd = [("AB", "BA")[generator.integers(2)]] * (processes % 2)
    drawn = [*even, *odd]
    return [drawn[at] for at in generator.permutation(processes)]


def _run_blocks(case: Case, a: _Half, b: _Half) -> Iterator[Event]:
    """Block after block, until all have run or a process has failed."""
    processes, seed = a.setting.plan.processes, a.setting.seed
    halves = dict(zip(SIDES, (a, b), strict=True))
    for block, order in enumerate(orders(processes, seed, case.id)):
        for turn, letter in enumerate(order):
            half = halves[letter]
            yield ProcessStarted(case, 2 * block + turn, 2 * processes, letter)
            outcome = yield from run_process(case, half.setting, block, letter)
            if isinstance(outcome, Failure):
                half.failure = outcome
                return  # the next process would fail alike
            half.done.append(msgspec.structs.replace(outcome, block=block, order=order))

"""A/B in one session: for every case, blocks of two worker processes, one of each side.

The two processes of a block run one after the other, so that what drifts over minutes meets both
sides alike; which goes first is drawn at random, as often one as the other. Both have the block's
seed and process number: the same data, the same order. Both sides use the same data files. A is
the base, B is new, and only B may be slowed on purpose. Blocks are added until the ratio of the
sides is known well enough, whatever it is. Compares nothing: a paired test does.
"""

import math
import time
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.measure.result import (
    HAS_FIGURE,
    IMPRECISE,
    OTHER_SIDE,
    Caution,
    ProcessResult,
    Report,
    Row,
    State,
)
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
from kvbench.measure.stats import ratio_half_width
from kvbench.measure.suite import Case
from kvbench.measure.worker import Failure

SIDES = "AB"  # base, new


@dataclass(frozen=True, slots=True)
class PairFinished(CaseFinished):
    """A case has both its rows; `row` is the new side's, so that one case is one event."""

    base: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When the blocks of a case are enough: on precision, never on what they seem to show.

    A rule that looked at significance would call noise a difference sooner or later. The most
    blocks are the plan's processes.
    """

    half_width: float = 0.02  # of the 95 % interval of ln(B / A) of the rate; 0 never stops early
    # Blocks, whatever they show and however long they take. Five happen to agree now and then while
    # one process in five is unlucky; ten hardly ever do.
    least: int = 10
    budget_s: float = math.inf  # for all cases; what is left is shared evenly among them

    def is_precise(self, base: Sequence[ProcessResult], new: Sequence[ProcessResult]) -> bool:
        """Whether these blocks, as many of each side, are enough."""
        if self.half_width == 0 or len(base) < self.least:
            return False
        return half_width_of(base, new) <= self.half_width


def half_width_of(base: Sequence[ProcessResult], new: Sequence[ProcessResult]) -> float:
    """Of the 95 % interval of ln(B / A), infinite below two blocks."""
    return ratio_half_width(*([each.bytes_per_s for each in side] for side in (base, new)))


class PairedSession:
    """Two reports in the making, of one session. `setting.side` says how each is started."""

    def __init__(
        self,
        suite: str,
        cases: Sequence[Case],
        settings: tuple[Setting, Setting],
        command: Sequence[str],
        stopping: Stopping | None = None,
    ) -> None:
        base, new = settings
        if base.inject:
            raise ValueError("only the second side of a pair can be slowed on purpose")
        if (base.plan, base.seed, base.geometry) != (new.plan, new.seed, new.geometry):
            raise ValueError("the sides of a pair need one plan, one seed and one model")
        self._base = Session(suite, cases, base, command)
        self._new = Session(suite, cases, replace(new, half=1), command)
        self._new.report.session_id = self._base.report.session_id
        self._stopping = stopping or Stopping()

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
        pending = self.pending
        ends_s = time.monotonic() + self._stopping.budget_s
        for at, case in enumerate(pending):
            began_s = time.monotonic()
            share_s = (ends_s - began_s) / (len(pending) - at)
            base, new = yield from self._measure(case, began_s + share_s)
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

    def _measure(self, case: Case, deadline_s: float) -> Generator[Event, None, tuple[Row, Row]]:
        """Both rows of a case, base first."""
        a, b = (_Half(letter, s.setting) for letter, s in zip(SIDES, self._sessions, strict=True))
        for half in (a, b):
            refused = unrunnable(case, half.setting)
            if refused is not None:
                why = refused.reason_code or "", refused.reason or ""
                half.failure = Failure(refused.state, *why)
        imprecise: Caution | None = None
        if a.failure is None and b.failure is None:
            imprecise = yield from _run_blocks(case, a, b, self._stopping, deadline_s)
        a.blame(b)
        b.blame(a)
        base, new = (row_of(case, half.setting, half.done, half.failure) for half in (a, b))
        if imprecise is not None:
            for row in (base, new):
                row.warnings.append(imprecise)
        return base, new


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
    """For each block `AB` or `BA`: of two blocks in a row one is `AB`, drawn at random which.

    So each side goes first as often as the other (± 1) wherever the blocks end.
    """
    generator = np.random.default_rng((seed, zlib.crc32(case_id.encode())))
    first = generator.integers(2, size=(processes + 1) // 2)
    return [("AB", "BA")[(first[block // 2] + block) % 2] for block in range(processes)]


def _run_blocks(
    case: Case, a: _Half, b: _Half, stopping: Stopping, deadline_s: float
) -> Generator[Event, None, Caution | None]:
    """Block after block, until they are precise, all have run, time is up or a process failed."""
    processes, seed = a.setting.plan.processes, a.setting.seed
    halves = dict(zip(SIDES, (a, b), strict=True))
    for block, order in enumerate(orders(processes, seed, case.id)):
        if stopping.is_precise(a.done, b.done):
            return None
        if block >= stopping.least and time.monotonic() > deadline_s:
            return _imprecise(a, b, stopping, "time was up (--time-budget)")
        for turn, letter in enumerate(order):
            half = halves[letter]
            yield ProcessStarted(case, 2 * block + turn, 2 * processes, letter)
            outcome = yield from run_process(case, half.setting, block, letter)
            if isinstance(outcome, Failure):
                half.failure = outcome
                return None  # the next process would fail alike
            half.done.append(msgspec.structs.replace(outcome, block=block, order=order))
    if stopping.half_width == 0 or stopping.is_precise(a.done, b.done):
        return None
    return _imprecise(a, b, stopping, "no more were asked for (--processes)")


def _imprecise(a: _Half, b: _Half, stopping: Stopping, why: str) -> Caution:
    found = math.expm1(half_width_of(a.done, b.done))
    return Caution(
        code=IMPRECISE,
        message=f"{len(a.done)} pairs know B/A to ±{100 * found:.2g} %, not to "
        f"±{100 * stopping.half_width:.3g} %: {why}",
        fix="quieten the machine, sample longer (--time-limit) or allow more pairs",
    )

"""One run of a suite: which cases, in which order, and a report that is on disk after each of them.

A crash, a full disk or Ctrl-C loses the case being measured and nothing else; `resume` goes on
with the cases that have no row yet. Prints nothing.
"""

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from kvbench import __version__
from kvbench.errors import UsageError
from kvbench.machine import redact_argument, redact_text, shell_quoted
from kvbench.measure.checkout import in_kvbench, working_commit
from kvbench.measure.inject import check_injection
from kvbench.measure.result import (
    HAS_FIGURE,
    Caution,
    Report,
    Row,
    State,
    decode_report,
    keep_previous,
    read_bytes,
    write_report,
)
from kvbench.measure.runner import CaseFinished, Event, Setting, run_case
from kvbench.measure.side import FORMS, redact_side
from kvbench.measure.suite import Case


class Session:
    """A report in the making."""

    def __init__(
        self, suite: str, cases: Sequence[Case], setting: Setting, command: Sequence[str]
    ) -> None:
        _check_unique(cases)
        check_injection(setting.inject, [case.id for case in cases])
        self.cases = list(cases)
        self.setting = setting
        side = setting.side
        self._raw: dict[str, Any] | None = None
        self.report = Report(
            kvbench_version=(side and side.version) or __version__,
            session_id=uuid.uuid4().hex,
            suite=suite,
            command=[_redacted(word) for word in command],
            started_at=_now(),
            simulated=setting.profile.name if setting.profile else None,
            inject=dict(setting.inject),
            side=redact_side(side.name) if side else None,
            commit=(side and side.commit) or working_commit(),
            commit_of_kvbench=bool(side and side.commit) or in_kvbench(),
            plan=asdict(setting.plan) | {"seed": setting.seed} | _limits(setting),
            machine=setting.machine,
            model=setting.geometry,
            rows=[],
        )

    def resume(self, path: Path) -> int:
        """Take over the rows of an interrupted run; how many there are.

        The seed is taken over too. Rows of cases that are not asked for now are kept.

        Raises:
            UsageError: the report is of another suite, model, machine, plan or version.
        """
        data = read_bytes(path)
        old = decode_report(data, str(path))
        new = self.report
        for name, before, now in (
            ("suite", old.suite, new.suite),
            ("model", old.model, new.model),
            ("machine", old.machine.fingerprint, new.machine.fingerprint),
            ("kvbench version", old.kvbench_version, new.kvbench_version),
            ("simulated profile", old.simulated, new.simulated),
            ("--inject", list(old.inject.items()), list(new.inject.items())),
            ("side", old.side, new.side),
            ("commit", *(each.commit if _is_built(each) else None for each in (old, new))),
            ("plan", old.plan | {"seed": 0}, new.plan | {"seed": 0}),
        ):
            if before != now:
                raise UsageError(
                    f"cannot resume {path}: its {name} differs; run it with the arguments of its "
                    "`command`, or start a new report with another -o"
                )
        self.setting = replace(self.setting, seed=int(old.plan["seed"]))
        self.report, self._raw = old, json.loads(data)
        self.report.finished_at = None
        definitions = {case.id: case.definition_hash for case in self.cases}
        # A case that failed is tried again; so is one whose definition has changed.
        self.discard(
            row.id
            for row in old.rows
            if row.id in definitions
            and (row.state is State.FAILED or definitions[row.id] != row.definition_hash)
        )
        return len(old.rows)

    def discard(self, ids: Iterable[str]) -> None:
        """Drop the rows of these cases: they are pending again."""
        unwanted = set(ids)
        self.report.rows = [row for row in self.report.rows if row.id not in unwanted]
        if self._raw is not None:
            # Rows may have been dropped, so unknown fields are kept by id rather than by position.
            by_id = {row.get("id"): row for row in self._raw.get("rows", [])}
            self._raw["rows"] = [by_id[row.id] for row in self.report.rows if row.id in by_id]

    @property
    def pending(self) -> list[Case]:
        """Cases that have no row yet."""
        have = {row.id for row in self.report.rows}
        return [case for case in self.cases if case.id not in have]

    def use(self, scratch: Path) -> None:
        """Let the cases write their data files there."""
        self.setting = replace(self.setting, scratch=scratch)

    def run(self, path: Path) -> Iterator[Event]:
        """Measure what is missing, writing the report after each case.

        A finished report that stands at `path` is kept beside it, as `NAME.previous.json`, once
        there is a row to take its place.
        """
        for case in self.pending:
            for event in run_case(case, self.setting):
                if isinstance(event, CaseFinished):
                    self.add(event.row, path)
                yield event
        self.finish(path)

    def add(self, row: Row, path: Path) -> None:
        """Take a row into the report, and put the report on disk."""
        _redact(row)
        row.warnings = [self._with_command(each) for each in row.warnings]
        self.report.rows.append(row)
        if self._raw is None and len(self.report.rows) == 1:
            keep_previous(path)
        self.write(path)

    def finish(self, path: Path) -> None:
        """Say in the report that nothing is missing, and put it on disk."""
        self.report.finished_at = _now()
        self.write(path)

    def write(self, path: Path) -> None:
        """Put the report on disk as it is now."""
        write_report(self.report, path, self._raw)

    def _with_command(self, caution: Caution) -> Caution:
        """A fix that only says which option to add becomes a command that can be pasted."""
        if caution.fix is None or not caution.fix.startswith("--"):
            return caution
        option = caution.fix.partition(" ")[0]
        words: list[str] = []
        for word in self.report.command:
            if word == "--resume" or word.startswith(f"{option}="):
                continue  # a run with another plan is a new one, and an option is given once
            if words and words[-1] == option:
                words.pop()
                continue
            words.append(word)
        command = " ".join(shell_quoted(word) for word in words)
        return msgspec.structs.replace(caution, fix=f"kvbench {command} {caution.fix}")

    @property
    def measured(self) -> int:
        """Rows that hold a figure."""
        return sum(row.state in HAS_FIGURE for row in self.report.rows)


def select(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """The cases whose id matches one of the globs; all of them without a glob.

    Raises:
        UsageError: a glob matches none.
    """
    for glob in only:
        if not any(fnmatchcase(case.id, glob) for case in cases):
            ids = ", ".join(case.id for case in cases[:3])
            raise UsageError(f"--only {glob!r} matches no case; there are {len(cases)}: {ids}, …")
    return [case for case in cases if not only or any(fnmatchcase(case.id, glob) for glob in only)]


def _redact(row: Row) -> None:
    """What a library said may name a home directory; a report is to be shared."""
    if row.reason is not None:
        row.reason = redact_text(row.reason)
    row.missing = {field: redact_text(why) for field, why in row.missing.items()}
    row.warnings = [
        msgspec.structs.replace(each, message=redact_text(each.message)) for each in row.warnings
    ]


def _redacted(word: str) -> str:
    """A word of the command line; a side may hold paths behind its own prefix."""
    return redact_side(word) if word.startswith(FORMS) else redact_argument(word)


def _is_built(report: Report) -> bool:
    """Whether its commit is a side's, so that another one is another thing measured."""
    return (report.side or "").startswith("git:")


def _limits(setting: Setting) -> dict[str, float]:
    return {f"limit_{name}_bytes_per_s": rate for name, rate in setting.limits.items()}


def _check_unique(cases: Sequence[Case]) -> None:
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise UsageError(f"the suite names {case.id} twice; remove one of the two")
        seen.add(case.id)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")

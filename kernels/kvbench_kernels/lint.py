"""Compile many variants for many architectures in worker processes, and judge each build.

A worker is `python -m kvbench_kernels.lint`: it reads one task a line from standard input, answers
each with a line of JSON, and ends when its input is closed, so it cannot outlive its parent. It
finds variants by name in the catalogue. Prints nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, Self, cast

from kvbench_kernels.bars import (
    GOLDEN,
    Finding,
    Verdict,
    judge,
    judge_failed_build,
    read_golden,
    write_golden,
)
from kvbench_kernels.catalogue import variants
from kvbench_kernels.static import Accesses, BuildError, Static, accesses_without_hints, analyse

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from kvbench_kernels.variant import Variant


class WorkerError(Exception):
    """A worker ended with an error that is not of the kernel that it compiled; one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One variant on one architecture: what it compiled to and what the bars say."""

    variant: str
    capability: int
    static: Static | None  # None: it does not compile, and S12 says why
    findings: tuple[Finding, ...]

    def bars(self, verdict: Verdict) -> tuple[str, ...]:
        """The bars of this verdict."""
        return tuple(each.bar for each in self.findings if each.verdict is verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    variant: str
    capability: int
    unhinted: bool  # build it without hints too, for S10


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    static: Static | None = None
    unhinted: Accesses | None = None
    error: str = ""


def judge_all(
    chosen: Sequence[Variant],
    capabilities: Sequence[int],
    *,
    workers: int,
    golden: Path = GOLDEN,
    update: bool = False,
) -> Generator[Judged, None, None]:
    """Build and judge variants of the catalogue, each for the architectures that it is meant for.

    Yields in the order in which builds are finished; close it to end the workers early. The build
    without hints, which must fail S1, is made for the first of a variant's architectures.

    Args:
        chosen: Variants of the catalogue.
        capabilities: The architectures to build for.
        workers: Processes to build in; each takes about 300 MB.
        golden: Folder of the golden files.
        update: Write the golden files anew.

    Raises:
        WorkerError: a worker ended, and not for a kernel that does not compile.
        ValueError: a golden file cannot be read.
        OSError: a golden file cannot be written.
    """
    by_name = {variant.name: variant for variant in chosen}
    for task, answer in _answers(_tasks(chosen, capabilities), workers):
        if update and answer.static is not None:
            write_golden(answer.static, golden)
        yield _judged(by_name[task.variant], task, answer, golden)


def judge_one(variant: Variant, capability: int, *, golden: Path = GOLDEN) -> Judged:
    """Build and judge one variant for one architecture in this process, S10 included.

    Raises:
        RuntimeError: this process interprets kernels, so it cannot compile them.
        ValueError: the golden file cannot be read.
    """
    task = _Task(variant=variant.name, capability=capability, unhinted=True)
    return _judged(variant, task, _build(task, variant), golden)


def count_builds(chosen: Sequence[Variant], capabilities: Sequence[int]) -> int:
    """How many builds `judge_all` will yield."""
    return len(_tasks(chosen, capabilities))


def _judged(variant: Variant, task: _Task, answer: _Answer, golden: Path) -> Judged:
    if answer.static is None:
        findings = judge_failed_build(answer.error)
    else:
        findings = judge(
            variant,
            answer.static,
            golden=read_golden(task.variant, task.capability, golden),
            unhinted=answer.unhinted,
        )
    return Judged(
        variant=task.variant,
        capability=task.capability,
        static=answer.static,
        findings=findings,
    )


def _tasks(chosen: Sequence[Variant], capabilities: Sequence[int]) -> list[_Task]:
    tasks: list[_Task] = []
    for variant in chosen:
        wanted = [each for each in sorted(capabilities) if each in variant.capabilities]
        tasks += [
            _Task(variant=variant.name, capability=each, unhinted=each == wanted[0])
            for each in wanted
        ]
    return tasks


def _answers(tasks: list[_Task], workers: int) -> Generator[tuple[_Task, _Answer], None, None]:
    waiting = list(reversed(tasks))
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:

        def give(worker: _Worker) -> None:
            if waiting:
                worker.give(waiting.pop())
                selector.register(worker.output, selectors.EVENT_READ, worker)

        for _ in range(min(workers, len(tasks))):
            give(stack.enter_context(_Worker()))
        while selector.get_map():
            for key, _ in selector.select():
                worker: _Worker = key.data
                selector.unregister(worker.output)
                answer = worker.answer()
                alive = answer is not None
                yield worker.task, answer or worker.death()
                give(worker if alive else stack.enter_context(_Worker()))


class _Worker:
    """One process that compiles: started, given a task at a time, and ended whatever happens."""

    task: _Task

    def __enter__(self) -> Self:
        # A file, not a pipe: the compiler's messages may be long, and nobody reads them meanwhile.
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kvbench_kernels.lint"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C goes to the parent, which then ends all of it
        )
        self.output = cast("IO[bytes]", self._process.stdout)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its assembler too
        self._process.wait()
        for pipe in (self._process.stdin, self.output, self._said):
            with contextlib.suppress(BrokenPipeError):
                cast("IO[bytes]", pipe).close()

    def give(self, task: _Task) -> None:
        """Let it compile; the answer comes by `output`."""
        self.task = task
        stdin = cast("IO[bytes]", self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it has died; `answer` will say so
            stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            stdin.flush()

    def answer(self) -> _Answer | None:
        """What it answers, None if it has died."""
        line = self.output.readline()
        if not line:
            return None
        found = json.loads(line)
        static, unhinted = found["static"], found["unhinted"]
        return _Answer(
            static=static and Static(**{**static, "accesses": _accesses(static["accesses"])}),
            unhinted=unhinted and _accesses(unhinted),
            error=found["error"],
        )

    def death(self) -> _Answer:
        """The answer of a worker that a signal ended: its compiler crashed on this variant.

        Raises:
            WorkerError: it ended by itself.
        """
        code = self._process.wait()
        task = self.task
        if code < 0:
            name = signal.Signals(-code).name
            error = f"{task.variant} for sm_{task.capability}: the compiler was ended by {name}"
            return _Answer(error=error)
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "nothing on stderr")
        raise WorkerError(
            f"the compiling process ended with {code} at {task.variant} for sm_{task.capability}: "
            f"{last.strip()}"
        )


def _accesses(found: dict[str, Any]) -> Accesses:
    """From JSON, whose keys are text."""
    loads, stores = (
        {int(width): count for width, count in found[side].items()} for side in ("loads", "stores")
    )
    return Accesses(loads=loads, stores=stores, bulk_copies=found["bulk_copies"])


def _work() -> None:
    """Answer the tasks on standard input until it is closed."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the compiler prints is no answer
    by_name = {variant.name: variant for variant in variants()}
    for line in sys.stdin:
        task = _Task(**json.loads(line))
        out.write(json.dumps(asdict(_build(task, by_name[task.variant]))) + "\n")
        out.flush()


def _build(task: _Task, variant: Variant) -> _Answer:
    try:
        static = analyse(variant, task.capability)
        unhinted = accesses_without_hints(variant, task.capability) if task.unhinted else None
    except BuildError as error:
        return _Answer(error=str(error))
    return _Answer(static=static, unhinted=unhinted)


if __name__ == "__main__":
    _work()

"""Many runs over one trace: one after another, or on all cores (`ray_cluster` has Ray).

Results come in the order of the runs and hold the same figures wherever they were computed. A run
that fails is a result with its reason, and so is one whose process was killed. Workers are fresh
processes that map the trace from one set of files; they end with their parent, and at once when the
parent is interrupted.
"""

import contextlib
import dataclasses
import multiprocessing
import signal
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, get_origin

import msgspec
import numpy as np

from kvbench.errors import KvbenchError, UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.outcome import Outcome
from kvbench.sim.record import RequestPath, Summary
from kvbench.sim.scenario import Scenario
from kvbench.sim.summary import request_path, summarise

_SPAWN = multiprocessing.get_context("spawn")  # a fork would copy the parent's threads' locks
ARRAYS = tuple(
    each.name for each in dataclasses.fields(Columns) if get_origin(each.type) is np.ndarray
)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One run, with nothing in it that another machine has not."""

    scenario: Scenario
    requests: int | None = None
    rate_scale: float = 1.0
    dollars_per_hour: float | None = None
    request: int | None = None  # whose critical path is wanted


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What a run gave: a summary, or why there is none."""

    summary: Summary | None = None
    request: RequestPath | None = None
    reason: str = ""


class Simulate(Protocol):
    """`kvbench.sim.cluster.simulate`, or what stands for it: a module's function, for workers."""

    def __call__(self, columns: Columns, scenario: Scenario, /) -> Outcome:
        """Simulate one scenario."""
        ...


def run_job(columns: Columns, job: Job, simulate: Simulate) -> Done:
    """Simulate once; an error meant for the user is the reason of a failed run."""
    try:
        part = cut(columns, job.requests, job.rate_scale)
        outcome = simulate(part, job.scenario)
        return Done(
            summary=summarise(outcome, job.scenario, dollars_per_hour=job.dollars_per_hour),
            request=None if job.request is None else request_path(outcome, job.request),
        )
    except KvbenchError as error:
        return Done(reason=str(error))
    except MemoryError:
        return Done(reason="out of memory")


def run_jobs(
    columns: Columns, jobs: Sequence[Job], simulate: Simulate, *, workers: int = 1
) -> list[Done]:
    """All jobs in order, on so many processes; 1 is this one.

    A bug in `simulate` is raised here as it is with one process, with the worker's traceback.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        return _beside(lambda: [run_job(columns, job, simulate) for job in jobs])
    with tempfile.TemporaryDirectory(prefix="kvbench-sim-") as folder:
        save(columns, Path(folder))
        return _Pool(Path(folder), simulate, workers).run(jobs)


def _beside(work: Callable[[], list[Done]]) -> list[Done]:
    """The result of `work` on another thread, so that this one hears an interrupt at once.

    Compiled code and its compiler hear none: the first ends when it is done, the second fails.
    After an interrupt the thread goes on until it is done or the process ends.
    """
    found: list[list[Done]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001  whatever it is, it is raised below
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


def cut(columns: Columns, requests: int | None, rate_scale: float) -> Columns:
    """The first `requests` of a trace (None: all), arriving `rate_scale` times as fast.

    Raises:
        UsageError: the trace has fewer requests.
    """
    if requests is not None and requests > columns.requests:
        raise UsageError(
            f"--requests {requests:,}: {columns.name} has {columns.requests:,} requests"
        )
    if requests is not None:
        columns = columns.first(requests)
    if rate_scale != 1:
        columns = dataclasses.replace(columns, arrival_s=columns.arrival_s / rate_scale)
    return columns


def save(columns: Columns, folder: Path) -> None:
    """Write a trace so that `load` maps it."""
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(columns, name))
    rest = {
        each.name: getattr(columns, each.name)
        for each in dataclasses.fields(columns)
        if each.name not in ARRAYS
    }
    (folder / "rest.json").write_bytes(msgspec.json.encode(rest))


def load(folder: Path) -> Columns:
    """The trace that `save` wrote, its arrays mapped: what is not written to is shared."""
    # Copy on write, so that compiled code sees plain arrays and need not be compiled once more.
    arrays: dict[str, Any] = {
        name: np.load(folder / f"{name}.npy", mmap_mode="c").view(np.ndarray) for name in ARRAYS
    }
    fields: dict[str, Any] = msgspec.json.decode((folder / "rest.json").read_bytes())
    fields["notes"] = tuple(fields["notes"])
    return Columns(**fields, **arrays)


@dataclass(slots=True)
class _Worker:
    """A process and the job that it has."""

    process: Any  # of a context; its class is another one for each
    connection: "Connection[bytes, bytes]"
    number: int | None = None


class _Pool:
    """Worker processes that are given one job at a time."""

    def __init__(self, folder: Path, simulate: Simulate, workers: int) -> None:
        self._start: Callable[[], _Worker] = partial(_start, folder, simulate)
        self._workers = [self._start() for _ in range(workers)]

    def run(self, jobs: Sequence[Job]) -> list[Done]:
        """All jobs; the processes are gone when it returns or raises."""
        found: dict[int, Done] = {}
        waiting = deque(range(len(jobs)))
        try:
            while len(found) < len(jobs):
                for worker in self._workers:
                    if worker.number is None and waiting:
                        _give(worker, waiting.popleft(), jobs)
                found.update(self._finished())
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
                worker.connection.close()
        return [found[number] for number in range(len(jobs))]

    def _finished(self) -> Iterator[tuple[int, Done]]:
        """Waits for the next results. A dead worker's job failed, and another takes its place."""
        ready = wait([worker.connection for worker in self._workers if worker.number is not None])
        for index, worker in enumerate(self._workers):
            if worker.connection not in ready or worker.number is None:
                continue
            number, worker.number = worker.number, None
            try:
                answer = worker.connection.recv_bytes()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                worker.connection.close()
                self._workers[index] = self._start()
                yield number, Done(reason=_how_it_ended(worker.process.exitcode))
                continue
            if answer.startswith(_BUG):
                raise RuntimeError(answer.removeprefix(_BUG).decode())
            yield number, msgspec.msgpack.decode(answer, type=Done)


_BUG = b"bug:"


def _start(folder: Path, simulate: Simulate) -> _Worker:
    ours, theirs = _SPAWN.Pipe()
    process = _SPAWN.Process(target=_work, args=(folder, simulate, theirs), daemon=True)
    # Ctrl-C goes to all processes of a terminal: the parent hears it and ends the others, which
    # are born with it blocked. Python's own helper would unblock it, so that one comes first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, number: int, jobs: Sequence[Job]) -> None:
    worker.number = number
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_finished` sees it too
        worker.connection.send_bytes(msgspec.msgpack.encode(jobs[number]))


def _work(folder: Path, simulate: Simulate, connection: "Connection[bytes, bytes]") -> None:
    """A worker: jobs in, results out, until the parent has gone."""
    columns = load(folder)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = msgspec.msgpack.decode(connection.recv_bytes(), type=Job)
            try:
                answer = msgspec.msgpack.encode(run_job(columns, job, simulate))
            except Exception:  # noqa: BLE001  whatever it is, the parent raises it
                answer = _BUG + traceback.format_exc().encode()
            connection.send_bytes(answer)


def _how_it_ended(status: int | None) -> str:
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"its process was ended by {name}" + (
            ": out of memory?" if -status == signal.SIGKILL else ""
        )
    return f"its process ended with status {status}"

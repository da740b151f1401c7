"""Threads that move bytes, and one that watches the clock. Every queue has a limit.

A worker never waits for another worker of its pool. A task that raises is a bug: it is logged,
reported to the task, and the thread goes on. Threads are daemons: one that hangs in a dead drive
keeps nobody from leaving.
"""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

_log = logging.getLogger("kvbench.store")
HANGS_S = 5.0  # a task that takes longer when a pool closes is left to its drive
JOIN_S = 0.05  # how often closing looks whether one does


CLOCK_S = 5.0  # how long closing waits for a call of the clock
LEAST_HEAP = 64  # calls of the clock; below it nothing is tidied


class Task(Protocol):
    """A piece of work for a pool."""

    def run(self) -> None:
        """Do it, on a worker's thread."""
        ...

    def fail(self, reason: str) -> None:
        """It was not done: the queue was cleared, or it raised."""
        ...


def nothing() -> None:
    """What threads begin with that have nothing to prepare."""


class Workers:
    """So many threads and a queue of tasks with a limit.

    Each thread calls `begin` before anything else; it is ready when all of them have.
    """

    def __init__(
        self, name: str, threads: int, *, limit: int, begin: Callable[[], object] = nothing
    ) -> None:
        self.name = name
        self.limit = limit
        self._tasks: deque[Task] = deque()
        self._condition = threading.Condition()
        self._open = True
        self._busy: dict[int, float] = {}  # thread → since when, on the monotonic clock
        self._begin, self._begun = begin, threading.Semaphore(0)
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._begun.acquire()

    @property
    def depth(self) -> int:
        """Tasks that wait."""
        return len(self._tasks)

    @property
    def threads(self) -> int:
        """How many threads it has."""
        return len(self._threads)

    def submit(self, task: Task) -> bool:
        """Queue a task; False if the queue is full or closed, and then nothing happens."""
        with self._condition:
            if not self._open or len(self._tasks) >= self.limit:
                return False
            self._tasks.append(task)
            self._condition.notify()
        return True

    def beat(self) -> None:
        """Called by a long task between its parts: it is not stuck."""
        with self._condition:
            self._busy[threading.get_ident()] = time.monotonic()

    def busy_longest_s(self) -> float:
        """How long the oldest task under way has been running; 0 if there is none."""
        with self._condition:
            since = min(self._busy.values(), default=None)
        return 0.0 if since is None else time.monotonic() - since

    def clear(self, reason: str) -> None:
        """Fail all tasks that wait."""
        with self._condition:
            waiting = list(self._tasks)
            self._tasks.clear()
        for task in waiting:
            self._fail(task, reason)

    def close(self, hangs_s: float | None = None) -> bool:
        """Finish what is queued and end the threads; False if a task hangs for so long.

        That is HANGS_S unless it is said: without a `beat`, however much is queued.
        """
        hangs_s = HANGS_S if hangs_s is None else hangs_s
        with self._condition:
            self._open = False
            self._condition.notify_all()
        for thread in self._threads:
            while thread.is_alive():
                thread.join(JOIN_S)
                if thread.is_alive() and self.busy_longest_s() > hangs_s:
                    return False
        return True

    def _work(self) -> None:
        try:
            self._begin()
        finally:
            self._begun.release()
        me = threading.get_ident()
        while True:
            with self._condition:
                self._busy.pop(me, None)
                while not self._tasks:
                    if not self._open:
                        return
                    self._condition.wait()
                task = self._tasks.popleft()
                self._busy[me] = time.monotonic()
            try:
                task.run()
            except Exception as error:  # noqa: BLE001  a bug in one task must not end the pool
                _log.exception("%s: a task failed", self.name)
                self._fail(task, f"{type(error).__name__}: {error}")
            del task  # or its buffers would live until the next one comes

    def _fail(self, task: Task, reason: str) -> None:
        try:
            task.fail(reason)
        except Exception:  # noqa: BLE001  nor must a second one
            _log.exception("%s: a task could not be told that it failed", self.name)


class Alarm:
    """Calls functions at points of the monotonic clock, on one thread of its own.

    What it calls must be quick and must not raise.
    """

    def __init__(self, name: str) -> None:
        self._condition = threading.Condition()
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._serial = 0
        self._dropped: set[int] = set()  # entries of the heap that nobody wants any more
        self._open = True
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    def at(self, when_s: float, call: Callable[[], object]) -> int:
        """Call it once `time.monotonic()` has reached `when_s`; a number for `drop`."""
        with self._condition:
            self._serial += 1
            heapq.heappush(self._heap, (when_s, self._serial, call))
            if self._heap[0][1] == self._serial:
                self._condition.notify()
            return self._serial

    def drop(self, number: int) -> None:
        """Do not make that call; at most as many dropped ones are kept as there are others."""
        with self._condition:
            self._dropped.add(number)
            if 2 * len(self._dropped) > len(self._heap) + LEAST_HEAP:
                self._heap = [each for each in self._heap if each[1] not in self._dropped]
                heapq.heapify(self._heap)
                self._dropped.clear()

    def close(self) -> None:
        """Call nothing any more."""
        with self._condition:
            self._open = False
            self._condition.notify()
        self._thread.join(CLOCK_S)

    def _watch(self) -> None:
        while True:
            with self._condition:
                while self._open and not (self._heap and self._heap[0][0] <= time.monotonic()):
                    wait_s = self._heap[0][0] - time.monotonic() if self._heap else None
                    self._condition.wait(wait_s)
                if not self._open:
                    return
                _, number, call = heapq.heappop(self._heap)
                if number in self._dropped:
                    self._dropped.discard(number)
                    continue
            try:
                call()
            except Exception:  # noqa: BLE001  or no deadline would ever pass again
                _log.exception("a call of the clock failed")

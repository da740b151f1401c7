"""One request to the store: what became of each of its keys, and until when it may wait.

A row belongs to the store only while a worker has claimed it, which is as long as one copy takes.
A key that is settled stays settled: a worker that comes late finds that it may not touch the row.
"""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence

from kvbench.store.block import Status

Result = list[Status]


_callbacks = concurrent.futures.ThreadPoolExecutor(4, "kvbench-callbacks")


class _Future(concurrent.futures.Future[Result]):
    """A future whose callbacks are nobody's business but the caller's.

    They run on threads of their own: one that is slow must not hold up a drive, or the clock.
    """

    def add_done_callback(self, fn: Callable[[concurrent.futures.Future[Result]], object]) -> None:
        """Call it, on another thread, when every key is settled."""
        super().add_done_callback(lambda done: _callbacks.submit(fn, done))


class Request:
    """What `put`, `get_into`, `prefetch` and `flush` return: a future, and awaitable.

    `reasons` says for some keys, by index, why they are not OK.
    """

    def __init__(
        self,
        kind: str,
        size: int,
        *,
        deadline_s: float | None,
        parts: int = 0,
        and_then: bool = False,
    ) -> None:
        self.kind = kind
        self.size = size
        self.started_ns = time.perf_counter_ns()
        self.expires_s = None if deadline_s is None else time.monotonic() + deadline_s
        self.future: concurrent.futures.Future[Result] = _Future()
        self.on_end: Callable[[], None] = lambda: None  # the store's own, quick
        self.reasons: dict[int, str] = {}
        self.corrupt: set[int] = set()  # keys of which a damaged copy was found
        self._lock = threading.Lock()
        self._statuses: list[Status | None] = [None] * size
        self._claimed = bytearray(size)
        self._given_up: dict[int, tuple[Status, str]] = {}
        self._when_free: dict[int, Callable[[], None]] = {}
        self._and_then = and_then
        self._left = size + and_then  # `and_then`: it also waits for `complete`
        self._parts_of = [0] * size if parts else []
        self._missing = [size] * parts
        self._layers = [threading.Event() for _ in range(parts)]
        self.future.set_running_or_notify_cancel()  # nobody cancels it behind our back
        if not self._left:
            self._finish()

    @property
    def statuses(self) -> list[Status | None]:
        """What is known so far; None where it is not."""
        with self._lock:
            return list(self._statuses)

    def done(self) -> bool:
        """Whether every key is settled."""
        return self.future.done()

    def result(self, timeout_s: float | None = None) -> Result:
        """The status of every key, in the order in which they were given.

        Raises:
            TimeoutError: not all are settled after `timeout_s`; the request goes on.
        """
        return self.future.result(timeout_s)

    def __await__(self) -> Generator[None, None, Result]:
        return asyncio.wrap_future(self.future).__await__()

    def layer(self, part: int) -> threading.Event:
        """Set when no row is waiting for this part any more: it is there, or its key has failed.

        Only for requests by layer (IndexError otherwise). Look at `statuses` for failures.
        """
        return self._layers[part]

    # What follows is for the store's own threads.

    def waiting(self) -> bool:
        """Whether any key is unsettled."""
        return self._left > 0

    def open(self, index: int) -> bool:
        """Whether this key is unsettled."""
        return self._statuses[index] is None

    def claim(self, indexes: Sequence[int]) -> list[int]:
        """Those whose rows may be used now, until `settle` or `unclaim`; the others are settled."""
        with self._lock:
            mine = [i for i in indexes if self._statuses[i] is None]
            for i in mine:
                self._claimed[i] = 1
        return mine

    def unclaim(self, indexes: Iterable[int]) -> None:
        """These rows are not in use any more, and their keys are still open."""
        calls: list[Callable[[], None]] = []
        late: list[tuple[int, Status, str]] = []
        with self._lock:
            for i in indexes:
                self._claimed[i] = 0
                if i in self._when_free:
                    calls.append(self._when_free.pop(i))
                if i in self._given_up:  # while the row was in use
                    late.append((i, *self._given_up.pop(i)))
        for i, status, reason in late:
            self.settle([i], status, reason)
        for call in calls:
            call()

    def when_free(self, index: int, call: Callable[[], None]) -> None:
        """Call it now, or when a row that is in use is unclaimed; never if it is settled first."""
        with self._lock:
            if self._claimed[index]:
                self._when_free[index] = call
                return
        call()

    def arrived(self, indexes: Iterable[int], part: int) -> None:
        """Part `part` is in these rows, after all parts before it."""
        with self._lock:
            for i in indexes:
                self._pass(i, part + 1)

    def settle(self, indexes: Iterable[int], status: Status, reason: str = "") -> int:
        """Give these keys their status, those that have none; how many those were."""
        with self._lock:
            settled = self._settle(indexes, status, reason)
            last = settled > 0 and not self._left
        if last:
            self._finish()
        return settled

    def complete(self) -> None:
        """What the request waits for besides its keys has happened; once more is no error."""
        with self._lock:
            last = self._and_then and self._left == 1
            self._left -= self._and_then
            self._and_then = False
        if last:
            self._finish()

    def give_up(
        self,
        reason: str,
        indexes: Iterable[int] | None = None,
        status: Status = Status.TIMEOUT,
    ) -> int:
        """That status for all that is open; rows in use have it if they are let go unsettled."""
        with self._lock:
            among = range(self.size) if indexes is None else list(indexes)
            unclaimed = [i for i in among if not self._claimed[i]]
            for i in among:
                if self._claimed[i] and self._statuses[i] is None:
                    self._given_up.setdefault(i, (status, reason))
            before = self._left
            settled = self._settle(unclaimed, status, reason)
            self._left -= self._and_then
            self._and_then = False
            last = before > 0 and not self._left
        if last:
            self._finish()
        return settled

    def _settle(self, indexes: Iterable[int], status: Status, reason: str) -> int:
        settled = 0
        for i in indexes:
            if self._statuses[i] is None:
                self._statuses[i] = status
                settled += 1
                if reason:
                    self.reasons[i] = reason
                if self._layers:
                    self._pass(i, len(self._layers))
        self._left -= settled
        return settled

    def _pass(self, index: int, parts: int) -> None:
        for part in range(self._parts_of[index], parts):
            self._missing[part] -= 1
            if not self._missing[part]:
                self._layers[part].set()
        self._parts_of[index] = max(self._parts_of[index], parts)

    def _finish(self) -> None:
        statuses = [status for status in self._statuses if status is not None]
        self.future.set_result(statuses)
        self.on_end()

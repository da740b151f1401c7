"""Making blocks durable: first into the durable tier, then one wait for the device.

A flush is answered OK for a key only after the drive said that what was written would survive a
loss of power. Flushes that wait at the same time share one such wait.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from kvbench.store.block import Status
from kvbench.store.core import Core, Level
from kvbench.store.metrics import WHOLE, Counted
from kvbench.store.moves import Moves
from kvbench.store.puts import Puts
from kvbench.store.request import Request
from kvbench.store.spans import IO


class _Job:
    """One flush: which of its keys are not in the durable tier yet.

    Its blocks stay in the durable tier, leased, until the drive was waited for: what is answered
    OK must not have been evicted meanwhile.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.written: list[int] = []
        self.held: list[int] = []  # slots of the durable tier
        self.to_bring: deque[tuple[int, bytes]] = deque()
        self._left = request.size + 1  # one for the caller, who is still counting
        self._lock = threading.Lock()

    def settle(self, index: int, status: Status, reason: str, slot: int | None) -> bool:
        """A key is in the durable tier (OK), or will not be; True if it was the last."""
        if status is Status.OK and slot is not None:
            self.written.append(index)
            self.held.append(slot)
        else:
            self.request.settle([index], status, reason)
        return self.arrived()

    def arrived(self) -> bool:
        """One thing less to wait for; True if it was the last."""
        with self._lock:
            self._left -= 1
            return not self._left


class Flushes:
    """The flushes of a store with a durable tier."""

    def __init__(self, core: Core, moves: Moves, puts: Puts, level: Level) -> None:
        self.level = level
        self._core = core
        self._moves = moves
        self._puts = puts
        self._after_put: dict[bytes, list[tuple[_Job, int]]] = {}
        self._waiting: list[_Job] = []  # for the next sync
        self._syncing: list[_Job] = []
        self._active = False
        puts.after = self._put_over

    def not_durable(self) -> list[bytes]:
        """Keys that are here, or on their way, and not in the durable tier; the lock is held."""
        durable = self.level.table.index
        keys = dict.fromkeys(self._puts.joined)
        for level in self._core.levels[: self.level.number]:
            keys.update(dict.fromkeys(level.table.index))
        return [key for key in keys if key not in durable]

    def start(self, request: Request, keys: Sequence[bytes]) -> None:
        """Bring these blocks to the durable tier, parents first, and make them last.

        Only so many are on their way at a time: a flush of everything must not hold everything.
        """
        job = _Job(request)
        job.to_bring.extend(enumerate(keys))
        self._bring_next(job, self._moves.limit(self.level))
        if job.arrived():
            self._sync(job)

    def abandon(self, level: Level, reason: str) -> None:
        """The durable tier is fenced: nobody waits for its syncs."""
        if level is not self.level:
            return
        with self._core.lock:
            jobs = [*self._waiting, *self._syncing]
            self._waiting = []
        for job in jobs:
            self.done(job, Status.BUSY, reason)

    def take(self) -> list[_Job]:
        """Those who wait for a sync; none at the end."""
        with self._core.lock:
            self._syncing, self._waiting = self._waiting, []
            self._active = bool(self._syncing)
            return self._syncing

    def stopped(self, reason: str) -> None:
        """The sync was not done."""
        with self._core.lock:
            jobs = [*self._waiting, *self._syncing]
            self._waiting, self._syncing, self._active = [], [], False
        for job in jobs:
            self.done(job, Status.BUSY, reason)

    def _bring_next(self, job: _Job, count: int = 1) -> None:
        """So many more keys on their way; those of which is known at once do not count."""
        known: list[tuple[int, Status, str, int | None]] = []
        with self._core.lock:  # once for all, so that neighbours move together
            while job.to_bring and count:
                index, key = job.to_bring.popleft()
                outcome = self._bring(job, index, key)
                if outcome is None:
                    count -= 1
                else:
                    known.append((index, *outcome))
        for each in known:
            if job.settle(*each):
                self._sync(job)

    def _bring(self, job: _Job, index: int, key: bytes) -> tuple[Status, str, int | None] | None:
        """What is known of a key at once; None if somebody will tell. The lock is held."""
        fence, table = self.level.fence, self.level.table
        if fence is not None:
            return Status.BUSY, fence.reason, None
        slot = table.index.get(key)
        if slot is not None:
            table.lease([slot])
            return Status.OK, "", slot
        if key in self._puts.joined:
            self._after_put.setdefault(key, []).append((job, index))
            return None
        place = self._core.find(key)
        if place is None:
            return Status.MISS, "", None
        source = self._core.levels[place[0]]
        if self._moves.offer(self.level, source, key, done=self._teller(job, index)):
            return None
        return Status.BUSY, "it cannot be moved", None

    def _teller(self, job: _Job, index: int) -> Callable[[Status, str, int | None], None]:
        def tell(status: Status, reason: str, slot: int | None) -> None:
            self._bring_next(job)
            if job.settle(index, status, reason, slot):
                self._sync(job)

        return tell

    def done(self, job: _Job, status: Status, reason: str) -> None:
        """A flush is over: its blocks may go."""
        with self._core.lock:
            held, job.held = job.held, []
            self._core.release(self.level, held)
        job.request.settle(job.written, status, reason)
        job.request.complete()

    def _put_over(self, keys: Sequence[bytes]) -> None:
        """Blocks whose put has ended, for whoever flushes them."""
        if not self._after_put:
            return
        for key in keys:
            with self._core.lock:
                waiting = self._after_put.pop(key, [])
                told = [(job, index, self._bring(job, index, key)) for job, index in waiting]
            for job, index, outcome in told:
                if outcome is None:
                    continue
                self._bring_next(job)
                if job.settle(index, *outcome):
                    self._sync(job)

    def _sync(self, job: _Job) -> None:
        with self._core.lock:
            fence = self.level.fence
            if fence is None:
                self._waiting.append(job)
            start = fence is None and not self._active
            self._active = self._active or start
        if fence is not None:  # whoever gave the tier up may have been here already
            self.done(job, Status.BUSY, fence.reason)
        if start and not self.level.writers.submit(_Sync(self, self._core)):
            self.stopped("too many writes are waiting")


class _Sync:
    """A worker that syncs until nobody waits for it."""

    def __init__(self, flushes: Flushes, core: Core) -> None:
        self._flushes = flushes
        self._core = core

    def run(self) -> None:
        """Sync by sync."""
        core, level = self._core, self._flushes.level
        while jobs := self._flushes.take():
            start_ns = time.perf_counter_ns()
            status, reason = Status.OK, ""
            try:
                level.tier.flush()
            except OSError as error:
                status, reason = Status.BUSY, f"not durable: {error}"
                with core.lock:
                    core.metrics.count(Counted.IO_ERRORS, 1, tier=level.name)
                    # Nobody knows what it kept, and the next sync would say that all is well.
                    core.fence(level, f"sync: {error}", reads=False)
            end_ns = time.perf_counter_ns()
            core.metrics.observe("sync", WHOLE, (end_ns - start_ns) / 1e9)
            core.note("sync", IO, start_ns, end_ns, 0)
            for job in jobs:
                self._flushes.done(job, status, reason)
            level.writers.beat()

    def fail(self, reason: str) -> None:
        """It raised, or the tier was given up."""
        self._core.crashed(self._flushes.level, "write", reason)
        self._flushes.stopped(reason)

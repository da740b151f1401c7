"""Reading: from where blocks lie into the caller's rows, checked on arrival.

A tier in memory is read straight into the rows. A tier that may stall (a drive) is read into the
store's own memory: a slot of the tier above, so that the block is promoted by the way, or a
worker's staging buffer. So a drive that hangs never holds a row of the caller, and who asks for a
block that is being read already waits for that one read.

Every block is checked against its key and checksums where it arrived. A copy that is damaged is
taken out, and the next slower tier is asked.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kvbench.store.block import CorruptBlockError, Stamp, Status
from kvbench.store.core import GONE, Core, Level, admission, transient
from kvbench.store.drive_read import SHARE_BYTES, DriveRead, Flight, Waiter
from kvbench.store.lease import Hold
from kvbench.store.memory_read import Item, MemoryRead
from kvbench.store.metrics import WHOLE, Counted
from kvbench.store.request import Request
from kvbench.store.rows import Rows
from kvbench.store.workers import Task

SHARES = 4  # of a request to a drive, for as many workers


class Work(Task, Protocol):
    """A read that a pool can be given."""

    level: Level

    def refuse(self) -> None:
        """The pool's queue is full: nothing will be done."""
        ...


class Offers(Protocol):
    """What reading wants of writing: hot blocks may go to other tiers."""

    def used(self, level: Level, keys: Sequence[bytes]) -> None:
        """Blocks of a tier were read; the lock is held."""
        ...


@dataclass(slots=True)
class _Plan:
    """What is to become of the keys of a request."""

    absent: list[int] = field(default_factory=list[int])
    there: list[int] = field(default_factory=list[int])
    work: list[Work] = field(default_factory=list[Work])


class Gets:
    """The reading half of a store."""

    def __init__(self, core: Core, offers: Offers) -> None:
        self.core = core
        self.promotion = admission(core.options.promotion, core.options.remembered_keys)
        self._offers = offers
        self._flights: dict[tuple[int, bytes], Flight] = {}

    def start(
        self,
        request: Request,
        keys: Sequence[bytes],
        rows: Rows | None,
        by_layer: bool,
        *,
        held: bool = False,
    ) -> None:
        """Find the blocks and queue the reading of them.

        Those that are `held` by a lease as many at a time as the readers of a drive can have under
        way: it is at work on the first while the others are looked for. Others all at once, or the
        first might push the last out of memory.
        """
        core, options = self.core, self.core.options
        at_once = options.read_threads * options.transfer_bytes // core.layout.block_bytes
        step = max(1, at_once if held else len(keys))
        for at in range(0, len(keys), step):
            some = keys[at : at + step]
            with core.lock:
                places = [core.find(key) for key in some]
                core.touch([key for key, place in zip(some, places, strict=True) if place])
                indexes = range(at, at + len(some))
                plan = self._plan(request, indexes, some, places, rows, by_layer)
            self._begin(request, plan)

    def again(self, request: Request, index: int, key: bytes, rows: Rows | None) -> None:
        """A copy was damaged or out of reach: look for another one, once the row is not in use."""
        request.when_free(index, lambda: self._again(request, index, key, rows))

    def _again(self, request: Request, index: int, key: bytes, rows: Rows | None) -> None:
        core = self.core
        if not request.open(index):
            return
        if request.expires_s is not None and request.expires_s <= time.monotonic():
            request.settle([index], Status.TIMEOUT, "the deadline passed")
            return
        with core.lock:
            plan = self._plan(request, [index], [key], [core.find(key)], rows, by_layer=False)
        self._begin(request, plan)

    def abandon(self, level: Level, reason: str) -> None:
        """A tier is fenced: who waits for a read of it looks elsewhere."""
        with self.core.lock:
            mine = [flight for flight in self._flights.values() if flight.level is level]
            waiters = [(flight, flight.waiters) for flight in mine]
            for flight in mine:
                del self._flights[level.number, flight.key]
                flight.waiters = []
        for flight, waiting in waiters:
            for request, index, rows in waiting:
                request.reasons.setdefault(index, reason)
                self.again(request, index, flight.key, rows)

    # Planning. The lock is held.

    def _plan(
        self,
        request: Request,
        indexes: Sequence[int],
        keys: Sequence[bytes],
        places: Sequence[Hold | None],
        rows: Rows | None,
        by_layer: bool,
    ) -> _Plan:
        core = self.core
        plan = _Plan()
        nearby: dict[int, list[Item]] = {}
        far: dict[int, list[Flight]] = {}
        for index, key, place in zip(indexes, keys, places, strict=True):
            if place is None:
                plan.absent.append(index)
                continue
            number, slot = place
            level = core.levels[number]
            if level.tier.stalls:
                flight = self._join(level, slot, key, (request, index, rows), by_layer)
                if flight is not None:
                    far.setdefault(number, []).append(flight)
            elif rows is None:  # a prefetch of what is in memory already
                plan.there.append(index)
            else:
                level.table.lease([slot])
                nearby.setdefault(number, []).append(Item(index, key, slot))
        for number, items in nearby.items():
            assert rows is not None
            plan.work += self._shares(core.levels[number], request, items, rows, by_layer)
        for number, flights in far.items():
            plan.work += self._runs(core.levels[number], flights)
        return plan

    def _join(
        self, level: Level, slot: int, key: bytes, waiter: Waiter, by_layer: bool
    ) -> Flight | None:
        """Wait for the read of a block; the flight if nobody had asked for it yet."""
        flight = self._flights.get((level.number, key))
        if flight is not None:
            self.core.metrics.count(Counted.COALESCED_GETS, 1, tier=level.name)
            flight.waiters.append(waiter)
            return None
        level.table.lease([slot])
        flight = self._flights[level.number, key] = Flight(level, key, slot, by_layer, [waiter])
        return flight

    def _shares(
        self,
        level: Level,
        request: Request,
        items: list[Item],
        rows: Rows,
        by_layer: bool,
    ) -> list[MemoryRead]:
        """Reads of memory, shared out among the workers."""
        most = max(1, self.core.options.batch_bytes // self.core.layout.block_bytes)
        size = min(most, -(-len(items) // level.readers.threads))
        return [
            MemoryRead(self, level, request, items[at : at + size], rows, by_layer)
            for at in range(0, len(items), size)
        ]

    def _runs(self, level: Level, flights: list[Flight]) -> list[DriveRead]:
        """Reads of a drive: neighbouring slots together, up to one transfer's size.

        Others too, if the drive then has all of them at once; but some workers should have one, or
        nobody checks and copies blocks while others are on their way.
        """
        most = max(1, self.core.options.transfer_bytes // self.core.layout.block_bytes)
        flights.sort(key=lambda flight: flight.slot)
        if level.tier.at_once and not any(flight.by_layer for flight in flights):
            least = SHARE_BYTES // self.core.layout.block_bytes
            size = max(1, min(most, max(least, -(-len(flights) // SHARES))))
            return [
                DriveRead(self, level, flights[at : at + size])
                for at in range(0, len(flights), size)
            ]
        runs: list[list[Flight]] = []
        for flight in flights:
            last = runs[-1] if runs else None
            if last and len(last) < most and flight.slot == last[-1].slot + 1:
                last.append(flight)
            else:
                runs.append([flight])
        return [DriveRead(self, level, run) for run in runs]

    # Without the lock: settling a request may call back into the store.

    def _begin(self, request: Request, plan: _Plan) -> None:
        for task in plan.work:
            if not task.level.readers.submit(task):
                task.refuse()
        request.settle(plan.there, Status.OK)
        if plan.absent:
            corrupt = [index for index in plan.absent if index in request.corrupt]
            misses = [index for index in plan.absent if index not in request.corrupt]
            self.core.metrics.count(Counted.MISSES, len(misses), tier=WHOLE)
            request.settle(corrupt, Status.CORRUPT)
            request.settle(misses, Status.MISS)

    def landed(self, flights: Sequence[Flight]) -> list[tuple[Flight, list[Waiter]]]:
        """Reads that are over, and who waited for each; nobody joins them any more."""
        over: list[tuple[Flight, list[Waiter]]] = []
        with self.core.lock:
            for flight in flights:
                if self._flights.get((flight.level.number, flight.key)) is flight:
                    del self._flights[flight.level.number, flight.key]
                over.append((flight, flight.waiters))
                flight.waiters = []
        return over

    def failed(self, level: Level, slot: int, key: bytes, error: Exception) -> None:
        """Deal with a copy that could not be read."""
        core = self.core
        corrupt = isinstance(error, CorruptBlockError)
        with core.lock:
            if corrupt:
                core.metrics.count(Counted.VERIFY_FAILURES, 1, tier=level.name)
            lost = isinstance(error, OSError) and error.errno in GONE
            if not lost and not transient(error):
                core.damaged(level, slot, key, error)
            if not corrupt:
                core.failed_transfer(level, "read", error)

    def after(
        self, request: Request, index: int, key: bytes, rows: Rows | None, error: Exception
    ) -> None:
        """A copy could not be read: look for another one, unless it is to be asked for again."""
        request.reasons[index] = str(error)
        if transient(error):
            request.settle([index], Status.BUSY, str(error))
            return
        if isinstance(error, CorruptBlockError):
            request.corrupt.add(index)
        self.again(request, index, key, rows)

    def served(self, level: Level, keys: Sequence[bytes], stamps: Sequence[Stamp]) -> None:
        """Blocks arrived whole: count them, and let the hot ones move."""
        core = self.core
        core.tally(Counted.HITS, level, stamps)
        with core.lock:
            core.worked(level, "read")
            self._offers.used(level, keys)

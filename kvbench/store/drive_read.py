"""One transfer from a tier that may stall, on a worker, and those who wait for it.

The blocks arrive in memory of the store: in slots of the tier above, if they are to be promoted,
else in the worker's own staging buffer. From there they are copied to each row that still waits.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from kvbench.store.block import Bytes, Stamp, Status
from kvbench.store.core import Level
from kvbench.store.memory_read import QUEUE_FULL, problems
from kvbench.store.metrics import Counted
from kvbench.store.posix import mapped_buffer
from kvbench.store.request import Request
from kvbench.store.rows import Rows, RowsError
from kvbench.store.spans import IO
from kvbench.store.table import State

if TYPE_CHECKING:
    from kvbench.store.gets import Gets

PAGE_BYTES = 4096
SHARE_BYTES = 2**20  # what one worker at least takes of a request: less is all bookkeeping
SHARE_IN_FLIGHT = 4  # one slot in so many, at most, is promised to blocks that are being read
Waiter = tuple[Request, int, Rows | None]  # a request, which of its keys, its rows; None: prefetch

_own = threading.local()


def staging(count: int, block_bytes: int) -> list[Bytes]:
    """This thread's page-aligned buffers for `count` blocks, used again by its next call."""
    if not count:
        return []
    stride = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
    area: Bytes | None = getattr(_own, "area", None)
    if area is None or area.nbytes < count * stride:
        area = _own.area = mapped_buffer(count * stride, huge_pages=True)
    return [area[at * stride : at * stride + block_bytes] for at in range(count)]


@dataclass(slots=True, eq=False)
class Flight:
    """A block that is being read, or will be; whoever wants it meanwhile waits for this read."""

    level: Level
    key: bytes
    slot: int  # leased until the read is over
    by_layer: bool  # the first of the waiters gets it part by part
    waiters: list[Waiter] = field(default_factory=list[Waiter])

    def wanted(self) -> bool:
        """Whether anybody still waits."""
        return any(request.waiting() for request, _, _ in self.waiters)


@dataclass(slots=True, eq=False)
class _Arrival:
    """Where one block of the transfer goes."""

    flight: Flight
    target: Bytes
    promoted: int | None  # the slot above, WRITING, whose memory the target is
    stamp: Stamp | None = None
    error: Exception | None = None
    by_parts: Waiter | None = None  # who has had every part so far


class DriveRead:
    """A run of neighbouring slots, or one slot."""

    def __init__(self, gets: "Gets", level: Level, flights: list[Flight]) -> None:
        self.level = level
        self._gets = gets
        self._flights = flights
        self._arrivals: list[_Arrival] = []

    def run(self) -> None:
        """Read, check, promote, hand out."""
        start_ns = time.perf_counter_ns()
        core, level = self._gets.core, self.level
        wanted = [flight for flight in self._flights if flight.wanted()]
        self._drop([flight for flight in self._flights if flight not in wanted])
        self._flights = wanted
        if not wanted:
            return
        arrivals = self._arrivals = self._places()
        if all(flight.by_layer for flight in wanted) and level.tier.parts_alone:
            for arrival in arrivals:
                arrival.by_parts = next(iter(arrival.flight.waiters), None)
            for part in range(core.layout.parts):
                self._read([each for each in arrivals if each.error is None], part)
        else:
            self._read(arrivals, None)
        self._keep(arrivals)
        good = [arrival for arrival in arrivals if arrival.error is None]
        self._hand_out(good)
        for arrival in arrivals:
            if arrival.error is not None:
                self._look_elsewhere(arrival.flight, arrival.error)
        self._let_go()
        end_ns = time.perf_counter_ns()
        core.metrics.observe("get", level.name, (end_ns - start_ns) / 1e9, len(good))
        core.note(f"get {level.name}", IO, start_ns, end_ns, len(good))
        core.tidy(level)

    def fail(self, reason: str) -> None:
        """It raised, or its tier was given up before it began."""
        core = self._gets.core
        if self.level.readable:
            core.crashed(self.level, "read", reason)
        for flight, waiters in self._gets.landed(self._flights):
            for request, index, rows in waiters:
                if self.level.readable:  # not a MISS: the blocks are still here
                    request.settle([index], Status.BUSY, reason)
                else:
                    self._gets.again(request, index, flight.key, rows)
        with core.lock:
            for arrival in self._arrivals:
                above = core.levels[self.level.number - 1]
                slot = arrival.promoted
                if slot is not None and above.table.state(slot) is State.WRITING:
                    core.failed(above, slot)
                    arrival.promoted = None
        self._let_go()

    def refuse(self) -> None:
        """The queue is full."""
        self._gets.core.metrics.count(Counted.BUSY, len(self._flights), tier=self.level.name)
        for _, waiters in self._gets.landed(self._flights):
            for request, index, _ in waiters:
                request.settle([index], Status.BUSY, QUEUE_FULL)
        self._let_go()

    def _drop(self, flights: list[Flight]) -> None:
        """Reads that nobody waits for."""
        if not flights:
            return
        for flight, waiters in self._gets.landed(flights):
            for request, index, rows in waiters:  # who joined just now
                self._gets.again(request, index, flight.key, rows)
        with self._gets.core.lock:
            self._gets.core.release(self.level, [flight.slot for flight in flights])

    def _places(self) -> list[_Arrival]:
        """A place for each block: a slot above if it is promoted, else staging."""
        core, flights = self._gets.core, self._flights
        with core.lock:
            slots = [self._slot_above(flight) for flight in flights]
        buffers = staging(slots.count(None), core.layout.block_bytes)
        arrivals: list[_Arrival] = []
        for flight, slot in zip(flights, slots, strict=True):
            view = None if slot is None else core.levels[self.level.number - 1].tier.view(slot)
            arrivals.append(_Arrival(flight, buffers.pop() if view is None else view, slot))
        return arrivals

    def _slot_above(self, flight: Flight) -> int | None:
        """A slot in the tier above, WRITING; None if the block is not to go there."""
        core = self._gets.core
        if not self.level.number:
            return None
        above = core.levels[self.level.number - 1]
        if above.tier.stalls or not above.writable or not above.host_memory:
            return None
        table, key = above.table, flight.key
        if key in table.index or key in table.writing:
            return None
        if all(rows is not None for _, _, rows in flight.waiters):  # nobody asked for it to move
            # Reads that hang must not take the tier above with them.
            if len(table.writing) * SHARE_IN_FLIGHT >= table.slots:
                return None
            if not self._gets.promotion.admit(key):
                return None
        core.room_in_memory(above, 1)
        return table.reserve(self.level.table.stamp(flight.slot))

    def _read(self, arrivals: list[_Arrival], part: int | None) -> None:
        layout = self._gets.core.layout
        targets = [
            each.target if part is None else layout.part(each.target, part) for each in arrivals
        ]
        found = self.level.tier.read([each.flight.slot for each in arrivals], targets, part)
        keys = [each.flight.key for each in arrivals]
        wrong = problems(found, keys, part, targets, layout, checked=self.level.tier.checks)
        for arrival, stamp, error in zip(arrivals, found, wrong, strict=True):
            arrival.error = error
            if error is None:
                arrival.stamp = cast("Stamp", stamp)
        if part is not None:
            self._hand_part(
                [
                    (arrival, data)
                    for arrival, data in zip(arrivals, targets, strict=True)
                    if arrival.error is None
                ],
                part,
            )

    def _hand_part(self, arrived: list[tuple[_Arrival, Bytes]], part: int) -> None:
        """One part of each block to the waiter that takes it part by part."""
        wanted: list[tuple[Waiter, Bytes]] = []
        with self._gets.core.lock:  # if the tier is given up, its waiters are no longer ours
            for arrival, data in arrived:
                if arrival.by_parts is None:
                    continue
                request, index, rows = arrival.by_parts
                ours = arrival.by_parts in arrival.flight.waiters
                if rows is None or not ours or not request.claim([index]):
                    arrival.by_parts = None
                    continue
                wanted.append((arrival.by_parts, data))
        for request, rows, indexes, pieces in _by_request(wanted):
            try:
                rows.receive_many(indexes, part, pieces)
                rows.finish(indexes, part)
            except RowsError as error:
                request.settle(indexes, Status.BUSY, str(error))
                continue
            request.arrived(indexes, part)
            request.unclaim(indexes)

    def _keep(self, arrivals: list[_Arrival]) -> None:
        """Blocks that arrived whole in a slot above can be found there from now on."""
        core = self._gets.core
        above = core.levels[self.level.number - 1]
        for arrival in arrivals:
            if arrival.promoted is None:
                continue
            error = arrival.error
            if arrival.stamp is not None and error is None:
                (error,) = above.tier.write([arrival.promoted], [arrival.stamp], [arrival.target])
            with core.lock:
                if arrival.stamp is None or error is not None:
                    arrival.target = arrival.target.copy()  # the slot may be another's at once
                    core.failed(above, arrival.promoted)
                    arrival.promoted = None
                    continue
                core.stored(above, [arrival.promoted], [arrival.stamp])
                above.table.lease([arrival.promoted])  # until everybody has copied it
            core.tally(Counted.PROMOTIONS, above, [arrival.stamp])

    def _hand_out(self, good: list[_Arrival]) -> None:
        if not good:
            return
        self._gets.served(
            self.level,
            [arrival.flight.key for arrival in good],
            [arrival.stamp for arrival in good if arrival.stamp is not None],
        )
        waiting = self._gets.landed([arrival.flight for arrival in good])
        wanted: list[tuple[Waiter, Bytes]] = []
        for arrival, (_, waiters) in zip(good, waiting, strict=True):
            for waiter in waiters:
                request, index, rows = waiter
                if rows is None and arrival.promoted is None:
                    request.settle([index], Status.BUSY, "no room in the faster tier")
                elif rows is None or waiter == arrival.by_parts:
                    request.settle([index], Status.OK)
                else:
                    wanted.append((waiter, arrival.target))
        for request, rows, indexes, data in _by_request(wanted):
            _copy(request, rows, indexes, data)

    def _look_elsewhere(self, flight: Flight, error: Exception) -> None:
        self._gets.failed(self.level, flight.slot, flight.key, error)
        for _, waiters in self._gets.landed([flight]):
            for request, index, rows in waiters:
                self._gets.after(request, index, flight.key, rows, error)

    def _let_go(self) -> None:
        core = self._gets.core
        flights, self._flights = self._flights, []
        arrivals, self._arrivals = self._arrivals, []
        with core.lock:
            core.release(self.level, [flight.slot for flight in flights])
            core.release(
                core.levels[self.level.number - 1],
                [each.promoted for each in arrivals if each.promoted is not None],
            )


def _by_request(
    wanted: Sequence[tuple[Waiter, Bytes]],
) -> list[tuple[Request, Rows, list[int], list[Bytes]]]:
    """What arrived for the rows of each request: a device has one transfer for all of them."""
    found: dict[Request, tuple[Request, Rows, list[int], list[Bytes]]] = {}
    for (request, index, rows), data in wanted:
        assert rows is not None
        _, _, indexes, pieces = found.setdefault(request, (request, rows, [], []))
        indexes.append(index)
        pieces.append(data)
    return list(found.values())


def _copy(request: Request, rows: Rows, indexes: list[int], data: list[Bytes]) -> None:
    """Blocks, which are whole, to the rows of one who waits for them."""
    mine = set(request.claim(indexes))
    if not mine:
        return
    pieces = [each for index, each in zip(indexes, data, strict=True) if index in mine]
    places = [index for index in indexes if index in mine]
    try:
        rows.receive_many(places, None, pieces)
        rows.finish(places, None)
    except RowsError as error:
        request.settle(places, Status.BUSY, str(error))
    else:
        request.settle(places, Status.OK)

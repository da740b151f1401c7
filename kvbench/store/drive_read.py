"""One transfer from a tier that may stall, on a worker, and those who wait for it.

The blocks arrive in memory of the store: in slots of the tier above, if they are to be promoted,
else in the worker's own staging buffer. From there they are copied to each row that still waits.
The first of these copies is the check too, one pass over the bytes, where the row is in host
memory: a damaged block reaches a row, but never its answer. A drive is not given the row itself:
it may hang with it after the deadline. (Nor is that faster, unless rows lie in huge pages: of
small ones the kernel pins 256 for 1 MiB, which takes it as long as the copy.)
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from kvbench.store.block import Bytes, Stamp, Status
from kvbench.store.copying import copy_with_sums, sums_of
from kvbench.store.core import Level
from kvbench.store.memory_read import QUEUE_FULL, problems, shape_of
from kvbench.store.metrics import Counted
from kvbench.store.request import Request
from kvbench.store.rows import HostRows, Rows, RowsError
from kvbench.store.spans import IO
from kvbench.store.staging import staging
from kvbench.store.table import State

if TYPE_CHECKING:
    from kvbench.store.gets import Gets

SHARE_BYTES = 2**20  # what one worker at least takes of a request: less is all bookkeeping
SHARE_IN_FLIGHT = 4  # one slot in so many, at most, is promised to blocks that are being read
Waiter = tuple[Request, int, Rows | None]  # a request, which of its keys, its rows; None: prefetch


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
        for request, _, _ in self.waiters:  # noqa: SIM110  any() makes a generator for each block
            if request.waiting():
                return True
        return False


@dataclass(slots=True, eq=False)
class _Arrival:
    """Where one block of the transfer goes."""

    flight: Flight
    target: Bytes
    promoted: int | None  # the slot above, WRITING, whose memory the target is
    stamp: Stamp | None = None
    error: Exception | None = None
    taker: Waiter | None = None  # the first of those who wait: has had every part so far
    row: Bytes | None = None  # the taker's memory for what is being read, while it is claimed


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
                arrival.taker = next(iter(arrival.flight.waiters), None)
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
        _untake(self._arrivals)
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
        slots: list[int | None] = [None] * len(flights)
        if self.level.number:
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
        wrong = problems(found, [each.flight.key for each in arrivals])
        arrived: list[tuple[_Arrival, Bytes]] = []
        for arrival, data, stamp, error in zip(arrivals, targets, found, wrong, strict=True):
            arrival.error = error
            if error is None:
                arrival.stamp = cast("Stamp", stamp)
                arrived.append((arrival, data))
        self._check(arrived, part)
        if part is not None:
            self._hand_part([each for each in arrived if each[0].error is None], part)

    def _check(self, arrived: list[tuple[_Arrival, Bytes]], part: int | None) -> None:
        """Compare what arrived with its checksums, in the copy to the row of its taker if it can.

        A row whose block is damaged is let go at once, whatever it holds now.
        """
        layout = shape_of(self._gets.core.layout, part)
        self._take([arrival for arrival, _ in arrived], part)
        rows = [arrival.row for arrival, _ in arrived if arrival.row is not None]
        if len(rows) < len(arrived):  # those with a row first
            arrived = sorted(arrived, key=lambda each: each[0].row is None)
        data = [each for _, each in arrived]
        sums = copy_with_sums(data[: len(rows)], rows, layout)
        if self.level.tier.checks:
            return
        sums += sums_of(data[len(rows) :], layout)
        stamps = [cast("Stamp", arrival.stamp) for arrival, _ in arrived]
        keys = [stamp.key for stamp in stamps]
        bad: list[_Arrival] = []
        for (arrival, _), error in zip(arrived, problems(stamps, keys, part, sums), strict=True):
            if error is not None:
                arrival.error = error
                bad.append(arrival)
        _untake(bad)

    def _take(self, arrivals: list[_Arrival], part: int | None) -> None:
        """Claim the row of the first who waits for each block, if it is in host memory."""
        wanted: dict[Request, dict[int, _Arrival]] = {}
        with self._gets.core.lock:  # if the tier is given up, its waiters are no longer ours
            for arrival in arrivals:
                waiters = arrival.flight.waiters
                if part is not None and arrival.taker not in waiters:
                    arrival.taker = None
                for waiter in waiters if part is None else (arrival.taker,):
                    if waiter is not None and isinstance(waiter[2], HostRows):
                        arrival.taker = waiter
                        wanted.setdefault(waiter[0], {})[waiter[1]] = arrival
                        break
            for request, takers in wanted.items():
                for index in request.claim(list(takers)):
                    arrival = takers.pop(index)
                    arrival.row = _row(arrival.taker, part)
                for arrival in takers.values():  # settled: too late
                    arrival.taker = None

    def _hand_part(self, arrived: list[tuple[_Arrival, Bytes]], part: int) -> None:
        """One part of each block, which is good, to the waiter that takes it part by part."""
        wanted: list[tuple[Waiter, Bytes]] = []
        with self._gets.core.lock:  # as in `_take`
            for arrival, data in arrived:
                if arrival.taker is None or arrival.row is not None:
                    continue
                request, index, rows = arrival.taker
                ours = arrival.taker in arrival.flight.waiters
                if rows is None or not ours or not request.claim([index]):
                    arrival.taker = None
                    continue
                wanted.append((arrival.taker, data))
        for arrival, _ in arrived:
            if arrival.row is not None and arrival.taker is not None:
                request, index, _ = arrival.taker
                request.arrived([index], part)
        _untake([arrival for arrival, _ in arrived])
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
        done: dict[Request, list[int]] = {}
        for arrival, (_, waiters) in zip(good, waiting, strict=True):
            if arrival.row is not None and arrival.taker is not None:  # waits for us, whoever else
                request, index, _ = arrival.taker
                done.setdefault(request, []).append(index)
            for waiter in waiters:
                request, index, rows = waiter
                if arrival.row is not None and waiter == arrival.taker:
                    continue
                if rows is None and arrival.promoted is None:
                    request.settle([index], Status.BUSY, "no room in the faster tier")
                elif rows is None or waiter == arrival.taker:
                    done.setdefault(request, []).append(index)
                else:
                    wanted.append((waiter, arrival.target))
        for request, indexes in done.items():
            request.settle(indexes, Status.OK)
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


def _row(taker: Waiter | None, part: int | None) -> Bytes:
    """The memory of a taker's row, or of one part of it."""
    assert taker is not None
    _, index, rows = taker
    assert isinstance(rows, HostRows)
    return rows.target(index, part)


def _untake(arrivals: Sequence[_Arrival]) -> None:
    """Let go of the rows that were claimed for these, unsettled."""
    for arrival in arrivals:
        if arrival.row is not None and arrival.taker is not None:
            arrival.row = None
            request, index, _ = arrival.taker
            request.unclaim([index])


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

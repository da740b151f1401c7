"""Storing: from the caller's rows into the fastest tier that takes blocks.

A block can be found only when it is whole and checksummed. Who puts a block that is being put
already waits for that put; who puts one that is here uses it. The queue of rows that wait to be
copied has a limit in bytes: beyond it `put` says BUSY and the caller goes on.
"""

import time
from collections.abc import Callable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple, cast

from kvbench.store.block import Bytes, Stamp, Status
from kvbench.store.copying import sums_of
from kvbench.store.core import Core, Level, bad_slot
from kvbench.store.drive_read import SHARE_BYTES
from kvbench.store.metrics import Counted
from kvbench.store.moves import Moves
from kvbench.store.request import Request
from kvbench.store.rows import HostRows, Rows, RowsError
from kvbench.store.spans import COPY, IO
from kvbench.store.staging import staging
from kvbench.store.table import State

if TYPE_CHECKING:
    from kvbench.store.lease import Hold

NO_ROOM = "no room: every block is leased or being written"


class _New(NamedTuple):
    """One block to store."""

    place: int  # in the request
    stamp: Stamp  # without checksums as yet
    slot: int | None  # WRITING; None in a tier that may stall, where a worker finds one


class Puts:
    """The storing half of a store."""

    def __init__(self, core: Core, moves: Moves) -> None:
        self.core = core
        self.moves = moves
        self.joined: dict[bytes, list[tuple[Request, int]]] = {}  # by keys that are being put
        self.after: Callable[[Sequence[bytes]], None] = lambda _: None  # told what is settled
        self._queued_bytes = 0
        self._at_drives: dict[Put, Level] = {}  # under way in tiers that may stall

    @property
    def queued_bytes(self) -> int:
        """Rows that wait to be copied."""
        return self._queued_bytes

    def start(self, request: Request, stamps: Sequence[Stamp], rows: Rows) -> None:
        """Take slots for the blocks and queue the copying of them."""
        core = self.core
        with core.lock:
            level = next((each for each in core.levels if each.writable), None)
            sorted_ = None if level is None else self._sort(request, level, stamps)
        if level is None or sorted_ is None:
            request.settle(range(request.size), Status.BUSY, "no tier can be written to")
            return
        new, here, busy = sorted_
        if here:
            core.metrics.count(Counted.COALESCED_PUTS, len(here), tier=level.name)
            request.settle(here, Status.OK)
        if busy:
            core.metrics.count(Counted.BUSY, len(busy), tier=level.name)
            request.settle(busy, Status.BUSY, NO_ROOM)
        pool = level.writers
        block_bytes, least = core.layout.block_bytes, 1
        most = core.options.batch_bytes // block_bytes
        if level.tier.stalls:
            most, least = core.options.transfer_bytes // block_bytes, SHARE_BYTES // block_bytes
        size = max(1, min(most, max(least, -(-len(new) // pool.threads))))
        for at in range(0, len(new), size):
            task = Put(self, level, request, new[at : at + size], rows)
            if not pool.submit(task):
                task.refuse()

    def _sort(
        self, request: Request, level: Level, stamps: Sequence[Stamp]
    ) -> tuple[list[_New], list[int], list[int]]:
        """New blocks with their slots, indexes of those here, of those without room; lock held."""
        core = self.core
        room = core.options.put_queue_bytes - self._queued_bytes
        most = max(0, room // core.layout.block_bytes)
        wanted: dict[bytes, int] = {}
        here: list[int] = []
        holds: list[Hold] = []
        busy: list[int] = []
        known = core.known([stamp.key for stamp in stamps])
        for index, stamp in enumerate(stamps):
            key = stamp.key
            if key in self.joined:
                self.joined[key].append((request, index))
            elif key in known and (hold := core.find(key)) is not None:
                here.append(index)
                holds.append(hold)
            elif len(wanted) >= most or (key in known and core.being_written(key) is not None):
                busy.append(index)
            else:
                self.joined[key] = []
                wanted[key] = index
        for number, held in holds:  # or they might be what makes room for the others
            core.levels[number].table.lease([held])
        if level.tier.stalls:
            new = [_New(index, stamps[index], None) for index in wanted.values()]
        else:
            new = self._reserve(level, stamps, list(wanted.values()), busy)
        for number, held in holds:
            core.release(core.levels[number], [held])
        self._queued_bytes += len(new) * core.layout.block_bytes
        used = [stamps[index].key for index in here]
        if used:
            core.touch(used)
            for each in core.levels:
                self.moves.used(each, used)
        return new, here, busy

    def _reserve(
        self, level: Level, stamps: Sequence[Stamp], places: list[int], busy: list[int]
    ) -> list[_New]:
        """Slots in memory for these of a request; those without go to `busy`; the lock is held."""
        wanted = [stamps[place] for place in places]
        self.core.room_in_memory(level, len(wanted))
        slots = level.table.reserve_many(wanted)
        for place in places[len(slots) :]:
            busy.append(place)
            # The same key again.
            busy += [joined for _, joined in self.joined.pop(stamps[place].key)]
        return list(map(_New, places, wanted, slots))

    def begins(self, put: "Put") -> None:
        """A worker writes to a tier that may stall."""
        with self.core.lock:
            self._at_drives[put] = put.level

    def ended(self, put: "Put") -> None:
        """That worker is back."""
        with self.core.lock:
            self._at_drives.pop(put, None)

    def abandon(self, level: Level, reason: str) -> None:
        """A tier is fenced: nobody waits for what is being written to it."""
        with self.core.lock:
            puts = [put for put, where in self._at_drives.items() if where is level]
            keys = [key for put in puts for key in put.unsettled()]
            joined = [waiter for key in keys for waiter in self.joined.pop(key, [])]
        for put in puts:
            put.give_up(reason)
        for request, index in joined:
            request.settle([index], Status.BUSY, reason)
        self.after(keys)

    def over(self, news: Sequence[_New], status: Status, reason: str = "") -> None:
        """These blocks are stored, or will not be: tell who joined."""
        keys = [new.stamp.key for new in news]
        if status is Status.TIMEOUT:
            status = Status.BUSY  # that was the deadline of one; the others may have none
        with self.core.lock:
            self._queued_bytes -= len(news) * self.core.layout.block_bytes
            joined = [waiters for key in keys if (waiters := self.joined.pop(key, None))]
        for waiters in joined:
            for request, index in waiters:
                request.settle([index], status, reason)
        self.after(keys)


class Put:
    """Some blocks of one request, copied and stored by one worker."""

    def __init__(
        self, puts: Puts, level: Level, request: Request, news: list[_New], rows: Rows
    ) -> None:
        self.level = level
        self._puts = puts
        self._request = request
        self._news = news  # those that are not over
        self._rows = rows

    def run(self) -> None:
        """Copy the rows, checksum, write, and let the blocks be found."""
        start_ns = time.perf_counter_ns()
        core, level = self._puts.core, self.level
        news, payloads, stamps = self._take()
        if not news:
            self._puts.ended(self)
            return
        slots = [new.slot for new in news if new.slot is not None]
        errors = level.tier.write(slots, stamps, payloads)
        whole = [error is None for error in errors]
        good, kept = list(compress(news, whole)), list(compress(stamps, whole))
        with core.lock:
            core.stored(level, list(compress(slots, whole)), kept)
            if good:
                core.worked(level, "write")
            self._puts.moves.used(level, [stamp.key for stamp in kept])
        core.tally(Counted.STORED, level, kept)
        core.tally(Counted.WRITTEN, level, kept)
        self._over(good, Status.OK)
        for new, error in zip(news, errors, strict=True):
            if error is not None:
                with core.lock:
                    core.failed(level, cast("int", new.slot), bad=bad_slot(error))
                    core.failed_transfer(level, "write", error)
                self._end([new], Status.BUSY, f"not stored: {error}")
        end_ns = time.perf_counter_ns()
        core.metrics.observe("put", level.name, (end_ns - start_ns) / 1e9, len(good))
        core.note(
            f"put {level.name}", IO if level.tier.stalls else COPY, start_ns, end_ns, len(good)
        )
        self._puts.ended(self)
        core.tidy(level)

    def unsettled(self) -> list[bytes]:
        """The blocks that are not over."""
        return [new.stamp.key for new in self._news]

    def give_up(self, reason: str) -> None:
        """Let the caller go, but for rows that are being copied; a write cannot be called back."""
        self._request.give_up(reason, [new.place for new in self._news], Status.BUSY)

    def fail(self, reason: str) -> None:
        """It raised, or its tier was given up."""
        self._puts.ended(self)
        self._puts.core.crashed(self.level, "write", reason)
        self._end(list(self._news), Status.BUSY, reason)

    def refuse(self) -> None:
        """The queue is full."""
        self._puts.core.metrics.count(Counted.BUSY, len(self._news), tier=self.level.name)
        self._end(list(self._news), Status.BUSY, "too many puts are waiting")

    def _take(self) -> tuple[list[_New], list[Bytes], list[Stamp]]:
        """Slots, and the rows in memory of the store; what cannot be had ends here."""
        level, request = self.level, self._request
        if level.tier.stalls:
            self._puts.begins(self)
        self._take_slots()  # may take for ever: before the rows are claimed
        claimed = set(request.claim([new.place for new in self._news]))
        late = [new for new in self._news if new.place not in claimed]
        self._end(late, Status.TIMEOUT, "the put was over before its rows were copied")
        news = list(self._news)
        try:
            payloads, stamps = self._copies(news)
        except RowsError as failed:
            self._end(news, Status.BUSY, str(failed))
            return [], [], []
        if level.tier.stalls:
            request.unclaim(new.place for new in news)  # the rows are the caller's again
            if not level.writable:  # who was let go meanwhile did not include these
                self._end(news, Status.BUSY, "its tier was given up")
                return [], [], []
        return news, payloads, stamps

    def _copies(self, news: list[_New]) -> tuple[list[Bytes], list[Stamp]]:
        """The rows in memory of the store, in the slots themselves or in staging; their stamps."""
        layout = self._puts.core.layout
        tier, rows = self.level.tier, self._rows
        views = [None if new.slot is None else tier.view(new.slot) for new in news]
        missing = sum(view is None for view in views)
        buffers = staging(missing, layout.block_bytes)
        payloads = [buffers.pop() if view is None else view for view in views]
        sums: list[bytes] = []
        step = max(1, self._puts.core.options.transfer_bytes // layout.block_bytes)
        for at in range(0, len(news), step):
            places, outs = [new.place for new in news[at : at + step]], payloads[at : at + step]
            if isinstance(rows, HostRows):
                sums += rows.send_with_sums(places, outs)
            else:
                rows.send_many(places, outs)
                sums += sums_of(outs, layout)
        return payloads, [
            new.stamp._replace(sums=each) for new, each in zip(news, sums, strict=True)
        ]

    def _take_slots(self) -> None:
        """Slots in a tier that may stall, where old blocks have to be forgotten first."""
        if not self.level.tier.stalls or not self._news:
            return
        core = self._puts.core
        slots = core.reserve(self.level, [new.stamp for new in self._news])
        self._news = [new._replace(slot=slot) for new, slot in zip(self._news, slots, strict=True)]
        without = [new for new in self._news if new.slot is None]
        core.metrics.count(Counted.BUSY, len(without), tier=self.level.name)
        self._end(without, Status.BUSY, NO_ROOM)

    def _end(self, news: Sequence[_New], status: Status, reason: str) -> None:
        """Blocks that are not stored."""
        if not news:
            return
        core, table = self._puts.core, self.level.table
        with core.lock:
            for new in news:
                if new.slot is not None and table.state(new.slot) is State.WRITING:
                    core.failed(self.level, new.slot)
        self._over(news, status, reason)

    def _over(self, news: Sequence[_New], status: Status, reason: str = "") -> None:
        if not news:
            return
        over = [new.place for new in news]
        gone = set(over)
        self._news = [new for new in self._news if new.place not in gone]
        self._request.settle(over, status, reason)
        self._puts.over(news, status, reason)

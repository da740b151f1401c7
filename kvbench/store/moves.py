"""Blocks between tiers: down before they are evicted, up when they are used again.

The queue of each tier has a limit in bytes. What does not fit is dropped and counted: a slow drive
never holds up an engine, it only learns of fewer blocks. A block is leased where it lies until it
has arrived, so it cannot go meanwhile.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from kvbench.store.block import Bytes, CorruptBlockError, Stamp, Status
from kvbench.store.copying import sums_of
from kvbench.store.core import Core, Level, bad_slot
from kvbench.store.metrics import Counted
from kvbench.store.spans import COPY, IO
from kvbench.store.staging import staging
from kvbench.store.table import State

# Called without the lock: what became of the block, why, and the slot where it is now if it is
# there, leased for whoever is told.
Done = Callable[[Status, str, int | None], None]


@dataclass(slots=True, eq=False)
class Move:
    """One block on its way into a tier."""

    key: bytes
    source: Level
    slot: int  # where it lies, leased
    done: list[Done] = field(default_factory=list[Done])


class Moves:
    """What waits to be moved, by the tier where it is to go."""

    def __init__(self, core: Core) -> None:
        self.core = core
        most = core.options.write_behind_bytes // core.layout.block_bytes
        # A queue leases what it holds: never more than half of a tier, or nothing could be evicted.
        self._limits = [
            max(1, min(most, core.levels[max(0, level.number - 1)].table.slots // 2))
            for level in core.levels
        ]
        self._queues: list[deque[Move]] = [deque() for _ in core.levels]
        self._moving: list[dict[bytes, Move]] = [{} for _ in core.levels]  # queued or under way
        self._drains = [0] * len(core.levels)

    def waiting(self, level: Level) -> int:
        """Blocks that wait to go into a tier, or are on their way."""
        return len(self._moving[level.number])

    def limit(self, level: Level) -> int:
        """How many blocks may wait to go into a tier."""
        return self._limits[level.number]

    def used(self, level: Level, keys: Iterable[bytes]) -> None:
        """Blocks of a tier came or were used: some deserve another tier; the lock is held."""
        if level.number + 1 < len(self.core.levels):
            self._ask(level, self.core.levels[level.number + 1], keys)
        if level.number and not level.tier.stalls:
            self._ask(level, self.core.levels[level.number - 1], keys)

    def offer(self, target: Level, source: Level, key: bytes, *, done: Done | None = None) -> bool:
        """Queue a block of `source` for `target`; the lock is held.

        Somebody who waits (`done`) is never dropped. False if the block will not be moved.
        """
        move = self._moving[target.number].get(key)
        if move is None:
            if not target.writable:
                return False
            if done is None and len(self._moving[target.number]) >= self._limits[target.number]:
                self.core.tally(Counted.QUEUE_DROPS, target, [self._stamp(source, key)])
                return False
            slot = source.table.index[key]
            source.table.lease([slot])
            move = self._moving[target.number][key] = Move(key, source, slot)
            self._queues[target.number].append(move)
            self._start(target)
        if done is not None:
            move.done.append(done)
        return True

    def abandon(self, level: Level, reason: str) -> None:
        """A tier is fenced: nobody waits for it any more. What is under way keeps its leases."""
        with self.core.lock:
            queue = self._queues[level.number]
            moves = list(self._moving[level.number].values())
            waiting = [done for move in moves for done in move.done]
            for move in moves:
                move.done = []
            for move in queue:
                self.core.release(move.source, [move.slot])
                del self._moving[level.number][move.key]
            queue.clear()
        for done in waiting:
            done(Status.BUSY, reason, None)

    def _ask(self, source: Level, target: Level, keys: Iterable[bytes]) -> None:
        if not target.writable or not source.readable:
            return
        here, moving = target.table.index, self._moving[target.number]
        admitted: list[Stamp] = []
        refused: list[Stamp] = []
        for key in keys:
            if key in here or key in moving or key not in source.table.index:
                continue
            if target.admission.admit(key):
                admitted.append(self._stamp(source, key))
                self.offer(target, source, key)
            else:
                refused.append(self._stamp(source, key))
        self.core.tally(Counted.ADMITTED, target, admitted)
        self.core.tally(Counted.REFUSED_ADMISSION, target, refused)

    def _stamp(self, source: Level, key: bytes) -> Stamp:
        return source.table.stamp(source.table.index[key])

    def _start(self, target: Level) -> None:
        """Another worker, if those at work will not get through what waits in one round."""
        number = target.number
        if (
            self._drains[number] * self._run_blocks < len(self._queues[number])
            and (self._drains[number] < target.writers.threads)
            and target.writers.submit(Drain(self, target))
        ):
            self._drains[number] += 1

    @property
    def _run_blocks(self) -> int:
        return max(1, self.core.options.transfer_bytes // self.core.layout.block_bytes)

    def take(self, target: Level) -> list[Move]:
        """The next blocks for one transfer, of one source; none, and a worker less, at the end."""
        with self.core.lock:
            queue = self._queues[target.number]
            if not queue:
                self._drains[target.number] -= 1
                return []
            batch = [queue.popleft()]
            while queue and len(batch) < self._run_blocks and queue[0].source is batch[0].source:
                batch.append(queue.popleft())
            return batch

    def wake(self, target: Level) -> None:
        """A worker for what waits, should there be none: the pool's queue was full; lock held."""
        if self._queues[target.number] and not self._drains[target.number]:
            self._start(target)

    def stopped(self, target: Level) -> None:
        """A worker ended otherwise than by `take`."""
        with self.core.lock:
            self._drains[target.number] -= 1
            self._start(target)

    def over(self, target: Level, moves: Sequence[Move], status: Status, reason: str) -> None:
        """These moves have ended."""
        with self.core.lock:
            for move in moves:
                self.core.release(move.source, [move.slot])
                if self._moving[target.number].get(move.key) is move:
                    del self._moving[target.number][move.key]
            told = [
                (done, self._held(target, move, status)) for move in moves for done in move.done
            ]
        for done, slot in told:
            if slot is None and status is Status.OK:
                done(Status.BUSY, "it was evicted at once: the tier is too small", None)
            else:
                done(status, reason, slot)

    def _held(self, target: Level, move: Move, status: Status) -> int | None:
        slot = target.table.index.get(move.key) if status is Status.OK else None
        if slot is not None:
            target.table.lease([slot])
        return slot


class Drain:
    """A worker that moves blocks into a tier until none waits."""

    def __init__(self, moves: Moves, target: Level) -> None:
        self.level = target
        self._moves = moves
        self._batch: list[Move] = []
        self._slots: list[int | None] = []

    def run(self) -> None:
        """Batch by batch."""
        while batch := self._moves.take(self.level):
            self._batch = batch
            self._move()
            self._batch, self._slots = [], []
            self.level.writers.beat()

    def fail(self, reason: str) -> None:
        """It raised, or its tier was given up."""
        core = self._moves.core
        core.crashed(self.level, "write", reason)
        with core.lock:
            for slot in self._slots:
                if slot is not None and self.level.table.state(slot) is State.WRITING:
                    core.failed(self.level, slot)
        self._moves.over(self.level, self._batch, Status.BUSY, reason)
        self._batch, self._slots = [], []
        self._moves.stopped(self.level)

    def _move(self) -> None:
        start_ns = time.perf_counter_ns()
        core, target, source = self._moves.core, self.level, self._batch[0].source
        with core.lock:
            stamps = [source.table.stamp(move.slot) for move in self._batch]
        self._slots = core.reserve(target, stamps)
        self._leave_out("no room in the slower tier", Counted.QUEUE_DROPS)
        if not self._batch:
            return
        payloads, found = self._payloads(source)
        if not self._batch:
            return
        slots = [slot for slot in self._slots if slot is not None]
        errors = target.tier.write(slots, found, payloads)
        moved = [stamp for stamp, error in zip(found, errors, strict=True) if error is None]
        with core.lock:
            whole = [slot for slot, error in zip(slots, errors, strict=True) if error is None]
            core.stored(target, whole, moved)
            if moved:
                core.worked(target, "write")
            for slot, error in zip(slots, errors, strict=True):
                if error is not None:
                    core.failed(target, slot, bad=bad_slot(error))
                    core.failed_transfer(target, "write", error)
        counted = Counted.DEMOTIONS if target.number > source.number else Counted.PROMOTIONS
        core.tally(counted, target, moved)
        core.tally(Counted.WRITTEN, target, moved)
        for move, error in zip(self._batch, errors, strict=True):
            status = Status.OK if error is None else Status.BUSY
            self._moves.over(target, [move], status, "" if error is None else str(error))
        end_ns = time.perf_counter_ns()
        core.metrics.observe("move", target.name, (end_ns - start_ns) / 1e9, len(moved))
        core.note(
            f"move to {target.name}",
            IO if target.tier.stalls else COPY,
            start_ns,
            end_ns,
            len(moved),
        )
        core.tidy(target)

    def _leave_out(self, reason: str, counted: Counted) -> None:
        """End the moves that have no slot; those that are there already have succeeded."""
        core = self._moves.core
        index = self.level.table.index
        kept: list[Move] = []
        for move, slot in zip(self._batch, self._slots, strict=True):
            if slot is not None:
                kept.append(move)
            elif move.key in index:
                self._moves.over(self.level, [move], Status.OK, "")
            else:
                core.metrics.count(counted, 1, tier=self.level.name)
                self._moves.over(self.level, [move], Status.BUSY, reason)
        self._batch = kept
        self._slots = [slot for slot in self._slots if slot is not None]

    def _payloads(self, source: Level) -> tuple[list[Bytes], list[Stamp]]:
        """The blocks in host memory, and their stamps; damaged ones end here."""
        core = self._moves.core
        payloads, found = self._arrive(source)
        sums = sums_of(payloads, core.layout)
        good: list[tuple[Move, int | None, Bytes, Stamp]] = []
        for move, slot, payload, stamp, seen in zip(
            self._batch, self._slots, payloads, found, sums, strict=True
        ):
            # Also what lies in memory is checked: a record must not make damage last.
            if isinstance(stamp, tuple) and stamp.sums == seen:
                good.append((move, slot, payload, stamp))
                continue
            error = stamp if isinstance(stamp, Exception) else CorruptBlockError("damaged")
            with core.lock:
                if slot is not None:
                    core.failed(self.level, slot)
                core.damaged(source, move.slot, move.key, error)
            core.metrics.count(Counted.VERIFY_FAILURES, 1, tier=source.name)
            self._moves.over(self.level, [move], Status.CORRUPT, f"the faster copy: {error}")
        self._batch = [move for move, _, _, _ in good]
        self._slots = [slot for _, slot, _, _ in good]
        return [payload for _, _, payload, _ in good], [stamp for _, _, _, stamp in good]

    def _arrive(self, source: Level) -> tuple[list[Bytes], Sequence[Stamp | Exception]]:
        """Payloads in host memory: the slots' own where it can be addressed, else staging."""
        slots = [move.slot for move in self._batch]
        views = [source.tier.view(slot) for slot in slots]
        payloads = [view for view in views if view is not None]
        if len(payloads) == len(views):
            return payloads, [source.table.stamp(slot) for slot in slots]
        payloads = staging(len(slots), self._moves.core.layout.block_bytes)
        return payloads, source.tier.read(slots, payloads)

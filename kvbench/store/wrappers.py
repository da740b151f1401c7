"""Tiers around a tier: timed, counting, throttled to a known speed. Faults: kvbench.store.faults.

Each is itself a tier and passes `kvbench.testing.TierTests`. A wrapper does nothing to the calls
that it does not speak of.

May import: kvbench.errors, kvbench.store.{block, tier}. Not torch.
"""

import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Layout, Stamp
from kvbench.store.tier import Fact, Recovered, Tier


class Wrapper:
    """A tier that hands every call on to `inner`; the base of the others."""

    def __init__(self, inner: Tier) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """As the inner tier's."""
        return self.inner.name

    @property
    def layout(self) -> Layout:
        """As the inner tier's."""
        return self.inner.layout

    @property
    def slots(self) -> int:
        """As the inner tier's."""
        return self.inner.slots

    @property
    def durable(self) -> bool:
        """As the inner tier's."""
        return self.inner.durable

    @property
    def stalls(self) -> bool:
        """As the inner tier's."""
        return self.inner.stalls

    @property
    def parts_alone(self) -> bool:
        """As the inner tier's."""
        return self.inner.parts_alone

    @property
    def at_once(self) -> bool:
        """As the inner tier's."""
        return self.inner.at_once

    @property
    def checks(self) -> bool:
        """As the inner tier's."""
        return self.inner.checks

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`."""
        return self.inner.write(slots, stamps, payloads)

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`."""
        return self.inner.read(slots, outs, part)

    def view(self, slot: int) -> Bytes | None:
        """See `Tier.view`."""
        return self.inner.view(slot)

    def forget(self, slots: Sequence[int]) -> None:
        """See `Tier.forget`."""
        self.inner.forget(slots)

    def quarantine(self, slots: Sequence[int], reason: str) -> None:
        """See `Tier.quarantine`."""
        self.inner.quarantine(slots, reason)

    def flush(self) -> None:
        """See `Tier.flush`."""
        self.inner.flush()

    def recover(self) -> Recovered:
        """See `Tier.recover`."""
        return self.inner.recover()

    def facts(self) -> dict[str, Fact]:
        """See `Tier.facts`."""
        return self.inner.facts()

    def close(self) -> None:
        """See `Tier.close`."""
        self.inner.close()


@dataclass(slots=True)
class Moved:
    """What went through one operation of a `TimedTier`."""

    calls: int = 0
    blocks: int = 0  # moved; those that failed are not among them
    failed: int = 0
    size_bytes: int = 0  # of the blocks moved, or of the part of each that was asked for
    seconds: float = 0.0  # of all calls together, also of those under way at the same time


class TimedTier(Wrapper):
    """Adds up how long reads, writes and flushes take, and what they moved."""

    def __init__(self, inner: Tier, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(inner)
        self._clock = clock
        self._lock = threading.Lock()
        self._moved = {name: Moved() for name in ("read", "write", "flush")}

    def times(self) -> dict[str, Moved]:
        """What there was so far, by operation: "read", "write", "flush"."""
        with self._lock:
            return {name: replace(moved) for name, moved in self._moved.items()}

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`; timed."""
        start = self._clock()
        done = self.inner.write(slots, stamps, payloads)
        failed = sum(error is not None for error in done)
        self._add("write", start, len(done) - failed, failed, self.layout.block_bytes)
        return done

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`; timed."""
        start = self._clock()
        found = self.inner.read(slots, outs, part)
        failed = sum(isinstance(stamp, Exception) for stamp in found)
        each_bytes = self.layout.block_bytes if part is None else self.layout.part_bytes
        self._add("read", start, len(found) - failed, failed, each_bytes)
        return found

    def flush(self) -> None:
        """See `Tier.flush`; timed."""
        start = self._clock()
        self.inner.flush()
        self._add("flush", start, 0, 0, 0)

    def _add(self, name: str, start: float, blocks: int, failed: int, each_bytes: int) -> None:
        seconds = self._clock() - start
        with self._lock:
            moved = self._moved[name]
            moved.calls += 1
            moved.blocks += blocks
            moved.failed += failed
            moved.size_bytes += blocks * each_bytes
            moved.seconds += seconds


class CountingTier(Wrapper):
    """Counts the calls of every operation, and the blocks that were asked of it.

    `calls` and `blocks` are by the operation's name; `read_slots` counts the reads of each slot.
    """

    def __init__(self, inner: Tier) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.blocks: Counter[str] = Counter()
        self.read_slots: Counter[int] = Counter()

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`; counted."""
        self._count("write", len(slots))
        return self.inner.write(slots, stamps, payloads)

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`; counted, whole or part alike."""
        self._count("read", len(slots))
        with self._lock:
            self.read_slots.update(slots)
        return self.inner.read(slots, outs, part)

    def view(self, slot: int) -> Bytes | None:
        """See `Tier.view`; counted."""
        self._count("view", 1)
        return self.inner.view(slot)

    def forget(self, slots: Sequence[int]) -> None:
        """See `Tier.forget`; counted."""
        self._count("forget", len(slots))
        self.inner.forget(slots)

    def quarantine(self, slots: Sequence[int], reason: str) -> None:
        """See `Tier.quarantine`; counted."""
        self._count("quarantine", len(slots))
        self.inner.quarantine(slots, reason)

    def flush(self) -> None:
        """See `Tier.flush`; counted."""
        self._count("flush", 0)
        self.inner.flush()

    def recover(self) -> Recovered:
        """See `Tier.recover`; counted."""
        self._count("recover", 0)
        return self.inner.recover()

    def close(self) -> None:
        """See `Tier.close`; counted."""
        self._count("close", 0)
        self.inner.close()

    def _count(self, name: str, blocks: int) -> None:
        with self._lock:
            self.calls[name] += 1
            self.blocks[name] += blocks


class ThrottledTier(Wrapper):
    """A device of a known speed: an inner tier that is faster, slowed down by sleeping.

    A block waits for one of `queue_depth` places, then `latency_s`, then for the line, which
    takes `bytes_per_s` and is shared by all; a part of a block takes its share. A read or write
    returns when its last block would have arrived. Small errors of the sleep are made up for by
    the thread's next call. `stalls` is true, as for a drive.

    Raises:
        UsageError: a number is not positive, or the latency negative.
    """

    def __init__(
        self,
        inner: Tier,
        *,
        bytes_per_s: float,
        latency_s: float = 0.0,
        queue_depth: int = 1,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if bytes_per_s <= 0 or latency_s < 0 or queue_depth < 1:
            raise UsageError(
                f"a device of {bytes_per_s} bytes/s, {latency_s} s and queue depth {queue_depth}: "
                "speed and depth have to be positive, the latency not negative"
            )
        super().__init__(inner)
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.queue_depth = queue_depth
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._places = [float("-inf")] * queue_depth  # a heap of when each is free
        self._line = float("-inf")  # when the line is free
        self._own = threading.local()

    @property
    def stalls(self) -> bool:
        """True: what it stands for is a device that takes its time."""
        return True

    def write(
        self, slots: Sequence[int], stamps: Sequence[Stamp], payloads: Sequence[Bytes]
    ) -> list[Exception | None]:
        """See `Tier.write`; slowed down."""
        end = self._end(len(slots), self.layout.block_bytes)
        done = self.inner.write(slots, stamps, payloads)
        self._until(end)
        return done

    def read(
        self, slots: Sequence[int], outs: Sequence[Bytes], part: int | None = None
    ) -> list[Stamp | Exception]:
        """See `Tier.read`; slowed down."""
        whole = part is None or not self.parts_alone
        end = self._end(len(slots), self.layout.block_bytes if whole else self.layout.part_bytes)
        found = self.inner.read(slots, outs, part)
        self._until(end)
        return found

    def facts(self) -> dict[str, Fact]:
        """Those of the inner tier, and the speed it is slowed down to."""
        return self.inner.facts() | {
            "throttled_bytes_per_s": self.bytes_per_s,
            "throttled_latency_s": self.latency_s,
            "throttled_queue_depth": self.queue_depth,
        }

    def _end(self, blocks: int, each_bytes: int) -> float:
        """When the last of so many blocks, asked for now, has arrived."""
        overslept: float = getattr(self._own, "overslept", 0.0)
        with self._lock:
            now = end = self._clock() - overslept
            for _ in range(blocks):
                start = max(now, heapq.heappop(self._places))
                self._line = max(start + self.latency_s, self._line) + each_bytes / self.bytes_per_s
                end = self._line
                heapq.heappush(self._places, end)
        return end

    def _until(self, end: float) -> None:
        left = end - self._clock()
        slept = left > 0
        while left > 0:
            self._sleep(left)
            left = end - self._clock()
        # Only what sleeping added: a slow inner tier or caller is not made up for.
        self._own.overslept = -left if slept else 0.0

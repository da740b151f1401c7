"""What happened to the blocks of a store, in order, for whoever keeps a copy of its directory.

A ring of fixed size: a reader that fell behind is told how many events it lost, and then has to
take a listing of the store. Kinds and fields suffice for vLLM's BlockStored, BlockRemoved and
AllBlocksCleared (`vllm/distributed/kv_events.py`): a BlockStored is a run of STORED events in
which each block is the parent of the next. Token ids and the block size in tokens, which those
also carry, are known to the engine only. Sends nothing to anybody.

May import: kvbench.store.block. msgspec.
"""

import enum
import os
import threading
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from kvbench.store.block import Stamp

MOST_EVENTS = 65_536  # about 20 MB with their keys


class Kind(enum.Enum):
    """What happened."""

    STORED = "stored"  # the block can be found in the tier
    REMOVED = "removed"  # it cannot any more: evicted, damaged or forgotten
    CLEARED = "cleared"  # no block of the tier can be found any more; no key
    FENCED = "fenced"  # the tier is not read any more: no block of it can be found; no key
    SEALED = "sealed"  # the tier is not written any more: its blocks can be found; no key


class Event(msgspec.Struct, frozen=True, gc=False):
    """One block in one tier, or a whole tier, whose `key` is None."""

    sequence: int
    kind: Kind
    tier: str
    key: bytes | None = None
    parent: bytes | None = None  # None for a first block
    tenant: str = ""
    position: int = 0  # blocks before it in its prefix
    reason: str = ""  # of FENCED and SEALED


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of the ring: ask again from `next_sequence`.

    `lost` events came after those that the reader has seen and before these, and are gone. Another
    `epoch` than before is another ring, such as of a store that was opened anew: what the reader
    knows is void.
    """

    events: list[Event]
    next_sequence: int
    lost: int
    epoch: int


class _Batch(NamedTuple):
    """Events that came together: columns, and not stamps, which would keep their checksums."""

    kind: Kind
    tier: str
    keys: Sequence[bytes | None]
    parents: Sequence[bytes | None]
    tenants: Sequence[str]
    positions: Sequence[int]
    reason: str = ""

    def event(self, sequence: int, at: int) -> Event:
        """One of them, with its number."""
        return Event(
            sequence,
            self.kind,
            self.tier,
            self.keys[at],
            self.parents[at],
            self.tenants[at],
            self.positions[at],
            self.reason,
        )


class EventLog:
    """The last events of a store, numbered from 0. Thread-safe.

    A batch is kept as it came, and each place of the ring names its batch: an `Event` is made when
    somebody reads it, which most stores never do.
    """

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._ring: list[tuple[int, _Batch] | None] = [None] * most  # with its first number
        self._next = 0
        self._open = True
        self._waiting = 0  # threads; telling nobody costs as much as an event
        self.epoch = int.from_bytes(os.urandom(6))  # an integer in every JSON reader

    def append(self, kind: Kind, tier: str, blocks: Sequence[Stamp]) -> None:
        """The same happened to each of these blocks, in this order."""
        if blocks:
            keys, parents, positions, tenants, _ = zip(*blocks, strict=True)
            self._append(_Batch(kind, tier, keys, parents, tenants, positions))

    def append_tier(self, kind: Kind, tier: str, reason: str = "") -> None:
        """Something happened to a whole tier."""
        self._append(_Batch(kind, tier, (None,), (None,), ("",), (0,), reason))

    def since(self, sequence: int, limit: int = 1024) -> Events:
        """Up to `limit` events from number `sequence` on, or from the oldest that is left.

        A number that this ring has not reached comes from another one (see `Events.epoch`): then
        the answer begins with the oldest, too.
        """
        with self._lock:
            oldest = max(0, self._next - len(self._ring))
            asked = sequence if 0 <= sequence <= self._next else 0
            first = max(asked, oldest)
            after = min(self._next, first + max(0, limit))
            held = [(at, self._ring[at % len(self._ring)]) for at in range(first, after)]
        return Events(
            events=[each[1].event(at, at - each[0]) for at, each in held if each is not None],
            next_sequence=after,
            lost=first - asked,
            epoch=self.epoch,
        )

    def wait(self, sequence: int, timeout_s: float | None = None) -> bool:
        """Block until event number `sequence` has happened; False if not in time, or closed."""
        with self._lock:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._next > sequence or not self._open, timeout_s)
            finally:
                self._waiting -= 1
            return self._next > sequence

    def close(self) -> None:
        """Nothing will happen any more: whoever waits is told so. Events can still be read."""
        with self._lock:
            self._open = False
            self._changed.notify_all()

    def _append(self, batch: _Batch) -> None:
        ring, most, count = self._ring, len(self._ring), len(batch.keys)
        with self._lock:
            entry, at = (self._next, batch), self._next % most
            end = min(at + count, most)
            ring[at:end] = [entry] * (end - at)
            again = min(at + count - end, most)  # from the start of the ring
            ring[:again] = [entry] * again
            self._next += count
            if self._waiting:
                self._changed.notify_all()

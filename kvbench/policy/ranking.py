"""Policies that rank blocks by how often, how deep and how lately they were used.

A heap with late repairs: a touch changes the rank outside the heap, and the entry is put right when
it comes to the top. The ranks themselves are in `length_aware` and `leaf_first`.

May import: nothing of kvbench but kvbench.policy.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic, TypeAlias

from kvbench.policy.policy import Key
from kvbench.policy.tree import Family, Leaving, leaves

Rank: TypeAlias = tuple[int, ...]
MANY = 16  # new blocks are a heap's sixteenth: to order it anew takes no longer than to push them


class Ranked(Generic[Key]):
    """The block goes whose rank is lowest, once its children have gone; a `TreePolicy`.

    `rank(uses, depth, touched)` gets the number of touches (coming in is the first), the position
    in the prefix, and the time of the last touch, which no two blocks share. It must rise with
    every touch and be unique. Counts are forgotten when a block leaves.

    `insert` and `remove` are O(log n), `touch` is O(1) a key, `victims` O(count log n) amortised:
    each block touched since it was last looked at costs O(log n), once. So the worst single call,
    after everything was touched, is O(n log n).
    """

    def __init__(self, rank: Callable[[int, int, int], Rank]) -> None:
        self._family: Family[Key] = Family()
        self._uses: dict[Key, tuple[int, int, int]] = {}  # what `rank` gets
        self._now = 0
        self._ranking: Ranking[Key] = Ranking(lambda key: rank(*self._uses[key]))

    @property
    def family(self) -> Family[Key]:
        """The tree of its blocks. To be read only."""
        return self._family

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier, `position` blocks after the start of its prefix."""
        self._family.enter(key, parent)
        self._now += 1
        self._uses[key] = (1, position, self._now)
        self._ranking.recall(key)

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first; all of them or none."""
        depths = zip(keys, positions, strict=True)
        uses = {key: (1, depth, now) for now, (key, depth) in enumerate(depths, self._now + 1)}
        self._family.enter_many(keys, parents)
        self._now += len(keys)
        self._uses.update(uses)
        self._ranking.recall_many(keys)

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order. Absent ones are ignored."""
        now, known = self._now, self._uses
        for key in reversed(keys):
            use = known.get(key)
            if use is not None:
                now += 1
                known[key] = (use[0] + 1, use[1], now)
        self._now = now

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        self.remove_many([key])

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        here = [key for key in keys if self._uses.pop(key, None) is not None]
        for key in here:
            self._ranking.discard(key)
        for freed in self._family.leave_many(here):
            self._ranking.recall(freed)

    def victims(
        self, count: int, spared: Callable[[Key], bool], *, gone: Collection[Key] = ()
    ) -> list[Key]:
        """Up to `count` blocks, the one that goes first first; they stay until removed."""
        return leaves(self._ranking, Leaving(self._family, gone), count, spared)

    def __contains__(self, key: object) -> bool:
        return key in self._uses

    def __len__(self) -> int:
        return len(self._uses)


class Ranking(Generic[Key]):
    """Blocks in the order of `rank(key)`, an `Order`; ranks are unique and never fall."""

    __slots__ = ("_entries", "_heap", "_rank")

    def __init__(self, rank: Callable[[Key], Rank]) -> None:
        self._rank = rank
        self._heap: list[tuple[Rank, Key]] = []
        self._entries: dict[Key, tuple[Rank, Key]] = {}  # those in the heap that are not void

    def recall(self, key: Key) -> None:
        """A new block, or one that was given out, may be given."""
        if key not in self._entries:
            entry = self._entries[key] = (self._rank(key), key)
            heapq.heappush(self._heap, entry)

    def recall_many(self, keys: Iterable[Key]) -> None:
        """As `recall` for each of many new blocks."""
        rank = self._rank
        entries = {key: (rank(key), key) for key in keys}
        self._entries.update(entries)
        if len(entries) * MANY < len(self._heap):
            for entry in entries.values():
                heapq.heappush(self._heap, entry)
            return
        self._heap += entries.values()
        heapq.heapify(self._heap)

    def give_back(self, keys: Iterable[Key]) -> None:
        """As `recall` for each."""
        for key in keys:
            self.recall(key)

    def discard(self, key: Key) -> None:
        """The block goes."""
        self._entries.pop(key, None)
        if len(self._heap) > 2 * len(self._entries) + 64:  # void entries, deep in the heap
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)

    def next(self) -> Key | None:
        """The block of lowest rank that was not given yet, or was recalled; None if none is."""
        heap, entries = self._heap, self._entries
        while heap:
            entry = heap[0]
            key = entry[1]
            if entries.get(key) is not entry:
                heapq.heappop(heap)
                continue
            rank = self._rank(key)
            if rank == entry[0]:
                heapq.heappop(heap)
                del entries[key]
                return key
            entry = entries[key] = (rank, key)
            heapq.heapreplace(heap, entry)
        return None

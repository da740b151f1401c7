"""A line of blocks: who came last goes last. The order of LRU, and of both queues of S3-FIFO.

A block that is given out steps aside and keeps its place. So blocks that wait for their children
are passed once, not in each call.

May import: nothing of kvbench but kvbench.policy.
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic

from kvbench.policy.policy import Key
from kvbench.policy.tree import Family


class Line(Generic[Key]):
    """Blocks in a line, an `Order`. `recall` is O(log n), everything else O(1) amortised.

    Those aside stood before all that are still in the row, and their numbers are in their order.

    Args:
        tier: the blocks of the tier, if all of them are in this line; makes a big start cheap.
    """

    __slots__ = ("_aside", "_back", "_last_place", "_listed", "_old", "_ready", "_row", "_tier")

    def __init__(self, tier: Family[Key] | None = None) -> None:
        self._tier = tier
        # Blocks from the start, the front at the end of the list. An entry is void if its block is
        # in the row, aside or not in the tier by now: a million need no dict of their own.
        self._old: list[Key] = []
        self._row: OrderedDict[Key, None] = OrderedDict()
        self._aside: dict[Key, int] = {}  # given out: the number of its place
        # Recalled, by place. An entry whose key has another place by now, or none, is void.
        self._ready: list[tuple[int, Key]] = []
        self._listed: set[int] = set()  # places in _ready
        self._back: list[Key] = []  # given out, and staying
        self._last_place = 0

    def append(self, key: Key) -> None:
        """A new block, to the back."""
        self._row[key] = None

    def extend(self, keys: Sequence[Key]) -> None:
        """New blocks, to the back, the last of them last."""
        if self._tier is not None and not (self._row or self._aside or self._old):
            self._old = list(reversed(keys))
        else:
            row = self._row
            for key in keys:  # `update` takes twice as long
                row[key] = None

    def to_back(self, keys: Sequence[Key]) -> None:
        """Those of `keys` that are here go to the back, the first of them last."""
        try:
            deque(map(self._row.move_to_end, reversed(keys)), 0)  # a loop in C
        except KeyError:  # some are aside or not here; moving the others twice changes nothing
            for key in reversed(keys):
                if key in self._row:
                    self._row.move_to_end(key)
                elif self._aside.pop(key, None) is not None or self._is_old(key):
                    self._row[key] = None

    def discard(self, key: Key) -> bool:
        """The block goes; whether it was here."""
        if self._aside.pop(key, None) is not None:
            return True
        if key in self._row:
            del self._row[key]
            return True
        return self._is_old(key)

    def discard_many(self, keys: Iterable[Key]) -> list[Key]:
        """These blocks go; those of them that were here, each once."""
        row = self._row
        here: list[Key] = []
        for key in dict.fromkeys(keys):
            if key in row:
                del row[key]
            elif not self.discard(key):
                continue
            here.append(key)
        return here

    def next(self) -> Key | None:
        """The foremost block that was not given yet, or was recalled; None if there is none."""
        key = self.before_row()
        if key is not None or not self._row:
            return key
        return self._step_aside(self._row.popitem(last=False)[0])

    def before_row(self) -> Key | None:
        """As `next`, of those that stand before the row: recalled, or here from the start."""
        if self._back:
            back, self._back = self._back, []
            for key in back:
                self.recall(key)
        while self._ready:
            place, key = heapq.heappop(self._ready)
            self._listed.discard(place)
            if self._aside.get(key) == place:
                return key
        while self._tier is not None and self._old:
            key = self._old.pop()
            void = key in self._row or key in self._aside or key not in self._tier.parents
            if not void:
                return self._step_aside(key)
        return None

    def front(self) -> Key:
        """The block that has been here longest, whether it was given or not; for lines of no tier.

        Raises StopIteration if there is none.
        """
        return next(iter(self._aside or self._row))

    def row(self) -> Iterator[Key]:
        """Those that were not given yet, and stay where they are, from the front."""
        return iter(self._row)

    def is_aside(self, key: Key) -> bool:
        """Whether it stands before the row: it was given, or waits for its children."""
        return key in self._aside

    def step_aside(self, last: Key) -> list[Key]:
        """Give out the front of the row, up to and with this block of it; all of those."""
        given: list[Key] = []
        while not given or given[-1] != last:
            given.append(self._step_aside(self._row.popitem(last=False)[0]))
        return given

    def recall(self, key: Key) -> None:
        """The block, if it was given out, may be given again, in its old place."""
        place = self._aside.get(key)
        if place is not None and place not in self._listed:
            self._listed.add(place)
            heapq.heappush(self._ready, (place, key))

    def give_back(self, keys: Sequence[Key]) -> None:
        """Blocks that were given out stay: as `recall` for each, when the next is asked for.

        By then most have gone.
        """
        self._back += keys

    def __contains__(self, key: object) -> bool:
        if key in self._row or key in self._aside:
            return True
        return self._tier is not None and key in self._tier.parents

    def __len__(self) -> int:
        here = len(self._row) + len(self._aside)
        return here if self._tier is None else len(self._tier.parents)

    def _step_aside(self, key: Key) -> Key:
        self._last_place += 1
        self._aside[key] = self._last_place
        return key

    def _is_old(self, key: Key) -> bool:
        """Whether a block that is neither in the row nor aside is here from the start."""
        return bool(self._old) and self._tier is not None and key in self._tier.parents


class BeforeRow(Generic[Key]):
    """Those of a line that stand before its row; an `Order`."""

    __slots__ = ("give_back", "next", "recall")

    def __init__(self, line: Line[Key]) -> None:
        self.next = line.before_row
        self.recall = line.recall
        self.give_back = line.give_back

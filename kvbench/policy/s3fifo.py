"""S3-FIFO: a small queue for the new, a main queue for what was touched again, and a ghost.

After Yang et al., SOSP 2023, with these choices: the small queue is held at 10 % of the blocks that
are here, not of a capacity; one touch after coming in moves a block to main when its turn in the
small queue comes ("a second touch"); a block with children in the tier is not looked at.

May import: nothing of kvbench but kvbench.policy.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic

from kvbench.policy.line import Line
from kvbench.policy.policy import Key
from kvbench.policy.tree import Family, Leaving

SMALL_SHARE = 10  # the small queue is a tenth
MOST_TOUCHES = 3  # counted in two bits, as in the paper


class S3FIFO(Generic[Key]):
    """Two queues and a ghost; a `TreePolicy`.

    Keys that went from the small queue are remembered, as many as there are blocks in the tier:
    one that comes again goes to main at once. `insert`, `touch` and `remove` are O(1) a key;
    `victims` is O(count log n) amortised over the touches, since each of them lets its block be
    passed over once more; spared blocks at the front of both queues come on top.
    """

    def __init__(self) -> None:
        self._family: Family[Key] = Family()
        self._small: Line[Key] = Line()
        self._main: Line[Key] = Line()
        self._touches: dict[Key, int] = {}
        self._ghost: OrderedDict[Key, None] = OrderedDict()

    @property
    def family(self) -> Family[Key]:
        """The tree of its blocks. To be read only."""
        return self._family

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier."""
        del position
        self._family.enter(key, parent)
        self._touches[key] = 0
        if key in self._ghost:
            del self._ghost[key]
            self._main.append(key)
        else:
            self._small.append(key)

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first; all of them or none."""
        del positions
        self._family.enter_many(keys, parents)
        self._touches.update(dict.fromkeys(keys, 0))
        ghost = self._ghost
        again = [key for key in keys if key in ghost] if ghost else []
        for key in again:
            del ghost[key]
            self._main.append(key)
        known = set(again)
        self._small.extend([key for key in keys if key not in known] if known else keys)

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order. Absent ones are ignored."""
        touches = self._touches
        for key in keys:
            seen = touches.get(key)
            if seen is not None and seen < MOST_TOUCHES:
                touches[key] = seen + 1

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        self.remove_many([key])

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        here = [key for key in keys if self._touches.pop(key, None) is not None]
        for key in here:
            if self._small.discard(key):
                self._ghost[key] = None
            else:
                self._main.discard(key)
        freed = self._family.leave_many(here)
        while len(self._ghost) > len(self):
            self._ghost.popitem(last=False)
        for parent in freed:
            self._recall(parent)

    def victims(
        self, count: int, spared: Callable[[Key], bool], *, gone: Collection[Key] = ()
    ) -> list[Key]:
        """Up to `count` blocks, the one that goes first first; they stay until removed.

        Blocks that were touched are moved on as they are looked at.
        """
        leaving = Leaving(self._family, gone)
        for childless in leaving.start():
            self._recall(childless)
        looked_at: list[Key] = []
        # What is left without the victims.
        small = len(self._small) - sum(key in self._small for key in gone)
        left = len(self) - len(gone)
        try:
            while len(leaving.keys) < count:
                first = self._small if SMALL_SHARE * small >= left else self._main
                key = first.next()
                if key is None:
                    first = self._main if first is self._small else self._small
                    key = first.next()
                    if key is None:
                        break
                if not leaving.is_leaf(key):
                    continue  # recalled when its last child goes
                if self._touches[key] and not leaving.has(key):
                    small -= first is self._small
                    self._move_on(key)
                    continue
                looked_at.append(key)
                if not (leaving.has(key) or spared(key)):
                    left -= 1
                    small -= first is self._small
                    freed = leaving.choose(key)
                    if freed is not None:
                        self._recall(freed)
        finally:
            for key in looked_at:
                self._recall(key)
        return leaving.keys

    def __contains__(self, key: object) -> bool:
        return key in self._family.parents

    def __len__(self) -> int:
        return len(self._family.parents)

    def _move_on(self, key: Key) -> None:
        """A touched block, in its turn: from small to main, or once more around main."""
        if self._small.discard(key):
            self._touches[key] = 0
        else:
            self._main.discard(key)
            self._touches[key] -= 1
        self._main.append(key)

    def _recall(self, key: Key) -> None:
        self._small.recall(key)
        self._main.recall(key)

"""LRU: the block goes that was touched longest ago, once its children in the tier have gone.

A request is touched from its tail, so that among its own blocks the deepest is the oldest and
victims are found at the front of the line. `touch` is one move in a linked list per key.

May import: nothing of kvbench but kvbench.policy.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Generic

from kvbench.policy.line import Line
from kvbench.policy.policy import Key
from kvbench.policy.tree import Family, Leaving, leaves


class LRU(Generic[Key]):
    """Least recently touched first; a `TreePolicy`.

    `insert`, `touch` and `remove` are O(1) a key. `victims` is O(count log n) amortised, and
    O(spared blocks that are older than the last victim) on top: blocks in use are young, so few.
    """

    def __init__(self) -> None:
        self._family: Family[Key] = Family()
        self._line: Line[Key] = Line(self._family)

    @property
    def family(self) -> Family[Key]:
        """The tree of its blocks. To be read only."""
        return self._family

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier; it is the youngest."""
        del position  # age is all that counts here
        self._family.enter(key, parent)
        self._line.append(key)

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first; all of them or none."""
        del positions
        self._family.enter_many(keys, parents)
        self._line.extend(keys)

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order. Absent ones are ignored."""
        self._line.to_back(keys)

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        if self._line.discard(key):
            freed = self._family.leave(key)
            if freed is not None:
                self._line.recall(freed)

    def victims(
        self, count: int, spared: Callable[[Key], bool], *, gone: Collection[Key] = ()
    ) -> list[Key]:
        """Up to `count` blocks, the one that goes first first; they stay until removed."""
        return leaves(self._line, Leaving(self._family, gone), count, spared)

    def __contains__(self, key: object) -> bool:
        return key in self._family.parents

    def __len__(self) -> int:
        return len(self._family.parents)

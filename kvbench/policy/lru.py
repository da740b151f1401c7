"""LRU: the block goes that was touched longest ago, once its children in the tier have gone; FIFO.

A request is touched from its tail, so that among its own blocks the deepest is the oldest and
victims are found at the front of the line. `touch` is one move in a linked list per key.

May import: nothing of kvbench but kvbench.policy.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic

from kvbench.policy.line import BeforeRow, Line
from kvbench.policy.policy import Key
from kvbench.policy.tree import Family, Leaving, leaves


class LRU(Generic[Key]):
    """Least recently touched first; a `TreePolicy`.

    `insert`, `touch` and `remove` are O(1) a key. `victims` is O(count log n) amortised, and
    O(blocks that are older than the last victim and spared, or were victims and stayed) on top:
    blocks in use are young, so few.
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
        self.remove_many([key])

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        line = self._line
        for freed in self._family.leave_many(line.discard_many(keys)):
            line.recall(freed)

    def victims(
        self, count: int, spared: Callable[[Key], bool], *, gone: Collection[Key] = ()
    ) -> list[Key]:
        """Up to `count` blocks, the one that goes first first; they stay until removed."""
        leaving = Leaving(self._family, gone)
        if gone:
            return leaves(self._line, leaving, count, spared)
        leaves(BeforeRow(self._line), leaving, count, spared)
        if len(leaving.keys) < count:
            self._from_row(leaving, count, spared)
        return leaving.keys

    def _from_row(self, leaving: Leaving[Key], count: int, spared: Callable[[Key], bool]) -> None:
        """More victims, as `leaves` finds them in the row, which is left as it is where it can be.

        Nothing before the row is childless as yet; so a parent there that becomes so is the next.
        """
        line, children, freed = self._line, self._family.children, leaving.freed
        passed: dict[Key, None] = {}  # blocks of the row that wait for their children
        recalled: list[Key] = []
        try:
            for key in line.row():
                if key in children and key not in freed:
                    passed[key] = None
                    continue
                parent: Key | None = key
                while parent is not None and not spared(parent):
                    parent = leaving.choose(parent)
                    if len(leaving.keys) == count:
                        return
                    if parent in passed:
                        del passed[parent]
                    elif parent is not None and line.is_aside(parent):
                        recalled.append(parent)
                    else:
                        break  # there is none, or its turn in the row is yet to come
        finally:
            if passed:
                given = line.step_aside(next(reversed(passed)))
                recalled += [key for key in given if key not in passed]
            line.give_back(recalled)

    def __contains__(self, key: object) -> bool:
        return key in self._family.parents

    def __len__(self) -> int:
        return len(self._family.parents)


class FIFO(LRU[Key]):
    """First in, first out; a `TreePolicy`. As `LRU`, but a touch changes nothing."""

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks; they go no later for that."""
        del keys

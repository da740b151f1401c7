"""Policies of several lines of blocks: SLRU, 2Q, ARC, S3-FIFO. What they share; each is one file.

May import: nothing of kvbench but kvbench.policy.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic

from kvbench.policy.line import Line
from kvbench.policy.policy import Key
from kvbench.policy.tree import Family, Leaving


class Queued(ABC, Generic[Key]):
    """Some lines of blocks; a `TreePolicy`. Which line gives the next victim is a subclass's.

    `insert`, `touch` and `remove` are O(1) a key; `victims` is O(count log n) amortised over the
    blocks that are moved on; spared blocks at the front of the lines come on top. A block with
    children in the tier is passed over, whatever its turn.
    """

    def __init__(self, lines: int) -> None:
        self._family: Family[Key] = Family()
        self._lines: list[Line[Key]] = [Line() for _ in range(lines)]

    # What a policy decides.

    @abstractmethod
    def _arrive(self, key: Key) -> None:
        """A block came in: put it into a line."""

    @abstractmethod
    def _use(self, key: Key) -> None:
        """A request used the block, which may be absent."""

    @abstractmethod
    def _turns(self, sizes: Sequence[int], moved: int | None) -> Sequence[int]:
        """The lines in the order in which they are asked for the next victim.

        `sizes` are those without the victims so far; `moved` is the line of which the block was
        that was just moved on, if one was.
        """

    def _moves_on(self, key: Key, line: int) -> int | None:
        """The line that a block has moved to instead of going, or None: then it may go."""
        del key, line
        return None

    def _depart(self, key: Key, line: int) -> None:
        """A block of this line left."""
        del key, line

    # What a policy is.

    @property
    def family(self) -> Family[Key]:
        """The tree of its blocks. To be read only."""
        return self._family

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier."""
        del position
        self._family.enter(key, parent)
        self._arrive(key)

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first; all of them or none."""
        del positions
        self._family.enter_many(keys, parents)
        for key in keys:
            self._arrive(key)

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order."""
        for key in reversed(keys):
            self._use(key)

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        self.remove_many([key])

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        here: list[Key] = []
        for key in keys:
            line = self._line_of(key)
            if line is not None:
                self._lines[line].discard(key)
                here.append(key)
                self._depart(key, line)
        for parent in self._family.leave_many(here):
            self._recall(parent)

    def victims(
        self, count: int, spared: Callable[[Key], bool], *, gone: Collection[Key] = ()
    ) -> list[Key]:
        """Up to `count` blocks, the one that goes first first; they stay until removed."""
        leaving = Leaving(self._family, gone)
        for childless in leaving.start():
            self._recall(childless)
        sizes = [len(line) - sum(key in line for key in gone) for line in self._lines]
        moved: int | None = None
        looked_at: list[Key] = []
        try:
            while len(leaving.keys) < count:
                line, key = self._next(self._turns(sizes, moved))
                if key is None:
                    break
                if not leaving.is_leaf(key):
                    continue  # recalled when its last child goes
                if not leaving.has(key) and (to := self._moves_on(key, line)) is not None:
                    sizes[line] -= 1
                    sizes[to] += 1
                    moved = line
                    continue
                looked_at.append(key)
                if not (leaving.has(key) or spared(key)):
                    sizes[line] -= 1
                    moved = None
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

    def _next(self, lines: Iterable[int]) -> tuple[int, Key | None]:
        for line in lines:
            key = self._lines[line].next()
            if key is not None:
                return line, key
        return 0, None

    def _line_of(self, key: Key) -> int | None:
        for number, line in enumerate(self._lines):
            if key in line:
                return number
        return None

    def _recall(self, key: Key) -> None:
        for line in self._lines:
            line.recall(key)


class Ghosts(Generic[Key]):
    """Keys of blocks that left, the oldest forgotten first, at most `most` of them.

    A key that is asked for is taken out, and is what comes in next, or else forgotten: so what
    leaves in between to make room cannot push it out.
    """

    __slots__ = ("_keys", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._keys: OrderedDict[Key, None] = OrderedDict()

    def add(self, key: Key) -> None:
        """A block left."""
        self._keys[key] = None
        self.limit(self.most)

    def limit(self, most: int) -> None:
        """Remember so many at most, from now on."""
        self.most = most
        while len(self._keys) > most:
            self._keys.popitem(last=False)

    def take(self, key: Key) -> bool:
        """Whether the key is remembered; then it is no longer."""
        if key in self._keys:
            del self._keys[key]
            return True
        return False

    def drop_oldest(self) -> None:
        """Forget the oldest, if there is one."""
        if self._keys:
            self._keys.popitem(last=False)

    def __len__(self) -> int:
        return len(self._keys)

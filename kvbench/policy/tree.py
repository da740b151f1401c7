"""What all policies share: who is whose child in a tier, and the choice of victims leaf by leaf.

An `Order` says which block would go next if there were no children; `leaves` takes from it only
what no child depends on. Orders: `Line` (kvbench.policy.line), `Ranking` (kvbench.policy.ranking).

May import: nothing of kvbench but kvbench.policy.policy.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import eq
from typing import Generic, Protocol, cast

from kvbench.policy.policy import Key, Policy


class Family(Generic[Key]):
    """The blocks of one tier and their children there. All operations are O(1).

    `parents` has every block of the tier. `children` counts the children in the tier of each key
    that has any, be it in the tier or not: a parent may come after its child.
    """

    __slots__ = ("children", "parents")

    def __init__(self) -> None:
        self.parents: dict[Key, Key | None] = {}
        self.children: Counter[Key] = Counter()

    def enter(self, key: Key, parent: Key | None) -> None:
        """A block came. Raises ValueError if it is here, or its own parent."""
        if key in self.parents or key == parent:
            raise ValueError(f"block {_shown(key)} is in the tier already, or its own parent")
        self.parents[key] = parent
        if parent is not None:
            self.children[parent] = self.children.get(parent, 0) + 1

    def enter_many(self, keys: Sequence[Key], parents: Sequence[Key | None]) -> None:
        """Many blocks came: as `enter` for each, at a fraction of the time; all of them or none."""
        coming = dict(zip(keys, parents, strict=True))
        if len(coming) != len(keys) or not self.parents.keys().isdisjoint(coming):
            raise ValueError(f"some of {len(keys)} blocks are in the tier already, or named twice")
        if any(map(eq, keys, parents)):
            raise ValueError(f"one of {len(keys)} blocks is its own parent")
        if self.parents:
            self.parents.update(coming)
        else:
            self.parents = coming  # a copy would take as long again
        self.children.update(cast("Sequence[Key]", parents))  # counts them
        self.children.pop(cast("Key", None), None)

    def leave_many(self, keys: Iterable[Key]) -> list[Key]:
        """Blocks of the tier went, each named once. Their parents here that are now childless."""
        parents, children = self.parents, self.children
        freed: list[Key] = []
        for key in keys:
            parent = parents.pop(key)
            if parent is None:
                continue
            left = children[parent] - 1
            if left:
                children[parent] = left
            else:
                children.pop(parent)  # a Counter's `del` is ten times slower
                freed.append(parent)
        return [parent for parent in freed if parent in parents]


class TreePolicy(Policy[Key], Protocol[Key]):
    """A policy that lets its tree be seen, and takes many blocks at once. All of ours do."""

    @property
    def family(self) -> Family[Key]:
        """Its blocks. To be read only."""
        ...

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first, at a fraction of the time; all of them or none."""
        ...

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        ...

    def victims(
        self, count: int, spared: Callable[[Key], bool], *, gone: Collection[Key] = ()
    ) -> list[Key]:
        """Up to `count` blocks that should go after those in `gone`, as if these had been removed.

        `gone` has blocks of the tier: victims of earlier calls, any of them after its children.
        """
        ...


class Order(Protocol[Key]):
    """Blocks in the order in which they would go, were there no children."""

    def next(self) -> Key | None:
        """The first block that was not given yet; None if all were. It is not given again."""
        ...

    def recall(self, key: Key) -> None:
        """May be given again, in its old place. Keys that are not here, or not given, are ignored.

        Blocks that wait for their children cost nothing until then.
        """
        ...

    def give_back(self, keys: Sequence[Key]) -> None:
        """As `recall` for each of these, which were given."""
        ...


class Leaving(Generic[Key]):
    """The victims of one call so far, and who would have no child left without them."""

    __slots__ = ("_before", "_family", "_gone", "freed", "keys")

    def __init__(self, family: Family[Key], before: Collection[Key]) -> None:
        self.keys: list[Key] = []
        self.freed: set[Key] = set()  # those all of whose children would have gone
        self._family = family
        self._before = dict.fromkeys(before)  # the victims of earlier calls
        self._gone: dict[Key, int] = {}  # children that are victims, of parents with several

    def start(self) -> list[Key]:
        """The blocks that would have no child left without the victims of before."""
        freed = [parent for key in self._before if (parent := self.choose(key)) is not None]
        self.keys = []
        return freed

    def has(self, key: Key) -> bool:
        """Whether it was a victim before."""
        return key in self._before

    def is_leaf(self, key: Key) -> bool:
        """Whether all its children would have gone."""
        return key not in self._family.children or key in self.freed

    def choose(self, key: Key) -> Key | None:
        """Make it a victim. Its parent, if that is here and would be childless, else None."""
        self.keys.append(key)
        parents = self._family.parents
        parent = parents[key]
        if parent is None:
            return None
        children = self._family.children[parent]
        if children > 1:
            gone = self._gone[parent] = self._gone.get(parent, 0) + 1
            if gone < children:
                return None
        self.freed.add(parent)
        return parent if parent in parents else None


def leaves(
    order: Order[Key],
    leaving: Leaving[Key],
    count: int,
    spared: Callable[[Key], bool],
) -> list[Key]:
    """The first `count` blocks of `order`, each taken when none of its children is left.

    A parent that comes before its children in `order` goes right after the last of them.
    """
    looked_at: list[Key] = []
    for childless in leaving.start():
        order.recall(childless)
    try:
        while len(leaving.keys) < count and (key := order.next()) is not None:
            if not leaving.is_leaf(key):
                continue  # recalled when its last child goes
            looked_at.append(key)
            if not (leaving.has(key) or spared(key)):
                freed = leaving.choose(key)
                if freed is not None:
                    order.recall(freed)
    finally:
        order.give_back(looked_at)  # they stay until removed
    return leaving.keys


def _shown(key: object) -> str:
    return key.hex()[:16] if isinstance(key, bytes) else repr(key)

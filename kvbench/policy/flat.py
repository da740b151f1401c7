"""A policy as textbooks have it: it knows of no prefixes, and may leave holes in them.

May import: nothing of kvbench but kvbench.policy.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Generic

from kvbench.policy.policy import Key
from kvbench.policy.tree import Family, TreePolicy


class Flat(Generic[Key]):
    """Another policy, told of no parents; a `TreePolicy` whose blocks all are leaves.

    A request's blocks are touched from the head, so that the deepest is the most recent; policies
    themselves go from the tail. That is how published hit rates of LRU are counted.
    """

    def __init__(self, inner: TreePolicy[Key]) -> None:
        self.inner = inner

    @property
    def family(self) -> Family[Key]:
        """Its blocks, none the parent of another. To be read only."""
        return self.inner.family

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier. Its parent does not matter, unless it is the block itself."""
        if key == parent:
            raise ValueError("a block is its own parent")
        self.inner.insert(key, None, position)

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first; all of them or none."""
        if any(key == parent for key, parent in zip(keys, parents, strict=True)):
            raise ValueError(f"one of {len(keys)} blocks is its own parent")
        self.inner.insert_many(keys, [None] * len(keys), positions)

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order."""
        self.inner.touch(keys[::-1])

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        self.inner.remove(key)

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        self.inner.remove_many(keys)

    def victims(
        self, count: int, spared: Callable[[Key], bool], *, gone: Collection[Key] = ()
    ) -> list[Key]:
        """Up to `count` blocks, the one that goes first first; they stay until removed."""
        return self.inner.victims(count, spared, gone=gone)

    def __contains__(self, key: object) -> bool:
        return key in self.inner

    def __len__(self) -> int:
        return len(self.inner)

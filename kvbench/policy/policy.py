"""What a policy is: the order in which the blocks of one tier would go.

A policy knows keys, parents and the order of calls, nothing else. It never drops a block itself:
whoever asks for victims says afterwards, by `remove`, which of them went.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Policy(Protocol[Key]):
    """The blocks of one tier, in the order in which they would go."""

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier. `position` counts the blocks before it in its prefix.

        The parent may be absent from the tier. A key that is here already is an error of the
        caller (ValueError).
        """
        ...

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, which are one prefix in order. Absent ones are ignored."""
        ...

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        ...

    def victims(self, count: int, spared: Callable[[Key], bool]) -> list[Key]:
        """Up to `count` blocks that should go, in that order; they stay until removed.

        No block comes before its children that are in the tier, and none goes whose child stays.
        Blocks for which `spared` is true (leased, being written) stay.
        """
        ...

    def __contains__(self, key: object) -> bool: ...

    def __len__(self) -> int: ...

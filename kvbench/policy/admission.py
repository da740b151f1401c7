"""Which blocks may come into a tier: all, or those that were wanted before.

A second touch before a write to NVMe keeps blocks away that are used once, and so saves wear.

May import: kvbench.errors.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from kvbench.errors import UsageError
from kvbench.policy.policy import Key

Asked_contra = TypeVar("Asked_contra", bound=Hashable, contravariant=True)


class Admission(Protocol[Asked_contra]):
    """Says of each block that could come into a tier whether it may."""

    def admit(self, key: Asked_contra) -> bool:
        """Whether the block may come in now; asking counts as a touch."""
        ...


class Always(Generic[Key]):
    """Every block may come in."""

    def admit(self, key: Key) -> bool:
        """True."""
        del key
        return True


class SecondTouch(Generic[Key]):
    """A block may come in when it is asked for the second time; then its count starts again.

    At most `remembers` keys seen once are kept, the oldest forgotten first: about 0.2 KB each.

    Raises:
        UsageError: it would remember nothing.
    """

    def __init__(self, remembers: int) -> None:
        if remembers < 1:
            raise UsageError(f"SecondTouch remembers {remembers} keys: expected at least 1")
        self._remembers = remembers
        self._once: OrderedDict[Key, None] = OrderedDict()

    def admit(self, key: Key) -> bool:
        """Whether the block was asked for before, and is remembered."""
        if key in self._once:
            del self._once[key]
            return True
        self._once[key] = None
        if len(self._once) > self._remembers:
            self._once.popitem(last=False)
        return False

    def __len__(self) -> int:
        return len(self._once)

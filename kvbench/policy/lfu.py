"""LFU: the block goes that was touched least often; of these, the one touched longest ago.

May import: nothing of kvbench but kvbench.policy.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from kvbench.policy.policy import Key
from kvbench.policy.ranking import Ranked


class LFU(Ranked[Key]):
    """Fewest touches since it came in, then the oldest touch; see `Ranked`."""

    def __init__(self) -> None:
        super().__init__(lambda uses, _, touched: (uses, touched))


class PerfectLFU(LFU[Key]):
    """Fewest touches ever, then the oldest touch: counts survive a block's absence.

    It never forgets a key that was in the tier, so it is for finite traces, not for a server.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: Counter[Key] = Counter()  # touches of those that left

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier, perhaps again."""
        super().insert(key, parent, position)
        self._remember([key])

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first; all of them or none."""
        super().insert_many(keys, parents, positions)
        self._remember(keys)

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        going = list(keys)
        for key in going:
            use = self._uses.get(key)
            if use is not None:
                self._before[key] = use[0]
        super().remove_many(going)

    def _remember(self, keys: Sequence[Key]) -> None:
        for key in keys:
            uses, position, now = self._uses[key]
            self._uses[key] = (uses + self._before.pop(key, 0), position, now)

"""TTL: a block goes when it was not used for so long, and before that as with LRU.

Knows no clock: whoever has the tier says what time it is, and removes what that makes too old.

May import: kvbench.errors, kvbench.policy.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from kvbench.errors import UsageError
from kvbench.policy.lru import LRU
from kvbench.policy.policy import Key


class TTL(LRU[Key]):
    """LRU whose blocks expire `ttl_s` after their last use; a `TreePolicy`.

    Without `expired` it decides exactly as LRU. A touch and a removal take a dict operation a key
    more than there; `expired` is O(blocks that have).

    Raises:
        UsageError: the time is not positive.
    """

    def __init__(self, ttl_s: float) -> None:
        if not ttl_s > 0:
            raise UsageError(f"ttl_s is {ttl_s}: expected more than 0")
        super().__init__()
        self._ttl_s = ttl_s
        self._now_s = 0.0
        self._used_s: OrderedDict[Key, float] = OrderedDict()  # by last use, oldest first

    def expired(self, now_s: float) -> list[Key]:
        """It is `now_s`, of a clock that never goes back: what has to be removed, in that order.

        A block stays that is `ttl_s` old to the dot, or has a child that stays.
        """
        self._now_s = now_s
        old: set[Key] = set()
        for key, used_s in self._used_s.items():
            if now_s - used_s <= self._ttl_s:
                break
            old.add(key)
        return self.victims(len(old), lambda key: key not in old) if old else []

    def insert(self, key: Key, parent: Key | None, position: int) -> None:
        """A block came into the tier; it is the youngest."""
        super().insert(key, parent, position)
        self._used_s[key] = self._now_s

    def insert_many(
        self, keys: Sequence[Key], parents: Sequence[Key | None], positions: Sequence[int]
    ) -> None:
        """As `insert` for each, oldest first; all of them or none."""
        super().insert_many(keys, parents, positions)
        self._used_s.update(dict.fromkeys(keys, self._now_s))

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order. Absent ones are ignored."""
        super().touch(keys)
        for key in reversed(keys):
            if key in self._used_s:
                self._used_s[key] = self._now_s
                self._used_s.move_to_end(key)

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As `remove` for each."""
        going = list(keys)
        super().remove_many(going)
        for key in going:
            self._used_s.pop(key, None)

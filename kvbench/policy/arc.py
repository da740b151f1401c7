"""ARC: an LRU for what was touched once and one for the rest, their shares learned from ghosts.

After Megiddo and Modha, FAST 2003. The paper adapts when a block is asked for, before it makes
room; so does this one if absent blocks are touched too, else it adapts when the block comes in.

May import: nothing of kvbench but kvbench.policy.
"""

from collections.abc import Sequence

from kvbench.policy.policy import Key
from kvbench.policy.queues import Ghosts, Queued

ONCE, OFTEN = 0, 1  # the lines: T1 and T2 in the paper; their ghosts are B1 and B2


class ARC(Queued[Key]):
    """Two lines and the ghosts of both, for a tier of `blocks`; a `TreePolicy`."""

    def __init__(self, blocks: int) -> None:
        super().__init__(2)
        self._blocks = blocks
        self._target = 0.0  # blocks for ONCE: p in the paper
        self._ghosts: tuple[Ghosts[Key], Ghosts[Key]] = (Ghosts(2 * blocks), Ghosts(2 * blocks))
        self._wanted: tuple[Key, int] | None = None  # a ghost that was touched, and whose it was

    def _arrive(self, key: Key) -> None:
        known = (self._wanted is not None and self._wanted[0] == key) or self._take(key) is not None
        self._wanted = None
        self._lines[OFTEN if known else ONCE].append(key)

    def _use(self, key: Key) -> None:
        self._wanted = None
        if key in self._lines[OFTEN]:
            self._lines[OFTEN].to_back([key])
        elif self._lines[ONCE].discard(key):
            self._lines[OFTEN].append(key)
        elif (line := self._take(key)) is not None:
            self._wanted = (key, line)

    def _turns(self, sizes: Sequence[int], moved: int | None) -> Sequence[int]:
        del moved
        again = self._wanted is not None and self._wanted[1] == OFTEN
        larger = sizes[ONCE] > self._target or (sizes[ONCE] == self._target and again)
        return (ONCE, OFTEN) if larger else (OFTEN, ONCE)

    def _depart(self, key: Key, line: int) -> None:
        """The ghosts of ONCE and its blocks are `blocks` at most, all together twice as many."""
        once, often = self._ghosts
        here = [len(each) for each in self._lines]
        here[line] += 1  # as it was
        remembered = True
        if self._wanted is None:
            if here[ONCE] + len(once) >= self._blocks:
                remembered = here[ONCE] < self._blocks or line != ONCE
                if remembered:
                    once.drop_oldest()
            elif sum(here) + len(once) + len(often) >= 2 * self._blocks:
                often.drop_oldest()
        if remembered:
            self._ghosts[line].add(key)
        while len(once) + len(often) > self._blocks:
            (once if len(once) else often).drop_oldest()

    def _take(self, key: Key) -> int | None:
        """Whose ghost it was, if it was one; then the target has moved."""
        once, often = len(self._ghosts[ONCE]), len(self._ghosts[OFTEN])
        if self._ghosts[ONCE].take(key):
            self._target = min(self._target + max(often / once, 1.0), self._blocks)
            return ONCE
        if self._ghosts[OFTEN].take(key):
            self._target = max(self._target - max(once / often, 1.0), 0.0)
            return OFTEN
        return None

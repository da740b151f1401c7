"""S3-FIFO: a small queue for the new, a main queue for what was touched again, and a ghost.

After Yang et al., SOSP 2023. `S3FIFO` is for a tier of any size: the small queue is held at 10 % of
the blocks that are here, and one touch after coming in moves a block to main when its turn in the
small queue comes ("a second touch"). `S3FIFOOfCapacity` is that of libCacheSim 0.3.5.

May import: nothing of kvbench but kvbench.policy.
"""

from collections.abc import Sequence

from kvbench.policy.policy import Key
from kvbench.policy.queues import Ghosts, Queued

SMALL_SHARE = 10  # the small queue is a tenth
MOST_TOUCHES = 3  # counted in two bits, as in the paper
SMALL, MAIN = 0, 1  # the lines


class S3FIFO(Queued[Key]):
    """Two queues and a ghost; a `TreePolicy`.

    Keys that went from the small queue are remembered, as many as there are blocks in the tier:
    one that comes again goes to main at once. Costs are those of `Queued`: each touch lets its
    block be passed over once more.
    """

    def __init__(self) -> None:
        super().__init__(2)
        self._touches: dict[Key, int] = {}
        self._ghosts: Ghosts[Key] = Ghosts(0)  # as many as blocks are here

    def _arrive(self, key: Key) -> None:
        self._touches[key] = 0
        self._lines[MAIN if self._ghosts.take(key) else SMALL].append(key)

    def _use(self, key: Key) -> None:
        seen = self._touches.get(key)
        if seen is not None and seen < MOST_TOUCHES:
            self._touches[key] = seen + 1

    def _turns(self, sizes: Sequence[int], moved: int | None) -> Sequence[int]:
        del moved
        return (SMALL, MAIN) if SMALL_SHARE * sizes[SMALL] >= sum(sizes) else (MAIN, SMALL)

    def _moves_on(self, key: Key, line: int) -> int | None:
        """A touched block, in its turn: from small to main, or once more around main."""
        if not self._touches[key]:
            return None
        self._touches[key] = 0 if line == SMALL else self._touches[key] - 1
        self._lines[line].discard(key)
        self._lines[MAIN].append(key)
        return MAIN

    def _depart(self, key: Key, line: int) -> None:
        del self._touches[key]
        if line == SMALL:
            self._ghosts.most += 1
            self._ghosts.add(key)
        self._ghosts.limit(sum(len(each) for each in self._lines))


class S3FIFOOfCapacity(Queued[Key]):
    """S3-FIFO for a tier of `blocks`, as libCacheSim 0.3.5 decides by default; a `TreePolicy`.

    The small queue is a tenth of the tier, ghosts are nine tenths of it. Two touches in the small
    queue move a block to main; until the first block has left, what does not fit into the small
    queue goes to main. While touched blocks of the small queue are moved on, it stays its turn.
    A touch of a ghost, absent as it is, keeps it in mind until the next touch.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__(2)
        self._small = int(blocks * 0.1)  # as there, in floating point
        self._main = blocks - self._small
        self._ghosts: Ghosts[Key] = Ghosts(int(blocks * 0.9))
        self._touches: dict[Key, int] = {}
        self._wanted: Key | None = None
        self._evicted = False

    def _arrive(self, key: Key) -> None:
        known = key == self._wanted or self._ghosts.take(key)
        self._wanted = None
        self._touches[key] = 0
        filling = not self._evicted and len(self._lines[SMALL]) >= self._small
        self._lines[MAIN if known or filling else SMALL].append(key)

    def _use(self, key: Key) -> None:
        self._wanted = None
        if key in self._touches:
            self._touches[key] += 1
        elif self._ghosts.take(key):
            self._wanted = key

    def _turns(self, sizes: Sequence[int], moved: int | None) -> Sequence[int]:
        if not sizes[SMALL] or (moved != SMALL and sizes[MAIN] > self._main):
            return (MAIN, SMALL)
        return (SMALL, MAIN)

    def _moves_on(self, key: Key, line: int) -> int | None:
        touches = self._touches[key]
        if touches < (2 if line == SMALL else 1):
            return None
        self._touches[key] = 0 if line == SMALL else min(touches, MOST_TOUCHES) - 1
        self._lines[line].discard(key)
        self._lines[MAIN].append(key)
        return MAIN

    def _depart(self, key: Key, line: int) -> None:
        del self._touches[key]
        self._evicted = True
        if line == SMALL:
            self._ghosts.add(key)

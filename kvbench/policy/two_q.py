"""2Q: a FIFO for what is new, an LRU for what comes again after it has left the FIFO.

After Johnson and Shasha, VLDB 1994 ("full version"), with the sizes that libCacheSim 0.3.5 has by
default: the FIFO is held at a quarter of the blocks, ghosts are as many as half of them.

May import: nothing of kvbench but kvbench.policy.
"""

from collections.abc import Sequence

from kvbench.policy.policy import Key
from kvbench.policy.queues import Ghosts, Queued

NEW, AGAIN = 0, 1  # the lines


class TwoQ(Queued[Key]):
    """A FIFO, an LRU and ghosts of the FIFO, for a tier of `blocks`; a `TreePolicy`.

    A touch in the FIFO does nothing. A touch of a ghost, absent as it is, keeps it in mind until
    the next touch: so it finds its way into the LRU whoever goes in its place.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__(2)
        self._most_new = blocks // 4
        self._ghosts: Ghosts[Key] = Ghosts(blocks // 2)
        self._wanted: Key | None = None

    def _arrive(self, key: Key) -> None:
        known = key == self._wanted or self._ghosts.take(key)
        self._wanted = None
        self._lines[AGAIN if known else NEW].append(key)

    def _use(self, key: Key) -> None:
        self._wanted = None
        if key in self._lines[AGAIN]:
            self._lines[AGAIN].to_back([key])
        elif self._ghosts.take(key):
            self._wanted = key

    def _turns(self, sizes: Sequence[int], moved: int | None) -> Sequence[int]:
        del moved
        return (NEW, AGAIN) if sizes[NEW] > self._most_new else (AGAIN, NEW)

    def _depart(self, key: Key, line: int) -> None:
        if line == NEW:
            self._ghosts.add(key)

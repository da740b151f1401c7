"""SLRU: segments of an LRU; a touch lifts a block into the next, what overflows sinks back.

As libCacheSim 0.3.5 has it by default: four equal segments, and a new block goes into the lowest
that has room, so that the first blocks fill all of them. There a touch can evict, in caches whose
size is no multiple of four; here it never does.

May import: kvbench.errors, kvbench.policy.
"""

from collections.abc import Sequence

from kvbench.policy.policy import Key
from kvbench.policy.queues import Queued

SEGMENTS = 4


class SLRU(Queued[Key]):
    """Four segments of a quarter of `blocks` each, the lowest goes first; a `TreePolicy`."""

    def __init__(self, blocks: int) -> None:
        super().__init__(SEGMENTS)
        self._most = blocks // SEGMENTS

    def _arrive(self, key: Key) -> None:
        room = (line for line in self._lines if len(line) < self._most)
        next(room, self._lines[0]).append(key)

    def _use(self, key: Key) -> None:
        line = self._line_of(key)
        if line is None:
            return
        self._lines[line].discard(key)
        line = min(line + 1, SEGMENTS - 1)
        self._lines[line].append(key)
        for number in range(line, 0, -1):
            while len(self._lines[number]) > self._most:
                front = self._lines[number].front()
                self._lines[number].discard(front)
                self._lines[number - 1].append(front)

    def _turns(self, sizes: Sequence[int], moved: int | None) -> Sequence[int]:
        del sizes, moved
        return range(SEGMENTS)

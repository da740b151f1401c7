"""The keys of one fetch: which are open, whom each was asked of, which have been delivered.

Every step is one pass over the keys of a pull: a fetch of small blocks is bound by what Python does
for each. Asks nobody, moves no bytes. Not thread-safe: the flight locks.

May import: kvbench.peer.lines.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvbench.peer.lines import Line


@dataclass(slots=True, eq=False)
class Holder:
    """A peer that may be asked, and for which keys."""

    line: Line
    expected_s: float  # of a full pull
    ranges: list[range] = field(default_factory=list[range])  # by position, step 1

    def has(self, position: int) -> bool:
        """Whether it is believed to have this key."""
        return position in self.ranges[0] or any(position in each for each in self.ranges)


class Ledger:
    """Keys by their positions, of which the first `reach` can be asked for."""

    def __init__(self, size: int, reach: int) -> None:
        self.open = list(range(reach))  # to be asked for, in order
        self._out = bytearray(size)  # pulls under way for each key
        self._taken: set[int] = set()  # delivered, or about to be
        self._tried: dict[bytes, set[int]] = {}  # what each peer, by id, was asked for

    def may(self, holder: Holder, position: int) -> bool:
        """Whether a holder may be asked for a key: it has it, and was not yet."""
        return holder.has(position) and position not in self._tried.get(holder.line.id, ())

    def able(self, holder: Holder) -> list[int]:
        """The open keys that a holder may be asked for, in order."""
        keys = self.open
        if len(holder.ranges) == 1:
            known = holder.ranges[0]
            mine = keys[bisect_left(keys, known.start) : bisect_left(keys, known.stop)]
        else:
            mine = [p for p in keys if holder.has(p)]
        tried = self._tried.get(holder.line.id)
        return [p for p in mine if p not in tried] if tried else mine

    def take(self, holder: Holder, most: int) -> tuple[list[int], bool]:
        """The next keys to ask of a holder; whether another one is asked for some already."""
        mine = self.able(holder)[:most]
        self.drop(mine)
        self._tried.setdefault(holder.line.id, set()).update(mine)
        out = self._out
        hedge = any([out[p] for p in mine])  # noqa: C419  half as long as a generator
        for p in mine:
            out[p] += 1
        return mine, hedge

    def deliver(self, positions: Sequence[int]) -> list[int]:
        """A pull has brought these keys; those that none had brought before."""
        self._ended(positions)
        taken = self._taken
        fresh = [p for p in positions if p not in taken]
        taken.update(fresh)
        if self.open:  # again, since a hedge was to be asked for some of them
            self.drop(fresh)
        return fresh

    def failed(self, positions: Iterable[int]) -> None:
        """A pull has not brought these: they are open again, unless they come by another one."""
        self._ended(positions)
        out, taken = self._out, self._taken
        back = [p for p in positions if not out[p] and p not in taken]
        self.open = sorted({*self.open, *back})

    def again(self, positions: Iterable[int], holders: Sequence[Holder]) -> bool:
        """Keys that are being pulled are open to others too; whether any of those may be asked."""
        known = {*self.open, *self._taken}
        more = [
            p for p in positions if p not in known and any(self.may(each, p) for each in holders)
        ]
        self.open = sorted([*self.open, *more])
        return bool(more)

    def lost(self, holders: Sequence[Holder]) -> list[int]:
        """Keys that none of these may be asked for, and nobody is: they are closed."""
        left = self.open
        for each in holders:
            able = self.able(each)
            if len(able) == len(self.open):
                return []
            mine = set(able)
            left = [p for p in left if p not in mine]
        left = [p for p in left if not self._out[p]]
        self.drop(left)
        return left

    def under_way(self) -> bool:
        """Whether somebody is asked for a key that is open to others too."""
        return any(self._out[p] for p in self.open)

    def drop(self, positions: Sequence[int]) -> None:
        """These keys, in order, are not open any more, if they were."""
        if self.open[: len(positions)] == positions:
            del self.open[: len(positions)]
            return
        gone = set(positions)
        self.open = [p for p in self.open if p not in gone]

    def _ended(self, positions: Iterable[int]) -> None:
        out = self._out
        for p in positions:
            out[p] -= 1

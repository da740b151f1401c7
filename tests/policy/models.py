"""Slow policies that are obviously right, and a way to drive any two with the same calls."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from kvbench.policy.arc import ARC
from kvbench.policy.leaf_first import LeafFirst
from kvbench.policy.length_aware import LengthAware
from kvbench.policy.lfu import LFU, PerfectLFU
from kvbench.policy.lru import FIFO, LRU
from kvbench.policy.s3fifo import S3FIFO, S3FIFOOfCapacity
from kvbench.policy.segmented import SLRU
from kvbench.policy.tree import TreePolicy
from kvbench.policy.ttl import TTL
from kvbench.policy.two_q import TwoQ

BLOCKS = 16  # few, so that random calls meet
# A busy machine is no failure.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Use:
    """What a slow policy knows of a block."""

    parent: int | None
    position: int
    count: int
    touched: int
    born: int


@dataclass
class Slow:
    """The lowest rank goes first, of the blocks without children and not spared."""

    rank: Callable[[Use], tuple[int, ...]]
    keeps_counts: bool = False
    uses: dict[int, Use] = field(default_factory=dict[int, Use])
    counts: dict[int, int] = field(default_factory=dict[int, int])
    now: int = 0

    def insert(self, key: int, parent: int | None, position: int) -> None:
        self.now += 1
        count = 1 + (self.counts.get(key, 0) if self.keeps_counts else 0)
        self.uses[key] = Use(parent, position, count, self.now, self.now)

    def touch(self, keys: Sequence[int]) -> None:
        for key in reversed(keys):
            if key in self.uses:
                self.now += 1
                use = self.uses[key]
                self.uses[key] = replace(use, count=use.count + 1, touched=self.now)

    def remove(self, key: int) -> None:
        use = self.uses.pop(key, None)
        if use is not None:
            self.counts[key] = use.count

    def eligible(self, gone: Collection[int], spared: Collection[int]) -> list[int]:
        left = {key: use for key, use in self.uses.items() if key not in gone}
        parents = {use.parent for use in left.values()}
        return [key for key in left if key not in parents and key not in spared]

    def victims(self, count: int, spared: Collection[int]) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < count and (free := self.eligible(chosen, spared)):
            chosen.append(min(free, key=lambda key: self.rank(self.uses[key])))
        return chosen


def lru_rank(use: Use) -> tuple[int, ...]:
    return (use.touched,)


def fifo_rank(use: Use) -> tuple[int, ...]:
    return (use.born,)


def lfu_rank(use: Use) -> tuple[int, ...]:
    return (use.count, use.touched)


def length_aware_rank(use: Use) -> tuple[int, ...]:
    return (use.count, -use.position, use.touched)


def leaf_first_rank(use: Use) -> tuple[int, ...]:
    return (use.touched - 3 * use.position, use.touched)


@dataclass
class SlowS3FIFO:
    """Two lists and a ghost list, each looked through from the front every time."""

    small: list[int] = field(default_factory=list[int])
    main: list[int] = field(default_factory=list[int])
    ghost: list[int] = field(default_factory=list[int])
    parents: dict[int, int | None] = field(default_factory=dict[int, int | None])
    touches: dict[int, int] = field(default_factory=dict[int, int])

    def insert(self, key: int, parent: int | None, position: int) -> None:
        assert position >= 0
        self.parents[key] = parent
        self.touches[key] = 0
        if key in self.ghost:
            self.ghost.remove(key)
            self.main.append(key)
        else:
            self.small.append(key)

    def touch(self, keys: Sequence[int]) -> None:
        for key in keys:
            if key in self.touches:
                self.touches[key] = min(3, self.touches[key] + 1)

    def remove(self, key: int) -> None:
        if key not in self.parents:
            return
        del self.parents[key], self.touches[key]
        if key in self.small:
            self.small.remove(key)
            self.ghost.append(key)
        else:
            self.main.remove(key)
        while len(self.ghost) > len(self.parents):
            del self.ghost[0]

    def victims(self, count: int, spared: Collection[int]) -> list[int]:
        chosen: list[int] = []
        while len(chosen) < count:
            left = [key for key in self.parents if key not in chosen]
            small = [key for key in self.small if key not in chosen]
            main = [key for key in self.main if key not in chosen]
            busy = {self.parents[key] for key in left}
            queues = (small, main) if 10 * len(small) >= len(left) else (main, small)
            turn = next(
                (
                    key
                    for queue in queues
                    for key in queue
                    if key not in busy and (self.touches[key] or key not in spared)
                ),
                None,
            )
            if turn is None:
                break
            if not self.touches[turn]:
                chosen.append(turn)
            elif turn in self.small:
                self.small.remove(turn)
                self.main.append(turn)
                self.touches[turn] = 0
            else:
                self.main.remove(turn)
                self.main.append(turn)
                self.touches[turn] -= 1
        return chosen


POLICIES: dict[str, tuple[Callable[[], TreePolicy[Any]], Callable[[], Slow | SlowS3FIFO]]] = {
    "LRU": (LRU, lambda: Slow(lru_rank)),
    "LengthAware": (LengthAware, lambda: Slow(length_aware_rank)),
    "LeafFirst": (lambda: LeafFirst(depth_weight=3), lambda: Slow(leaf_first_rank)),
    "S3FIFO": (S3FIFO, SlowS3FIFO),
    "FIFO": (FIFO, lambda: Slow(fifo_rank)),
    "TTL": (lambda: TTL(60.0), lambda: Slow(lru_rank)),
    "LFU": (LFU, lambda: Slow(lfu_rank)),
    "PerfectLFU": (PerfectLFU, lambda: Slow(lfu_rank, keeps_counts=True)),
}
# Held against the compiled ones (tests/sim/test_replay.py), and these against libCacheSim.
OTHERS: dict[str, Callable[[], TreePolicy[Any]]] = {
    "SLRU": lambda: SLRU(BLOCKS // 2),
    "TwoQ": lambda: TwoQ(BLOCKS // 2),
    "ARC": lambda: ARC(BLOCKS // 2),
    "S3FIFOOfCapacity": lambda: S3FIFOOfCapacity(BLOCKS + 4),
}


# ---------------------------------------------------------------- calls


@dataclass(frozen=True)
class Forest:
    """The parent of each possible block, always one of lower number."""

    parents: tuple[int | None, ...]

    def path(self, key: int) -> list[int]:
        """The prefix that ends with this block."""
        before = self.parents[key]
        return [key] if before is None else [*self.path(before), key]


@dataclass(frozen=True)
class Ask:
    """Ask for victims; of the answer the first `taken` are removed."""

    count: int
    spared: frozenset[int]
    taken: int
    of_one: bool = False  # only victims of tenant "a"


@dataclass(frozen=True)
class Insert:
    key: int
    tenant: str


@dataclass(frozen=True)
class Touch:
    """A prefix from its `skipped`-th block on."""

    key: int
    skipped: int


@dataclass(frozen=True)
class Remove:
    key: int


Call = Ask | Insert | Touch | Remove

_keys = st.integers(0, BLOCKS - 1)
forests = st.tuples(
    *(st.none() | st.integers(0, key - 1) if key else st.none() for key in range(BLOCKS))
).map(Forest)
calls: st.SearchStrategy[list[Call]] = st.lists(
    st.builds(Insert, _keys, st.sampled_from("aaabbc"))
    | st.builds(Touch, _keys, st.sampled_from([0, 0, 0, 1, 2]))
    | st.builds(Remove, _keys)
    | st.builds(
        Ask,
        st.integers(0, 6),
        st.frozensets(_keys, max_size=4),
        st.sampled_from([6, 6, 1, 0]),
        st.sampled_from([False, False, False, True]),
    ),
    min_size=16,  # without, hypothesis makes five on average
    max_size=60,
)

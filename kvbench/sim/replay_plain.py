"""The replay of `kvbench.sim.replay` in plain Python, with the policies that the store runs.

Slow and obvious: what the compiled one is held against, decision by decision.

May import: kvbench.policy, kvbench.sim.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from kvbench.policy.flat import Flat
from kvbench.policy.names import named
from kvbench.policy.tree import TreePolicy
from kvbench.policy.ttl import TTL
from kvbench.sim.columns import Columns
from kvbench.sim.replay import Order, Replay


def replay_plain(columns: Columns, eviction: str, blocks: int, order: Order) -> Replay:
    """As `kvbench.sim.replay.replay`, victims and all."""
    pool = PlainPool(named(eviction, blocks)(), blocks)
    leading: list[int] = []
    hits: list[int] = []
    gone: list[int] = []
    for arrival_s, request in requests(columns):
        pool.expire(arrival_s)
        leading.append(pool.leading(request))
        if order is Order.AS_THE_STORE:
            hits.append(pool.as_the_store(request))
        else:
            hits.append(pool.block_by_block(request, tail_first=order is Order.TAIL_FIRST))
        gone.append(len(pool.victims))
    return Replay(
        leading=np.array(leading, np.int32),
        hits=np.array(hits, np.int32),
        gone=np.array(gone, np.int64),
        victims=np.array(pool.victims, np.int32),
    )


def requests(columns: Columns) -> Iterator[tuple[float, list[int]]]:
    """When each request came, and its blocks."""
    for number in range(columns.requests):
        first, end = columns.starts[number], columns.starts[number + 1]
        yield float(columns.arrival_s[number]), columns.ids[first:end].tolist()


class PlainPool:
    """A policy and the blocks it has, as many as fit."""

    def __init__(self, policy: TreePolicy[Any], blocks: int) -> None:
        self.policy = policy
        self.blocks = blocks
        self.victims: list[int] = []

    def expire(self, now_s: float) -> None:
        """Time goes on."""
        inner = self.policy.inner if isinstance(self.policy, Flat) else self.policy
        if isinstance(inner, TTL):
            self._go(inner.expired(now_s))

    def leading(self, request: list[int]) -> int:
        """How many blocks of a request are here, from the first on."""
        return next(
            (n for n, block in enumerate(request) if block not in self.policy), len(request)
        )

    def block_by_block(self, request: list[int], *, tail_first: bool) -> int:
        """Use the blocks one by one; how many were here when it was their turn."""
        hits = 0
        for position, block in sorted(enumerate(request), reverse=tail_first):
            here = block in self.policy
            self.policy.touch([block])
            hits += here
            if here:
                continue
            if len(self.policy) == self.blocks:
                self._go(self.policy.victims(1, lambda _: False))
            self.policy.insert(block, request[position - 1] if position else None, position)
        return hits

    def as_the_store(self, request: list[int]) -> int:
        """Hold what is here, make room for what is not, store that; how many were here."""
        prefix = self.leading(request)
        here = {block for block in request if block in self.policy}
        missing = [n for n, block in enumerate(request) if block not in here]
        self.policy.touch(request[:prefix])
        wanted = len(missing) - (self.blocks - len(self.policy))
        if wanted > 0:
            self._go(self.policy.victims(wanted, here.__contains__))
        self.policy.touch([block for block in request[prefix:] if block in here])
        stored = missing[: self.blocks - len(self.policy)]
        self.policy.insert_many(
            [request[n] for n in stored],
            [request[n - 1] if n else None for n in stored],
            stored,
        )
        return len(here)

    def _go(self, victims: list[int]) -> None:
        self.policy.remove_many(victims)
        self.victims += victims

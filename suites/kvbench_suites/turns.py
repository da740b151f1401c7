"""Whose turn it is in a replay, when it is due, and what became of it. No store, no device.

A trace is replayed in passes, one after another. A request that is due has arrived, whether or not
a lane is free for it: what it waits for a lane is part of its latency.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvbench.sim.trace import Request, Trace

NS_PER_S = 1e9
ALONE_S = 1.0  # between passes of a trace that has no gaps of its own


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of one pass."""

    number: int  # of the pass
    request: Request
    due_ns: int | None  # since the replay began; None: whenever a lane is free


class Turns:
    """Hands out requests in their order, pass after pass. Thread-safe.

    `speed` is times the trace's clock; 0 for none. A pass begins one average gap after the last
    request of the one before.
    """

    def __init__(self, trace: Trace, speed: int) -> None:
        self._requests = trace.requests
        self._speed = speed
        self._first_s = trace.requests[0].arrival_s
        gaps = len(trace.requests) - 1
        self._pass_s = trace.duration_s * (gaps + 1) / gaps if trace.duration_s else ALONE_S
        self._lock = threading.Lock()
        self._next = 0

    def take(self) -> Turn:
        """The next one."""
        with self._lock:
            number, index = divmod(self._next, len(self._requests))
            self._next += 1
        request = self._requests[index]
        due_ns = None
        if self._speed:
            due_s = number * self._pass_s + request.arrival_s - self._first_s
            due_ns = round(due_s / self._speed * NS_PER_S)
        return Turn(number, request, due_ns)


@dataclass(slots=True)
class Tally:
    """What became of requests.

    Blocks are hit when they arrived and were verified, from the first on without a gap: those
    behind one are of no use to an engine.
    """

    requests: int = 0
    hit_requests: int = 0  # with a block at least
    blocks: int = 0
    tokens: int = 0
    hit_blocks: Counter[str] = field(default_factory=Counter[str])  # by tier where each lay
    hit_tokens: int = 0
    late_blocks: int = 0  # here, but not within the deadline
    refused_blocks: int = 0  # here, but the store was too busy
    unstored_blocks: int = 0  # new, and there was no room

    def add(self, other: "Tally") -> None:
        """Both together."""
        self.requests += other.requests
        self.hit_requests += other.hit_requests
        self.blocks += other.blocks
        self.tokens += other.tokens
        self.hit_blocks.update(other.hit_blocks)
        self.hit_tokens += other.hit_tokens
        self.late_blocks += other.late_blocks
        self.refused_blocks += other.refused_blocks
        self.unstored_blocks += other.unstored_blocks


Moved = Mapping[str, Mapping[str, int]]  # by tier, blocks by what happened to them


def since(
    before: Moved, now: Moved, names: Sequence[str] | None = None
) -> dict[str, dict[str, int]]:
    """What was counted between two moments; of these names, or of all that the later one has."""
    return {
        tier: {name: counts[name] - before[tier][name] for name in names or counts}
        for tier, counts in now.items()
    }


class Book:
    """Tallies by pass, and what the store says it moved until the last whole one. Thread-safe."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._lock = threading.Lock()
        self._passes: dict[int, Tally] = {}
        self._moved: Moved | None = None

    def enter(self, number: int, tally: Tally) -> bool:
        """Note what became of a request; whether it was the last of its pass."""
        with self._lock:
            whole = self._passes.setdefault(number, Tally())
            whole.add(tally)
            return whole.requests == self._requests

    def at_end_of_pass(self, moved: Moved) -> None:
        """What the store had moved when a pass ended."""
        with self._lock:
            self._moved = moved

    def evidence(self, moved: Moved) -> dict[str, Any]:
        """The whole passes together; or, before the first has ended, the part of it.

        `moved` is what the store has moved by now. Counts only: whoever reads them divides.
        """
        with self._lock:
            whole = [each for each in self._passes.values() if each.requests == self._requests]
            counted = whole or list(self._passes.values())
            total = Tally()
            for each in counted:
                total.add(each)
            moved = self._moved if whole and self._moved is not None else moved
        return {
            "passes": len(whole),
            "pass_requests": self._requests,
            "requests": total.requests,
            "hit_requests": total.hit_requests,
            "blocks": total.blocks,
            "tokens": total.tokens,
            "hit_blocks": dict(total.hit_blocks),
            "hit_tokens": total.hit_tokens,
            "late_blocks": total.late_blocks,
            "refused_blocks": total.refused_blocks,
            "unstored_blocks": total.unstored_blocks,
            "moved": {tier: dict(counts) for tier, counts in moved.items()},
        }

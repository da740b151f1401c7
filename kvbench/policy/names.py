"""The policies by name: for options of the command line, files of settings, and the simulator.

A name says which blocks go and whether they may leave holes. "lru" and the like know nothing of
prefixes (flat): a block may go before those that follow it, which are then of no use. Names that
begin with "leaf-" take a block only after all that follow it in the tier.

May import: kvbench.errors, kvbench.policy.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from kvbench.errors import UsageError
from kvbench.policy.arc import ARC
from kvbench.policy.flat import Flat
from kvbench.policy.leaf_first import LeafFirst
from kvbench.policy.length_aware import LengthAware
from kvbench.policy.lfu import LFU, PerfectLFU
from kvbench.policy.lru import FIFO, LRU
from kvbench.policy.s3fifo import S3FIFO, S3FIFOOfCapacity
from kvbench.policy.segmented import SLRU
from kvbench.policy.tree import TreePolicy
from kvbench.policy.ttl import TTL
from kvbench.policy.two_q import TwoQ

LEAF = "leaf-"
TTL_S = 300.0  # of "ttl" without a number of its own


class Kind(IntEnum):
    """What decides. Compiled code tells them apart by these numbers, and by their order."""

    LRU = 0
    FIFO = 1
    TTL = 2
    LFU = 3
    PERFECT_LFU = 4
    LENGTH_AWARE = 5
    DEEP_FIRST = 6
    SLRU = 7
    TWO_Q = 8
    ARC = 9
    S3FIFO = 10
    S3FIFO_SHARE = 11


_KINDS = {
    "lru": Kind.LRU,
    "fifo": Kind.FIFO,
    "ttl": Kind.TTL,
    "lfu": Kind.LFU,
    "perfect-lfu": Kind.PERFECT_LFU,
    "length-aware": Kind.LENGTH_AWARE,
    "slru": Kind.SLRU,
    "2q": Kind.TWO_Q,
    "arc": Kind.ARC,
    "s3fifo": Kind.S3FIFO,
    "leaf-deep": Kind.DEEP_FIRST,
    "leaf-s3fifo": Kind.S3FIFO_SHARE,
}
_ABOUT = {
    "lru": "least recently touched first",
    "fifo": "first in, first out",
    "ttl": f"not touched for {TTL_S:g} s, or as in ttl:60: at once; then as LRU",
    "lfu": "fewest touches since it came in, then least recently touched",
    "perfect-lfu": "fewest touches ever, then least recently touched",
    "length-aware": "fewest touches, then the latest in its prefix, then least recently touched",
    "slru": "four LRU segments; a touch moves a block up one, what overflows goes down one",
    "2q": "a FIFO of a quarter for the new, an LRU for what comes again, ghosts of a half",
    "arc": "an LRU for the new and one for the touched, their shares learned from ghosts",
    "s3fifo": "a small FIFO for the new, a main one for what was touched twice, ghosts",
}
# Every name, and what goes first.
NAMES: dict[str, str] = {
    **_ABOUT,
    **{LEAF + name: f"{about}; leaves only" for name, about in _ABOUT.items() if name != "s3fifo"},
    "leaf-s3fifo": "as s3fifo of a tier of any size, and one touch is enough; leaves only",
    "leaf-deep": "as lru, a block counting as a touch older for each before it; leaves only",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a name says."""

    kind: Kind
    leaf_first: bool
    ttl_s: float  # infinite but for TTL


def ruled(name: str) -> Rule:
    """What a name says.

    Raises:
        UsageError: no policy has this name; it says which are like it.
    """
    plain, colon, seconds = name.partition(":")
    kind = _KINDS.get(plain, _KINDS.get(plain.removeprefix(LEAF)))
    if kind is None or plain not in NAMES:
        near = difflib.get_close_matches(plain, NAMES, n=3) or sorted(_ABOUT)
        raise UsageError(f"no eviction policy is called {name!r}: expected {', '.join(near)}")
    if kind is not Kind.TTL:
        if colon:
            raise UsageError(f"eviction policy {name!r}: only ttl takes a number, as in ttl:60")
        return Rule(kind, plain.startswith(LEAF), float("inf"))
    try:
        ttl_s = float(seconds) if colon else TTL_S
    except ValueError:
        ttl_s = 0.0
    if not ttl_s > 0:
        raise UsageError(f"eviction policy {name!r}: expected seconds above 0, as in ttl:60")
    return Rule(kind, plain.startswith(LEAF), ttl_s)


def named(name: str, blocks: int) -> Callable[[], TreePolicy[Any]]:
    """What makes policies of this name, each for a tier, or a tenant's part of it, of `blocks`.

    LRU, FIFO, TTL, LFU, LengthAware, leaf-deep and leaf-s3fifo go by what is in the tier, and do
    not look at `blocks`.

    Raises:
        UsageError: no policy has this name, or the tier has no blocks.
    """
    rule = ruled(name)
    if blocks < 1:
        raise UsageError(f"eviction policy {name!r} for {blocks} blocks: expected at least 1")
    makers: dict[Kind, Callable[[], TreePolicy[Any]]] = {
        Kind.LRU: LRU,
        Kind.FIFO: FIFO,
        Kind.TTL: lambda: TTL(rule.ttl_s),
        Kind.LFU: LFU,
        Kind.PERFECT_LFU: PerfectLFU,
        Kind.LENGTH_AWARE: LengthAware,
        Kind.DEEP_FIRST: LeafFirst,
        Kind.SLRU: lambda: SLRU(blocks),
        Kind.TWO_Q: lambda: TwoQ(blocks),
        Kind.ARC: lambda: ARC(blocks),
        Kind.S3FIFO: lambda: S3FIFOOfCapacity(blocks),
        Kind.S3FIFO_SHARE: S3FIFO,
    }
    make = makers[rule.kind]
    return make if rule.leaf_first else lambda: Flat(make())

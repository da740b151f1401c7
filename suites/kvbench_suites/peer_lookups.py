"""Asking the directory of peers who has a prefix: the body behind `peer.lookup`.

A directory as full as a case says, in this process; no peer is there. Only the worker process
imports this.
"""

import hashlib

import numpy as np

from kvbench.errors import CorruptDataError
from kvbench.measure.body import Context, Observed
from kvbench.peer.directory import HINT_MASK, Directory, hint, pack
from kvbench.peer.model import PEER_ID_BYTES, Peer
from kvbench.store.block import KEY_BYTES
from kvbench.units import MIB
from kvbench_suites.peer_bodies import LaneBody


class Lookup(LaneBody):
    """Asks the directory who has a prefix. The payload are its keys."""

    prefixes = 8

    def set_up(self, context: Context) -> None:
        """Fill a directory: every peer has a first part of every prefix, and blocks of its own."""
        self._context = context
        self._length, peers = context.count("prefix"), context.count("peers")
        self.operation_bytes = self._length * KEY_BYTES
        self._prefixes = [
            [_lookup_key(context.seed, prefix, at) for at in range(self._length)]
            for prefix in range(self.prefixes)
        ]
        # The n-th has n of so many parts: the last one all.
        self._lengths = [self._length * (n + 1) // peers for n in range(peers)]
        self._directory = Directory()
        self._ids = [
            hashlib.blake2b(b"%d" % n, digest_size=PEER_ID_BYTES).digest() for n in range(peers)
        ]
        own = np.random.default_rng((context.seed, context.process))
        for peer_id, length in zip(self._ids, self._lengths, strict=True):
            self._directory.join(_stranger(peer_id))
            hints = [hint(key) for keys in self._prefixes for key in keys[:length]]
            others = own.integers(0, HINT_MASK, context.count("entries"), dtype=np.uint64)
            filled = pack(hints) + others.astype("<u8").tobytes()
            self._directory.snapshot(peer_id, 1, 0, filled)
        self._directory.tidy()

    def operate(self, lane: int, n: int) -> None:
        """Look a prefix up, and look whether the longest is right."""
        del lane
        found = self._directory.holders(self._prefixes[n % len(self._prefixes)])
        if not found or found[0] != (self._ids[-1], self._length):
            raise CorruptDataError(f"the directory says {found[:1]} of a prefix that one peer has")

    def verify(self) -> int:
        """Who has how much of every prefix, and that nobody has another's; bytes of keys."""
        for keys in self._prefixes:
            for peer_id, length in self._directory.holders(keys):
                if length != self._lengths[self._ids.index(peer_id)]:
                    raise CorruptDataError(f"the directory says {length} blocks, which is wrong")
        nobody = [_lookup_key(self._context.seed, -1, at) for at in range(self._length)]
        if self._directory.holders(nobody):
            raise CorruptDataError("the directory names a holder of what nobody has")
        return len(self._prefixes) * self.operation_bytes

    def observed(self) -> Observed:
        """How full the directory was."""
        entries = [each.entries for each in self._directory.holdings()]
        return Observed(
            path="this process's copy of the directory",
            evidence={"peers": len(entries), "entries": sum(entries)},
        )

    def tear_down(self) -> None:
        """It is memory of this process."""


def _lookup_key(seed: int, prefix: int, at: int) -> bytes:
    text = f"{seed} prefix {prefix} {at}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest()


def _stranger(peer_id: bytes) -> Peer:
    return Peer(
        id=peer_id,
        name=peer_id.hex()[:8],
        epoch=1,
        block_bytes=MIB,
        parts=1,
        namespaces=(),
        host="",
        endpoints={},
        capacities={},
    )

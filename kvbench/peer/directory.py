"""Which peer is believed to hold which block: a copy of every peer's directory, in this process.

Entries are hints: 60 bits of a key, which name a block and give nobody the key. A wrong one costs
one miss. A lookup takes no lock and waits for nobody; changes take the directory's own lock. Of
each hint one number says who holds it, a bit for each peer, so that a lookup costs about the same
with one peer and with a hundred. Sends and receives nothing: see `kvbench.peer.replication`.

Measured by `benchmarks/peer_directory.py` on 2 busy cores, prefixes of 1,000 blocks: a lookup takes
2 to 60 us (median) with 1, 8, 64 and 128 peers, whatever they share; an entry 80 bytes where no
other peer has the block, 22 where 128 peers have most of theirs in common (16 million that nobody
shares, the default limit: 1.3 GB); a million entries come in about a second.

May import: kvbench.errors, kvbench.peer.model. numpy.
"""

import enum
import functools
import itertools
import random
import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kvbench.errors import UsageError
from kvbench.peer.model import Peer, PeerError, PeerId, Reason

HINT_BYTES = 8  # of one hint in a delta or snapshot: little-endian, the upper 4 bits 0
# An integer of up to 60 bits takes 32 bytes in CPython and of more 48. Of 16 million blocks, two
# share a hint with a probability of 1 in 10,000.
HINT_MASK = 2**60 - 1
MOST_HOLDERS = 8  # that a lookup names: more are never asked for one prefix
PIECE = 4096  # entries that are changed in one go: about a millisecond


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of what others say is kept.

    An entry is one block of one peer. What is more than that is left out: its blocks are computed
    again, or found when others have gone.
    """

    peers: int = 256
    entries_a_peer: int = 2**21
    entries: int = 2**24


class Effect(enum.Enum):
    """What became of a delta."""

    APPLIED = "applied"
    STALE = "stale"  # known already, or of a peer or epoch that is not known (any more)
    GAP = "gap"  # one before it is missing: nothing was changed, a snapshot is needed


class Summary(NamedTuple):
    """All of a peer's entries in three numbers; equal on both sides when nothing was lost."""

    sequence: int  # of the last delta
    entries: int
    xor: int  # of all hints


class Holding(NamedTuple):
    """What the directory keeps of one peer."""

    peer: Peer
    entries: int
    left_out: int  # entries beyond the limits
    synced: bool  # whether a snapshot has come since it joined


@dataclass(slots=True, eq=False)
class _Book:
    """The entries of one peer: those that have its bit. `log` may name some that are gone."""

    peer: Peer
    slot: int
    sequence: int = 0
    count: int = 0
    xor: int = 0
    left_out: int = 0
    synced: bool = False
    log: "array[int]" = field(default_factory=lambda: array("Q"))

    @property
    def bit(self) -> int:
        """Its bit in every mask."""
        return 1 << self.slot


class _View(NamedTuple):
    """What a lookup knows of the peers; replaced whole."""

    usable: int  # the slots that may be named
    ids: tuple[PeerId, ...]  # by slot
    bits: dict[PeerId, int]


def hint(key: bytes) -> int:
    """What the directory knows a 32-byte key by: the lowest 60 bits of its first 8 bytes."""
    return int.from_bytes(key[:HINT_BYTES], "little") & HINT_MASK


def pack(hints: Collection[int]) -> bytes:
    """Hints as they are sent."""
    return np.fromiter(hints, "<u8", len(hints)).tobytes()


def unpack(hints: bytes) -> list[int]:
    """Hints as they came.

    Raises:
        PeerError: no whole number of hints.
    """
    if len(hints) % HINT_BYTES:
        raise PeerError(
            f"{len(hints)} bytes of hints: a hint has {HINT_BYTES} bytes", Reason.REFUSED
        )
    numbers: list[int] = (np.frombuffer(hints, "<u8") & np.uint64(HINT_MASK)).tolist()
    return numbers


def xor_of(hints: Iterable[int], start: int = 0) -> int:
    """All of them by exclusive or: what a `Summary` compares."""
    for number in hints:
        start ^= number
    return start


class Directory:
    """Who holds what, as far as the peers have said. Thread-safe.

    Raises:
        UsageError: a limit is not positive.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        if min(self.limits.peers, self.limits.entries_a_peer, self.limits.entries) < 1:
            raise UsageError(f"limits of the directory are positive: {self.limits}")
        self._lock = threading.Lock()
        # hint → mask of slots. A dict, since garbage collection walks over sets (0.1 s for a
        # million entries, with the GIL) but not over a dict of integers.
        self._masks: dict[int, int] = {}
        self._books: dict[PeerId, _Book] = {}
        self._filling: list[_Book] = []  # snapshots that are being read in
        self._dead: list[_Book] = []  # their entries are still being removed
        self._entries = 0  # of all books, the dead ones too
        self._view = _View(0, (), {})
        self._from = random.randrange(1024)  # equals are named from here on: not all ask the same

    # Peers.

    def join(self, peer: Peer) -> bool:
        """A peer is there, or says something new of itself (`draining`).

        True if it was not known in this epoch: then it has no entries until its snapshot comes.

        Raises:
            PeerError: there are too many.
        """
        with self._lock:
            known = self._books.get(peer.id)
            if known is not None and known.peer.epoch == peer.epoch:
                known.peer = peer
                self._show()
                return False
            if known is None and len(self._books) >= self.limits.peers:
                raise PeerError(
                    f"peer {peer.name} is one more than the {self.limits.peers} that the "
                    "directory may know",
                    Reason.BUSY,
                )
            self._replace(peer)
            return True

    def leave(self, peer_id: PeerId) -> None:
        """A peer is gone: no lookup names it from now on. Its entries go later, in pieces."""
        with self._lock:
            book = self._books.pop(peer_id, None)
            if book is not None:
                self._dead.append(book)
                self._show()

    def peers(self) -> list[Peer]:
        """All that are there."""
        with self._lock:
            return [book.peer for book in self._books.values()]

    def peer(self, peer_id: PeerId) -> Peer | None:
        """What a peer says of itself; None if it is not there."""
        book = self._books.get(peer_id)
        return None if book is None else book.peer

    def holdings(self) -> list[Holding]:
        """What is kept of each peer."""
        with self._lock:
            return [
                Holding(book.peer, book.count, book.left_out, book.synced)
                for book in self._books.values()
            ]

    # Entries.

    def snapshot(self, peer_id: PeerId, epoch: int, sequence: int, hints: bytes) -> Effect:
        """All that a peer holds after its delta number `sequence`, instead of what was known.

        Raises:
            PeerError: no whole number of hints.
        """
        unpack(hints[len(hints) // HINT_BYTES * HINT_BYTES :])  # before anything is changed
        filling = self.fill(peer_id, epoch, sequence)
        filling.add(hints)
        return filling.commit()

    def fill(self, peer_id: PeerId, epoch: int, sequence: int) -> "Filling":
        """A snapshot that comes in pieces: to be committed or dropped.

        Lookups use what was known until then.
        """
        with self._lock:
            book = self._books.get(peer_id)
            if book is None or book.peer.epoch != epoch:
                return Filling(None, None)
            fresh = _Book(book.peer, self._slot(), sequence=sequence)
            self._filling.append(fresh)
        return Filling(functools.partial(self._put, fresh), lambda use: self._end(fresh, use=use))

    def delta(
        self, peer_id: PeerId, epoch: int, sequence: int, added: bytes, removed: bytes
    ) -> Effect:
        """What a peer has, and has not any more, since its delta number `sequence - 1`.

        Raises:
            PeerError: no whole number of hints.
        """
        coming, going = unpack(added), unpack(removed)
        with self._lock:
            book = self._books.get(peer_id)
            if book is None or book.peer.epoch != epoch:
                return Effect.STALE
            if not book.synced:
                return Effect.GAP
            if sequence != book.sequence + 1:
                return Effect.STALE if sequence <= book.sequence else Effect.GAP
            self._remove_dead(len(coming) + len(going))
            self._remove(book, going)
            self._add(book, coming)
            book.sequence = sequence
            return Effect.APPLIED

    def summary(self, peer_id: PeerId) -> Summary | None:
        """What is known of a peer; None if no snapshot has come, or not all of it was kept."""
        with self._lock:
            book = self._books.get(peer_id)
            if book is None or not book.synced or book.left_out:
                return None
            return Summary(book.sequence, book.count, book.xor)

    def distrust(self, peer_id: PeerId) -> None:
        """What is known of a peer may be wrong: its next snapshot counts, however old it is.

        Until then lookups use what is known, and no delta is applied to it.
        """
        with self._lock:
            book = self._books.get(peer_id)
            if book is not None:
                book.synced = False

    def fits(self, peer_id: PeerId, count: int) -> bool:
        """Whether so many entries of a peer could be kept, instead of those that are."""
        with self._lock:
            book = self._books.get(peer_id)
            others = self._entries - (0 if book is None else book.count)
            return count <= min(self.limits.entries_a_peer, self.limits.entries - others)

    def tidy(self) -> None:
        """Remove the entries of those that left; off every path that somebody waits on."""
        while self._dead:
            with self._lock:
                if not self._remove_dead(PIECE):
                    return

    # Lookups. Without the lock.

    def holders(
        self,
        keys: Sequence[bytes],
        *,
        skip: Collection[PeerId] = (),
        most: int = MOST_HOLDERS,
    ) -> list[tuple[PeerId, int]]:
        """Who is believed to have a prefix of these keys, and how many keys of it, longest first.

        At most `most` peers, none that drains or is to be skipped. A peer that has a block is taken
        to have those before it, as stores evict leaf first: the end is found by halving.
        """
        usable, ids, bits = self._view
        for peer_id in skip:
            usable &= ~bits.get(peer_id, 0)
        if not keys or not usable:
            return []
        get = self._masks.get
        from_bytes = int.from_bytes
        first = get(from_bytes(keys[0][:HINT_BYTES], "little") & HINT_MASK, 0) & usable
        found: list[tuple[PeerId, int]] = []
        # Ranges of lengths, with those whose prefix is that long; the longest on top.
        open_ = [(1, len(keys), len(keys), first)] if first else []
        while open_ and len(found) < most:
            low, high, middle, group = open_.pop()
            while low < high:
                key = keys[middle - 1]
                have = get(from_bytes(key[:HINT_BYTES], "little") & HINT_MASK, 0) & group
                if not have:
                    high = middle - 1
                else:
                    if have != group:
                        open_.append((low, middle - 1, (low + middle) >> 1, group ^ have))
                    low, group = middle, have
                middle = (low + high + 1) >> 1
            found.extend((ids[slot], low) for slot in self._in_turn(group, most - len(found)))
        return found

    def _in_turn(self, mask: int, most: int) -> list[int]:
        """Up to `most` of the slots of a mask."""
        start = self._from % mask.bit_length()
        after = mask >> start << start
        slots: list[int] = []
        for part in (after, mask ^ after):
            while part and len(slots) < most:
                lowest = part & -part
                slots.append(lowest.bit_length() - 1)
                part ^= lowest  # noqa: PLW2901  what is left of it
        return slots

    # For Filling.

    def _put(self, fresh: _Book, numbers: Sequence[int]) -> None:
        for at in range(0, len(numbers), PIECE):
            piece = numbers[at : at + PIECE]
            with self._lock:
                self._remove_dead(len(piece))
                self._add(fresh, piece)

    def _end(self, fresh: _Book, *, use: bool) -> Effect:
        with self._lock:
            self._filling = [book for book in self._filling if book is not fresh]
            peer = fresh.peer
            if not use or not self._wanted(peer.id, peer.epoch, fresh.sequence):
                self._dead.append(fresh)
                return Effect.STALE
            old = self._books[peer.id]
            fresh.peer, fresh.synced = old.peer, True
            self._dead.append(old)
            self._books[peer.id] = fresh
            self._show()
            return Effect.APPLIED

    # Behind it. The lock is held.

    def _wanted(self, peer_id: PeerId, epoch: int, sequence: int) -> bool:
        """Whether a snapshot says more of a peer than is known."""
        book = self._books.get(peer_id)
        if book is None or book.peer.epoch != epoch:
            return False
        return not book.synced or sequence >= book.sequence

    def _replace(self, peer: Peer) -> None:
        """An empty book in the place of what was known of a peer."""
        book = _Book(peer, self._slot())
        old = self._books.pop(peer.id, None)
        if old is not None:
            self._dead.append(old)
        self._books[peer.id] = book
        self._show()

    def _slot(self) -> int:
        """The lowest slot that no entry has: not those of the dead."""
        books = itertools.chain(self._books.values(), self._filling, self._dead)
        taken = {book.slot for book in books}
        return next(slot for slot in itertools.count() if slot not in taken)

    def _show(self) -> None:
        """Let lookups know who is there."""
        ids = [b""] * (1 + max((book.slot for book in self._books.values()), default=-1))
        usable = 0
        for book in self._books.values():
            ids[book.slot] = book.peer.id
            if not book.peer.draining:
                usable |= book.bit
        bits = {book.peer.id: book.bit for book in self._books.values()}
        self._view = _View(usable, tuple(ids), bits)

    def _add(self, book: _Book, numbers: Sequence[int]) -> None:
        room = self.limits.entries_a_peer - book.count
        room = min(room, self.limits.entries - self._entries)
        masks, bit = self._masks, book.bit
        with_it = {0: bit}  # blocks of one prefix mostly have one mask: let them share the object
        fresh: list[int] = []
        for number in numbers:
            mask = masks.get(number, 0)
            if mask & bit:
                continue
            if len(fresh) >= room:
                book.left_out += 1
                continue
            after = with_it.get(mask)
            if after is None:
                after = with_it[mask] = mask | bit
            masks[number] = after
            fresh.append(number)
        book.log.extend(fresh)
        book.count += len(fresh)
        book.xor = xor_of(fresh, book.xor)
        self._entries += len(fresh)
        if len(book.log) > 2 * book.count + 16 * PIECE:
            self._shorten(book)

    def _remove(self, book: _Book, numbers: Sequence[int]) -> None:
        masks, bit = self._masks, book.bit
        gone: list[int] = []
        for number in numbers:
            mask = masks.get(number, 0)
            if not mask & bit:
                continue
            if mask == bit:
                del masks[number]
            else:
                masks[number] = mask ^ bit
            gone.append(number)
        book.count -= len(gone)
        book.xor = xor_of(gone, book.xor)
        self._entries -= len(gone)

    def _shorten(self, book: _Book) -> None:
        """Drop from a log what is gone or named twice."""
        masks, bit = self._masks, book.bit
        book.log = array("Q", dict.fromkeys(n for n in book.log if masks.get(n, 0) & bit))

    def _remove_dead(self, at_least: int) -> bool:
        """Remove some entries of books that nobody uses any more; False if none are left.

        As many as come at the same time, so that those that wait never grow in number.
        """
        left = max(at_least, PIECE)
        while self._dead and left > 0:
            book = self._dead[0]
            piece = book.log[-left:]
            del book.log[-left:]
            left -= len(piece)
            self._remove(book, piece)
            if not book.log:
                del self._dead[0]
        return bool(self._dead)


class Filling:
    """A snapshot on its way into the directory. For one thread."""

    def __init__(
        self,
        put: Callable[[Sequence[int]], None] | None,  # None: nobody wants it
        end: Callable[[bool], Effect] | None,
    ) -> None:
        self._put = put
        self._end = end

    def add(self, hints: bytes) -> None:
        """Some more of it.

        Raises:
            PeerError: no whole number of hints.
        """
        numbers = unpack(hints)
        if self._put is not None:
            self._put(numbers)

    def commit(self) -> Effect:
        """That was all: lookups use it from now on. STALE: the peer left, or more is known."""
        return self._over(use=True)

    def drop(self) -> None:
        """Not all of it came; once more is no error."""
        self._over(use=False)

    def _over(self, *, use: bool) -> Effect:
        end, self._put, self._end = self._end, None, None
        return Effect.STALE if end is None else end(use)

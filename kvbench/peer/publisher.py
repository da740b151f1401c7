"""Tells the other peers what this peer's store holds: numbered deltas, beats, pages of a snapshot.

Reads the store's events on a thread of its own, off every path that somebody waits on. Deltas are
numbered from 1 as long as the process lives. Where events were lost or a tier is not read any more,
the store is asked for all that it holds, and the difference is a delta like any other. How bytes
get to the others is the caller's: see `kvbench.peer.membership`.

May import: kvbench.peer.directory, kvbench.peer.model, kvbench.store.events. msgspec, numpy.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from kvbench.peer.directory import HINT_BYTES, HINT_MASK, PIECE, Summary, hint, pack, xor_of
from kvbench.peer.model import PeerError, Reason
from kvbench.store.events import Event, Events, Kind

_log = logging.getLogger("kvbench.peer")
BATCH_S = 0.005  # how long an event waits for others
BEAT_S = 1.0  # a last delta that was lost is noticed after this
QUIET_BEATS = 2  # after so many that have nothing new, a peer rests
REST_BEAT_S = 5.0  # then they come so often
CLOSE_S = 0.25
EVENTS_AT_ONCE = 4096
MOST_HINTS = 8192  # of one delta, added and removed
PAGE_HINTS = 2**17  # of one page of a snapshot: 1 MiB
MOST_PAGES = 4096
KEEP_SNAPSHOT_S = 10.0  # after its last page was asked for
MOST_BODY_BYTES = PAGE_HINTS * HINT_BYTES + 1024

Count = Annotated[int, Meta(ge=0, le=2**62)]
Xor = Annotated[int, Meta(ge=0, le=HINT_MASK)]
Hints = Annotated[bytes, Meta(max_length=MOST_HINTS * HINT_BYTES)]


class _Body(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    """Anything that peers tell each other about their directories."""

    epoch: Count  # of the sender's store


class Delta(_Body, tag=1, frozen=True):
    """What a peer has, and has not any more, since the delta before; no hint is in both."""

    sequence: Count
    added: Hints
    removed: Hints


class Beat(_Body, tag=2, frozen=True):
    """Nothing new since delta number `sequence`; what all of them come to."""

    sequence: Count
    count: Count
    xor: Xor

    @property
    def summary(self) -> Summary:
        """To be held against the directory's."""
        return Summary(self.sequence, self.count, self.xor)


class PageRequest(_Body, tag=3, frozen=True):
    """Page `number` of the snapshot after delta `sequence`; 0: of one no older than `at_least`."""

    number: Annotated[int, Meta(ge=0, lt=MOST_PAGES)]
    sequence: Count
    at_least: Count


class Page(_Body, tag=4, frozen=True):
    """Part of a snapshot. `number` is the one asked for, but 0 of another one if that is gone."""

    sequence: Count
    number: Annotated[int, Meta(ge=0, lt=MOST_PAGES)]
    pages: Annotated[int, Meta(ge=1, le=MOST_PAGES)]
    hints: Annotated[bytes, Meta(max_length=PAGE_HINTS * HINT_BYTES)]


AnyBody = Delta | Beat | PageRequest | Page
_decoder: msgspec.msgpack.Decoder[AnyBody] = msgspec.msgpack.Decoder(AnyBody)
_encode = msgspec.msgpack.Encoder().encode


def decode(body: bytes) -> AnyBody:
    """What a peer said, every field checked.

    Raises:
        PeerError: it is none of the above, or claims too much.
    """
    if len(body) > MOST_BODY_BYTES:
        raise PeerError(f"{len(body)} bytes about a directory", Reason.REFUSED)
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PeerError(f"not about a directory: {str(error)[:200]}", Reason.REFUSED) from None


def encode(body: AnyBody) -> bytes:
    """As it is sent."""
    return _encode(body)


class Source(Protocol):
    """What is asked of a store; `tenants` are those whose blocks count, None: all."""

    def events(self, since: int = 0, limit: int = 1024) -> Events:
        """What happened from event number `since` on."""
        ...

    def wait_for_event(self, number: int, timeout_s: float) -> bool:
        """Return as soon as event `number` has happened, or the time is over."""
        ...

    def held(self, keys: Sequence[bytes], *, tenants: Collection[str] | None) -> Sequence[bool]:
        """Of each key, whether the block can be found in any tier right now."""
        ...

    def listing(self, *, tenants: Collection[str] | None) -> Iterable[bytes]:
        """The keys of all blocks that can be found."""
        ...


class Published(NamedTuple):
    """What a publisher did so far."""

    deltas: int
    added: int
    removed: int
    listings: int  # how often the store was asked for all that it holds
    failures: int  # of sending and of asking the store


class _Snapshot(NamedTuple):
    """All hints after a delta, packed."""

    sequence: int
    hints: bytes
    taken_s: float

    @property
    def pages(self) -> int:
        """How many it takes; an empty one takes one."""
        return max(1, -(-len(self.hints) // (PAGE_HINTS * HINT_BYTES)))


class Publisher:
    """Follows a store's events from `start` to `close`.

    `send` gets encoded bodies, on the publisher's thread; what it raises as OSError or PeerError
    is counted: the others notice what they miss.
    """

    def __init__(
        self,
        source: Source,
        epoch: int,
        send: Callable[[bytes], None],
        *,
        tenants: Collection[str] | None = None,
    ) -> None:
        self._source = source
        self._epoch = epoch
        self._send = send
        self._tenants = None if tenants is None else frozenset(tenants)
        self._lock = threading.Lock()  # of what others read: the entries and the snapshot
        self._entries: dict[int, None] = {}  # not a set: see Directory
        self._sequence = 0
        self._xor = 0
        self._snapshot: _Snapshot | None = None
        self._snapshot_until_s = 0.0
        self._next_event = 0
        self._listed = False
        self._counts = {"deltas": 0, "added": 0, "removed": 0, "listings": 0, "failures": 0}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvbench-peer-publish", daemon=True)

    def start(self) -> None:
        """Begin; once."""
        self._thread.start()

    def close(self) -> None:
        """Send nothing any more."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def summary(self) -> Summary:
        """What has been told so far."""
        with self._lock:
            return Summary(self._sequence, len(self._entries), self._xor)

    def stats(self) -> Published:
        """What was done so far."""
        return Published(**self._counts)

    def page(self, request: PageRequest) -> Page:
        """Part of all that has been told; on any thread.

        Raises:
            PeerError: it is asked of another epoch.
        """
        if request.epoch != self._epoch:
            raise PeerError(
                f"a snapshot of epoch {request.epoch} was asked of epoch {self._epoch}",
                Reason.RESTARTED,
            )
        with self._lock:
            now_s = time.monotonic()
            kept, number = self._snapshot, request.number
            if request.sequence == 0 or kept is None or kept.sequence != request.sequence:
                number = 0
                if kept is None or self._outdated(kept, request.at_least, now_s):
                    kept = _Snapshot(self._sequence, _pack_in_pieces(self._entries), now_s)
            if number >= kept.pages:
                number = 0
            self._snapshot, self._snapshot_until_s = kept, now_s + KEEP_SNAPSHOT_S
        size = PAGE_HINTS * HINT_BYTES
        return Page(
            self._epoch,
            kept.sequence,
            number,
            kept.pages,
            kept.hints[number * size : (number + 1) * size],
        )

    def _outdated(self, kept: _Snapshot, at_least: int, now_s: float) -> bool:
        """Whether who begins to read is to get a newer one. The lock is held.

        One of several pages is kept for a while, or those who read it would never come to an end;
        who got it late is put right by a beat, which comes within a second of a change.
        """
        young = kept.pages > 1 and now_s < kept.taken_s + BEAT_S
        # Who asks for what was never told gets what there is, not a copy of his own.
        at_least = min(at_least, self._sequence)
        return kept.sequence < at_least or (kept.sequence != self._sequence and not young)

    # On its thread.

    def _run(self) -> None:
        beat_s, quiet = time.monotonic(), 0
        while not self._closing.is_set():
            try:
                if self.step():
                    quiet, beat_s = 0, min(beat_s, time.monotonic() + BEAT_S)
                now_s = time.monotonic()
                if now_s >= beat_s:
                    self._tell(Beat(self._epoch, *self.summary()))
                    quiet += 1
                    beat_s = now_s + (BEAT_S if quiet < QUIET_BEATS else REST_BEAT_S)
                    self._forget_snapshot(now_s)
                # In pieces, so that closing waits for one at most.
                self._source.wait_for_event(self._next_event, min(beat_s - now_s, CLOSE_S))
            except Exception:  # noqa: BLE001  a bug here must not be silence for ever
                self._counts["failures"] += 1
                _log.exception("the publisher of this peer's blocks failed; it goes on")
                self._closing.wait(BEAT_S)
            self._closing.wait(BATCH_S)

    def _forget_snapshot(self, now_s: float) -> None:
        with self._lock:
            if now_s > self._snapshot_until_s:
                self._snapshot = None

    def step(self) -> bool:
        """Tell what happened since the last time; False if nothing did. For tests, and the thread.

        Events are read to their end before anything is told, so that what is stored and removed in
        one go is not told at all.
        """
        listed, self._listed = self._listed, False  # so it stays if the store cannot be asked
        added: dict[int, None] = {}
        asked: dict[bytes, None] = {}
        again = not listed
        for events in self._batches():
            again = again or events.lost > 0
            for event in events.events:
                if self._whole(event):
                    again = True
                elif event.key is not None and self._mine(event):
                    if event.kind is Kind.STORED:
                        added[hint(event.key)] = None
                    else:
                        asked[event.key] = None
        if again:
            self._relist()
        elif added or asked:
            removed = self._gone(list(asked), added)
            self._change(added, removed)
        self._listed = True
        return bool(again or added or asked)

    def _batches(self) -> Iterable[Events]:
        """Events until there are no more, or enough for one step."""
        for _ in range(16):
            found = self._source.events(self._next_event, EVENTS_AT_ONCE)
            if found.epoch != self._epoch:
                raise PeerError(
                    f"the store's events have epoch {found.epoch}, this peer was made for "
                    f"{self._epoch}: make another peer for another store",
                    Reason.RESTARTED,
                )
            self._next_event = found.next_sequence
            yield found
            if len(found.events) < EVENTS_AT_ONCE:
                return

    def _whole(self, event: Event) -> bool:
        """Whether a tier's blocks went all at once."""
        return event.kind in {Kind.CLEARED, Kind.FENCED}

    def _mine(self, event: Event) -> bool:
        if event.kind not in {Kind.STORED, Kind.REMOVED}:
            return False
        return self._tenants is None or event.tenant in self._tenants

    def _gone(self, keys: Sequence[bytes], added: dict[int, None]) -> list[int]:
        """Which of the keys that left a tier are in no other; `added` is put right."""
        gone: list[int] = []
        for key, held in zip(keys, self._held(keys), strict=True):
            number = hint(key)
            if held:
                added[number] = None
            else:
                added.pop(number, None)
                gone.append(number)
        return gone

    def _held(self, keys: Sequence[bytes]) -> Iterable[bool]:
        for at in range(0, len(keys), PIECE):  # the store's lock is held only so long
            yield from self._source.held(keys[at : at + PIECE], tenants=self._tenants)

    def _relist(self) -> None:
        """Tell the difference to all that the store holds.

        Events that come meanwhile are read afterwards, so a block that comes or goes is not missed.
        """
        self._counts["listings"] += 1
        now: dict[int, None] = {}
        for key in self._source.listing(tenants=self._tenants):
            now[hint(key)] = None
        known = self._entries
        self._change([n for n in now if n not in known], [n for n in known if n not in now])

    def _change(self, added: Iterable[int], removed: Iterable[int]) -> None:
        known = self._entries
        coming = iter([n for n in added if n not in known])
        going = iter([n for n in removed if n in known])
        while True:
            out = list(itertools.islice(going, MOST_HINTS // 2))
            new = list(itertools.islice(coming, MOST_HINTS // 2))
            if not out and not new:
                return
            with self._lock:
                for number in out:
                    del known[number]
                known.update(dict.fromkeys(new))
                self._xor = xor_of(itertools.chain(out, new), self._xor)
                self._sequence += 1
                delta = Delta(self._epoch, self._sequence, pack(new), pack(out))
            self._counts["deltas"] += 1
            self._counts["added"] += len(new)
            self._counts["removed"] += len(out)
            self._tell(delta)

    def _tell(self, body: Delta | Beat) -> None:
        try:
            self._send(encode(body))
        except (OSError, PeerError) as error:
            self._counts["failures"] += 1
            _log.warning("what this peer's store holds could not be told: %s", error)


def _pack_in_pieces(entries: dict[int, None]) -> bytes:
    """All of them; between pieces other threads may run."""
    left = iter(entries)
    pieces: list[bytes] = []
    while piece := list(itertools.islice(left, PIECE)):
        pieces.append(pack(piece))
    return b"".join(pieces)

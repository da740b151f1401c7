"""Keeps the directory equal to what all peers publish, and publishes what this one holds.

A delta that does not follow the one before, or a beat that does not agree, is a gap: it is repaired
by the peer's snapshot, one at a time for each peer, with growing pauses between attempts. Deltas
that come meanwhile wait, within a limit. Nothing ties a message to the peer in whose name it comes,
so what cannot be costs no peer its place: it is counted and left alone, and what was made up is put
right by the peer's next beat. All of it is on the thread of membership's handlers.

May import: kvbench.peer.cluster, kvbench.peer.directory, kvbench.peer.logs,
kvbench.peer.membership, kvbench.peer.publisher, kvbench.peer.model.
"""

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import msgspec

from kvbench.peer.cluster import MembershipConfig
from kvbench.peer.directory import HINT_BYTES, Directory, Effect, Filling
from kvbench.peer.logs import happened
from kvbench.peer.membership import Handlers, Membership
from kvbench.peer.model import Peer, PeerError, PeerId, Reason
from kvbench.peer.publisher import (
    PAGE_HINTS,
    Beat,
    Delta,
    Page,
    PageRequest,
    Publisher,
    Source,
    decode,
    encode,
)

_log = logging.getLogger("kvbench.peer")
SOON_S = 0.02  # peers that join together do not all ask in one instant
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
MOST_ASKED = 4  # snapshots on their way at a time
MOST_WAITING = 2**18  # deltas that wait for one snapshot, and their hints: 2 MiB
GARBAGE_LOG_S = 10.0  # so often is said of one peer that garbage comes in its name

Ask = Callable[[PeerId, bytes, Callable[[bytes | None], None]], None]


class Repairs(NamedTuple):
    """What keeping up took so far."""

    snapshots: int  # read to their end
    gaps: int  # deltas that did not follow the one before
    diverged: int  # beats that told of other entries, or of fewer deltas than are known
    failures: int  # attempts at a snapshot that came to nothing
    garbage: int  # messages in a peer's name that cannot be its own


@dataclass(slots=True)
class _View:
    """How far this peer is with another."""

    peer: Peer
    due_s: float | None = None  # when a snapshot is to be asked for
    asking: bool = False
    pause_s: float = SOON_S  # before the next attempt; short again once a beat agrees
    at_least: int = 0
    asked_least: int = 0  # of the snapshot that is on its way
    waiting: deque[Delta] = field(default_factory=deque[Delta])
    waits: int = 0  # of them and their hints
    filling: Filling | None = None
    page: int = 0
    sequence: int = 0
    garbage: int = 0
    garbage_said_s: float = -GARBAGE_LOG_S


class Follower:
    """Follows all other peers into a directory. For one thread.

    `ask` sends an encoded PageRequest and calls back once, on this thread, with the encoded Page,
    or None if none came.
    """

    def __init__(
        self, directory: Directory, ask: Ask, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._ask = ask
        self._clock = clock
        self._views: dict[PeerId, _View] = {}
        self._counts = dict.fromkeys(Repairs._fields, 0)

    def repairs(self) -> Repairs:
        """What keeping up took; on any thread."""
        return Repairs(**self._counts)

    def joined(self, peer: Peer) -> None:
        """A peer is there, or says something new of itself."""
        try:
            new = self._directory.join(peer)
        except PeerError as error:
            _log.error("%s", error)
            return
        view = self._views.get(peer.id)
        if new or view is None:
            self._forget(peer.id)
            view = self._views[peer.id] = _View(peer)
            self._want(view)
        view.peer = peer

    def left(self, peer_id: PeerId) -> None:
        """A peer is gone."""
        self._directory.leave(peer_id)
        self._forget(peer_id)

    def told(self, peer_id: PeerId, body: bytes) -> None:
        """A delta or a beat came in a peer's name."""
        view = self._views.get(peer_id)
        if view is None:
            return
        try:
            said = decode(body)
            if said.epoch != view.peer.epoch:
                return
            if isinstance(said, Delta):
                self._delta(view, said)
            elif isinstance(said, Beat):
                self._beat(view, said)
            else:
                raise PeerError(f"a {type(said).__name__} that nobody asked for", Reason.REFUSED)  # noqa: TRY301  the same end
        except PeerError as error:  # as if it had been lost: the next beat tells if it was
            self._garbage(view, error)

    def tick(self) -> None:
        """Ask for the snapshots that are due; let go of what those held who left."""
        now_s = self._clock()
        asked = sum(view.asking for view in self._views.values())
        due = [view for view in self._views.values() if view.due_s is not None]
        for view in sorted(due, key=lambda each: each.due_s or 0.0):
            if asked >= MOST_ASKED or (view.due_s or 0.0) > now_s:
                break
            view.due_s, view.asking, view.asked_least = None, True, view.at_least
            asked += 1
            self._ask_page(view, PageRequest(view.peer.epoch, 0, 0, view.at_least))
        self._directory.tidy()

    # Behind it.

    def _delta(self, view: _View, delta: Delta) -> None:
        effect = self._directory.delta(
            view.peer.id, delta.epoch, delta.sequence, delta.added, delta.removed
        )
        if effect is not Effect.GAP:
            return
        view.waits += 1 + (len(delta.added) + len(delta.removed)) // HINT_BYTES
        view.waiting.append(delta)
        if view.waits > MOST_WAITING:  # a snapshot that is no older will be asked for
            view.waiting.clear()
            view.waits = 0
        view.at_least = view.waiting[0].sequence - 1 if view.waiting else delta.sequence
        if not view.asking and view.due_s is None:
            self._counts["gaps"] += 1
            self._want(view)

    def _beat(self, view: _View, beat: Beat) -> None:
        if view.asking or view.due_s is not None:
            return
        known = self._directory.summary(view.peer.id)
        if known is None:  # more than the limits allow, or not all of it came
            wanted = self._directory.fits(view.peer.id, beat.count)
        elif known.sequence < beat.sequence:
            self._counts["gaps"] += 1
            wanted = True
        else:
            wanted = known != beat.summary
            if wanted:
                # Made-up deltas may have put it ahead: what comes next is no more taken for true.
                self._directory.distrust(view.peer.id)
                self._counts["diverged"] += 1
                _log.warning(
                    "the directory of peer %s went astray: asking anew",
                    view.peer.name,
                    extra=happened("directory_astray", other=view.peer.name),
                )
            else:
                view.pause_s = SOON_S
        if wanted:
            view.at_least = beat.sequence
            self._want(view)

    def _want(self, view: _View) -> None:
        view.due_s = self._clock() + view.pause_s * random.uniform(0.5, 1.5)
        view.pause_s = min(max(2 * view.pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)

    def _ask_page(self, view: _View, request: PageRequest) -> None:
        def then(body: bytes | None) -> None:
            if self._views.get(view.peer.id) is view:
                self._answered(view, body)

        self._ask(view.peer.id, encode(request), then)

    def _answered(self, view: _View, body: bytes | None) -> None:
        if body is None:
            self._failed(view)
            return
        try:
            page = decode(body)
            if not isinstance(page, Page) or page.number >= page.pages:
                raise PeerError("an answer that is no page of a snapshot", Reason.REFUSED)  # noqa: TRY301  the same end
            if page.epoch != view.peer.epoch:
                self._failed(view)  # its token is out of date: it will come anew
                return
            self._page(view, page)
        except PeerError as error:
            self._garbage(view, error)
            self._failed(view)

    def _page(self, view: _View, page: Page) -> None:
        directory, peer = self._directory, view.peer
        if page.number == 0:  # the first, or the snapshot that was being read is gone
            _drop(view)
            view.filling = directory.fill(peer.id, page.epoch, page.sequence)
            view.page, view.sequence = 0, page.sequence
            if page.sequence < view.asked_least:
                self._made_up(view)
        if view.filling is None or page.number != view.page or page.sequence != view.sequence:
            raise PeerError("a page of a snapshot that was not asked for", Reason.REFUSED)
        view.filling.add(page.hints)
        view.page += 1
        # One page more than is kept, so that it is known to be too much.
        if view.page < min(page.pages, directory.limits.entries_a_peer // PAGE_HINTS + 2):
            self._ask_page(view, PageRequest(peer.epoch, view.page, view.sequence, 0))
            return
        filling, view.filling, view.asking = view.filling, None, False
        filling.commit()
        self._counts["snapshots"] += 1
        waited, view.waiting, view.waits = view.waiting, deque(), 0
        for delta in waited:
            self._delta(view, delta)

    def _failed(self, view: _View) -> None:
        _drop(view)
        self._counts["failures"] += 1
        view.asking = False
        self._want(view)

    def _made_up(self, view: _View) -> None:
        """Let go of what waits: the peer itself has not told as many deltas as came in its name."""
        error = PeerError(
            f"more than {view.asked_least} deltas, but it has told {view.sequence} only",
            Reason.REFUSED,
        )
        view.waiting.clear()
        view.waits = view.at_least = view.asked_least = 0
        self._garbage(view, error)

    def _garbage(self, view: _View, error: PeerError) -> None:
        """Count what cannot be, and say so now and then: who sent it is not known."""
        self._counts["garbage"] += 1
        view.garbage += 1
        now_s = self._clock()
        if now_s >= view.garbage_said_s + GARBAGE_LOG_S:
            view.garbage_said_s = now_s
            _log.warning(
                "garbage in the name of peer %s, %d so far: %s",
                view.peer.name,
                view.garbage,
                error,
                extra=happened("garbage", other=view.peer.name, count=view.garbage),
            )

    def _forget(self, peer_id: PeerId) -> None:
        view = self._views.pop(peer_id, None)
        if view is not None:
            _drop(view)


def _drop(view: _View) -> None:
    if view.filling is not None:
        view.filling.drop()
        view.filling = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What this peer answers to others; on the thread of membership's handlers."""

    status: Callable[[], bytes] = lambda: b""
    drain: Callable[[], bytes] = lambda: b""


class Replication:
    """One peer's membership, directory and publisher together, from `start` to `close`.

    `directory` may be used by any thread, before, during and after. `tenants` are those whose
    blocks are told of; None: all.
    """

    def __init__(
        self,
        me: Peer,
        config: MembershipConfig,
        source: Source,
        *,
        directory: Directory | None = None,
        tenants: Collection[str] | None = None,
        answers: Answers | None = None,
    ) -> None:
        answers = answers or Answers()
        self.directory = directory or Directory()
        self.follower = Follower(self.directory, self._ask)
        self.publisher = Publisher(source, me.epoch, self._send, tenants=tenants)
        self.membership = Membership(
            me,
            config,
            Handlers(
                joined=self.follower.joined,
                left=self.follower.left,
                told=self.follower.told,
                page=self._page,
                status=answers.status,
                drain=answers.drain,
                tick=self.follower.tick,
            ),
        )

    def start(self) -> None:
        """Join the others and begin to tell.

        Raises:
            PeerError: an endpoint cannot be listened on.
            TierUnavailableError: Zenoh is not installed.
        """
        self.membership.start()
        self.publisher.start()

    def drain(self) -> None:
        """Let the others know that they are not to ask for more."""
        me = self.membership.me
        if me is not None and not me.draining:
            self.membership.update(msgspec.structs.replace(me, draining=True))

    def close(self) -> None:
        """Leave. Once more is no error."""
        self.publisher.close()
        self.membership.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, body: bytes) -> None:
        self.membership.send(body)

    def _ask(self, peer_id: PeerId, body: bytes, then: Callable[[bytes | None], None]) -> None:
        self.membership.ask(peer_id, body, then)

    def _page(self, body: bytes) -> bytes:
        request = decode(body)
        if not isinstance(request, PageRequest):
            raise PeerError("only a page of the snapshot can be asked for", Reason.REFUSED)
        return encode(self.publisher.page(request))

"""Introduces peers that have lost each other: a second session joins both for a moment.

By its gossip each of the two hears of the other anew, and one of them connects. It runs on a thread
of its own, at most one at a time, and says nothing of this peer: it has no token. With whom and
when, and what is believed of others' words, is for `kvbench.peer.introduction`.

May import: kvbench.peer.{cluster,introduction,lingering,logs,model,session}. zenoh, in a session.
"""

import logging
import threading
from collections.abc import Callable, Collection, Sequence

from kvbench.peer.cluster import (
    Endpoint,
    MembershipConfig,
    introducing_s,
    introducing_settings,
)
from kvbench.peer.introduction import Introductions, Pace, decode, endpoints, reachable
from kvbench.peer.lingering import close_at_once
from kvbench.peer.logs import happened
from kvbench.peer.model import Peer, PeerError, PeerId
from kvbench.peer.session import opened, zenoh_module

_log = logging.getLogger("kvbench.peer")
MOMENT_S = 0.5  # that closing waits for an introduction to be over; it then ends by itself

Ask = Callable[[PeerId, Callable[[bytes | None], None]], None]


class Introducer:
    """Looks for those whom others see and this peer does not. All but `close` is for one thread.

    `ask` has a peer asked whom it sees and calls back on that thread. `seen` changes as peers come
    and go; it is the caller's.
    """

    def __init__(
        self,
        me: Peer,
        config: MembershipConfig,
        seen: Collection[PeerId],
        ask: Ask,
        pace: Pace | None = None,
    ) -> None:
        self._mine = endpoints(reachable(me.endpoints), config)
        self._config = config
        self._seen = seen
        self._ask = ask
        self._lost = Introductions(me.id, seen, pace or Pace.of(config.lease_s))
        self._other: PeerId | None = None  # who is being introduced
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def left(self, peer_id: PeerId) -> None:
        """A peer is not seen any more."""
        self._lost.left(peer_id)

    def tick(self) -> bool:
        """Do what is due; now and then. Whether an introduction has begun."""
        if self._other in self._seen:
            self._over.set()
        asked = self._lost.whom_to_ask()
        if asked is not None:
            try:
                self._ask(asked, lambda body: self._told(asked, body))
            except PeerError:  # closed meanwhile
                self._lost.told({})
        if self._thread is not None and self._thread.is_alive():
            return False
        missing = self._lost.whom_to_introduce() if self._mine else None
        if missing is None:
            return False
        self._other, self._over = missing.id, threading.Event()
        _log.info(
            "peer %s is seen by others and not by this one: introducing the two anew, at %s",
            missing.id.hex()[:8],
            ", ".join(map(str, missing.where)),
            extra=happened("introduced", other_id=missing.id.hex()),
        )
        self._thread = threading.Thread(
            target=_introduce,
            args=(self._config, [self._mine[0], *missing.where], self._over),
            name="kvbench-peer-introduces",
            daemon=True,
        )
        self._thread.start()
        return True

    def close(self) -> None:
        """End what is under way, once `tick` is not called any more; it may outlast this."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(MOMENT_S)

    def _told(self, by: PeerId, body: bytes | None) -> None:
        named: dict[PeerId, list[Endpoint]] = {}
        try:
            named = {} if body is None else decode(body, self._config)
        except PeerError as error:
            _log.warning("peer %s says whom it sees, which cannot be: %s", by.hex()[:8], error)
        finally:
            self._lost.told(named)


def _introduce(config: MembershipConfig, ends: Sequence[Endpoint], over: threading.Event) -> None:
    """On its own thread, until they have met or the time is over."""
    try:
        session = opened(introducing_settings(config, ends))
        try:
            over.wait(introducing_s(config))
            for link in session.info.links():
                close_at_once(str(link.src).partition("/")[2], str(link.dst).partition("/")[2])
        finally:
            session.close()
    except zenoh_module().ZError as error:
        _log.info("the introduction came to nothing: %s", error)

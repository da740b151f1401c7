"""Who is there, without a server: a Zenoh session, a liveliness token of each peer, small messages.

A peer that joins any other joins all of them: Zenoh's gossip connects each to each. One that leaves
is gone at once, one that crashed when its sockets close, one that froze when its lease is over.
Zenoh's threads only put things into a queue; handlers run on one thread of this module's own,
which shares no lock with data. Knows nothing of blocks: see `kvbench.peer.replication`.

May import: kvbench.errors, kvbench.peer.{cluster,introducer,introduction,lingering,logs,model,
session}. msgspec; zenoh, when it starts.
"""

import functools
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import msgspec

from kvbench.errors import UsageError
from kvbench.peer.cluster import (
    CONTROL,
    MOST_MEMBERS,
    Endpoint,
    MembershipConfig,
    check_fits,
    id_of,
    peer_of,
    token_of,
)
from kvbench.peer.introducer import Introducer
from kvbench.peer.introduction import Pace, encode
from kvbench.peer.lingering import close_at_once
from kvbench.peer.logs import happened
from kvbench.peer.model import Peer, PeerError, PeerId, Reason
from kvbench.peer.session import close_within, opened_listening, zenoh_module

if TYPE_CHECKING:
    from types import ModuleType, TracebackType

    import zenoh

_log = logging.getLogger("kvbench.peer")
ROOT = "kvbench/1"  # of all keys; the version of what is below it
TICK_S = 0.1
MOST_QUEUED = 1024  # deltas that wait for the handlers; more are dropped, which is a gap
MOST_DELTA_BYTES = 256 * 1024
MOST_REPLY_BYTES = 2 * 2**20
MOST_REQUEST_BYTES = 4096
CLOSE_S = 2.0  # that leaving waits for what Zenoh is still connecting to
ALONE_S = 5.0  # after which nobody of `join` having answered is said
MOST_TOKENS = 8  # of one of them: it has two while it says that it drains
MOST_ANSWER_TEXT = 200  # characters of why a peer has no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Handlers:
    """What is to be done; all on one thread. What they raise is logged and ends nothing."""

    joined: Callable[[Peer], None]  # there, or says something new of itself
    left: Callable[[PeerId], None]
    told: Callable[[PeerId, bytes], None]  # what that peer sent by `send`
    page: Callable[[bytes], bytes]  # answers another's `ask`
    status: Callable[[], bytes]
    drain: Callable[[], bytes]
    tick: Callable[[], None]  # every TICK_S


class Counts(NamedTuple):
    """What a membership saw so far."""

    joined: int
    left: int
    refused: int  # peers that do not fit
    dropped: int  # messages that nobody had time for
    failed: int  # handlers that raised
    introduced: int  # attempts to meet peers again that others see and this one does not


class _Query(Protocol):
    """What is used of Zenoh's, half of whose methods have no types."""

    @property
    def key_expr(self) -> "zenoh.KeyExpr": ...
    @property
    def payload(self) -> "zenoh.ZBytes | None": ...
    def reply(self, key_expr: "zenoh.KeyExpr", payload: bytes, /) -> object: ...
    def reply_err(self, payload: str, /) -> object: ...
    def drop(self) -> object: ...


class Membership:
    """A peer among others, from `start` to `close`.

    `me` None: an observer, which is no peer and sees all peers, also those that fit nobody here.
    `pace`: how often a peer looks for others that it misses; default: as fits the lease.
    """

    def __init__(
        self,
        me: Peer | None,
        config: MembershipConfig,
        handlers: Handlers,
        pace: Pace | None = None,
    ) -> None:
        self._config = config
        self._handlers = handlers
        self._me = me
        self._pace = pace
        self._queue: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        # Zenoh's session, publisher and token; half of its methods have no types.
        self._session: Any = None
        self._publisher: Any = None
        self._token: Any = None
        self._thread = threading.Thread(target=self._run, name="kvbench-peer-members", daemon=True)
        self._numbers = itertools.count(1)
        self._closing = False
        self._started_s = 0.0
        self._listen: list[Endpoint] = []
        self._introducer: Introducer | None = None  # of a peer that has started
        # Of the thread alone.
        self._tokens: dict[PeerId, dict[str, Peer | None]] = {}  # None: refused
        self._asked: dict[int, tuple[list[bytes], Callable[[bytes | None], None]]] = {}
        self._told_refused: set[tuple[str, str]] = set()
        self._alone = bool(config.join)
        self._counts = dict.fromkeys(Counts._fields, 0)

    def start(self) -> None:
        """Begin: listen, join, say who this is. Others are heard of soon afterwards.

        Raises:
            PeerError: an endpoint cannot be listened on.
            TierUnavailableError: Zenoh is not installed.
        """
        z = zenoh_module()
        self._session, self._listen = opened_listening(self._config)
        try:
            self._declare(z)
        except BaseException:
            self.close()
            raise

    def _declare(self, z: "ModuleType") -> None:
        session = self._opened()
        self._started_s = time.monotonic()
        prefix = f"{ROOT}/{self._config.cluster}"
        # On Zenoh's own threads: a callback does no more than put something into the queue.
        direct = functools.partial(z.handlers.Callback, indirect=False)
        if self._me is not None:
            where = ",".join(str(each) for each in self._listen)
            self._me = msgspec.structs.replace(
                self._me, endpoints={**self._me.endpoints, CONTROL: where}
            )
            mine = self._me.id.hex()
            self._introducer = Introducer(
                self._me, self._config, self._tokens, self._ask_whom, self._pace
            )
            self._publisher = session.declare_publisher(
                f"{prefix}/delta/{mine}",
                congestion_control=z.CongestionControl.BLOCK,
                reliability=z.Reliability.RELIABLE,
            )
            serves: dict[str, Callable[[bytes], bytes]] = {
                "snapshot": self._handlers.page,
                "status": lambda _: self._handlers.status(),
                "drain": lambda _: self._handlers.drain(),
                "peers": lambda _: self._peers(),
            }
            for what, serve in serves.items():
                session.declare_queryable(f"{prefix}/{what}/{mine}", direct(self._asks(serve)))
        self._thread.start()
        session.info.declare_link_events_listener(direct(self._on_link(z)), history=True)
        session.declare_subscriber(
            f"{prefix}/delta/*", direct(self._on_delta), allowed_origin=z.Locality.REMOTE
        )
        session.liveliness().declare_subscriber(
            f"{prefix}/alive/**", direct(self._on_alive(z)), history=True
        )
        if self._me is not None:
            # Last: who hears of this peer may ask it at once.
            self._token = session.liveliness().declare_token(self._token_of(self._me))

    @property
    def me(self) -> Peer | None:
        """This peer, with the endpoint at which others can join it."""
        return self._me

    @property
    def endpoints(self) -> list[str]:
        """Where it listens: what others give as `join`."""
        return [str(each) for each in self._listen]

    def counts(self) -> Counts:
        """What was seen so far."""
        return Counts(**self._counts)

    def update(self, me: Peer) -> None:
        """Say something new of this peer: that it drains.

        Raises:
            UsageError: it is another peer, or does not take part.
        """
        if self._me is None or me.id != self._me.id:
            raise UsageError("a peer can only say something new of itself")
        session, old = self._opened(), self._token
        control = self._me.endpoints.get(CONTROL, "")
        self._me = msgspec.structs.replace(me, endpoints={**me.endpoints, CONTROL: control})
        self._token = session.liveliness().declare_token(self._token_of(self._me))
        if old is not None:
            old.undeclare()

    def send(self, body: bytes) -> None:
        """Tell all others; waits for room at most a lease. On any thread.

        Raises:
            PeerError: it is closed, or was not started.
        """
        publisher = self._publisher
        if publisher is None or self._closing:
            raise PeerError("this peer is not connected (any more)", Reason.UNREACHABLE)
        try:
            publisher.put(body)
        except zenoh_module().ZError as error:
            raise PeerError(f"nothing can be sent: {error}", Reason.UNREACHABLE) from error

    def ask(self, peer_id: PeerId, request: bytes, then: Callable[[bytes | None], None]) -> None:
        """Ask a peer for a page of its snapshot. On the handlers' thread, which gets the answer.

        `then` is called once, with None if there was no answer within two leases.
        """
        self._get("snapshot", peer_id, request, then)

    def _get(
        self, what: str, peer_id: PeerId, request: bytes, then: Callable[[bytes | None], None]
    ) -> None:
        session, z = self._opened(), zenoh_module()
        number = next(self._numbers)
        self._asked[number] = ([], then)
        try:
            session.get(
                self._key(what, peer_id),
                z.handlers.Callback(
                    functools.partial(self._on_reply, number),
                    lambda: self._queue.put((self._answered, (number,))),
                    indirect=False,
                ),
                timeout=2 * self._config.lease_s,
                payload=request,
            )
        except z.ZError:
            self._queue.put((self._answered, (number,)))

    def query(self, peer_id: PeerId, what: str, timeout_s: float = 2.0) -> bytes:
        """The answer of a peer's `status` or `drain`. Waits; not for the handlers' thread.

        Raises:
            PeerError: there is none in time, or it says why it has none.
        """
        session, z = self._opened(), zenoh_module()
        try:
            for reply in session.get(self._key(what, peer_id), timeout=timeout_s):
                if reply.ok is not None and len(reply.ok.payload) <= MOST_REPLY_BYTES:
                    return bytes(reply.ok.payload.to_bytes())
                if reply.err is not None and len(reply.err.payload) <= MOST_REQUEST_BYTES:
                    said = reply.err.payload.to_bytes().decode(errors="replace")
                    raise PeerError(
                        f"peer {peer_id.hex()[:8]}: {said[:MOST_ANSWER_TEXT]}", Reason.REFUSED
                    )
        except z.ZError as error:
            raise PeerError(f"{what}: {error}", Reason.UNREACHABLE) from error
        raise PeerError(
            f"peer {peer_id.hex()[:8]} did not answer to {what} within {timeout_s} s", Reason.LATE
        )

    def close(self) -> None:
        """Leave: the others know at once. Once more is no error."""
        if self._closing:
            return
        self._closing = True
        if self._session is not None:
            if self._token is not None:
                self._token.undeclare()
            close_within(self._session, CLOSE_S)
        self._queue.put(None)
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        if self._introducer is not None:
            self._introducer.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        self.close()

    # On Zenoh's threads: nothing but a word into the queue.

    def _on_delta(self, sample: "zenoh.Sample") -> None:
        if len(sample.payload) > MOST_DELTA_BYTES or self._queue.qsize() > MOST_QUEUED:
            self._counts["dropped"] += 1
            return
        self._queue.put((self._told, (str(sample.key_expr), sample.payload.to_bytes())))

    def _on_alive(self, z: "ModuleType") -> Callable[["zenoh.Sample"], None]:
        def came(sample: "zenoh.Sample") -> None:
            there = sample.kind == z.SampleKind.PUT
            self._queue.put((self._alive, (str(sample.key_expr), there)))

        return came

    def _on_link(self, z: "ModuleType") -> Callable[["zenoh.LinkEvent"], None]:
        def came(event: "zenoh.LinkEvent") -> None:
            if event.kind == z.SampleKind.PUT:
                ends = (str(event.link.src), str(event.link.dst))
                self._queue.put((self._linked, ends))

        return came

    def _on_reply(self, number: int, reply: "zenoh.Reply") -> None:
        if reply.ok is not None and len(reply.ok.payload) <= MOST_REPLY_BYTES:
            self._queue.put((self._reply, (number, reply.ok.payload.to_bytes())))

    def _asks(self, serve: Callable[[bytes], bytes]) -> Callable[["_Query"], None]:
        def came(query: "_Query") -> None:
            if self._queue.qsize() > MOST_QUEUED:
                self._counts["dropped"] += 1
                query.drop()
                return
            self._queue.put((self._serve, (query, serve)))

        return came

    # On the handlers' thread.

    def _run(self) -> None:
        tick_s = time.monotonic()
        while True:
            try:
                item = self._queue.get(timeout=max(0.0, tick_s - time.monotonic()))
            except queue.Empty:
                item = (self._tick, ())
                tick_s = time.monotonic() + TICK_S
            if item is None:
                return
            do, arguments = item
            try:
                do(*arguments)
            except Exception:  # noqa: BLE001  one bad message or handler must not end membership
                self._counts["failed"] += 1
                _log.exception("a handler of this peer's membership failed; it goes on")
            if time.monotonic() >= tick_s + TICK_S and not self._closing:
                self._queue.put((self._tick, ()))  # however busy it is
                tick_s = time.monotonic() + TICK_S

    def _tick(self) -> None:
        if self._alone and time.monotonic() > self._started_s + ALONE_S:
            self._alone = False
            if not self._tokens:
                _log.warning(
                    "no peer has answered at %s for %.0f s: are they up, of cluster %s, and with "
                    "the same credential, or do they refuse this peer's certificate? It is tried "
                    "again and again",
                    ", ".join(self._config.join),
                    ALONE_S,
                    self._config.cluster,
                )
        if self._introducer is not None and not self._closing and self._introducer.tick():
            self._counts["introduced"] += 1
        self._handlers.tick()

    def _peers(self) -> bytes:
        known = (peer for tokens in self._tokens.values() for peer in tokens.values())
        return encode(peer for peer in known if peer is not None)

    def _ask_whom(self, peer_id: PeerId, then: Callable[[bytes | None], None]) -> None:
        self._get("peers", peer_id, b"", then)

    def _linked(self, here: str, there: str) -> None:
        close_at_once(here.partition("/")[2], there.partition("/")[2])

    def _told(self, key: str, body: bytes) -> None:
        peer_id = id_of(key.rpartition("/")[2])
        if peer_id is not None and any(self._tokens.get(peer_id, {}).values()):
            self._handlers.told(peer_id, body)

    def _serve(self, query: "_Query", serve: Callable[[bytes], bytes]) -> None:
        payload = query.payload
        try:
            if payload is not None and len(payload) > MOST_REQUEST_BYTES:
                raise PeerError(f"a question of {len(payload)} bytes", Reason.REFUSED)  # noqa: TRY301  the same end
            answer = serve(b"" if payload is None else payload.to_bytes())
            query.reply(query.key_expr, answer)
        except PeerError as error:
            query.reply_err(str(error))
        finally:
            query.drop()  # now the other side knows that nothing more will come

    def _reply(self, number: int, body: bytes) -> None:
        if number in self._asked:
            self._asked[number][0].append(body)

    def _answered(self, number: int) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None and not self._closing:
            bodies, then = asked
            then(bodies[0] if bodies else None)

    def _alive(self, key: str, there: bool) -> None:
        parts = key.split("/")
        peer_id, token = id_of(parts[-2]), parts[-1]
        if peer_id is None or (self._me is not None and peer_id == self._me.id):
            return
        tokens = self._tokens.get(peer_id, {})
        if there and (len(tokens) >= MOST_TOKENS or len(self._tokens) >= MOST_MEMBERS):
            self._counts["refused"] += 1
            return
        self._tokens[peer_id] = tokens
        before = [peer for peer in tokens.values() if peer is not None]
        if there:
            self._here(peer_id, token, tokens)
            return
        tokens.pop(token, None)
        if not tokens:
            del self._tokens[peer_id]
        if before and not any(tokens.values()):
            self._counts["left"] += 1
            _log.info("peer %s left", before[0].name, extra=happened("left", other=before[0].name))
            if self._introducer is not None:
                self._introducer.left(peer_id)
            self._handlers.left(peer_id)

    def _here(self, peer_id: PeerId, token: str, tokens: dict[str, Peer | None]) -> None:
        tokens[token] = None
        try:
            peer = peer_of(peer_id, token)
            if self._me is not None:
                check_fits(self._me, peer)
        except PeerError as error:
            self._counts["refused"] += 1
            if len(self._told_refused) > MOST_MEMBERS:
                self._told_refused.clear()
            if (peer_id.hex(), str(error)) not in self._told_refused:
                self._told_refused.add((peer_id.hex(), str(error)))
                _log.error(
                    "peer %s is refused: %s",
                    peer_id.hex()[:8],
                    error,
                    extra=happened("refused", other_id=peer_id.hex(), why=str(error)),
                )
            return
        drains = any(known.draining for known in tokens.values() if known is not None)
        new = not any(tokens.values())
        tokens[token] = peer
        if new:
            self._counts["joined"] += 1
            _log.info(
                "peer %s joined",
                peer.name,
                extra=happened("joined", other=peer.name, other_id=peer.id.hex()),
            )
        if peer.draining or not drains:  # nobody stops draining: the other token is the older
            self._handlers.joined(peer)

    # Behind it.

    def _opened(self) -> Any:  # noqa: ANN401  Zenoh's session: half of its methods have no types
        if self._session is None or self._closing:
            raise PeerError("this peer is not connected (any more)", Reason.UNREACHABLE)
        return self._session

    def _key(self, what: str, peer_id: PeerId) -> str:
        return f"{ROOT}/{self._config.cluster}/{what}/{peer_id.hex()}"

    def _token_of(self, me: Peer) -> str:
        return f"{self._key('alive', me.id)}/{token_of(me)}"

"""Serves a holder to those who connect to a socket: a thread for each, all of it bounded.

A stranger has little time and few bytes; with too many of them the oldest goes first. What breaks
the rules ends its own connection, with a line in the log (at most one a second of a kind), and
touches no other. For TCP and for Unix sockets; what is lent, and to whom, the holder decides.

May import: kvbench.errors, kvbench.peer.{model, logs, messages, protocol, grant, holder,
wire}.
"""

import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from kvbench.errors import KvbenchError, UsageError
from kvbench.peer.grant import Grant
from kvbench.peer.holder import Holder, Places
from kvbench.peer.logs import happened
from kvbench.peer.messages import Ask, Goodbye, Hello, Prove, Release
from kvbench.peer.model import PeerError, Reason
from kvbench.peer.protocol import Connection, Event, Role, State, frame
from kvbench.peer.wire import Stream, abort, refusal

_log = logging.getLogger("kvbench.peer")
LOG_EVERY_S = 1.0  # of one kind
FULL_S = 0.1  # how long to wait when the process has no file descriptor left
# What OpenSSL says of bytes that are no TLS.
NO_TLS = frozenset(
    (
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNEXPECTED_MESSAGE",
        "UNKNOWN_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    )
)
# To this machine itself more would only be pushed out of the caches before it is read.
LOCAL_SEND_BYTES = 512 * 1024
FAREWELL_S, FAREWELL_BYTES = 1.0, 64 * 1024  # what is waited for and read of who is sent away
SLICE_S = 1.0  # how often a waiting connection looks for loans that are over


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerLimits:
    """Limits of one listener; every default is finite.

    Raises:
        UsageError: one is not positive.
    """

    # 128 peers have 2 each; one costs a thread, and 29 KiB of memory as measured (TCP, no TLS).
    connections: int = 512
    unproven: int = 64  # of them, at most, have proven no namespace yet
    handshake_s: float = 5.0  # from connecting to the Hello, and TLS before it
    idle_s: float = 120.0  # without a whole message
    send_s: float = 30.0  # for one Answer with its blocks
    close_s: float = 5.0  # the longest that `close` waits for a thread

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise UsageError(f"{each.name} is {getattr(self, each.name)}: it is positive")


@dataclass(slots=True)
class ListenerCounts:
    """What became of the connections of a listener; `dropped` by kind."""

    accepted: int = 0
    open: int = 0  # now
    proven: int = 0  # of those open
    dropped: dict[str, int] = field(default_factory=dict[str, int])


class _Guest:
    """One connection."""

    def __init__(self, sock: socket.socket, where: str) -> None:
        self.sock = sock
        self.where = where
        self.since_s = time.monotonic()
        self.proven = False
        self.pushed_out = False
        self.thread: threading.Thread | None = None


def _anybody(sock: socket.socket) -> None:
    """Every connection is let in."""
    del sock


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What is special about a transport that serves by a Listener."""

    how: str  # its name
    tls: ssl.SSLContext | None = None
    check: Callable[[socket.socket], None] = _anybody  # PeerError: this one is not let in
    places: Places | None = None  # if blocks are read where they lie
    detail: bytes = b""  # for its Welcome


class Listener:
    """Takes `listening` over, and serves `holder` on it until it is closed."""

    def __init__(
        self,
        holder: Holder,
        listening: socket.socket,
        way: Way,
        limits: ListenerLimits | None = None,
    ) -> None:
        self._holder = holder
        self._listening = listening
        self._way = way
        self._limits = limits or ListenerLimits()
        self._lock = threading.Lock()
        self._guests: dict[int, _Guest] = {}
        self._counts = ListenerCounts()
        self._said: dict[str, tuple[float, int]] = {}  # kind → when last, not said since
        self._closing = threading.Event()
        self._thread = threading.Thread(
            target=self._accept_all, name=f"kvbench-peer-{way.how}-accept", daemon=True
        )
        self._thread.start()

    def counts(self) -> ListenerCounts:
        """A copy of what was counted so far."""
        with self._lock:
            guests = self._guests.values()
            return ListenerCounts(
                self._counts.accepted,
                len(guests),
                sum(guest.proven for guest in guests),
                dict(self._counts.dropped),
            )

    def close(self, drain_s: float = 0.0) -> None:
        """Listen no more, give Answers under way `drain_s` to end; once more is no error."""
        self._closing.set()
        abort(self._listening)  # wakes accept, which closing it would not
        self._thread.join(self._limits.close_s)
        self._listening.close()
        with self._lock:
            guests = list(self._guests.values())
        for guest in guests:
            abort(guest.sock, socket.SHUT_RD)  # it finishes its Answer and then reads the end
        end_s = time.monotonic() + drain_s
        for guest in guests:
            if guest.thread is not None:
                guest.thread.join(max(0.0, end_s - time.monotonic()))
        for guest in guests:
            abort(guest.sock)
        end_s = time.monotonic() + self._limits.close_s
        for guest in guests:
            if guest.thread is not None:
                guest.thread.join(max(0.0, end_s - time.monotonic()))

    # Accepting.

    def _accept_all(self) -> None:
        while not self._closing.is_set():
            try:
                sock, address = self._listening.accept()
            except OSError as error:
                if not self._closing.wait(FULL_S):
                    self._drop("accept", f"cannot accept: {error.strerror}", "anybody")
                continue
            where = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "this machine"
            self._begin(sock, where)

    def _begin(self, sock: socket.socket, where: str) -> None:
        guest = _Guest(sock, where)
        with self._lock:
            self._counts.accepted += 1
            room = self._make_room()
            if room:
                self._guests[id(guest)] = guest
        if not room:
            self._drop("full", f"{self._limits.connections} connections are open", where)
            with contextlib.suppress(OSError):
                if self._way.tls is None:
                    sock.send(refusal(PeerError("full", Reason.BUSY)), socket.MSG_DONTWAIT)
            sock.close()
            return
        guest.thread = threading.Thread(
            target=self._serve, args=(guest,), name=f"kvbench-peer-{self._way.how}", daemon=True
        )
        try:
            guest.thread.start()
        except RuntimeError:  # the machine has no thread left
            guest.thread = None
            self._drop("full", "no thread can be started", where)
            self._end(guest)

    def _make_room(self) -> bool:
        """Push out the oldest strangers; whether there is room now. The lock is held."""
        limits = self._limits
        here = [guest for guest in self._guests.values() if not guest.pushed_out]
        strangers = [guest for guest in here if not guest.proven]
        over = max(len(strangers) - limits.unproven + 1, len(here) - limits.connections + 1, 0)
        for guest in strangers[:over]:  # in the order in which they came
            guest.pushed_out = True
            abort(guest.sock)
        # Threads of those pushed out are about to end; until then they count, too.
        most = limits.connections + limits.unproven
        return over <= len(strangers) and len(self._guests) < most

    # One connection, on its thread.

    def _serve(self, guest: _Guest) -> None:
        grant = Grant(self._holder, self._way.how)
        core = Connection(Role.HOLDER, self._holder.layout, grant.proves)
        stream: Stream | None = None
        try:
            self._way.check(guest.sock)
            self._secure(guest)
            stream = Stream(guest.sock, core, SLICE_S)
            self._converse(guest, stream, grant)
        except PeerError as error:
            self._part(guest, stream, error, grant)
        except KvbenchError as error:  # of the store
            self._drop("store", str(error), guest.where)
        except OSError as error:  # of a socket that was closed under way
            self._part(guest, stream, PeerError(str(error), Reason.UNREACHABLE), grant)
        finally:
            grant.close()
            self._end(guest)

    def _secure(self, guest: _Guest) -> None:
        sock, wait_s = guest.sock, self._limits.handshake_s
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if ipaddress.ip_address(sock.getpeername()[0]).is_loopback:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SEND_BYTES)
        if self._way.tls is None:
            return
        guest.sock = secured = self._way.tls.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False
        )
        secured.settimeout(wait_s)
        try:
            secured.do_handshake()
        except TimeoutError:
            raise PeerError("no TLS handshake in time", Reason.LATE) from None
        except ssl.SSLError as error:
            plain = error.reason in NO_TLS
            hint = " (plain TCP to a TLS port?)" if plain else ""
            raise PeerError(f"no TLS: {error.reason or error}{hint}", Reason.REFUSED) from None

    def _converse(self, guest: _Guest, stream: Stream, grant: Grant) -> None:
        heard_s = guest.since_s
        while stream.core.state is not State.CLOSED:
            greeted = stream.core.state is not State.START
            wait_s = self._limits.idle_s if greeted else self._limits.handshake_s
            events = stream.events(heard_s + wait_s)
            grant.expire()
            for event in events:
                self._heard(guest, stream, grant, event)
            if events:
                heard_s = time.monotonic()

    def _heard(self, guest: _Guest, stream: Stream, grant: Grant, event: Event) -> None:
        soon_s = time.monotonic() + self._limits.send_s
        if isinstance(event, Hello):
            stream.send(grant.welcome(event, self._way.detail), soon_s)
        elif isinstance(event, Prove):
            guest.proven = True
            stream.send(grant.proven(event), soon_s)
        elif isinstance(event, Ask):
            served = grant.answer(event, self._way.places)
            stream.send_served(served, soon_s if event.place else min(soon_s, served.expires_s))
        elif isinstance(event, Release):
            grant.release(event.loan)

    def _part(self, guest: _Guest, stream: Stream | None, error: PeerError, grant: Grant) -> None:
        """Say why, to the other side and in the log; which proof was wrong, in the log only."""
        if guest.pushed_out:
            self._drop("stranger", "too many that have proven nothing", guest.where)
            return
        if error.reason is Reason.UNREACHABLE and (guest.proven or self._closing.is_set()):
            _log.debug("peer: %s closed its connection: %s", guest.where, error)
            return
        if stream is not None and not stream.midway:
            idle = error.reason is Reason.LATE and grant.asker != b""
            stream.tell(frame(Goodbye("idle")) if idle else refusal(error))
            if idle:
                _log.debug("peer: %s was idle", guest.where)
                return
        self._drop(error.reason.value, grant.why or str(error), guest.where)
        if error.reason is Reason.REFUSED and not self._closing.is_set():
            _let_hear(guest.sock)

    def _end(self, guest: _Guest) -> None:
        guest.sock.close()  # first: as long as its file is there it counts as open
        with self._lock:
            self._guests.pop(id(guest), None)

    def _drop(self, kind: str, why: str, where: str) -> None:
        """Count it, and say so, unless something of the kind was said a moment ago."""
        now_s = time.monotonic()
        with self._lock:
            self._counts.dropped[kind] = self._counts.dropped.get(kind, 0) + 1
            last_s, more = self._said.get(kind, (-LOG_EVERY_S, 0))
            if now_s - last_s < LOG_EVERY_S:
                self._said[kind] = last_s, more + 1
                return
            self._said[kind] = now_s, 0
        _log.warning(
            "peer: dropped a connection from=%s kind=%s why=%r more=%d",
            where,
            kind,
            why,
            more,
            extra=happened("dropped", source=where, kind=kind, why=why, more=more),
        )


def _let_hear(sock: socket.socket) -> None:
    """End a connection so that what was said last arrives: a refusal, or the alert of TLS.

    Closing while there are bytes that nobody has read takes it back (RST), and the other side sees
    only that the connection broke.
    """
    until_s, unread = time.monotonic() + FAREWELL_S, FAREWELL_BYTES
    with contextlib.suppress(OSError, ValueError):
        sock.shutdown(socket.SHUT_WR)
        while unread > 0 and (left_s := until_s - time.monotonic()) > 0:
            sock.settimeout(left_s)
            came = len(sock.recv(4096))
            if not came:
                return
            unread -= came

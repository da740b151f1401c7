"""Blocks over TCP, with TLS or without: the asking side, and `TcpListener` for the other.

A block is received where it is to stay, and checked while it is in the caches. A channel that was
late, or cut off, is broken: nothing is written to a target after `pull` has returned.

May import: kvbench.errors, kvbench.peer.{model, messages, protocol, wire, asker, cluster,
listener},
kvbench.store.{block, copying}.
"""

import socket
import ssl
import time

from kvbench.errors import UsageError
from kvbench.peer.asker import REASONS, Asker, greet
from kvbench.peer.cluster import loopback
from kvbench.peer.holder import Holder
from kvbench.peer.listener import Listener, ListenerLimits, Way
from kvbench.peer.messages import HERE
from kvbench.peer.model import Outcome, Peer, PeerError, Pull, Reason
from kvbench.peer.protocol import Connection, Role, State, most_keys
from kvbench.peer.wire import Stream
from kvbench.store.block import Layout
from kvbench.store.copying import sums_of

HOW = "tcp"
ASK_BYTES = 2**28  # of one Ask


class TcpListener(Listener):
    """Serves a holder's blocks on a TCP port; `endpoint` is what a Peer names.

    `tls` is a server's context that demands certificates of its clients. Without, only loopback is
    listened to, unless `insecure`.

    Raises:
        UsageError: that port cannot be had, or others could reach it without credentials.
    """

    def __init__(
        self,
        holder: Holder,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: ssl.SSLContext | None = None,
        limits: ListenerLimits | None = None,
        insecure: bool = False,
    ) -> None:
        listening, self.endpoint = listen(host, port, tls, insecure=insecure)
        super().__init__(holder, listening, Way(how=HOW, tls=tls), limits)


class TcpTransport:
    """Channels over TCP for the peer `me`; `tls` is a client's context with its certificate."""

    name = HOW

    def __init__(self, me: Peer, tls: ssl.SSLContext | None = None) -> None:
        self._me = me
        self._tls = tls

    def reaches(self, peer: Peer) -> bool:
        """Whether it listens, and has blocks of our shape."""
        return HOW in peer.endpoints and peer.layout == self._me.layout

    def connect(self, peer: Peer, expires_s: float) -> "TcpChannel":
        """See `Transport.connect`."""
        sock = dial(peer.endpoints.get(HOW, ""), self._tls, expires_s)
        try:
            stream = Stream(sock, Connection(Role.ASKER, self._me.layout))
            asker = greet(stream, self._me.id, peer, HOW, expires_s)
        except BaseException:
            sock.close()
            raise
        return TcpChannel(asker, "tcp+tls" if self._tls else "tcp")

    def close(self) -> None:
        """Nothing is shared by its channels."""


class TcpChannel:
    """A connection to one peer; see `Channel`."""

    def __init__(self, asker: Asker, path: str) -> None:
        self._asker = asker
        self._layout = asker.stream.core.layout
        self.path = path

    @property
    def broken(self) -> bool:
        """See `Channel.broken`; also once the holder has closed an idle connection."""
        stream = self._asker.stream
        return stream.core.state is not State.OPEN or not stream.quiet()

    def pull(self, pull: Pull) -> list[Outcome]:
        """See `Channel.pull`."""
        count = len(pull.keys)
        if pull.epoch != self._asker.welcome.epoch:
            return [Outcome(Reason.RESTARTED)] * count
        outcomes: list[Outcome | None] = [None] * count
        left = Outcome(Reason.CANCELLED)
        at_once = _keys_at_once(self._layout)
        try:
            for first in range(0, count, at_once):
                if pull.cancelled():
                    break
                self._pull_some(pull, slice(first, min(first + at_once, count)), outcomes)
        except PeerError as error:
            self._asker.stream.close()
            left = Outcome(error.reason)
        return [outcome or left for outcome in outcomes]

    def close(self) -> None:
        """See `Channel.close`."""
        self._asker.close()

    def _pull_some(self, pull: Pull, part: slice, outcomes: list[Outcome | None]) -> None:
        targets = pull.targets[part]
        answer = self._asker.ask(pull, part, targets)
        first, arrived = part.start, {tier: Outcome(None, tier) for tier in set(answer.tiers)}
        if len(answer.sums) < len(targets):
            for i, state in enumerate(answer.states, first):
                if state != HERE:
                    outcomes[i] = Outcome(REASONS[state])
        at = 0  # in the lists of the Answer: those HERE come in order
        for indexes in self._asker.arrived(pull):
            end = at + len(indexes)
            seen = sums_of([targets[i] for i in indexes], self._layout)
            found = [arrived[tier] for tier in answer.tiers[at:end]]
            if seen != answer.sums[at:end]:
                checks = zip(seen, answer.sums[at:end], found, strict=True)
                found = [
                    good if sums == right else Outcome(Reason.CORRUPT, good.tier)
                    for sums, right, good in checks
                ]
            for i, outcome in zip(indexes, found, strict=True):
                outcomes[first + i] = outcome
            at = end
        if answer.loan:
            self._asker.release(answer.loan, pull.expires_s)


def listen(
    host: str, port: int, tls: ssl.SSLContext | None, *, insecure: bool = False
) -> tuple[socket.socket, str]:
    """A listening socket, and its endpoint; see `TcpListener`."""
    _check_credentials(host, tls, insecure=insecure)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    name = f"[{host}]" if ":" in host else host
    return listening, f"{name}:{listening.getsockname()[1]}"


def dial(endpoint: str, tls: ssl.SSLContext | None, expires_s: float) -> socket.socket:
    """A socket that is connected, with TLS if there is a context.

    Raises:
        PeerError: there is none by `expires_s`.
    """
    host, port = address_of(endpoint)
    sock = _connected(host, port, expires_s)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if tls is None else _with_tls(tls, sock, host, expires_s)
    except BaseException:
        sock.close()
        raise


def address_of(endpoint: str) -> tuple[str, int]:
    """Host and port of "10.0.0.7:7400" or "[::1]:7400".

    Raises:
        PeerError: it is neither.
    """
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:  # noqa: PLR2004  of TCP
        raise PeerError(f"no TCP endpoint: {endpoint!r}", Reason.UNREACHABLE)
    return host.removeprefix("[").removesuffix("]"), int(port)


def _keys_at_once(layout: Layout) -> int:
    return min(most_keys(layout), max(1, ASK_BYTES // layout.block_bytes))


def _check_credentials(host: str, tls: ssl.SSLContext | None, *, insecure: bool) -> None:
    if tls is not None:
        if tls.verify_mode is not ssl.CERT_REQUIRED:
            raise UsageError("this TLS context lets anybody in: set verify_mode CERT_REQUIRED")
        return
    if not loopback(host) and not insecure:
        raise UsageError(
            f"{host} can be reached by others, and there is no TLS: give certificates, listen on "
            "127.0.0.1, or say insecure"
        )


def _connected(host: str, port: int, expires_s: float) -> socket.socket:
    left_s = expires_s - time.monotonic()
    if left_s <= 0:
        raise PeerError("no time left to connect", Reason.LATE)
    try:
        return socket.create_connection((host, port), timeout=left_s)
    except TimeoutError:
        raise PeerError(f"no connection to {host}:{port} in time", Reason.LATE) from None
    except OSError as error:
        text = f"no connection to {host}:{port}: {error.strerror or error}"
        raise PeerError(text, Reason.UNREACHABLE) from None


def _with_tls(
    context: ssl.SSLContext, sock: socket.socket, host: str, expires_s: float
) -> ssl.SSLSocket:
    sock.settimeout(max(0.001, expires_s - time.monotonic()))
    try:
        return context.wrap_socket(sock, server_hostname=host)
    except TimeoutError:
        raise PeerError(f"no TLS handshake with {host} in time", Reason.LATE) from None
    except ssl.SSLEOFError:
        raise PeerError(f"{host} ended the TLS handshake", Reason.UNREACHABLE) from None
    except ssl.SSLError as error:
        raise PeerError(f"no TLS with {host}: {error}", Reason.REFUSED) from None
    except OSError as error:
        text = f"{host} ended the TLS handshake: {error.strerror or error}"
        raise PeerError(text, Reason.UNREACHABLE) from None

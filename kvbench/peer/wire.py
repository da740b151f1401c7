"""A connected socket that drives the protocol's core: every call ends by a time.

Blocks go out of a tier's file without a copy (sendfile), or from memory by one sendmsg, and come in
by one recvmsg to where they stay; the kernel waits for all of it (MSG_WAITALL), so that the
interpreter is not woken for every segment. With TLS all goes through the ssl module, which copies.

May import: kvbench.peer.{model, messages, protocol, holder}.
"""

import contextlib
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import Sequence

from kvbench.peer.holder import FilePart, Served
from kvbench.peer.messages import MOST_TEXT, AnyMessage, Refused
from kvbench.peer.model import PeerError, Reason
from kvbench.peer.protocol import Connection, Event, State, frame

SLICE_S = 0.1  # how long a wait lasts before the caller may look at something else
LEAST_S = 0.001  # of a wait: 0 is for ever
READ_BYTES = 2**20  # of one call, or one block: what is checked while it is in the caches
MOST_SENDFILE = 2**30  # of one call; Linux takes 2 GiB - 4 KiB
MOST_VIEWS = 512  # of one call; Linux takes 1024 (IOV_MAX)
_TIMEVAL = struct.Struct("@ll")
# What a Refused may say. Anything else is REFUSED.
_CODES = {each.value: each for each in (Reason.BUSY, Reason.RESTARTED, Reason.GONE)}


def refusal(error: PeerError) -> bytes:
    """The frame that tells the other side."""
    return frame(Refused(error.reason.value, str(error)[:MOST_TEXT]))


def reason_of(refused: Refused) -> Reason:
    """Why the holder refused."""
    return _CODES.get(refused.code, Reason.REFUSED)


def abort(sock: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """End a socket that another thread may be waiting for."""
    with contextlib.suppress(OSError):
        # SSLSocket's own method would also take its TLS away from under the other thread.
        socket.socket.shutdown(sock, how)


class Stream:
    """A socket and the core of its connection, for one thread at a time.

    Another thread may call `abort`. Every error is a PeerError: LATE, UNREACHABLE, or REFUSED for
    what breaks the protocol.
    """

    def __init__(self, sock: socket.socket, core: Connection, slice_s: float = SLICE_S) -> None:
        self.core = core
        self._sock = sock
        self._slice_s = slice_s
        self.midway = False  # something was sent in part, so that nothing else can be said
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._waits = {socket.SO_RCVTIMEO: 0.0, socket.SO_SNDTIMEO: 0.0}
        if not self._tls:
            sock.settimeout(None)  # the kernel's own limits, which MSG_WAITALL keeps to

    def send(self, message: AnyMessage, expires_s: float) -> None:
        """Send a message by `expires_s` (monotonic)."""
        self.send_bytes(self.core.send(message), expires_s)

    def send_served(self, served: Served, expires_s: float) -> None:
        """Send an Answer and the blocks that it owes, by `expires_s`.

        Blocks that went out of a file are still being read when this returns: the loan has to last
        until the asker has them.
        """
        data = memoryview(self.core.send(served.answer))
        owes = self.core.state is State.PAYLOAD
        if not owes:  # places, or nothing
            self._send_parts([data], expires_s)
        elif self._tls or not served.files:
            self._send_parts([data, *(block.data for block in served.blocks)], expires_s)
        else:
            self._send_parts([data], expires_s, socket.MSG_MORE)
            self._send_files(served.files, expires_s)
        if owes:
            self.core.payload_sent()

    def send_bytes(self, data: bytes, expires_s: float) -> None:
        """Send what the core has made, by `expires_s`."""
        self._send_parts([memoryview(data)], expires_s)

    def _send_files(self, parts: Sequence[FilePart], expires_s: float) -> None:
        self.midway = True
        for fd, offset, size in parts:
            at, end = offset, offset + size
            while at < end:
                self._wait(socket.SO_SNDTIMEO, min(self._left_s(expires_s), self._slice_s))
                try:
                    at += os.sendfile(self._sock.fileno(), fd, at, min(end - at, MOST_SENDFILE))
                except (BlockingIOError, TimeoutError):
                    continue
                except OSError as error:
                    raise self._lost(error) from None
        self.midway = False

    def _send_parts(self, parts: list[memoryview], expires_s: float, flags: int = 0) -> None:
        first, self.midway = 0, True
        while first < len(parts):
            left_s = self._left_s(expires_s)
            some = parts[first : first + MOST_VIEWS]
            try:
                sent = self._send_some(some, left_s, flags)
            except (BlockingIOError, TimeoutError):
                continue  # `_left_s` says that it is too late
            except OSError as error:
                raise self._lost(error) from None
            for view in some:
                if sent < len(view):
                    parts[first] = view[sent:]
                    break
                sent -= len(view)
                first += 1
        self.midway = False

    def events(self, expires_s: float) -> list[Event]:
        """What the other side says next; often nothing, after `slice_s` at the latest."""
        left_s = min(self._left_s(expires_s), self._slice_s)
        try:
            size = self._receive(left_s)
        except (BlockingIOError, TimeoutError):
            return []
        except OSError as error:
            raise self._lost(error) from None
        return self.core.received(size)

    def quiet(self) -> bool:
        """Whether the connection is up and nothing waits to be read: before one asks."""
        if self.core.state is State.CLOSED:
            return False
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return False
        try:
            poll = select.poll()
            poll.register(self._sock, select.POLLIN | select.POLLRDHUP)
            return not poll.poll(0)
        except (OSError, ValueError):
            return False

    def tell(self, data: bytes) -> None:
        """Send something before closing, if it goes without waiting."""
        with contextlib.suppress(OSError, ValueError):
            if isinstance(self._sock, ssl.SSLSocket):
                self._sock.settimeout(LEAST_S)
                self._sock.sendall(data)
            else:
                self._sock.send(data, socket.MSG_DONTWAIT)

    def abort(self) -> None:
        """End it from another thread: whoever waits for it finds it closed."""
        abort(self._sock)

    def close(self) -> None:
        """End it; once more is no error."""
        self.core.state = State.CLOSED
        self._sock.close()

    # Behind it.

    def _left_s(self, expires_s: float) -> float:
        left_s = expires_s - time.monotonic()
        if left_s <= 0:
            state, self.core.state = self.core.state, State.CLOSED
            raise PeerError(f"not done in time (state {state.value})", Reason.LATE)
        return left_s

    def _lost(self, error: OSError) -> PeerError:
        self.core.state = State.CLOSED
        refused = isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError)
        reason = Reason.REFUSED if refused else Reason.UNREACHABLE
        return PeerError(f"the connection broke: {error.strerror or error}", reason)

    def _wait(self, option: int, left_s: float) -> None:
        if self._waits[option] != left_s:
            self._waits[option] = left_s
            seconds = int(max(left_s, LEAST_S))
            micros = int((max(left_s, LEAST_S) - seconds) * 1e6)
            self._sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(seconds, micros))

    def _send_some(self, some: list[memoryview], left_s: float, flags: int) -> int:
        if self._tls:
            self._sock.settimeout(left_s)
            self._sock.sendall(some[0])
            return len(some[0])
        self._wait(socket.SO_SNDTIMEO, min(left_s, self._slice_s))
        return self._sock.sendmsg(some, (), flags)

    def _receive(self, left_s: float) -> int:
        if self._tls:
            self._sock.settimeout(left_s)
            return self._sock.recv_into(self.core.buffer())
        self._wait(socket.SO_RCVTIMEO, left_s)
        views = self.core.buffers(READ_BYTES)[:MOST_VIEWS]
        if len(views) == 1:
            return self._sock.recv_into(views[0], 0, socket.MSG_WAITALL)
        return self._sock.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]

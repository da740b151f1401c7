"""Blocks of a peer on this machine, copied out of its own memory: `ShmListener` and `ShmTransport`.

An abstract Unix socket hands the memfd of the DRAM tier, opened for reading, to processes of the
same user, who map it; where blocks lie is then asked over that socket. What this does NOT do is to
keep blocks of other namespaces from a process of the same user: such a process could read all of
this one's memory, and open the memfd for writing, without being let in.

May import: kvbench.errors, kvbench.peer.{model, protocol, wire, asker, placed, listener, holder},
kvbench.store.{block, copying, loans}. blake3, numpy.
"""

import contextlib
import fcntl
import mmap
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from blake3 import blake3

from kvbench.errors import UsageError
from kvbench.peer.asker import greet
from kvbench.peer.holder import Holder
from kvbench.peer.listener import Listener, ListenerLimits, Way
from kvbench.peer.model import Peer, PeerError, Pull, Reason
from kvbench.peer.placed import PlacedChannel
from kvbench.peer.protocol import Connection, Role
from kvbench.peer.wire import Stream
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums
from kvbench.store.loans import Lent

HOW = "shm"
COPY_BYTES = 16 * 2**20  # of one call: a few milliseconds, after which deadline and cancel count
_HANDOVER = b"\0"  # comes with the file; no frame begins with it
_UCRED = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED
# Who sees whom through a Unix socket: its abstract names belong to the network namespace, and what
# a uid means to the user namespace.
_NAMESPACES = ("net", "user")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def host_digest() -> str:
    """What memory can be shared within: this boot of this machine, this user, these namespaces.

    Equal for two processes that can reach each other's `ShmListener`; "" if this is not known,
    which no peer takes for the same host. Gives neither the machine's nor the user's name away.
    """
    try:
        boot = _BOOT.read_text(encoding="ascii").strip()
        spaces = [os.stat(f"/proc/self/ns/{name}") for name in _NAMESPACES]  # noqa: PTH116  the link's target
    except (OSError, UnicodeDecodeError):
        return ""
    parts = [boot, str(os.geteuid())]
    parts += [f"{space.st_dev}:{space.st_ino}" for space in spaces]
    return blake3(b"kvbench.peer.host " + " ".join(parts).encode()).hexdigest(16)


class Slots(Protocol):
    """The tier whose memory is shared; see `DramTier`."""

    name: str

    @property
    def layout(self) -> Layout: ...  # noqa: D102  see DramTier

    @property
    def slots(self) -> int: ...  # noqa: D102

    @property
    def slot_bytes(self) -> int: ...  # noqa: D102

    @property
    def fd(self) -> int: ...  # noqa: D102

    def slot_offset_bytes(self, slot: int) -> int: ...  # noqa: D102

    def view(self, slot: int) -> Bytes: ...  # noqa: D102


class Span:
    """A tier's slots in its memory; whether a lent block lies there, also if it is wrapped."""

    def __init__(self, tier: Slots) -> None:
        self.address: int = tier.view(0).__array_interface__["data"][0]
        self.size_bytes = tier.slots * tier.slot_bytes
        self._name, self._slot_bytes = tier.name, tier.slot_bytes

    def offset(self, lent: Lent) -> int | None:
        """Where the block begins, from the first slot on; None if it lies elsewhere."""
        # A wrapper that keeps something else in the slots than the blocks shows no view of them.
        if lent.view is None or lent.tier != self._name:
            return None
        return lent.slot * self._slot_bytes


class ShmListener(Listener):
    """Serves a holder's blocks to processes of this user on this machine; `endpoint` is for `Peer`.

    `tier` is the DRAM tier of the holder's store, whose memory is shared. Blocks that lie elsewhere
    are sent over the socket.

    Raises:
        UsageError: the socket cannot be had, or the tier has another layout or no memfd.
    """

    def __init__(self, holder: Holder, tier: Slots, limits: ListenerLimits | None = None) -> None:
        if tier.layout != holder.layout:
            raise UsageError(f"a tier of {tier.layout} for a holder of {holder.layout}")
        self.endpoint = f"kvbench-{os.urandom(16).hex()}"
        span, first = Span(tier), tier.slot_offset_bytes(0)

        def places(lent: Lent) -> int | None:
            offset = span.offset(lent)
            return None if offset is None else first + offset

        try:
            # Opened anew, since a copy of the descriptor could be mapped for writing.
            self._fd = os.open(f"/proc/self/fd/{tier.fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"the tier's memory cannot be shared: {error.strerror}") from None
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listening.bind(f"\0{self.endpoint}")
            listening.listen(256)
        except OSError as error:
            listening.close()
            os.close(self._fd)
            raise UsageError(f"cannot listen on a Unix socket: {error.strerror}") from None
        super().__init__(holder, listening, Way(how=HOW, check=self._let_in, places=places), limits)

    def close(self, drain_s: float = 0.0) -> None:
        """See `Listener.close`. Who has mapped the memory keeps it until he lets go."""
        super().close(drain_s)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _let_in(self, sock: socket.socket) -> None:
        _check_user(sock)
        try:
            socket.send_fds(sock, [_HANDOVER], [self._fd], socket.MSG_DONTWAIT)
        except OSError as error:
            raise PeerError(f"no file was handed over: {error}", Reason.UNREACHABLE) from None


class ShmTransport:
    """Channels to peers on this machine, for the peer `me`."""

    name = HOW

    def __init__(self, me: Peer) -> None:
        self._me = me

    def reaches(self, peer: Peer) -> bool:
        """Whether it shares its memory, on this host, and has blocks of our shape."""
        same = self._me.host != "" and peer.host == self._me.host
        return same and HOW in peer.endpoints and peer.layout == self._me.layout

    def connect(self, peer: Peer, expires_s: float) -> PlacedChannel:
        """See `Transport.connect`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(sock.close)
            memory = Mapping(_handed_over(sock, peer, expires_s), self._me.layout)
            stream = Stream(sock, Connection(Role.ASKER, self._me.layout))
            asker = greet(stream, self._me.id, peer, HOW, expires_s)
            on_failure.pop_all()
        return PlacedChannel(asker, memory, HOW)

    def close(self) -> None:
        """Nothing is shared by its channels."""


class Mapping:
    """The memory of a holder, mapped for reading; takes `fd` over. See `placed.Reader`.

    Raises:
        PeerError: it is no file in memory, or one that could shrink under the reader.
    """

    def __init__(self, fd: int, layout: Layout) -> None:
        self._layout = layout
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            size_bytes = os.fstat(fd).st_size
            if not (stat.S_ISREG(os.fstat(fd).st_mode) and seals & fcntl.F_SEAL_SHRINK):
                # To read beyond the end of a file is a SIGBUS, which would end this process.
                raise PeerError("memory that is not sealed against shrinking", Reason.REFUSED)
            area = mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            text = f"the holder's memory cannot be mapped: {error}"
            raise PeerError(text, Reason.REFUSED) from None
        finally:
            os.close(fd)
        self._memory: Bytes = np.frombuffer(area, dtype=np.uint8)

    def read(
        self, offsets: Sequence[int], targets: Sequence[Bytes], pull: Pull
    ) -> Iterator[list[bytes]]:
        """See `placed.Reader`."""
        size = self._layout.block_bytes
        last = self._memory.nbytes - size
        if any(offset > last for offset in offsets):
            raise PeerError(f"a block beyond {self._memory.nbytes} bytes", Reason.REFUSED)
        at_once = max(1, COPY_BYTES // size)
        for first in range(0, len(offsets), at_once):
            if pull.cancelled():
                return
            if time.monotonic() >= pull.expires_s:
                raise PeerError("not copied in time", Reason.LATE)
            some = slice(first, first + at_once)
            sources = [self._memory[offset : offset + size] for offset in offsets[some]]
            yield copy_with_sums(sources, targets[some], self._layout)

    def close(self) -> None:
        """See `placed.Reader`."""
        self._memory = np.empty(0, dtype=np.uint8)


def _check_user(sock: socket.socket) -> None:
    """The other end was opened by a process of this user.

    Raises:
        PeerError: it was not.
    """
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(said)
    if uid != os.geteuid():
        raise PeerError(
            f"process {pid} is of user {uid}: memory is shared with user {os.geteuid()} only",
            Reason.REFUSED,
        )


def _handed_over(sock: socket.socket, peer: Peer, expires_s: float) -> int:
    """Connect; the descriptor of the peer's memory."""
    left_s = expires_s - time.monotonic()
    if left_s <= 0:
        raise PeerError("no time left to connect", Reason.LATE)
    sock.settimeout(left_s)
    try:
        sock.connect(f"\0{peer.endpoints.get(HOW, '')}")
        _check_user(sock)  # anybody may listen on a name that is free
        said, fds, _, _ = socket.recv_fds(sock, len(_HANDOVER), 1, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise PeerError(f"{peer.name} did not hand its memory over in time", Reason.LATE) from None
    except BlockingIOError:  # of connect: as many as it takes are waiting
        raise PeerError(f"{peer.name} lets nobody in for now", Reason.BUSY) from None
    except OSError as error:
        text = f"no shared memory of {peer.name}: {error.strerror or error}"
        raise PeerError(text, Reason.UNREACHABLE) from None
    if fds and said == _HANDOVER:
        return fds[0]
    for fd in fds:
        os.close(fd)
    if said:  # a Refused: it is full
        raise PeerError(f"{peer.name} lets nobody in for now", Reason.BUSY)
    raise PeerError(f"{peer.name} closed the connection", Reason.UNREACHABLE)

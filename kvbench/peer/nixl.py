"""Blocks of a peer by NIXL: one-sided READs over UCX, which is RDMA, shared memory or TCP.

Where blocks lie, and that they are lent, is asked over a TCP connection of its own (with TLS); the
bytes then pass the holder's CPU by. How they are read is for `kvbench.peer.nixl_seat`.
What it does NOT do: encrypt what is read, or keep an asker to the slots that he was lent: who has
the metadata may read the whole of the registered memory. Targets are host memory, and the holder's
DRAM tier is what is registered; blocks on a GPU are sent over the connection instead.

UCX was seen to crash a process at its very end, while the wheel's libnl-route and the system's are
unloaded. By then all is closed, but the exit status is that of a crash: UCX_MODULES=^ib in the
environment avoids it where there is no RDMA, os._exit at the end of the program everywhere.

May import: kvbench.errors, kvbench.peer.{model, protocol, wire, asker, placed, listener, holder,
nixl_seat, registered, tcp, shm}, kvbench.store.{loans, nixl_file}. msgspec; nixl only when a
listener or transport is made.
"""

import contextlib
import ssl
import threading
import time
from typing import Any

import msgspec

from kvbench.errors import UsageError
from kvbench.peer.asker import greet
from kvbench.peer.holder import Holder
from kvbench.peer.listener import Listener, ListenerLimits, Way
from kvbench.peer.model import Peer, PeerError, Reason
from kvbench.peer.nixl_seat import CLOSE_S, MOST_SLOTS, POLL_S, Detail, Nixl, Remote, Seat
from kvbench.peer.placed import PlacedChannel
from kvbench.peer.protocol import Connection, Role
from kvbench.peer.registered import MEMORY
from kvbench.peer.shm import Slots, Span
from kvbench.peer.tcp import dial, listen
from kvbench.peer.wire import Stream
from kvbench.store.loans import Lent
from kvbench.store.nixl_file import load_nixl

HOW = "nixl"
PATH = "nixl (UCX)"
MOST_SPARE = 8  # agents that wait for the next channel: each has some 20 MB, threads and files
MOST_LINGERING = 8  # agents that wait for a READ that was late
IDLE_S = 0.01  # between looks of a holder that has lent nothing
LENT_S = 0.001  # or has, but nobody reads by its help
WORK_S = 50e-6  # a look that took more CPU time had something to do

_details = msgspec.msgpack.Decoder(Detail)


class NixlListener(Listener):
    """Has a holder's DRAM tier read by NIXL; `endpoint` is that of its TCP connection.

    `where` it listens, a host and a port, `tls` and `insecure` as for `TcpListener`.

    Raises:
        UsageError: as by `TcpListener`; or the tier has another layout, or too many slots.
        TierUnavailableError: NIXL is not installed, or does not start.
    """

    def __init__(
        self,
        holder: Holder,
        tier: Slots,
        where: tuple[str, int] = ("127.0.0.1", 0),
        *,
        tls: ssl.SSLContext | None = None,
        limits: ListenerLimits | None = None,
        insecure: bool = False,
    ) -> None:
        if tier.layout != holder.layout or tier.slots > MOST_SLOTS:
            raise UsageError(
                f"{tier.slots} slots of {tier.layout} for a holder of {holder.layout}: it takes "
                f"its own layout, and at most {MOST_SLOTS} slots"
            )
        nixl = Nixl(*load_nixl())
        self._errors = nixl.errors
        span = Span(tier)
        listening, self.endpoint = listen(*where, tls, insecure=insecure)
        try:
            self._agent: Any = nixl.agent(holder.me.id.hex())
            self._agent.register_memory([(span.address, span.size_bytes, 0, "")], MEMORY)
            self.metadata: bytes = self._agent.get_agent_metadata()  # NIXL's, of the tier's memory
        except BaseException:
            listening.close()
            raise
        self._tier = tier  # its memory stays for as long as others may read it
        detail = Detail(span.address, tier.slot_bytes, tier.slots, self.metadata)
        said = msgspec.msgpack.encode(detail)
        self._ended = threading.Event()
        self._asked = threading.Event()

        def places(lent: Lent) -> int | None:
            if not self._asked.is_set():
                self._asked.set()
            return span.offset(lent)

        way = Way(how=HOW, tls=tls, places=places, detail=said)
        super().__init__(holder, listening, way, limits)
        self._mover = threading.Thread(
            target=self._move_on, args=(holder,), name="kvbench-peer-nixl-holder", daemon=True
        )
        self._mover.start()

    def close(self, drain_s: float = 0.0) -> None:
        """See `Listener.close`. Before the store, whose memory others read until then."""
        super().close(drain_s)
        self._ended.set()
        self._asked.set()
        self._mover.join(CLOSE_S)
        self._agent = None

    def _move_on(self, holder: Holder) -> None:
        """Have UCX answer: over TCP it is the holder's that sends what is read.

        NIXL's own thread for that takes a whole core, whether anybody reads or not. Readers of
        memory on this machine need no help, and are not to be robbed of a core by it.
        """
        agent = self._agent
        pause_s = IDLE_S
        while not self._ended.is_set():
            began_s = time.thread_time()
            with contextlib.suppress(*self._errors):
                agent.get_new_notifs()
            busy = time.thread_time() - began_s > WORK_S
            if busy or self._asked.is_set():
                self._asked.clear()
                pause_s = POLL_S
            else:
                longest_s = LENT_S if holder.counts().lent_bytes else IDLE_S
                pause_s = min(2 * pause_s, longest_s)
            if pause_s < LENT_S:
                time.sleep(pause_s)
            else:
                self._asked.wait(pause_s)


class NixlTransport:
    """Channels by NIXL for the peer `me`; `tls` is a client's context with its certificate.

    Raises:
        TierUnavailableError: NIXL is not installed.
    """

    name = HOW

    def __init__(self, me: Peer, tls: ssl.SSLContext | None = None) -> None:
        self._me = me
        self._tls = tls
        self._nixl = Nixl(*load_nixl())
        self._lock = threading.Lock()
        self._closed = False
        # The first takes half a second, which is not to be a part of anybody's deadline.
        self._spare = [Seat(self._nixl, me.layout)]
        self._lingering: list[Seat] = []

    def reaches(self, peer: Peer) -> bool:
        """Whether it serves by NIXL, and has blocks of our shape."""
        return HOW in peer.endpoints and peer.layout == self._me.layout

    def connect(self, peer: Peer, expires_s: float) -> PlacedChannel:
        """See `Transport.connect`."""
        sock = dial(peer.endpoints.get(HOW, ""), self._tls, expires_s)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(sock.close)
            stream = Stream(sock, Connection(Role.ASKER, self._me.layout))
            asker = greet(stream, self._me.id, peer, HOW, expires_s)
            near = self._me.host != "" and peer.host == self._me.host
            seat = self._seat(asker.welcome.detail, expires_s)
            on_failure.pop_all()
        return PlacedChannel(asker, Remote(seat, self._back, near=near), PATH)

    def close(self) -> None:
        """Let go of the agents that no channel has."""
        with self._lock:
            self._closed = True
            seats = self._spare + self._lingering
            self._spare, self._lingering = [], []
        for seat in seats:
            seat.close()

    def _back(self, seat: Seat) -> None:
        """A channel needs it no more; the next one to the same holder may."""
        over = None
        with self._lock:
            late = seat.spoiled.is_set()
            kept, most = (self._lingering, MOST_LINGERING) if late else (self._spare, MOST_SPARE)
            kept.append(seat)
            if self._closed or len(kept) > most:
                over = kept.pop(0)
        if late:
            seat.end()
        if over is not None:
            over.close()

    def _seat(self, said: bytes, expires_s: float) -> Seat:
        """One that reaches the holder."""
        try:
            detail = _details.decode(said)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise PeerError("a Welcome without NIXL's metadata", Reason.REFUSED) from None
        if detail.slot_bytes < self._me.block_bytes:
            raise PeerError(f"slots of {detail.slot_bytes} bytes", Reason.REFUSED)
        with self._lock:
            # One of another holder is of no use: UCX closes connections only with their agent.
            fit = [seat for seat in self._spare if seat.detail in (detail, None)]
            seat = max(fit, key=lambda seat: seat.detail is not None, default=None)
            if seat is not None:
                self._spare.remove(seat)
        seat = seat or Seat(self._nixl, self._me.layout)
        try:
            left_s = max(0.0, expires_s - time.monotonic())
            seat.begin(lambda: seat.attach(detail)).result(left_s)
        except TimeoutError:
            seat.spoiled.set()
            self._back(seat)
            raise PeerError("no NIXL connection in time", Reason.LATE) from None
        except self._nixl.errors as error:
            seat.spoiled.set()
            self._back(seat)
            raise PeerError(f"NIXL cannot reach the holder: {error}", Reason.UNREACHABLE) from None
        return seat

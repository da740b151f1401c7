"""Blocks of a peer by NIXL: one-sided READs over UCX, which is RDMA, shared memory or TCP.

Where blocks lie, and that they are lent, is asked over a TCP connection of its own (with TLS); the
bytes then pass the holder's CPU by. They land in staging memory, never in a target: NIXL has no
deadline, and a READ that is late may still write. From there they are copied and checked in one go.
What it does NOT do: encrypt what is read, or keep an asker to the slots that he was lent: who has
the metadata may read the whole of the registered memory. Targets are host memory, and the holder's
DRAM tier is what is registered; blocks on a GPU are sent over the connection instead.

UCX was seen to crash a process at its very end, while the wheel's libnl-route and the system's are
unloaded. By then all is closed, but the exit status is that of a crash: UCX_MODULES=^ib in the
environment avoids it where there is no RDMA, os._exit at the end of the program everywhere.

May import: kvbench.errors, kvbench.peer.{model, messages, protocol, wire, asker, placed, listener,
holder, tcp, shm}, kvbench.store.{block, copying, loans, nixl_file, posix}. numpy, msgspec; nixl
only when a listener or transport is made.
"""

import contextlib
import math
import os
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from kvbench.errors import UsageError
from kvbench.peer.asker import greet
from kvbench.peer.holder import Holder
from kvbench.peer.listener import Listener, ListenerLimits, Way
from kvbench.peer.messages import MOST_BLOCK_BYTES
from kvbench.peer.model import Peer, PeerError, Pull, Reason
from kvbench.peer.placed import PlacedChannel
from kvbench.peer.protocol import Connection, Role
from kvbench.peer.shm import Slots, Span
from kvbench.peer.tcp import dial, listen
from kvbench.peer.wire import Stream
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums
from kvbench.store.loans import Lent
from kvbench.store.nixl_file import load_nixl
from kvbench.store.posix import mapped_buffer

HOW = "nixl"
PATH = "nixl (UCX)"
BACKEND = "UCX"
MEMORY = "DRAM"
READ_BYTES = 4 * 2**20  # of one READ, or one block: what is checked while it is in the caches
DEPTH = 3  # READs: one is under way, one waits, and one is checked
MOST_SLOTS = 2**22  # of one holder: NIXL prepares a list of them
MOST_SPARE = 8  # agents that wait for the next channel: each has some 20 MB, threads and files
POLL_S = 20e-6  # a READ moves on only while it is asked about
IDLE_S = 0.01  # between looks of a holder that has lent nothing
SETTLE_S = 0.05  # for READs that nobody wants any more; then their memory is given up
LINGER_S = 60.0  # for a READ that was late to end, before its agent is cut off
LINGER_POLL_S = 0.01
MOST_LINGERING = 8  # agents that wait so
CLOSE_S = 5.0  # the longest that the thread of an agent is waited for
_T = TypeVar("_T")


class _Detail(msgspec.Struct, frozen=True, array_like=True):
    """What a Welcome says of the holder's memory."""

    address: Annotated[int, Meta(ge=0, le=2**63 - 1)]  # of its first slot, in the holder
    slot_bytes: Annotated[int, Meta(ge=1, le=2 * MOST_BLOCK_BYTES)]
    slots: Annotated[int, Meta(ge=1, le=MOST_SLOTS)]
    metadata: Annotated[bytes, Meta(min_length=1, max_length=64 * 1024)]  # NIXL's


_details = msgspec.msgpack.Decoder(_Detail)


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
        api, self._errors = load_nixl()
        span = Span(tier)
        listening, self.endpoint = listen(*where, tls, insecure=insecure)
        try:
            self._agent: Any = _agent(api, holder.me.id.hex())
            self._agent.register_memory([(span.address, span.size_bytes, 0, "")], MEMORY)
            self.metadata: bytes = self._agent.get_agent_metadata()  # NIXL's, of the tier's memory
        except BaseException:
            listening.close()
            raise
        self._tier = tier  # its memory stays for as long as others may read it
        detail = _Detail(span.address, tier.slot_bytes, tier.slots, self.metadata)
        said = msgspec.msgpack.encode(detail)
        self._ended = threading.Event()
        self._asked = threading.Event()

        def places(lent: Lent) -> int | None:
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

        NIXL's own thread for that takes a whole core, whether anybody reads or not.
        """
        agent = self._agent
        while not self._ended.is_set():
            with contextlib.suppress(*self._errors):
                agent.get_new_notifs()
            if holder.counts().lent_bytes:
                time.sleep(POLL_S)
            else:
                self._asked.clear()
                self._asked.wait(IDLE_S)


class NixlTransport:
    """Channels by NIXL for the peer `me`; `tls` is a client's context with its certificate.

    Raises:
        TierUnavailableError: NIXL is not installed.
    """

    name = HOW

    def __init__(self, me: Peer, tls: ssl.SSLContext | None = None) -> None:
        self._me = me
        self._tls = tls
        self._api, self._errors = load_nixl()
        self._lock = threading.Lock()
        self._closed = False
        # The first takes half a second, which is not to be a part of anybody's deadline.
        self._spare = [_Seat(self._api, me.layout)]
        self._lingering: list[_Seat] = []

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
            memory = self._remote(asker.welcome.detail, expires_s)
            on_failure.pop_all()
        return PlacedChannel(asker, memory, PATH)

    def close(self) -> None:
        """Let go of the agents that no channel has."""
        with self._lock:
            self._closed = True
            seats = self._spare + self._lingering
            self._spare, self._lingering = [], []
        for seat in seats:
            seat.close()

    def back(self, seat: "_Seat") -> None:
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

    def _remote(self, said: bytes, expires_s: float) -> "_Remote":
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
        seat = seat or _Seat(self._api, self._me.layout)
        try:
            left_s = max(0.0, expires_s - time.monotonic())
            seat.begin(lambda: seat.attach(detail)).result(left_s)
        except TimeoutError:
            seat.spoiled.set()
            self.back(seat)
            raise PeerError("no NIXL connection in time", Reason.LATE) from None
        except self._errors as error:
            seat.spoiled.set()
            self.back(seat)
            raise PeerError(f"NIXL cannot reach the holder: {error}", Reason.UNREACHABLE) from None
        return _Remote(self, seat, detail, self._errors)


class _Seat:
    """An agent of NIXL with staging memory, for one channel at a time; and a thread, its only user.

    NIXL's agents are not made for several threads, and its calls have no deadline: who waits for
    the thread has one. READs of shared memory are done by the thread itself, while what was read
    before is checked by another. One that is given up with a READ under way harms no other.
    """

    def __init__(self, api: Any, layout: Layout) -> None:  # noqa: ANN401  nixl's types come with it
        self.layout = layout
        self.at_once = max(1, READ_BYTES // layout.block_bytes)  # rows of one READ
        size = layout.block_bytes
        self.rows = mapped_buffer(DEPTH * self.at_once * size, huge_pages=True).reshape(-1, size)
        self.rows[:] = 0  # its pages are there
        self.spoiled = threading.Event()  # a READ may still write to the rows: no more of them
        self._cut = threading.Event()  # nor waited for
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._agent: Any = None
        self._local: Any = None
        self._remote: Any = None
        self.detail: _Detail | None = None  # of the holder that is reached
        self._thread = threading.Thread(target=self._work, name="kvbench-peer-nixl", daemon=True)
        self._thread.start()
        self.begin(lambda: self._open(api)).result()

    def begin(self, work: Callable[[], _T]) -> "Future[_T]":
        """Have the thread do something, after all that was begun before."""
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  goes to whoever waits
                future.set_exception(error)

        self._jobs.put(run)
        return future

    def end(self) -> None:
        """Do nothing more than what was begun; a READ that is late may take LINGER_S.

        To cut one off that goes over TCP was seen to abort the holder's process, in its UCX.
        """
        self._jobs.put(None)

    def close(self) -> None:
        """End the agent, which ends its READs, and only then let go of the memory."""
        self._cut.set()
        self.end()
        self._thread.join(CLOSE_S)

    # On the thread.

    def attach(self, detail: _Detail) -> None:
        """Reach a holder's memory."""
        if self.detail == detail:
            return
        name = self._agent.add_remote_agent(detail.metadata)
        size = self.layout.block_bytes
        strided = _strided(detail.address, size, detail.slot_bytes, detail.slots)
        self._remote = self._agent.prep_xfer_dlist(name, strided, MEMORY)
        self.detail = detail

    def read(self, slots: Sequence[int], first: int) -> str:
        """READ these slots into the rows from `first` on; how it ended, PROC if it has not."""
        if self.spoiled.is_set():
            return "PROC"
        rows = np.arange(first, first + len(slots), dtype=np.int32)
        which = np.array(slots, dtype=np.int32)
        handle = self._agent.make_prepped_xfer("READ", self._local, rows, self._remote, which)
        state: str = self._agent.transfer(handle)
        end_s = math.inf
        while state == "PROC" and not self._cut.is_set() and time.monotonic() < end_s:
            if self.spoiled.is_set():
                end_s = min(end_s, time.monotonic() + LINGER_S)
            time.sleep(LINGER_POLL_S if self.spoiled.is_set() else POLL_S)
            state = self._agent.check_xfer_state(handle)
        handle.release()
        return state

    def _open(self, api: Any) -> None:  # noqa: ANN401  nixl's types come with it
        self._agent = _agent(api, os.urandom(16).hex())
        address, size = self.rows.__array_interface__["data"][0], self.layout.block_bytes
        self._agent.register_memory([(address, self.rows.nbytes, 0, "")], MEMORY)
        strided = _strided(address, size, size, len(self.rows))
        self._local = self._agent.prep_xfer_dlist("", strided, MEMORY)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        self._local = self._remote = self._agent = None
        self.rows = np.empty((0, self.layout.block_bytes), dtype=np.uint8)


class _Flight(NamedTuple):
    """A READ that was begun, of rows `first` and on to targets `part`."""

    done: "Future[str]"
    first: int
    part: slice


class _Remote:
    """The registered memory of one holder; see `placed.Reader`."""

    def __init__(
        self,
        transport: NixlTransport,
        seat: _Seat,
        detail: _Detail,
        errors: tuple[type[Exception], ...],
    ) -> None:
        self._transport = transport
        self._seat: _Seat | None = seat
        self._errors = errors
        self._gone: tuple[type[BaseException], ...] = (TimeoutError, *errors)
        self._slots, self._slot_bytes = detail.slots, detail.slot_bytes

    def read(
        self, offsets: Sequence[int], targets: Sequence[Bytes], pull: Pull
    ) -> Iterator[list[bytes]]:
        """See `placed.Reader`. Blocks are checked while those after them are read."""
        seat = self._seat
        if seat is None:
            raise PeerError("the channel is closed", Reason.UNREACHABLE)
        slots = [self._slot(offset) for offset in offsets]
        flying: deque[_Flight] = deque()
        try:
            for number, start in enumerate(range(0, len(slots), seat.at_once)):
                if pull.cancelled():
                    return
                if len(flying) == DEPTH:
                    yield self._land(seat, flying, targets, pull.expires_s)
                part = slice(start, min(start + seat.at_once, len(slots)))
                flying.append(self._begin(seat, slots, part, number % DEPTH * seat.at_once))
            while flying:
                yield self._land(seat, flying, targets, pull.expires_s)
        finally:
            self._settle(seat, flying)

    def close(self) -> None:
        """See `placed.Reader`."""
        seat, self._seat = self._seat, None
        if seat is not None:
            self._transport.back(seat)

    def _slot(self, offset: int) -> int:
        slot, rest = divmod(offset, self._slot_bytes)
        if rest or slot >= self._slots:
            raise PeerError(f"a block at {offset}, where no slot begins", Reason.REFUSED)
        return slot

    def _begin(self, seat: _Seat, slots: list[int], part: slice, first: int) -> _Flight:
        some = slots[part]
        return _Flight(seat.begin(lambda: seat.read(some, first)), first, part)

    def _land(
        self, seat: _Seat, flying: deque[_Flight], targets: Sequence[Bytes], expires_s: float
    ) -> list[bytes]:
        """Wait for the first of the READs, and copy what it brought."""
        left_s = expires_s - time.monotonic()
        flight = flying[0]
        try:
            state = flight.done.result(max(0.0, left_s))
        except TimeoutError:
            state = "PROC"
        except self._errors as error:
            raise self._spoiled(seat, f"NIXL: {error}", Reason.UNREACHABLE) from None
        if state == "PROC" or left_s <= 0:
            raise self._spoiled(seat, "NIXL has not read in time", Reason.LATE)
        if state != "DONE":
            raise self._spoiled(seat, f"a READ of NIXL ended as {state}", Reason.UNREACHABLE)
        flying.popleft()
        some = targets[flight.part]
        rows = list(seat.rows[flight.first : flight.first + len(some)])
        return copy_with_sums(rows, some, seat.layout)

    def _settle(self, seat: _Seat, flying: deque[_Flight]) -> None:
        """READs whose blocks nobody wants any more: they end now, or their memory is given up."""
        end_s = time.monotonic() + SETTLE_S
        for flight in flying:
            if seat.spoiled.is_set():
                return
            try:
                flight.done.result(max(0.0, end_s - time.monotonic()))
            except self._gone:
                seat.spoiled.set()

    @staticmethod
    def _spoiled(seat: _Seat, text: str, reason: Reason) -> PeerError:
        seat.spoiled.set()
        return PeerError(text, reason)


def _agent(api: Any, name: str) -> Any:  # noqa: ANN401  nixl's types come with it
    config = api.nixl_agent_config(enable_prog_thread=False, backends=[BACKEND])
    return api.nixl_agent(f"kvbench-{name}", config)


def _strided(address: int, size_bytes: int, stride_bytes: int, count: int) -> Any:  # noqa: ANN401  of nixl
    """So many descriptors in one row, as `prep_xfer_dlist` takes them."""
    return np.array([[address, size_bytes, 0, stride_bytes, count]], dtype=np.uint64)

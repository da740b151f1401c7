"""READs of one holder's memory by an agent of NIXL, and what keeps them from writing too late.

NIXL has no deadline and takes back no READ, so a READ that is late may still write. Therefore rows
are read into directly only where READs are over when their call is: UCX has the kernel copy them
from a process on this machine (CMA), whatever becomes of that process. All others arrive in staging
memory and are copied from there. Either way a pull that returns has no READ that writes to its
rows: one in the kernel's hands is waited for, milliseconds; one that was not over with its call
after all ends with its agent, and that is waited for.

May import: kvbench.peer.{model, messages, registered}, kvbench.store.{block, copying, posix}.
numpy, msgspec.
"""

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from kvbench.peer.messages import MOST_BLOCK_BYTES
from kvbench.peer.model import PeerError, Pull, Reason
from kvbench.peer.registered import MEMORY, Placed, Regions, place
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums, sums_of
from kvbench.store.posix import mapped_buffer

BACKEND = "UCX"
READ_BYTES = 4 * 2**20  # of one READ, or one block: what is checked while it is in the caches
LEAST_READ_BYTES = 2**20  # of a pull that is cut into READs, so that checking goes beside reading
CUTS = 8
DEPTH = 3  # READs of READ_BYTES: one is under way, one waits, and one is checked
MOST_SLOTS = 2**22  # of one holder: NIXL prepares a list of them
POLL_S = 20e-6  # a READ moves on only while it is asked about
SETTLE_S = 0.05  # for READs that nobody wants any more; then their memory is given up
LINGER_S = 60.0  # for a READ that was late to end, before its agent is cut off
LINGER_POLL_S = 0.01
CLOSE_S = 5.0  # the longest that the thread of an agent is waited for
DONE, UNDER_WAY = "DONE", "PROC"  # states of a READ, as NIXL calls them; there is ERR, too
STOPPED = "STOPPED"  # before it began
_T = TypeVar("_T")
_Job = Callable[[], object]


class Nixl(NamedTuple):
    """The library: see `load_nixl`."""

    api: Any
    errors: tuple[type[Exception], ...]

    def agent(self, name: str) -> Any:  # noqa: ANN401  nixl's types come with it
        """A new agent, over UCX."""
        config = self.api.nixl_agent_config(enable_prog_thread=False, backends=[BACKEND])
        return self.api.nixl_agent(f"kvbench-{name}", config)


class Detail(msgspec.Struct, frozen=True, array_like=True):
    """What a Welcome says of the holder's memory."""

    address: Annotated[int, Meta(ge=0, le=2**63 - 1)]  # of its first slot, in the holder
    slot_bytes: Annotated[int, Meta(ge=1, le=2 * MOST_BLOCK_BYTES)]
    slots: Annotated[int, Meta(ge=1, le=MOST_SLOTS)]
    metadata: Annotated[bytes, Meta(min_length=1, max_length=64 * 1024)]  # NIXL's


class Part(NamedTuple):
    """A READ to be done."""

    slots: NDArray[np.int32]
    first: int  # of the rows of staging, if it is to arrive there
    rows: Placed | None  # if it may arrive where it is to stay


class Landed(NamedTuple):
    """What became of a READ."""

    state: str  # NIXL's, or STOPPED
    in_place: bool = False
    error: str = ""


class Reading:
    """The READs of one pull, between the pull's thread and that of a seat."""

    def __init__(self) -> None:
        self.parts: SimpleQueue[Part | None] = SimpleQueue()
        self.landed: SimpleQueue[Landed] = SimpleQueue()
        self.stopped = False  # no more of them
        self.writing = False  # to rows of the pull; set first, and then `stopped` is looked at
        self.ended = threading.Event()


class Seat:
    """An agent of NIXL with staging memory, for one channel at a time; and a thread, its only user.

    NIXL's agents are not made for several threads, and its calls have no deadline: who waits for
    the thread has one. READs of shared memory are done by the thread itself, while what was read
    before is checked by another. One that is given up with a READ under way harms no other.
    """

    def __init__(self, nixl: Nixl, layout: Layout) -> None:
        self.layout = layout
        self.at_once = max(1, READ_BYTES // layout.block_bytes)  # rows of one READ
        size = layout.block_bytes
        self.rows = mapped_buffer(DEPTH * self.at_once * size, huge_pages=True).reshape(-1, size)
        self.rows[:] = 0  # its pages are there
        self.spoiled = threading.Event()  # a READ failed, or may still write to the rows: no more
        self.cut = threading.Event()  # nor waited for
        self.detail: Detail | None = None  # of the holder that is reached
        self._errors = nixl.errors
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._agent: Any = None
        self._local: Any = None
        self._remote: Any = None
        self._regions: Regions | None = None
        self.direct = False  # READs are over when their call is, as far as was seen
        self._thread = threading.Thread(target=self._work, name="kvbench-peer-nixl", daemon=True)
        self._thread.start()
        self.begin(lambda: self._open(nixl)).result()

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

    def read(self) -> Reading:
        """Begin the READs of a pull, whose parts are to follow; None ends it."""
        reading = Reading()
        self._jobs.put(lambda: self._read_all(reading))
        return reading

    def end(self) -> None:
        """Do nothing more than what was begun; a READ that is late may take LINGER_S.

        To cut one off that goes over TCP was seen to abort the holder's process, in its UCX.
        """
        self._jobs.put(None)

    def close(self) -> None:
        """End the agent, which ends its READs, and only then let go of the memory."""
        self.cut.set()
        self.end()
        self._thread.join(CLOSE_S)

    # On the thread.

    def attach(self, detail: Detail) -> None:
        """Reach a holder's memory."""
        if self.detail == detail:
            return
        name = self._agent.add_remote_agent(detail.metadata)
        size = self.layout.block_bytes
        strided = _strided(detail.address, size, detail.slot_bytes, detail.slots)
        self._remote = self._agent.prep_xfer_dlist(name, strided, MEMORY)
        self.detail = detail

    def _read_all(self, reading: Reading) -> None:
        landed = Landed(DONE)
        while landed.state == DONE and (part := reading.parts.get()) and not reading.stopped:
            try:
                landed = self._read(part, reading)
            except Exception as error:  # noqa: BLE001  goes to whoever waits
                # As text: the error itself would keep the agent that failed.
                landed = Landed("ERR", error=f"{type(error).__name__}: {error}")
            if landed.state not in (DONE, STOPPED):
                self.spoiled.set()
                if reading.writing:
                    self._let_go()
            reading.writing = False
            reading.landed.put(landed)
        reading.ended.set()

    def _read(self, part: Part, reading: Reading) -> Landed:
        if self.spoiled.is_set():
            return Landed(UNDER_WAY)
        rows = self._registered(part)
        if rows is None:
            which = np.arange(part.first, part.first + len(part.slots), dtype=np.int32)
            return Landed(self._transfer(self._local, which, part.slots))
        reading.writing = True
        if reading.stopped:  # whoever did that may not have seen the line before
            return Landed(STOPPED)
        which = np.arange(len(part.slots), dtype=np.int32)
        return Landed(self._transfer(rows, which, part.slots), in_place=True)

    def _registered(self, part: Part) -> Any:  # noqa: ANN401  nixl's types come with it
        """NIXL's list of the rows of a part; None if it has to arrive in staging."""
        regions = self._regions
        if not self.direct or part.rows is None or regions is None:
            return None
        if not all(regions.has(owner) for owner in part.rows.owners):
            return None
        return self._agent.prep_xfer_dlist("", part.rows.descriptors, MEMORY)

    def _transfer(self, rows: Any, which: NDArray[np.int32], slots: NDArray[np.int32]) -> str:  # noqa: ANN401
        """READ these slots into those of the rows; how it ended, PROC if it has not."""
        handle = self._agent.make_prepped_xfer("READ", rows, which, self._remote, slots)
        state: str = self._agent.transfer(handle)
        self.direct = state == DONE
        end_s = math.inf
        while state == UNDER_WAY and not self.cut.is_set() and time.monotonic() < end_s:
            if self.spoiled.is_set():
                end_s = min(end_s, time.monotonic() + LINGER_S)
            time.sleep(LINGER_POLL_S if self.spoiled.is_set() else POLL_S)
            state = self._agent.check_xfer_state(handle)
        with contextlib.suppress(*self._errors if state == UNDER_WAY else ()):
            handle.release()
        return state

    def _open(self, nixl: Nixl) -> None:
        self._agent = nixl.agent(os.urandom(16).hex())
        self._regions = Regions(self._agent, nixl.errors, self._jobs.put)
        address, size = self.rows.__array_interface__["data"][0], self.layout.block_bytes
        self._agent.register_memory([(address, self.rows.nbytes, 0, "")], MEMORY)
        strided = _strided(address, size, size, len(self.rows))
        self._local = self._agent.prep_xfer_dlist("", strided, MEMORY)

    def _let_go(self) -> None:
        """End the agent; none of its READs writes to anything afterwards."""
        if self._regions is not None:
            self._regions.close()
        self._local = self._remote = self._regions = self._agent = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it may keep rows
        self._let_go()
        self.rows = np.empty((0, self.layout.block_bytes), dtype=np.uint8)


class Remote:
    """The registered memory of one holder; see `placed.Reader`.

    `near`: the holder is on this machine, and rows may be read into directly. `back` is for the
    seat once it is not needed any more.
    """

    def __init__(self, seat: Seat, back: Callable[[Seat], None], *, near: bool) -> None:
        assert seat.detail is not None
        self._seat: Seat | None = seat
        self._back = back
        self._near = near
        self._slots, self._slot_bytes = seat.detail.slots, seat.detail.slot_bytes

    def read(
        self, offsets: Sequence[int], targets: Sequence[Bytes], pull: Pull
    ) -> Iterator[list[bytes]]:
        """See `placed.Reader`. Blocks are checked while those after them are read."""
        seat = self._seat
        if seat is None:
            raise PeerError("the channel is closed", Reason.UNREACHABLE)
        if not offsets:
            return
        slots = self._slots_of(offsets)
        at_once = _at_once(seat, len(slots))
        depth = len(seat.rows) // at_once
        parts = _cut(len(slots), at_once)
        begun = landed = 0
        reading = seat.read()
        try:
            for part in parts:
                if pull.cancelled():
                    return
                for each in parts[begun : landed + depth]:
                    rows = place(targets[each], seat.layout.block_bytes) if self._near else None
                    reading.parts.put(Part(slots[each], begun % depth * at_once, rows))
                    begun += 1
                in_place = _wait(reading, pull.expires_s)
                some, first = targets[part], landed % depth * at_once
                landed += 1
                if in_place:
                    yield sums_of(some, seat.layout)
                else:
                    staged = list(seat.rows[first : first + len(some)])
                    yield copy_with_sums(staged, some, seat.layout)
        finally:
            _settle(seat, reading, pull.expires_s, busy=begun > landed)

    def close(self) -> None:
        """See `placed.Reader`."""
        seat, self._seat = self._seat, None
        if seat is not None:
            self._back(seat)

    def _slots_of(self, offsets: Sequence[int]) -> NDArray[np.int32]:
        slots, rest = np.divmod(np.array(offsets, dtype=np.int64), self._slot_bytes)
        wrong = (rest != 0) | (slots >= self._slots)
        if wrong.any():
            offset = offsets[int(wrong.argmax())]
            raise PeerError(f"a block at {offset}, where no slot begins", Reason.REFUSED)
        return slots.astype(np.int32)


def _at_once(seat: Seat, blocks: int) -> int:
    """The blocks of each READ of a pull of so many."""
    size = seat.layout.block_bytes
    return max(1, min(seat.at_once, max(blocks // CUTS, LEAST_READ_BYTES // size)))


def _cut(blocks: int, at_once: int) -> list[slice]:
    """The READs of a pull; the last is small, since nothing is read while it is checked."""
    ends = [*range(at_once, blocks, at_once), blocks]
    last = blocks - max(1, at_once // 4)
    if last > (ends[-2] if len(ends) > 1 else 0):
        ends.insert(-1, last)
    return [slice(at, end) for at, end in zip([0, *ends], ends, strict=False)]


def _wait(reading: Reading, expires_s: float) -> bool:
    """Wait for the next READ; whether it arrived in place.

    Raises:
        PeerError: it did not.
    """
    left_s = expires_s - time.monotonic()
    try:
        landed = reading.landed.get(timeout=max(0.0, left_s))
    except Empty:
        raise PeerError("NIXL has not read in time", Reason.LATE) from None
    if landed.error:
        raise PeerError(f"NIXL: {landed.error}", Reason.UNREACHABLE)
    if landed.state == UNDER_WAY or left_s <= 0:
        raise PeerError("NIXL has not read in time", Reason.LATE)
    if landed.state != DONE:
        raise PeerError(f"a READ of NIXL ended as {landed.state}", Reason.UNREACHABLE)
    return landed.in_place


def _settle(seat: Seat, reading: Reading, expires_s: float, *, busy: bool) -> None:
    """READs whose blocks nobody wants any more: they end now, or their memory is given up.

    That of the pull's rows is not ours to give up: there, READs end, with their agent if need be.
    """
    reading.stopped = True
    reading.parts.put(None)
    if not busy:
        return
    left_s = min(SETTLE_S, expires_s - time.monotonic())
    if reading.ended.wait(max(0.0, left_s)):
        return
    if not reading.writing:
        seat.spoiled.set()
    elif not reading.ended.wait(SETTLE_S):
        seat.cut.set()
        reading.ended.wait()  # without a limit: rows may not be written to after this


def _strided(address: int, size_bytes: int, stride_bytes: int, count: int) -> Any:  # noqa: ANN401  of nixl
    """So many descriptors in one row, as `prep_xfer_dlist` takes them."""
    return np.array([[address, size_bytes, 0, stride_bytes, count]], dtype=np.uint64)

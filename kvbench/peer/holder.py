"""The serving side over a store: which of its blocks another peer may read, and where they lie.

Blocks in host memory are lent where they lie; others are first read into staging of a fixed size.
Namespaces and tenants are those of the shares, and nothing else is here for anybody. Never writes
to the store, opens no socket: `kvbench.peer.listener` and the other transports send what it says.

May import: kvbench.errors, kvbench.peer.{model, messages, shares}, kvbench.store.
"""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Protocol, TypeAlias

from kvbench.errors import UsageError
from kvbench.peer.messages import (
    BUSY,
    GONE,
    HERE,
    Answer,
    Ask,
    Place,
)
from kvbench.peer.model import Peer, PeerError, Reason, Tag
from kvbench.peer.shares import Share, check_apart
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.copying import sums_of
from kvbench.store.loans import Lent, Loan
from kvbench.store.posix import mapped_buffer
from kvbench.store.request import Request

Places: TypeAlias = Callable[[Lent], int | None]  # the offset that a transport calls a slot by


class Lends(Protocol):
    """What the holder needs of a store; see `TieredStore`."""

    @property
    def layout(self) -> Layout: ...  # noqa: D102  see TieredStore

    def lend(  # noqa: D102
        self,
        keys: Sequence[bytes],
        *,
        owner: str = "",
        ttl_s: float | None = None,
        tenants: Collection[str] | None = None,
    ) -> Loan: ...

    def used(self, keys: Sequence[bytes]) -> None: ...  # noqa: D102

    def get_into(  # noqa: D102
        self, source: Sequence[bytes], rows: object, *, deadline_s: float | None = None
    ) -> Request: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HolderLimits:
    """What others may have at a time. What is beyond it is BUSY.

    Raises:
        UsageError: one is not positive.
    """

    lent_bytes: int = 2**30  # to all connections together
    ask_bytes: int = 2**28  # of one Ask
    staging_bytes: int = 2**26  # blocks on their way from a drive or a GPU
    staging_s: float = 2.0  # the longest that they may take
    loan_s: float = 30.0  # then a loan is over, whatever the asker says
    loans: int = 64  # of places, of one connection

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) > 0:
                raise UsageError(f"{each.name} is {getattr(self, each.name)}: it is positive")


@dataclass(slots=True)
class HolderCounts:
    """What was asked of a holder since it began, and what is lent now."""

    asks: int = 0
    here_blocks: int = 0
    gone_blocks: int = 0
    busy_blocks: int = 0
    sent_blocks: int = 0
    sent_bytes: int = 0
    staged_blocks: int = 0  # of those here: read from a drive or a GPU first
    unknown_namespace: int = 0  # proofs
    wrong_proof: int = 0
    other_epoch: int = 0
    other_version: int = 0
    other_layout: int = 0
    loans_expired: int = 0
    lent_bytes: int = 0  # now
    staged_bytes: int = 0  # now


class FilePart(NamedTuple):
    """Bytes of a file, such as the memfd of a tier: what the kernel can send without copying."""

    fd: int
    offset: int
    size: int


class InFile(Protocol):
    """A tier whose slots lie in a file; see `DramTier`."""

    @property
    def name(self) -> str: ...  # noqa: D102  see DramTier
    @property
    def fd(self) -> int: ...  # noqa: D102

    def slot_offset_bytes(self, slot: int) -> int: ...  # noqa: D102


class Served:
    """An Answer, and what it lends until `end`; `blocks` are those HERE, in order, to be sent.

    `files` is the same in as few parts as possible, if all of them lie in files.
    """

    def __init__(
        self, answer: Answer, blocks: list[Bytes], expires_s: float, end: Callable[[bool], None]
    ) -> None:
        self.answer = answer
        self.blocks = blocks
        self.files: list[FilePart] = []
        self.expires_s = expires_s  # monotonic: nothing may be read from the blocks afterwards
        self._end: Callable[[bool], None] | None = end

    def end(self, *, used: bool) -> None:
        """The asker has the blocks (`used`), or will not have them; once more is no error."""
        end, self._end = self._end, None
        self.blocks, self.files = [], []
        if end is not None:
            end(used)


class _Staging:
    """Memory for blocks that the host cannot address where they lie. Under the holder's lock."""

    def __init__(self, layout: Layout, size_bytes: int) -> None:
        self._block_bytes = layout.block_bytes
        self._free = list(range(max(1, size_bytes // layout.block_bytes)))
        self._rows: Bytes | None = None  # most holders have all in memory

    def take(self, count: int) -> list[tuple[int, Bytes]]:
        """Up to so many rows with their numbers, uint8 [block_bytes]."""
        if self._rows is None:
            size = len(self._free) * self._block_bytes
            self._rows = mapped_buffer(size, huge_pages=True).reshape(-1, self._block_bytes)
        taken = [self._free.pop() for _ in range(min(count, len(self._free)))]
        return [(number, self._rows[number]) for number in taken]

    def put(self, numbers: Sequence[int]) -> None:
        """They are free again."""
        self._free.extend(numbers)


class _Work:
    """One Ask while it is answered, and what it holds."""

    def __init__(self, ask: Ask, loan: Loan) -> None:
        self.keys = ask.keys
        self.loan = loan
        state = BUSY if loan.lease.refused else GONE
        self.states = bytearray([state]) * len(ask.keys)
        self.blocks: list[Bytes | None] = [None] * len(ask.keys)
        self.sums = [b"" if lent is None else lent.stamp.sums for lent in loan.blocks]
        self.lent_bytes = 0
        self.staging: list[int] = []
        self.here: list[int] = []  # indexes of the keys that are HERE, once that is settled


def _reachable(block: Lent, places: Places) -> bool:
    checkable = bool(block.stamp.sums) or block.view is not None
    return checkable and places(block) is not None


class Holder:
    """What a store shares, with whom, within limits. Thread-safe.

    Blocks carry no namespace: the tenant is what ties a block to one. Who has proven a share is
    lent blocks of its tenants only, and several shares name different ones.
    `me` names the epoch of the store and its layout. `files` are those of its tiers whose slots
    can be sent from a file.

    Raises:
        UsageError: the store has another layout than `me` says, or two shares name one namespace
            or tenant, or one of several names none.
    """

    def __init__(
        self,
        store: Lends,
        shares: Sequence[Share],
        me: Peer,
        limits: HolderLimits | None = None,
        files: Sequence[InFile] = (),
    ) -> None:
        if store.layout != me.layout:
            raise UsageError(f"the peer is to have {me.layout}, the store has {store.layout}")
        self.me = me
        self.layout = store.layout
        self.limits = limits or HolderLimits()
        self._store = store
        self._shares = {share.tag: share for share in shares}
        if len(self._shares) < len(shares):
            raise UsageError("two shares of one namespace: give one, with the tenants of both")
        check_apart(shares, "share")
        self._lock = threading.Lock()
        self._counts = HolderCounts()
        self._files = {tier.name: tier for tier in files}
        self._staging = _Staging(self.layout, self.limits.staging_bytes)

    def counts(self) -> HolderCounts:
        """A copy of what was counted so far."""
        with self._lock:
            return replace(self._counts)

    def count(self, **more: int) -> None:
        """Add to counters, by name."""
        with self._lock:
            for name, number in more.items():
                setattr(self._counts, name, getattr(self._counts, name) + number)

    def share(self, tag: Tag) -> Share | None:
        """The share that is called that."""
        return self._shares.get(tag)

    def answer(self, ask: Ask, places: Places | None = None) -> Served:
        """Lend what is here of an Ask, whose namespace was proven (see `Grant`, which checks it).

        With `places`, blocks are to be read where they lie in memory that the transport shares.
        Those that lie elsewhere are BUSY, and can be asked for without: what a peer asks for must
        not move this peer's own blocks about.
        To `end` what is served is up to the caller.

        Raises:
            PeerError: the store is closed.
        """
        share = self._shares[ask.tag]
        limits = self.limits
        ttl_s = limits.loan_s if places else min(limits.loan_s, max(ask.within_ms / 1000, 0.001))
        expires_s = time.monotonic() + ttl_s
        try:
            loan = self._store.lend(ask.keys, owner="peer", ttl_s=ttl_s, tenants=share.tenants)
        except UsageError as error:
            raise PeerError(f"nothing is lent any more: {error}", Reason.GONE) from None
        work = _Work(ask, loan)
        try:
            self._take(work, places)
            if places is None:
                self._stage(work, min(limits.staging_s, ttl_s))
            return self._served(ask, work, places, expires_s)
        except BaseException:
            self._end(work, used=False)
            raise

    # Behind it.

    def _take(self, work: _Work, places: Places | None) -> None:
        """Those lent, within limits: HERE, in the slot's memory if that can be addressed."""
        size = self.layout.block_bytes
        lent = [(i, block) for i, block in enumerate(work.loan.blocks) if block is not None]
        with self._lock:
            room = min(self.limits.ask_bytes, self.limits.lent_bytes - self._counts.lent_bytes)
            most = min(len(lent), max(0, room // size))
            work.lent_bytes = most * size
            self._counts.lent_bytes += work.lent_bytes
        if places is None and most == len(work.keys):  # most often
            work.states = bytearray([HERE]) * most
            work.blocks = [block.view for _, block in lent]
            return
        for i, block in lent[:most]:
            work.states[i] = HERE if places is None or _reachable(block, places) else BUSY
            work.blocks[i] = block.view
        for i, _ in lent[most:]:
            work.states[i] = BUSY

    def _stage(self, work: _Work, deadline_s: float) -> None:
        """Read what the host cannot address into staging, as far as there is any."""
        away = [
            i for i, state in enumerate(work.states) if state == HERE and work.blocks[i] is None
        ]
        if not away:
            return
        with self._lock:
            rows = self._staging.take(len(away))
            self._counts.staged_bytes += len(rows) * self.layout.block_bytes
        work.staging = [number for number, _ in rows]
        for i in away[len(rows) :]:
            work.states[i] = BUSY
        away = away[: len(rows)]
        request = self._store.get_into(
            [work.keys[i] for i in away], [row for _, row in rows], deadline_s=deadline_s
        )
        # Without a limit: it has its deadline, and the rows may not be given to others before.
        for i, (_, row), status in zip(away, rows, request.result(), strict=True):
            if status is Status.OK:
                work.blocks[i], work.sums[i] = row, b""
            else:
                missing = status in (Status.MISS, Status.CORRUPT)
                work.states[i] = GONE if missing else BUSY
        self.count(staged_blocks=sum(work.blocks[i] is not None for i in away))

    def _served(self, ask: Ask, work: _Work, places: Places | None, expires_s: float) -> Served:
        work.here = here = [i for i, state in enumerate(work.states) if state == HERE]
        blocks = [block for i in here if (block := work.blocks[i]) is not None]
        if unsure := [i for i in here if not work.sums[i]]:
            unknown = [(i, block) for i in unsure if (block := work.blocks[i]) is not None]
            found = sums_of([block for _, block in unknown], self.layout)
            for (i, _), sums in zip(unknown, found, strict=True):
                work.sums[i] = sums
        lent = [where for i in here if (where := work.loan.blocks[i]) is not None]
        offsets = [] if places is None else [places(where) for where in lent]
        answer = Answer(
            ask.number,
            bytes(work.states),
            [where.tier for where in lent],
            [work.sums[i] for i in here],
            [Place(offset) for offset in offsets if offset is not None],
        )
        self.count(
            asks=1,
            here_blocks=len(here),
            gone_blocks=work.states.count(GONE),
            busy_blocks=work.states.count(BUSY),
        )
        served = Served(answer, blocks, expires_s, lambda used: self._end(work, used=used))
        if places is None and not work.staging:
            served.files = self._in_files(lent)
        return served

    def _in_files(self, lent: list[Lent]) -> list[FilePart]:
        """Where these blocks lie in files, neighbours together; nothing if some do not."""
        size = self.layout.block_bytes
        names = {where.tier for where in lent}
        if not names or not names <= self._files.keys():
            return []
        parts: list[FilePart] = []
        tiers = [self._files[name] for name in names]
        files = {tier.name: (tier.fd, tier.slot_offset_bytes) for tier in tiers}
        fd, first, end = -1, 0, 0
        for where in lent:
            file, offset_of = files[where.tier]
            offset = offset_of(where.slot)
            if offset != end or file != fd:
                if end > first:
                    parts.append(FilePart(fd, first, end - first))
                fd, first = file, offset
            end = offset + size
        return [*parts, FilePart(fd, first, end - first)]

    def _end(self, work: _Work, *, used: bool) -> None:
        work.loan.release()
        here = work.here
        if used and here:
            self._store.used([work.keys[i] for i in here])
        size = self.layout.block_bytes
        with self._lock:
            self._staging.put(work.staging)
            self._counts.staged_bytes -= len(work.staging) * size
            self._counts.lent_bytes -= work.lent_bytes
            if used:
                self._counts.sent_blocks += len(here)
                self._counts.sent_bytes += len(here) * size

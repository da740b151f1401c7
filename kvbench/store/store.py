"""A KV cache in several tiers: the store's API.

Every call does bookkeeping and returns; workers move the bytes. A list of keys is one prefix in
order: the parent of each key is the one before it. Rows belong to the caller again once their key
is settled, whatever its status; until then they must not change.

```python
with TieredStore([DramTier(...), NvmeTier(...)]) as store:
    store.put(keys, rows).result()
    with store.lookup(keys, owner="request 7") as lease:
        statuses = store.get_into(lease, rows[: len(lease)], deadline_s=0.05).result()
```
"""

import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Self, cast

from kvbench.errors import UsageError
from kvbench.store.absent import AbsentTier
from kvbench.store.block import KEY_BYTES, MOST_TENANT_BYTES, Layout, Stamp, Status
from kvbench.store.core import Core, Level
from kvbench.store.events import Events, Kind
from kvbench.store.flushes import Flushes
from kvbench.store.gets import Gets
from kvbench.store.lease import Holds, Lease
from kvbench.store.loans import Loan, held, lend, listing
from kvbench.store.metrics import WHOLE, Counted, StoreStats
from kvbench.store.moves import Moves
from kvbench.store.occupancy import occupancy
from kvbench.store.options import Options
from kvbench.store.puts import Puts
from kvbench.store.request import Request
from kvbench.store.rows import as_rows
from kvbench.store.spans import REQUEST, Spans
from kvbench.store.tier import Tier
from kvbench.store.workers import Alarm

_log = logging.getLogger("kvbench.store")
TICK_S = 0.05  # how often leases and stuck operations are looked at
MOST_POSITION = 2**62
CLOSE_S = 600.0  # the longest that closing waits for blocks to be written


class TieredStore:
    """Blocks of one layout in tiers, the fastest first. Thread-safe.

    A tier that cannot say what it holds is given up at once, and the store goes on with the others.

    Raises:
        UsageError: no tier, tiers of different layouts, or two of one name.
        TierUnavailableError: no tier can say what it holds.
    """

    def __init__(self, tiers: Sequence[Tier], options: Options | None = None) -> None:
        _check_tiers(tiers)
        self._core = core = Core(tiers, options or Options())
        self._moves = Moves(core)
        self._puts = Puts(core, self._moves)
        self._gets = Gets(core, self._moves)
        durable = [level for level in core.levels if level.tier.durable]
        self._flushes = Flushes(core, self._moves, self._puts, durable[-1]) if durable else None
        self._numbers = itertools.count(1)
        self._open = True
        self._closing = False
        self._reopening = threading.Lock()
        self._alarm = Alarm("kvbench-clock")
        core.on_fence = self._fenced
        self._tick()

    @property
    def layout(self) -> Layout:
        """The shape of its blocks."""
        return self._core.layout

    # The API.

    def lookup(
        self, keys: Sequence[bytes], *, owner: str = "", ttl_s: float | None = None
    ) -> Lease:
        """Lease the blocks from the first key on, up to the first that is not here.

        They stay until the lease is released or expires. It is no use of them: `get_into` is.
        """
        start_s = time.perf_counter()
        core = self._core
        ttl_s = core.options.lease_s if ttl_s is None else ttl_s
        if not math.isfinite(ttl_s):
            raise UsageError(f"ttl_s is {ttl_s}: a lease has to end, give seconds")
        tiers: list[str] = []
        holds: Holds = []
        with core.lock:
            self._check_open()
            refused = len(core.leases) >= core.leases.limit
            if not refused:
                tiers, holds = self._prefix(keys)
            lease = Lease(
                tuple(keys[: len(tiers)]),
                tuple(tiers),
                holds,
                owner=owner,
                ttl_s=ttl_s,
                release=self.release,
            )
            lease.refused = refused
            if tiers:
                core.leases.add(lease)
        if refused:
            core.metrics.count(Counted.BUSY, len(keys), tier=WHOLE)
        core.metrics.observe("lookup", WHOLE, time.perf_counter() - start_s)
        return lease

    def get_into(
        self,
        source: Lease | Sequence[bytes],
        rows: object,
        *,
        deadline_s: float | None = None,
        by_layer: bool = False,
    ) -> Request:
        """Copy blocks into rows: of a lease, or of keys that are looked up one by one.

        OK: the row holds the block, checked. MISS: it is not here. TIMEOUT: not within
        `deadline_s` from now. CORRUPT: every copy was damaged. BUSY: a queue is full. Of a key
        that is not OK, the row holds anything. `by_layer`: `Request.layer(i)` tells when part i of
        every row is there, before the parts that follow.

        `rows`: uint8 [blocks, block_bytes], a sequence of uint8 [block_bytes], or `Rows`.

        Raises:
            UsageError: rows and keys do not fit, or the store is closed.
        """
        keys = source.keys if isinstance(source, Lease) else _checked(source)
        whole = as_rows(rows, len(keys), self.layout, filled=True)
        parts = self.layout.parts if by_layer else 0
        request = self._request("get", len(keys), deadline_s, parts=parts)
        held = isinstance(source, Lease) and bool(source.holds)
        self._gets.start(request, keys, whole, by_layer, held=held)
        return request

    def put(
        self,
        keys: Sequence[bytes],
        rows: object,
        *,
        parent: bytes | None = None,
        position: int = 0,
        tenant: str = "",
        deadline_s: float | None = None,
    ) -> Request:
        """Store blocks: OK once each can be found.

        BUSY: there is no room for it now, or a queue is full; nothing is held up. A block that is
        here, or being put, is not stored again.
        `parent` and `position` say where in a prefix the first key is. `tenant` pays for them.

        Raises:
            UsageError: rows, keys or tenant do not fit, or the store is closed.
        """
        keys = _checked(keys)
        if len(tenant.encode()) > MOST_TENANT_BYTES:
            raise UsageError(
                f"the tenant {tenant[:20]!r}... takes {len(tenant.encode())} bytes of UTF-8: "
                f"at most {MOST_TENANT_BYTES}"
            )
        if parent is not None:
            _checked([parent])
        if not 0 <= position <= MOST_POSITION - len(keys):
            raise UsageError(f"position is {position}: it counts the blocks before the first key")
        if "\0" in tenant:
            raise UsageError(f"the tenant {tenant[:20]!r} has a NUL in it: use another name")
        if parent is not None and parent in keys:
            raise UsageError(f"block {parent.hex()[:16]} cannot be its own parent, or its child's")
        whole = as_rows(rows, len(keys), self.layout, filled=False)
        request = self._request("put", len(keys), deadline_s)
        size_bytes = len(keys) * self.layout.block_bytes
        self._core.metrics.count(
            Counted.PUTS, len(keys), tier=WHOLE, tenant=tenant, size_bytes=size_bytes
        )
        stamps = [
            Stamp(key, before, position + at, tenant, b"")
            for at, (key, before) in enumerate(zip(keys, [parent, *keys[:-1]], strict=False))
        ]
        self._puts.start(request, stamps, whole)
        return request

    def prefetch(self, keys: Sequence[bytes], *, deadline_s: float | None = None) -> Request:
        """Bring blocks from a drive to memory: OK once each is there, BUSY without room."""
        keys = _checked(keys)
        request = self._request("prefetch", len(keys), deadline_s)
        self._gets.start(request, keys, None, by_layer=False)
        return request

    def flush(
        self, keys: Sequence[bytes] | None = None, *, deadline_s: float | None = None
    ) -> Request:
        """Make blocks durable: OK once a loss of power could not take them. None: all of them.

        Then the result has one status for each block that was not in the durable tier before.

        Raises:
            UsageError: the store has no durable tier, or is closed.
        """
        if self._flushes is None:
            raise UsageError("this store has no durable tier: nothing can be flushed")
        if keys is None:
            with self._core.lock:
                keys = self._flushes.not_durable()
        keys = _checked(keys)
        request = self._request("flush", len(keys), deadline_s, and_then=True)
        self._flushes.start(request, keys)
        return request

    def cancel(self, request: Request) -> None:
        """Do no more for a request: what is open becomes TIMEOUT."""
        request.give_up("cancelled")

    def release(self, lease: Lease) -> None:
        """End a lease; once more is no error."""
        with self._core.lock:
            self._end(lease)

    def lend(
        self,
        keys: Sequence[bytes],
        *,
        owner: str = "",
        ttl_s: float | None = None,
        tenants: Collection[str] | None = None,
    ) -> Loan:
        """Lease those of the keys that are here, one by one, and say where each of them lies.

        For somebody who reads the slots himself, and checks what he read. With `tenants`, blocks of
        others are not here. It is no use of the blocks.
        """
        ttl_s = self._core.options.lease_s if ttl_s is None else ttl_s
        make = partial(Lease, owner=owner, ttl_s=ttl_s, release=self.release)
        with self._core.lock:
            self._check_open()
            return lend(self._core, keys, tenants, make)

    def used(self, keys: Sequence[bytes]) -> None:
        """Somebody read these blocks where they lie: they are as young as if by `get_into`."""
        with self._core.lock:
            self._core.touch(keys)

    def wait_for_event(self, number: int, timeout_s: float) -> bool:
        """Return as soon as event `number` has happened; False: not in time, or it never will."""
        return self._core.events.wait(number, timeout_s)

    def held(self, keys: Sequence[bytes], *, tenants: Collection[str] | None = None) -> list[bool]:
        """Of each key, whether its block can be found now; with `tenants`, one of theirs."""
        return held(self._core, keys, tenants)

    def listing(self, *, tenants: Collection[str] | None = None) -> list[bytes]:
        """The keys of all blocks that can be found, each once, in no order."""
        return listing(self._core, tenants)

    def tier(self, name: str) -> Tier | None:
        """The tier of that name: for those who share its memory with others. Not to be written."""
        return next((each.tier for each in self._core.levels if each.name == name), None)

    def stats(self) -> StoreStats:
        """What was counted since the store was opened, and what it holds now."""
        core = self._core
        self._check_open()
        # Not under the lock: a drive that hangs may keep its facts to itself.
        facts = {level.name: level.tier.facts() for level in core.levels}
        with core.lock:
            now = occupancy(core, self._moves, self._puts, facts)
        return core.metrics.snapshot(now)

    def events(self, since: int = 0, limit: int = 1024) -> Events:
        """Blocks that came and went, from event number `since` on."""
        return self._core.events.since(since, limit)

    def spans_into(self, spans: Spans) -> None:
        """Note requests and transfers there from now on."""
        self._core.spans = spans

    def unfence(self, tier: str) -> None:
        """Use a tier again that was given up; its blocks are found again.

        One that could not be opened, or not say what it holds, is opened now; that takes as long as
        it takes, and the store goes on meanwhile.

        Raises:
            UsageError: there is no tier of this name, or it can be opened only in another way.
            TierUnavailableError, OSError: it still cannot be opened; it stays given up.
        """
        for level in self._core.levels:
            if level.name == tier:
                with self._reopening:
                    if not level.recovered:
                        self._reopen(level)
                with self._core.lock:
                    if level.fence is not None and level.fence.reads:
                        stamps = [level.table.stamp(slot) for slot in level.table.index.values()]
                        self._core.events.append(Kind.STORED, level.name, stamps)
                    level.fence = None
                    level.errors = {"read": 0, "write": 0}
                return
        raise UsageError(
            f"no tier {tier!r}: this store has {', '.join(each.name for each in self._core.levels)}"
        )

    def close(self, *, flush: bool = True) -> None:
        """End the store. With `flush`, every block that fits is in the durable tier afterwards.

        What is not, and why, is in the log. Without, what waits to be moved is dropped.
        """
        with self._core.lock:
            if self._closing:
                return
            self._closing = True
        if flush and self._flushes is not None and self._flushes.level.writable:
            self._flush_all()
        with self._core.lock:
            self._open = False
            for lease in self._core.leases.all():
                self._end(lease)
        self._alarm.close()
        # All threads first: one that reads from a drive may write to the memory above.
        hang = [level for level in reversed(self._core.levels) if not self._stop(level)]
        for level in hang:  # nobody is to wait for it for ever
            with self._core.lock:
                self._core.fence(level, "it hung when the store was closed", reads=True)
            self._give_up(level)
        for level in self._core.levels:
            if hang:
                _log.error("an operation hangs: tier %s is left as it is", level.name)
                continue
            self._core.tidy(level)
            try:
                level.tier.close()
            except OSError:
                _log.exception("tier %s cannot be closed", level.name)
        self._core.events.close()

    def _flush_all(self) -> None:
        request = self.flush()
        try:
            left = [status for status in request.result(CLOSE_S) if status is not Status.OK]
        except TimeoutError:
            _log.error("closing: blocks were still being written after %s s", CLOSE_S)
            return
        if left:
            why = next(iter(request.reasons.values()), "no reason given")
            _log.warning("closing: %d blocks are not in the durable tier (%s)", len(left), why)

    def _stop(self, level: Level) -> bool:
        """End a tier's threads; False if one hangs."""
        self._moves.abandon(level, "the store is closed")
        known = level.fence is not None and level.fence.reads  # it was waited for long enough
        return all([pool.close(0.0 if known else None) for pool in level.pools()])  # noqa: C419  each of them

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(flush=kind is None)

    # Behind it.

    def _reopen(self, level: Level) -> None:
        """Have a tier that was lost from the beginning, with its blocks; it stays fenced."""
        core, lost = self._core, level.tier
        tier = lost.open() if isinstance(lost, AbsentTier) else lost
        try:
            books = core.books(tier, tier.recover())
            with core.lock:
                if self._closing:  # nobody would close it
                    raise UsageError("the store is closed")  # noqa: TRY301  within the lock
                core.adopt(level, tier, books)
        except BaseException:
            if tier is not lost:
                tier.close()
            raise

    def _prefix(self, keys: Sequence[bytes]) -> tuple[list[str], Holds]:
        """The usable prefix: the tier of each block, and what is held now; the lock is held.

        Most blocks are in the first tier that is asked, so that one is asked for all at once.
        """
        slots: list[int | None] = [None] * len(keys)
        tiers = [""] * len(keys)
        open_: Sequence[int] = range(len(keys))
        asked = [level for level in self._core.levels if level.readable]
        for level in asked:
            name, get = level.name, level.table.index.get
            if len(open_) == len(keys):
                slots = list(map(get, keys))
                tiers = [name] * len(keys)
            else:
                for i in open_:
                    slots[i] = get(keys[i])
                    tiers[i] = name
            if None not in slots:
                open_ = range(0)
                break
            open_ = [i for i in open_ if slots[i] is None]
        usable = open_[0] if open_ else len(keys)
        slots, tiers = slots[:usable], tiers[:usable]
        alone = tiers.count(asked[0].name) == usable if asked else True
        holds: Holds = []
        for level in asked[:1] if alone else asked:
            name = level.name
            # A slot is never None here; asking again costs a lookup more than it may.
            mine = slots if alone else [s for s, t in zip(slots, tiers, strict=True) if t == name]
            if mine:
                held = cast("list[int]", mine)
                level.table.lease(held)
                holds.append((level.number, held))
        return tiers, holds

    def _end(self, lease: Lease) -> None:
        if self._core.leases.remove(lease):
            for number, slots in lease.holds:
                self._core.release(self._core.levels[number], slots)
            lease.holds = []

    def _request(
        self,
        kind: str,
        size: int,
        deadline_s: float | None,
        *,
        parts: int = 0,
        and_then: bool = False,
    ) -> Request:
        self._check_open()
        if deadline_s is not None and not math.isfinite(deadline_s):
            raise UsageError(f"deadline_s is {deadline_s}: give seconds from now, or None")
        request = Request(kind, size, deadline_s=deadline_s, parts=parts, and_then=and_then)
        number = next(self._numbers)
        alarm: int | None = None
        if request.expires_s is not None:
            known = weakref.ref(request)  # or the clock would keep the rows of requests long over

            def expire() -> None:
                still = known()
                if still is not None:
                    still.give_up("the deadline passed")

            alarm = self._alarm.at(request.expires_s, expire)
        # No reference to the request from itself: it is gone when the caller lets it go.
        request.on_end = partial(self._ended, weakref.ref(request), number, alarm)
        return request

    def _ended(self, known: "weakref.ref[Request]", number: int, alarm: int | None) -> None:
        core, request = self._core, known()
        if alarm is not None:
            self._alarm.drop(alarm)
        if request is None:
            return
        end_ns = time.perf_counter_ns()
        late = request.statuses.count(Status.TIMEOUT)
        if late:
            core.metrics.count(Counted.DEADLINE_MISSES, late, tier=WHOLE)
        core.metrics.observe(request.kind, WHOLE, (end_ns - request.started_ns) / 1e9)
        if core.spans is not None:
            size_bytes = request.size * self.layout.block_bytes
            core.spans.note(request.kind, REQUEST, request.started_ns, end_ns, size_bytes, number)

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError("the store is closed")

    def _tick(self) -> None:
        """Leases whose time is up, operations that take too long, slots to tidy away."""
        core = self._core
        with core.lock:
            if not self._open:
                return
            over = core.leases.expired(time.monotonic())
            held = sum(len(lease) for lease in over)
            for lease in over:
                self._end(lease)
            for level in core.levels:
                self._look_at(level)
        if held:
            core.metrics.count(Counted.LEASES_EXPIRED, held, tier=WHOLE)
        self._alarm.at(time.monotonic() + TICK_S, self._tick)

    def _look_at(self, level: Level) -> None:
        core = self._core
        if level.tier.stalls and level.readable:
            longest_s = max(pool.busy_longest_s() for pool in level.pools())
            if longest_s > core.options.stuck_s:
                core.fence(
                    level, f"stuck: an operation has taken {longest_s:.1f} s so far", reads=True
                )
        self._moves.wake(level)
        if (level.emptying or level.condemned) and not level.writers.depth:
            level.writers.submit(_Tidy(core, level))

    def _fenced(self, level: Level) -> None:
        self._alarm.at(0.0, lambda: self._give_up(level))

    def _give_up(self, level: Level) -> None:
        """A tier was fenced: let everybody go who waits for it. On the clock's thread."""
        fence = level.fence
        if fence is None:
            return
        reason = f"tier {level.name}: {fence.reason}"
        self._moves.abandon(level, reason)
        level.writers.clear(reason)
        self._puts.abandon(level, reason)
        if self._flushes is not None:
            self._flushes.abandon(level, reason)
        if fence.reads:
            level.readers.clear(reason)
            self._gets.abandon(level, reason)


class _Tidy:
    """Slots that became empty while no worker was at hand."""

    def __init__(self, core: Core, level: Level) -> None:
        self._core = core
        self._level = level

    def run(self) -> None:
        """Tell the tier."""
        self._core.tidy(self._level)

    def fail(self, reason: str) -> None:
        """The next one will do it."""


def _checked(keys: Sequence[bytes]) -> Sequence[bytes]:
    for key in keys:
        if len(key) != KEY_BYTES:
            raise UsageError(f"a key of {len(key)} bytes: keys have {KEY_BYTES}; see kvbench.keys")
    return keys


def _check_tiers(tiers: Sequence[Tier]) -> None:
    if not tiers:
        raise UsageError("a store needs a tier: give it memory or a drive")
    names = [tier.name for tier in tiers]
    if len(set(names)) < len(names):
        raise UsageError(f"two tiers of one name: {', '.join(names)}")
    for tier in tiers:
        if tier.layout != tiers[0].layout:
            raise UsageError(
                f"tier {tier.name} has blocks of {tier.layout.block_bytes} bytes in "
                f"{tier.layout.parts} parts, {names[0]} of {tiers[0].layout.block_bytes} in "
                f"{tiers[0].layout.parts}: they have to be equal"
            )

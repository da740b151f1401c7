"""The bookkeeping that all parts of a store share: tiers with their tables, leases, fences.

One lock guards all of it; methods that say so are called with the lock held. Nothing here moves a
payload. What a tier must be told about slots it no longer needs (`forget`, `quarantine`) can take
a drive's time, so it is gathered and done by `tidy`, on a worker, without the lock.
"""

import errno
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from kvbench.errors import TierUnavailableError
from kvbench.policy.admission import Admission, Always, SecondTouch
from kvbench.policy.tenants import TenantPolicy, Tenants
from kvbench.store.block import BlockRefusedError, OtherBlockError, Stamp
from kvbench.store.events import EventLog, Kind
from kvbench.store.lease import Hold, LeaseBook
from kvbench.store.metrics import Counted, Metrics
from kvbench.store.options import Moving, Options
from kvbench.store.staging import prepare
from kvbench.store.table import SlotTable, State
from kvbench.store.tier import NOTHING, Recovered, Tier
from kvbench.store.workers import Workers, nothing
from kvbench.store.xxh3 import kernel

if TYPE_CHECKING:
    from kvbench.store.spans import Category, Spans

_log = logging.getLogger("kvbench.store")
# What a device answers when it will answer so to everything.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# What it answers when the machine is short of something for a moment.
TRANSIENT = (
    errno.EAGAIN,
    errno.EINTR,
    errno.ENOMEM,
    errno.EMFILE,
    errno.ENFILE,
    errno.EBUSY,
    errno.ETIMEDOUT,
)
GONE = (errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.EBADF, errno.ESHUTDOWN, errno.ESTALE)


RESERVE_TRIES = 3
LEAST_BATCH = 64  # blocks that leave a drive at once, but at most an eighth of a small one


class Never:
    """Admits nothing."""

    def admit(self, key: bytes) -> bool:  # noqa: ARG002  the protocol's
        """No."""
        return False


@dataclass(slots=True)
class Fence:
    """Why a tier is not used any more, for writing alone or at all."""

    reason: str
    reads: bool  # whether reads are fenced off too


@dataclass(slots=True)
class Level:
    """One tier with what is known of it."""

    number: int  # 0 is the fastest
    tier: Tier
    table: SlotTable
    policy: TenantPolicy[bytes]
    quotas: dict[str, int]  # bytes, by tenant
    admission: Admission[bytes]  # who may come from the tier above
    readers: Workers
    writers: Workers  # the same as `readers` for memory
    host_memory: bool  # whether the host can address its slots
    holding: Counter[str] = field(default_factory=Counter[str])  # blocks, by tenant
    fence: Fence | None = None
    recovered: bool = True  # whether its blocks could be found; if not, its table is empty
    errors: dict[str, int] = field(default_factory=lambda: {"read": 0, "write": 0})  # in a row
    # Slots to be quarantined, to be forgotten, and those quarantined that the tier was not told of.
    condemned: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    emptying: list[int] = field(default_factory=list[int])
    untold: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    room: threading.Lock = field(default_factory=threading.Lock)

    @property
    def name(self) -> str:
        """The tier's name."""
        return self.tier.name

    @property
    def readable(self) -> bool:
        """Whether blocks may be read from it."""
        return self.fence is None or not self.fence.reads

    @property
    def writable(self) -> bool:
        """Whether blocks may be written to it."""
        return self.fence is None

    def pools(self) -> list[Workers]:
        """Its pools of threads, each once."""
        return [self.readers] if self.readers is self.writers else [self.readers, self.writers]


def bad_slot(error: Exception) -> str:
    """Why a slot is not to be used again; nothing if the block or a lost drive is to blame."""
    if isinstance(error, BlockRefusedError):
        return ""
    lost = isinstance(error, OSError) and error.errno in (*FULL, *GONE, *TRANSIENT)
    return "" if lost else str(error)


def by_tenant(stamps: Sequence[Stamp]) -> Mapping[str, int]:
    """How many of these blocks each tenant pays for."""
    tenants = [stamp.tenant for stamp in stamps]
    if tenants and tenants.count(tenants[0]) == len(tenants):  # as it is of most requests
        return {tenants[0]: len(tenants)}
    return Counter(tenants)


def transient(error: Exception) -> bool:
    """Whether it says nothing about the block or its slot: it is to be asked for again."""
    return isinstance(error, OSError) and error.errno in TRANSIENT


def admission(moving: Moving, remembers: int) -> Admission[bytes]:
    """Who may come into a tier, by the word of the options."""
    if moving == "second_touch":
        return SecondTouch(remembers)
    return Always() if moving == "always" else Never()


Books = tuple[SlotTable, TenantPolicy[bytes], Counter[str]]  # a level's table, policy, holding


class Core:
    """Levels, leases, events and metrics of one store, and the lock that guards them.

    A tier whose blocks cannot be found as it begins is fenced.

    Raises:
        TierUnavailableError: that is so of every tier.
    """

    def __init__(self, tiers: Sequence[Tier], options: Options) -> None:
        kernel()  # compiled now, and not when the first request waits for it
        self.lock = threading.Lock()
        self.options = options
        self.layout = tiers[0].layout
        self.metrics = Metrics(
            [tier.name for tier in tiers],
            durable=[tier.name for tier in tiers if tier.durable],
            tenants={tenant for quotas in options.quotas.values() for tenant in quotas},
        )
        self.events = EventLog(options.event_history)
        self.spans: Spans | None = None
        self.leases = LeaseBook(options.most_leases)
        self.levels: list[Level] = []
        self.on_fence: Callable[[Level], None] = lambda _: None  # must not take the lock
        try:
            for number, tier in enumerate(tiers):
                self.levels.append(self._level(number, tier))
            self._check_usable()
        except BaseException:
            for level in self.levels:
                for pool in level.pools():
                    pool.close(0.0)
            raise

    def _check_usable(self) -> None:
        reasons = [f"{each.name}: {each.fence.reason}" for each in self.levels if each.fence]
        if len(reasons) == len(self.levels):
            raise TierUnavailableError(f"no tier of this store can be used: {'; '.join(reasons)}")

    def _level(self, number: int, tier: Tier) -> Level:
        options = self.options
        lost = ""
        try:
            found = tier.recover()
        except (OSError, TierUnavailableError) as error:
            found, lost = NOTHING, str(error)
        table, policy, holding = self.books(tier, found)  # before there are threads to be ended
        limit = options.queued_tasks
        if tier.stalls:
            blocks = min(tier.slots, max(1, options.transfer_bytes // tier.layout.block_bytes))
            staged = partial(prepare, blocks, tier.layout.block_bytes)
            # With memory above, most blocks come and go through its slots.
            begin = nothing if number else staged
            readers = Workers(f"{tier.name}-read", options.read_threads, limit=limit, begin=begin)
            writers = Workers(f"{tier.name}-write", options.write_threads, limit=limit, begin=begin)
        else:
            readers = writers = Workers(tier.name, options.memory_threads, limit=limit)
        level = Level(
            number=number,
            tier=tier,
            table=table,
            policy=policy,
            quotas=dict(options.quotas.get(tier.name, {})),
            admission=admission(
                # What comes down into memory costs little; what comes up has to be worth a place.
                options.demotion if tier.durable else "second_touch" if not number else "always",
                options.remembered_keys,
            ),
            readers=readers,
            writers=writers,
            host_memory=tier.view(0) is not None,
            holding=holding,
        )
        if lost:
            level.recovered = False
            self.fence(level, lost, reads=True)
        return level

    def books(self, tier: Tier, found: Recovered) -> Books:
        """The books of a tier as it begins; WITHOUT the lock: a million blocks take a second."""
        table = SlotTable(tier.slots)
        table.restore(found)
        quotas = self.options.quotas.get(tier.name, {})
        blocks = {
            tenant: max(1, quota // tier.layout.block_bytes) for tenant, quota in quotas.items()
        }
        policy = self.options.watched(tier.name, Tenants(self.options.policy, blocks))
        if found.keys:
            policy.insert_many(found.keys, found.parents, found.positions, found.tenants)
        return table, policy, Counter(found.tenants)

    def adopt(self, level: Level, tier: Tier, books: Books) -> None:
        """A tier in the place of one that was not `recovered`, still fenced; the lock is held.

        Nobody holds anything there: no block was ever found in it or written to it.
        """
        level.tier, level.host_memory = tier, tier.view(0) is not None
        level.table, level.policy, level.holding = books
        level.recovered = True

    # Finding and holding. The lock is held.

    def find(self, key: bytes, *, below: int = 0) -> Hold | None:
        """Where a block can be read, fastest first; the lock is held."""
        for level in self.levels:
            if level.number >= below and level.readable:
                slot = level.table.index.get(key)
                if slot is not None:
                    return level.number, slot
        return None

    def being_written(self, key: bytes) -> Level | None:
        """The tier into which a block is being put right now; the lock is held."""
        for level in self.levels:
            if key in level.table.writing:
                return level
        return None

    def known(self, keys: Collection[bytes]) -> set[bytes]:
        """Those that are in any tier, or being put into one: few of new ones; the lock is held."""
        found: set[bytes] = set()
        for level in self.levels:
            found |= (level.table.index.keys() & keys) | (level.table.writing.keys() & keys)
        return found

    def touch(self, keys: Sequence[bytes]) -> None:
        """A request used these blocks; the lock is held."""
        for level in self.levels:
            level.policy.touch(keys)

    def release(self, level: Level, slots: Iterable[int]) -> None:
        """Hold these slots no more; the lock is held."""
        level.emptying += level.table.release(slots)

    # Coming and going. The lock is held.

    def stored(self, level: Level, slots: Sequence[int], stamps: Sequence[Stamp]) -> None:
        """Blocks are whole in their slots: they can be found from now on; the lock is held."""
        if stamps:
            keys, parents, positions, tenants, _ = zip(*stamps, strict=True)
            level.table.stored(slots, stamps)
            level.policy.insert_many(keys, parents, positions, tenants)
            level.holding.update(tenants)
            self.events.append(Kind.STORED, level.name, stamps)

    def failed(self, level: Level, slot: int, *, bad: str = "") -> None:
        """A block could not be written; `bad` says why its slot is not to be used again."""
        level.table.failed(slot)
        if bad:
            level.condemned.append((slot, bad))
        else:
            self._empty(level, [slot])

    def damaged(self, level: Level, slot: int, key: bytes, error: Exception) -> None:
        """A slot did not give back its block: nobody finds it any more; the lock is held."""
        table = level.table
        if table.state(slot) not in {State.READY, State.LEASED}:
            return  # another reader found it first
        stamp = table.stamp(slot)
        if stamp.key != key:
            return
        evicting = table.doom(slot)
        self._left(level, [stamp])
        if not isinstance(error, OtherBlockError):
            level.condemned.append((slot, str(error)))
            self.metrics.count(
                Counted.QUARANTINED,
                1,
                tier=level.name,
                tenant=stamp.tenant,
                size_bytes=self.layout.block_bytes,
            )
        elif evicting:
            level.emptying.append(slot)

    def evict(self, level: Level, count: int) -> list[int]:
        """Up to `count` blocks leave a tier; their slots are EVICTING; the lock is held."""
        table = level.table
        gone = [table.index[key] for key in level.policy.victims(count, table.busy)]
        if not gone:
            return gone
        stamps = table.evict(gone)
        self._left(level, stamps)
        self.tally(Counted.EVICTIONS, level, stamps)
        return gone

    def _left(self, level: Level, stamps: Sequence[Stamp]) -> None:
        level.policy.remove_many([stamp.key for stamp in stamps])
        for tenant, blocks in by_tenant(stamps).items():
            level.holding[tenant] -= blocks
            if not level.holding[tenant]:
                del level.holding[tenant]
        self.events.append(Kind.REMOVED, level.name, stamps)

    def room_in_memory(self, level: Level, count: int) -> None:
        """Make `count` slots free in a tier that does not stall, as far as that can be."""
        missing = count - level.table.free
        if missing > 0:
            self._empty(level, self.evict(level, missing))

    def reserve(self, level: Level, stamps: Sequence[Stamp]) -> list[int | None]:
        """Slots for blocks in any tier, None where there is none; on a worker, WITHOUT the lock.

        A block that is there already, or is being written, gets none. Another worker may take what
        was made free, so it is tried more than once.
        """
        slots: list[int | None] = [None] * len(stamps)
        for _ in range(RESERVE_TRIES):
            with self.lock:
                table = level.table
                open_ = [
                    i
                    for i, stamp in enumerate(stamps)
                    if slots[i] is None
                    and stamp.key not in table.index
                    and stamp.key not in table.writing
                ]
                for i, slot in zip(
                    open_, table.reserve_many([stamps[i] for i in open_]), strict=False
                ):
                    slots[i] = slot
            missing = sum(slots[i] is None for i in open_)
            if not missing:
                break
            self._make_room(level, missing)
        return slots

    def _make_room(self, level: Level, count: int) -> None:
        with level.room:  # one at a time, or each would evict a batch of its own
            self.tidy(level)
            with self.lock:
                missing = count - level.table.free
                if missing <= 0:
                    return
                gone = self.evict(level, max(missing, self._batch(level)))
            # Not left to `tidy`: another worker would take them along, and be at it for a while.
            self._tell(level, gone, [])

    def _batch(self, level: Level) -> int:
        """How many blocks leave a tier at once; its index takes as long for one as for many."""
        slots, low_water = level.table.slots, self.options.low_water
        if not level.tier.stalls or low_water == 1:
            return 0
        return max(int(slots * (1 - low_water)), min(LEAST_BATCH, slots // 8))

    def _empty(self, level: Level, slots: list[int]) -> None:
        if not slots:
            return
        if level.tier.stalls:
            level.emptying.extend(slots)
        else:
            level.tier.forget(slots)
            level.table.emptied(slots)

    def tidy(self, level: Level) -> None:
        """Tell a tier which slots are empty or bad; on a worker, WITHOUT the lock.

        Raises nothing, since whoever calls it holds slots. What the tier cannot be told now it is
        told another time, but not while it is not to be written to.
        """
        if not level.writable or not (level.emptying or level.condemned or level.untold):
            return
        with self.lock:
            slots, level.emptying = level.emptying, []
            evicting = State.EVICTING
            bad = [each for each in level.condemned if level.table.state(each[0]) == evicting]
            level.condemned = [each for each in level.condemned if each not in bad]
            for slot, _ in bad:
                level.table.condemn(slot)
            untold, level.untold = level.untold + bad, []  # of which the tier does not know yet
        known = {slot for slot, _ in bad} | {slot for slot, _ in level.condemned}
        self._tell(level, [slot for slot in slots if slot not in known], untold)

    def _tell(self, level: Level, slots: list[int], untold: list[tuple[int, str]]) -> None:
        """Have a tier forget slots and quarantine others; raises nothing; WITHOUT the lock."""
        try:
            if slots:
                level.tier.forget(slots)
                with self.lock:
                    level.table.emptied(slots)
                slots = []
            while untold:
                slot, reason = untold[0]
                level.tier.quarantine([slot], reason)
                untold = untold[1:]
        except Exception as error:  # noqa: BLE001  a bug in a tier must not cost slots
            with self.lock:
                level.emptying += slots
                level.untold += untold
                self.failed_transfer(level, "write", error)

    # Faults. The lock is held.

    def worked(self, level: Level, verb: str) -> None:
        """A transfer succeeded."""
        level.errors[verb] = 0

    def failed_transfer(self, level: Level, verb: str, error: Exception) -> None:
        """A transfer failed; if it was not for what is in the block, that is the tier's fault.

        The lock is held.
        """
        if isinstance(error, BlockRefusedError):
            return
        self.metrics.count(Counted.IO_ERRORS, 1, tier=level.name)
        number = error.errno if isinstance(error, OSError) else None
        level.errors[verb] += 1
        if number in GONE:
            self.fence(level, f"{verb}: {error}", reads=True)
        elif verb == "write" and number in FULL:
            self.fence(level, f"write: {error}", reads=False)
        elif level.errors[verb] >= self.options.errors_in_a_row:
            self.fence(
                level,
                f"{level.errors[verb]} failed {verb}s in a row: {error}",
                reads=verb == "read",
            )

    def crashed(self, level: Level, verb: str, reason: str) -> None:
        """A task of a tier's worker raised; WITHOUT the lock."""
        if level.fence is None:
            with self.lock:
                self.failed_transfer(level, verb, RuntimeError(reason))

    def fence(self, level: Level, reason: str, *, reads: bool) -> None:
        """Use a tier no more, for writing or at all; the lock is held."""
        if level.fence is not None and (level.fence.reads or not reads):
            return
        level.fence = Fence(reason, reads)
        what = "not used any more" if reads else "not written to any more"
        _log.error("tier %s is %s: %s", level.name, what, reason)
        self.events.append_tier(Kind.FENCED if reads else Kind.SEALED, level.name, reason)
        self.on_fence(level)

    # Telling.

    def tally(self, counted: Counted, level: Level, stamps: Sequence[Stamp]) -> None:
        """Count blocks of a tier by tenant."""
        block_bytes = self.layout.block_bytes
        for tenant, number in by_tenant(stamps).items():
            self.metrics.count(
                counted, number, tier=level.name, tenant=tenant, size_bytes=number * block_bytes
            )

    def note(
        self, name: str, category: "Category", start_ns: int, end_ns: int, blocks: int
    ) -> None:
        """A span for the timeline, if somebody draws one."""
        if self.spans is not None:
            self.spans.note(name, category, start_ns, end_ns, blocks * self.layout.block_bytes)

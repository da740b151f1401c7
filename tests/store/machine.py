"""A store of three tiers that does anything in any order, beside a model that knows what may be.

Used by test_stateful.py. The model is a dict of payloads; everything that a fault, an eviction or
a deadline may take away is allowed to be gone, and nothing else is.
"""

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kvbench.policy.leaf_first import LeafFirst
from kvbench.policy.lru import LRU
from kvbench.policy.s3fifo import S3FIFO
from kvbench.policy.tree import TreePolicy
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.events import Kind
from kvbench.store.faults import Delay, Fail, Fault, FaultyTier, Flip, Operation, Raise, Stuck, Tear
from kvbench.store.faults import Kind as FaultKind
from kvbench.store.options import Moving, Options
from kvbench.store.request import Request
from kvbench.store.store import TieredStore
from tests.store.blocks import WAIT_S, drive, empty_rows, keys_of, payload_of, payloads_of
from tests.store.consistency import assert_consistent, core_of

if TYPE_CHECKING:
    from kvbench.store.lease import Lease

LAYOUT = Layout(8192, parts=2)
HBM, DRAM, NVME = 3, 5, 8  # slots; there are 19 keys
ROOT = keys_of(6)
PREFIXES = [ROOT, [*ROOT[:3], *keys_of(4, prefix=1)], keys_of(5, prefix=2), keys_of(4, prefix=3)]
PARENTS = {
    key: before for keys in PREFIXES for before, key in zip([None, *keys], keys, strict=False)
}
KEYS = list(PARENTS)
NEVER = keys_of(2, prefix=9)  # nobody puts these
TENANTS = ["", "small", "other"]
BLOCK = LAYOUT.block_bytes
QUOTAS = {"dram": {"small": 2 * BLOCK}, "nvme": {"small": 3 * BLOCK, "other": 5 * BLOCK}}
POLICIES: list[Callable[[], TreePolicy[bytes]]] = [LRU, LeafFirst, S3FIFO]
AT_FIRST = [*ROOT, *PREFIXES[2][:1]]  # on the drive when an example begins
USED = 0xAB  # what a caller does with rows that are his again
PAYLOADS = {key: payload_of(key, LAYOUT) for key in KEYS}
ANYWHERE: list[FaultKind] = [Fail(errno.EIO), Delay(0.02), Raise(RuntimeError("a bug"))]
FAULTS: dict[Operation, list[FaultKind]] = {
    "read": [*ANYWHERE, Fail(errno.ENODEV), Flip(9)],
    "write": [*ANYWHERE, Fail(errno.ENOSPC), Flip(70), Tear(4096)],
    "flush": ANYWHERE,
    "forget": ANYWHERE,
}
IN_MEMORY: list[FaultKind] = [Fail(errno.EIO), Flip(9), Raise(RuntimeError("a bug"))]

prefixes = st.sampled_from(PREFIXES)
deadlines = st.sampled_from([None, None, None, 0.0, 60.0])


@dataclass(eq=False)
class Asked:
    """A request that was made, and what may come of it."""

    request: Request
    keys: Sequence[bytes]
    rows: Bytes | None = None  # of a get
    given: Bytes | None = None  # of a put
    may_time_out: bool = False
    must: set[bytes] = field(default_factory=set[bytes])  # those that have to be OK, but for faults
    fired: int = 0  # faults until then
    number: int = 0  # of the store that was asked: there may have been a reopening


def make_template(folder: Path) -> None:
    """A drive with AT_FIRST on it."""
    with TieredStore([drive(folder, NVME, LAYOUT)]) as store:
        for key in AT_FIRST:
            rows, parent = payloads_of([key], LAYOUT), PARENTS[key]
            position = PREFIXES[0].index(key) if key in ROOT else 0
            request = store.put([key], rows, parent=parent, position=position)
            assert request.result(WAIT_S) == [Status.OK]


class StoreMachine(RuleBasedStateMachine):
    """Rules, and what always holds."""

    folder: Path  # set by the test: where the files are
    template: Path  # the drive's files as they are at first, copied for each example

    @initialize(
        policy=st.sampled_from(POLICIES),
        demotion=st.sampled_from(["always", "second_touch"]),
        promotion=st.sampled_from(["always", "second_touch", "never"]),
    )
    def begin(
        self, policy: Callable[[], TreePolicy[bytes]], demotion: Moving, promotion: Moving
    ) -> None:
        for file in self.template.iterdir():
            shutil.copyfile(file, self.folder / file.name)
        for name in ("index.sqlite-wal", "index.sqlite-shm", "index.damaged"):
            (self.folder / name).unlink(missing_ok=True)
        self.options = Options(
            policy=policy,
            demotion=demotion,
            promotion=promotion,
            quotas=QUOTAS,
            low_water=0.8,
            memory_threads=1,
            read_threads=2,
            write_threads=2,
            write_behind_bytes=4 * BLOCK,
            stuck_s=0.3,
        )
        self.put_once = set(AT_FIRST)
        self.durable = set(AT_FIRST)
        self.asked: list[Asked] = []
        self.leases: list[tuple[Lease, int]] = []
        self.back: list[Bytes] = []
        self.faults: list[Fault] = []
        self.stuck: list[Stuck] = []
        self.spoilt = False  # something wrong was written
        self.opened = 0
        self.open()

    def open(self) -> None:
        self.opened += 1
        self.memory = FaultyTier(DramTier(LAYOUT, DRAM, pin=False))
        self.drive = FaultyTier(drive(self.folder, NVME, LAYOUT))
        self.fast = FaultyTier(DramTier(LAYOUT, HBM, pin=False, name="hbm"))
        self.store = TieredStore([self.fast, self.memory, self.drive], self.options)
        self.events_read = 0
        self.there: dict[str, dict[bytes, bytes | None]] = {"hbm": {}, "dram": {}, "nvme": {}}
        level = core_of(self.store).levels[2]
        for key, slot in level.table.index.items():
            self.there["nvme"][key] = level.table.stamp(slot).parent

    # ------------------------------------------------------------ what may be asked

    @rule(
        keys=prefixes,
        first=st.integers(0, 4),
        count=st.integers(1, 6),
        tenant=st.sampled_from(TENANTS),
        deadline_s=deadlines,
        wait=st.booleans(),
    )
    def put(
        self,
        keys: list[bytes],
        first: int,
        count: int,
        tenant: str,
        deadline_s: float | None,
        wait: bool,
    ) -> None:
        first = min(first, len(keys) - 1)
        mine = keys[first : first + count]
        rows = payloads_of(mine, LAYOUT)
        self.put_once.update(mine)
        request = self.store.put(
            mine,
            rows,
            parent=PARENTS[mine[0]],
            position=first,
            tenant=tenant,
            deadline_s=deadline_s,
        )
        self.ask(Asked(request, mine, given=rows, may_time_out=deadline_s == 0), wait)

    @rule(keys=prefixes, count=st.integers(1, 7), ttl_s=st.sampled_from([60.0, 60.0, 0.001]))
    def look_up(self, keys: list[bytes], count: int, ttl_s: float) -> None:
        lease = self.store.lookup(keys[:count], ttl_s=ttl_s)
        assert lease.keys == tuple(keys[: len(lease)])
        assert set(lease.keys) <= self.put_once
        if ttl_s > 1:
            self.leases.append((lease, self.fired()))

    @precondition(lambda self: self.leases)
    @rule(at=st.integers(0, 9), forgotten=st.booleans())
    def release(self, at: int, forgotten: bool) -> None:
        lease, _ = self.leases.pop(at % len(self.leases))
        lease.release()
        if forgotten:
            lease.release()  # once more is no error

    @precondition(lambda self: self.leases)
    @rule(at=st.integers(0, 9), deadline_s=deadlines, by_layer=st.booleans(), wait=st.booleans())
    def get_leased(self, at: int, deadline_s: float | None, by_layer: bool, wait: bool) -> None:
        lease, fired = self.leases[at % len(self.leases)]
        rows = empty_rows(len(lease), LAYOUT)
        request = self.store.get_into(lease, rows, deadline_s=deadline_s, by_layer=by_layer)
        must = set(lease.keys) if not self.spoilt else set[bytes]()
        late = deadline_s == 0
        self.ask(Asked(request, lease.keys, rows, None, late, must, fired), wait)

    @rule(
        keys=st.lists(st.sampled_from([*KEYS, *NEVER]), min_size=1, max_size=8),
        deadline_s=deadlines,
        by_layer=st.booleans(),
        wait=st.booleans(),
    )
    def get(self, keys: list[bytes], deadline_s: float | None, by_layer: bool, wait: bool) -> None:
        rows = empty_rows(len(keys), LAYOUT)
        request = self.store.get_into(keys, rows, deadline_s=deadline_s, by_layer=by_layer)
        self.ask(Asked(request, keys, rows, may_time_out=deadline_s == 0), wait)

    @rule(keys=st.lists(st.sampled_from([*KEYS, *NEVER]), max_size=4), wait=st.booleans())
    def prefetch(self, keys: list[bytes], wait: bool) -> None:
        self.ask(Asked(self.store.prefetch(keys), keys), wait)

    @rule(keys=prefixes, count=st.integers(0, 7), wait=st.booleans())
    def flush(self, keys: list[bytes], count: int, wait: bool) -> None:
        request = self.store.flush(keys[:count])
        self.ask(Asked(request, keys[:count]), wait)

    @rule()
    def flush_everything(self) -> None:
        request = self.store.flush()
        self.ask(Asked(request, [b""] * request.size), wait=True)

    @precondition(lambda self: self.asked)
    @rule(at=st.integers(0, 9))
    def cancel(self, at: int) -> None:
        one = self.asked[at % len(self.asked)]
        one.may_time_out = True
        self.store.cancel(one.request)

    # ------------------------------------------------------------ what may happen

    @rule(data=st.data(), operation=st.sampled_from(list(FAULTS)), nth=st.integers(1, 4))
    def fault(self, data: st.DataObject, operation: Operation, nth: int) -> None:
        kind = data.draw(st.sampled_from(FAULTS[operation]))
        times = data.draw(st.sampled_from([1, 1, 1, 3, None]))
        if isinstance(kind, Flip | Tear) and operation == "write":
            self.spoilt = True
        self.add(self.drive, Fault(operation=operation, kind=kind, nth=nth, times=times))

    @rule(kind=st.sampled_from(IN_MEMORY), nth=st.integers(1, 4))
    def fault_in_memory(self, kind: FaultKind, nth: int) -> None:
        self.add(self.memory, Fault(operation="read", kind=kind, nth=nth))

    @rule(
        where=st.sampled_from(["hbm", "dram", "nvme"]),
        bit=st.integers(0, 8 * BLOCK - 1),
        nth=st.integers(1, 2),
        times=st.sampled_from([1, 2, None]),
    )
    def flips(self, where: str, bit: int, nth: int, times: int | None) -> None:
        tier = {"hbm": self.fast, "dram": self.memory, "nvme": self.drive}[where]
        self.add(tier, Fault(operation="read", kind=Flip(bit), nth=nth, times=times))

    @rule(operation=st.sampled_from(list(FAULTS)), nth=st.integers(1, 3))
    def hang(self, operation: Operation, nth: int) -> None:
        stuck = Stuck()
        self.stuck.append(stuck)
        self.add(self.drive, Fault(operation=operation, kind=stuck, nth=nth))

    @rule()
    def let_go(self) -> None:
        for stuck in self.stuck:
            stuck.release.set()

    @rule()
    def mend(self) -> None:
        self.let_go()
        for fault in self.faults:
            fault.times = 0
        for tier in ("hbm", "dram", "nvme"):
            self.store.unfence(tier)

    @rule()
    def rest(self) -> None:
        self.let_go()
        while self.asked:
            self.settle(self.asked.pop())
        assert_consistent(self.store)
        self.follow()
        for level in core_of(self.store).levels:
            if level.fence is None or not level.fence.reads:
                assert self.there[level.name].keys() == level.table.index.keys(), level.name
        assert all((rows == USED).all() for rows in self.back), "rows that were given back changed"
        self.back = []

    @rule(flush=st.booleans())
    def reopen(self, flush: bool) -> None:
        self.rest()
        self.store.close(flush=flush)
        self.follow()
        kept = set(self.durable)
        unhurt = not self.spoilt and not self.fired()
        self.leases, self.faults, self.stuck = [], [], []
        self.open()
        here = core_of(self.store).levels[2].table.index.keys()
        assert here <= self.put_once, "a block that nobody put"
        assert kept <= here, "a flushed block was lost"
        rows = empty_rows(len(kept), LAYOUT)
        keys = sorted(kept)
        must = set(keys) if unhurt else set[bytes]()
        self.ask(Asked(self.store.get_into(keys, rows), keys, rows, must=must), wait=True)

    # ------------------------------------------------------------ what has to hold

    @invariant()
    def no_more_than_there_is(self) -> None:
        if not hasattr(self, "store"):
            return
        for name, tier in self.store.stats().tiers.items():
            assert 0 <= tier.used <= tier.slots, name
            assert sum(tier.states.values()) == tier.slots, name

    def teardown(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            self.rest()
        finally:
            self.let_go()
            self.store.close(flush=False)

    def ask(self, one: Asked, wait: bool) -> None:
        one.number = self.opened
        if wait:
            self.settle(one)
        else:
            self.asked.append(one)

    def settle(self, one: Asked) -> None:
        """Wait for a request, and judge it."""
        statuses = one.request.result(WAIT_S)
        assert len(statuses) == len(one.keys)
        hurt = self.spoilt or self.fired() > 0
        for at, (key, status) in enumerate(zip(one.keys, statuses, strict=True)):
            assert status is not Status.TIMEOUT or one.may_time_out, one.request.reasons
            assert status is not Status.CORRUPT or hurt
            if status is Status.OK and key:
                assert key in self.put_once, "a block that nobody put"
            if one.rows is not None and status is Status.OK:
                assert (one.rows[at] == PAYLOADS[key]).all(), "wrong bytes"
            if key in one.must and one.fired == self.fired() and not self.fenced():
                allowed = {Status.OK, Status.TIMEOUT} if one.may_time_out else {Status.OK}
                assert status in allowed, (status, one.request.reasons.get(at))
        for rows in (one.rows, one.given):
            if rows is not None:
                rows[:] = USED
                self.back.append(rows)
        if one.request.kind == "flush" and all(one.keys):
            self.follow()
            done = [k for k, status in zip(one.keys, statuses, strict=True) if status is Status.OK]
            self.durable.update(key for key in done if key in self.there["nvme"])

    def follow(self) -> None:
        """Read the events: what is in each tier now, and in which order blocks left."""
        events = self.store.events(self.events_read, limit=100_000)
        assert events.lost == 0
        self.events_read = events.next_sequence
        for event in events.events:
            if event.kind not in {Kind.STORED, Kind.REMOVED} or event.key is None:
                continue
            there = self.there[event.tier]
            if event.kind is Kind.STORED:
                there[event.key] = event.parent
                continue
            assert event.key in there, "a block left that had not come"
            del there[event.key]
            if event.tier == "nvme":
                self.durable.discard(event.key)
            if not self.fired() and not self.spoilt:
                assert event.key not in there.values(), "a block left before its child"

    def add(self, tier: FaultyTier, fault: Fault) -> None:
        self.faults.append(tier.add(fault))

    def fired(self) -> int:
        """Faults that happened to this store."""
        return sum(fault.fired for fault in self.faults)

    def fenced(self) -> bool:
        return any(level.fence is not None for level in core_of(self.store).levels)

"""What a store has counted, how long its operations took, and the stats that are made of both.

`Metrics` is called once per batch, by any thread; a call takes about a microsecond, and memory is
bounded whatever tenants call themselves. `Metrics.snapshot` lays it beside what the store knows of
itself (`Occupancy`) and returns `StoreStats`, which msgspec writes as JSON.
Prints, logs and serves nothing: `kvbench.store.exposition` does that for Prometheus.

May import: kvbench.store. msgspec, not torch.
"""

import enum
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from kvbench.store.histogram import Histogram, Latencies
from kvbench.store.tier import Fact

WHOLE = ""  # in place of a tier: counted of the store as a whole
OTHER = "other"  # in place of a tenant: all those that came when MOST_TENANTS had their own name
MOST_TENANTS = 256
MOST_OPERATIONS = 64  # times (tiers + 1) histograms of 10 kB
WEAR_BIN_S = 900
DAY_S = 86_400
LEAST_FOR_A_DAY_S = 3_600  # less is no basis for what a day brings


class Counted(enum.IntEnum):
    """What is counted: blocks, and their bytes."""

    HITS = 0  # served from the tier, verified
    MISSES = 1  # looked for and not there
    PUTS = 2  # that callers asked to store
    STORED = 3  # whole and checksummed in the tier, so that they can be found
    WRITTEN = 4  # that the tier was made to write, for whatever reason: a drive's wear
    EVICTIONS = 5  # left the tier to make room
    PROMOTIONS = 6  # copied into the tier from a slower one
    DEMOTIONS = 7  # copied into the tier from a faster one
    VERIFY_FAILURES = 8  # whose bytes were not what was stored
    DEADLINE_MISSES = 9  # answered TIMEOUT
    QUEUE_DROPS = 10  # not moved, since a queue was full
    BUSY = 11  # answered BUSY
    IO_ERRORS = 12  # that the tier could not read, write or forget
    ADMITTED = 13  # that admission let into the tier
    REFUSED_ADMISSION = 14  # that admission kept out of it
    COALESCED_PUTS = 15  # put while another put of the same block was under way
    COALESCED_GETS = 16  # served by a read that was under way for another
    LEASES_EXPIRED = 17  # held by leases whose time was up
    QUARANTINED = 18  # whose slots are not used any more

    @property
    def label(self) -> str:
        """Its name in stats."""
        return self.name.lower()


_NAMES, _WRITTEN = len(Counted), Counted.WRITTEN  # looking them up costs more than counting


class Amount(msgspec.Struct, frozen=True):
    """How many blocks, and their bytes."""

    blocks: int = 0
    size_bytes: int = 0


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A queue of the store, and its limits."""

    depth: int
    limit: int
    size_bytes: int = 0
    limit_bytes: int | None = None


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant has in one tier, and may have."""

    blocks: int
    size_bytes: int
    quota_bytes: int | None = None


class TierOccupancy(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows of one tier."""

    slots: int
    used: int  # slots that hold a block
    block_bytes: int
    states: dict[str, int]  # slots in each state, by its name
    tenants: dict[str, Use]
    fence: str | None = None  # why the tier is not used any more
    facts: dict[str, Fact] = {}


class Occupancy(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows of itself: tiers from the fastest, queues by name."""

    tiers: dict[str, TierOccupancy]
    queues: dict[str, Queue]
    in_flight_bytes: int
    leases: int


class TierStats(msgspec.Struct, frozen=True, kw_only=True):
    """One tier. Counters are by the label of `Counted`, all of them; latencies by operation."""

    slots: int
    used: int
    size_bytes: int  # of the blocks in it
    capacity_bytes: int
    states: dict[str, int]
    fence: str | None
    facts: dict[str, Fact]
    codec_error_bound: float | None  # as its facts tell it: a share of a group's largest value
    counters: dict[str, Amount]
    latencies: dict[str, Latencies]


class TenantTier(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant in one tier, or in the store as a whole."""

    blocks: int
    size_bytes: int
    quota_bytes: int | None
    counters: dict[str, Amount]


class Wear(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes written to durable tiers since the store was opened.

    `recent_bytes` were written in the last `recent_s`, which is a day (less at most 15 minutes)
    once the store is that old. `bytes_per_day` is that rate, or None in the first hour.
    """

    written_bytes: int
    recent_bytes: int
    recent_s: float
    bytes_per_day: float | None


class StoreStats(msgspec.Struct, frozen=True, kw_only=True):
    """A store at one moment. Counters start at zero when it is opened."""

    uptime_s: float
    tiers: dict[str, TierStats]  # from the fastest
    tenants: dict[str, dict[str, TenantTier]]  # by tier, WHOLE among them; "" has no name
    counters: dict[str, Amount]  # of the store as a whole, not the sum of its tiers
    latencies: dict[str, Latencies]  # likewise
    queues: dict[str, Queue]
    in_flight_bytes: int
    leases: int
    wear: Wear


class Metrics:
    """Counters by tier and tenant, and histograms by operation and tier. Thread-safe.

    At most MOST_TENANTS tenants are counted by name, those in `tenants` first (who has a quota,
    say) and then as they come; all others together as OTHER. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        tiers: Sequence[str],
        *,
        durable: Collection[str] = (),
        tenants: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._tiers = (*tiers, WHOLE)
        self._durable = frozenset(durable)
        self._clock = clock
        self._start_s = clock()
        self._tenants = {""}
        self._rows: dict[tuple[str, str], list[int]] = {}
        self._timings: dict[tuple[str, str], Histogram] = {}
        self._operations: set[str] = set()
        self._wear_bins: dict[int, int] = {}
        self._written_bytes = 0
        for tenant in tenants:
            self._named(tenant)
        for tier in self._tiers:  # so that a scraper sees every counter from zero on
            self._row(tier, "")

    def count(
        self, name: Counted, n: int, *, tier: str, tenant: str = "", size_bytes: int = 0
    ) -> None:
        """`n` blocks more, of so many bytes together.

        Raises:
            ValueError: there is no such tier.
        """
        with self._lock:
            row = self._rows.get((tier, tenant)) or self._row(tier, tenant)
            row[name] += n
            row[name - _NAMES] += size_bytes  # the second half of the row
            if name is _WRITTEN and tier in self._durable:
                self._wear(size_bytes)

    def observe(self, operation: str, tier: str, seconds: float, n: int = 1) -> None:
        """`n` operations of this name that took so long each.

        Raises:
            ValueError: there is no such tier, or this would be one operation too many.
        """
        with self._lock:
            timing = self._timings.get((operation, tier)) or self._timing(operation, tier)
            timing.record(seconds, n)

    def snapshot(self, occupancy: Occupancy) -> StoreStats:
        """The stats: what was counted, and what the store says of itself at the same moment."""
        with self._lock:
            uses = {
                (tier, tenant): use
                for tier, each in occupancy.tiers.items()
                for tenant, use in self._folded(each.tenants).items()
            }
            rows = {key: row.copy() for key, row in self._rows.items()}
            timings = {key: timing.copy() for key, timing in self._timings.items()}
            now_s = self._clock()
            wear = self._worn(now_s)
        latencies: dict[str, dict[str, Latencies]] = {tier: {} for tier in self._tiers}
        for (operation, tier), timing in sorted(timings.items()):
            latencies[tier][operation] = timing.latencies()
        return StoreStats(
            uptime_s=now_s - self._start_s,
            tiers={
                tier: _tier_stats(each, _summed(rows, tier), latencies[tier])
                for tier, each in occupancy.tiers.items()
            },
            tenants=_tenants(rows, uses),
            counters=_summed(rows, WHOLE),
            latencies=latencies[WHOLE],
            queues=occupancy.queues,
            in_flight_bytes=occupancy.in_flight_bytes,
            leases=occupancy.leases,
            wear=wear,
        )

    def _row(self, tier: str, tenant: str) -> list[int]:
        """The counters of a tenant who may have none yet: blocks, then bytes."""
        if tier not in self._tiers:
            raise ValueError(f"nothing is counted of a tier {tier!r}, only of {self._tiers}")
        return self._rows.setdefault((tier, self._named(tenant)), [0] * (2 * _NAMES))

    def _named(self, tenant: str) -> str:
        if tenant in self._tenants:
            return tenant
        if len(self._tenants) > MOST_TENANTS:  # who has no name is one of them
            return OTHER
        self._tenants.add(tenant)
        return tenant

    def _timing(self, operation: str, tier: str) -> Histogram:
        if tier not in self._tiers:
            raise ValueError(f"nothing is timed of a tier {tier!r}, only of {self._tiers}")
        if len(self._operations | {operation}) > MOST_OPERATIONS:
            raise ValueError(f"{MOST_OPERATIONS} operations are timed, {operation!r} is one more")
        self._operations.add(operation)
        return self._timings.setdefault((operation, tier), Histogram())

    def _wear(self, size_bytes: int) -> None:
        now = int((self._clock() - self._start_s) // WEAR_BIN_S)
        if now not in self._wear_bins:
            oldest = now - DAY_S // WEAR_BIN_S
            self._wear_bins = {at: n for at, n in self._wear_bins.items() if at > oldest}
            self._wear_bins[now] = 0
        self._wear_bins[now] += size_bytes
        self._written_bytes += size_bytes

    def _worn(self, now_s: float) -> Wear:
        age_s = now_s - self._start_s
        first = max(0, int(age_s // WEAR_BIN_S) - DAY_S // WEAR_BIN_S + 1)
        recent_bytes = sum(n for at, n in self._wear_bins.items() if at >= first)
        recent_s = age_s - first * WEAR_BIN_S
        return Wear(
            written_bytes=self._written_bytes,
            recent_bytes=recent_bytes,
            recent_s=recent_s,
            bytes_per_day=(
                recent_bytes * DAY_S / recent_s if recent_s >= LEAST_FOR_A_DAY_S else None
            ),
        )

    def _folded(self, tenants: Mapping[str, Use]) -> dict[str, Use]:
        """Those without a name of their own together, without a quota: it is each one's own."""
        found: dict[str, Use] = {}
        for tenant, use in tenants.items():
            name = self._named(tenant)
            before = found.get(name)
            found[name] = use
            if name == OTHER:
                found[name] = Use(
                    blocks=use.blocks + (before.blocks if before else 0),
                    size_bytes=use.size_bytes + (before.size_bytes if before else 0),
                )
        return found


def _counters(row: Sequence[int]) -> dict[str, Amount]:
    return {name.label: Amount(row[name], row[name - _NAMES]) for name in Counted}


def _summed(rows: Mapping[tuple[str, str], list[int]], tier: str) -> dict[str, Amount]:
    """The counters of all tenants of a tier together."""
    mine = [row for (each, _), row in rows.items() if each == tier]
    return _counters([sum(column) for column in zip(*mine, strict=True)])


def _tier_stats(
    each: TierOccupancy, counters: dict[str, Amount], latencies: dict[str, Latencies]
) -> TierStats:
    bound = each.facts.get("codec_error_bound")
    return TierStats(
        slots=each.slots,
        used=each.used,
        size_bytes=each.used * each.block_bytes,
        capacity_bytes=each.slots * each.block_bytes,
        states=each.states,
        fence=each.fence,
        facts=each.facts,
        codec_error_bound=float(bound) if isinstance(bound, int | float) else None,
        counters=counters,
        latencies=latencies,
    )


def _tenants(
    rows: Mapping[tuple[str, str], list[int]], uses: Mapping[tuple[str, str], Use]
) -> dict[str, dict[str, TenantTier]]:
    """By tenant and tier: whoever was counted or has blocks."""
    found: dict[str, dict[str, TenantTier]] = {}
    for tier, tenant in dict.fromkeys([*rows, *uses]):
        use = uses.get((tier, tenant))
        found.setdefault(tenant, {})[tier] = TenantTier(
            blocks=use.blocks if use else 0,
            size_bytes=use.size_bytes if use else 0,
            quota_bytes=use.quota_bytes if use else None,
            counters=_counters(rows.get((tier, tenant), [0] * (2 * _NAMES))),
        )
    return found

"""What a store counts and times, and the stats that come of it."""

import sys
import threading
from collections.abc import Callable, ItemsView, Iterable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.store.histogram import BUCKETS, Histogram, Latencies, cumulative
from kvbench.store.metrics import (
    MOST_OPERATIONS,
    MOST_TENANTS,
    OTHER,
    WHOLE,
    Amount,
    Counted,
    Metrics,
    Occupancy,
    Queue,
    StoreStats,
    TierOccupancy,
    Use,
)

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def tier(**tenants: Use) -> TierOccupancy:
    return TierOccupancy(
        slots=10, used=4, block_bytes=512, states={"FREE": 6, "READY": 4}, tenants=tenants
    )


def occupancy(**tenants: Use) -> Occupancy:
    return Occupancy(
        tiers={"dram": tier(**tenants), "nvme": tier()},
        queues={"write-behind": Queue(depth=2, limit=9, size_bytes=1024, limit_bytes=4096)},
        in_flight_bytes=512,
        leases=3,
    )


def metrics(clock: Clock | None = None, tenants: Iterable[str] = ()) -> Metrics:
    return Metrics(["dram", "nvme"], durable=["nvme"], tenants=tenants, clock=clock or Clock())


# ---------------------------------------------------------------- counters


def test_blocks_and_bytes_are_counted_by_tier_and_by_tenant() -> None:
    counted = metrics()
    counted.count(Counted.HITS, 3, tier="dram", tenant="a", size_bytes=30)
    counted.count(Counted.HITS, 4, tier="dram", tenant="b", size_bytes=40)
    counted.count(Counted.HITS, 1, tier="dram", tenant="a", size_bytes=10)
    counted.count(Counted.HITS, 9, tier="nvme", tenant="a", size_bytes=90)
    counted.count(Counted.MISSES, 5, tier=WHOLE, tenant="a")
    stats = counted.snapshot(occupancy())
    assert stats.tiers["dram"].counters["hits"] == Amount(8, 80)
    assert stats.tiers["nvme"].counters["hits"] == Amount(9, 90)
    assert stats.tenants["a"]["dram"].counters["hits"] == Amount(4, 40)
    assert stats.tenants["a"]["nvme"].counters["hits"] == Amount(9, 90)
    assert stats.tenants["b"]["dram"].counters["hits"] == Amount(4, 40)
    assert stats.tenants["a"][WHOLE].counters["misses"] == Amount(5, 0)
    assert stats.counters["misses"] == Amount(5, 0)
    assert stats.counters["hits"] == Amount(0, 0), "the whole store is not the sum of its tiers"


def test_what_is_counted_under_one_name_shows_under_no_other() -> None:
    counted = metrics()
    for n, name in enumerate(Counted, 1):
        counted.count(name, n, tier="dram", size_bytes=1000 * n)
    found = counted.snapshot(occupancy()).tiers["dram"].counters
    assert found == {name.label: Amount(n, 1000 * n) for n, name in enumerate(Counted, 1)}


def test_every_counter_of_every_tier_is_there_from_the_start() -> None:
    stats = metrics().snapshot(occupancy())
    zeros = {name.label: Amount(0, 0) for name in Counted}
    assert stats.tiers["dram"].counters == stats.tiers["nvme"].counters == zeros
    assert stats.counters == zeros
    assert set(stats.tenants[""]) == {"dram", "nvme", WHOLE}


def test_tenants_beyond_the_limit_are_counted_together_and_nothing_is_lost() -> None:
    counted = metrics(tenants=["paying"])
    for n in range(1000):
        counted.count(Counted.PUTS, 1, tier="dram", tenant=f"t{n}", size_bytes=7)
    counted.count(Counted.PUTS, 1, tier="dram", tenant="paying")
    counted.count(Counted.PUTS, 1, tier="dram", tenant="t0")
    stats = counted.snapshot(occupancy())
    named = [f"t{n}" for n in range(MOST_TENANTS - 1)]
    assert set(stats.tenants) == {"", OTHER, "paying", *named}
    assert stats.tenants[OTHER]["dram"].counters["puts"].blocks == 1000 - len(named)
    assert stats.tenants["paying"]["dram"].counters["puts"].blocks == 1
    assert stats.tenants["t0"]["dram"].counters["puts"].blocks == 2
    assert stats.tiers["dram"].counters["puts"] == Amount(1002, 7000)


def test_blocks_of_tenants_beyond_the_limit_are_summed_with_their_counters() -> None:
    counted = metrics(tenants=[f"t{n}" for n in range(MOST_TENANTS)])
    held = Use(blocks=2, size_bytes=1024, quota_bytes=2048)
    stats = counted.snapshot(occupancy(t3=held, x=held, y=held))
    assert "x" not in stats.tenants
    three, others = stats.tenants["t3"]["dram"], stats.tenants[OTHER]["dram"]
    assert (three.blocks, three.size_bytes, three.quota_bytes) == (2, 1024, 2048)
    assert (others.blocks, others.size_bytes, others.quota_bytes) == (4, 2048, None)


def test_a_tenant_who_only_has_blocks_from_before_is_listed_with_them() -> None:
    stats = metrics().snapshot(occupancy(old=Use(blocks=1, size_bytes=512)))
    assert stats.tenants["old"]["dram"].blocks == 1
    assert stats.tenants["old"]["dram"].counters["hits"] == Amount(0, 0)
    assert set(stats.tenants["old"]) == {"dram"}


def test_a_tier_that_the_store_does_not_have_is_refused() -> None:
    counted = metrics()
    with pytest.raises(ValueError, match="nothing is counted of a tier 'tape'"):
        counted.count(Counted.HITS, 1, tier="tape")
    with pytest.raises(ValueError, match="nothing is timed of a tier 'tape'"):
        counted.observe("read", "tape", 0.1)


class Interrupted(int):
    """A number to whose addition another thread comes in between, if nothing keeps it out."""

    meanwhile: threading.Thread

    def __radd__(self, other: int) -> int:
        self.meanwhile.start()
        self.meanwhile.join(0.05)
        return int(other) + int(self)


@pytest.mark.parametrize("what", ["blocks", "bytes", "operations"])
def test_a_thread_that_counts_while_another_does_loses_nothing(what: str) -> None:
    counted = metrics()

    def add(n: int) -> None:
        if what == "blocks":
            counted.count(Counted.HITS, n, tier="dram")
        elif what == "bytes":
            counted.count(Counted.HITS, 0, tier="dram", size_bytes=n)
        else:
            counted.observe("read", "dram", 0.001, n)

    add(1)
    number = Interrupted(10)
    number.meanwhile = threading.Thread(target=add, args=(100,))
    add(number)
    number.meanwhile.join()
    dram = counted.snapshot(occupancy()).tiers["dram"]
    if what == "operations":
        assert dram.latencies["read"].count == 111
    else:
        assert dram.counters["hits"] == (Amount(111, 0) if what == "blocks" else Amount(0, 111))


class Meanwhile(dict[str, TierOccupancy]):
    """Tiers of an occupancy that another thread counts beside; it is done at the second look."""

    def __init__(self, tiers: dict[str, TierOccupancy], work: Callable[[], None]) -> None:
        super().__init__(tiers)
        self._thread = threading.Thread(target=work)

    def items(self) -> ItemsView[str, TierOccupancy]:  # type: ignore[override]
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._thread.join()
        return super().items()


def test_a_snapshot_is_of_one_moment_whatever_is_counted_meanwhile() -> None:
    counted = metrics()
    counted.count(Counted.HITS, 1, tier="dram")
    counted.observe("read", "dram", 0.1)

    def work() -> None:
        counted.count(Counted.HITS, 1, tier="dram")
        counted.observe("read", "dram", 0.9)

    said = occupancy()
    stats = counted.snapshot(msgspec.structs.replace(said, tiers=Meanwhile(dict(said.tiers), work)))
    for each in (stats.tiers["dram"], stats.tenants[""]["dram"]):
        assert each.counters["hits"].blocks == 1
    assert stats.tiers["dram"].latencies["read"].max_s == 0.1
    assert counted.snapshot(said).tiers["dram"].latencies["read"].max_s == 0.9


def test_every_snapshot_adds_up_while_operations_end() -> None:
    counted = metrics()
    counted.observe("read", "dram", 1.0)
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            counted.observe("read", "dram", 1.0)

    interval_s = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        seen = [counted.snapshot(occupancy()).tiers["dram"].latencies["read"] for _ in range(30)]
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval_s)
    for each in seen:
        assert each.count == sum(each.buckets.values()) == each.sum_s
    assert seen[0].count < seen[-1].count, "they did end meanwhile"


# ---------------------------------------------------------------- latencies


def of(seconds: Iterable[float]) -> Latencies:
    histogram = Histogram()
    for each in seconds:
        histogram.record(each)
    return histogram.latencies()


durations_s = st.floats(1e-9, 4000.0)


@given(st.lists(durations_s, min_size=1, max_size=60))
def test_a_percentile_is_never_below_the_true_one_and_at_most_a_thirtieth_above(
    seconds: list[float],
) -> None:
    found = of(seconds)
    true_s = np.percentile(seconds, [50, 95, 99], method="inverted_cdf")
    for mine_s, each_s in zip((found.p50_s, found.p95_s, found.p99_s), true_s, strict=True):
        rounding_s = 0.5e-9 + each_s * 1e-12
        assert each_s - rounding_s <= mine_s <= each_s * (1 + 1 / 32) + 1e-9 + rounding_s
    assert found.count == len(seconds)
    assert found.max_s == max(seconds)
    assert found.mean_s == pytest.approx(np.mean(seconds))


def test_n_operations_of_one_duration_count_n_times_and_none_leave_no_trace() -> None:
    histogram = Histogram()
    histogram.record(0.25, 3)
    histogram.record(100.0, 0)
    found = histogram.latencies()
    assert (found.count, found.sum_s, found.max_s) == (3, 0.75, 0.25)
    assert found.p99_s == 0.25


def test_durations_of_nothing_and_of_hours_are_kept_and_told_by_the_longest() -> None:
    found = of([0.0, -1e-9, 1e6])
    assert found.count == 3
    assert (found.p50_s, found.p99_s, found.max_s) == (1e-9, 1e6, 1e6)
    assert max(found.buckets) == BUCKETS - 1


@given(st.lists(durations_s, max_size=30), st.lists(durations_s, max_size=30))
def test_histograms_of_two_processes_merge_without_loss(
    first: list[float], second: list[float]
) -> None:
    merged = Histogram()
    for part in (first, second):
        merged.add(msgspec.json.decode(msgspec.json.encode(of(part)), type=Latencies))
    together = of([*first, *second])
    found = merged.latencies()
    assert found.buckets == together.buckets
    assert found.sum_s == pytest.approx(together.sum_s)
    assert (found.p50_s, found.p99_s) == (together.p50_s, together.p99_s)
    assert (found.count, found.max_s) == (together.count, together.max_s)


@given(st.lists(st.integers(1, 2**37), max_size=40))
def test_counts_up_to_an_edge_are_exact_to_the_nanosecond(ns: list[int]) -> None:
    edges_ns = [2**power for power in range(10, 37)]
    values = [*ns, *edges_ns, *(edge + 1 for edge in edges_ns)]
    found = cumulative(of(each / 1e9 for each in values))
    assert [edge_s for edge_s, _ in found] == [edge / 1e9 for edge in edges_ns]
    assert [n for _, n in found] == [sum(each <= edge for each in values) for edge in edges_ns]


def test_operations_are_timed_by_name_and_tier() -> None:
    counted = metrics()
    counted.observe("read", "nvme", 0.002, 5)
    counted.observe("read", "dram", 0.001)
    counted.observe("get", WHOLE, 0.004)
    stats = counted.snapshot(occupancy())
    assert {name: each.count for name, each in stats.tiers["nvme"].latencies.items()} == {"read": 5}
    assert stats.tiers["nvme"].latencies["read"].max_s == 0.002
    assert stats.tiers["dram"].latencies["read"].count == 1
    assert {name: each.count for name, each in stats.latencies.items()} == {"get": 1}


def test_so_many_operations_are_timed_and_one_more_is_an_error() -> None:
    counted = metrics()
    for n in range(MOST_OPERATIONS):
        counted.observe(f"o{n}", "dram", 0.1)
    counted.observe("o0", "nvme", 0.1)
    with pytest.raises(ValueError, match=f"{MOST_OPERATIONS} operations are timed, 'one' is one"):
        counted.observe("one", "dram", 0.1)


# ---------------------------------------------------------------- the rest of the stats


def test_what_the_store_says_of_itself_is_in_the_stats_as_it_was_said() -> None:
    clock = Clock()
    counted = metrics(clock)
    clock.now_s += 12.5
    said = occupancy(a=Use(blocks=3, size_bytes=1536, quota_bytes=4096))
    fenced = msgspec.structs.replace(
        said.tiers["nvme"], fence="write: EIO", facts={"engine": "posix", "codec_error_bound": 0.5}
    )
    said = msgspec.structs.replace(said, tiers={**said.tiers, "nvme": fenced})
    stats = counted.snapshot(said)
    assert stats.uptime_s == 12.5
    assert list(stats.tiers) == ["dram", "nvme"], "from the fastest"
    nvme = stats.tiers["nvme"]
    assert (nvme.slots, nvme.used, nvme.size_bytes, nvme.capacity_bytes) == (10, 4, 2048, 5120)
    assert nvme.states == {"FREE": 6, "READY": 4}
    assert (nvme.fence, nvme.facts["engine"]) == ("write: EIO", "posix")
    assert (nvme.codec_error_bound, stats.tiers["dram"].codec_error_bound) == (0.5, None)
    held = stats.tenants["a"]["dram"]
    assert (held.blocks, held.size_bytes, held.quota_bytes) == (3, 1536, 4096)
    assert (stats.queues, stats.in_flight_bytes, stats.leases) == (said.queues, 512, 3)


def test_stats_survive_json() -> None:
    counted = metrics()
    counted.count(Counted.HITS, 3, tier="dram", tenant='a"\n', size_bytes=30)
    counted.observe("get", WHOLE, 0.004)
    stats = counted.snapshot(occupancy(a=Use(blocks=3, size_bytes=1536)))
    assert msgspec.json.decode(msgspec.json.encode(stats), type=StoreStats) == stats


def written(counted: Metrics, size_bytes: int, tier: str = "nvme") -> None:
    counted.count(Counted.WRITTEN, 1, tier=tier, size_bytes=size_bytes)


def test_only_what_durable_tiers_wrote_is_wear() -> None:
    counted = metrics()
    written(counted, 100)
    written(counted, 1000, tier="dram")
    counted.count(Counted.STORED, 1, tier="nvme", size_bytes=10_000)
    written(counted, 7)
    assert counted.snapshot(occupancy()).wear.written_bytes == 107


def test_bytes_a_day_are_told_of_the_time_that_has_passed_and_not_in_the_first_hour() -> None:
    clock = Clock()
    counted = metrics(clock)
    written(counted, 600)
    clock.now_s += HOUR_S - 1
    wear = counted.snapshot(occupancy()).wear
    assert (wear.recent_bytes, wear.recent_s, wear.bytes_per_day) == (600, HOUR_S - 1, None)
    clock.now_s += 5 * HOUR_S + 1
    wear = counted.snapshot(occupancy()).wear
    assert (wear.recent_bytes, wear.recent_s) == (600, 6 * HOUR_S)
    assert wear.bytes_per_day == pytest.approx(2400)


def test_what_was_written_more_than_a_day_ago_is_wear_but_not_recent() -> None:
    clock = Clock()
    counted = metrics(clock)
    written(counted, 10**6)
    for _ in range(100):
        clock.now_s += HOUR_S
        written(counted, 100)
    wear = counted.snapshot(occupancy()).wear
    assert wear.written_bytes == 10**6 + 100 * 100
    assert wear.recent_bytes == 24 * 100
    assert DAY_S - 900 <= wear.recent_s <= DAY_S
    assert wear.bytes_per_day == pytest.approx(2400, rel=0.02)
    clock.now_s += 2 * DAY_S
    assert counted.snapshot(occupancy()).wear.recent_bytes == 0

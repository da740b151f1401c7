"""Prometheus reads the same numbers as the stats hold."""

import math
import socket
import urllib.request
from collections.abc import Iterator

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from kvbench.errors import UsageError
from kvbench.store.exposition import exposition, serve
from kvbench.store.metrics import (
    MOST_TENANTS,
    WHOLE,
    Counted,
    Metrics,
    Occupancy,
    Queue,
    StoreStats,
    TierOccupancy,
    Use,
)

STRANGE = 'ten"ant\\ of\nlines, {é}'


def filled() -> tuple[Metrics, Occupancy]:
    metrics = Metrics(["dram", "nvme"], durable=["nvme"])
    for n, name in enumerate(Counted, 1):
        metrics.count(name, n, tier="dram", tenant=STRANGE, size_bytes=1000 * n)
        metrics.count(name, 2 * n, tier="nvme", size_bytes=3000 * n)
    metrics.count(Counted.MISSES, 5, tier=WHOLE, tenant=STRANGE)
    for ms in range(1, 101):
        metrics.observe("read", "nvme", ms / 1000, 2)
    metrics.observe("get", WHOLE, 1000.0)
    tier = TierOccupancy(
        slots=10,
        used=4,
        block_bytes=512,
        states={"FREE": 6, "READY": 4},
        tenants={STRANGE: Use(blocks=3, size_bytes=1536, quota_bytes=4096)},
        facts={"codec_error_bound": 0.25},
    )
    fenced = msgspec.structs.replace(tier, fence="EIO", tenants={}, facts={})
    occupancy = Occupancy(
        tiers={"dram": tier, "nvme": fenced},
        queues={
            "write-behind": Queue(depth=2, limit=9, size_bytes=1024, limit_bytes=4096),
            "nvme-read": Queue(depth=1, limit=16),
        },
        in_flight_bytes=512,
        leases=3,
    )
    return metrics, occupancy


@pytest.fixture
def stats() -> StoreStats:
    metrics, occupancy = filled()
    return metrics.snapshot(occupancy)


def families(text: str) -> dict[str, Metric]:
    found = list(text_string_to_metric_families(text))
    assert len({each.name for each in found}) == len(found), "a family is told once"
    return {each.name: each for each in found}


def values(family: Metric, sample: str = "") -> dict[tuple[str, ...], float]:
    """By the values of the labels, in the order of their names."""
    found = [
        (tuple(value for _, value in sorted(each.labels.items())), each.value)
        for each in family.samples
        if each.name == (sample or family.name)
    ]
    assert len(dict(found)) == len(found), "a series is told once"
    return dict(found)


def test_every_counter_is_told_by_tier_and_tenant_in_blocks_and_in_bytes(
    stats: StoreStats,
) -> None:
    told = families(exposition(stats))
    for n, name in enumerate(Counted, 1):
        blocks = told[f"kvbench_store_{name.label}"]
        size = told[f"kvbench_store_{name.label}_bytes"]
        assert (blocks.type, size.type) == ("counter", "counter")
        by_block = values(blocks, f"kvbench_store_{name.label}_total")
        by_size = values(size, f"kvbench_store_{name.label}_bytes_total")
        assert by_block[STRANGE, "dram"] == n
        assert by_size[STRANGE, "dram"] == 1000 * n
        assert by_block["", "nvme"] == 2 * n
        assert by_size["", "nvme"] == 3000 * n
        assert by_block["", "dram"] == 0, "a counter begins at zero, not when it first counts"
    assert values(told["kvbench_store_misses"], "kvbench_store_misses_total")[STRANGE, ""] == 5


def test_latencies_are_histograms_in_seconds_whose_buckets_hold_what_took_so_long(
    stats: StoreStats,
) -> None:
    family = families(exposition(stats))["kvbench_store_operation_duration_seconds"]
    assert family.type == "histogram"
    buckets = [
        (float(each.labels["le"]), each.value)
        for each in family.samples
        if each.name.endswith("_bucket") and each.labels["operation"] == "read"
    ]
    assert len(buckets) > 20
    assert math.isinf(max(edge_s for edge_s, _ in buckets))
    for edge_s, n in buckets:
        assert n == 2 * sum(ms / 1000 <= edge_s for ms in range(1, 101)), edge_s
    name = family.name
    assert values(family, f"{name}_count") == {("read", "nvme"): 200, ("get", ""): 1}
    sums = values(family, f"{name}_sum")
    assert sums == pytest.approx({("read", "nvme"): 10.1, ("get", ""): 1000.0})


def test_what_a_tier_holds_and_whether_it_is_fenced_are_gauges(stats: StoreStats) -> None:
    told = families(exposition(stats))
    expected: dict[str, dict[tuple[str, ...], float]] = {
        "slots": {("dram",): 10, ("nvme",): 10},
        "used_slots": {("dram",): 4, ("nvme",): 4},
        "used_bytes": {("dram",): 2048, ("nvme",): 2048},
        "capacity_bytes": {("dram",): 5120, ("nvme",): 5120},
        "fenced": {("dram",): 0, ("nvme",): 1},
        "codec_error_bound": {("dram",): 0.25},
        "slot_states": {(state, tier): n for state, n in (("FREE", 6), ("READY", 4))
                        for tier in ("dram", "nvme")},
        "queue_depth": {("write-behind",): 2, ("nvme-read",): 1},
        "queue_limit": {("write-behind",): 9, ("nvme-read",): 16},
        "queue_bytes": {("write-behind",): 1024, ("nvme-read",): 0},
        "queue_limit_bytes": {("write-behind",): 4096},
        "tenant_quota_bytes": {(STRANGE, "dram"): 4096},
        "in_flight_bytes": {(): 512},
        "leases": {(): 3},
        "uptime_seconds": {(): stats.uptime_s},
        "wear_recent_bytes": {(): stats.wear.recent_bytes},
    }  # fmt: skip
    for name, wanted in expected.items():
        family = told[f"kvbench_store_{name}"]
        assert family.type == "gauge"
        assert values(family) == wanted, name
    assert values(told["kvbench_store_tenant_blocks"])[STRANGE, "dram"] == 3
    assert values(told["kvbench_store_tenant_bytes"])[STRANGE, "dram"] == 1536
    wear = told["kvbench_store_wear_bytes"]
    assert values(wear, "kvbench_store_wear_bytes_total") == {(): stats.wear.written_bytes}
    assert stats.wear.written_bytes == 3000 * (Counted.WRITTEN + 1)


def test_of_hundreds_of_tenants_only_what_they_did_is_told() -> None:
    metrics, occupancy = filled()
    for n in range(2 * MOST_TENANTS):
        metrics.count(Counted.HITS, 1, tier="dram", tenant=f"t{n}")
    told = families(exposition(metrics.snapshot(occupancy)))
    hits = values(told["kvbench_store_hits"], "kvbench_store_hits_total")
    assert len([key for key in hits if key[0].startswith("t")]) == MOST_TENANTS
    misses = values(told["kvbench_store_misses"], "kvbench_store_misses_total")
    assert not [key for key in misses if key[0].startswith("t") and key[0] != STRANGE]


# ---------------------------------------------------------------- on a port


def scraped(port: int) -> dict[str, Metric]:
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return families(answer.read().decode())


def hits(port: int) -> float:
    told = scraped(port)["kvbench_store_hits"]
    return values(told, "kvbench_store_hits_total")["", "dram"]


def test_each_scrape_reads_the_stats_anew_and_only_a_scrape_does() -> None:
    metrics, occupancy = filled()
    snapshots: list[StoreStats] = []

    def snapshot() -> StoreStats:
        snapshots.append(metrics.snapshot(occupancy))
        return snapshots[-1]

    with serve(snapshot, 0) as server:
        assert snapshots == []
        assert hits(server.port) == 0
        metrics.count(Counted.HITS, 7, tier="dram")
        assert hits(server.port) == 7
    assert len(snapshots) == 2


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_port_that_is_taken_is_refused_in_one_line(taken: int, stats: StoreStats) -> None:
    message = rf"^cannot serve metrics on 127\.0\.0\.1:{taken}: .*in use; choose another port.*$"
    with pytest.raises(UsageError, match=message):
        serve(lambda: stats, taken)


def test_a_closed_server_gives_its_port_back_and_may_be_closed_again(stats: StoreStats) -> None:
    server = serve(lambda: stats, 0)
    server.close()
    server.close()
    with pytest.raises(OSError, match="refused"):
        scraped(server.port)
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_only_this_machine_can_read_the_stats_unless_told_otherwise(stats: StoreStats) -> None:
    with serve(lambda: stats, 0) as server, socket.create_server(("127.0.0.2", server.port)):
        pass  # had it been opened on all addresses, this one would be taken
    wide = serve(lambda: stats, 0, host="0.0.0.0")
    with wide, pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.2", wide.port))

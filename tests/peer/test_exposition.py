"""Prometheus reads of a peer what its status says."""

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvbench.errors import UsageError
from kvbench.peer.exposition import exposition, serve
from kvbench.peer.holder import HolderCounts
from kvbench.peer.status import Door, Known, ServiceStatus, TierHolds
from kvbench.peer.traffic import FetchStats, PathStats, PeerTraffic
from kvbench.store.histogram import Histogram
from kvbench.store.metrics import WHOLE, Metrics, Occupancy

STRANGE = 'b"\\\n{é}'
OTHER = "0123456789abcdef" * 2


def filled() -> ServiceStatus:
    pulls = Histogram()
    pulls.record(0.002, 3)
    line = PeerTraffic(
        name=STRANGE,
        breaker="open",
        opened=2,
        channels=1,
        reasons={"late": 5},
        paths={"shm": PathStats(blocks=7, size_bytes=7000, pulls=pulls.latencies())},
        expected={},
    )
    return ServiceStatus(
        id="ab" * 16,
        name="a",
        cluster="c",
        version="1",
        protocol=1,
        epoch=3,
        uptime_s=12.5,
        draining=True,
        endpoints={},
        namespaces=[],
        block_bytes=1000,
        parts=1,
        tiers={"dram": TierHolds(blocks=1, size_bytes=1000, capacity_bytes=9000, fence=None)},
        published=41,
        entries=40,
        publishing={"deltas": 41, "failures": 1},
        repairs={"gaps": 6},
        members={"joined": 8, "refused": 9},
        peers=[
            Known(
                id=OTHER,
                name=STRANGE,
                epoch=4,
                draining=False,
                endpoints={},
                entries=11,
                left_out=12,
                sequence=13,
            )
        ],
        incoming=FetchStats(
            asked=20,
            arrived=15,
            arrived_bytes=15_000,
            reasons={"late": 5, "gone": 0},
            fetches=pulls.latencies(),
            peers={OTHER: line},
        ),
        outgoing=HolderCounts(asks=30, sent_blocks=31, gone_blocks=32, wrong_proof=33),
        doors={"tcp": Door(endpoint="x", accepted=50, open=2, dropped={"refused": 3})},
    )


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and the values of the labels, sorted."""
    return {
        (each.name, tuple(sorted(each.labels.values()))): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("info", ("ab" * 16, "a", "c", "1"), 1),
        ("draining", (), 1),
        ("uptime_seconds", (), 12.5),
        ("others", (), 1),
        ("members_total", ("refused",), 9),
        ("directory_entries", (STRANGE, OTHER[:8]), 11),
        ("directory_left_out", (STRANGE, OTHER[:8]), 12),
        ("directory_sequence", (STRANGE, OTHER[:8]), 13),
        ("published_sequence", (), 41),
        ("publishing_total", ("failures",), 1),
        ("repairs_total", ("gaps",), 6),
        ("fetch_asked_blocks_total", (), 20),
        ("fetch_arrived_bytes_total", (), 15_000),
        ("fetch_missed_blocks_total", ("late",), 5),
        ("fetch_duration_seconds_count", (), 3),
        ("breaker_open", (STRANGE, OTHER[:8]), 1),
        ("breaker_opened_total", (STRANGE, OTHER[:8]), 2),
        ("missed_blocks_total", (STRANGE, OTHER[:8], "late"), 5),
        ("received_blocks_total", (STRANGE, OTHER[:8], "shm"), 7),
        ("received_bytes_total", (STRANGE, OTHER[:8], "shm"), 7000),
        ("pull_duration_seconds_sum", (STRANGE, OTHER[:8], "shm"), 0.006),
        ("serve_asks_total", (), 30),
        ("serve_sent_blocks_total", (), 31),
        ("serve_answered_blocks_total", ("gone",), 32),
        ("serve_refused_total", ("wrong proof",), 33),
        ("connections", ("tcp",), 2),
        ("accepted_total", ("tcp",), 50),
        ("dropped_total", ("tcp", "refused"), 3),
    ],
)
def test_a_scraper_reads_what_the_status_says(
    name: str, labels: tuple[str, ...], value: float
) -> None:
    found = samples(exposition(filled()))
    assert found[f"kvbench_peer_{name}", tuple(sorted(labels))] == pytest.approx(value)


def test_the_stats_of_the_store_are_there_too() -> None:
    metrics = Metrics(["dram"])
    metrics.observe("get", WHOLE, 0.001)
    stats = metrics.snapshot(Occupancy(tiers={}, queues={}, in_flight_bytes=0, leases=4))
    found = samples(exposition(filled(), stats))
    assert found["kvbench_store_leases", ()] == 4
    assert found["kvbench_store_operation_duration_seconds_count", (WHOLE, "get")] == 1
    assert found["kvbench_peer_others", ()] == 1


def test_a_port_answers_scrapes_on_this_machine_until_it_is_closed() -> None:
    with serve(filled, lambda: None, 0) as server:
        where = f"http://127.0.0.1:{server.port}/metrics"
        with urllib.request.urlopen(where, timeout=20) as answer:
            assert b"kvbench_peer_draining 1.0" in answer.read()
        with pytest.raises(UsageError, match="choose another port, or 0 for any"):
            serve(filled, lambda: None, server.port)
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)

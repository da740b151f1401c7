"""The stats of a store in Prometheus' text format, as a string or on a port.

Names follow Prometheus' conventions: base units, `_total` for what only grows, `_bucket`, `_sum`
and `_count` of histograms in seconds. Facts and the reason of a fence are words, which may be
many: they are in the stats and in the log, and only whether a tier is fenced is here. A scrape
reads the stats anew. Import it where it is needed: a store that nobody scrapes does without.

May import: kvbench.errors, kvbench.store. prometheus_client, not torch.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Self
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kvbench.errors import UsageError
from kvbench.store.histogram import Latencies, cumulative
from kvbench.store.metrics import WHOLE, Counted, StoreStats

PREFIX = "kvbench_store"
_JOIN_S = 5.0


def exposition(stats: StoreStats) -> str:
    """The stats as text, as a scraper would read them."""
    return generate_latest(_registry(lambda: stats)).decode()


def serve(snapshot: Callable[[], StoreStats], port: int, host: str = "127.0.0.1") -> "Server":
    """Answer scrapes of http://host:port/metrics, each with a fresh snapshot, until closed.

    Port 0 is any free one. Whoever can reach the port can read how much each tenant holds, by
    name: hence only this machine unless another host is named.

    Raises:
        UsageError: the port cannot be opened.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=_registry(snapshot))
    except OSError as error:
        raise UsageError(
            f"cannot serve metrics on {host}:{port}: {error}; choose another port, or 0 for any"
        ) from None
    return Server(server, thread)


class Server:
    """A port that answers scrapes. `port` is its number."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port: int = server.server_port

    def close(self) -> None:
        """Answer no more; once more is no error."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_JOIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Stats(Collector):
    def __init__(self, snapshot: Callable[[], StoreStats]) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        """Nothing: else the registry would take a snapshot to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        stats = self._snapshot()
        yield from _counters(stats)
        yield _durations(stats)
        yield from _tiers(stats)
        yield from _tenants(stats)
        yield from _store(stats)


def _registry(snapshot: Callable[[], StoreStats]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Stats(snapshot))
    return registry


def _counters(stats: StoreStats) -> Iterator[Metric]:
    """By tier and tenant. Of tenants with a name only what is not zero: they may be hundreds."""
    for name in Counted:
        label = name.label
        said = label.replace("_", " ")
        blocks = CounterMetricFamily(
            f"{PREFIX}_{label}", f"Blocks: {said}.", labels=["tier", "tenant"]
        )
        size = CounterMetricFamily(
            f"{PREFIX}_{label}_bytes", f"Bytes of blocks: {said}.", labels=["tier", "tenant"]
        )
        for tenant, tiers in stats.tenants.items():
            for tier, each in tiers.items():
                amount = each.counters[label]
                if amount.blocks or amount.size_bytes or not tenant:
                    blocks.add_metric([tier, tenant], amount.blocks)
                    size.add_metric([tier, tenant], amount.size_bytes)
        yield blocks
        yield size


def _durations(stats: StoreStats) -> Metric:
    family = HistogramMetricFamily(
        f"{PREFIX}_operation_duration_seconds",
        "How long operations took; without a tier, of the store as a whole.",
        labels=["operation", "tier"],
    )
    by_tier: Mapping[str, dict[str, Latencies]] = {
        **{tier: each.latencies for tier, each in stats.tiers.items()},
        WHOLE: stats.latencies,
    }
    for tier, operations in by_tier.items():
        for operation, latencies in operations.items():
            buckets = [(repr(edge_s), n) for edge_s, n in cumulative(latencies)]
            buckets.append(("+Inf", latencies.count))
            family.add_metric([operation, tier], buckets, latencies.sum_s)
    return family


def _tiers(stats: StoreStats) -> Iterator[Metric]:
    tiers = stats.tiers
    for name, text, values in (
        ("slots", "Blocks that the tier has room for.", {k: t.slots for k, t in tiers.items()}),
        ("used_slots", "Slots that hold a block.", {k: t.used for k, t in tiers.items()}),
        ("used_bytes", "Bytes of its blocks.", {k: t.size_bytes for k, t in tiers.items()}),
        ("capacity_bytes", "Of blocks.", {k: t.capacity_bytes for k, t in tiers.items()}),
        (
            "fenced",
            "1 if the tier is not used any more; the stats say why.",
            {k: int(t.fence is not None) for k, t in tiers.items()},
        ),
        (
            "codec_error_bound",
            "The largest error of the tier's codec, as its facts tell it.",
            {k: t.codec_error_bound for k, t in tiers.items() if t.codec_error_bound is not None},
        ),
    ):
        yield _gauge(name, text, ("tier",), (((tier,), n) for tier, n in values.items()))
    states = (((tier, state), n) for tier, t in tiers.items() for state, n in t.states.items())
    yield _gauge("slot_states", "Slots in each state.", ("tier", "state"), states)


def _tenants(stats: StoreStats) -> Iterator[Metric]:
    labels = ("tier", "tenant")
    held = {
        (tier, tenant): each
        for tenant, tiers in stats.tenants.items()
        for tier, each in tiers.items()
        if tier != WHOLE
    }
    blocks = ((key, each.blocks) for key, each in held.items())
    yield _gauge("tenant_blocks", "Blocks of the tenant.", labels, blocks)
    size = ((key, each.size_bytes) for key, each in held.items())
    yield _gauge("tenant_bytes", "Bytes of the tenant's blocks.", labels, size)
    quotas = ((k, each.quota_bytes) for k, each in held.items() if each.quota_bytes is not None)
    yield _gauge("tenant_quota_bytes", "What the tenant may have.", labels, quotas)


def _store(stats: StoreStats) -> Iterator[Metric]:
    queues = stats.queues
    for name, text, values in (
        ("queue_depth", "What waits in the queue.", {k: q.depth for k, q in queues.items()}),
        ("queue_limit", "What may wait in it.", {k: q.limit for k, q in queues.items()}),
        ("queue_bytes", "Bytes that wait in it.", {k: q.size_bytes for k, q in queues.items()}),
        (
            "queue_limit_bytes",
            "Bytes that may wait in it.",
            {k: q.limit_bytes for k, q in queues.items() if q.limit_bytes is not None},
        ),
    ):
        yield _gauge(name, text, ("queue",), (((queue,), n) for queue, n in values.items()))
    yield _gauge("in_flight_bytes", "Bytes on their way.", (), [((), stats.in_flight_bytes)])
    yield _gauge("leases", "Leases that are out.", (), [((), stats.leases)])
    yield _gauge("uptime_seconds", "Since the store was opened.", (), [((), stats.uptime_s)])
    wear = stats.wear
    yield CounterMetricFamily(
        f"{PREFIX}_wear_bytes", "Written to durable tiers.", value=wear.written_bytes
    )
    yield _gauge(
        "wear_recent_bytes",
        "Written to durable tiers in the last day, or since the store was opened.",
        (),
        [((), wear.recent_bytes)],
    )


def _gauge(
    name: str, text: str, labels: tuple[str, ...], samples: Iterable[tuple[tuple[str, ...], float]]
) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family

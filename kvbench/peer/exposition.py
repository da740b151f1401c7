"""A peer's status in Prometheus' text format, with its store's stats, as a string or on a port.

Names as in `kvbench.store.exposition`. Other peers are labelled by name and by the first digits of
their id: a peer that was started anew is another one. A scrape reads the status anew.

May import: kvbench.errors, kvbench.peer, kvbench.store. prometheus_client.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from kvbench.errors import UsageError
from kvbench.peer.status import ServiceStatus
from kvbench.store.exposition import Server
from kvbench.store.exposition import exposition as of_store
from kvbench.store.histogram import Latencies, cumulative
from kvbench.store.metrics import StoreStats

PREFIX = "kvbench_peer"
ID_DIGITS = 8
_PEER = ("peer", "id")
_Samples = Iterable[tuple[tuple[str, ...], float]]


def exposition(status: ServiceStatus, stats: StoreStats | None = None) -> str:
    """The status, and the store's stats, as text: as a scraper would read them."""
    return generate_latest(_registry(lambda: status, lambda: stats)).decode()


def serve(
    status: Callable[[], ServiceStatus],
    stats: Callable[[], StoreStats | None],
    port: int,
    host: str = "127.0.0.1",
) -> Server:
    """Answer scrapes of http://host:port/metrics, each with a fresh status, until closed.

    Port 0 is any free one. Whoever can reach the port can read the names of peers and tenants:
    hence only this machine unless another host is named.

    Raises:
        UsageError: the port cannot be opened.
    """
    try:
        server, thread = start_http_server(port, addr=host, registry=_registry(status, stats))
    except OSError as error:
        raise UsageError(
            f"cannot serve metrics on {host}:{port}: {error.strerror or error}; choose another "
            "port, or 0 for any"
        ) from None
    return Server(server, thread)


class _Status(Collector):
    def __init__(
        self, status: Callable[[], ServiceStatus], stats: Callable[[], StoreStats | None]
    ) -> None:
        self._status = status
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        """Nothing: else the registry would take a status to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        stats = self._stats()
        if stats is not None:
            yield from text_string_to_metric_families(of_store(stats))
        status = self._status()
        yield from _of_itself(status)
        yield from _directory(status)
        yield from _fetching(status)
        yield from _lines(status)
        yield from _serving(status)


def _registry(
    status: Callable[[], ServiceStatus], stats: Callable[[], StoreStats | None]
) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Status(status, stats))
    return registry


def _of_itself(status: ServiceStatus) -> Iterator[Metric]:
    words = (status.id, status.name, status.cluster, status.version)
    yield _gauge("info", "This peer; always 1.", ("id", "name", "cluster", "version"), [(words, 1)])
    yield _gauge("uptime_seconds", "Since it was started.", (), [((), status.uptime_s)])
    yield _gauge(
        "draining", "1 if the others are not to ask it any more.", (), [((), status.draining)]
    )
    yield _gauge("others", "Peers that are there besides this one.", (), [((), len(status.peers))])
    yield _counters("members", "What membership saw.", "event", status.members)


def _directory(status: ServiceStatus) -> Iterator[Metric]:
    known = [((each.name, each.id[:ID_DIGITS]), each) for each in status.peers]
    for name, text, samples in (
        (
            "entries",
            "Blocks that the peer is believed to have.",
            [(k, e.entries) for k, e in known],
        ),
        ("left_out", "Entries beyond the limits.", [(k, e.left_out) for k, e in known]),
        (
            "sequence",
            "Deltas of the peer that are known; its published_sequence less this is the lag.",
            [(k, e.sequence) for k, e in known if e.sequence is not None],
        ),
    ):
        yield _gauge(f"directory_{name}", text, _PEER, samples)
    yield _gauge(
        "published_sequence", "Number of the last delta told.", (), [((), status.published)]
    )
    yield _gauge(
        "published_entries", "Blocks that the others are told of.", (), [((), status.entries)]
    )
    yield _counters("publishing", "What publishing did.", "what", status.publishing)
    yield _counters("repairs", "What keeping the directory took.", "what", status.repairs)


def _fetching(status: ServiceStatus) -> Iterator[Metric]:
    into = status.incoming
    for name, text, value in (
        ("fetch_asked_blocks", "Blocks that were to be fetched.", into.asked),
        ("fetch_arrived_blocks", "Blocks that arrived, checked.", into.arrived),
        ("fetch_arrived_bytes", "Bytes of them.", into.arrived_bytes),
        ("fetch_kept_blocks", "Fetched blocks that the own store took.", into.kept),
        ("fetch_hedges", "Pulls that a second holder was asked for too.", into.hedges),
        ("fetch_hedges_won_blocks", "Blocks that the second one sent first.", into.hedges_won),
        ("fetch_probes", "Tries of peers that had failed.", into.probes),
    ):
        yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)
    yield _counters("fetch_missed_blocks", "Blocks that did not arrive.", "reason", into.reasons)
    yield _gauge("fetch_in_flight_bytes", "Bytes on their way.", (), [((), into.in_flight_bytes)])
    times = [] if into.fetches is None else [((), into.fetches)]
    yield _histogram("fetch_duration_seconds", "How long fetches took.", (), times)


def _lines(status: ServiceStatus) -> Iterator[Metric]:
    """What came from each peer, by the path that was observed."""
    lines = [((e.name, key[:ID_DIGITS]), e) for key, e in status.incoming.peers.items()]
    yield _gauge(
        "breaker_open",
        "1 if the peer failed lately and is left alone.",
        _PEER,
        ((key, each.breaker != "closed") for key, each in lines),
    )
    yield _counter(
        "breaker_opened",
        "How often that began.",
        _PEER,
        ((key, each.opened) for key, each in lines),
    )
    yield _gauge(
        "channels", "Channels to the peer.", _PEER, ((key, each.channels) for key, each in lines)
    )
    yield _counter(
        "missed_blocks",
        "Blocks that the peer was asked for and that did not come.",
        (*_PEER, "reason"),
        (((*key, why), n) for key, each in lines for why, n in each.reasons.items()),
    )
    labels = (*_PEER, "path")
    paths = [((*key, path), way) for key, each in lines for path, way in each.paths.items()]
    blocks = ((key, way.blocks) for key, way in paths)
    yield _counter("received_blocks", "Blocks that came from the peer.", labels, blocks)
    size = ((key, way.size_bytes) for key, way in paths)
    yield _counter("received_bytes", "Bytes of them.", labels, size)
    pulls = ((key, way.pulls) for key, way in paths)
    yield _histogram("pull_duration_seconds", "How long pulls took.", labels, pulls)


def _serving(status: ServiceStatus) -> Iterator[Metric]:
    out = status.outgoing
    for name, text, value in (
        ("serve_asks", "Requests that were answered.", out.asks),
        ("serve_sent_blocks", "Blocks that were sent, or read where they lie.", out.sent_blocks),
        ("serve_sent_bytes", "Bytes of them.", out.sent_bytes),
        ("serve_staged_blocks", "Blocks read from a drive or a GPU first.", out.staged_blocks),
        ("serve_loans_expired", "Loans that the asker did not end.", out.loans_expired),
    ):
        yield CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)
    answers = {"here": out.here_blocks, "gone": out.gone_blocks, "busy": out.busy_blocks}
    yield _counters("serve_answered_blocks", "Blocks that were asked for.", "answer", answers)
    refused = {
        "unknown namespace": out.unknown_namespace,
        "wrong proof": out.wrong_proof,
        "other epoch": out.other_epoch,
        "other version": out.other_version,
        "other layout": out.other_layout,
    }
    yield _counters("serve_refused", "Askers that were refused.", "why", refused)
    yield _gauge("serve_lent_bytes", "Lent to others now.", (), [((), out.lent_bytes)])
    yield _gauge("serve_staged_bytes", "In staging now.", (), [((), out.staged_bytes)])
    doors = status.doors
    by_how: list[tuple[tuple[str, ...], float]] = [((how,), d.open) for how, d in doors.items()]
    yield _gauge("connections", "Connections of others.", ("transport",), by_how)
    accepted = (((how,), d.accepted) for how, d in doors.items())
    yield _counter("accepted", "Connections ever.", ("transport",), accepted)
    dropped = (((how, kind), n) for how, d in doors.items() for kind, n in d.dropped.items())
    yield _counter("dropped", "Connections that were ended.", ("transport", "kind"), dropped)


def _gauge(name: str, text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, labels: tuple[str, ...], samples: _Samples) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for key, value in samples:
        family.add_metric(key, value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    return _counter(name, text, (label,), (((word,), n) for word, n in values.items()))


def _histogram(
    name: str,
    text: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], Latencies]],
) -> Metric:
    family = HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for key, latencies in samples:
        buckets = [(repr(edge_s), float(n)) for edge_s, n in cumulative(latencies)]
        buckets.append(("+Inf", latencies.count))
        family.add_metric(key, buckets, latencies.sum_s)
    return family

"""What fetching has counted: reasons, bytes and times, by peer and by path. No I/O, no threads.

A key that was asked of two peers counts once in the reasons of the whole, and once at each peer.

May import: kvbench.peer.model, kvbench.store.histogram. msgspec.
"""

import threading
from collections import Counter
from collections.abc import Sequence

import msgspec

from kvbench.peer.model import Outcome, PeerId, Reason
from kvbench.store.histogram import Histogram, Latencies


class PathStats(msgspec.Struct, frozen=True, kw_only=True):
    """One way to one peer, as it was observed."""

    blocks: int
    size_bytes: int
    pulls: Latencies


class PeerTraffic(msgspec.Struct, frozen=True, kw_only=True):
    """One peer. `reasons` counts the keys that it was asked for and that did not come."""

    name: str
    breaker: str
    opened: int  # how often the breaker has
    channels: int
    reasons: dict[str, int]
    paths: dict[str, PathStats]
    expected: dict[str, tuple[float, float]]  # by transport: latency_s, bytes_per_s of a stream


class FetchStats(msgspec.Struct, frozen=True, kw_only=True):
    """All fetches since the fetcher began; `peers` are those that are there now, by id in hex."""

    asked: int = 0  # keys that were to be fetched
    arrived: int = 0
    arrived_bytes: int = 0
    reasons: dict[str, int] = {}  # of the keys that did not arrive, by `Reason`; all of them
    kept: int = 0  # blocks that the local store took
    hedges: int = 0  # pulls that a second holder was asked for too
    hedges_won: int = 0  # blocks that came from the second holder first
    probes: int = 0
    in_flight_bytes: int = 0
    fetches: Latencies | None = None  # from the call to the last key; None: there was none
    peers: dict[str, PeerTraffic] = {}


class _Path:
    def __init__(self) -> None:
        self.blocks = 0
        self.size_bytes = 0
        self.pulls = Histogram()


class _OfPeer:
    def __init__(self) -> None:
        self.reasons: Counter[Reason] = Counter()
        self.paths: dict[str, _Path] = {}


class Traffic:
    """The counters. Thread-safe; what it keeps of a peer goes with the peer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: Counter[Reason] = Counter()
        self._peers: dict[PeerId, _OfPeer] = {}
        self._fetches = Histogram()
        self._count: Counter[str] = Counter()

    def add(self, what: str, n: int = 1) -> None:
        """`n` more of asked, kept, hedges, hedges_won or probes."""
        with self._lock:
            self._count[what] += n

    def missed(self, reason: Reason, n: int) -> None:
        """So many keys did not arrive in the end."""
        with self._lock:
            self._reasons[reason] += n

    def arrived(self, blocks: int, size_bytes: int) -> None:
        """So many keys did."""
        with self._lock:
            self._count["arrived"] += blocks
            self._count["arrived_bytes"] += size_bytes

    def fetched(self, seconds: float) -> None:
        """A fetch is over."""
        with self._lock:
            self._fetches.record(seconds)

    def pulled(
        self,
        peer: PeerId,
        path: str,
        outcomes: Sequence[Outcome],
        block_bytes: int,
        seconds: float | None,
    ) -> None:
        """A pull is over, after so long; None: it never began."""
        reasons = [outcome.reason for outcome in outcomes]
        blocks = reasons.count(None)
        with self._lock:
            mine = self._peers.get(peer)
            if mine is None:
                mine = self._peers[peer] = _OfPeer()
            if blocks < len(reasons):
                mine.reasons.update(reason for reason in reasons if reason is not None)
            if seconds is not None:
                way = mine.paths.setdefault(path, _Path())
                way.blocks += blocks
                way.size_bytes += blocks * block_bytes
                way.pulls.record(seconds)

    def forget(self, peer: PeerId) -> None:
        """The peer is gone."""
        with self._lock:
            self._peers.pop(peer, None)

    def of_peer(self, peer: PeerId) -> tuple[dict[str, int], dict[str, PathStats]]:
        """Reasons and paths of one peer."""
        with self._lock:
            mine = self._peers.get(peer)
            if mine is None:
                return {}, {}
            return (
                {reason.value: n for reason, n in mine.reasons.items()},
                {
                    path: PathStats(
                        blocks=way.blocks, size_bytes=way.size_bytes, pulls=way.pulls.latencies()
                    )
                    for path, way in mine.paths.items()
                },
            )

    def snapshot(self, peers: dict[str, PeerTraffic], in_flight_bytes: int) -> FetchStats:
        """All of it."""
        with self._lock:
            count, reasons = self._count, self._reasons
            fetches = self._fetches.latencies()
            return FetchStats(
                asked=count["asked"],
                arrived=count["arrived"],
                arrived_bytes=count["arrived_bytes"],
                reasons={reason.value: reasons[reason] for reason in Reason},
                kept=count["kept"],
                hedges=count["hedges"],
                hedges_won=count["hedges_won"],
                probes=count["probes"],
                in_flight_bytes=in_flight_bytes,
                fetches=fetches if fetches.count else None,
                peers=peers,
            )

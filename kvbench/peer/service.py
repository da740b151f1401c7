"""A peer whole: its store, what it lets others read, the others, and one store made of all.

Everything is opened in `start`, in the order in which it is needed, and closed in the other one.
Leaving drains: the others are told first, what is being sent is finished, within a limit. The
local store needs no other peer: a service that finds nobody serves its own blocks.

```python
with kvbench.peer.connect("peer.toml") as service:
    service.store.put(keys, rows).result()
```

May import: kvbench.errors, kvbench.peer, kvbench.store. zenoh, when it starts.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msgspec import structs

from kvbench import __version__
from kvbench.errors import KvbenchError, UsageError
from kvbench.peer.cluster import loopback
from kvbench.peer.config import PeerConfig, load_config
from kvbench.peer.directory import Directory
from kvbench.peer.fetch import Fetcher
from kvbench.peer.holder import Holder
from kvbench.peer.logs import happened
from kvbench.peer.model import PEER_ID_BYTES, Peer, PeerError, PeerId, Reason
from kvbench.peer.replication import Answers, Replication
from kvbench.peer.shares import Share
from kvbench.peer.shm import host_digest
from kvbench.peer.status import Door, Known, ServiceStatus, TierHolds, encode
from kvbench.peer.store import PeerStore
from kvbench.peer.ways import ServedBy, listeners_of, transports_of
from kvbench.store.config import open_store
from kvbench.store.dram import DramTier
from kvbench.store.store import TieredStore

if TYPE_CHECKING:
    from kvbench.store.exposition import Server

_log = logging.getLogger("kvbench.peer")
STATUS_S = 1.0  # how old a status may be that another peer is given
QUIET_S = 0.1  # nothing lent for so long, after the others were told: nobody asks any more
LOOK_S = 0.02
STARTING = "it is starting: ask again"


class PeerService:
    """A peer from `start` to `close`.

    `config` says everything but the store, if an open one is given: it is closed with the service,
    and has to have the layout and the namespace of the configuration.

    Raises:
        UsageError: something of the configuration cannot be.
    """

    def __init__(self, config: PeerConfig, *, store: TieredStore | None = None) -> None:
        config.check()
        if store is not None and store.layout != config.layout():
            raise UsageError(f"the store has {store.layout}, the configuration {config.layout()}")
        self.config = config
        self._given = store
        self._parts: _Parts | None = None
        self._leaving = threading.Event()
        self._closing = threading.Lock()

    def start(self) -> Self:
        """Open everything, and join the others.

        Nobody answering is no error: it is said in the log, and tried again and again.

        Raises:
            UsageError, OSError: the store, or a port, cannot be opened.
            PeerError: the membership's port cannot.
            TierUnavailableError: a part of it is not installed, or not on this machine.
        """
        if self._parts is not None:
            raise UsageError("the service was started already: make another one")
        self._parts = _Parts(self.config, self._given, self._asked_to_drain)
        return self

    @property
    def store(self) -> PeerStore:
        """The store of this peer and all others, for an engine in this process."""
        return self._opened().store

    @property
    def me(self) -> Peer:
        """What this peer says of itself."""
        return self._opened().me

    @property
    def join(self) -> list[str]:
        """Where others can join this one."""
        return self._opened().replication.membership.endpoints

    @property
    def metrics(self) -> str | None:
        """Where metrics are scraped, if they are."""
        server, where = self._opened().metrics, self.config.metrics_listen()
        return (
            None
            if server is None or where is None
            else f"http://{where.host}:{server.port}/metrics"
        )

    @property
    def draining(self) -> bool:
        """Whether the others were told not to ask for more."""
        return self.me.draining

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until somebody has asked this peer to drain; False: nobody has, so far."""
        return self._leaving.wait(timeout_s)

    def status(self) -> ServiceStatus:
        """Who is there, what they hold, and what went in and out."""
        return self._opened().status()

    def drain(self, within_s: float | None = None) -> None:
        """Tell the others, and finish what is being sent; the store goes on.

        Takes `within_s` at most, `serve.drain_s` of the configuration if that is not said.
        """
        parts = self._opened()
        within_s = self.config.serve.drain_s if within_s is None else within_s
        self._leaving.set()
        parts.announce()
        parts.settle(time.monotonic() + within_s)

    def close(self, *, flush: bool = True) -> None:
        """Drain, leave, and close the store; with `flush`, blocks are written to its drives.

        Once more is no error.
        """
        with self._closing:
            parts = self._parts
            if parts is None or parts.closed:
                return
            expires_s = time.monotonic() + self.config.serve.drain_s
            self.drain()
            parts.close(max(0.0, expires_s - time.monotonic()), flush=flush)

    def __enter__(self) -> Self:
        return self if self._parts is not None else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Behind it.

    def _asked_to_drain(self) -> bytes:
        """Another peer said so; on the thread of the membership, so what takes time is for others.

        The others ask no more; whoever owns the service sees it by `wait`, and closes it.
        """
        parts = self._parts
        if parts is None:
            raise PeerError(STARTING, Reason.BUSY)
        _log.info("this peer was asked to drain", extra=happened("drain"))
        parts.announce()
        self._leaving.set()
        return b"draining"

    def _opened(self) -> "_Parts":
        if self._parts is None:
            raise UsageError("the service was not started")
        return self._parts


def connect(config: PeerConfig | Path | str) -> PeerService:
    """A peer that has started, of a configuration or its file: `connect("peer.toml").store`.

    For an engine, in its own process: `service.store` has the API of a store, with the blocks of
    all other peers as one more tier. For an engine beside a sidecar (`kvbench peer serve`) in a
    process of its own: the same, with a configuration that joins the sidecar; its blocks then come
    through shared memory. To `close` it is up to the caller.

    Raises:
        What `PeerService` and `start` do.
    """
    known = config if isinstance(config, PeerConfig) else load_config(Path(config))
    return PeerService(known).start()


class _Heard(Directory):
    """A directory that passes on who left: the fetcher is to wait for them no more."""

    def __init__(self) -> None:
        super().__init__()
        self.on_leave: Callable[[PeerId], None] = lambda _: None

    def leave(self, peer_id: PeerId) -> None:
        """See `Directory.leave`."""
        super().leave(peer_id)
        self.on_leave(peer_id)


class _Parts:
    """All that is open of a service; what was opened is closed again if the rest cannot be."""

    def __init__(
        self, config: PeerConfig, store: TieredStore | None, drain: Callable[[], bytes]
    ) -> None:
        self.closed = False
        self._config = config
        self._started_s = time.monotonic()
        self._said = b""
        self._stop = threading.Event()
        tls = config.tls_files()
        if tls is not None:
            tls.check()
        shares = config.shares()
        with contextlib.ExitStack() as undo:
            local = open_store(config.store_config()) if store is None else store
            if store is None:
                undo.callback(local.close, flush=False)
            me = _peer_of(config, local, shares)
            memory = local.tier("dram")
            files = [memory] if isinstance(memory, DramTier) else []  # sent without a copy
            self.holder = Holder(local, shares, me, config.holder_limits(), files=files)
            self.doors = listeners_of(config, self.holder, memory, tls, undo)
            endpoints = {
                how: config.advertised(how, door.endpoint) for how, door in self.doors.items()
            }
            me = structs.replace(me, endpoints=endpoints)
            directory = _Heard()
            self.fetcher = Fetcher(
                transports_of(config, me, tls), directory, local.layout, config.fetch_options()
            )
            undo.callback(self.fetcher.close)
            directory.on_leave = self.fetcher.left
            self.store = PeerStore(local, self.fetcher, shares[0].digest, keep=config.fetch.keep)
            self.replication = Replication(
                me,
                config.membership(),
                local,
                directory=directory,
                tenants=_tenants(shares),
                answers=Answers(status=self._answer, drain=drain),
            )
            undo.callback(self.replication.close)
            self._watch = threading.Thread(
                target=self._say, name="kvbench-peer-status", daemon=True
            )
            self.replication.start()
            self._said = encode(self.status())
            self.metrics = self._expose(undo)
            self._watch.start()
            undo.pop_all()

    @property
    def me(self) -> Peer:
        """What this peer says of itself."""
        me = self.replication.membership.me
        assert me is not None
        return me

    def announce(self) -> None:
        """Tell the others not to ask for more; once more is no error."""
        try:
            self.replication.drain()
        except PeerError as error:  # closed meanwhile
            _log.warning("the others could not be told that this peer drains: %s", error)

    def settle(self, expires_s: float) -> None:
        """Wait until nothing is being sent, and nobody asks any more."""
        others = bool(self.replication.directory.peers())
        quiet_s = time.monotonic() + (QUIET_S if others else 0.0)
        asks = -1
        while True:
            now_s, counts = time.monotonic(), self.holder.counts()
            if counts.lent_bytes or counts.asks != asks:
                asks = counts.asks
                quiet_s = max(quiet_s, now_s + (QUIET_S if others else 0.0))
            if not counts.lent_bytes and now_s >= quiet_s:
                return
            if now_s >= expires_s:
                _log.warning(
                    "draining: %d bytes are still lent; not waited for",
                    counts.lent_bytes,
                    extra=happened("drain_cut_short", lent_bytes=counts.lent_bytes),
                )
                return
            self._stop.wait(LOOK_S)

    def close(self, drain_s: float, *, flush: bool) -> None:
        """Leave, then close what serves, then what stores."""
        self.closed = True
        self._stop.set()
        self.replication.close()
        if self.metrics is not None:
            self.metrics.close()
        for door in self.doors.values():
            door.close(drain_s)
        self._watch.join()
        self.store.close(flush=flush)

    def status(self) -> ServiceStatus:
        """See `PeerService.status`."""
        me, replication = self.me, self.replication
        stats = self.store.store.stats()
        told = replication.publisher.summary()
        directory = replication.directory
        return ServiceStatus(
            id=me.id.hex(),
            name=me.name,
            cluster=self._config.cluster.name,
            version=__version__,
            protocol=me.version,
            epoch=me.epoch,
            uptime_s=time.monotonic() - self._started_s,
            draining=me.draining,
            endpoints=me.endpoints,
            namespaces=[tag.hex() for tag in me.namespaces],
            block_bytes=me.block_bytes,
            parts=me.parts,
            tiers={
                name: TierHolds(
                    blocks=tier.used,
                    size_bytes=tier.size_bytes,
                    capacity_bytes=tier.capacity_bytes,
                    fence=tier.fence,
                )
                for name, tier in stats.tiers.items()
            },
            published=told.sequence,
            entries=told.entries,
            publishing=replication.publisher.stats()._asdict(),
            repairs=replication.follower.repairs()._asdict(),
            members=replication.membership.counts()._asdict(),
            peers=_known(directory),
            incoming=self.fetcher.stats(),
            outgoing=self.holder.counts(),
            doors={how: _door(door) for how, door in self.doors.items()},
        )

    def _expose(self, undo: contextlib.ExitStack) -> "Server | None":
        where = self._config.metrics_listen()
        if where is None:
            return None
        if not loopback(where.host):
            _log.warning(
                "insecure: anybody who reaches %s:%d can read the metrics", where.host, where.port
            )
        from kvbench.peer.exposition import serve  # noqa: PLC0415  most are not scraped

        server = serve(self.status, self.store.store.stats, where.port, where.host)
        undo.callback(server.close)
        return server

    def _answer(self) -> bytes:
        """The status that another is given; on the thread of the membership."""
        if not self._said:
            raise PeerError(STARTING, Reason.BUSY)
        return self._said

    def _say(self) -> None:
        """Keep a status at hand: a drive that hangs may hold up the stats, and never membership."""
        while not self._stop.wait(STATUS_S):
            try:
                self._said = encode(self.status())
            except KvbenchError as error:  # the store is closed
                _log.debug("no status: %s", error)


def _peer_of(config: PeerConfig, store: TieredStore, shares: list[Share]) -> Peer:
    layout = store.layout
    tiers = store.stats().tiers
    return Peer(
        id=os.urandom(PEER_ID_BYTES),
        name=config.name or f"{socket.gethostname()}:{os.getpid()}",
        epoch=store.events(limit=0).epoch,
        block_bytes=layout.block_bytes,
        parts=layout.parts,
        namespaces=tuple(share.tag for share in shares),
        host=host_digest(),
        endpoints={},
        capacities={name: tier.capacity_bytes for name, tier in tiers.items()},
    )


def _tenants(shares: list[Share]) -> frozenset[str] | None:
    """Whose blocks the others are told of."""
    named = [share.tenants for share in shares if share.tenants is not None]
    if len(named) < len(shares):
        return None
    return frozenset(tenant for tenants in named for tenant in tenants)


def _known(directory: Directory) -> list[Known]:
    found: list[Known] = []
    for each in directory.holdings():
        summary = directory.summary(each.peer.id)
        found.append(
            Known(
                id=each.peer.id.hex(),
                name=each.peer.name,
                epoch=each.peer.epoch,
                draining=each.peer.draining,
                endpoints=each.peer.endpoints,
                entries=each.entries,
                left_out=each.left_out,
                sequence=None if summary is None else summary.sequence,
            )
        )
    return sorted(found, key=lambda known: (known.name, known.id))


def _door(door: ServedBy) -> Door:
    counts = door.counts()
    return Door(
        endpoint=door.endpoint,
        accepted=counts.accepted,
        open=counts.open,
        dropped=counts.dropped,
    )

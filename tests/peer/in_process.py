"""Peers in this process: stores, a directory of hints, and a transport that really copies blocks.

What goes wrong is told to a `Node`: it is dead, frozen, slow, corrupts, refuses. Nothing is left to
chance, and nothing sleeps: what waits, waits for an event of the test or for the deadline.
"""

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvbench.peer.fetch import Fetcher
from kvbench.peer.limits import FetchOptions
from kvbench.peer.model import ARRIVED, Channel, Outcome, Peer, PeerError, PeerId, Pull, Reason
from kvbench.peer.shares import tag_of
from kvbench.peer.store import PeerStore
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums
from kvbench.store.dram import DramTier
from kvbench.store.loans import Lent
from kvbench.store.options import Moving, Options
from kvbench.store.store import TieredStore
from tests.store.blocks import LAYOUT, NAMESPACE, WAIT_S, put

NAME = "memory"  # of the transport


def memory_store(
    slots: int, layout: Layout = LAYOUT, options: Options | None = None
) -> TieredStore:
    """A store in memory."""
    return TieredStore([DramTier(layout, slots)], options)


@dataclass(eq=False)
class Node:
    """A peer, and what is wrong with it."""

    store: TieredStore
    peer: Peer
    dead: bool = False
    frozen: bool = False  # says nothing until the deadline
    refuses: bool = False
    busy: bool = False
    restarted: bool = False
    flips: bool = False  # a bit of every block, on its way
    careless: bool = False  # reads slots that it has let go
    cuts: int = 0  # so many pulls find their connection cut, as one that was idle for too long
    raises: Exception | None = None
    hangs: threading.Event | None = None  # for as long as it is not set, whatever the deadline
    lets_in: threading.Event | None = None  # connecting waits for it
    gate: threading.Semaphore | None = None  # each block waits for one release
    before: Callable[[], object] = lambda: None  # each pull, when the holder is asked
    between: Callable[[], object] = lambda: None  # the lease and the copy
    after: Callable[[], object] = lambda: None  # the copy and the check
    reached: threading.Event = field(default_factory=threading.Event)  # a pull has begun
    pulls: list[list[bytes]] = field(default_factory=list[list[bytes]])
    connects: int = 0
    open_: int = 0  # channels that are

    @property
    def id(self) -> PeerId:
        return self.peer.id


class Hints:
    """A directory of what the test says, true or not."""

    def __init__(self) -> None:
        self.peers: dict[PeerId, Peer] = {}
        self.hints: dict[PeerId, set[bytes]] = {}

    def holders(
        self, keys: Sequence[bytes], *, skip: Collection[PeerId] = ()
    ) -> list[tuple[PeerId, int]]:
        found = [
            (peer_id, next((at for at, key in enumerate(keys) if key not in held), len(keys)))
            for peer_id, held in self.hints.items()
            if peer_id not in skip
        ]
        return sorted([each for each in found if each[1]], key=lambda each: -each[1])

    def peer(self, peer_id: PeerId) -> Peer | None:
        return self.peers.get(peer_id)


class Cluster:
    """Nodes, and a fetcher of somebody who can reach them."""

    def __init__(self, layout: Layout = LAYOUT) -> None:
        self.layout = layout
        self.nodes: dict[PeerId, Node] = {}
        self.directory = Hints()
        self._closing: list[Callable[[], None]] = []

    def node(self, keys: Sequence[bytes] = (), *, slots: int = 64, **more: object) -> Node:
        """A peer that has these blocks, and says so."""
        store = memory_store(slots, self.layout)
        self._closing.append(lambda: store.close(flush=False))
        if keys:
            put(store, keys)
        peer = Peer(
            id=os.urandom(16),
            name=f"node{len(self.nodes)}",
            epoch=store.events(limit=0).epoch,
            block_bytes=self.layout.block_bytes,
            parts=self.layout.parts,
            namespaces=(tag_of(NAMESPACE),),
            host="here",
            endpoints={NAME: "here"},
            capacities={},
        )
        node = Node(store, peer, **more)  # type: ignore[arg-type]
        self.nodes[peer.id] = node
        self.directory.peers[peer.id] = peer
        self.directory.hints[peer.id] = set(keys)
        return node

    def fetcher(
        self, options: FetchOptions | None = None, clock: Callable[[], float] = time.monotonic
    ) -> Fetcher:
        """Of somebody else."""
        options = options or FetchOptions(deadline_s=WAIT_S)
        fetcher = Fetcher([Memory(self)], self.directory, self.layout, options, clock=clock)
        self._closing.insert(0, fetcher.close)
        return fetcher

    def shared(
        self,
        options: FetchOptions | None = None,
        *,
        slots: int = 64,
        keep: Moving = "never",
        clock: Callable[[], float] = time.monotonic,
    ) -> PeerStore:
        """A store of somebody else, with these peers."""
        store = memory_store(slots, self.layout)
        shared = PeerStore(store, self.fetcher(options, clock), NAMESPACE, keep=keep)
        self._closing.insert(0, lambda: shared.close(flush=False))
        return shared

    def close(self) -> None:
        """All of it."""
        for node in self.nodes.values():
            if node.hangs is not None:
                node.hangs.set()
        for close in self._closing:
            close()


class Memory:
    """The transport: between stores of one process."""

    name = NAME

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def reaches(self, peer: Peer) -> bool:
        return self.name in peer.endpoints

    def connect(self, peer: Peer, expires_s: float) -> Channel:
        node = self._cluster.nodes[peer.id]
        node.connects += 1
        if node.dead:
            raise PeerError(f"{peer.name} is dead", Reason.UNREACHABLE)
        if node.frozen:
            _nothing_until(expires_s)
            raise PeerError(f"{peer.name} does not answer", Reason.LATE)
        if node.lets_in is not None:
            node.lets_in.wait(max(0.0, expires_s - time.monotonic()))
        if node.refuses:
            raise PeerError(f"{peer.name} refuses", Reason.REFUSED)
        node.open_ += 1
        return MemoryChannel(node, self._cluster.layout)

    def close(self) -> None:
        pass


class MemoryChannel:
    """The channel."""

    path = NAME

    def __init__(self, node: Node, layout: Layout) -> None:
        self.broken = False
        self._node = node
        self._layout = layout
        self._open = True

    def close(self) -> None:
        self._node.open_ -= self._open
        self._open = False

    def pull(self, pull: Pull) -> list[Outcome]:
        node = self._node
        node.pulls.append(list(pull.keys))
        node.reached.set()
        node.before()
        if node.raises is not None:
            raise node.raises
        if node.hangs is not None:
            node.hangs.wait()
        wrong = self._wrong(pull)
        if wrong is not None:
            self.broken = wrong not in {Reason.BUSY, Reason.GONE}
            return [Outcome(wrong)] * len(pull.keys)
        loan = node.store.lend(pull.keys)
        if node.careless:
            loan.release()
        node.between()
        outcomes = self._copy(pull, loan.blocks)
        loan.release()
        return outcomes

    def _wrong(self, pull: Pull) -> Reason | None:
        node = self._node
        if node.frozen:
            while time.monotonic() < pull.expires_s and not pull.cancelled():
                _nothing_until(min(pull.expires_s, time.monotonic() + 0.005))
            return Reason.CANCELLED if pull.cancelled() else Reason.LATE
        wrong = {
            Reason.UNREACHABLE: node.dead or node.cuts > 0,
            Reason.REFUSED: node.refuses,
            Reason.BUSY: node.busy,
            Reason.RESTARTED: node.restarted or pull.epoch != node.peer.epoch,
        }
        node.cuts = max(0, node.cuts - 1)
        return next((reason for reason, so in wrong.items() if so), None)

    def _copy(self, pull: Pull, blocks: Sequence[Lent | None]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for key, target, block in zip(pull.keys, pull.targets, blocks, strict=True):
            if pull.cancelled():
                outcomes.append(Outcome(Reason.CANCELLED))
                continue
            if not self._pass(pull):
                self.broken = True
                outcomes.append(Outcome(Reason.LATE))
                continue
            outcomes.append(self._one(key, target, block))
        return outcomes

    def _pass(self, pull: Pull) -> bool:
        """Wait for the gate, no longer than the deadline."""
        gate = self._node.gate
        return gate is None or gate.acquire(timeout=max(0.0, pull.expires_s - time.monotonic()))

    def _one(self, key: bytes, target: Bytes, block: Lent | None) -> Outcome:
        if block is None or block.view is None:
            return Outcome(Reason.GONE)
        (sums,) = copy_with_sums([block.view], [target], self._layout)
        if self._node.flips:
            target[0] ^= 1
            (sums,) = copy_with_sums([target], [np.empty_like(target)], self._layout)
        self._node.after()
        if sums != block.stamp.sums or block.stamp.key != key:
            return Outcome(Reason.CORRUPT)
        return Outcome(None, block.tier) if block.tier else ARRIVED


def _nothing_until(expires_s: float) -> None:
    threading.Event().wait(max(0.0, expires_s - time.monotonic()))

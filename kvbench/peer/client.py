"""Who looks at a cluster, or fetches from it, without being a peer: `Onlooker` and `PeerClient`.

An onlooker sees the peers and asks them for their status. A client also follows their directories,
and fetches blocks of one namespace, checked; it has no store and serves nothing.

May import: kvbench.errors, kvbench.peer, kvbench.store.{block, request, rows}. zenoh, when it
starts.
"""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from kvbench.errors import UsageError
from kvbench.peer.cluster import MembershipConfig
from kvbench.peer.config import PeerConfig
from kvbench.peer.directory import Directory
from kvbench.peer.fetch import Fetcher
from kvbench.peer.flight import Wanted
from kvbench.peer.membership import Handlers, Membership
from kvbench.peer.model import PEER_ID_BYTES, Peer, PeerError, PeerId, Reason
from kvbench.peer.replication import Follower
from kvbench.peer.shm import host_digest
from kvbench.peer.status import ServiceStatus, decode
from kvbench.peer.view import Seen, seen
from kvbench.peer.ways import transports_of
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.rows import HostRows

QUIET_S = 0.3  # nobody new for so long: all are known
MISSED_S = 2.0  # whom others know comes in this time, or they see meanwhile that he has left
PORTION = 64  # keys that are fetched at a time
LOOK_S = 0.02
AT_ONCE = 16  # peers that are asked for their status
ANSWER_S = 2.0
LEAST_ID = 4  # digits that name a peer


class Onlooker:
    """Sees all peers of a cluster, from `start` to `close`.

    `config` says where to join. An onlooker listens on a free port of loopback, which is of no use
    to others: it connects to all of them by itself (see `zenoh_id`).
    """

    def __init__(self, config: MembershipConfig, directory: Directory | None = None) -> None:
        self._peers: dict[PeerId, Peer] = {}
        self._changed = threading.Condition()
        self._follower: Follower | None = None
        self._membership = Membership(
            None,
            replace(config, listen=("127.0.0.1:0",)),
            Handlers(
                joined=self._joined,
                left=self._left,
                told=self._told,
                page=_nothing,
                status=bytes,
                drain=bytes,
                tick=self._tick,
            ),
        )
        if directory is not None:
            self._follower = Follower(directory, self._membership.ask)

    def start(self) -> Self:
        """Begin to look.

        Raises:
            PeerError: no port can be had.
            TierUnavailableError: Zenoh is not installed.
        """
        self._membership.start()
        return self

    def peers(self, within_s: float = 5.0) -> list[Peer]:
        """All peers, by name: once nobody new has come for a moment; none, if none has in time."""
        until_s = time.monotonic() + within_s
        with self._changed:
            self._changed.wait_for(lambda: bool(self._peers), within_s)
            while self._peers and time.monotonic() < until_s:
                if not self._changed.wait(min(QUIET_S, max(0.0, until_s - time.monotonic()))):
                    break
            return sorted(self._peers.values(), key=lambda peer: (peer.name, peer.id))

    def find(self, name: str, within_s: float = 5.0) -> Peer:
        """The one peer of that name, or whose id in hex begins so.

        Raises:
            UsageError: there is none, or there are several.
        """
        peers = self.peers(within_s)
        found = [peer for peer in peers if peer.name == name]
        if not found and len(name) >= LEAST_ID:
            found = [peer for peer in peers if peer.id.hex().startswith(name.lower())]
        if len(found) == 1:
            return found[0]
        known = ", ".join(f"{peer.name} ({peer.id.hex()[:8]})" for peer in found or peers)
        if found:
            raise UsageError(f"{name!r} is the name of {known}: give the id")
        raise UsageError(f"no peer {name!r}: there is {known or 'nobody'}")

    def status(self, peer: Peer, within_s: float = ANSWER_S) -> ServiceStatus:
        """What a peer says of itself.

        Raises:
            PeerError: it does not answer in time, or not so that it can be read.
        """
        return decode(self._membership.query(peer.id, "status", within_s))

    def statuses(
        self, peers: Sequence[Peer], within_s: float = ANSWER_S
    ) -> list[ServiceStatus | PeerError]:
        """What each of these peers says of itself, or why that is not known."""

        def ask(peer: Peer) -> ServiceStatus | PeerError:
            try:
                return self.status(peer, within_s)
            except PeerError as error:
                return error

        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="kvbench-peer-ask") as pool:
            return list(pool.map(ask, peers))

    def survey(self, within_s: float = 5.0) -> list[Seen]:
        """All peers with what they say of themselves, and those that only others know.

        Empty: nobody has come in time.
        """
        peers = self.peers(within_s)
        found = seen(peers, self.statuses(peers))
        missed = {bytes.fromhex(each.id) for each in found} - {peer.id for peer in peers}
        if missed:
            with self._changed:
                self._changed.wait_for(lambda: missed <= set(self._peers), MISSED_S)
            peers = self.peers(within_s)
            found = seen(peers, self.statuses(peers))
        return found

    def drain(self, peer: Peer, within_s: float = ANSWER_S) -> None:
        """Ask a peer to leave once it has sent what it is sending.

        Raises:
            PeerError: it does not answer in time.
        """
        self._membership.query(peer.id, "drain", within_s)

    def close(self) -> None:
        """Look no more; once more is no error."""
        self._membership.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # On the thread of the membership.

    def _joined(self, peer: Peer) -> None:
        with self._changed:
            self._peers[peer.id] = peer
            self._changed.notify_all()
        if self._follower is not None:
            self._follower.joined(peer)

    def _left(self, peer_id: PeerId) -> None:
        with self._changed:
            self._peers.pop(peer_id, None)
            self._changed.notify_all()
        if self._follower is not None:
            self._follower.left(peer_id)

    def _told(self, peer_id: PeerId, body: bytes) -> None:
        if self._follower is not None:
            self._follower.told(peer_id, body)

    def _tick(self) -> None:
        if self._follower is not None:
            self._follower.tick()


class Got(NamedTuple):
    """What became of one key."""

    status: Status
    why: str  # a `Reason` and more; empty if the block is there


class PeerClient:
    """Fetches blocks of the first namespace of a configuration, from `start` to `close`.

    Raises:
        UsageError: something of the configuration cannot be.
    """

    def __init__(self, config: PeerConfig) -> None:
        self.layout = config.layout()
        self._share = config.shares()[0]
        self._directory = Directory()
        membership = config.membership()
        self.onlooker = Onlooker(
            replace(membership, join=(*joins(membership), *membership.join)), self._directory
        )
        me = _nobody(self.layout)
        self._fetcher = Fetcher(
            transports_of(config, me, membership.tls),
            self._directory,
            self.layout,
            config.fetch_options(),
        )

    def start(self, within_s: float = 5.0) -> Self:
        """Find the peers, and wait until it is known what they hold; at most so long.

        Raises:
            PeerError: nobody is there.
            TierUnavailableError: Zenoh is not installed.
        """
        until_s = time.monotonic() + within_s
        self.onlooker.start()
        if not self.onlooker.peers(within_s):
            self.close()
            raise PeerError(f"no peer has answered within {within_s} s", Reason.NOBODY)
        waiting = threading.Event()
        while not all(each.synced for each in self._directory.holdings()):
            if time.monotonic() > until_s:
                break  # of the others all is known
            waiting.wait(LOOK_S)
        return self

    def get(
        self, keys: Sequence[bytes], rows: Sequence[Bytes], *, deadline_s: float | None = None
    ) -> list[Got]:
        """Fetch each of these keys, which need not be one prefix, into uint8 [block_bytes].

        A row whose key is not OK holds anything. Each portion of the keys has `deadline_s`, or the
        configuration's if that is less.
        """
        found: list[Got] = []
        for at in range(0, len(keys), PORTION):
            portion = slice(at, at + PORTION)
            found += self._get(keys[portion], rows[portion], deadline_s)
        return found

    def _get(
        self, keys: Sequence[bytes], rows: Sequence[Bytes], deadline_s: float | None
    ) -> list[Got]:
        requests = [
            self._fetcher.fetch(
                Wanted(
                    namespace=self._share.digest,
                    keys=[key],
                    rows=HostRows([row], self.layout),
                ),
                deadline_s=deadline_s,
            )
            for key, row in zip(keys, rows, strict=True)
        ]
        found: list[Got] = []
        for request in requests:
            (status,) = request.result()
            nobody = Reason.NOBODY.value if status is Status.MISS else status.value
            why = "" if status is Status.OK else request.reasons.get(0, nobody)
            found.append(Got(status, why))
        return found

    def close(self) -> None:
        """End it; once more is no error."""
        self._fetcher.close()
        self.onlooker.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def joins(config: MembershipConfig) -> tuple[str, ...]:
    """Where the peer of a configuration itself can be joined, from this machine."""
    return tuple(str(each) for each in config.endpoints(config.listen) if each.port)


def _nobody(layout: Layout) -> Peer:
    return Peer(
        id=os.urandom(PEER_ID_BYTES),
        name="client",
        epoch=0,
        block_bytes=layout.block_bytes,
        parts=layout.parts,
        namespaces=(),
        host=host_digest(),
        endpoints={},
        capacities={},
    )


def _nothing(_: bytes) -> bytes:
    raise PeerError("an onlooker holds nothing", Reason.REFUSED)

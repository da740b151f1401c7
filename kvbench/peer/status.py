"""What a peer says of itself to who asks: who is there, what they hold, what went in and out.

Plain data, written as msgpack to other peers and as JSON for people. What comes from another peer
is decoded against these types. Measures and counts nothing itself.

May import: kvbench.errors, kvbench.peer.{directory, holder, model, traffic}. msgspec.
"""

import msgspec

from kvbench.peer.holder import HolderCounts
from kvbench.peer.model import PeerError, Reason
from kvbench.peer.traffic import FetchStats


class TierHolds(msgspec.Struct, frozen=True, kw_only=True):
    """One tier of a peer's own store."""

    blocks: int
    size_bytes: int
    capacity_bytes: int
    fence: str | None  # why it is not used any more


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """Another peer, as this one knows it."""

    id: str  # in hex
    name: str
    epoch: int
    draining: bool
    endpoints: dict[str, str]
    entries: int  # blocks that it is believed to have
    left_out: int  # beyond the directory's limits
    # Deltas of it that are known; None: no snapshot yet, or not all was kept. What it has said more
    # than that is the directory's lag.
    sequence: int | None


class Door(msgspec.Struct, frozen=True, kw_only=True):
    """A listener for blocks."""

    endpoint: str
    accepted: int
    open: int
    dropped: dict[str, int]  # by kind


class ServiceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A peer at one moment. Ids and tags are in hex."""

    id: str
    name: str
    cluster: str
    version: str  # of kvbench
    protocol: int
    epoch: int
    uptime_s: float
    draining: bool
    endpoints: dict[str, str]
    namespaces: list[str]
    block_bytes: int
    parts: int
    tiers: dict[str, TierHolds]
    published: int  # number of the last delta that it told
    entries: int  # blocks that it says it has
    publishing: dict[str, int]  # see `publisher.Published`
    repairs: dict[str, int]  # see `replication.Repairs`
    members: dict[str, int]  # see `membership.Counts`
    peers: list[Known]
    incoming: FetchStats  # by peer and path
    outgoing: HolderCounts
    doors: dict[str, Door]  # by transport


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(ServiceStatus)


def encode(status: ServiceStatus) -> bytes:
    """As it is sent."""
    return _encode(status)


def decode(body: bytes) -> ServiceStatus:
    """What a peer said.

    Raises:
        PeerError: it is no status, or of another version of kvbench.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PeerError(
            f"its status cannot be read ({str(error)[:100]}): run one version of kvbench",
            Reason.REFUSED,
        ) from None

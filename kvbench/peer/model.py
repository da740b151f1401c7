"""What all parts of sharing agree on: who a peer is, what became of a block, what a transport is.

A peer is one process with a store. Its id is drawn when it starts, so that one that comes back is
another peer, and nothing known of the old one is taken for the new. No I/O and no threads here.

May import: kvbench.errors, kvbench.store.block. msgspec.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from kvbench.errors import KvbenchError
from kvbench.store.block import Bytes, Layout, Status

PROTOCOL_VERSION = 2  # of messages and frames; peers of another are refused
PEER_ID_BYTES = 16
TAG_BYTES = 16
PeerId: TypeAlias = bytes  # PEER_ID_BYTES random bytes, new in every process
Tag: TypeAlias = bytes  # TAG_BYTES: a namespace, named without giving its digest away


class Reason(enum.Enum):
    """Why a block did not come from a peer. Counted apart from ordinary misses."""

    GONE = "gone"  # the holder has not got it (any more): the hint was out of date
    RESTARTED = "restarted"  # the holder is another process, or store, than the hint says
    UNREACHABLE = "unreachable"  # no connection, or it broke
    LATE = "late"  # the deadline passed first: frozen, or too slow
    CORRUPT = "corrupt"  # what arrived is not what its checksum says
    REFUSED = "refused"  # namespace, version, layout or credential do not fit
    BUSY = "busy"  # the holder's limits, or ours
    BREAKER = "breaker"  # the peer failed lately and is left alone
    NOT_WORTH = "not worth"  # recomputing is expected to be faster
    NOBODY = "nobody"  # no peer is known to hold it
    CANCELLED = "cancelled"

    @property
    def status(self) -> Status:
        """What the caller of the store is told: only what surely is not there is a MISS."""
        return _STATUS[self]


_STATUS = {
    Reason.GONE: Status.MISS,
    Reason.RESTARTED: Status.MISS,
    Reason.UNREACHABLE: Status.BUSY,
    Reason.LATE: Status.TIMEOUT,
    Reason.CORRUPT: Status.CORRUPT,
    Reason.REFUSED: Status.MISS,
    Reason.BUSY: Status.BUSY,
    Reason.BREAKER: Status.BUSY,
    Reason.NOT_WORTH: Status.MISS,
    Reason.NOBODY: Status.MISS,
    Reason.CANCELLED: Status.TIMEOUT,
}


class PeerError(KvbenchError):
    """A peer, or the way to it, failed; `reason` is for the keys that were asked of it."""

    code = "peer_failed"

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer says of itself to whoever may know; it changes only with `draining`."""

    id: PeerId
    name: str  # for people: given by the user, or host:pid
    epoch: int  # of its store's events: hints of another are void
    version: int = PROTOCOL_VERSION
    block_bytes: int
    parts: int
    namespaces: tuple[Tag, ...]  # those it serves
    host: str  # digest of what memory can be shared within: machine, boot, user
    endpoints: dict[str, str]  # transport → where: {"tcp": "10.0.0.7:7400", "shm": "kvbench-…"}
    capacities: dict[str, int]  # tier → bytes
    draining: bool = False  # leaving: it answers, but is not to be asked for more

    @property
    def layout(self) -> Layout:
        """The shape of its blocks."""
        return Layout(self.block_bytes, self.parts)


class Outcome(NamedTuple):
    """What became of one key that a peer was asked for."""

    reason: Reason | None  # None: it arrived, checked
    tier: str = ""  # where the holder had it


ARRIVED = Outcome(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """Blocks to ask of one peer, over one channel."""

    namespace: bytes  # its 32-byte digest; never sent
    epoch: int  # the holder's, as the directory has it
    keys: Sequence[bytes]
    targets: Sequence[Bytes]  # uint8 [block_bytes] each, contiguous; undefined where not ARRIVED
    expires_s: float  # on the monotonic clock: `pull` returns by then
    # Asked between blocks; True ends the pull. Blocks that are left are CANCELLED.
    cancelled: Callable[[], bool] = lambda: False


class Channel(Protocol):
    """A way to one peer, for one thread at a time."""

    @property
    def path(self) -> str:
        """What was observed, for `path_observed`: "tcp", "tcp+tls", "shm", "nixl (UCX)"."""
        ...

    @property
    def broken(self) -> bool:
        """Whether it has to be closed and not used again; so after LATE, UNREACHABLE, REFUSED."""
        ...

    def pull(self, pull: Pull) -> list[Outcome]:
        """Lease at the holder, transfer, check, release: an outcome for each key.

        Returns by `pull.expires_s`, whatever the peer does, and writes to no target afterwards.
        Raises nothing that a peer or the network can bring about.
        """
        ...

    def close(self) -> None:
        """Let go of sockets and memory; once more is no error."""
        ...


class Transport(Protocol):
    """A kind of channel."""

    @property
    def name(self) -> str:
        """tcp, shm, nixl: the key in `Peer.endpoints`."""
        ...

    def reaches(self, peer: Peer) -> bool:
        """Whether both ends have what it takes."""
        ...

    def connect(self, peer: Peer, expires_s: float) -> Channel:
        """A channel to the peer, with credentials, version and layout agreed on.

        Raises:
            PeerError: there is none by `expires_s`, or the peer refuses; with the reason.
        """
        ...

    def close(self) -> None:
        """Let go of what all its channels share."""
        ...

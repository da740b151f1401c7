"""What a store is to who uses it, whether its blocks are all here or some with peers.

`TieredStore` and `kvbench.peer.PeerStore` are stores. Names no device and knows no peer.

May import: kvbench.store.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

from kvbench.store.block import Layout
from kvbench.store.events import Events
from kvbench.store.lease import Lease
from kvbench.store.loans import Loan
from kvbench.store.metrics import StoreStats
from kvbench.store.request import Request

PEER = "peer"  # the tier of a block that is not here: a peer is believed to have it


class Store(Protocol):
    """What `TieredStore` and `PeerStore` have in common: the API of a store."""

    @property
    def layout(self) -> Layout:
        """The shape of its blocks."""
        ...

    def lookup(
        self, keys: Sequence[bytes], *, owner: str = "", ttl_s: float | None = None
    ) -> Lease:
        """See `TieredStore.lookup`."""
        ...

    def get_into(
        self,
        source: Lease | Sequence[bytes],
        rows: object,
        *,
        deadline_s: float | None = None,
        by_layer: bool = False,
    ) -> Request:
        """See `TieredStore.get_into`."""
        ...

    def put(
        self,
        keys: Sequence[bytes],
        rows: object,
        *,
        parent: bytes | None = None,
        position: int = 0,
        tenant: str = "",
        deadline_s: float | None = None,
    ) -> Request:
        """See `TieredStore.put`."""
        ...

    def prefetch(self, keys: Sequence[bytes], *, deadline_s: float | None = None) -> Request:
        """See `TieredStore.prefetch`."""
        ...

    def flush(
        self, keys: Sequence[bytes] | None = None, *, deadline_s: float | None = None
    ) -> Request:
        """See `TieredStore.flush`."""
        ...

    def cancel(self, request: Request) -> None:
        """See `TieredStore.cancel`."""
        ...

    def release(self, lease: Lease) -> None:
        """See `TieredStore.release`."""
        ...

    def lend(
        self,
        keys: Sequence[bytes],
        *,
        owner: str = "",
        ttl_s: float | None = None,
        tenants: Collection[str] | None = None,
    ) -> Loan:
        """See `TieredStore.lend`."""
        ...

    def used(self, keys: Sequence[bytes]) -> None:
        """See `TieredStore.used`."""
        ...

    def stats(self) -> StoreStats:
        """See `TieredStore.stats`."""
        ...

    def events(self, since: int = 0, limit: int = 1024) -> Events:
        """See `TieredStore.events`."""
        ...

    def close(self, *, flush: bool = True) -> None:
        """See `TieredStore.close`."""
        ...

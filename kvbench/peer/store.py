"""The store and its peers behind the store's own API: what a peer has is one more tier, "peer".

Local blocks come first, and what is wholly local, or wholly nowhere, is answered by the local
store's own lease or request: peers cost it nothing. Puts and flushes are local. Which peers there
are is for the directory, how blocks come from them for `kvbench.peer.fetch`.

```python
with PeerStore(store, fetcher, namespace.digest) as shared, shared.lookup(keys) as lease:
    statuses = shared.get_into(lease, rows[: len(lease)], deadline_s=0.5).result()
```

May import: kvbench.errors, kvbench.peer, kvbench.store.
"""

import threading
import time
from collections.abc import Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

import numpy as np

from kvbench.errors import UsageError
from kvbench.peer.fetch import Fetcher
from kvbench.peer.flight import Wanted
from kvbench.peer.joined import Joined, Some
from kvbench.peer.keeping import Keeping, Origin
from kvbench.peer.model import Reason
from kvbench.peer.traffic import FetchStats
from kvbench.store.api import PEER
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.core import admission
from kvbench.store.events import Events
from kvbench.store.lease import Lease
from kvbench.store.loans import Loan
from kvbench.store.metrics import StoreStats
from kvbench.store.options import Moving
from kvbench.store.request import Request
from kvbench.store.rows import HostRows, Rows, as_rows
from kvbench.store.store import TieredStore

_T = TypeVar("_T")
REMEMBERED_KEYS = 1_000_000  # fetched once, for keep="second_touch"


class PeerStoreStats(StoreStats, frozen=True, kw_only=True):
    """A store and what it had to do with peers. `peers.reasons` are no misses of the store.

    A block that came from a peer is a miss in the local counters and not one of the reasons.
    """

    peers: FetchStats


_BEGINNING = Origin()


class PeerStore:
    """A store whose misses may be had from peers. Thread-safe. It closes both that it is given.

    `namespace` is the digest that all its keys were made in; peers without it are not asked. `keep`
    says which fetched blocks the local store takes: those fetched a second time, all, or none.
    """

    def __init__(
        self,
        store: TieredStore,
        fetcher: Fetcher,
        namespace: bytes,
        *,
        keep: Moving = "second_touch",
    ) -> None:
        if store.layout != fetcher.layout:
            raise UsageError(
                f"the store has blocks of {store.layout}, the fetcher of {fetcher.layout}: "
                "they have to be equal"
            )
        self.store = store
        self.fetcher = fetcher
        self._namespace = namespace
        self._keep = keep
        self._admission = admission(keep, REMEMBERED_KEYS)
        self._asking = threading.Lock()  # of the admission

    @property
    def layout(self) -> Layout:
        """The shape of its blocks."""
        return self.store.layout

    def lookup(
        self, keys: Sequence[bytes], *, owner: str = "", ttl_s: float | None = None
    ) -> Lease:
        """Lease the local prefix; what a peer is believed to have beyond it is of tier "peer".

        That is a hint, from this process's own memory: nobody is asked, and nothing is held there.
        """
        local = self.store.lookup(keys, owner=owner, ttl_s=ttl_s)
        here = len(local)
        if here == len(keys) or local.refused:
            return local
        there = self.fetcher.reach(self._namespace, keys[here:] if here else keys)
        if not there:
            return local
        return Lease(
            tuple(keys[: here + there]),
            (*local.tiers, *(PEER,) * there),
            [],  # what is held, `local` holds
            owner=owner,
            ttl_s=local.ttl_s,
            release=lambda _: local.release(),
        )

    def get_into(
        self,
        source: Lease | Sequence[bytes],
        rows: object,
        *,
        deadline_s: float | None = None,
        by_layer: bool = False,
        origin: Origin = _BEGINNING,
    ) -> Request:
        """Copy blocks into rows, as `TieredStore.get_into`: from here, else from peers.

        Statuses are those of the store, and `Request.reasons` says of a key that a peer was to have
        why it did not come: see `kvbench.peer.model.Reason`. The keys are taken for one prefix:
        those after the first that is nowhere are not fetched. A block from a peer arrives whole,
        all its layers at once. `origin` is for blocks that are kept.
        """
        here = self.store.get_into(source, rows, deadline_s=deadline_s, by_layer=by_layer)
        missing = _missing(here)
        if not missing:
            return here
        keys = source.keys if isinstance(source, Lease) else source
        keep = None
        if self._keep != "never":
            keep = self._keeping(here, keys, missing, origin, by_choice=True)
        wanted = Wanted(
            namespace=self._namespace,
            keys=_some(keys, missing),
            rows=self._rows(rows, missing, len(keys)),
            keep=keep,
        )
        return self._with_peers(here, wanted, missing, by_layer=by_layer)

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
        """Store blocks here: see `TieredStore.put`. Peers hear of them by its events."""
        return self.store.put(
            keys, rows, parent=parent, position=position, tenant=tenant, deadline_s=deadline_s
        )

    def prefetch(
        self,
        keys: Sequence[bytes],
        *,
        deadline_s: float | None = None,
        origin: Origin = _BEGINNING,
    ) -> Request:
        """Bring blocks from a drive, or from peers, to memory: OK once each is there.

        Whatever `keep` says, what came from a peer is put into the local store, as of `origin`.
        """
        here = self.store.prefetch(keys, deadline_s=deadline_s)
        missing = _missing(here)
        if not missing:
            return here
        keep = self._keeping(here, keys, missing, origin, by_choice=False)
        wanted = Wanted(namespace=self._namespace, keys=_some(keys, missing), rows=None, keep=keep)
        return self._with_peers(here, wanted, missing)

    def flush(
        self, keys: Sequence[bytes] | None = None, *, deadline_s: float | None = None
    ) -> Request:
        """Make local blocks durable: see `TieredStore.flush`."""
        return self.store.flush(keys, deadline_s=deadline_s)

    def cancel(self, request: Request) -> None:
        """Do no more for a request: what is open becomes TIMEOUT."""
        self.store.cancel(request)

    def release(self, lease: Lease) -> None:
        """End a lease; once more is no error."""
        lease.release()

    def lend(
        self,
        keys: Sequence[bytes],
        *,
        owner: str = "",
        ttl_s: float | None = None,
        tenants: Collection[str] | None = None,
    ) -> Loan:
        """Lend local blocks where they lie: see `TieredStore.lend`."""
        return self.store.lend(keys, owner=owner, ttl_s=ttl_s, tenants=tenants)

    def used(self, keys: Sequence[bytes]) -> None:
        """See `TieredStore.used`."""
        self.store.used(keys)

    def stats(self) -> PeerStoreStats:
        """The local store's, and of peers."""
        local = self.store.stats()
        fields = {name: getattr(local, name) for name in local.__struct_fields__}
        return PeerStoreStats(**fields, peers=self.fetcher.stats())

    def events(self, since: int = 0, limit: int = 1024) -> Events:
        """Local blocks that came and went."""
        return self.store.events(since, limit)

    def close(self, *, flush: bool = True) -> None:
        """End what is under way with peers, then the local store."""
        self.fetcher.close()
        self.store.close(flush=flush)

    # Behind it.

    def _rows(self, rows: object, missing: Sequence[int], count: int) -> Rows:
        """The rows of what is missing, of those that the local store has taken and so checked."""
        if isinstance(rows, np.ndarray) or type(rows) is list:  # others may have methods of `Rows`
            return HostRows(_some(cast("Sequence[Bytes]", rows), missing), self.layout)
        whole = as_rows(rows, count, self.layout)
        if isinstance(whole, HostRows):
            return HostRows(_some(whole.arrays, missing), self.layout)
        return whole if len(missing) == count else Some(whole, missing)

    def _admits(self, keys: Sequence[bytes]) -> list[bool]:
        """Which blocks that were fetched the local store is to take."""
        with self._asking:
            return [self._admission.admit(key) for key in keys]

    def _keeping(
        self,
        here: Request,
        keys: Sequence[bytes],
        missing: Sequence[int],
        origin: Origin,
        *,
        by_choice: bool,
    ) -> Keeping:
        """What is to become of blocks that arrive, by the deadline of their request."""
        expires_s = time.monotonic() + self.fetcher.options.deadline_s
        if here.expires_s is not None:
            expires_s = min(expires_s, here.expires_s)
        admits = self._admits if by_choice else None
        keeping = Keeping(self.store, keys, missing, origin, admits, expires_s)
        keeping.kept = partial(self.fetcher.traffic.add, "kept")
        return keeping

    def _with_peers(
        self,
        here: Request,
        wanted: Wanted,
        missing: Sequence[int],
        *,
        by_layer: bool = False,
    ) -> Request:
        """Ask peers for what is missing here, if there is anybody to ask."""
        choice = self.fetcher.choose(self._namespace, wanted.keys)
        if not choice.holders and not choice.refused:
            self.fetcher.traffic.add("asked", len(missing))
            self.fetcher.traffic.missed(Reason.NOBODY, len(missing))
            return here
        left_s = None if here.expires_s is None else here.expires_s - time.monotonic()
        parts = self.layout.parts if by_layer else 0
        away = self.fetcher.fetch(wanted, choice, deadline_s=left_s, parts=parts)
        return Joined(here, away, missing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(flush=kind is None)


def _some(each: Sequence[_T], at: Sequence[int]) -> Sequence[_T]:
    """Those at these places, which are in order and each another."""
    return list(each) if len(at) == len(each) else [each[i] for i in at]


def _missing(request: Request) -> list[int]:
    """The keys that are not here: a store says so before it returns the request."""
    miss, found = Status.MISS, request.statuses
    if not [status for status in found if status is miss]:  # most often: half as long as the next
        return []
    return [i for i, status in enumerate(found) if status is miss]

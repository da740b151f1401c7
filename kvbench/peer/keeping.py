"""Blocks that came from a peer, put into the local store: which of them, and as what.

A block is put with its parent and its position: the keys of a request are one prefix, in order.

May import: kvbench.errors, kvbench.peer.{flight, joined}, kvbench.store.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvbench.errors import UsageError
from kvbench.peer.flight import Then
from kvbench.peer.joined import when_done
from kvbench.store.block import KEY_BYTES, MOST_TENANT_BYTES, Bytes, Status
from kvbench.store.store import TieredStore

_log = logging.getLogger("kvbench.peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where in a prefix the first key of a request is, and who pays for what is kept of it.

    Raises:
        UsageError: the parent is no key, the position negative, or the tenant too long.
    """

    parent: bytes | None = None
    position: int = 0
    tenant: str = ""

    def __post_init__(self) -> None:
        if self.parent is not None and len(self.parent) != KEY_BYTES:
            raise UsageError(f"a parent of {len(self.parent)} bytes: keys have {KEY_BYTES}")
        if self.position < 0:
            raise UsageError(f"position is {self.position}: it counts the blocks before the first")
        if len(self.tenant.encode()) > MOST_TENANT_BYTES or "\0" in self.tenant:
            raise UsageError(
                f"the tenant {self.tenant[:20]!r}: at most {MOST_TENANT_BYTES} bytes, without NUL"
            )


class Keeping:
    """Puts blocks that were fetched into the local store, as one prefix in order.

    `admits` is None for a prefetch: then all are put, and what became of it is the keys' status.
    """

    def __init__(
        self,
        store: TieredStore,
        keys: Sequence[bytes],
        missing: Sequence[int],
        origin: Origin,
        admits: Callable[[Sequence[bytes]], list[bool]] | None,
        expires_s: float,
    ) -> None:
        self._store = store
        self._keys = keys
        self._missing = missing
        self._origin = origin
        self._admits = admits
        self._expires_s = expires_s
        self.kept: Callable[[int], None] = lambda _: None  # told how many blocks the store took

    def __call__(self, indexes: Sequence[int], payloads: Sequence[Bytes], then: Then) -> None:
        """See `Keep`."""
        places = [self._missing[i] for i in indexes]
        if self._admits is not None:
            admitted = self._admits([self._keys[place] for place in places])
            pairs = zip(places, payloads, admitted, strict=True)
            blocks = [(place, payload) for place, payload, may in pairs if may]
        else:
            blocks = list(zip(places, payloads, strict=True))
        if not blocks:
            then(None)
            return
        found: dict[int, Status] = {}
        runs = _runs(blocks)
        left = len(runs)
        lock = threading.Lock()

        def over(run: list[tuple[int, Bytes]], statuses: Sequence[Status]) -> None:
            nonlocal left
            with lock:
                found.update(zip((place for place, _ in run), statuses, strict=True))
                left -= 1
                last = not left
            if last:
                self.kept(sum(status is Status.OK for status in found.values()))
                then(None if self._admits is not None else [found[place] for place in places])

        for run in runs:
            self._put(run, over)

    def _put(
        self,
        run: list[tuple[int, Bytes]],
        over: Callable[[list[tuple[int, Bytes]], Sequence[Status]], None],
    ) -> None:
        """Put neighbouring blocks, and tell once their payloads are not in use any more."""
        first = run[0][0]
        try:
            request = self._store.put(
                [self._keys[place] for place, _ in run],
                [payload for _, payload in run],
                parent=self._keys[first - 1] if first else self._origin.parent,
                position=self._origin.position + first,
                tenant=self._origin.tenant,
                # A row that is being put is not the caller's yet, whom nobody is to hold up.
                deadline_s=self._expires_s - time.monotonic(),
            )
        except UsageError as error:  # closed meanwhile, or keys that are no prefix
            _log.warning("fetched blocks are not kept: %s", error)
            over(run, [Status.BUSY] * len(run))
            return
        when_done(request, lambda: over(run, request.result()))


def _runs(blocks: list[tuple[int, Bytes]]) -> list[list[tuple[int, Bytes]]]:
    """Blocks by neighbouring places, as they come."""
    runs: list[list[tuple[int, Bytes]]] = []
    for block in blocks:
        if runs and runs[-1][-1][0] + 1 == block[0]:
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs

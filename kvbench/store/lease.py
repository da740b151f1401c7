"""Leases: who may read which blocks, and until when. No I/O, no threads.

The caller holds the store's lock, but for `Lease` itself, which only remembers.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

Hold = tuple[int, int]  # which tier, from the fastest, and its slot
Holds = list[tuple[int, list[int]]]  # the same, by tier


class Lease:
    """The right to read the usable prefix of some keys until it expires or is released.

    `keys` are those found, from the first on without a gap; `tiers` names where each lies. A lease
    that has expired still names its keys: they are then looked up anew, and may be gone.
    """

    __slots__ = ("_release", "expires_s", "holds", "keys", "owner", "refused", "tiers", "ttl_s")

    def __init__(
        self,
        keys: tuple[bytes, ...],
        tiers: tuple[str, ...],
        holds: Holds,
        *,
        owner: str,
        ttl_s: float,
        release: Callable[["Lease"], None],
    ) -> None:
        self.keys = keys
        self.tiers = tiers
        self.holds = holds  # emptied when the lease ends
        self.owner = owner
        self.ttl_s = ttl_s
        self.expires_s = time.monotonic() + ttl_s
        self.refused = False  # too many leases are out: nothing is held
        self._release = release

    def __len__(self) -> int:
        """Blocks of the usable prefix."""
        return len(self.keys)

    def release(self) -> None:
        """Let the blocks go; once more is no error."""
        self._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class LeaseBook:
    """The leases that are out, those that expire first in front."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_ttl: dict[float, dict[int, Lease]] = {}  # of one ttl they expire in this order
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, lease: Lease) -> None:
        """A lease goes out."""
        self._by_ttl.setdefault(lease.ttl_s, {})[id(lease)] = lease
        self._count += 1

    def remove(self, lease: Lease) -> bool:
        """A lease ends; False if it had ended before."""
        same = self._by_ttl.get(lease.ttl_s)
        if same is None or same.pop(id(lease), None) is None:
            return False
        if not same:
            del self._by_ttl[lease.ttl_s]
        self._count -= 1
        return True

    def expired(self, now_s: float) -> list[Lease]:
        """The leases that are over; they stay until they are removed."""
        over: list[Lease] = []
        for same in self._by_ttl.values():
            for lease in same.values():
                if lease.expires_s > now_s:
                    break
                over.append(lease)
        return over

    def all(self) -> list[Lease]:
        """Every lease that is out."""
        return [lease for same in self._by_ttl.values() for lease in same.values()]

"""What the tests of the directory share: peers by number, keys, a store that is only its events."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence

from kvbench.peer.model import Peer
from kvbench.store.block import Stamp
from kvbench.store.events import EventLog, Events, Kind

NAMESPACE = b"n" * 16


def peer(
    number: int,
    *,
    epoch: int = 1,
    draining: bool = False,
    version: int = 1,
    block_bytes: int = 4096,
    namespaces: tuple[bytes, ...] = (NAMESPACE,),
) -> Peer:
    return Peer(
        id=number.to_bytes(16, "big"),
        name=f"peer-{number}",
        epoch=epoch,
        version=version,
        block_bytes=block_bytes,
        parts=1,
        namespaces=namespaces,
        host="h",
        endpoints={},
        capacities={"dram": 2**30},
        draining=draining,
    )


def key(number: int) -> bytes:
    return number.to_bytes(8, "little") + bytes(24)


def keys(numbers: Iterable[int]) -> list[bytes]:
    return [key(number) for number in numbers]


def stamps(of: Iterable[bytes], tenant: str) -> list[Stamp]:
    return [Stamp(each, None, 0, tenant, b"") for each in of]


class Eventful:
    """A real log of events over tiers of keys: what a publisher sees of a store."""

    def __init__(self, most_events: int = 65_536) -> None:
        self.log = EventLog(most_events)
        self.tiers: dict[str, dict[bytes, str]] = {"dram": {}, "nvme": {}}
        self.listings = 0

    def events(self, since: int = 0, limit: int = 1024) -> Events:
        return self.log.since(since, limit)

    def wait_for_event(self, number: int, timeout_s: float) -> bool:
        return self.log.wait(number, timeout_s)

    def held(self, keys: Sequence[bytes], *, tenants: Collection[str] | None) -> Sequence[bool]:
        there = self.listing(tenants=tenants, counted=False)
        return [each in there for each in keys]

    def listing(self, *, tenants: Collection[str] | None, counted: bool = True) -> set[bytes]:
        self.listings += counted
        return {
            each
            for tier in self.tiers.values()
            for each, tenant in tier.items()
            if tenants is None or tenant in tenants
        }

    def put(self, of: Sequence[bytes], tier: str = "dram", tenant: str = "") -> None:
        self.tiers[tier].update(dict.fromkeys(of, tenant))
        self.log.append(Kind.STORED, tier, stamps(of, tenant))

    def evict(self, of: Sequence[bytes], tier: str = "dram", tenant: str = "") -> None:
        for each in of:
            del self.tiers[tier][each]
        self.log.append(Kind.REMOVED, tier, stamps(of, tenant))

    def fence(self, tier: str) -> None:
        self.tiers[tier].clear()
        self.log.append_tier(Kind.FENCED, tier, "EIO")


def eventually(true: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Whether it becomes true in time; for what other threads and processes do."""
    until_s = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.005)
    return True

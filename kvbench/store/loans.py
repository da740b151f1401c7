"""What others are told of a store, and blocks that are lent to them where they lie.

A loan holds its blocks as a lease does, and ends as one: when it is released or its time is up. Who
reads late reads memory that may hold another block by then, and finds out by the checksums.

The store's lock is held where it says so.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from kvbench.store.block import Bytes, Stamp
from kvbench.store.core import Core
from kvbench.store.lease import Holds, Lease

LISTED_AT_ONCE = 4096  # keys that the lock is held for: a few milliseconds


@dataclass(frozen=True, slots=True)
class Lent:
    """One block, where it lies."""

    tier: str
    slot: int
    stamp: Stamp  # `sums` is empty for a block that was recovered: they are in its record
    view: Bytes | None  # the slot's own memory, if the host can address it


@dataclass(frozen=True, slots=True)
class Loan:
    """Some blocks until `lease.expires_s` (monotonic clock); None for those that are not here."""

    blocks: list[Lent | None]
    lease: Lease

    def release(self) -> None:
        """Let the blocks go; once more is no error."""
        self.lease.release()


def lend(
    core: Core,
    keys: Sequence[bytes],
    tenants: Collection[str] | None,
    make: Callable[[tuple[bytes, ...], tuple[str, ...], Holds], Lease],
) -> Loan:
    """Hold those of the keys that are here, of these tenants (None: of all); the lock is held.

    With too many leases out, nothing is held, and `lease.refused` says so.
    """
    blocks: list[Lent | None] = []
    held: dict[int, list[int]] = {}
    full = len(core.leases) >= core.leases.limit
    for key in keys:
        place = None if full else core.find(key)
        stamp = None if place is None else core.levels[place[0]].table.stamp(place[1])
        if place is None or stamp is None or not (tenants is None or stamp.tenant in tenants):
            blocks.append(None)
            continue
        level, slot = core.levels[place[0]], place[1]
        blocks.append(Lent(level.name, slot, stamp, level.tier.view(slot)))
        held.setdefault(level.number, []).append(slot)
    for number, slots in held.items():
        core.levels[number].table.lease(slots)
    found = [(key, block.tier) for key, block in zip(keys, blocks, strict=True) if block]
    lease = make(
        tuple(key for key, _ in found), tuple(tier for _, tier in found), list(held.items())
    )
    lease.refused = full
    if found:
        core.leases.add(lease)
    return Loan(blocks, lease)


def held(core: Core, keys: Sequence[bytes], tenants: Collection[str] | None) -> list[bool]:
    """Of each key, whether its block can be found now, and is one of these tenants."""
    with core.lock:
        places = [core.find(key) for key in keys]
        return [
            place is not None
            and (tenants is None or core.levels[place[0]].table.stamp(place[1]).tenant in tenants)
            for place in places
        ]


def listing(core: Core, tenants: Collection[str] | None) -> list[bytes]:
    """The keys of all blocks of these tenants that can be found, each once, in no order."""
    found: dict[bytes, None] = {}
    for level in core.levels:
        with core.lock:
            keys = list(level.table.index) if level.readable else []
        found.update(dict.fromkeys(keys))
    everything = list(found)
    if tenants is None:
        return everything
    mine: list[bytes] = []
    for at in range(0, len(everything), LISTED_AT_ONCE):
        some = everything[at : at + LISTED_AT_ONCE]
        mine += [key for key, here in zip(some, held(core, some, tenants), strict=True) if here]
    return mine

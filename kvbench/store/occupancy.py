"""What a store holds at one moment, for its stats. The store's lock is held."""

from collections.abc import Mapping

from kvbench.store.core import Core, Level
from kvbench.store.metrics import Occupancy, Queue, TierOccupancy, Use
from kvbench.store.moves import Moves
from kvbench.store.puts import Puts
from kvbench.store.table import State
from kvbench.store.tier import Fact

HOLDING = (State.READY, State.LEASED)


def occupancy(
    core: Core, moves: Moves, puts: Puts, facts: Mapping[str, dict[str, Fact]]
) -> Occupancy:
    """Tiers, tenants, queues and leases as they are now; the lock is held."""
    block_bytes = core.layout.block_bytes
    queues = {
        "put": Queue(
            depth=puts.queued_bytes // block_bytes,
            limit=core.options.put_queue_bytes // block_bytes,
            size_bytes=puts.queued_bytes,
            limit_bytes=core.options.put_queue_bytes,
        )
    }
    for level in core.levels:
        waiting = moves.waiting(level)
        limit = moves.limit(level)
        queues[f"move to {level.name}"] = Queue(
            depth=waiting,
            limit=limit,
            size_bytes=waiting * block_bytes,
            limit_bytes=limit * block_bytes,
        )
        for pool in level.pools():
            queues[pool.name] = Queue(depth=pool.depth, limit=pool.limit)
    in_flight = sum(len(level.table.writing) for level in core.levels)
    return Occupancy(
        tiers={level.name: _tier(level, block_bytes, facts[level.name]) for level in core.levels},
        queues=queues,
        in_flight_bytes=in_flight * block_bytes,
        leases=len(core.leases),
    )


def _tier(level: Level, block_bytes: int, facts: dict[str, Fact]) -> TierOccupancy:
    tenants = {
        tenant: Use(
            blocks=blocks,
            size_bytes=blocks * block_bytes,
            quota_bytes=level.quotas.get(tenant),
        )
        for tenant, blocks in level.holding.items()
    }
    states = level.table.counts()
    return TierOccupancy(
        slots=level.table.slots,
        used=sum(states[state.name] for state in HOLDING),
        block_bytes=block_bytes,
        states=states,
        tenants=tenants,
        fence=None if level.fence is None else level.fence.reason,
        facts=facts,
    )

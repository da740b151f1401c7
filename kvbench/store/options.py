"""How a store behaves: limits of its queues, when blocks move, when a tier is given up.

Every default is finite. Sizes are bytes, times seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from kvbench.errors import UsageError
from kvbench.policy.lru import LRU
from kvbench.policy.tenants import TenantPolicy
from kvbench.policy.tree import TreePolicy

MIB = 2**20
Moving = Literal["always", "second_touch", "never"]


def _lru() -> TreePolicy[bytes]:
    return LRU()


def _unwatched(tier: str, policy: TenantPolicy[bytes]) -> TenantPolicy[bytes]:  # noqa: ARG001
    return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Limits and choices of a store; the defaults suit an engine on one machine.

    `quotas` are bytes by tier and tenant. A tenant above its quota is not refused while there is
    room, but its blocks go first. `low_water` is how full a tier with a slow index (a drive) is
    left once it had to evict: slots are then freed by the batch. `watched` may wrap the policy of
    a tier, to record its decisions (kvbench.testing.decisions).

    Raises:
        UsageError: a limit is not positive, or a share is not in (0, 1].
    """

    policy: Callable[[], TreePolicy[bytes]] = _lru  # one for each tier and tenant
    watched: Callable[[str, TenantPolicy[bytes]], TenantPolicy[bytes]] = _unwatched  # by tier
    demotion: Moving = "second_touch"  # from a faster tier to a durable one: what gets written
    promotion: Moving = "always"  # from a durable tier to memory, when it is read
    quotas: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    remembered_keys: int = 1_000_000  # keys seen once, for second_touch
    low_water: float = 0.98
    lease_s: float = 30.0  # unless `lookup` is told otherwise
    most_leases: int = 100_000
    memory_threads: int = 2  # for each tier in memory
    read_threads: int = 8  # for each tier that may stall; each has a transfer of many blocks there
    write_threads: int = 8
    transfer_bytes: int = 4 * MIB  # neighbouring blocks of a drive move together up to this size
    batch_bytes: int = 8 * MIB  # blocks in memory are copied by one thread up to this size
    put_queue_bytes: int = 1024 * MIB  # rows that wait to be copied; beyond it `put` says BUSY
    write_behind_bytes: int = 256 * MIB  # blocks that wait to be written; beyond it they are not
    queued_tasks: int = 16_384  # for each pool; beyond it `get_into` says BUSY
    stuck_s: float = 30.0  # an operation that takes longer gives its tier up
    errors_in_a_row: int = 3  # so many failed transfers give a tier up
    event_history: int = 65_536

    def __post_init__(self) -> None:
        for name in (
            "remembered_keys",
            "lease_s",
            "most_leases",
            "memory_threads",
            "read_threads",
            "write_threads",
            "transfer_bytes",
            "batch_bytes",
            "put_queue_bytes",
            "write_behind_bytes",
            "queued_tasks",
            "stuck_s",
            "errors_in_a_row",
            "event_history",
        ):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}: it has to be more than 0")
        if not 0 < self.low_water <= 1:
            raise UsageError(f"low_water is {self.low_water}: it is a share, above 0 and up to 1")

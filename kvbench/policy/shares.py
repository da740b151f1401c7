"""Victims from several tenants' policies, one by one, each as if those before it had gone already.

The rules of who comes first are here; who holds what is in `tenants`. Changes no policy's order.

May import: nothing of kvbench but kvbench.policy.
"""

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic

from kvbench.policy.policy import Key
from kvbench.policy.tree import TreePolicy

FIRST_ASKED = 4  # of each tenant, in the hope that most are not asked again


@dataclass(slots=True)
class _Offer(Generic[Key]):
    """What a tenant's policy answered last."""

    keys: deque[Key]  # those that are no victims yet
    complete: bool  # there were no more


class Draw(Generic[Key]):
    """One call's victims. Costs O(tenants) for each block that a policy looks at.

    Args:
        policies: of each tenant; at least one.
        owner: the tenant that has a block in the tier, or None.
        count: the most victims.
        spared: blocks that stay.
    """

    def __init__(
        self,
        policies: Mapping[str, TreePolicy[Key]],
        owner: Callable[[Key], str | None],
        count: int,
        spared: Callable[[Key], bool],
    ) -> None:
        self._policies = policies
        self._owner = owner
        self._count = count
        self._spared = spared
        self._victims: list[Key] = []
        self._taken: dict[str, list[Key]] = {tenant: [] for tenant in policies}
        self._gone: dict[Key, int] = {}  # victims that were children of another tenant's block
        self._offers: dict[str, _Offer[Key]] = {}

    def victims(self) -> list[Key]:
        """Those drawn so far, in order."""
        return self._victims

    def of_one(self, tenant: str) -> None:
        """Draw from one tenant, in its policy's order."""
        while len(self._victims) < self._count and self._first(tenant) is not None:
            self._take(tenant)

    def of_all(self, excess: Mapping[str, int], used: Mapping[Key, int]) -> None:
        """Draw `excess` blocks from each tenant that is over quota, then the oldest of all.

        Of the blocks that each tenant would give next, the oldest is the least recently used.
        Blocks without a time are older than all with one, and one tenant's.
        """
        self._over_quota(excess)
        heap: list[tuple[int, str]] = []

        def offer(tenant: str) -> None:
            first = self._first(tenant) if len(self._victims) < self._count else None
            if first is not None:
                heapq.heappush(heap, (used.get(first, 0), tenant))

        for tenant in self._policies:
            offer(tenant)
        while heap and len(self._victims) < self._count:
            time, tenant = heapq.heappop(heap)
            first = self._first(tenant)
            if first is not None and used.get(first, 0) == time:
                freed = self._take(tenant)
                if freed is not None:
                    self._over_quota(excess)  # it may be one of these
                    for each in self._policies:
                        offer(each)
            offer(tenant)  # its next, or the one that came to be its first since

    def _over_quota(self, excess: Mapping[str, int]) -> None:
        """Draw from the tenant that has most left to give, again and again."""
        heap = [(-over, tenant) for tenant, over in excess.items()]
        heapq.heapify(heap)
        while heap and len(self._victims) < self._count:
            seen, tenant = heapq.heappop(heap)
            over = excess[tenant] - len(self._taken[tenant])
            if over <= 0 or self._first(tenant) is None:
                continue
            if over == -seen:
                freed = self._take(tenant)
                over -= 1
                if freed is not None and freed in excess:
                    heapq.heappush(heap, (len(self._taken[freed]) - excess[freed], freed))
            heapq.heappush(heap, (-over, tenant))

    def _first(self, tenant: str) -> Key | None:
        """The block that the tenant's policy would give next."""
        offer = self._offers.get(tenant)
        if offer is None or (not offer.keys and not offer.complete):
            taken = self._taken[tenant]
            asked = max(1, min(max(FIRST_ASKED, len(taken)), self._count - len(self._victims)))
            stays = self._stays(tenant)
            keys = self._policies[tenant].victims(asked, stays, gone=taken)
            offer = self._offers[tenant] = _Offer(deque(keys), complete=len(keys) < asked)
        return offer.keys[0] if offer.keys else None

    def _take(self, tenant: str) -> str | None:
        """Make the tenant's first block a victim. The other tenant whose block that set free."""
        key = self._offers[tenant].keys.popleft()
        self._victims.append(key)
        self._taken[tenant].append(key)
        parent = self._policies[tenant].family.parents[key]
        owner = None if parent is None else self._owner(parent)
        if parent is None or owner is None or owner == tenant:
            return None
        self._gone[parent] = self._gone.get(parent, 0) + 1
        children = sum(each.get(parent, 0) for each in self._children_elsewhere(owner))
        if children > self._gone[parent]:
            return None
        self._offers.pop(owner, None)  # it may offer the parent now, and that before others
        return owner

    def _stays(self, tenant: str) -> Callable[[Key], bool]:
        spared, gone, others = self._spared, self._gone, self._children_elsewhere(tenant)

        def stays(key: Key) -> bool:
            children = 0
            for each in others:
                children += each.get(key, 0)
            return children > gone.get(key, 0) or spared(key)

        return stays

    def _children_elsewhere(self, tenant: str) -> list[dict[Key, int]]:
        """How many children each block has, of each tenant but this one."""
        policies = self._policies.items()
        return [policy.family.children for name, policy in policies if name != tenant]

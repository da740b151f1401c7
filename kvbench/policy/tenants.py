"""One policy for each tenant of a tier, and who of them has to give way.

Over-quota tenants lose blocks first, the one that is most over first, each down to its quota; then
the blocks go whose last use is longest ago, whoever has them. A parent of one tenant stays while a
child of another is in the tier. With one tenant this is its policy, with no work of its own.

May import: kvbench.errors, kvbench.policy.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count as count_up
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Generic, Protocol

from kvbench.errors import UsageError
from kvbench.policy.policy import Key
from kvbench.policy.shares import Draw
from kvbench.policy.tree import TreePolicy

NO_QUOTAS: Mapping[str, int] = MappingProxyType({})


class TenantPolicy(Protocol[Key]):
    """What a store needs of the policy of a tier that tenants share: `Tenants`, or a recorder."""

    def insert(self, key: Key, parent: Key | None, position: int, tenant: str) -> None:
        """A tenant's block came into the tier. A key that is here, whoever has it: ValueError."""
        ...

    def insert_many(
        self,
        keys: Sequence[Key],
        parents: Sequence[Key | None],
        positions: Sequence[int],
        tenants: Sequence[str],
    ) -> None:
        """As `insert` for each, oldest first."""
        ...

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order. Absent ones are ignored."""
        ...

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        ...

    def remove_many(self, keys: Sequence[Key]) -> None:
        """As `remove` for each."""
        ...

    def victims(
        self, count: int, spared: Callable[[Key], bool], tenant: str | None = None
    ) -> list[Key]:
        """Up to `count` blocks that should go, of all tenants or of one."""
        ...

    def blocks_of(self, tenant: str) -> int:
        """How many blocks the tenant has in the tier."""
        ...

    def excess(self, tenant: str, adding: int = 0) -> int:
        """How many blocks the tenant would be over its quota with `adding` more; 0 if it is not."""
        ...

    def over_quota(self) -> dict[str, int]:
        """Blocks over the quota of each tenant that is, most first."""
        ...

    def __contains__(self, key: object) -> bool: ...

    def __len__(self) -> int: ...


class Tenants(Generic[Key]):
    """The blocks of one tier, by tenant; a `TenantPolicy`.

    `touch` with one tenant costs what the policy does; with several, a few dict operations a key
    more. `victims` is that of the policies, plus O(tenants) to ask each for its first, plus
    O(tenants) for each block that is looked at, to see whether others have children of it.
    A tenant without blocks is forgotten, with what its policy remembered of it.

    Args:
        make_policy: makes the policy of one tenant: `LRU`, for one.
        quotas: blocks that a tenant may have when others want room.
        default_quota: of tenants that are not in `quotas`; None for no limit.

    Raises:
        UsageError: a quota is negative.
    """

    def __init__(
        self,
        make_policy: Callable[[], TreePolicy[Key]],
        quotas: Mapping[str, int] = NO_QUOTAS,
        default_quota: int | None = None,
    ) -> None:
        for tenant, quota in (*quotas.items(), ("the others", default_quota)):
            if quota is not None and quota < 0:
                raise UsageError(f"quota of {tenant} is {quota} blocks: expected 0 or more")
        self._make_policy = make_policy
        self._quotas = dict(quotas)
        self._default_quota = default_quota
        self._policies: dict[str, TreePolicy[Key]] = {}
        # Blocks that are not in `_owners` are the home tenant's: the only one, or the one that was.
        self._home: str | None = None
        self._owners: dict[Key, str] = {}
        # Last use, kept while there are several tenants. Blocks without are older than all with,
        # and are the home tenant's.
        self._used: dict[Key, int] = {}
        self._now = 0

    def insert(self, key: Key, parent: Key | None, position: int, tenant: str) -> None:
        """A tenant's block came into the tier.

        Raises:
            ValueError: the block is here already, whoever has it, or is its own parent.
        """
        if key in self:
            raise ValueError("the block is in the tier already")
        policy = self._policy_of(tenant)
        policy.insert(key, parent, position)
        self._register(tenant, policy)
        if len(self._policies) > 1:
            self._now += 1
            self._used[key] = self._now
            if tenant != self._home:
                self._owners[key] = tenant

    def insert_many(
        self,
        keys: Sequence[Key],
        parents: Sequence[Key | None],
        positions: Sequence[int],
        tenants: Sequence[str],
    ) -> None:
        """As `insert` for each, oldest first, at a fraction of the time; all of them or none.

        Raises:
            ValueError: a block is here already, or is named twice.
        """
        if not keys:
            return
        if len(tenants) != len(keys):
            raise ValueError(f"{len(keys)} blocks of {len(tenants)} tenants: expected one each")
        if tenants.count(tenants[0]) == len(keys) and self._policies.keys() <= {tenants[0]}:
            policy = self._policy_of(tenants[0])
            policy.insert_many(keys, parents, positions)
            self._register(tenants[0], policy)
            return
        if len(set(keys)) != len(keys) or any(key in self for key in keys):
            raise ValueError(f"some of {len(keys)} blocks are in the tier already, or named twice")
        rows: dict[str, list[int]] = {}
        for row, tenant in enumerate(tenants):
            rows.setdefault(tenant, []).append(row)
        for tenant, mine in rows.items():
            policy = self._policy_of(tenant)
            coming = [keys[row] for row in mine]
            policy.insert_many(
                coming, [parents[row] for row in mine], [positions[row] for row in mine]
            )
            self._register(tenant, policy)
            if tenant != self._home:
                self._owners.update(dict.fromkeys(coming, tenant))
        self._used.update(zip(keys, count_up(self._now + 1), strict=False))
        self._now += len(keys)

    def touch(self, keys: Sequence[Key]) -> None:
        """A request used these blocks, one prefix in order. Absent ones are ignored."""
        if len(self._policies) == 1 or not keys:
            for policy in self._policies.values():
                policy.touch(keys)
            return
        owners, home = self._owners, self._home
        names = [owners.get(key, home) for key in keys]
        if names.count(names[0]) == len(names):  # as most requests are
            self._touch_of(names[0], keys)
            return
        for tenant, run in groupby(
            zip(reversed(names), reversed(keys), strict=True), itemgetter(0)
        ):
            self._touch_of(tenant, [key for _, key in run][::-1])

    def _touch_of(self, tenant: str | None, keys: Sequence[Key]) -> None:
        """Touch blocks that are this tenant's, if they are in the tier at all."""
        if tenant is None:
            return
        policy = self._policies[tenant]
        here = policy.family.parents
        if not all(map(here.__contains__, keys)):
            keys = [key for key in keys if key in here]
        policy.touch(keys)
        self._used.update(zip(reversed(keys), count_up(self._now + 1), strict=False))
        self._now += len(keys)

    def remove(self, key: Key) -> None:
        """The block left the tier. Absent ones are ignored."""
        self.remove_many([key])

    def remove_many(self, keys: Sequence[Key]) -> None:
        """As `remove` for each, at a fraction of the time."""
        going: dict[str, Sequence[Key]] = dict.fromkeys(self._policies, keys)
        if len(going) > 1:
            mine: dict[str, list[Key]] = {}
            for key in keys:
                tenant = self._owner(key)
                if tenant is not None:
                    mine.setdefault(tenant, []).append(key)
            going = {**mine}
        for tenant, each in going.items():
            policy = self._policies[tenant]
            policy.remove_many(each)
            for known in (self._owners, self._used):  # empty while there was but one tenant
                if known:
                    for key in each:
                        known.pop(key, None)
            if not len(policy):
                self._forget(tenant)

    def victims(
        self, count: int, spared: Callable[[Key], bool], tenant: str | None = None
    ) -> list[Key]:
        """Up to `count` blocks, the one that goes first first; they stay until removed.

        Tenants over quota come first, always the one that is most over (of equals, the first by
        name), and only down to their quotas; then blocks by last use, among those that each
        tenant's policy would give next. With `tenant`, only its blocks, in its policy's order.
        No block comes before a child that is in the tier, whoever has it.
        """
        known = bool(self._policies) if tenant is None else tenant in self._policies
        if count < 1 or not known:
            return []
        if len(self._policies) == 1:
            (policy,) = self._policies.values()
            return policy.victims(count, spared)
        draw = Draw(self._policies, self._owner, count, spared)
        if tenant is not None:
            draw.of_one(tenant)
        else:
            draw.of_all(self.over_quota(), self._used)
        return draw.victims()

    def blocks_of(self, tenant: str) -> int:
        """How many blocks the tenant has in the tier."""
        policy = self._policies.get(tenant)
        return 0 if policy is None else len(policy)

    def excess(self, tenant: str, adding: int = 0) -> int:
        """How many blocks the tenant would be over its quota with `adding` more; 0 if it is not.

        A store with hard quotas evicts that many of its own first: `victims(..., tenant=tenant)`.
        """
        quota = self._quotas.get(tenant, self._default_quota)
        return 0 if quota is None else max(0, self.blocks_of(tenant) + adding - quota)

    def over_quota(self) -> dict[str, int]:
        """Blocks over the quota of each tenant that is, most first, of equals the first by name."""
        over = {tenant: over for tenant in self._policies if (over := self.excess(tenant))}
        return dict(sorted(over.items(), key=lambda item: (-item[1], item[0])))

    def __contains__(self, key: object) -> bool:
        if key in self._owners:
            return True
        return self._home is not None and key in self._policies[self._home]

    def __len__(self) -> int:
        return sum(len(policy) for policy in self._policies.values())

    def _owner(self, key: Key) -> str | None:
        tenant = self._owners.get(key, self._home)
        if tenant is None or key not in self._policies[tenant].family.parents:
            return None
        return tenant

    def _policy_of(self, tenant: str) -> TreePolicy[Key]:
        policy = self._policies.get(tenant)
        return self._make_policy() if policy is None else policy

    def _register(self, tenant: str, policy: TreePolicy[Key]) -> None:
        if not self._policies:
            self._home = tenant
        self._policies[tenant] = policy

    def _forget(self, tenant: str) -> None:
        """A tenant without blocks. When one is left, that is the home tenant."""
        del self._policies[tenant]
        if tenant == self._home:
            self._home = None
        if len(self._policies) == 1:
            (self._home,) = self._policies

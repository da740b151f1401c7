"""What a policy was asked and what it answered, written down, and asked of another one.

So a test can show that a store under load, with threads and faults, decided as the policy alone
does. Queries that change nothing are not written down. Nothing is bounded: a touch of 32 keys takes
about 350 bytes, a call for 8 victims 400, others under 100; keys are shared and not counted.

May import: kvbench.policy.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, cast

from kvbench.policy.policy import Key, Policy
from kvbench.policy.tenants import TenantPolicy
from kvbench.policy.tree import Family, TreePolicy

AnyPolicy: TypeAlias = Policy[Key] | TenantPolicy[Key]


@dataclass(frozen=True, slots=True)
class Insert(Generic[Key]):
    """A call of `insert`; the tenant is None where the policy has none."""

    key: Key
    parent: Key | None
    position: int
    tenant: str | None

    def ask(self, policy: AnyPolicy[Key]) -> None:
        """Make this call."""
        if self.tenant is None:
            cast("Policy[Key]", policy).insert(self.key, self.parent, self.position)
        else:
            tenants = cast("TenantPolicy[Key]", policy)
            tenants.insert(self.key, self.parent, self.position, self.tenant)


@dataclass(frozen=True, slots=True)
class InsertMany(Generic[Key]):
    """A call of `insert_many`."""

    keys: tuple[Key, ...]
    parents: tuple[Key | None, ...]
    positions: tuple[int, ...]
    tenants: tuple[str, ...] | None

    def ask(self, policy: AnyPolicy[Key]) -> None:
        """Make this call."""
        if self.tenants is None:
            tree = cast("TreePolicy[Key]", policy)
            tree.insert_many(self.keys, self.parents, self.positions)
        else:
            tenants = cast("TenantPolicy[Key]", policy)
            tenants.insert_many(self.keys, self.parents, self.positions, self.tenants)


@dataclass(frozen=True, slots=True)
class Touch(Generic[Key]):
    """A call of `touch`."""

    keys: tuple[Key, ...]

    def ask(self, policy: AnyPolicy[Key]) -> None:
        """Make this call."""
        policy.touch(self.keys)


@dataclass(frozen=True, slots=True)
class Remove(Generic[Key]):
    """A call of `remove`."""

    key: Key

    def ask(self, policy: AnyPolicy[Key]) -> None:
        """Make this call."""
        policy.remove(self.key)


@dataclass(frozen=True, slots=True)
class RemoveMany(Generic[Key]):
    """A call of `remove_many`."""

    keys: tuple[Key, ...]

    def ask(self, policy: AnyPolicy[Key]) -> None:
        """Make this call."""
        cast("TreePolicy[Key] | TenantPolicy[Key]", policy).remove_many(self.keys)


@dataclass(frozen=True, slots=True)
class Victims(Generic[Key]):
    """A call of `victims`: which of the blocks that it asked about were spared, and its answer."""

    count: int
    tenant: str | None
    gone: tuple[Key, ...]
    spared: frozenset[Key]
    answer: tuple[Key, ...]

    def ask(self, policy: AnyPolicy[Key]) -> tuple[Key, ...]:
        """Make this call; the answer."""
        spared = self.spared.__contains__
        return tuple(_victims(policy, self.count, spared, self.tenant, self.gone))


Change: TypeAlias = Insert[Key] | InsertMany[Key] | Touch[Key] | Remove[Key] | RemoveMany[Key]
Call: TypeAlias = Change[Key] | Victims[Key]


@dataclass(frozen=True, slots=True)
class Difference(Generic[Key]):
    """The first call of a record that another policy answers otherwise."""

    index: int
    call: Call[Key]
    answer: tuple[Key, ...] | str  # of the other policy: victims, or its refusal

    def __str__(self) -> str:
        return f"call {self.index}: {self.call} was answered {self.answer}"


class RecordingPolicy(Generic[Key]):
    """A policy, or `Tenants`, that writes down in `record` what it is asked to do and answers.

    A call that raises is not written down. Not thread-safe by itself, like what it wraps.
    """

    def __init__(self, inner: AnyPolicy[Key]) -> None:
        self._inner = inner
        self.record: list[Call[Key]] = []

    @property
    def family(self) -> Family[Key]:
        """The tree of the policy's blocks."""
        return cast("TreePolicy[Key]", self._inner).family

    def insert(
        self, key: Key, parent: Key | None, position: int, tenant: str | None = None
    ) -> None:
        """As the policy's own."""
        self._do(Insert(key, parent, position, tenant))

    def insert_many(
        self,
        keys: Sequence[Key],
        parents: Sequence[Key | None],
        positions: Sequence[int],
        tenants: Sequence[str] | None = None,
    ) -> None:
        """As the policy's own."""
        names = None if tenants is None else tuple(tenants)
        self._do(InsertMany(tuple(keys), tuple(parents), tuple(positions), names))

    def touch(self, keys: Sequence[Key]) -> None:
        """As the policy's own."""
        self._do(Touch(tuple(keys)))

    def remove(self, key: Key) -> None:
        """As the policy's own."""
        self._do(Remove(key))

    def remove_many(self, keys: Iterable[Key]) -> None:
        """As the policy's own."""
        self._do(RemoveMany(tuple(keys)))

    def victims(
        self,
        count: int,
        spared: Callable[[Key], bool],
        tenant: str | None = None,
        *,
        gone: Collection[Key] = (),
    ) -> list[Key]:
        """As the policy's own."""
        stayed: set[Key] = set()

        def noted(key: Key) -> bool:
            stays = spared(key)
            if stays:
                stayed.add(key)
            return stays

        answer = _victims(self._inner, count, noted, tenant, gone)
        call = Victims(count, tenant, tuple(gone), frozenset(stayed), tuple(answer))
        self.record.append(call)
        return answer

    def blocks_of(self, tenant: str) -> int:
        """As that of `Tenants`."""
        return cast("TenantPolicy[Key]", self._inner).blocks_of(tenant)

    def excess(self, tenant: str, adding: int = 0) -> int:
        """As that of `Tenants`."""
        return cast("TenantPolicy[Key]", self._inner).excess(tenant, adding)

    def over_quota(self) -> dict[str, int]:
        """As that of `Tenants`."""
        return cast("TenantPolicy[Key]", self._inner).over_quota()

    def __contains__(self, key: object) -> bool:
        return key in self._inner

    def __len__(self) -> int:
        return len(self._inner)

    def _do(self, call: Change[Key]) -> None:
        call.ask(self._inner)
        self.record.append(call)


def replay(record: Iterable[Call[Key]], policy: AnyPolicy[Key]) -> Difference[Key] | None:
    """Make the calls of a record to a fresh policy; the first that it answers otherwise, or None.

    What was spared then is spared now, and nothing else.
    """
    for index, call in enumerate(record):
        try:
            answer = call.ask(policy)
        except ValueError as refusal:
            return Difference(index, call, str(refusal))
        if isinstance(call, Victims) and answer is not None and answer != call.answer:
            return Difference(index, call, answer)
    return None


def _victims(
    policy: AnyPolicy[Key],
    count: int,
    spared: Callable[[Key], bool],
    tenant: str | None,
    gone: Collection[Key],
) -> list[Key]:
    if tenant is not None:
        return cast("TenantPolicy[Key]", policy).victims(count, spared, tenant)
    if gone:
        return cast("TreePolicy[Key]", policy).victims(count, spared, gone=gone)
    return policy.victims(count, spared)

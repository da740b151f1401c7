"""What has to hold of a store's books when nothing is under way: looks behind the API."""

import threading
import time
from collections import Counter

from kvbench.store.core import Core, Level
from kvbench.store.store import TieredStore
from kvbench.store.table import State
from tests.store.blocks import WAIT_S

FOUND = (State.READY, State.LEASED)


def core_of(store: TieredStore) -> Core:
    return store._core


def wait_until_at_rest(store: TieredStore) -> None:
    """Wait until no worker has anything to do; a store that never rests fails the test."""
    give_up_s = time.monotonic() + WAIT_S
    while (busy := _under_way(store)) and time.monotonic() < give_up_s:
        threading.Event().wait(0.002)
    assert not busy, f"after {WAIT_S} s there is still {busy}"


def assert_consistent(store: TieredStore) -> None:
    """Slots, index, leases, policy, tenants' holdings and queues agree with each other."""
    wait_until_at_rest(store)
    core = core_of(store)
    for level in core.levels:
        if level.writable:
            core.tidy(level)
    with core.lock:
        held = Counter(
            (number, slot)
            for lease in core.leases.all()
            for number, slots in lease.holds
            for slot in slots
        )
        for level in core.levels:
            _assert_level(level, held)
        assert store._puts.queued_bytes == 0
        assert store._puts.joined == {}


def _under_way(store: TieredStore) -> str:
    core = core_of(store)
    with core.lock:
        busy = [
            f"a task of {pool.name}"
            for level in core.levels
            for pool in level.pools()
            if pool.depth or pool.busy_longest_s()
        ]
        busy += [f"a move to {each.name}" for each in core.levels if store._moves.waiting(each)]
        busy += [f"a read of {each[1].hex()[:8]}" for each in store._gets._flights]
    return ", ".join(busy)


def _assert_level(level: Level, held: Counter[tuple[int, int]]) -> None:
    table, name = level.table, level.name
    states = [table.state(slot) for slot in range(table.slots)]
    where = {slot: key for key, slot in table.index.items()}
    assert table.writing == {}, name
    assert len(where) == len(table.index), f"{name}: two keys of one slot"
    assert set(where) == {slot for slot, state in enumerate(states) if state in FOUND}, name
    assert all(table.stamp(slot).key == key for slot, key in where.items()), name
    leases = {slot: table.leases(slot) for slot in range(table.slots) if table.leases(slot)}
    assert leases == {slot: n for (number, slot), n in held.items() if number == level.number}, name
    assert set(leases) == {
        slot for slot, state in enumerate(states) if state in {State.LEASED, State.DOOMED}
    }, name
    assert sorted(table._free) == [s for s, state in enumerate(states) if state is State.FREE], name
    assert len(level.policy) == len(table.index), name
    assert all(key in level.policy for key in table.index), name
    assert level.holding == Counter(table.stamp(slot).tenant for slot in where), name
    if level.writable:
        assert State.EVICTING not in states, f"{name}: slots that nobody empties"

"""The table of slots: what may follow what, and who holds a slot."""

import re
from collections.abc import Callable

import pytest

from kvbench.store.block import Stamp
from kvbench.store.table import TRANSITIONS, SlotTable, State, Step
from kvbench.store.tier import Recovered


def stamp(number: int, sums: bytes = b"") -> Stamp:
    return Stamp(bytes([number]) * 32, None, 0, "", sums)


def ready(table: SlotTable, number: int) -> int:
    slot = table.reserve(stamp(number))
    assert slot is not None
    table.stored([slot], [stamp(number, b"sums")])
    return slot


def in_state(state: State) -> tuple[SlotTable, int]:
    """A table of two slots, of which the first is in that state."""
    table = SlotTable(2)
    if state is State.FREE:
        return table, 0
    slot = table.reserve(stamp(1))
    assert slot == 0
    if state is State.WRITING:
        return table, slot
    if state in {State.EVICTING, State.QUARANTINED}:
        table.failed(slot)
        if state is State.QUARANTINED:
            table.condemn(slot)
        return table, slot
    table.stored([slot], [stamp(1, b"sums")])
    if state in {State.LEASED, State.DOOMED}:
        table.lease([slot])
    if state is State.DOOMED:
        table.doom(slot)
    return table, slot


# Leases are not among them: who asks for one has just found the slot in the index.
CALLS: dict[Step, Callable[[SlotTable, int], object]] = {
    Step.STORED: lambda table, slot: table.stored([slot], [stamp(1, b"sums")]),
    Step.FAILED: lambda table, slot: table.failed(slot),
    Step.EVICT: lambda table, slot: table.evict([slot]),
    Step.DOOM: lambda table, slot: table.doom(slot),
    Step.EMPTIED: lambda table, slot: table.emptied([slot]),
    Step.CONDEMN: lambda table, slot: table.condemn(slot),
}


def everything(table: SlotTable) -> object:
    slots = range(table.slots)
    return (
        [table.state(slot) for slot in slots],
        [table.leases(slot) for slot in slots],
        dict(table.index),
        dict(table.writing),
        table.free,
        table.counts(),
    )


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", CALLS)
def test_a_step_that_is_not_listed_is_refused_and_changes_nothing(state: State, step: Step) -> None:
    table, slot = in_state(state)
    assert table.state(slot) is state
    before = everything(table)
    after = TRANSITIONS[state].get(step)
    if after is not None:
        CALLS[step](table, slot)
        assert table.state(slot) is after
    elif step is Step.DOOM and state is State.DOOMED:
        assert table.doom(slot) is False  # another reader was first
        assert everything(table) == before
    else:
        with pytest.raises(AssertionError, match=rf"slot 0, which is {state.name}"):
            CALLS[step](table, slot)
        assert everything(table) == before


def reserve_two(table: SlotTable) -> None:
    assert table.reserve_many([stamp(8), stamp(9)]) == [1, 2]


# What a batch must not do: each with slot 0 READY, and slots 1 and 2 of a table of three FREE.
BATCHES: dict[str, Callable[[SlotTable], object]] = {
    "stored of slot 0, which is READY": lambda table: table.stored([1, 0], [stamp(8), stamp(1)]),
    "stored of slots [1, 1]: one is named twice": lambda table: table.stored(
        [1, 1], [stamp(8), stamp(8)]
    ),
    "evict of slot 2, which is WRITING": lambda table: table.evict([0, 2]),
    "evict of slots [0, 0]: one is named twice": lambda table: table.evict([0, 0]),
    "emptied of slot 0, which is READY": lambda table: table.emptied([0]),
}


@pytest.mark.parametrize("refusal", BATCHES)
def test_a_batch_with_one_step_that_is_not_listed_changes_nothing_at_all(refusal: str) -> None:
    table = SlotTable(3)
    ready(table, 1)
    reserve_two(table)
    before = everything(table)
    with pytest.raises(AssertionError, match=re.escape(refusal)):
        BATCHES[refusal](table)
    assert everything(table) == before


def test_a_free_slot_whose_state_is_not_free_is_not_given() -> None:
    table = SlotTable(2)
    ready(table, 1)
    table._free.append(0)  # a bug
    before = everything(table)
    with pytest.raises(AssertionError, match="reserve of slot 0, which is READY"):
        table.reserve_many([stamp(2), stamp(3)])
    assert everything(table) == before


def test_many_blocks_get_the_slots_that_one_after_the_other_would() -> None:
    one, many = SlotTable(5), SlotTable(5)
    for table in (one, many):
        ready(table, 9)
    wanted = [stamp(number) for number in range(6)]
    slots = many.reserve_many(wanted)
    assert slots == [slot for each in wanted if (slot := one.reserve(each)) is not None]
    assert len(slots) == 4, "as many as there are, to the first"
    assert everything(one) == everything(many)
    assert many.reserve_many(wanted) == many.reserve_many([]) == []


def test_a_batch_is_evicted_as_a_whole() -> None:
    table = SlotTable(3)
    slots = table.reserve_many([stamp(1), stamp(2), stamp(3)])
    table.stored(slots, [stamp(number, b"sums") for number in (1, 2, 3)])
    assert table.evict([2, 0]) == [stamp(3, b"sums"), stamp(1, b"sums")]
    assert table.index == {stamp(2).key: 1}
    table.emptied([2, 0])
    assert table.reserve_many([stamp(4), stamp(5)]) == [0, 2]


def test_a_block_that_is_leased_is_busy() -> None:
    table = SlotTable(1)
    slot = ready(table, 1)
    assert not table.busy(stamp(1).key)
    table.lease([slot])
    assert table.busy(stamp(1).key)


def test_a_slot_is_found_from_stored_to_evicted_and_only_then() -> None:
    table = SlotTable(2)
    key = stamp(1).key
    slot = table.reserve(stamp(1))
    assert slot == 0
    assert (table.index, table.writing) == ({}, {key: 0})
    table.stored([slot], [stamp(1, b"sums")])
    assert (table.index, table.writing) == ({key: 0}, {})
    assert table.stamp(slot).sums == b"sums"
    assert table.evict([slot]) == [stamp(1, b"sums")]
    assert (table.index, table.free) == ({}, 1)  # it is not free before its tier has forgotten it
    table.emptied([slot])
    assert table.free == 2


def test_a_write_that_fails_is_never_found() -> None:
    table = SlotTable(1)
    slot = table.reserve(stamp(1))
    assert slot is not None
    table.failed(slot)
    assert (table.index, table.writing, table.reserve(stamp(2))) == ({}, {}, None)
    table.emptied([slot])
    assert table.reserve(stamp(2)) == slot


def test_free_slots_are_given_from_the_lowest_on() -> None:
    table = SlotTable(4)
    assert [table.reserve(stamp(number)) for number in range(5)] == [0, 1, 2, 3, None]
    for slot in range(4):
        table.failed(slot)
    table.emptied([0, 3, 1])
    assert [table.reserve(stamp(number)) for number in range(4)] == [0, 1, 3, None]


def test_a_slot_is_held_until_its_last_lease_ends() -> None:
    table = SlotTable(1)
    slot = ready(table, 1)
    table.lease([slot])
    table.lease([slot])
    assert (table.state(slot), table.leases(slot)) == (State.LEASED, 2)
    assert table.release([slot]) == []
    assert (table.state(slot), table.leases(slot)) == (State.LEASED, 1)
    with pytest.raises(AssertionError, match="evict of slot 0, which is LEASED"):
        table.evict([slot])
    assert table.release([slot]) == []
    assert (table.state(slot), table.leases(slot)) == (State.READY, 0)
    table.evict([slot])


def test_one_lease_may_hold_a_slot_twice() -> None:
    table = SlotTable(1)
    slot = ready(table, 1)
    table.lease([slot, slot])
    assert table.leases(slot) == 2
    table.release([slot, slot])
    assert table.state(slot) is State.READY


def test_a_damaged_block_is_lost_at_once_and_its_slot_when_the_last_lease_ends() -> None:
    table = SlotTable(1)
    slot = ready(table, 1)
    table.lease([slot])
    table.lease([slot])
    assert table.doom(slot) is False
    assert (table.index, table.state(slot)) == ({}, State.DOOMED)
    assert table.stamp(slot).key == stamp(1).key  # for those who still read it
    assert table.release([slot]) == []
    assert table.release([slot]) == [slot]
    assert table.state(slot) is State.EVICTING
    table.condemn(slot)
    assert (table.state(slot), table.reserve(stamp(2))) == (State.QUARANTINED, None)


def test_a_damaged_block_that_nobody_holds_goes_at_once() -> None:
    table = SlotTable(1)
    slot = ready(table, 1)
    assert table.doom(slot) is True
    assert (table.index, table.state(slot)) == ({}, State.EVICTING)


def test_the_same_block_may_be_stored_anew_while_its_damaged_copy_is_held() -> None:
    table = SlotTable(2)
    slot = ready(table, 1)
    table.lease([slot])
    table.doom(slot)
    other = ready(table, 1)
    assert table.index == {stamp(1).key: other}
    assert table.release([slot]) == [slot]
    assert table.index == {stamp(1).key: other}


def test_the_counts_are_of_all_slots() -> None:
    table = SlotTable(5)
    table.lease([ready(table, 1)])
    ready(table, 2)
    table.reserve(stamp(3))
    table.evict([ready(table, 4)])
    assert table.counts() == {
        "FREE": 1,
        "WRITING": 1,
        "READY": 1,
        "LEASED": 1,
        "DOOMED": 0,
        "EVICTING": 1,
        "QUARANTINED": 0,
    }


def test_what_was_recovered_is_found_and_the_rest_is_free() -> None:
    table = SlotTable(5)
    keys = [stamp(7).key, stamp(8).key]
    table.restore(
        Recovered(
            slots=[3, 1],
            keys=keys,
            parents=[None, keys[0]],
            positions=[0, 1],
            tenants=["a", "b"],
            quarantined=[0],
        )
    )
    assert table.index == {keys[0]: 3, keys[1]: 1}
    assert table.stamp(1) == Stamp(keys[1], keys[0], 1, "b", b"")
    assert table.counts()["QUARANTINED"] == 1
    assert [table.reserve(stamp(number)) for number in range(3)] == [2, 4, None]
    table.evict([3])
    assert table.index == {keys[1]: 1}

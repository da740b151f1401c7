"""The slots of one tier and what may happen to them. No I/O, no threads, no clock.

A slot's state changes by `TRANSITIONS` and in no other way; a pair that is not listed is an error
of the store and raises. Only READY and LEASED slots are in the index, so a block that is not
wholly written, or is about to go, is never found.

```text
            reserve            stored            lease
    FREE ───────────▶ WRITING ────────▶ READY ◀────────▶ LEASED(n)
      ▲                  │ failed         │ evict  release   │ doom
      │ emptied          ▼                ▼                  ▼
      └─────────────── EVICTING ◀─────────┴──────────── DOOMED(n)
                         │ condemn              release of the last lease
                         ▼
                    QUARANTINED
```

The caller holds the store's lock.
"""

import enum
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import cast

import numpy as np

from kvbench.store.block import Stamp
from kvbench.store.tier import Recovered


class State(enum.IntEnum):
    """What a slot is."""

    FREE = 0
    WRITING = 1  # somebody puts a block into it
    READY = 2  # whole and checksummed; may be read, may go
    LEASED = 3  # as READY, and somebody reads or means to: does not go
    DOOMED = 4  # found damaged while leased: nobody new finds it
    EVICTING = 5  # out of the index; its tier has yet to forget it
    QUARANTINED = 6  # never used again


class Step(enum.IntEnum):
    """What happens to a slot."""

    RESERVE = 0
    STORED = 1
    FAILED = 2
    LEASE = 3
    RELEASE = 4  # of the last lease
    EVICT = 5
    DOOM = 6
    EMPTIED = 7
    CONDEMN = 8


TRANSITIONS: dict[State, dict[Step, State]] = {
    State.FREE: {Step.RESERVE: State.WRITING},
    State.WRITING: {Step.STORED: State.READY, Step.FAILED: State.EVICTING},
    State.READY: {
        Step.LEASE: State.LEASED,
        Step.EVICT: State.EVICTING,
        Step.DOOM: State.EVICTING,
    },
    State.LEASED: {
        Step.LEASE: State.LEASED,
        Step.RELEASE: State.READY,
        Step.DOOM: State.DOOMED,
    },
    State.DOOMED: {Step.RELEASE: State.EVICTING},
    State.EVICTING: {Step.EMPTIED: State.FREE, Step.CONDEMN: State.QUARANTINED},
    State.QUARANTINED: {},
}


_READY, _LEASED = int(State.READY), int(State.LEASED)
# The same by their numbers: hashing an enum's member takes longer than all the rest of a step.
_AFTER = [[TRANSITIONS[state].get(step) for step in Step] for state in State]


class SlotTable:
    """The slots of one tier, which block each holds, and who is using it."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.index: dict[bytes, int] = {}  # READY and LEASED slots by key
        self.writing: dict[bytes, int] = {}  # WRITING slots by key
        self._state = bytearray(slots)  # all FREE
        self._leases = [0] * slots
        self._stamps: list[Stamp | None] = [None] * slots
        self._free = list(range(slots - 1, -1, -1))  # lowest first: neighbours make one transfer

    def state(self, slot: int) -> State:
        """The slot's state."""
        return State(self._state[slot])

    def leases(self, slot: int) -> int:
        """How many hold the slot."""
        return self._leases[slot]

    def stamp(self, slot: int) -> Stamp:
        """What is known of the block in a slot that is not FREE.

        `sums` are empty if it was recovered: checksums stay in the records.
        """
        stamp = self._stamps[slot]
        assert stamp is not None, f"slot {slot} is {self.state(slot).name} and holds no block"
        return stamp

    @property
    def free(self) -> int:
        """Slots that can be reserved at once."""
        return len(self._free)

    def counts(self) -> dict[str, int]:
        """How many slots are in each state, by its name."""
        return {state.name: self._state.count(state) for state in State}

    def reserve(self, stamp: Stamp) -> int | None:
        """A free slot for this block, WRITING from now on; None if there is none."""
        if not self._free:
            return None
        slot = self._free.pop()
        self._step(slot, Step.RESERVE)
        self._stamps[slot] = stamp
        self.writing[stamp.key] = slot
        return slot

    def reserve_many(self, stamps: Sequence[Stamp]) -> list[int]:
        """As `reserve` for each of these blocks, as far as there are slots: the first get one."""
        count = min(len(stamps), len(self._free))
        if not count:
            return []
        slots = self._free[: -count - 1 : -1]
        self._step_all(slots, Step.RESERVE)
        del self._free[-count:]
        known, writing = self._stamps, self.writing
        for slot, stamp in zip(slots, stamps, strict=False):
            known[slot] = stamp
            writing[stamp.key] = slot
        return slots

    def stored(self, slots: Sequence[int], stamps: Sequence[Stamp]) -> None:
        """The blocks are whole, with these checksums: they can be found from now on."""
        pairs = list(zip(slots, stamps, strict=True))
        self._step_all(slots, Step.STORED)
        known, writing, index = self._stamps, self.writing, self.index
        for slot, stamp in pairs:
            key = stamp.key
            del writing[key]
            known[slot] = stamp
            index[key] = slot

    def failed(self, slot: int) -> None:
        """The write did not succeed; the slot is EVICTING."""
        self._step(slot, Step.FAILED)
        del self.writing[self.stamp(slot).key]

    # The next two are what a lookup costs, so they take the two commonest steps without `_step`.

    def lease(self, slots: Iterable[int]) -> None:
        """One more holder of each of these slots, which the index has just named."""
        state, leases, leased = self._state, self._leases, _LEASED
        for slot in slots:
            if not leases[slot]:
                state[slot] = leased
            leases[slot] += 1

    def release(self, slots: Iterable[int]) -> list[int]:
        """One holder less of each; the doomed slots that are EVICTING now."""
        state, leases, leased, ready = self._state, self._leases, _LEASED, _READY
        emptying: list[int] = []
        for slot in slots:
            leases[slot] -= 1
            if leases[slot]:
                continue
            if state[slot] == leased:
                state[slot] = ready
            else:
                self._step(slot, Step.RELEASE)
                emptying.append(slot)
        return emptying

    def busy(self, key: bytes) -> bool:
        """Whether a block of the index is leased, and so cannot be evicted."""
        return self._state[self.index[key]] != _READY

    def evict(self, slots: Sequence[int]) -> list[Stamp]:
        """Take READY blocks out of the index; the slots are EVICTING."""
        self._step_all(slots, Step.EVICT)
        known, index = self._stamps, self.index
        stamps = cast("list[Stamp]", [known[slot] for slot in slots])  # none was FREE
        for stamp in stamps:
            del index[stamp.key]
        return stamps

    def doom(self, slot: int) -> bool:
        """Take a damaged block out of the index. A slot that is doomed already stays so.

        True if the slot is EVICTING now, and not only when the last lease ends.
        """
        if self._state[slot] == State.DOOMED:
            return False
        self._step(slot, Step.DOOM)
        self._unlisted(slot)
        return self._state[slot] == State.EVICTING

    def emptied(self, slots: Sequence[int]) -> None:
        """EVICTING slots that their tier has forgotten are FREE."""
        self._step_all(slots, Step.EMPTIED)
        for slot in slots:
            self._stamps[slot] = None
        self._free.extend(sorted(slots, reverse=True))

    def condemn(self, slot: int) -> None:
        """An EVICTING slot is never used again."""
        self._step(slot, Step.CONDEMN)
        self._stamps[slot] = None

    def restore(self, found: Recovered) -> None:
        """Take over what a tier recovered. Only on a table that was never used."""
        # A million at a time: no loop of Python where a column can be moved whole.
        self.index = dict(zip(found.keys, found.slots, strict=True))
        stamps = map(
            Stamp._make,
            zip(found.keys, found.parents, found.positions, found.tenants, repeat(b"")),
        )
        for slot, stamp in zip(found.slots, stamps, strict=True):
            self._stamps[slot] = stamp
        states = np.frombuffer(self._state, np.uint8)
        states[found.slots] = State.READY
        states[found.quarantined] = State.QUARANTINED
        self._free = np.flatnonzero(states == State.FREE)[::-1].tolist()

    def _unlisted(self, slot: int) -> Stamp:
        stamp = self.stamp(slot)
        del self.index[stamp.key]
        return stamp

    def _step(self, slot: int, step: Step) -> None:
        after = _AFTER[self._state[slot]][step]
        if after is None:
            raise AssertionError(_refusal(step, slot, self.state(slot)))
        self._state[slot] = after

    def _step_all(self, slots: Sequence[int], step: Step) -> None:
        """A step that one state allows, of many slots, each named once; all of them or none."""
        states = self._state
        before = set(map(states.__getitem__, slots))
        after = {state: to for state in before if (to := _AFTER[state][step]) is not None}
        if len(after) < len(before):
            wrong = next(slot for slot in slots if states[slot] not in after)
            raise AssertionError(_refusal(step, wrong, self.state(wrong)))
        if len(set(slots)) < len(slots):
            raise AssertionError(f"{step.name.lower()} of slots {slots}: one is named twice")
        for to in after.values():  # it is one
            for slot in slots:
                states[slot] = to


def _refusal(step: Step, slot: int, state: State) -> str:
    return f"{step.name.lower()} of slot {slot}, which is {state.name}"

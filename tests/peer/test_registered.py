"""Which memory of callers an agent knows, and that it forgets it with whoever owned it."""

import gc
import mmap
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from kvbench.peer import registered
from kvbench.peer.registered import Owner, Regions, place
from kvbench.store.block import Bytes

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 4096


class Agent:
    """Keeps what is registered with it, as NIXL's does."""

    def __init__(self) -> None:
        self.now: list[tuple[int, int]] = []
        self.refuses = False

    def register_memory(self, spans: list[tuple[int, int, int, str]], memory: str) -> Any:
        assert memory == "DRAM"
        if self.refuses:
            raise RuntimeError("no more memory may be locked")
        self.now.append(spans[0][:2])
        return spans[0][:2]

    def deregister_memory(self, handle: tuple[int, int]) -> None:
        self.now.remove(handle)


class Known:
    """Regions of an agent, and what is to be done on its thread."""

    def __init__(self) -> None:
        self.agent = Agent()
        self.later: list[Callable[[], None]] = []
        self.regions = Regions(self.agent, (RuntimeError,), self.later.append)

    def has(self, rows: list[Bytes]) -> bool:
        return self.regions.has(owner_of(rows))

    def catch_up(self) -> None:
        while self.later:
            self.later.pop(0)()


def owner_of(rows: list[Bytes]) -> Owner:
    placed = place(rows, SIZE)
    assert placed is not None
    (owner,) = placed.owners
    return owner


def address_of(array: Bytes) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def test_rows_of_one_array_lie_where_they_do_and_are_registered_once_as_a_whole() -> None:
    known, rows = Known(), np.zeros((8, SIZE), dtype=np.uint8)
    placed = place([rows[5], rows[0], rows[2]], SIZE)
    assert placed is not None
    start = address_of(rows)
    assert placed.descriptors.tolist() == [[start + i * SIZE, SIZE, 0] for i in (5, 0, 2)]
    assert known.has([rows[5]])
    assert known.has([rows[1]])
    assert known.agent.now == [(start, rows.nbytes)]


def test_memory_that_was_freed_and_is_used_again_is_not_taken_for_registered() -> None:
    known, area = Known(), mmap.mmap(-1, 8 * SIZE)
    first = np.frombuffer(area, dtype=np.uint8).reshape(8, SIZE)
    assert known.has([first[0]])
    before = address_of(first)
    del first
    gc.collect()
    again = np.frombuffer(area, dtype=np.uint8).reshape(8, SIZE)
    assert address_of(again) == before
    assert known.later, "nobody was told that the array has gone"
    known.catch_up()
    assert known.agent.now == []
    assert known.has([again[3]])
    assert known.agent.now == [(before, 8 * SIZE)]


def test_another_array_in_the_place_of_one_that_has_gone_is_registered_and_stays_so() -> None:
    known, area = Known(), mmap.mmap(-1, 8 * SIZE)
    array = np.frombuffer(area, dtype=np.uint8)
    assert known.has([array[:SIZE]])
    key, others = id(array), list[Bytes]()
    del array
    while not others or id(others[-1]) != key:  # it is what they are found by
        others.append(np.frombuffer(area, dtype=np.uint8))
        assert len(others) < 10_000
    assert known.has([others[-1][:SIZE]])
    known.catch_up()  # the news of the first one's end
    assert len(known.regions) == len(known.agent.now) == 1
    assert known.has([others[-1][SIZE : 2 * SIZE]])
    assert len(known.agent.now) == 1


def test_an_array_whose_memory_has_changed_is_registered_anew() -> None:
    known, rows = Known(), np.zeros((2, SIZE), dtype=np.uint8)
    start = address_of(rows)
    assert known.regions.has(Owner(rows, start, SIZE))
    assert known.has([rows[1]])
    assert known.agent.now == [(start, 2 * SIZE)]


def test_what_cannot_be_registered_is_said_to_be_so_and_not_tried_again() -> None:
    known, rows = Known(), np.zeros((2, SIZE), dtype=np.uint8)
    known.agent.refuses = True
    assert not known.has([rows[0]])
    known.agent.refuses = False
    assert not known.has([rows[1]])
    assert len(known.regions) == 0


def test_an_array_that_is_too_large_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    known, rows = Known(), np.zeros((2, SIZE), dtype=np.uint8)
    monkeypatch.setattr(registered, "MOST_REGION_BYTES", rows.nbytes - 1)
    assert not known.has([rows[0]])
    monkeypatch.setattr(registered, "MOST_REGION_BYTES", rows.nbytes)
    others = rows.copy()
    assert known.has([others[0]])


def test_the_oldest_goes_when_too_many_arrays_are_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registered, "MOST_REGIONS", 3)
    known = Known()
    arrays = [np.zeros((1, SIZE), dtype=np.uint8) for _ in range(5)]
    assert all(known.has([each[0]]) for each in arrays)
    assert known.agent.now == [(address_of(each), SIZE) for each in arrays[2:]]


def test_rows_of_many_arrays_are_placed_up_to_a_limit() -> None:
    arrays = [np.zeros(SIZE, dtype=np.uint8) for _ in range(registered.MOST_OWNERS + 1)]
    placed = place(arrays[1:], SIZE)
    assert placed is not None
    assert [owner.array is each for owner, each in zip(placed.owners, arrays[1:], strict=True)]
    assert placed.descriptors[:, 0].tolist() == [address_of(each) for each in arrays[1:]]
    assert place(arrays, SIZE) is None


def test_rows_that_lie_elsewhere_than_the_array_that_they_claim_are_not_placed() -> None:
    rows, claimed = np.zeros((2, SIZE), dtype=np.uint8), np.zeros((2, SIZE), dtype=np.uint8)

    class Astray(np.ndarray[Any, Any]):
        @property
        def base(self) -> Any:
            return claimed

    assert place([rows[0].view(Astray)], SIZE) is None
    assert place([claimed[0].view(Astray)], SIZE) is not None


def test_rows_of_an_array_with_gaps_are_not_placed() -> None:
    rows = np.zeros((4, SIZE), dtype=np.uint8)
    gaps = as_strided(rows, shape=(2, SIZE), strides=(2 * SIZE, 1))
    assert place([gaps[1]], SIZE) is None


def test_rows_that_may_not_be_written_to_are_not_placed() -> None:
    rows = np.zeros((2, SIZE), dtype=np.uint8)
    rows.flags.writeable = False
    assert place([rows[0]], SIZE) is None

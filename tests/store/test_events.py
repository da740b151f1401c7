"""Events in order, and a reader who always learns what he missed."""

import sys
import threading
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.store.block import Stamp
from kvbench.store.events import Event, EventLog, Events, Kind


def stamp(n: int, *, parent: int | None = None, tenant: str = "") -> Stamp:
    return Stamp(
        key=bytes([n]) * 32,
        parent=None if parent is None else bytes([parent]) * 32,
        position=n,
        tenant=tenant,
        sums=b"",
    )


def stamps(numbers: Sequence[int]) -> list[Stamp]:
    return [stamp(n) for n in numbers]


def told(answer: Events) -> list[int]:
    return [event.sequence for event in answer.events]


def test_events_tell_what_happened_to_which_block_where_and_in_which_order() -> None:
    log = EventLog()
    log.append(Kind.STORED, "dram", [stamp(1, tenant="a"), stamp(2, parent=1, tenant="a")])
    log.append(Kind.REMOVED, "nvme", [stamp(7)])
    log.append_tier(Kind.FENCED, "nvme", "write: EIO")
    assert log.since(0).events == [
        Event(0, Kind.STORED, "dram", b"\1" * 32, None, "a", 1),
        Event(1, Kind.STORED, "dram", b"\2" * 32, b"\1" * 32, "a", 2),
        Event(2, Kind.REMOVED, "nvme", b"\7" * 32, None, "", 7),
        Event(3, Kind.FENCED, "nvme", reason="write: EIO"),
    ]


def test_a_reader_who_asks_again_from_the_next_number_sees_everything_once() -> None:
    log = EventLog()
    log.append(Kind.STORED, "dram", stamps(range(7)))
    first = log.since(0, 5)
    assert (told(first), first.next_sequence, first.lost) == ([0, 1, 2, 3, 4], 5, 0)
    second = log.since(first.next_sequence, 5)
    assert (told(second), second.next_sequence, second.lost) == ([5, 6], 7, 0)
    assert told(log.since(7)) == []
    log.append(Kind.REMOVED, "dram", [stamp(0)])
    assert told(log.since(second.next_sequence)) == [7]


def test_a_reader_who_fell_behind_is_told_how_many_events_are_gone() -> None:
    log = EventLog(4)
    log.append(Kind.STORED, "dram", stamps(range(3)))
    log.append(Kind.STORED, "dram", stamps(range(3, 10)))  # more at once than there is room for
    answer = log.since(2)
    assert (told(answer), answer.lost, answer.next_sequence) == ([6, 7, 8, 9], 4, 10)
    assert [event.key for event in answer.events] == [bytes([n]) * 32 for n in (6, 7, 8, 9)]
    assert log.since(6).lost == 0


def test_the_log_keeps_no_checksums() -> None:
    sums = bytes(8 * 384)  # of one block: with 65,536 events that would be 200 MB
    before = sys.getrefcount(sums)
    log = EventLog()
    log.append(Kind.STORED, "dram", [stamp(1)._replace(sums=sums)])
    assert told(log.since(0)) == [0]
    assert sys.getrefcount(sums) == before


@given(
    most=st.integers(1, 6),
    steps=st.lists(st.one_of(st.integers(0, 9), st.tuples(st.integers(1, 4))), max_size=30),
)
def test_what_a_reader_sees_and_what_it_is_told_to_have_lost_is_all_that_happened(
    most: int, steps: list[int | tuple[int]]
) -> None:
    log = EventLog(most)
    happened: list[int] = []
    asked = 0
    for step in steps:
        if isinstance(step, int):
            log.append(Kind.STORED, "dram", stamps(range(len(happened), len(happened) + step)))
            happened += range(len(happened), len(happened) + step)
            continue
        answer = log.since(asked, step[0])
        first = asked + answer.lost
        assert answer.lost == max(0, len(happened) - most - asked)
        assert told(answer) == happened[first : first + step[0]]
        assert answer.next_sequence == first + len(answer.events)
        asked = answer.next_sequence


@pytest.mark.parametrize("sequence", [-1, 5, 10**12])
def test_a_number_from_another_life_of_the_store_is_answered_from_the_oldest_on(
    sequence: int,
) -> None:
    log = EventLog()
    log.append(Kind.STORED, "dram", stamps(range(4)))
    assert told(log.since(sequence)) == [0, 1, 2, 3]
    assert log.since(sequence).lost == 0, "of this ring"
    assert log.since(sequence).epoch == log.since(0).epoch != EventLog().since(0).epoch


def test_a_run_of_stored_blocks_is_what_vllm_calls_one_block_stored() -> None:
    log = EventLog()
    log.append(Kind.STORED, "dram", [stamp(2, parent=1), stamp(3, parent=2), stamp(9)])
    runs: list[tuple[bytes | None, list[bytes | None]]] = []  # parent_block_hash, block_hashes
    for event in log.since(0).events:
        if runs and runs[-1][1][-1] == event.parent:
            runs[-1][1].append(event.key)
        else:
            runs.append((event.parent, [event.key]))
    assert runs == [(b"\1" * 32, [b"\2" * 32, b"\3" * 32]), (None, [b"\x09" * 32])]


def test_an_answer_survives_json() -> None:
    log = EventLog()
    log.append(Kind.STORED, "dram", [stamp(200, parent=199, tenant="é")])
    log.append_tier(Kind.CLEARED, "dram")
    answer = log.since(0)
    assert msgspec.json.decode(msgspec.json.encode(answer), type=Events) == answer


def test_waiting_ends_when_the_event_has_happened_and_not_before() -> None:
    log = EventLog()
    log.append(Kind.STORED, "dram", stamps([0]))
    assert log.wait(0, 0.0)
    assert not log.wait(1, 0.01)
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(log.wait(2, 60.0)))
    waiter.start()
    log.append(Kind.STORED, "dram", stamps([1]))
    waiter.join(0.05)
    assert waiter.is_alive(), "event 1 is not event 2"
    log.append_tier(Kind.CLEARED, "dram")
    waiter.join(30)
    assert results == [True]


def test_a_batch_wakes_who_waits_for_one_of_its_events() -> None:
    log = EventLog()
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(log.wait(3, 60.0)))
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    log.append(Kind.STORED, "dram", stamps(range(5)))
    waiter.join(30)
    assert results == [True]


def test_closing_tells_all_who_wait_that_nothing_comes_and_keeps_what_is_there() -> None:
    log = EventLog()
    log.append(Kind.STORED, "dram", stamps([0]))
    results: list[bool] = []
    waiters = [threading.Thread(target=lambda: results.append(log.wait(1, 60.0))) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    log.close()
    for waiter in waiters:
        waiter.join(30)
    assert results == [False, False, False]
    assert told(log.since(0)) == [0]
    assert not log.wait(1), "without a limit, too"


def test_threads_that_append_at_once_number_every_event_once() -> None:
    log = EventLog(10_000)

    def work(tier: str) -> None:
        for n in range(250):
            log.append(Kind.STORED, tier, [stamp(n), stamp(n)])

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = log.since(0, 10_000).events
    assert [event.sequence for event in events] == list(range(2000))
    for n in range(4):
        own = [event.position for event in events if event.tier == f"t{n}"]
        assert own == [position for position in range(250) for _ in range(2)]

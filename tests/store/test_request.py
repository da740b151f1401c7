"""A request: every key is settled once, a row in use is nobody else's, layers are counted."""

import asyncio
import threading

import pytest

from kvbench.store.block import Status
from kvbench.store.request import Request

OK, MISS, BUSY, TIMEOUT = Status.OK, Status.MISS, Status.BUSY, Status.TIMEOUT


def request(size: int, *, parts: int = 0, and_then: bool = False) -> Request:
    return Request("get", size, deadline_s=None, parts=parts, and_then=and_then)


def test_the_result_is_there_when_the_last_key_is_settled() -> None:
    mine = request(3)
    assert mine.settle([2], OK) == 1
    assert mine.statuses == [None, None, OK]
    with pytest.raises(TimeoutError):
        mine.result(0.01)
    assert mine.settle([0, 1], MISS, "not here") == 2
    assert mine.done()
    assert mine.result(0) == [MISS, MISS, OK]
    assert mine.reasons == {0: "not here", 1: "not here"}


def test_a_request_for_nothing_is_done_at_once() -> None:
    assert request(0).result(0) == []


def test_a_key_keeps_its_first_status() -> None:
    mine = request(2)
    mine.settle([0], TIMEOUT, "late")
    assert mine.settle([0], OK) == 0
    assert mine.settle([0, 1], OK) == 1
    assert mine.result(0) == [TIMEOUT, OK]
    assert mine.settle([1], BUSY, "much later") == 0
    assert mine.reasons == {0: "late"}


def test_a_row_in_use_is_given_up_when_it_is_let_go_unsettled() -> None:
    mine = request(3)
    assert mine.claim([0, 1]) == [0, 1]
    assert mine.give_up("cancelled") == 1
    assert mine.statuses == [None, None, TIMEOUT]
    assert mine.open(0)
    mine.settle([0], OK)
    mine.unclaim([1])  # between two parts, say: nobody else would settle it
    assert mine.result(0) == [OK, TIMEOUT, TIMEOUT]
    assert mine.reasons[1] == "cancelled"


def test_callbacks_run_on_threads_of_their_own() -> None:
    mine = request(1)
    where: list[str] = []
    called = threading.Event()

    def note(_: object) -> None:
        where.append(threading.current_thread().name)
        called.set()

    mine.future.add_done_callback(note)
    mine.settle([0], OK)
    assert called.wait(20)
    assert where[0].startswith("kvbench-callbacks")


def test_what_wants_a_row_that_is_in_use_has_to_wait_for_it() -> None:
    mine = request(2)
    calls: list[int] = []
    mine.claim([0, 1])
    mine.when_free(0, lambda: calls.append(0))
    mine.when_free(1, lambda: calls.append(1))
    assert calls == []
    mine.unclaim([0])
    assert calls == [0]
    mine.unclaim([0])
    mine.when_free(0, lambda: calls.append(2))
    assert calls == [0, 2]
    mine.settle([1], OK)  # nobody needs to look elsewhere for it
    assert calls == [0, 2]


def test_a_settled_row_cannot_be_claimed() -> None:
    mine = request(2)
    mine.give_up("the deadline passed")
    assert mine.claim([0, 1]) == []
    assert not mine.waiting()


def test_some_keys_can_be_given_up_with_another_status() -> None:
    mine = request(3)
    mine.claim([1])
    assert mine.give_up("its tier hangs", [0, 1], BUSY) == 1
    assert mine.statuses == [BUSY, None, None]


def test_what_comes_after_the_keys_is_waited_for() -> None:
    mine = request(1, and_then=True)
    mine.settle([0], OK)
    assert not mine.done()
    mine.complete()
    mine.complete()  # once more is no error
    assert mine.result(0) == [OK]


def test_giving_up_ends_the_wait_for_what_comes_after() -> None:
    mine = request(1, and_then=True)
    mine.settle([0], OK)
    mine.give_up("the deadline passed")
    assert mine.result(0) == [OK]
    mine.complete()
    empty = request(0, and_then=True)
    assert not empty.done()
    empty.give_up("cancelled")
    assert empty.result(0) == []


def test_a_layer_is_there_when_no_row_waits_for_it() -> None:
    mine = request(2, parts=3)
    mine.arrived([0], 0)
    assert not mine.layer(0).is_set()
    mine.arrived([1], 0)
    assert [mine.layer(part).is_set() for part in range(3)] == [True, False, False]
    mine.arrived([0], 1)
    mine.settle([1], MISS)  # whoever waits for the second row need not wait longer
    assert [mine.layer(part).is_set() for part in range(3)] == [True, True, False]
    mine.settle([0], OK)
    assert mine.layer(2).is_set()
    with pytest.raises(IndexError):
        request(1).layer(0)


def test_a_deadline_is_counted_from_the_making_of_the_request() -> None:
    assert request(1).expires_s is None
    hasty = Request("get", 1, deadline_s=2.0)
    assert hasty.expires_s is not None


def test_nobody_can_cancel_the_future_behind_the_stores_back() -> None:
    mine = request(1)
    assert not mine.future.cancel()
    mine.settle([0], OK)
    assert mine.result(0) == [OK]


def test_a_request_can_be_awaited_and_a_task_that_is_cancelled_harms_it_not() -> None:
    mine = request(1)

    async def waits() -> list[Status]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(mine, 0.01)
        mine.settle([0], OK)
        return await mine

    assert asyncio.run(waits()) == [OK]


def test_of_many_threads_one_settles_each_key() -> None:
    mine = request(500)
    counts: list[int] = []

    def settle(status: Status) -> None:
        counts.append(sum(mine.settle([at], status) for at in range(500)))

    threads = [threading.Thread(target=settle, args=(each,)) for each in (OK, MISS, BUSY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 500
    assert len(mine.result(0)) == 500

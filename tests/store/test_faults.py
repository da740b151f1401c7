"""Each fault does what it says, to the block that was named, as often as it was told."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.store.block import Bytes, Layout, Stamp, checksums, payload_matches
from kvbench.store.dram import DramTier
from kvbench.store.faults import (
    Delay,
    Fail,
    Fault,
    FaultyTier,
    Flip,
    Kind,
    Operation,
    Raise,
    Short,
    Stuck,
    Tear,
)

LAYOUT = Layout(1000, parts=4)
WAIT_S = 20.0


def payload(seed: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)


def stamp(seed: int) -> Stamp:
    return Stamp(bytes([seed]) * 32, None, 0, "", checksums(payload(seed), LAYOUT))


def write(tier: FaultyTier, slots: list[int]) -> list[Exception | None]:
    """Block number i into slot i."""
    return tier.write(slots, [stamp(slot) for slot in slots], [payload(slot) for slot in slots])


def read(tier: FaultyTier, slots: list[int]) -> list[str]:
    """By slot: "ok", "damaged", or the name of its errno or error."""
    outs = [np.zeros(LAYOUT.block_bytes, dtype=np.uint8) for _ in slots]
    answers: list[str] = []
    for found, out in zip(tier.read(slots, outs), outs, strict=True):
        if isinstance(found, OSError):
            answers.append(errno.errorcode[found.errno or 0])
        elif isinstance(found, Exception):
            answers.append(type(found).__name__)
        else:
            answers.append("ok" if payload_matches(found, out, LAYOUT) else "damaged")
    return answers


@pytest.fixture
def tier() -> FaultyTier:
    made = FaultyTier(DramTier(LAYOUT, 8))
    assert write(made, [0, 1, 2, 3]) == [None] * 4
    return made


# ---------------------------------------------------------------- which blocks


def test_the_nth_block_fails_across_batches_and_the_others_do_not(tier: FaultyTier) -> None:
    fault = tier.add(Fault(operation="read", kind=Fail(errno.EIO), nth=3))
    assert read(tier, [0, 1]) == ["ok", "ok"]
    assert read(tier, [2, 3]) == ["EIO", "ok"]
    assert read(tier, [2]) == ["ok"]
    assert (fault.seen, fault.fired) == (5, 1)


def test_a_fault_lasts_as_long_as_it_was_told(tier: FaultyTier) -> None:
    tier.add(Fault(operation="read", kind=Fail(errno.EIO), nth=2, times=2))
    assert read(tier, [0, 1, 2, 3]) == ["ok", "EIO", "EIO", "ok"]
    for_ever = tier.add(Fault(operation="read", kind=Fail(errno.ENODEV), nth=2, times=None))
    assert read(tier, [0, 1, 2, 3]) == ["ok", "ENODEV", "ENODEV", "ENODEV"]
    tier.remove(for_ever)
    assert read(tier, [0, 1]) == ["ok", "ok"]


def test_a_fault_of_a_slot_leaves_the_others_alone_and_does_not_count_them(
    tier: FaultyTier,
) -> None:
    fault = tier.add(Fault(operation="read", kind=Fail(errno.EIO), slot=2, nth=2))
    assert read(tier, [2, 1, 3, 2, 0]) == ["ok", "ok", "ok", "EIO", "ok"]
    assert fault.seen == 2


def test_operations_count_apart(tier: FaultyTier) -> None:
    tier.add(Fault(operation="write", kind=Fail(errno.ENOSPC)))
    assert read(tier, [0]) == ["ok"]
    (error,) = write(tier, [4])
    assert isinstance(error, OSError)
    assert error.errno == errno.ENOSPC
    assert read(tier, [4]) == ["CorruptBlockError"]  # nothing reached it
    assert write(tier, [4]) == [None]
    assert read(tier, [4]) == ["ok"]


def test_threads_meet_a_fault_exactly_as_often_as_it_was_told(tier: FaultyTier) -> None:
    fault = tier.add(Fault(operation="read", kind=Fail(errno.EIO), nth=100, times=50))
    begin = threading.Barrier(4)

    def work(slot: int) -> int:
        begin.wait()
        return sum(read(tier, [slot]) == ["EIO"] for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == 50
    assert (fault.seen, fault.fired) == (400, 50)


# ---------------------------------------------------------------- what happens


def test_an_error_of_ones_own_is_returned_in_its_place(tier: FaultyTier) -> None:
    own = ValueError("own")
    tier.add(Fault(operation="write", kind=Fail(own), nth=2))
    assert write(tier, [4, 5, 6]) == [None, own, None]


def test_a_flip_on_the_way_is_gone_at_the_next_read(tier: FaultyTier) -> None:
    tier.add(Fault(operation="read", kind=Flip(8 * 999 + 7), slot=1))
    out = np.zeros(LAYOUT.block_bytes, dtype=np.uint8)
    (found,) = tier.read([1], [out])
    assert found == stamp(1)
    assert np.flatnonzero(out != payload(1)).tolist() == [999]
    assert out[999] == payload(1)[999] ^ 0x80
    assert read(tier, [1]) == ["ok"]


def test_a_flip_on_the_medium_stays_and_the_payload_is_not_touched(tier: FaultyTier) -> None:
    tier.add(Fault(operation="write", kind=Flip(0), nth=2))
    mine = payload(5)
    tier.write([4, 5], [stamp(4), stamp(5)], [payload(4), mine])
    assert np.array_equal(mine, payload(5))
    assert read(tier, [4, 5, 5]) == ["ok", *["CorruptBlockError"] * 2]  # memory checks itself


def test_a_flip_reaches_a_block_that_was_written_in_place(tier: FaultyTier) -> None:
    tier.add(Fault(operation="write", kind=Flip(3)))
    view = tier.view(4)
    assert view is not None
    view[:] = payload(4)
    tier.write([4], [stamp(4)], [view])
    assert read(tier, [4]) == ["CorruptBlockError"]
    assert np.flatnonzero(view != payload(4)).tolist() == [0]


def test_a_short_read_leaves_the_rest_of_the_memory_as_it_was_and_says_nothing(
    tier: FaultyTier,
) -> None:
    tier.add(Fault(operation="read", kind=Short(600)))
    out = np.full(LAYOUT.block_bytes, 0xA5, dtype=np.uint8)
    (found,) = tier.read([1], [out])
    assert found == stamp(1)
    assert np.array_equal(out[:600], payload(1)[:600])
    assert (out[600:] == 0xA5).all()
    part = np.full(LAYOUT.part_bytes, 0xA5, dtype=np.uint8)
    tier.add(Fault(operation="read", kind=Short(10)))
    tier.read([1], [part], 3)
    assert np.array_equal(part[:10], payload(1)[750:760])
    assert (part[10:] == 0xA5).all()


def test_a_torn_write_has_the_stamp_and_the_first_bytes_and_no_more(tier: FaultyTier) -> None:
    tier.add(Fault(operation="write", kind=Tear(512)))
    assert write(tier, [4]) == [None]
    assert read(tier, [4]) == ["CorruptBlockError"]
    view = tier.view(4)
    assert view is not None
    assert np.array_equal(view[:512], payload(4)[:512])
    assert not (view[512:] == payload(4)[512:]).any()


def test_a_bug_is_raised_and_nothing_moves(tier: FaultyTier) -> None:
    tier.add(Fault(operation="write", kind=Raise(ZeroDivisionError("a bug")), nth=2))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        write(tier, [4, 5])
    assert read(tier, [4, 5]) == ["CorruptBlockError"] * 2


def test_a_delay_is_slept_before_the_call_goes_on() -> None:
    slept: list[float] = []
    tier = FaultyTier(DramTier(LAYOUT, 8), sleep=slept.append)
    tier.add(Fault(operation="write", kind=Delay(2.5), nth=2))
    assert write(tier, [0, 1, 2]) == [None] * 3
    assert slept == [2.5]
    assert read(tier, [0, 1, 2]) == ["ok"] * 3


def test_a_stuck_read_hangs_until_it_is_released_and_others_pass_it(tier: FaultyTier) -> None:
    stuck = Stuck()
    tier.add(Fault(operation="read", kind=stuck, slot=1))
    out = np.zeros(LAYOUT.block_bytes, dtype=np.uint8)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(tier.read, [1], [out])
        try:
            assert stuck.reached.wait(WAIT_S)
            assert read(tier, [0, 2]) == ["ok", "ok"]
            assert not hanging.done()
            assert not out.any()
        finally:
            stuck.release.set()  # or the pool would wait for ever
        assert hanging.result(WAIT_S) == [stamp(1)]
    assert np.array_equal(out, payload(1))


@pytest.mark.parametrize("operation", ["forget", "quarantine", "flush", "recover", "close"])
def test_calls_without_places_raise_their_faults_and_do_nothing(
    tier: FaultyTier, operation: Operation
) -> None:
    tier.add(Fault(operation=operation, kind=Fail(errno.EROFS)))
    calls = {
        "forget": lambda: tier.forget([0]),
        "quarantine": lambda: tier.quarantine([0], "a test says so"),
        "flush": tier.flush,
        "recover": tier.recover,
        "close": tier.close,
    }
    with pytest.raises(OSError, match="Read-only") as caught:
        calls[operation]()
    assert caught.value.errno == errno.EROFS
    assert read(tier, [0]) == ["ok"]
    calls[operation]()  # once only


def test_a_fault_of_a_slot_is_met_by_forgetting_it(tier: FaultyTier) -> None:
    tier.add(Fault(operation="forget", kind=Fail(errno.EIO), slot=2))
    tier.forget([0, 1])
    with pytest.raises(OSError, match="error"):
        tier.forget([3, 2])
    assert read(tier, [0, 2, 3]) == ["CorruptBlockError", "ok", "ok"]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("operation", "kind"),
    [("flush", Flip()), ("write", Short(1)), ("read", Tear(1)), ("forget", Tear(1))],
)
def test_faults_that_make_no_sense_are_refused(operation: Operation, kind: Kind) -> None:
    with pytest.raises(UsageError, match=f"not to {operation}"):
        Fault(operation=operation, kind=kind)


def test_there_is_no_block_number_zero() -> None:
    with pytest.raises(UsageError, match="the first is 1"):
        Fault(operation="read", kind=Fail(), nth=0)


def test_memory_can_pass_for_a_drive() -> None:
    assert not FaultyTier(DramTier(LAYOUT, 2)).stalls
    assert FaultyTier(DramTier(LAYOUT, 2), stalls=True).stalls

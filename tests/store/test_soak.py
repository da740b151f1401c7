"""A few seconds of the soak, and that it sees what it is there to see."""

import threading
from pathlib import Path

import pytest

from kvbench.policy.lru import LRU
from kvbench.policy.tenants import Tenants
from kvbench.store.block import Status
from kvbench.store.dram import DramTier
from kvbench.store.faults import Fault, FaultyTier, Flip
from kvbench.store.store import TieredStore
from kvbench.testing import soak
from kvbench.testing.crash import LAYOUT, key_of, payload_of
from kvbench.testing.soak import Client, Findings, Watched, page
from tests.store.blocks import WAIT_S

MIB = 2**20


def test_a_store_stands_a_mixed_load(tmp_path: Path) -> None:
    findings = soak.soak(tmp_path, seconds=5, threads=8)
    assert findings.faults == [], page(findings)
    assert findings.verified > 100
    assert findings.decisions > 1000
    assert {"get OK", "put OK", "flush OK", "prefetch OK"} <= findings.statuses.keys()
    assert "nothing wrong" in page(findings)


def test_a_policy_that_decides_otherwise_is_seen() -> None:
    watched = Watched()
    inner: Tenants[bytes] = Tenants(LRU, {})
    policy = watched("dram", inner)
    keys = [key_of(number) for number in range(3)]
    for at, key in enumerate(keys):
        policy.insert(key, None, at, "")
    assert watched.compare() is None
    inner.touch(keys[:1])  # behind the record's back
    assert policy.victims(1, lambda _: False) == [keys[1]]
    difference = watched.compare()
    assert difference is not None
    assert "the policy of dram, replayed" in difference
    assert watched.compared == 4


def test_wrong_bytes_are_a_fault() -> None:
    stop = threading.Event()
    with TieredStore([DramTier(LAYOUT, 4)]) as store:
        other = payload_of(9)[None]
        assert store.put([key_of(1)], other).result(WAIT_S) == [Status.OK]
        client = Client(store, "1/1", stop)
        client._read(range(1, 2), [key_of(1)], by_layer=False)
        while not client.verified:  # some of its deadlines have passed when they are set
            client._read(range(1, 2), [key_of(1)], by_layer=False)
    assert client.faults == ["wrong bytes of block 1"]


def test_a_corrupt_block_is_a_fault_of_a_drive_that_works() -> None:
    tier = FaultyTier(DramTier(LAYOUT, 4))
    tier.add(Fault(operation="write", kind=Flip(3)))
    with TieredStore([tier]) as store:
        store.put([key_of(1)], payload_of(1)[None]).result(WAIT_S)
        client = Client(store, "1/1", threading.Event())
        while not client.faults:
            client._read(range(1, 2), [key_of(1)], by_layer=False)
    assert client.faults == ["block 1 is corrupt on a drive that works"]


def test_what_is_left_over_is_named() -> None:
    with TieredStore([DramTier(LAYOUT, 4)]) as store:
        store.put([key_of(1)], payload_of(1)[None]).result(WAIT_S)
        assert soak._left(store.stats()) == []
        with store.lookup([key_of(1)]):
            assert soak._left(store.stats()) == ["dram has 1 slots LEASED", "1 leases are out"]


@pytest.mark.parametrize(
    ("growth", "more", "expected"),
    [(0, 0, []), (15 * MIB, 0, []), (17 * MIB, 0, ["memory"]), (0, 1, ["descriptors"])],
)
def test_growth_is_judged_between_the_second_quarter_and_the_last(
    growth: int, more: int, expected: list[str]
) -> None:
    samples = [
        (at / 100, 100 * MIB + (growth if at >= 75 else 0), 10 + (more if at >= 75 else 0))
        for at in range(100)
    ]
    findings = Findings()
    soak._judge_growth([each for each in samples if 0.25 <= each[0] < 0.5], samples, findings)
    assert [fault.split(" ")[0] for fault in findings.faults] == expected

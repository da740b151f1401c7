"""The store's cases: that they move blocks, count what moved, and find what is not right."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvbench.errors import CorruptDataError, TierUnavailableError
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine, Memory
from kvbench.measure.body import Context
from kvbench.measure.suite import Plan, Value
from kvbench.store.block import Status
from kvbench.store.dram import DramTier
from kvbench.store.posix import Bytes
from kvbench_suites import store_bodies
from kvbench_suites.store import GET, LOOKUP, MIXED, PUT, RESTORE, TIERS
from kvbench_suites.store_bodies import Get, Lookup, Mixed, Put, Restore

BLOCK_BYTES = 8192
SMALL = Machine(memory=Memory(available_bytes=256 * 2**20))
LANE = {"block_bytes": BLOCK_BYTES, "batch": 4, "queue_depth": 2}
RESTORED = {"block_bytes": BLOCK_BYTES, "tokens": 128, "block_tokens": 16, "layers": 2}
near_and_far = pytest.mark.parametrize("tier", ["dram", "nvme"])


@pytest.fixture
def made(
    llama: KVGeometry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(store_bodies, "FILL_BYTES", 32 * BLOCK_BYTES)
    bodies: list[Any] = []

    def one(kind: type[Any], tier: str, **params: Value) -> Any:
        operations = {Get: GET, Put: PUT, Mixed: MIXED, Lookup: LOOKUP, Restore: RESTORE}
        body = kind()
        bodies.append(body)
        body.set_up(
            Context(
                params=dict(operations[kind][tier].case(params).params),
                geometry=llama,
                machine=SMALL,
                plan=Plan(data_bytes=64 * BLOCK_BYTES),
                seed=7,
                process=0,
                scratch=tmp_path,
            )
        )
        return body

    yield one
    for body in bodies:
        body.tear_down()
    assert list(tmp_path.iterdir()) == []  # a store leaves nothing behind


def run(body: Any, operations: int) -> int:
    """Let a stream complete so many operations; how many it told of."""
    body.start()
    told = 0
    while told < operations:
        told += len(body.poll(0.01).end_ns)
    body.stop()
    return told + len(body.poll(0).end_ns)


@near_and_far
@pytest.mark.parametrize("kind", [Get, Mixed, Put])
def test_requests_complete_and_their_blocks_are_checked(
    made: Callable[..., Any], kind: type[Any], tier: str
) -> None:
    body = made(kind, tier, **LANE)
    assert body.operation_bytes == 4 * BLOCK_BYTES
    assert run(body, 20) >= 20
    assert body.verify() > 0
    assert (
        body.observed().path
        == {
            "dram": "the store's host memory",
            "nvme": "the store's drive, O_DIRECT",
        }[tier]
    )


def test_blocks_of_a_drive_are_served_by_the_drive_alone(made: Callable[..., Any]) -> None:
    body = made(Get, "nvme", **LANE)
    told = run(body, 10)
    tiers = body._running_store.stats().tiers
    assert tiers["dram"].counters["hits"].blocks == 0
    assert tiers["nvme"].counters["hits"].blocks == 4 * told
    assert body.watch().direction == "read"


def test_a_put_to_a_drive_counts_when_it_is_durable(made: Callable[..., Any]) -> None:
    body = made(Put, "nvme", **LANE)
    before = body._running_store.stats().tiers["nvme"].counters["demotions"].blocks
    told = run(body, 10)
    after = body._running_store.stats().tiers["nvme"].counters["demotions"].blocks
    assert after - before == 4 * told


def test_a_lookup_counts_keys(made: Callable[..., Any]) -> None:
    body = made(Lookup, "dram", **LANE)
    assert body.operation_bytes == 4 * 32
    run(body, 10)
    assert body.verify() > 0
    assert body._running_store.stats().leases == 0


@near_and_far
@pytest.mark.parametrize("by_layer", [False, True])
def test_a_restored_prefix_is_whole(made: Callable[..., Any], tier: str, *, by_layer: bool) -> None:
    body = made(Restore, tier, **RESTORED, by_layer=by_layer)
    assert [body.step() for _ in range(3)] == [8 * BLOCK_BYTES] * 3
    assert body.verify() == 3 * 8 * BLOCK_BYTES


def test_a_store_that_hands_out_another_block_is_found(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DramTier, "checks", False)
    body = made(Get, "dram", **LANE)
    honest = DramTier.read

    def swapped(tier: DramTier, slots: Any, outs: list[Bytes], part: int | None = None) -> Any:
        found = honest(tier, slots, outs, part)
        outs[0][:] = outs[-1]
        return found

    monkeypatch.setattr(DramTier, "read", swapped)
    # Which the store does not let pass: there is no success, so there is no number.
    with pytest.raises(TierUnavailableError, match="the store answered"):
        run(body, 5)
    monkeypatch.setattr(DramTier, "checks", True)  # which it now says without reason
    body = made(Get, "dram", **LANE)
    with pytest.raises(CorruptDataError, match="what arrived is not block"):
        run(body, 5)


def test_a_miss_is_no_fast_success(
    made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = made(Get, "dram", **LANE)
    monkeypatch.setattr(store_bodies, "_key", lambda *_: bytes(32))
    body._keys = [bytes([n]) * 32 for n in range(len(body._keys))]
    with pytest.raises(TierUnavailableError, match=Status.MISS.value):
        run(body, 5)


def test_too_little_data_for_the_requests_in_flight_is_refused(made: Callable[..., Any]) -> None:
    with pytest.raises(TierUnavailableError, match="use a larger --data"):
        made(Get, "dram", block_bytes=BLOCK_BYTES, batch=64, queue_depth=2)


def test_there_is_an_operation_for_each_tier() -> None:
    for operations in (GET, PUT, MIXED, RESTORE):
        assert tuple(operations) == TIERS
        assert all(each.name.startswith(f"{tier}.") for tier, each in operations.items())

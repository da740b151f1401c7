"""A store with peers, by the store's own API: local first, the rest from others, nothing wrong."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from kvbench.errors import UsageError
from kvbench.peer.fetch import Fetcher
from kvbench.peer.joined import Joined
from kvbench.peer.keeping import Origin
from kvbench.peer.limits import FetchOptions
from kvbench.peer.store import PeerStore
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.events import Event, Kind
from kvbench.store.exposition import exposition
from kvbench.store.metrics import Counted
from kvbench.store.options import Moving
from tests.peer.in_process import Cluster, memory_store
from tests.peer.store_machine import PeerMachine
from tests.store.blocks import (
    BUSY,
    LAYOUT,
    MISS,
    NAMESPACE,
    OK,
    WAIT_S,
    empty_rows,
    keys_of,
    payload_of,
    payloads_of,
    put,
)

if TYPE_CHECKING:
    from kvbench.store.api import Store

QUICK_S = 0.15
EXAMPLES = max(100, settings().max_examples)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


def get(
    store: PeerStore, keys: Sequence[bytes], deadline_s: float | None = None
) -> tuple[list[Status], dict[int, str]]:
    """Read the keys; what is OK has to be right."""
    rows = empty_rows(len(keys))
    request = store.get_into(keys, rows, deadline_s=deadline_s)
    statuses = request.result(WAIT_S)
    for key, row, status in zip(keys, rows, statuses, strict=True):
        if status is OK:
            assert (row == payload_of(key)).all(), "wrong bytes"
    return statuses, request.reasons


def stored(store: PeerStore) -> list[Event]:
    return [event for event in store.events().events if event.kind is Kind.STORED]


def until(true: object) -> None:
    pause, end_s = threading.Event(), time.monotonic() + WAIT_S
    assert callable(true)
    while not true():
        assert time.monotonic() < end_s, "it never came to be so"
        pause.wait(0.001)


def test_what_is_wholly_here_is_answered_by_the_local_store_itself(cluster: Cluster) -> None:
    keys = keys_of(8)
    node = cluster.node(keys)
    store = cluster.shared()
    put(store.store, keys)
    with store.lookup(keys) as lease:
        assert lease.tiers == ("dram",) * 8
        assert lease.holds, "the lease is not the local store's own"
        request = store.get_into(lease, empty_rows(8))
    assert not isinstance(request, Joined)
    assert request.result(WAIT_S) == [OK] * 8
    assert not isinstance(store.prefetch(keys), Joined)
    assert not node.connects
    assert store.stats().peers.asked == 0


def test_a_lookup_names_what_peers_are_believed_to_have_and_asks_nobody(cluster: Cluster) -> None:
    keys = keys_of(10)
    node = cluster.node(keys[:8])
    store = cluster.shared()
    put(store.store, keys[:3])
    with store.lookup(keys, owner="me", ttl_s=7.0) as lease:
        assert lease.keys == tuple(keys[:8])
        assert lease.tiers == ("dram",) * 3 + ("peer",) * 5
        assert (lease.owner, lease.ttl_s) == ("me", 7.0)
        assert store.stats().leases == 1
    assert store.stats().leases == 0
    store.release(lease)
    assert not node.connects


def test_a_lease_is_read_partly_from_here_and_partly_from_a_peer(cluster: Cluster) -> None:
    keys = keys_of(10)
    node = cluster.node(keys)
    store = cluster.shared()
    put(store.store, keys[:4])
    rows = empty_rows(10)
    with store.lookup(keys) as lease:
        request = store.get_into(lease, rows, deadline_s=WAIT_S)
        assert request.result(WAIT_S) == [OK] * 10
    assert (rows == payloads_of(keys)).all()
    assert request.reasons == {}
    assert request.statuses == [OK] * 10
    assert [key for pull in node.pulls for key in pull] == keys[4:], "local hits were asked for"


def test_keys_that_are_here_in_between_are_read_here(cluster: Cluster) -> None:
    keys = keys_of(6)
    cluster.node(keys)
    store = cluster.shared()
    put(store.store, [keys[1], keys[4]])
    assert get(store, keys)[0] == [OK] * 6
    assert store.stats().peers.arrived == 4


def test_a_key_that_is_nowhere_is_a_miss_as_without_peers(cluster: Cluster) -> None:
    cluster.node(keys_of(3))
    store = cluster.shared()
    keys = keys_of(3, prefix=1)
    request = store.get_into(keys, empty_rows(3))
    assert request.result(WAIT_S) == [MISS] * 3
    assert request.reasons == {}
    assert not isinstance(request, Joined)
    assert len(store.lookup(keys)) == 0
    assert store.stats().peers.reasons["nobody"] == 3


def test_without_any_peer_the_store_is_as_it_was(cluster: Cluster) -> None:
    store = cluster.shared()
    keys = keys_of(4)
    assert store.put(keys, payloads_of(keys)).result(WAIT_S) == [OK] * 4
    assert get(store, keys_of(6))[0] == [OK] * 4 + [MISS] * 2
    assert len(store.lookup(keys_of(6))) == 4


def test_a_wrong_hint_costs_one_miss_and_says_so(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys[:2])
    cluster.directory.hints[node.id] = set(keys)
    store = cluster.shared()
    with store.lookup(keys) as lease:
        assert len(lease) == 4
        request = store.get_into(lease, empty_rows(4))
        assert request.result(WAIT_S) == [OK, OK, MISS, MISS]
    assert request.reasons == dict.fromkeys((2, 3), f"peer {node.peer.name}: gone")
    assert len(node.pulls) == 1


def test_reasons_of_peers_are_counted_apart_from_misses(cluster: Cluster) -> None:
    keys = keys_of(5)
    node = cluster.node(keys)
    store = cluster.shared()
    assert get(store, keys)[0] == [OK] * 5
    node.flips = True
    assert get(store, keys)[0] == [Status.CORRUPT] * 5
    stats = store.stats()
    assert stats.peers.reasons["corrupt"] == 5
    assert stats.peers.arrived == 5
    assert stats.counters[Counted.MISSES.label].blocks == 10  # it was not here, ten times
    assert stats.tiers["dram"].counters[Counted.VERIFY_FAILURES.label].blocks == 0
    assert "kvbench_store" in exposition(stats)


def test_local_hits_do_not_wait_for_a_peer_that_is_frozen(cluster: Cluster) -> None:
    mine, theirs = keys_of(4), keys_of(4, prefix=1)
    node = cluster.node(theirs)
    store = cluster.shared()
    get(store, theirs)
    put(store.store, mine)
    node.frozen = True
    node.reached.clear()
    slow = store.get_into(theirs, empty_rows(4))
    assert node.reached.wait(WAIT_S)
    start_s = time.monotonic()
    for _ in range(50):
        with store.lookup(mine) as lease:
            assert store.get_into(lease, empty_rows(4)).result(WAIT_S) == [OK] * 4
    assert time.monotonic() - start_s < WAIT_S / 2
    assert not slow.done(), "the peer had not been asked meanwhile"
    store.cancel(slow)
    slow.result(WAIT_S)


def test_a_request_ends_by_its_deadline_with_what_was_here(cluster: Cluster) -> None:
    keys = keys_of(6)
    cluster.node(keys, frozen=True)
    store = cluster.shared()
    put(store.store, keys[:2])
    start_s = time.monotonic()
    statuses, reasons = get(store, keys, QUICK_S)
    assert time.monotonic() - start_s < WAIT_S / 2
    assert statuses == [OK] * 2 + [Status.TIMEOUT] * 4
    assert set(reasons) == {2, 3, 4, 5}
    assert store.stats().peers.reasons["late"] == 4


def test_a_peer_that_failed_is_not_promised_by_lookups(cluster: Cluster) -> None:
    keys = keys_of(4)
    cluster.node(keys, dead=True)
    store = cluster.shared()
    assert len(store.lookup(keys)) == 4
    assert get(store, keys)[0] == [BUSY] * 4
    assert len(store.lookup(keys)) == 0


def test_a_cancelled_request_settles_and_keeps_what_had_come(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys, gate=threading.Semaphore(0))
    store = cluster.shared()
    put(store.store, keys[:1])
    request = store.get_into(keys, empty_rows(4))
    assert node.reached.wait(WAIT_S)
    store.cancel(request)
    assert node.gate is not None
    node.gate.release(9)
    statuses = request.result(WAIT_S)
    assert statuses[0] in {OK, Status.TIMEOUT}
    assert statuses[2:] == [Status.TIMEOUT] * 2


def test_layers_of_local_blocks_come_one_by_one_and_remote_blocks_whole(cluster: Cluster) -> None:
    keys = keys_of(6)
    node = cluster.node(keys, gate=threading.Semaphore(0))
    store = cluster.shared()
    put(store.store, keys[:3])
    rows = empty_rows(6)
    request = store.get_into(keys, rows, by_layer=True)
    assert node.reached.wait(WAIT_S)
    assert not request.layer(0).wait(0.0), "a layer is there before all its rows are"
    assert node.gate is not None
    node.gate.release(9)
    for part in range(LAYOUT.parts):
        assert request.layer(part).wait(WAIT_S)
        assert request.layer(part).is_set()
        at = slice(part * LAYOUT.part_bytes, (part + 1) * LAYOUT.part_bytes)
        assert (rows[:, at] == payloads_of(keys)[:, at]).all()
    assert request.result(WAIT_S) == [OK] * 6


def test_a_layer_is_waited_for_no_longer_than_was_said(cluster: Cluster) -> None:
    keys = keys_of(2)
    node = cluster.node(keys, gate=threading.Semaphore(0))
    request = cluster.shared().get_into(keys, empty_rows(2), by_layer=True)
    assert node.reached.wait(WAIT_S)
    assert not request.layer(0).wait(0.01)
    assert node.gate is not None
    node.gate.release(2)
    assert request.layer(3).wait(WAIT_S)


class OneByOne:
    """Rows of a device that gains nothing by having several at a time."""

    def __init__(self, count: int) -> None:
        self.rows = empty_rows(count)

    def __len__(self) -> int:
        return len(self.rows)

    def send(self, index: int, out: Bytes) -> None:
        np.copyto(out, self.rows[index])

    def receive(self, index: int, part: int | None, data: Bytes) -> None:
        np.copyto(self.rows[index] if part is None else LAYOUT.part(self.rows[index], part), data)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        assert all(0 <= index < len(self.rows) for index in indexes), part


def test_rows_of_a_device_have_local_and_remote_blocks_in_their_places(cluster: Cluster) -> None:
    keys = keys_of(7)
    cluster.node(keys)
    store = cluster.shared(keep="always")
    put(store.store, keys[2:4])
    rows = OneByOne(7)
    assert store.get_into(keys, rows).result(WAIT_S) == [OK] * 7
    assert (rows.rows == payloads_of(keys)).all()
    assert store.store.prefetch(keys).result(WAIT_S) == [OK] * 7, "they were not kept"


def test_a_block_is_kept_when_it_is_fetched_a_second_time(cluster: Cluster) -> None:
    keys = keys_of(4)
    cluster.node(keys)
    store = cluster.shared(keep="second_touch")
    get(store, keys)
    assert len(store.store.lookup(keys)) == 0
    get(store, keys)
    assert len(store.store.lookup(keys)) == 4
    get(store, keys)
    stats = store.stats()
    assert (stats.peers.kept, stats.peers.arrived) == (4, 8)


@pytest.mark.parametrize(("keep", "kept"), [("always", 4), ("never", 0)])
def test_blocks_are_kept_always_or_never_if_that_is_said(
    cluster: Cluster, keep: Moving, kept: int
) -> None:
    keys = keys_of(4)
    cluster.node(keys)
    store = cluster.shared(keep=keep)
    get(store, keys)
    get(store, keys)
    assert len(store.store.lookup(keys)) == kept


def test_kept_blocks_have_their_parents_positions_and_tenant(cluster: Cluster) -> None:
    keys = keys_of(6)
    cluster.node(keys)
    store = cluster.shared(keep="always")
    put(store.store, [keys[3]], parent=keys[2], position=12)
    before = keys_of(1, prefix=9)[0]
    rows = empty_rows(6)
    origin = Origin(parent=before, position=9, tenant="a")
    assert store.get_into(keys, rows, origin=origin).result(WAIT_S) == [OK] * 6
    seen = {event.key: event for event in stored(store)}
    assert [seen[key].position for key in keys] == [9, 10, 11, 12, 13, 14]
    assert [seen[key].parent for key in keys] == [before, *keys[:-1]]
    assert [seen[key].tenant for key in keys] == ["a", "a", "a", "", "a", "a"]


def test_keeping_never_fails_a_block_that_has_come(cluster: Cluster) -> None:
    keys = keys_of(6)
    cluster.node(keys)
    store = cluster.shared(keep="always", slots=2)
    others = keys_of(2, prefix=1)
    put(store.store, others)
    with store.lookup(others):  # so that nothing finds room
        assert get(store, keys)[0] == [OK] * 6
    assert store.stats().peers.kept == 0


def test_a_prefetch_brings_blocks_of_peers_into_the_local_store(cluster: Cluster) -> None:
    keys = keys_of(6)
    cluster.node(keys)
    store = cluster.shared(keep="never")
    put(store.store, keys[:2])
    origin = Origin(tenant="b")
    assert store.prefetch(keys, origin=origin).result(WAIT_S) == [OK] * 6
    assert len(store.store.lookup(keys)) == 6
    assert [event.tenant for event in stored(store)] == ["", "", "b", "b", "b", "b"]
    cluster.nodes.clear()
    assert get(store, keys)[0] == [OK] * 6


def test_a_prefetch_without_room_is_busy(cluster: Cluster) -> None:
    keys = keys_of(3)
    cluster.node(keys)
    store = cluster.shared(slots=2)
    others = keys_of(2, prefix=1)
    put(store.store, others)
    with store.lookup(others):
        request = store.prefetch(keys)
        assert request.result(WAIT_S) == [BUSY] * 3
    assert "no room" in request.reasons[0]
    until(lambda: store.stats().peers.in_flight_bytes == 0)


def test_both_kinds_of_store_are_used_alike(cluster: Cluster) -> None:
    shared = cluster.shared()
    keys = keys_of(3)
    stores: list[Store] = [shared, memory_store(8)]
    for store in stores:
        assert store.put(keys, payloads_of(keys), tenant="t").result(WAIT_S) == [OK] * 3
        with store.lookup(keys) as lease:
            rows = empty_rows(3)
            assert store.get_into(lease, rows).result(WAIT_S) == [OK] * 3
        assert (rows == payloads_of(keys)).all()
        loan = store.lend(keys)
        assert all(loan.blocks)
        loan.release()
        store.used(keys)
        assert store.layout == LAYOUT
        assert store.stats().counters[Counted.PUTS.label].blocks == 3
        assert len(store.events().events) == 3
        with pytest.raises(UsageError, match="durable"):
            store.flush()
        store.close()


def test_a_fetcher_of_other_blocks_is_refused(cluster: Cluster) -> None:
    fetcher = Fetcher([], cluster.directory, Layout(4096))
    store = memory_store(2)
    with pytest.raises(UsageError, match="they have to be equal"):
        PeerStore(store, fetcher, NAMESPACE)
    fetcher.close()
    store.close()


@pytest.mark.parametrize(
    "wrong", [{"parent": b"short"}, {"position": -1}, {"tenant": "x" * 65}, {"tenant": "a\0b"}]
)
def test_an_origin_that_no_block_can_have_is_refused_before_anything_is_fetched(
    wrong: dict[str, object],
) -> None:
    with pytest.raises(UsageError):
        Origin(**wrong)  # type: ignore[arg-type]


def test_a_block_evicted_between_lookup_and_fetch_is_a_miss_a_thousand_times(
    cluster: Cluster,
) -> None:
    keys = keys_of(4)
    node = cluster.node(keys, slots=4)
    store = cluster.shared()
    others = 0

    def evict() -> None:
        nonlocal others
        others += 1
        put(node.store, keys_of(1 + others % 4, others))

    node.before = evict
    misses = 0
    for _ in range(1000):
        put(node.store, keys)
        with store.lookup(keys) as lease:
            assert len(lease) == 4
            rows = empty_rows(4)
            statuses = store.get_into(lease, rows).result(WAIT_S)
        assert set(statuses) <= {OK, MISS}
        for key, row, status in zip(keys, rows, statuses, strict=True):
            assert status is MISS or (row == payload_of(key)).all(), "wrong bytes"
        misses += statuses.count(MISS)
    assert misses > 1000, "nothing was evicted in time: nothing was tested"
    assert store.stats().peers.reasons["gone"] == misses


def test_hedged_and_staged_fetches_serve_a_store_alike(cluster: Cluster) -> None:
    keys = keys_of(12)
    for _ in range(2):
        cluster.node(keys)
    for options in (
        FetchOptions(deadline_s=WAIT_S, hedge_s=0.01),
        FetchOptions(deadline_s=WAIT_S, staged=True),
    ):
        store = cluster.shared(options, keep="always")
        put(store.store, keys[:2])
        assert get(store, keys)[0] == [OK] * 12
        assert len(store.store.lookup(keys)) == 12


def test_whatever_happens_in_whatever_order_no_block_is_wrong_and_none_that_is_well_is_lost() -> (
    None
):
    run_state_machine_as_test(
        PeerMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

"""Fetching from peers that are well, and from peers that are dead, frozen, slow or wrong."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from kvbench.peer.fetch import Fetcher
from kvbench.peer.flight import FetchRequest, Wanted
from kvbench.peer.limits import FetchOptions
from kvbench.peer.model import Channel, Peer, PeerError, Reason
from kvbench.store.block import Bytes, Status
from kvbench.store.rows import HostRows, as_rows
from tests.peer.in_process import NAME, Cluster, Memory, Node
from tests.store.blocks import (
    LAYOUT,
    NAMESPACE,
    OK,
    WAIT_S,
    empty_rows,
    keys_of,
    payload_of,
    payloads_of,
    put,
)

BLOCK = LAYOUT.block_bytes
SPLIT = FetchOptions(deadline_s=WAIT_S, most_pull_blocks=4, least_pull_bytes=1)  # many small pulls
QUICK_S = 0.15  # a deadline that is waited for


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def start(
    fetcher: Fetcher, keys: Sequence[bytes], rows: Bytes, deadline_s: float | None = None
) -> FetchRequest:
    wanted = Wanted(namespace=NAMESPACE, keys=keys, rows=as_rows(rows, len(keys), LAYOUT))
    return fetcher.fetch(wanted, deadline_s=deadline_s)


def fetch(
    fetcher: Fetcher, keys: Sequence[bytes], deadline_s: float | None = None
) -> tuple[list[Status], FetchRequest]:
    """Fetch and wait; what is OK has to be right."""
    rows = empty_rows(len(keys))
    request = start(fetcher, keys, rows, deadline_s)
    statuses = request.result(WAIT_S)
    for key, row, status in zip(keys, rows, statuses, strict=True):
        if status is OK:
            assert (row == payload_of(key)).all(), "wrong bytes"
    return statuses, request


def until(true: Callable[[], bool]) -> None:
    """Return once it is so."""
    pause, end_s = threading.Event(), time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end_s, "it never came to be so"
        pause.wait(0.001)


def reasons(fetcher: Fetcher) -> dict[str, int]:
    return {name: n for name, n in fetcher.stats().reasons.items() if n}


def test_blocks_of_a_peer_arrive_in_the_rows(cluster: Cluster) -> None:
    keys = keys_of(30)
    cluster.node(keys)
    fetcher = cluster.fetcher(SPLIT)
    statuses, _ = fetch(fetcher, keys)
    assert statuses == [OK] * 30
    stats = fetcher.stats()
    assert (stats.asked, stats.arrived, stats.arrived_bytes) == (30, 30, 30 * BLOCK)
    (peer,) = stats.peers.values()
    assert peer.paths[NAME].blocks == 30
    assert peer.paths[NAME].pulls.count >= 8, "a pull was larger than it may be"


def test_several_holders_serve_one_fetch_at_a_time(cluster: Cluster) -> None:
    keys = keys_of(32)
    both = threading.Barrier(2, timeout=WAIT_S)  # broken if one of them is not asked meanwhile
    nodes = [cluster.node(keys) for _ in range(2)]
    once = [True, True]

    def meet(which: int) -> Callable[[], None]:
        def before() -> None:
            if once[which]:
                once[which] = False
                both.wait()

        return before

    for which, node in enumerate(nodes):
        node.before = meet(which)
    statuses, _ = fetch(cluster.fetcher(SPLIT), keys)
    assert statuses == [OK] * 32
    asked = [key for node in nodes for pull in node.pulls for key in pull]
    assert sorted(asked) == sorted(keys), "a block was asked for twice"


def test_a_peer_has_no_more_channels_than_streams(cluster: Cluster) -> None:
    keys = keys_of(40)
    node = cluster.node(keys, gate=threading.Semaphore(0))
    fetcher = cluster.fetcher(
        FetchOptions(deadline_s=WAIT_S, most_pull_blocks=2, least_pull_bytes=1, streams=3)
    )
    request = start(fetcher, keys, empty_rows(40))
    until(lambda: node.open_ == 3)
    assert node.gate is not None
    node.gate.release(40)
    assert request.result(WAIT_S) == [OK] * 40
    assert node.connects == 3


def test_what_only_one_holder_has_is_asked_of_that_one(cluster: Cluster) -> None:
    keys = keys_of(20)
    few, many = cluster.node(keys[:5]), cluster.node(keys)
    statuses, _ = fetch(cluster.fetcher(SPLIT), keys)
    assert statuses == [OK] * 20
    assert {key for pull in few.pulls for key in pull} <= set(keys[:5])
    assert {key for pull in many.pulls for key in pull} >= set(keys[5:])


FAULTS: dict[Reason, Callable[[Node], None]] = {
    Reason.GONE: lambda _: None,  # its hint is wrong: see below
    Reason.RESTARTED: lambda node: setattr(node, "restarted", True),
    Reason.UNREACHABLE: lambda node: setattr(node, "dead", True),
    Reason.LATE: lambda node: setattr(node, "frozen", True),
    Reason.CORRUPT: lambda node: setattr(node, "flips", True),
    Reason.REFUSED: lambda node: setattr(node, "refuses", True),
    Reason.BUSY: lambda node: setattr(node, "busy", True),
}


def faulty(cluster: Cluster, keys: Sequence[bytes], reason: Reason) -> Node:
    """A peer that is said to have the blocks, and fails for this reason."""
    node = cluster.node(() if reason is Reason.GONE else keys)
    cluster.directory.hints[node.id] = set(keys)
    FAULTS[reason](node)
    return node


@pytest.mark.parametrize("reason", FAULTS)
def test_a_peer_that_fails_gives_every_key_a_reason_and_no_wrong_bytes(
    cluster: Cluster, reason: Reason
) -> None:
    keys = keys_of(6)
    node = faulty(cluster, keys, reason)
    fetcher = cluster.fetcher()
    statuses, request = fetch(fetcher, keys, QUICK_S)
    assert statuses == [reason.status] * 6
    assert reasons(fetcher) == {reason.value: 6}
    assert all(reason.value in request.reasons[i] for i in range(6))
    assert all(node.peer.name in request.reasons[i] for i in range(6))
    assert fetcher.stats().peers[node.id.hex()].reasons == {reason.value: 6}


@pytest.mark.parametrize("reason", FAULTS)
def test_what_fails_at_one_holder_is_had_from_the_next(cluster: Cluster, reason: Reason) -> None:
    keys = keys_of(6)
    faulty(cluster, keys, reason)
    cluster.node(keys[:5])  # the directory names it after the longer one
    statuses, _ = fetch(cluster.fetcher(), keys, 10 * QUICK_S)
    assert statuses[:5] == [OK] * 5


def test_a_namespace_that_a_peer_does_not_serve_is_not_asked_of_it(cluster: Cluster) -> None:
    keys = keys_of(3)
    node = cluster.node(keys)
    fetcher = cluster.fetcher()
    wanted = Wanted(namespace=b"o" * 32, keys=keys, rows=as_rows(empty_rows(3), 3, LAYOUT))
    assert fetcher.fetch(wanted).result(WAIT_S) == [Status.MISS] * 3
    assert not node.connects
    assert reasons(fetcher) == {"refused": 3}


def test_a_key_that_nobody_has_is_a_miss_without_a_word(cluster: Cluster) -> None:
    cluster.node(keys_of(3))
    fetcher = cluster.fetcher()
    statuses, request = fetch(fetcher, keys_of(2, prefix=1))
    assert statuses == [Status.MISS] * 2
    assert request.reasons == {}
    assert reasons(fetcher) == {"nobody": 2}


def test_a_block_evicted_since_the_directory_heard_costs_one_miss(cluster: Cluster) -> None:
    keys = keys_of(8)
    node = cluster.node(keys[:5])
    cluster.directory.hints[node.id] = set(keys)
    fetcher = cluster.fetcher()
    statuses, _ = fetch(fetcher, keys)
    assert statuses == [OK] * 5 + [Status.MISS] * 3
    assert reasons(fetcher) == {"gone": 3}


def test_a_miss_at_one_peer_does_not_hide_that_another_was_late(cluster: Cluster) -> None:
    keys = keys_of(2)
    cluster.node(keys, frozen=True)
    cluster.directory.hints[cluster.node().id] = set(keys[:1])
    statuses, _ = fetch(cluster.fetcher(), keys[:1], 4 * QUICK_S)
    assert statuses == [Status.TIMEOUT]


def test_only_one_fetch_is_slow_when_a_peer_freezes(cluster: Cluster) -> None:
    keys = keys_of(4)
    cluster.node(keys, frozen=True)
    fetcher = cluster.fetcher(clock=Clock())
    fetch(fetcher, keys, QUICK_S)
    start_s = time.monotonic()
    for _ in range(20):
        statuses, _ = fetch(fetcher, keys, WAIT_S)
        assert statuses == [Status.BUSY] * 4
    assert time.monotonic() - start_s < WAIT_S / 2
    assert reasons(fetcher) == {"late": 4, "breaker": 80}


def test_the_log_says_who_is_left_alone_and_why(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    node = cluster.node(keys_of(4), frozen=True)
    fetcher = cluster.fetcher(clock=Clock())
    for _ in range(3):
        fetch(fetcher, keys_of(4), QUICK_S)
    name = node.peer.name
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    assert said == [f"peer {name} is left alone for a while: late"]


def test_a_peer_that_is_back_is_found_by_a_probe_that_nobody_waits_for(cluster: Cluster) -> None:
    keys, clock = keys_of(4), Clock()
    node = cluster.node(keys, dead=True)
    fetcher = cluster.fetcher(clock=clock)
    fetch(fetcher, keys)
    node.dead = False
    statuses, _ = fetch(fetcher, keys)
    assert statuses == [Status.BUSY] * 4, "it was asked before its pause was over"
    clock.now_s += 1.0
    assert fetcher.reach(NAMESPACE, keys) == 0  # the probe begins
    until(lambda: fetcher.reach(NAMESPACE, keys) == 4)
    statuses, _ = fetch(fetcher, keys)
    assert statuses == [OK] * 4
    assert fetcher.stats().probes == 1


def test_a_probe_of_a_frozen_peer_holds_up_nobody(cluster: Cluster) -> None:
    keys, clock = keys_of(4), Clock()
    node = cluster.node(keys, frozen=True)
    fetcher = cluster.fetcher(FetchOptions(deadline_s=WAIT_S, probe_s=WAIT_S), clock=clock)
    fetch(fetcher, keys, QUICK_S)
    clock.now_s += 1.0
    start_s = time.monotonic()
    statuses, _ = fetch(fetcher, keys, WAIT_S)
    assert statuses == [Status.BUSY] * 4
    assert time.monotonic() - start_s < WAIT_S / 2
    until(lambda: node.connects == 2)


def test_a_connection_that_was_cut_while_idle_is_made_anew(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys)
    fetcher = cluster.fetcher()
    fetch(fetcher, keys)
    node.cuts = 1
    statuses, _ = fetch(fetcher, keys)
    assert statuses == [OK] * 4
    assert node.connects == 2
    assert fetcher.reach(NAMESPACE, keys) == 4, "the peer was blamed"


def test_a_fetch_ends_by_its_deadline_and_keeps_what_had_arrived(cluster: Cluster) -> None:
    keys = keys_of(8)
    cluster.node(keys, gate=threading.Semaphore(3))
    fetcher = cluster.fetcher()
    start_s = time.monotonic()
    statuses, _ = fetch(fetcher, keys, QUICK_S)
    assert time.monotonic() - start_s < WAIT_S / 2
    assert statuses == [OK] * 3 + [Status.TIMEOUT] * 5
    assert fetcher.reach(NAMESPACE, keys) == 8, "a peer that is slow is not one that is dead"


def test_a_deadline_that_is_over_asks_nobody(cluster: Cluster) -> None:
    keys = keys_of(2)
    node = cluster.node(keys)
    statuses, _ = fetch(cluster.fetcher(), keys, -1.0)
    assert statuses == [Status.TIMEOUT] * 2
    assert not node.pulls


def test_a_pull_under_way_is_cancelled_with_its_fetch(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys)
    fetcher = cluster.fetcher()
    fetch(fetcher, keys)  # so that there is a channel
    node.frozen = True
    node.reached.clear()
    request = start(fetcher, keys, empty_rows(4), WAIT_S)
    assert node.reached.wait(WAIT_S)
    start_s = time.monotonic()
    request.give_up("cancelled")
    assert request.result(WAIT_S) == [Status.TIMEOUT] * 4
    assert time.monotonic() - start_s < WAIT_S / 2
    assert reasons(fetcher) == {"cancelled": 4}
    assert fetcher.reach(NAMESPACE, keys) == 4, "a peer was blamed for what its caller did"


def test_a_fetch_that_is_cancelled_while_it_connects_ends_at_once_and_asks_nothing(
    cluster: Cluster,
) -> None:
    keys = keys_of(4)
    node = cluster.node(keys, lets_in=threading.Event())
    fetcher = cluster.fetcher(FetchOptions(deadline_s=WAIT_S, connect_s=WAIT_S))
    request = start(fetcher, keys, empty_rows(4))
    until(lambda: node.connects == 1)
    request.give_up("cancelled")
    assert request.done(), "its rows were in use before there was a channel"
    assert node.lets_in is not None
    node.lets_in.set()
    until(lambda: fetcher.stats().in_flight_bytes == 0)
    assert not node.pulls
    assert fetch(fetcher, keys)[0] == [OK] * 4


def test_rows_that_one_peer_did_not_fill_are_free_while_the_next_is_connected_to(
    cluster: Cluster,
) -> None:
    keys = keys_of(4)
    cluster.directory.hints[cluster.node().id] = set(keys)
    node = cluster.node(keys[:3], lets_in=threading.Event())
    fetcher = cluster.fetcher(FetchOptions(deadline_s=WAIT_S, connect_s=WAIT_S))
    request = start(fetcher, keys, empty_rows(4))
    until(lambda: node.connects == 1)
    request.give_up("cancelled")
    assert request.done()
    assert node.lets_in is not None
    node.lets_in.set()


def test_what_a_peer_was_asked_for_is_asked_of_another_when_it_leaves(cluster: Cluster) -> None:
    keys = keys_of(6)
    node = cluster.node(keys)
    fetcher = cluster.fetcher()
    fetch(fetcher, keys)
    node.frozen = True
    cluster.node(keys[:5])
    node.reached.clear()
    request = start(fetcher, keys, empty_rows(6))
    assert node.reached.wait(WAIT_S)
    del cluster.directory.peers[node.id], cluster.directory.hints[node.id]
    start_s = time.monotonic()
    fetcher.left(node.id)
    assert request.result(WAIT_S)[:5] == [OK] * 5
    assert time.monotonic() - start_s < WAIT_S / 2
    assert node.id.hex() not in fetcher.stats().peers


def test_a_bug_in_a_channel_fails_its_keys_and_nothing_else(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys, raises=ZeroDivisionError("a bug"))
    fetcher = cluster.fetcher(clock=(clock := Clock()))
    statuses, request = fetch(fetcher, keys)
    assert statuses == [Status.BUSY] * 4
    assert "ZeroDivisionError" in request.reasons[0]
    node.raises = None
    clock.now_s += 1
    until(lambda: fetcher.reach(NAMESPACE, keys) == 4)
    assert fetch(fetcher, keys)[0] == [OK] * 4


class NoMemory(HostRows):
    """Rows of which nobody can say where they are."""

    def target(self, index: int, part: int | None) -> Bytes:
        raise ZeroDivisionError(f"a bug in row {index}, part {part}")


def test_a_pull_that_cannot_be_made_leaves_its_channel_to_the_next(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys)
    fetcher = cluster.fetcher()
    rows = NoMemory(list(empty_rows(4)), LAYOUT)
    request = fetcher.fetch(Wanted(namespace=NAMESPACE, keys=keys, rows=rows))
    assert request.result(WAIT_S) == [Status.BUSY] * 4
    assert fetch(fetcher, keys)[0] == [OK] * 4
    assert (node.connects, node.open_) == (1, 1)
    fetcher.close()
    assert node.open_ == 0


def test_no_more_is_in_flight_than_may_be(cluster: Cluster) -> None:
    keys, seen = keys_of(32), list[int]()
    node = cluster.node(keys)
    limit = 4 * BLOCK
    fetcher = cluster.fetcher(
        FetchOptions(
            deadline_s=WAIT_S,
            most_pull_blocks=2,
            least_pull_bytes=1,
            streams=4,
            in_flight_bytes=limit,
        )
    )
    node.between = lambda: seen.append(fetcher.stats().in_flight_bytes)
    assert fetch(fetcher, keys)[0] == [OK] * 32
    assert 0 < max(seen) <= limit
    until(lambda: fetcher.stats().in_flight_bytes == 0)


HEDGE = FetchOptions(deadline_s=WAIT_S, hedge_s=0.02)


def test_a_second_holder_is_asked_when_the_first_does_not_answer(cluster: Cluster) -> None:
    keys = keys_of(4)
    gates = [threading.Semaphore(0), threading.Semaphore(0)]
    nodes = [cluster.node(keys, gate=gate) for gate in gates]
    fetcher = cluster.fetcher(HEDGE)
    request = start(fetcher, keys, rows := empty_rows(4))
    for node in nodes:
        assert node.reached.wait(WAIT_S), "one of them was not asked"
    gates[1].release(4)
    assert request.result(WAIT_S) == [OK] * 4
    assert (rows == payloads_of(keys)).all()
    stats = fetcher.stats()
    assert (stats.hedges, stats.hedges_won, stats.arrived) == (1, 4, 4)
    gates[0].release(4)


def test_who_loses_a_hedge_never_writes_to_the_rows(cluster: Cluster) -> None:
    keys = keys_of(4)
    gates = [threading.Semaphore(0), threading.Semaphore(0)]
    nodes = [cluster.node(keys, gate=gate) for gate in gates]
    fetcher = cluster.fetcher(HEDGE)
    rows = empty_rows(4)
    request = start(fetcher, keys, rows)
    for node in nodes:
        assert node.reached.wait(WAIT_S), "one of them was not asked"
    gates[1].release(4)
    assert request.result(WAIT_S) == [OK] * 4
    assert (rows == payloads_of(keys)).all()
    rows[:] = 7  # they are the caller's again
    gates[0].release(4)
    until(lambda: fetcher.stats().in_flight_bytes == 0)
    assert (rows == 7).all()


class DeviceRows:
    """Rows of another kind: what the store would hand to a GPU."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.rows = empty_rows(count)
        self.finished: set[int] = set()
        self._error = error

    def __len__(self) -> int:
        return len(self.rows)

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        raise AssertionError(f"nothing is sent: {indexes} to {len(outs)}")

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        assert part is None, "a block from a peer comes whole"
        if self._error is not None:
            raise self._error
        for index, each in zip(indexes, data, strict=True):
            np.copyto(self.rows[index], each)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        assert part is None
        self.finished.update(indexes)


class SlowRows(DeviceRows):
    """Rows that take as long as the test wants."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.calls: list[list[int]] = []
        self.go_on = threading.Event()

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        self.calls.append(list(indexes))
        assert self.go_on.wait(WAIT_S)
        super().receive_many(indexes, part, data)


def test_a_row_is_written_once_though_two_peers_answer_at_a_time(cluster: Cluster) -> None:
    keys = keys_of(4)
    gates = [threading.Semaphore(0), threading.Semaphore(0)]
    nodes = [cluster.node(keys, gate=gate) for gate in gates]
    fetcher, rows = cluster.fetcher(HEDGE), SlowRows(4)
    wanted = Wanted(namespace=NAMESPACE, keys=keys, rows=as_rows(rows, 4, LAYOUT))
    request = fetcher.fetch(wanted)
    for node in nodes:
        assert node.reached.wait(WAIT_S)
    gates[0].release(4)
    until(lambda: bool(rows.calls))
    gates[1].release(4)
    until(lambda: fetcher.stats().in_flight_bytes == 4 * BLOCK)  # the second has come to its end
    rows.go_on.set()
    assert request.result(WAIT_S) == [OK] * 4
    assert rows.calls == [[0, 1, 2, 3]]


def test_a_caller_is_let_go_by_his_deadline_though_a_channel_never_returns(
    cluster: Cluster,
) -> None:
    keys = keys_of(2)
    node = cluster.node(keys, hangs=threading.Event())
    fetcher = cluster.fetcher(FetchOptions(staged=True))
    rows = empty_rows(2)
    start_s = time.monotonic()
    assert start(fetcher, keys, rows, QUICK_S).result(WAIT_S) == [Status.TIMEOUT] * 2
    assert time.monotonic() - start_s < WAIT_S / 2
    assert node.hangs is not None
    node.hangs.set()
    until(lambda: fetcher.stats().in_flight_bytes == 0)
    assert (rows == 0xEE).all(), "a row was written after its key had been settled"


def test_a_block_that_arrives_after_its_caller_has_gone_is_not_written_to_his_row(
    cluster: Cluster,
) -> None:
    keys = keys_of(1)
    node = cluster.node(keys, gate=threading.Semaphore(0))
    fetcher = cluster.fetcher(FetchOptions(deadline_s=WAIT_S, staged=True))
    rows = empty_rows(1)
    request = start(fetcher, keys, rows)
    node.after = lambda: request.give_up("cancelled")
    assert node.gate is not None
    node.gate.release(1)
    assert request.result(WAIT_S) == [Status.TIMEOUT]
    until(lambda: fetcher.stats().in_flight_bytes == 0)
    assert (rows == 0xEE).all()


def test_a_row_is_not_the_callers_while_a_channel_may_still_write_to_it(cluster: Cluster) -> None:
    keys = keys_of(2)
    node = cluster.node(keys, hangs=threading.Event())
    fetcher = cluster.fetcher()
    rows = empty_rows(2)
    request = start(fetcher, keys, rows, QUICK_S)
    until(lambda: request.over)
    assert not request.done()
    assert node.hangs is not None
    node.hangs.set()
    request.result(WAIT_S)
    before = rows.copy()
    until(lambda: fetcher.stats().in_flight_bytes == 0)
    assert (rows == before).all()


def test_rows_of_a_device_are_filled_through_staging(cluster: Cluster) -> None:
    keys = keys_of(10)
    cluster.node(keys)
    fetcher, rows = cluster.fetcher(SPLIT), DeviceRows(10)
    wanted = Wanted(namespace=NAMESPACE, keys=keys, rows=as_rows(rows, 10, LAYOUT))
    assert fetcher.fetch(wanted).result(WAIT_S) == [OK] * 10
    assert (rows.rows == payloads_of(keys)).all()
    assert rows.finished == set(range(10))


def test_rows_that_fail_are_not_held_against_the_peer(cluster: Cluster) -> None:
    keys = keys_of(3)
    cluster.node(keys)
    fetcher, rows = cluster.fetcher(), DeviceRows(3, MemoryError("no memory on the device"))
    wanted = Wanted(namespace=NAMESPACE, keys=keys, rows=as_rows(rows, 3, LAYOUT))
    request = fetcher.fetch(wanted)
    assert request.result(WAIT_S) == [Status.BUSY] * 3
    assert "no memory on the device" in request.reasons[0]
    assert fetcher.reach(NAMESPACE, keys) == 3


class Broken(Memory):
    """A better way that does not work."""

    name = "better"

    def connect(self, peer: Peer, expires_s: float) -> Channel:
        raise PeerError(f"{peer.name} has no segment by {expires_s}", Reason.UNREACHABLE)


def test_a_transport_that_does_not_work_gives_way_to_the_next(cluster: Cluster) -> None:
    keys = keys_of(3)
    node = cluster.node(keys)
    node.peer.endpoints["better"] = "somewhere"
    fetcher = Fetcher([Broken(cluster), Memory(cluster)], cluster.directory, LAYOUT)
    assert fetch(fetcher, keys)[0] == [OK] * 3
    assert list(fetcher.stats().peers[node.id.hex()].paths) == [NAME]
    fetcher.close()


def test_no_peer_is_asked_when_recomputing_is_faster(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys)
    options = FetchOptions(recompute_s_per_block=1e-6, worth_probe_s=1000.0)
    fetcher = cluster.fetcher(options, clock=(clock := Clock()))
    clock.now_s = 5000.0
    assert fetcher.reach(NAMESPACE, keys) == 0
    statuses, request = fetch(fetcher, keys)
    assert statuses == [Status.MISS] * 4
    assert "recomputing" in request.reasons[0]
    assert reasons(fetcher) == {"not worth": 4}
    until(lambda: fetcher.stats().probes == 1)  # one trial, which nobody waited for
    assert len(node.pulls) <= 1


def test_a_peer_that_has_become_fast_is_asked_again(cluster: Cluster) -> None:
    keys = keys_of(4)
    cluster.node(keys)
    options = FetchOptions(recompute_s_per_block=0.1, expected_latency_s=100.0, worth_probe_s=10.0)
    fetcher = cluster.fetcher(options, clock=(clock := Clock()))
    assert fetcher.reach(NAMESPACE, keys) == 0
    for _ in range(200):
        clock.now_s += 10.0
        probes = fetcher.stats().probes
        if fetcher.reach(NAMESPACE, keys):
            break
        until(lambda probes=probes: fetcher.stats().probes > probes)  # type: ignore[misc]
    assert fetch(fetcher, keys)[0] == [OK] * 4


def test_closing_ends_what_is_under_way(cluster: Cluster) -> None:
    keys = keys_of(4)
    node = cluster.node(keys)
    fetcher = cluster.fetcher()
    fetch(fetcher, keys)
    node.frozen = True
    node.reached.clear()
    requests = [start(fetcher, keys, empty_rows(4), WAIT_S) for _ in range(20)]
    assert node.reached.wait(WAIT_S)
    start_s = time.monotonic()
    fetcher.close()
    assert time.monotonic() - start_s < WAIT_S / 2
    for request in requests:
        assert OK not in request.result(1.0)
    assert not node.open_, "a channel was left open"
    fetcher.close()


def test_a_slot_that_is_used_again_before_it_is_read_never_gives_wrong_bytes(
    cluster: Cluster,
) -> None:
    keys = keys_of(2)
    node = cluster.node(keys, slots=2, careless=True)
    fetcher = cluster.fetcher(FetchOptions(pause_s=1e-9), clock=time.monotonic)
    others = iter(range(1, 10**6))

    def evict() -> None:
        put(node.store, keys_of(2, next(others)))

    node.between = evict
    corrupt = 0
    for _ in range(1000):
        put(node.store, keys)
        statuses, _ = fetch(fetcher, keys)  # which checks the bytes
        corrupt += statuses.count(Status.CORRUPT)
    assert corrupt > 0, "the race was never lost: nothing was tested"

"""What a publisher tells of a store, and what a follower makes of it when the network is unkind."""

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvbench.peer.directory import Directory, Effect, Limits, Summary, hint, pack, xor_of
from kvbench.peer.model import Peer, PeerError, Reason
from kvbench.peer.publisher import (
    MOST_HINTS,
    PAGE_HINTS,
    AnyBody,
    Beat,
    Delta,
    Page,
    PageRequest,
    Publisher,
    decode,
    encode,
)
from kvbench.peer.replication import FIRST_PAUSE_S, LONGEST_PAUSE_S, MOST_ASKED, Follower
from tests.peer.eventful import Eventful, eventually, key, keys, peer


class Wire:
    """Bodies that were sent."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def __call__(self, body: bytes) -> None:
        self.bodies.append(body)

    def deltas(self) -> list[Delta]:
        return [said for said in map(decode, self.bodies) if isinstance(said, Delta)]


def publisher_of(
    store: Eventful, *, tenants: Sequence[str] | None = None
) -> tuple[Publisher, Wire]:
    wire = Wire()
    return Publisher(store, store.log.epoch, wire, tenants=tenants), wire


def read_back(wire: Wire) -> set[int]:
    """What somebody knows who got every delta from number 1."""
    known: set[int] = set()
    for number, delta in enumerate(wire.deltas(), 1):
        assert delta.sequence == number
        known |= numbers(delta.added)
        known -= numbers(delta.removed)
    return known


def numbers(packed: bytes) -> set[int]:
    return {int.from_bytes(packed[at : at + 8], "little") for at in range(0, len(packed), 8)}


def test_a_block_is_told_when_it_is_stored_and_when_no_tier_has_it_any_more() -> None:
    store = Eventful()
    publisher, wire = publisher_of(store)
    store.put(keys([1, 2]))
    assert publisher.step()
    assert read_back(wire) == {1, 2}
    store.put(keys([1]), "nvme")
    store.evict(keys([1, 2]))
    assert publisher.step()
    assert read_back(wire) == {1}  # it went down to the drive
    store.evict(keys([1]), "nvme")
    assert publisher.step()
    assert read_back(wire) == set()
    assert not publisher.step()


def test_what_is_stored_and_gone_again_before_it_was_told_is_not_told_at_all() -> None:
    store = Eventful()
    publisher, wire = publisher_of(store)
    publisher.step()
    store.put(keys([1]))
    store.evict(keys([1]))
    publisher.step()
    assert wire.bodies == []


def test_blocks_from_before_the_publisher_began_are_told() -> None:
    store = Eventful(most_events=4)  # as of a warm drive: its events are long gone
    store.put(keys(range(100)), "nvme")
    publisher, wire = publisher_of(store)
    publisher.step()
    assert read_back(wire) == set(range(100))


def test_lost_events_cost_a_listing_and_only_the_difference_is_told() -> None:
    store = Eventful(most_events=8)
    publisher, wire = publisher_of(store)
    store.put(keys(range(5)))
    publisher.step()
    store.put(keys(range(5, 50)))
    store.evict(keys(range(3)))
    publisher.step()
    assert store.listings == 2
    assert read_back(wire) == set(range(3, 50))
    assert len(numbers(wire.deltas()[-1].added)) == 45


def test_a_fenced_tier_takes_its_blocks_out_of_what_is_told() -> None:
    store = Eventful()
    publisher, wire = publisher_of(store)
    store.put(keys(range(6)), "nvme")
    store.put(keys(range(2)))
    publisher.step()
    store.fence("nvme")
    publisher.step()
    assert read_back(wire) == {0, 1}


def test_blocks_of_tenants_that_are_not_shared_are_never_told() -> None:
    store = Eventful()
    store.put(keys([1]), tenant="a")
    store.put(keys([2]), tenant="b")
    publisher, wire = publisher_of(store, tenants=["a"])
    publisher.step()
    store.put(keys([3]), tenant="b")
    store.put(keys([4]), tenant="a")
    store.evict(keys([2]), tenant="b")
    publisher.step()
    assert read_back(wire) == {1, 4}


def test_a_store_that_cannot_be_asked_is_asked_again_and_nothing_is_missed() -> None:
    class Moody(Eventful):
        fails = False

        def held(self, keys: Sequence[bytes], *, tenants: Collection[str] | None) -> Sequence[bool]:
            if self.fails:
                raise OSError("busy")
            return super().held(keys, tenants=tenants)

    store = Moody()
    publisher, wire = publisher_of(store)
    store.put(keys([1, 2]))
    publisher.step()
    store.evict(keys([1]))
    store.fails = True
    with pytest.raises(OSError, match="busy"):
        publisher.step()
    store.fails = False
    publisher.step()
    assert read_back(wire) == {2}


def test_many_blocks_take_many_deltas_each_within_the_limit() -> None:
    store = Eventful()
    publisher, wire = publisher_of(store)
    store.put(keys(range(2 * MOST_HINTS)))
    publisher.step()
    store.evict(keys(range(2 * MOST_HINTS)))
    publisher.step()
    assert read_back(wire) == set()
    assert all(len(numbers(d.added) | numbers(d.removed)) <= MOST_HINTS for d in wire.deltas())
    assert len(wire.deltas()) == 8


def test_events_of_another_epoch_are_not_mixed_in() -> None:
    store = Eventful()
    publisher = Publisher(store, store.log.epoch + 1, Wire())
    with pytest.raises(PeerError, match="make another peer for another store"):
        publisher.step()


def test_a_publisher_that_runs_tells_by_itself_beats_and_ends() -> None:
    store = Eventful()
    publisher, wire = publisher_of(store)
    publisher.start()
    store.put(keys([1]))
    assert eventually(lambda: bool(wire.deltas()))
    assert eventually(lambda: any(isinstance(decode(body), Beat) for body in wire.bodies))
    publisher.close()
    told = len(wire.bodies)
    store.put(keys([2]))
    assert not publisher._thread.is_alive()
    assert len(wire.bodies) == told
    assert publisher.summary() == Summary(1, 1, 1)


def test_what_cannot_be_sent_is_counted_and_told_of_by_the_next_beat() -> None:
    store = Eventful()
    sent: list[bytes] = []

    def send(body: bytes) -> None:
        if not sent:
            sent.append(b"")
            raise PeerError("no connection", Reason.UNREACHABLE)
        sent.append(body)

    publisher = Publisher(store, store.log.epoch, send)
    store.put(keys([1]))
    publisher.start()
    assert eventually(lambda: len(sent) > 1)
    publisher.close()
    assert publisher.stats().failures == 1
    beats = [said for said in map(decode, filter(None, sent)) if isinstance(said, Beat)]
    assert beats[0].summary in {Summary(1, 1, 1), Summary(0, 0, 0)}


# Snapshots.


def pages_of(publisher: Publisher, epoch: int, at_least: int = 0) -> set[int]:
    page = publisher.page(PageRequest(epoch, 0, 0, at_least))
    found = numbers(page.hints)
    for number in range(1, page.pages):
        more = publisher.page(PageRequest(epoch, number, page.sequence, 0))
        assert (more.number, more.sequence, more.pages) == (number, page.sequence, page.pages)
        found |= numbers(more.hints)
    return found


def test_a_snapshot_comes_in_pages_of_one_instant_while_the_store_changes() -> None:
    store = Eventful(most_events=4)
    publisher, _ = publisher_of(store)
    wanted = range(PAGE_HINTS + 5)
    store.put(keys(wanted))
    publisher.step()
    epoch = store.log.epoch
    first = publisher.page(PageRequest(epoch, 0, 0, 0))
    store.evict(keys(range(10)))
    publisher.step()
    second = publisher.page(PageRequest(epoch, 1, first.sequence, 0))
    assert numbers(first.hints) | numbers(second.hints) == set(wanted)
    assert len(encode(first)) <= 2**20 + 64
    newer = publisher.page(PageRequest(epoch, 0, 0, first.sequence + 1))
    assert newer.sequence == publisher.summary().sequence > first.sequence
    assert pages_of(publisher, epoch, newer.sequence) == set(wanted) - set(range(10))
    gone = publisher.page(PageRequest(epoch, 1, first.sequence, 0))
    assert (gone.number, gone.sequence) == (0, newer.sequence)  # begin again


def test_a_snapshot_of_nothing_is_one_empty_page_and_of_another_epoch_is_refused() -> None:
    store = Eventful()
    publisher, _ = publisher_of(store)
    page = publisher.page(PageRequest(store.log.epoch, 0, 0, 0))
    assert (page.hints, page.pages) == (b"", 1)
    with pytest.raises(PeerError) as refused:
        publisher.page(PageRequest(store.log.epoch + 1, 0, 0, 0))
    assert refused.value.reason is Reason.RESTARTED


def test_a_snapshot_is_not_kept_for_ever() -> None:
    store = Eventful()
    publisher, _ = publisher_of(store)
    publisher.page(PageRequest(store.log.epoch, 0, 0, 0))
    publisher._forget_snapshot(time.monotonic())
    assert publisher._snapshot is not None
    publisher._forget_snapshot(time.monotonic() + 60)
    assert publisher._snapshot is None


# Bodies.


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_a_body_or_one_error(body: bytes) -> None:
    said: AnyBody | Reason
    try:
        said = decode(body)
    except PeerError as error:
        said = error.reason
    assert said is Reason.REFUSED if isinstance(said, Reason) else decode(encode(said)) == said


@pytest.mark.parametrize(
    "body",
    [
        [1, 5, -1, b"", b""],
        [1, 5, 1, bytes(8 * MOST_HINTS + 8), b""],
        [1, 5, 2**63, b"", b""],
        [2, 5, 1, 1, 2**60],
        [3, 5, 4096, 0, 0],
        [4, 5, 1, 0, 0, b""],
        [4, 5, 1, 0, 5000, b""],
        [4, 5, 1, 0, 1, bytes(8 * PAGE_HINTS + 8)],
        [9, 5],
        [1, 5, "1", b"", b""],
        {"t": 1},
    ],
)
def test_a_body_that_claims_too_much_is_refused(body: object) -> None:
    with pytest.raises(PeerError):
        decode(msgspec.msgpack.encode(body))


# Following: everything but the network.


class Net:
    """Peers that tell each other through a list: messages may be lost, doubled or out of order."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.store = Eventful(most_events=256)
        self.me: Peer = peer(1, epoch=self.store.log.epoch)
        self.queue: list[bytes] = []
        self.publisher = Publisher(self.store, self.store.log.epoch, self.queue.append)
        self.directory = Directory()
        self.asked: list[tuple[bytes, Callable[[bytes | None], None]]] = []
        self.follower = Follower(self.directory, self.ask, clock=lambda: self.now_s)
        self.follower.joined(self.me)

    def ask(self, peer_id: bytes, request: bytes, then: Callable[[bytes | None], None]) -> None:
        assert peer_id == self.me.id
        assert not self.asked, "two snapshots of one peer at a time"
        self.asked.append((request, then))

    def answer(self, *, lost: bool = False) -> None:
        if self.asked:
            request, then = self.asked.pop()
            wanted = decode(request)
            assert isinstance(wanted, PageRequest)
            then(None if lost else encode(self.publisher.page(wanted)))

    def beat(self) -> None:
        self.queue.append(encode(Beat(self.store.log.epoch, *self.publisher.summary())))

    def deliver(self, *, unkind: bool) -> None:
        bodies, self.queue = self.queue, []
        self.publisher._send = self.queue.append
        if unkind:
            bodies = [body for body in bodies for _ in range(self.random.choice([0, 1, 1, 2]))]
            if self.random.random() < 0.5:
                self.random.shuffle(bodies)
        for body in bodies:
            self.follower.told(self.me.id, body)

    def tick(self, s: float) -> None:
        self.now_s += s
        self.follower.tick()

    def equal(self) -> bool:
        return self.directory.summary(self.me.id) == self.publisher.summary()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_views_are_equal_soon_after_a_network_that_loses_doubles_and_reorders(seed: int) -> None:
    net = Net(seed)
    held: list[bytes] = []
    for _ in range(30):
        new = [os.urandom(32) for _ in range(net.random.randrange(1, 30))]
        net.store.put(new)
        held += new
        out = [held.pop() for _ in range(net.random.randrange(len(held)))]
        if out:
            net.store.evict(out)
        net.publisher.step()
        net.deliver(unkind=True)
        net.tick(0.05)
        if net.random.random() < 0.7:
            net.answer(lost=net.random.random() < 0.3)
    for _ in range(8):  # the network is well again: beats of a second
        net.beat()
        net.deliver(unkind=False)
        for _ in range(10):
            net.tick(0.1)
            net.answer()
    assert net.equal()
    assert {hint(each) for each in held} == set(net.directory._masks)
    found = net.directory.holders(held[:1])
    assert found == ([(net.me.id, 1)] if held else [])


def settled() -> Net:
    net = Net(1)
    net.tick(1)
    net.answer()
    assert net.equal()
    return net


def test_a_last_delta_that_was_lost_is_noticed_by_the_beat() -> None:
    net = settled()
    net.store.put(keys([1]))
    net.publisher.step()
    net.queue.clear()
    assert not net.equal()
    net.beat()
    net.deliver(unkind=False)
    net.tick(1)
    net.answer()
    assert net.equal()
    assert net.follower.repairs().gaps == 1


def test_deltas_that_come_while_a_snapshot_is_read_are_not_lost() -> None:
    net = settled()
    for number in range(1, 4):
        net.store.put([key(number)])
        net.publisher.step()
        if number == 1:
            net.queue.clear()  # lost
    net.deliver(unkind=False)
    net.tick(1)
    ((request, then),) = net.asked
    wanted = decode(request)
    assert isinstance(wanted, PageRequest)
    page = net.publisher.page(wanted)
    net.store.put([key(4)])
    net.publisher.step()
    net.deliver(unkind=False)
    net.asked.clear()
    then(encode(page))
    assert net.equal()
    assert net.follower.repairs().snapshots == 2


def test_a_view_that_went_astray_is_noticed_and_repaired() -> None:
    net = settled()
    net.store.put(keys([1, 2]))
    net.publisher.step()
    net.deliver(unkind=False)
    net.directory._remove(net.directory._books[net.me.id], [1])  # a bug, say
    net.beat()
    net.deliver(unkind=False)
    net.tick(1)
    net.answer()
    assert net.equal()
    assert net.follower.repairs().diverged == 1


def test_a_peer_that_does_not_answer_is_asked_again_with_growing_pauses() -> None:
    net = Net(1)
    asked_s: list[float] = []
    while len(asked_s) < 12:
        net.tick(0.01)
        if net.asked:
            asked_s.append(net.now_s)
            net.answer(lost=True)
    pauses = [after - before for before, after in itertools.pairwise(asked_s)]
    assert FIRST_PAUSE_S / 2 <= pauses[0] <= 2 * FIRST_PAUSE_S
    assert all(LONGEST_PAUSE_S / 2 <= pause <= 1.6 * LONGEST_PAUSE_S for pause in pauses[-4:])
    assert net.follower.repairs().failures == 12


def test_not_all_peers_are_asked_at_once() -> None:
    asked: list[bytes] = []
    now = [0.0]
    follower = Follower(
        Directory(), lambda peer_id, _, __: asked.append(peer_id), clock=lambda: now[0]
    )
    for number in range(20):
        follower.joined(peer(number))
    now[0] = 1.0
    follower.tick()
    follower.tick()
    assert len(set(asked)) == len(asked) == MOST_ASKED
    for number in range(4):
        follower.left(asked[number])
    follower.tick()
    assert len(set(asked)) == 2 * MOST_ASKED


def test_an_answer_for_a_peer_that_left_meanwhile_is_left_alone() -> None:
    net = Net(1)
    net.store.put(keys([1]))
    net.publisher.step()
    net.tick(1)
    net.follower.left(net.me.id)
    net.answer()
    assert net.directory.peers() == []
    net.follower.joined(net.me)
    assert net.directory.holders(keys([1])) == []


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", encode(Page(1, 1, 0, 1, b"")), msgspec.msgpack.encode([1, 1, 1, 5, 5])]
)
def test_what_cannot_be_is_counted_and_costs_the_peer_in_whose_name_it_comes_nothing(
    body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    directory = Directory()
    follower = Follower(directory, lambda _, __, ___: None, clock=lambda: now[0])
    follower.joined(peer(1))
    directory.snapshot(peer(1).id, 1, 0, pack(range(3)))
    for _ in range(1000):
        follower.told(peer(1).id, body)
    assert follower.repairs().garbage == 1000
    assert [text.partition(",")[0] for text in caplog.messages] == [
        "garbage in the name of peer peer-1"
    ]
    now[0] = 11.0
    follower.told(peer(1).id, body)
    assert "garbage in the name of peer peer-1, 1001 so far" in caplog.messages[-1]
    follower.told(peer(1).id, encode(Delta(1, 1, pack([3]), b"")))
    assert directory.holders(keys(range(4))) == [(peer(1).id, 4)]


@pytest.mark.parametrize("ahead", [[1], [1, 2, 3], [2], [1000], [1, 2, 2**62], [2**62, 5, 4, 3]])
@pytest.mark.parametrize("goes_on", [False, True])
def test_deltas_that_were_made_up_are_put_right_by_the_peers_own_beats(
    ahead: list[int], *, goes_on: bool
) -> None:
    net = settled()
    told = net.publisher.summary().sequence
    for number in ahead:
        sequence = min(told + number, 2**62)
        made_up = Delta(net.store.log.epoch, sequence, pack([10**6 + number % 999]), b"")
        net.follower.told(net.me.id, encode(made_up))
    for second in range(8):
        if goes_on:
            net.store.put([key(second)])
            net.publisher.step()
        net.beat()
        net.deliver(unkind=False)
        for _ in range(10):
            net.tick(0.1)
            net.answer()
    assert net.equal()
    assert set(net.directory._masks) == (set(range(8)) if goes_on else set())


def test_made_up_deltas_without_end_cost_the_peer_few_snapshots() -> None:
    net = settled()
    asked = 0
    for number in range(2000):  # 20 s
        made_up = Delta(net.store.log.epoch, 10**6 + number, pack([7]), b"")
        net.follower.told(net.me.id, encode(made_up))
        net.tick(0.01)
        asked += len(net.asked)
        net.answer()
    assert 5 <= asked <= 20
    assert net.follower._views[net.me.id].waits < 1000
    assert net.follower.repairs().garbage >= asked - 1
    net.tick(3)
    net.answer()
    net.beat()
    net.deliver(unkind=False)
    net.tick(3)
    net.answer()
    assert net.equal()


def test_deltas_of_nothing_wait_within_the_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvbench.peer.replication.MOST_WAITING", 100)
    net = Net(1)
    for number in range(1000):
        net.follower.told(net.me.id, encode(Delta(net.store.log.epoch, number + 2, b"", b"")))
    assert 0 < len(net.follower._views[net.me.id].waiting) <= 100


def test_who_asks_for_what_was_never_told_gets_the_snapshot_that_there_is() -> None:
    store = Eventful()
    publisher, _ = publisher_of(store)
    publisher.page(PageRequest(store.log.epoch, 0, 0, 0))
    kept = publisher._snapshot
    publisher.page(PageRequest(store.log.epoch, 0, 0, 2**62))
    assert publisher._snapshot is kept


def test_a_page_that_cannot_be_is_asked_for_again_later() -> None:
    net = Net(1)
    net.store.put(keys([1]))
    net.publisher.step()
    net.queue.clear()
    for body in (b"garbage", encode(Page(net.store.log.epoch, 1, 3, 9, b""))):
        net.tick(3)
        ((_, then),) = net.asked
        net.asked.clear()
        then(body)
        net.tick(0.001)
        assert not net.asked, "a pause first"
    net.tick(3)
    net.answer()
    assert net.equal()
    assert (net.follower.repairs().garbage, net.follower.repairs().failures) == (2, 2)


def test_hints_of_another_epoch_are_void() -> None:
    net = settled()
    net.follower.told(net.me.id, encode(Delta(net.me.epoch + 1, 1, pack([7]), b"")))
    net.follower.told(net.me.id, encode(Beat(net.me.epoch + 1, 9, 9, 9)))
    assert net.directory.holders(keys([7])) == []
    assert net.equal()


def test_more_than_the_limits_allow_is_read_up_to_them_and_not_asked_for_again_and_again() -> None:
    net = Net(1)
    net.directory = Directory(Limits(entries_a_peer=PAGE_HINTS))
    net.follower = Follower(net.directory, net.ask, clock=lambda: net.now_s)
    net.follower.joined(net.me)
    net.store.put(keys(range(4 * PAGE_HINTS)))
    net.publisher.step()
    net.queue.clear()
    pages = 0
    net.tick(1)
    while net.asked:
        net.answer()
        pages += 1
    net.beat()
    net.deliver(unkind=False)
    net.tick(5)
    assert not net.asked
    assert pages == 3  # what is kept, what shows that there is more, and what may be cut
    (holding,) = net.directory.holdings()
    assert holding.entries == PAGE_HINTS
    assert holding.left_out


def test_a_put_is_told_within_milliseconds_at_ten_thousand_a_second() -> None:
    store = Eventful()
    seen: dict[int, float] = {}
    directory = Directory()
    directory.join(peer(1, epoch=store.log.epoch))
    directory.snapshot(peer(1).id, store.log.epoch, 0, b"")

    def told(body: bytes) -> None:
        said = decode(body)
        if isinstance(said, Delta):
            effect = directory.delta(
                peer(1).id, said.epoch, said.sequence, said.added, said.removed
            )
            assert effect is Effect.APPLIED
            seen.update(dict.fromkeys(numbers(said.added), time.perf_counter()))

    publisher = Publisher(store, store.log.epoch, told)
    publisher.start()
    put: dict[int, float] = {}
    pace = threading.Event()
    for batch in range(100):  # 100 puts of 10 ms each
        put.update(dict.fromkeys(range(100 * batch, 100 * batch + 100), time.perf_counter()))
        store.put(keys(range(100 * batch, 100 * batch + 100)))
        pace.wait(0.01)
    assert eventually(lambda: len(seen) == 10_000)
    publisher.close()
    waits = sorted(seen[number] - put[number] for number in put)
    assert waits[len(waits) // 2] < 0.05
    assert xor_of(seen) == publisher.summary().xor

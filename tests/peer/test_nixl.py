"""Blocks of another process by one-sided READs; on a machine without RDMA, by UCX's other ways."""

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from kvbench.errors import TierUnavailableError
from kvbench.peer import nixl_seat, placed, registered
from kvbench.peer.asker import Asker
from kvbench.peer.holder import Holder
from kvbench.peer.listener import Listener, Way
from kvbench.peer.model import Outcome, Peer, PeerError, Pull, Reason
from kvbench.peer.nixl import NixlListener, NixlTransport
from kvbench.peer.placed import PlacedChannel
from kvbench.peer.shares import Share
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import copy_with_sums, sums_of
from kvbench.store.dram import DramTier
from kvbench.store.nixl_file import load_nixl
from kvbench.store.store import TieredStore
from tests.peer.other_process import LONG_S, OtherProcess, check, peer_of, pull_of
from tests.store.blocks import LAYOUT, NAMESPACE, empty_rows, keys_of, payloads_of, put

try:
    load_nixl()
except TierUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)

# Without it this process would end with a crash where the system has libraries for RDMA, too.
os.environ.setdefault("UCX_MODULES", "^ib")

KEYS = keys_of(8)
ABSENT = keys_of(2, 7)
LATE_S = 0.5


@pytest.fixture(scope="module")
def other() -> Iterator[OtherProcess]:
    with OtherProcess("nixl", keys=KEYS) as other:
        yield other


@pytest.fixture(scope="module")
def transport() -> Iterator[NixlTransport]:
    transport = NixlTransport(peer_of(LAYOUT))
    yield transport
    transport.close()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[NixlTransport]:
    """A READ for each block."""
    monkeypatch.setattr(nixl_seat, "READ_BYTES", LAYOUT.block_bytes)
    transport = NixlTransport(peer_of(LAYOUT))
    yield transport
    transport.close()


def connect(transport: NixlTransport, peer: Peer) -> PlacedChannel:
    return transport.connect(peer, time.monotonic() + LONG_S)


def pulled(
    channel: PlacedChannel, peer: Peer, keys: Sequence[bytes], within_s: float = LONG_S
) -> tuple[list[Outcome], Bytes]:
    rows = empty_rows(len(keys))
    outcomes = channel.pull(pull_of(peer, keys, rows, within_s))
    check(keys, rows, outcomes, LAYOUT)
    return outcomes, rows


def reasons(outcomes: Sequence[Outcome]) -> list[Reason | None]:
    return [outcome.reason for outcome in outcomes]


def after_the_first(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Act when one READ is done, and what it brought was not copied, or checked."""
    calls: list[int] = []

    def once() -> None:
        if not calls:
            calls.append(1)
            act()

    def copy(sources: Sequence[Bytes], targets: Sequence[Bytes], layout: Layout) -> list[bytes]:
        once()
        return copy_with_sums(sources, targets, layout)

    def check_(payloads: Sequence[Bytes], layout: Layout) -> list[bytes]:
        once()
        return sums_of(payloads, layout)

    monkeypatch.setattr(nixl_seat, "copy_with_sums", copy)
    monkeypatch.setattr(nixl_seat, "sums_of", check_)


def test_blocks_of_another_process_arrive_bit_for_bit(
    other: OtherProcess, transport: NixlTransport
) -> None:
    channel = connect(transport, other.peer)
    outcomes, rows = pulled(channel, other.peer, KEYS)
    assert outcomes == [Outcome(None, "dram")] * len(KEYS)
    assert (rows == payloads_of(KEYS)).all()
    assert channel.path == "nixl (UCX)"
    channel.close()


@pytest.mark.parametrize("tls", ["", "tcp,self"])
def test_many_reads_of_one_pull_give_every_block_its_own_bytes(
    tls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tls:  # READs that are under way while others are checked
        monkeypatch.setenv("UCX_TLS", tls)
    monkeypatch.setattr(nixl_seat, "READ_BYTES", 3 * LAYOUT.block_bytes)
    keys = keys_of(32)
    transport = NixlTransport(peer_of(LAYOUT))
    with OtherProcess("nixl", keys=keys, slots=32) as other:
        channel = connect(transport, other.peer)
        for step in (1, -1, 3, 5):
            outcomes, _ = pulled(channel, other.peer, keys[::step])
            assert set(reasons(outcomes)) == {None}
        channel.close()
    transport.close()


def copied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each copy out of staging had, from now on."""
    counts: list[int] = []

    def copy(sources: Sequence[Bytes], targets: Sequence[Bytes], layout: Layout) -> list[bytes]:
        counts.append(len(targets))
        return copy_with_sums(sources, targets, layout)

    monkeypatch.setattr(nixl_seat, "copy_with_sums", copy)
    return counts


def needs_cma(channel: PlacedChannel, peer: Peer) -> None:
    """READs have to be over at once here: two pulls show it."""
    for _ in range(2):
        assert set(reasons(pulled(channel, peer, KEYS)[0])) == {None}
    seat = channel._reader._seat  # type: ignore[attr-defined]
    if not seat.direct:
        pytest.skip("UCX does not read the memory of other processes here (CMA)")


def test_blocks_of_a_process_on_this_machine_are_read_into_the_rows_themselves(
    other: OtherProcess, transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = connect(transport, other.peer)
    needs_cma(channel, other.peer)
    counts = copied(monkeypatch)
    for _ in range(3):
        rows = [row.copy() for row in empty_rows(2)] + list(empty_rows(len(KEYS) - 2))
        outcomes = channel.pull(replace(pull_of(other.peer, KEYS, empty_rows(8)), targets=rows))
        assert set(reasons(outcomes)) == {None}
        assert all((row == want).all() for row, want in zip(rows, payloads_of(KEYS), strict=True))
    assert counts == []
    channel.close()


def test_rows_that_cannot_be_registered_get_their_blocks_by_staging(
    other: OtherProcess, transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel = connect(transport, other.peer)
    needs_cma(channel, other.peer)
    counts = copied(monkeypatch)
    monkeypatch.setattr(registered, "MOST_REGION_BYTES", 0)
    assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
    assert sum(counts) == len(KEYS)
    channel.close()


def test_a_peer_on_another_machine_is_never_read_into_rows(
    other: OtherProcess, transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = structs.replace(other.peer, host="another")
    channel = connect(transport, away)
    needs_cma(channel, away)
    counts = copied(monkeypatch)
    assert set(reasons(pulled(channel, away, KEYS)[0])) == {None}
    assert sum(counts) == len(KEYS)
    channel.close()


def test_rows_that_are_gone_are_not_kept_by_the_agent(
    other: OtherProcess, transport: NixlTransport
) -> None:
    channel = connect(transport, other.peer)
    needs_cma(channel, other.peer)
    seat = channel._reader._seat  # type: ignore[attr-defined]
    rows = empty_rows(len(KEYS))
    gone = weakref.ref(rows if rows.base is None else rows.base)
    channel.pull(pull_of(other.peer, KEYS, rows))
    assert seat.begin(lambda: len(seat._regions)).result(LONG_S) == 1
    del rows
    assert gone() is None
    assert seat.begin(lambda: len(seat._regions)).result(LONG_S) == 0
    channel.close()


def test_a_read_into_rows_that_is_late_ends_with_its_agent_and_writes_nothing_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp,self")  # a READ that needs the holder
    monkeypatch.setattr(nixl_seat, "READ_BYTES", LAYOUT.block_bytes)
    always = property(lambda _: True, lambda *_: None)
    monkeypatch.setattr(nixl_seat.Seat, "direct", always, raising=False)
    transport = NixlTransport(peer_of(LAYOUT))
    with OtherProcess("nixl", keys=KEYS) as other:
        channel = connect(transport, other.peer)
        counts = copied(monkeypatch)
        assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
        assert counts == []
        after_the_first(monkeypatch, other.stop)
        begin_s = time.monotonic()
        outcomes, rows = pulled(channel, other.peer, KEYS, LATE_S)
        assert LATE_S <= time.monotonic() - begin_s < LONG_S / 2
        late = outcomes.index(Outcome(Reason.LATE))
        assert set(reasons(outcomes[late:])) == {Reason.LATE}
        as_returned = rows.copy()
        assert (rows[-1] == 0xEE).all()
        assert channel.broken
        seat = channel._reader._seat  # type: ignore[attr-defined]
        assert seat._agent is None
        channel.close()
        other.go_on()  # UCX may end it, because a READ was cut off
        seat._thread.join(LONG_S)
        assert not seat._thread.is_alive()
        assert (rows == as_returned).all()
    transport.close()


def test_many_keys_are_asked_for_in_two_parts_and_each_row_gets_its_own_block(
    transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    begin = Asker.begin

    def note(self: Asker, pull: Pull, part: slice, *more: Any, **place: Any) -> None:
        asked.append(part.stop - part.start)
        begin(self, pull, part, *more, **place)

    monkeypatch.setattr(Asker, "begin", note)
    keys = keys_of(placed.MANY_KEYS + 6)
    wanted = [*keys[5:], ABSENT[0], *keys[:5]]
    with OtherProcess("nixl", keys=keys, slots=len(keys)) as other:
        channel = connect(transport, other.peer)
        for _ in range(3):
            outcomes, _ = pulled(channel, other.peer, wanted)
            assert [key for key, each in zip(wanted, outcomes, strict=True) if each.reason] == [
                ABSENT[0]
            ]
        assert asked[:2] == [len(wanted) // 4, len(wanted) - len(wanted) // 4]
        assert not channel.broken
        end_s = time.monotonic() + LONG_S
        while other.does("counts").lent_bytes:
            assert time.monotonic() < end_s
        channel.close()


def test_a_pull_that_is_cancelled_while_more_is_asked_for_leaves_a_channel_that_works(
    transport: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_of(placed.MANY_KEYS)
    with OtherProcess("nixl", keys=keys, slots=len(keys)) as other:
        channel, rows = connect(transport, other.peer), empty_rows(len(keys))
        cancelled: list[int] = []
        after_the_first(monkeypatch, lambda: cancelled.append(1))
        pull = replace(pull_of(other.peer, keys, rows), cancelled=lambda: bool(cancelled))
        outcomes = channel.pull(pull)
        check(keys, rows, outcomes, LAYOUT)
        assert set(reasons(outcomes[len(keys) // 4 :])) == {Reason.CANCELLED}
        assert not channel.broken
        assert set(reasons(pulled(channel, other.peer, keys)[0])) == {None}
        end_s = time.monotonic() + LONG_S
        while other.does("counts").lent_bytes:
            assert time.monotonic() < end_s
        channel.close()


def test_a_block_that_is_not_there_is_gone_and_the_others_arrive(
    other: OtherProcess, transport: NixlTransport
) -> None:
    channel = connect(transport, other.peer)
    outcomes, rows = pulled(channel, other.peer, [KEYS[0], ABSENT[0], KEYS[1], ABSENT[1]])
    assert reasons(outcomes) == [None, Reason.GONE, None, Reason.GONE]
    assert (rows[[1, 3]] == 0xEE).all()
    assert not channel.broken
    channel.close()


def test_after_a_pull_nothing_is_lent_any_more(
    other: OtherProcess, transport: NixlTransport
) -> None:
    channel = connect(transport, other.peer)
    for _ in range(100):  # more than one connection may have loans
        assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
    channel.close()
    end_s = time.monotonic() + LONG_S
    while other.does("counts").lent_bytes:
        assert time.monotonic() < end_s


def test_blocks_on_a_drive_are_sent_over_the_connection(
    transport: NixlTransport, tmp_path: Path
) -> None:
    keys = keys_of(24)
    with OtherProcess("nixl", keys=keys, slots=8, folder=str(tmp_path / "drive")) as other:
        channel = connect(transport, other.peer)
        outcomes, _ = pulled(channel, other.peer, keys)
        assert set(reasons(outcomes)) == {None}
        assert "nvme" in {outcome.tier for outcome in outcomes}
        channel.close()


def test_a_flipped_bit_in_the_holders_memory_is_found(transport: NixlTransport) -> None:
    with OtherProcess("nixl", keys=KEYS) as other:
        other.does("flip", KEYS[3])
        channel = connect(transport, other.peer)
        outcomes, _ = pulled(channel, other.peer, KEYS)
        assert reasons(outcomes) == [None] * 3 + [Reason.CORRUPT] + [None] * 4
        assert not channel.broken
        channel.close()


def test_a_slot_that_got_another_block_after_the_loan_ended_is_corrupt_never_wrong(
    one_by_one: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OtherProcess("nixl", keys=KEYS, slots=len(KEYS), loan_s=0.05) as other:
        channel = connect(one_by_one, other.peer)
        assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
        after_the_first(monkeypatch, lambda: other.does("replace_all", KEYS))
        outcomes, _ = pulled(channel, other.peer, KEYS)
        assert outcomes[0].reason is None  # and perhaps one more, which was read ahead
        assert set(reasons(outcomes)) == {None, Reason.CORRUPT}
        assert set(reasons(outcomes[nixl_seat.DEPTH :])) == {Reason.CORRUPT}
        assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {Reason.GONE}
        channel.close()


def test_a_read_from_a_holder_that_freezes_is_late_and_writes_nothing_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UCX_TLS", "tcp,self")  # a READ from shared memory needs nobody there
    monkeypatch.setattr(nixl_seat, "READ_BYTES", LAYOUT.block_bytes)
    transport = NixlTransport(peer_of(LAYOUT))
    with OtherProcess("nixl", keys=KEYS) as other:
        channel = connect(transport, other.peer)
        assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
        after_the_first(monkeypatch, other.stop)
        begin_s = time.monotonic()
        outcomes, rows = pulled(channel, other.peer, KEYS, LATE_S)
        assert LATE_S <= time.monotonic() - begin_s < LONG_S / 2
        assert outcomes[0].reason is None
        assert outcomes[-1].reason is Reason.LATE
        assert set(reasons(outcomes)) == {None, Reason.LATE}
        assert channel.broken
        channel.close()
        other.go_on()
        late = outcomes.index(Outcome(Reason.LATE))
        again = connect(transport, other.peer)  # with another agent, which the holder answers
        assert set(reasons(pulled(again, other.peer, KEYS)[0])) == {None}
        assert (rows[late:] == 0xEE).all()
        again.close()
    transport.close()


def test_a_holder_that_was_frozen_before_is_late_at_the_deadline(transport: NixlTransport) -> None:
    with OtherProcess("nixl", keys=KEYS) as other:
        channel = connect(transport, other.peer)
        other.stop()
        begin_s = time.monotonic()
        outcomes, rows = pulled(channel, other.peer, KEYS, LATE_S)
        assert LATE_S <= time.monotonic() - begin_s < LONG_S / 2
        assert set(reasons(outcomes)) == {Reason.LATE}
        assert (rows == 0xEE).all()
        assert channel.broken
        with pytest.raises(PeerError) as caught:
            transport.connect(other.peer, time.monotonic() + LATE_S)
        assert caught.value.reason is Reason.LATE
        channel.close()


def test_a_holder_that_is_killed_within_a_pull_is_unreachable_for_the_rest(
    one_by_one: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OtherProcess("nixl", keys=KEYS) as other:
        channel = connect(one_by_one, other.peer)
        assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
        after_the_first(monkeypatch, other.kill)
        outcomes, _ = pulled(channel, other.peer, KEYS)
        assert outcomes[0].reason is None
        assert outcomes[-1].reason is Reason.UNREACHABLE
        assert channel.broken
        with pytest.raises(PeerError) as caught:
            connect(one_by_one, other.peer)
        assert caught.value.reason is Reason.UNREACHABLE
        channel.close()


def test_copying_ends_at_the_deadline(
    other: OtherProcess, one_by_one: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, rows = connect(one_by_one, other.peer), empty_rows(len(KEYS))
    assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
    pull = pull_of(other.peer, KEYS, rows, LATE_S)

    def wait() -> None:
        while time.monotonic() < pull.expires_s:
            pass

    after_the_first(monkeypatch, wait)
    outcomes = channel.pull(pull)
    assert outcomes[-1].reason is Reason.LATE
    assert (rows[-1] == 0xEE).all()
    assert channel.broken
    channel.close()


def test_a_cancelled_pull_reads_no_more_and_the_channel_can_be_used_again(
    other: OtherProcess, one_by_one: NixlTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, rows = connect(one_by_one, other.peer), empty_rows(len(KEYS))
    cancelled: list[int] = []
    after_the_first(monkeypatch, lambda: cancelled.append(1))
    pull = replace(pull_of(other.peer, KEYS, rows), cancelled=lambda: bool(cancelled))
    outcomes = channel.pull(pull)
    assert outcomes[-1].reason is Reason.CANCELLED
    assert (rows[-1] == 0xEE).all()
    check(KEYS, rows, outcomes, LAYOUT)
    assert not channel.broken
    assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
    channel.close()


def test_a_namespace_that_is_not_shared_is_refused(
    other: OtherProcess, transport: NixlTransport
) -> None:
    channel, rows = connect(transport, other.peer), empty_rows(1)
    wrong = bytes(32)
    assert wrong != NAMESPACE
    outcomes = channel.pull(replace(pull_of(other.peer, KEYS[:1], rows), namespace=wrong))
    assert reasons(outcomes) == [Reason.REFUSED]
    assert (rows == 0xEE).all()
    channel.close()


def test_another_epoch_than_the_holders_is_restarted(
    other: OtherProcess, transport: NixlTransport
) -> None:
    channel = connect(transport, other.peer)
    later = structs.replace(other.peer, epoch=other.peer.epoch + 1)
    assert set(reasons(pulled(channel, later, KEYS)[0])) == {Reason.RESTARTED}
    channel.close()


def test_only_peers_that_serve_by_nixl_with_our_layout_are_reached(
    other: OtherProcess, transport: NixlTransport
) -> None:
    assert transport.reaches(other.peer)
    assert not transport.reaches(structs.replace(other.peer, endpoints={}))
    assert not transport.reaches(structs.replace(other.peer, parts=1))


def test_channels_that_are_closed_leave_no_descriptor_open(
    other: OtherProcess, transport: NixlTransport
) -> None:
    for _ in range(2):
        connect(transport, other.peer).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        channel = connect(transport, other.peer)
        assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
        channel.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_holder_that_nobody_asks_takes_no_core(
    other: OtherProcess, transport: NixlTransport
) -> None:
    channel = connect(transport, other.peer)
    assert set(reasons(pulled(channel, other.peer, KEYS)[0])) == {None}
    before_s, begin_s = other.does("cpu_s"), time.monotonic()
    threading.Event().wait(1.0)
    used_s = other.does("cpu_s") - before_s
    assert used_s < 0.2 * (time.monotonic() - begin_s)
    channel.close()


ADDRESS, METADATA = 4096, b"no metadata of NIXL's"


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        (b"", Reason.REFUSED),
        (b"\xff" * 100, Reason.REFUSED),
        (msgspec.msgpack.encode([ADDRESS, 16_384, 2**40, METADATA]), Reason.REFUSED),
        (msgspec.msgpack.encode([ADDRESS, 512, 8, METADATA]), Reason.REFUSED),
        (msgspec.msgpack.encode([ADDRESS, 16_384, 8, METADATA]), Reason.UNREACHABLE),
    ],
    ids=["nothing", "garbage", "too many slots", "slots too small", "not of NIXL"],
)
def test_a_welcome_that_claims_nonsense_makes_no_channel(
    detail: bytes, reason: Reason, transport: NixlTransport
) -> None:
    with Lying(Way(how="nixl", places=lambda _: 0, detail=detail)) as peer:
        with pytest.raises(PeerError) as caught:
            connect(transport, peer)
        assert caught.value.reason is reason


def test_a_place_where_no_slot_begins_is_refused_before_it_is_read(
    other: OtherProcess, transport: NixlTransport
) -> None:
    tier = DramTier(LAYOUT, 8)
    store = TieredStore([tier])
    me = structs.replace(peer_of(LAYOUT), epoch=store.events(limit=0).epoch)
    honest = NixlListener(Holder(store, [Share(NAMESPACE)], me), tier)
    address = tier.view(0).__array_interface__["data"][0]
    detail = msgspec.msgpack.encode([address, tier.slot_bytes, tier.slots, honest.metadata])
    for place in (1, tier.slot_bytes - 1, tier.slots * tier.slot_bytes, 2**62):
        way = Way(how="nixl", places=lambda _, place=place: place, detail=detail)  # type: ignore[misc]
        with Lying(way) as peer:
            channel = connect(transport, peer)
            outcomes, rows = pulled(channel, peer, KEYS[:1])
            assert reasons(outcomes) == [Reason.REFUSED]
            assert (rows == 0xEE).all()
            channel.close()
    honest.close()
    store.close(flush=False)
    assert other.peer.id != me.id


class Lying:
    """A holder in this process that says by its `way` what it likes."""

    def __init__(self, way: Way) -> None:
        self._store = TieredStore([DramTier(LAYOUT, 8)])
        put(self._store, KEYS)
        epoch = self._store.events(limit=0).epoch
        socket_ = socket.create_server(("127.0.0.1", 0))
        where = f"127.0.0.1:{socket_.getsockname()[1]}"
        self._peer = structs.replace(peer_of(LAYOUT), epoch=epoch, endpoints={"nixl": where})
        holder = Holder(self._store, [Share(NAMESPACE)], self._peer)
        self._listener = Listener(holder, socket_, way)

    def __enter__(self) -> Peer:
        return self._peer

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._store.close(flush=False)

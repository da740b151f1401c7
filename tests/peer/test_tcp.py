"""Blocks over real sockets on loopback: what arrives, and every way in which it does not."""

import contextlib
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from msgspec import structs

from kvbench.errors import UsageError
from kvbench.peer import listener
from kvbench.peer.holder import HolderLimits
from kvbench.peer.listener import ListenerLimits
from kvbench.peer.messages import HERE, Answer, Ask, Hello, Prove, Proven, Refused, Welcome, decode
from kvbench.peer.model import PROTOCOL_VERSION, Outcome, PeerError, Pull, Reason
from kvbench.peer.protocol import HEADER, MESSAGE, Connection, Role, frame, most_keys
from kvbench.peer.shares import Share, holder_proof_of, proof_of, tag_of
from kvbench.peer.tcp import TcpListener, TcpTransport
from kvbench.store.block import Bytes, Layout
from kvbench.store.copying import sums_of
from kvbench.store.dram import DramTier
from tests.peer.serving import (
    Proxy,
    Served,
    filled,
    other_process,
    peer_of,
    pull_of,
    serving,
    until,
)
from tests.peer.throwaway_certificates import Authority
from tests.store.blocks import LAYOUT, NAMESPACE, WAIT_S, empty_rows, keys_of, payload_of

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]
SOON_S = 0.3  # a deadline that is to pass
GRACE_S = 0.5  # how late a pull may be on a machine that is busy


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "cluster")


@pytest.fixture(params=["tcp", "tcp+tls", "tcp without files"])
def served(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Served]:
    tls = (authority.serving(), authority.asking()) if request.param == "tcp+tls" else None
    with serving(tls=tls, files=request.param == "tcp") as each:
        yield each


def reasons(outcomes: list[Outcome]) -> list[Reason | None]:
    return [outcome.reason for outcome in outcomes]


def test_blocks_arrive_bit_for_bit_and_what_is_not_there_is_gone(served: Served) -> None:
    keys = keys_of(6)
    payloads = filled(served, keys)
    channel = served.connect()
    asked = [keys[3], *keys_of(1, prefix=9), keys[0], keys[5], keys[3]]
    rows = empty_rows(5)
    outcomes = served.pull(channel, asked, rows)
    assert outcomes == [
        Outcome(None, "dram"),
        Outcome(Reason.GONE),
        Outcome(None, "dram"),
        Outcome(None, "dram"),
        Outcome(None, "dram"),
    ]
    assert (rows[[0, 2, 3, 4]] == payloads[[3, 0, 5, 3]]).all()
    assert (rows[1] == 0xEE).all()
    assert channel.path == ("tcp+tls" if served.tls else "tcp")
    assert not channel.broken
    channel.close()
    channel.close()


def test_one_channel_serves_pull_after_pull_and_holds_nothing_afterwards(served: Served) -> None:
    keys = keys_of(16)
    payloads = filled(served, keys)
    channel = served.connect()
    for first in range(12):
        rows = empty_rows(4)
        assert reasons(served.pull(channel, keys[first : first + 4], rows)) == [None] * 4
        assert (rows == payloads[first : first + 4]).all()
    assert until(lambda: served.holder.counts().sent_blocks == 48)
    counts = served.holder.counts()
    assert (counts.asks, counts.lent_bytes, counts.staged_bytes) == (12, 0, 0)
    assert counts.sent_bytes == 48 * LAYOUT.block_bytes
    channel.close()


def test_a_pull_of_more_keys_than_one_ask_may_have_brings_them_all() -> None:
    layout = Layout(384 * 16, parts=384)
    count = 2 * most_keys(layout) + 3
    with serving(tier=DramTier(layout, count)) as served:
        keys = keys_of(count)
        payloads = filled(served, keys)
        channel = served.connect()
        rows = np.zeros_like(payloads)
        assert reasons(served.pull(channel, keys, rows)) == [None] * count
        assert (rows == payloads).all()
        assert served.holder.counts().asks == 3
        channel.close()


def test_several_channels_pull_at_the_same_time(served: Served) -> None:
    keys = keys_of(16)
    payloads = filled(served, keys)
    wrong: list[object] = []

    def pull_often() -> None:
        channel = served.connect()
        for _ in range(20):
            rows = empty_rows(16)
            outcomes = served.pull(channel, keys, rows)
            if reasons(outcomes) != [None] * 16 or not (rows == payloads).all():
                wrong.append(outcomes)
        channel.close()

    threads = [threading.Thread(target=pull_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not wrong
    assert until(lambda: served.listener.counts().open == 0)


def test_what_is_beyond_the_holders_limits_is_busy() -> None:
    limits = HolderLimits(ask_bytes=2 * LAYOUT.block_bytes)
    with serving(holder_limits=limits) as served:
        keys = keys_of(4)
        payloads = filled(served, keys)
        channel = served.connect()
        rows = empty_rows(4)
        outcomes = served.pull(channel, keys, rows)
        assert reasons(outcomes) == [None, None, Reason.BUSY, Reason.BUSY]
        assert (rows[:2] == payloads[:2]).all()
        assert not channel.broken
        channel.close()


def test_a_block_that_was_evicted_since_it_was_looked_up_is_gone(served: Served) -> None:
    keys, later = keys_of(16), keys_of(16, prefix=1)
    filled(served, keys)
    payloads = filled(served, later)  # in place of the others
    channel = served.connect()
    rows = empty_rows(17)
    outcomes = served.pull(channel, [keys[0], *later], rows)
    assert reasons(outcomes) == [Reason.GONE] + [None] * 16
    assert (rows[1:] == payloads).all()
    channel.close()


def test_blocks_that_are_evicted_all_the_time_arrive_right_or_not_at_all(served: Served) -> None:
    names = [keys_of(8, prefix=number) for number in range(8)]
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            put_some(served, names[number % 8])
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    channel = served.connect()
    seen: dict[Reason | None, int] = {}
    for number in range(150):
        rows = empty_rows(8)
        keys = names[number % 8]
        for key, row, outcome in zip(keys, rows, served.pull(channel, keys, rows), strict=True):
            seen[outcome.reason] = seen.get(outcome.reason, 0) + 1
            assert outcome.reason is not None or (row == payload_of(key)).all()
    stop.set()
    thread.join(WAIT_S)
    assert set(seen) <= {None, Reason.GONE}  # so also none CORRUPT: loans hold what is on its way
    assert seen[None] > 0
    channel.close()


def put_some(served: Served, keys: list[bytes]) -> None:
    """Put blocks; those that find no room, since all others are lent, are left out."""
    rows = np.stack([payload_of(key) for key in keys])
    served.store.put(keys, rows).result(WAIT_S)


# Namespaces, tenants, epochs.


def test_who_does_not_know_the_namespace_is_refused_and_learns_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as served, caplog.at_level(logging.WARNING, "kvbench.peer"):
        keys = keys_of(2)
        filled(served, keys)
        channel = served.connect()
        rows = empty_rows(2)
        wrong = Pull(
            namespace=b"w" * 32,
            epoch=served.peer.epoch,
            keys=keys,
            targets=list(rows),
            expires_s=time.monotonic() + WAIT_S,
        )
        assert reasons(channel.pull(wrong)) == [Reason.REFUSED] * 2
        assert channel.broken
        assert (rows == 0xEE).all()
        assert until(lambda: "is not shared here" in caplog.text)
        assert served.holder.counts().unknown_namespace == 1
        assert served.holder.counts().asks == 0
        channel.close()


def test_only_blocks_of_the_tenants_that_are_shared_are_here() -> None:
    with serving(share=Share(NAMESPACE, frozenset({"a"}))) as served:
        of_a, of_b = keys_of(1), keys_of(1, prefix=1)
        payloads = filled(served, of_a, tenant="a")
        filled(served, of_b, tenant="b")
        channel = served.connect()
        rows = empty_rows(2)
        assert reasons(served.pull(channel, of_a + of_b, rows)) == [None, Reason.GONE]
        assert (rows[0] == payloads[0]).all()
        assert (rows[1] == 0xEE).all()
        channel.close()


def test_hints_of_another_epoch_are_void_and_nothing_is_asked(served: Served) -> None:
    keys = keys_of(2)
    payloads = filled(served, keys)
    channel = served.connect()
    rows = empty_rows(2)
    old = structs.replace(served.peer, epoch=served.peer.epoch + 1)
    assert reasons(channel.pull(pull_of(old, keys, rows))) == [Reason.RESTARTED] * 2
    assert not channel.broken
    assert served.holder.counts().asks == 0
    assert reasons(served.pull(channel, keys, rows)) == [None, None]
    assert (rows == payloads).all()
    channel.close()


def test_another_process_at_the_same_address_is_not_taken_for_the_peer(served: Served) -> None:
    with pytest.raises(PeerError, match="another process") as caught:
        served.connect(id=os.urandom(16))
    assert caught.value.reason is Reason.RESTARTED


def test_another_layout_is_refused_and_the_error_says_which(served: Served) -> None:
    other = peer_of(served.store, block_bytes=LAYOUT.block_bytes * 2)
    transport = TcpTransport(other, served.tls)
    assert not transport.reaches(served.peer)
    with pytest.raises(PeerError, match=f"{LAYOUT.block_bytes} in {LAYOUT.parts}") as caught:
        transport.connect(served.peer, time.monotonic() + WAIT_S)
    assert caught.value.reason is Reason.REFUSED


def test_a_peer_that_does_not_listen_is_not_reached(served: Served) -> None:
    assert TcpTransport(served.peer).reaches(served.peer)
    assert not TcpTransport(served.peer).reaches(structs.replace(served.peer, endpoints={}))


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "h:65536"])
def test_an_endpoint_that_is_none_is_unreachable(served: Served, endpoint: str) -> None:
    with pytest.raises(PeerError, match="no TCP endpoint") as caught:
        served.connect(endpoints={"tcp": endpoint})
    assert caught.value.reason is Reason.UNREACHABLE


# Holders that fail.


def test_a_holder_that_is_killed_in_mid_transfer_is_unreachable_for_what_is_left() -> None:
    layout = Layout(2**20)
    with other_process(96, layout) as (process, peer):
        transport = TcpTransport(structs.replace(peer, id=os.urandom(16)))
        channel = transport.connect(peer, time.monotonic() + WAIT_S)
        rows = np.zeros((96, layout.block_bytes), np.uint8)
        calls = iter(range(10**6))

        def kill() -> bool:
            if next(calls) == 12:  # some blocks have come by now
                process.kill()
                process.wait()
            return False

        pull = pull_of(peer, keys_of(96), rows)
        outcomes = channel.pull(
            Pull(
                namespace=pull.namespace,
                epoch=pull.epoch,
                keys=pull.keys,
                targets=pull.targets,
                expires_s=pull.expires_s,
                cancelled=kill,
            )
        )
        seen = reasons(outcomes)
        arrived = seen.index(Reason.UNREACHABLE)
        assert 0 < arrived < 96
        assert seen == [None] * arrived + [Reason.UNREACHABLE] * (96 - arrived)
        for key, row in zip(keys_of(arrived), rows, strict=False):
            assert (row == payload_of(key, layout)).all()
        assert channel.broken
        channel.close()


def test_a_frozen_holder_costs_no_more_than_the_deadline_and_writes_nothing_later() -> None:
    layout = Layout(2**16)
    with other_process(4, layout) as (process, peer):
        transport = TcpTransport(structs.replace(peer, id=os.urandom(16)))
        channel = transport.connect(peer, time.monotonic() + WAIT_S)
        process.send_signal(signal.SIGSTOP)
        rows = np.zeros((4, layout.block_bytes), np.uint8)
        start_s = time.monotonic()
        outcomes = channel.pull(pull_of(peer, keys_of(4), rows, SOON_S))
        took_s = time.monotonic() - start_s
        assert reasons(outcomes) == [Reason.LATE] * 4
        assert SOON_S <= took_s < SOON_S + GRACE_S
        assert channel.broken
        process.send_signal(signal.SIGCONT)
        late = transport.connect(peer, time.monotonic() + WAIT_S)  # it runs again
        late.close()
        assert not rows.any()
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(PeerError) as caught:
            transport.connect(peer, time.monotonic() + SOON_S)
        assert caught.value.reason is Reason.LATE


def stall_after(size: int, go_on: threading.Event) -> Callable[[int, bytes], bytes]:
    """Pass so many bytes on, and the others when it may go on."""

    def spoil(at: int, data: bytes) -> bytes:
        if at + len(data) > size:
            go_on.wait(WAIT_S)
        return data

    return spoil


def test_a_holder_that_stops_within_a_payload_is_late_and_writes_nothing_later() -> None:
    with serving() as served:
        keys = keys_of(16)
        payloads = filled(served, keys)
        go_on = threading.Event()
        with Proxy(served.peer.endpoints["tcp"], stall_after(70_000, go_on)) as proxy:
            channel = served.connect(endpoints={"tcp": proxy.endpoint})
            rows = empty_rows(16)
            start_s = time.monotonic()
            outcomes = served.pull(channel, keys, rows, SOON_S)
            assert SOON_S <= time.monotonic() - start_s < SOON_S + GRACE_S
            seen = reasons(outcomes)
            arrived = seen.count(None)
            assert seen == [None] * arrived + [Reason.LATE] * (16 - arrived)
            assert arrived < 16
            before = rows.copy()
            go_on.set()
            assert proxy.done.wait(WAIT_S)
            assert (rows == before).all()
            assert (rows[:arrived] == payloads[:arrived]).all()
            assert channel.broken


def test_a_holder_that_trickles_is_late_at_the_deadline() -> None:
    with serving() as served:
        keys = keys_of(4)
        filled(served, keys)
        over = threading.Event()

        def trickle(at: int, data: bytes) -> bytes:
            if at > 1000:  # within the payload
                over.wait(0.01)
            return data

        with Proxy(served.peer.endpoints["tcp"], trickle, at_once=1) as proxy:
            channel = served.connect(endpoints={"tcp": proxy.endpoint})
            start_s = time.monotonic()
            outcomes = served.pull(channel, keys, empty_rows(4), SOON_S)
            assert SOON_S <= time.monotonic() - start_s < SOON_S + GRACE_S
            assert reasons(outcomes) == [Reason.LATE] * 4
            over.set()


def flip(pattern: bytes) -> Callable[[int, bytes], bytes]:
    """Change the byte that ends this pattern, wherever it is cut."""
    tail = b""

    def spoil(at: int, data: bytes) -> bytes:
        nonlocal tail
        del at
        whole = tail + data
        found = whole.find(pattern)
        if found >= 0:
            last = found + len(pattern) - 1 - len(tail)
            data = data[:last] + bytes([data[last] ^ 1]) + data[last + 1 :]
        tail = whole[-len(pattern) + 1 :]
        return data

    return spoil


def test_a_byte_that_flips_in_flight_makes_its_own_block_corrupt_and_no_other() -> None:
    with serving() as served:
        keys = keys_of(4)
        payloads = filled(served, keys)
        pattern = payloads[2, 7000:7032].tobytes()
        with Proxy(served.peer.endpoints["tcp"], flip(pattern)) as proxy:
            channel = served.connect(endpoints={"tcp": proxy.endpoint})
            rows = empty_rows(4)
            outcomes = served.pull(channel, keys, rows)
            assert reasons(outcomes) == [None, None, Reason.CORRUPT, None]
            assert (rows[[0, 1, 3]] == payloads[[0, 1, 3]]).all()
            assert not channel.broken
            assert reasons(served.pull(channel, keys[:2], empty_rows(2))) == [None, None]
            channel.close()


def test_a_holder_that_says_nonsense_is_refused() -> None:
    with serving() as served:

        def spoil(at: int, data: bytes) -> bytes:
            return data if at == 0 else HEADER.pack(MESSAGE, 0, 0, 2**31)

        with Proxy(served.peer.endpoints["tcp"], spoil) as proxy:
            channel = served.connect(endpoints={"tcp": proxy.endpoint})
            rows = empty_rows(1)
            assert reasons(served.pull(channel, keys_of(1), rows)) == [Reason.REFUSED]
            assert channel.broken


def test_nobody_at_the_port_is_unreachable(served: Served) -> None:
    served.listener.close()
    with pytest.raises(PeerError, match="no connection") as caught:
        served.connect()
    assert caught.value.reason is Reason.UNREACHABLE


def test_a_pull_that_is_cancelled_before_it_begins_leaves_the_channel_whole(
    served: Served,
) -> None:
    keys = keys_of(2)
    filled(served, keys)
    channel = served.connect()
    rows = empty_rows(2)
    pull = pull_of(served.peer, keys, rows)
    given_up = Pull(
        namespace=pull.namespace,
        epoch=pull.epoch,
        keys=pull.keys,
        targets=pull.targets,
        expires_s=pull.expires_s,
        cancelled=lambda: True,
    )
    assert reasons(channel.pull(given_up)) == [Reason.CANCELLED] * 2
    assert not channel.broken
    assert reasons(served.pull(channel, keys, rows)) == [None, None]
    channel.close()


def test_a_pull_that_is_cancelled_under_way_ends_at_once_and_its_channel_with_it() -> None:
    with serving() as served:
        keys = keys_of(4)
        filled(served, keys)
        go_on, calls = threading.Event(), iter(range(10**6))
        with Proxy(served.peer.endpoints["tcp"], stall_after(20_000, go_on)) as proxy:
            channel = served.connect(endpoints={"tcp": proxy.endpoint})
            pull = pull_of(served.peer, keys, empty_rows(4))
            start_s = time.monotonic()
            outcomes = channel.pull(
                Pull(
                    namespace=pull.namespace,
                    epoch=pull.epoch,
                    keys=pull.keys,
                    targets=pull.targets,
                    expires_s=pull.expires_s,
                    cancelled=lambda: next(calls) > 5,
                )
            )
            assert time.monotonic() - start_s < WAIT_S / 4
            assert outcomes[-1].reason is Reason.CANCELLED
            assert channel.broken
            go_on.set()


def test_a_pull_whose_time_is_over_asks_nobody(served: Served) -> None:
    channel = served.connect()
    assert reasons(served.pull(channel, keys_of(1), empty_rows(1), -1.0)) == [Reason.LATE]
    channel.close()


# Holders that do not know the namespace.


class Rogue:
    """A member at a port of its own that says it holds everything; `proof` is what it proves by.

    It answers whatever comes, and keeps every byte that it was sent.
    """

    def __init__(self, served: Served, proof: Callable[[Prove, bytes, bytes], bytes]) -> None:
        self.heard = b""
        self._served, self._proof = served, proof
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        sock, _ = self._listening.accept()
        sock.settimeout(WAIT_S)
        core = Connection(Role.HOLDER, LAYOUT, lambda _: True)
        nonce, asker_nonce = os.urandom(32), b""
        with sock, contextlib.suppress(PeerError, OSError):
            while True:
                view = core.buffer()
                size = sock.recv_into(view)
                self.heard += bytes(view[:size])
                for event in core.received(size):
                    if isinstance(event, Hello):
                        asker_nonce, me = event.nonce, self._served.peer
                        sock.sendall(core.send(Welcome(PROTOCOL_VERSION, me.id, me.epoch, nonce)))
                    elif isinstance(event, Prove):
                        proof = self._proof(event, nonce, asker_nonce)
                        sock.sendall(core.send(Proven(event.tag, proof)))
                    elif isinstance(event, Ask):
                        self._lie(sock, core, event)

    def _lie(self, sock: socket.socket, core: Connection, ask: Ask) -> None:
        rows = [np.zeros(LAYOUT.block_bytes, np.uint8)] * len(ask.keys)
        answer = Answer(
            ask.number, bytes([HERE]) * len(rows), ["dram"] * len(rows), sums_of(rows, LAYOUT), []
        )
        sock.sendall(core.send(answer) + b"".join(row.tobytes() for row in rows))
        core.payload_sent()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(WAIT_S)
        self._listening.close()


def pulled_from(rogue: Rogue, served: Served) -> tuple[list[Reason | None], Bytes]:
    channel = served.connect(endpoints={"tcp": rogue.endpoint})
    rows = empty_rows(2)
    outcomes = served.pull(channel, keys_of(2), rows)
    assert channel.broken == (reasons(outcomes) != [None, None])
    channel.close()
    return reasons(outcomes), rows


@pytest.mark.parametrize(
    "proof",
    [
        pytest.param(lambda _prove, _nonce, _asker: os.urandom(32), id="anything"),
        pytest.param(lambda prove, _nonce, _asker: prove.proof, id="the asker's own"),
        pytest.param(
            lambda _prove, nonce, asker: proof_of(NAMESPACE, nonce, asker), id="the asker's label"
        ),
        pytest.param(
            lambda _prove, nonce, asker: holder_proof_of(NAMESPACE, nonce, asker, b"o" * 16),
            id="another holder's",
        ),
    ],
)
def test_a_holder_that_does_not_know_the_namespace_gets_no_key_and_no_block_in(
    proof: Callable[[Prove, bytes, bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as served, caplog.at_level(logging.WARNING, "kvbench.peer"):
        with Rogue(served, proof) as rogue:
            seen, rows = pulled_from(rogue, served)
        assert seen == [Reason.REFUSED] * 2
        assert (rows == 0xEE).all()
        assert tag_of(NAMESPACE) in rogue.heard  # it was asked to prove that, and
        assert not any(key in rogue.heard for key in keys_of(2))
        assert "the holder did not prove that it knows the namespace" in caplog.text


def test_a_holders_proof_of_another_connection_is_refused() -> None:
    with serving() as served:
        said: list[bytes] = []

        def first(_prove: Prove, nonce: bytes, asker: bytes) -> bytes:
            said.append(holder_proof_of(NAMESPACE, nonce, asker, served.peer.id))
            return said[0]

        with Rogue(served, first) as honest:  # it knows it: so the proof itself is right
            assert pulled_from(honest, served)[0] == [None, None]
            assert keys_of(2)[0] in honest.heard
        with Rogue(served, lambda *_: said[0]) as rogue:
            seen, rows = pulled_from(rogue, served)
        assert seen == [Reason.REFUSED] * 2
        assert (rows == 0xEE).all()
        assert not any(key in rogue.heard for key in keys_of(2))


# Guests that misbehave. An honest one goes on meanwhile.


def raw(served: Served) -> socket.socket:
    host, _, port = served.peer.endpoints["tcp"].rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=WAIT_S)
    sock.settimeout(WAIT_S)
    return sock


def heard(sock: socket.socket) -> bytes:
    """All until the other side closes."""
    data = b""
    try:
        while some := sock.recv(65536):
            data += some
    except ConnectionResetError:
        pass
    return data


HELLO = Hello(PROTOCOL_VERSION, b"a" * 16, LAYOUT.block_bytes, LAYOUT.parts, b"n" * 32, "tcp")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "no frame"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "no frame"),
        (HEADER.pack(MESSAGE, 0, 0, 2**32 - 1), "a message of 4294967295 bytes"),
        (HEADER.pack(MESSAGE, 0, 0, 100) + b"\xff" * 100, "no message"),
        (HEADER.pack(2, 0, 0, 100) + b"x" * 100, "a frame of kind 2"),
        (frame(Refused("busy")), "a Refused of the asker"),
        (frame(structs.replace(HELLO, version=9)), "protocol version 9"),
        (frame(structs.replace(HELLO, how="shm")), "transport 'shm'"),
        (frame(HELLO) + frame(HELLO), "a Hello of the asker in state open"),
    ],
)
def test_who_breaks_the_rules_is_dropped_with_a_reason_and_nobody_else(
    said: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving() as served, caplog.at_level(logging.WARNING, "kvbench.peer"):
        keys = keys_of(2)
        filled(served, keys)
        channel = served.connect()
        with raw(served) as hostile:
            hostile.sendall(said)
            answer = heard(hostile)
        assert until(lambda: why in caplog.text)
        assert "from=127.0.0.1:" in caplog.text
        last = answer[answer.rfind(HEADER.pack(MESSAGE, 0, 0, 0)[:4]) :]
        assert last == b"" or isinstance(decode(last[HEADER.size :]), Refused)
        assert reasons(served.pull(channel, keys, empty_rows(2))) == [None, None]
        assert until(lambda: served.listener.counts().open == 1)
        assert served.listener.counts().dropped == {"refused": 1}
        channel.close()


def test_who_says_nothing_is_dropped_when_his_time_is_up() -> None:
    with serving(limits=ListenerLimits(handshake_s=SOON_S)) as served:
        keys = keys_of(1)
        filled(served, keys)
        channel = served.connect()
        with raw(served) as silent, raw(served) as slow:
            slow.sendall(frame(HELLO)[:20])
            heard(silent)
            heard(slow)
        assert served.listener.counts().dropped == {"late": 2}
        assert reasons(served.pull(channel, keys, empty_rows(1))) == [None]  # it is not timed out
        channel.close()


def test_of_too_many_strangers_the_oldest_goes_first() -> None:
    with serving(limits=ListenerLimits(unproven=3)) as served:
        keys = keys_of(1)
        filled(served, keys)
        honest = served.connect()
        assert reasons(served.pull(honest, keys, empty_rows(1))) == [None]
        strangers = []
        for number in range(5):
            strangers.append(raw(served))
            assert until(lambda seen=number: served.listener.counts().accepted == seen + 2)  # type: ignore[misc]
        assert heard(strangers[0]) == b""
        assert heard(strangers[1]) == b""
        for stranger in strangers[2:]:
            stranger.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranger.recv(1)
        assert reasons(served.pull(honest, keys, empty_rows(1))) == [None]
        for stranger in strangers:
            stranger.close()
        honest.close()


def test_more_connections_than_allowed_are_busy_and_do_not_push_out_the_honest() -> None:
    with serving(limits=ListenerLimits(connections=2)) as served:
        keys = keys_of(1)
        filled(served, keys)
        channels = [served.connect() for _ in range(2)]
        for channel in channels:
            assert reasons(served.pull(channel, keys, empty_rows(1))) == [None]
        with pytest.raises(PeerError) as caught:
            served.connect()
        assert caught.value.reason in (Reason.BUSY, Reason.UNREACHABLE)
        for channel in channels:
            assert reasons(served.pull(channel, keys, empty_rows(1))) == [None]
            channel.close()
        assert until(lambda: served.listener.counts().open == 0)
        again = served.connect()
        assert reasons(served.pull(again, keys, empty_rows(1))) == [None]
        again.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_connection_counts_as_open_until_its_file_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing, go_on, close = threading.Event(), threading.Event(), socket.socket.close

    def when_told(sock: socket.socket) -> None:
        if threading.current_thread().name == "kvbench-peer-tcp":
            closing.set()
            go_on.wait(WAIT_S)
        close(sock)

    monkeypatch.setattr(socket.socket, "close", when_told)
    with serving() as served:
        with raw(served):
            assert until(lambda: served.listener.counts().open == 1)
        assert closing.wait(WAIT_S)
        assert served.listener.counts().open == 1
        go_on.set()
        assert until(lambda: served.listener.counts().open == 0)


def test_a_thousand_hostile_connections_leave_no_thread_and_no_file_behind() -> None:
    with serving() as served:
        keys = keys_of(1)
        filled(served, keys)
        honest = served.connect()
        files, threads = open_files(), threading.active_count()
        for number in range(1000):
            with raw(served) as hostile:
                hostile.sendall(os.urandom(1 + number % 64))
        assert reasons(served.pull(honest, keys, empty_rows(1))) == [None]
        # Those that still wait to be accepted have neither a thread nor a file yet, and one that is
        # being accepted has a file and does not count as open yet.
        assert until(lambda: served.listener.counts().accepted == 1001)
        assert until(lambda: served.listener.counts().open == 1)
        assert until(lambda: threading.active_count() <= threads)
        assert until(lambda: open_files() <= files)
        honest.close()


def test_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as served, caplog.at_level(logging.WARNING, "kvbench.peer"):
        for _ in range(50):
            with raw(served) as hostile:
                hostile.sendall(b"x" * 8)
                heard(hostile)
        assert until(lambda: served.listener.counts().dropped == {"refused": 50})
        assert len(caplog.records) < 10


def test_a_reader_that_does_not_read_is_dropped_when_its_time_is_up() -> None:
    layout = Layout(2**20)
    with serving(tier=DramTier(layout, 24), limits=ListenerLimits(send_s=SOON_S)) as served:
        keys = keys_of(24)
        filled(served, keys)
        channel = served.connect()
        calls = iter(range(10**6))
        held = threading.Event()

        def stop_reading() -> bool:
            if next(calls) == 3:
                held.set()
                assert until(lambda: served.listener.counts().open == 0)
            return False

        pull = pull_of(served.peer, keys, np.zeros((24, layout.block_bytes), np.uint8))
        outcomes = channel.pull(
            Pull(
                namespace=pull.namespace,
                epoch=pull.epoch,
                keys=pull.keys,
                targets=pull.targets,
                expires_s=pull.expires_s,
                cancelled=stop_reading,
            )
        )
        assert held.is_set()
        assert Reason.UNREACHABLE in reasons(outcomes)
        assert served.listener.counts().dropped == {"late": 1}
        assert served.holder.counts().lent_bytes == 0


def test_a_connection_that_was_idle_for_long_is_broken_before_it_is_used() -> None:
    with serving(limits=ListenerLimits(idle_s=SOON_S)) as served:
        keys = keys_of(1)
        filled(served, keys)
        channel = served.connect()
        assert reasons(served.pull(channel, keys, empty_rows(1))) == [None]
        assert not channel.broken
        assert until(lambda: channel.broken)
        assert served.listener.counts().dropped == {}
        channel.close()


def test_closing_ends_every_connection_and_thread() -> None:
    with serving() as served:
        keys = keys_of(1)
        filled(served, keys)
        channel = served.connect()
        assert reasons(served.pull(channel, keys, empty_rows(1))) == [None]
        served.listener.close()
        served.listener.close()
        assert channel.broken
        assert reasons(served.pull(channel, keys, empty_rows(1))) == [Reason.UNREACHABLE]
        assert not [each for each in threading.enumerate() if each.name == "kvbench-peer-tcp"]


def test_an_answer_under_way_ends_when_the_listener_is_drained() -> None:
    with serving() as served:
        keys = keys_of(16)
        payloads = filled(served, keys)
        go_on, closed = threading.Event(), threading.Event()
        with Proxy(served.peer.endpoints["tcp"], stall_after(70_000, go_on)) as proxy:
            channel = served.connect(endpoints={"tcp": proxy.endpoint})
            rows = empty_rows(16)

            def drain() -> None:
                assert until(lambda: served.holder.counts().asks == 1)
                go_on.set()
                served.listener.close(drain_s=WAIT_S)
                closed.set()

            thread = threading.Thread(target=drain)
            thread.start()
            assert reasons(served.pull(channel, keys, rows)) == [None] * 16
            assert (rows == payloads).all()
            assert closed.wait(WAIT_S)
            thread.join()
            channel.close()


# TLS.


def test_who_has_no_certificate_is_refused(authority: Authority) -> None:
    with serving(tls=(authority.serving(), authority.asking(member=False))) as served:
        with pytest.raises(PeerError) as caught:
            served.connect()
        assert caught.value.reason is Reason.REFUSED
        assert until(lambda: served.listener.counts().dropped == {"refused": 1})


def test_who_is_refused_hears_it_even_if_he_had_more_to_say(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "FAREWELL_S", WAIT_S)  # it ends as soon as he has left
    asking = authority.asking(member=False)
    with serving(tls=(authority.serving(), asking)) as served:
        host, _, port = served.listener.endpoint.rpartition(":")
        with (
            socket.create_connection((host, int(port)), WAIT_S) as plain,
            asking.wrap_socket(plain, server_hostname=host) as sock,
        ):
            assert until(lambda: served.listener.counts().dropped == {"refused": 1})
            for _ in range(3):  # to a connection that was closed the second would break it
                sock.sendall(bytes(1024))
            with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
                sock.recv(1)


def test_a_certificate_of_another_cluster_is_refused_by_both(
    authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    with serving(tls=(authority.serving(), other.asking())) as served:
        with pytest.raises(PeerError, match="no TLS") as caught:
            served.connect()
        assert caught.value.reason is Reason.REFUSED
    trusting = other.asking()
    trusting.load_verify_locations(authority.path)  # it trusts the holder; the holder not it
    with serving(tls=(authority.serving(), trusting)) as served:
        with pytest.raises(PeerError) as caught:
            served.connect()
        assert caught.value.reason is Reason.REFUSED


def test_plain_tcp_to_a_tls_port_is_refused_with_a_clear_line(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(tls=(authority.serving(), authority.asking())) as served,
        caplog.at_level(logging.WARNING, "kvbench.peer"),
    ):
        with pytest.raises(PeerError) as caught:
            TcpTransport(peer_of(served.store)).connect(served.peer, time.monotonic() + WAIT_S)
        assert caught.value.reason in (Reason.REFUSED, Reason.UNREACHABLE)
        assert until(lambda: "plain TCP to a TLS port" in caplog.text)
        channel = served.connect()
        channel.close()


def test_tls_to_a_plain_port_is_refused(authority: Authority) -> None:
    with serving() as served:
        transport = TcpTransport(peer_of(served.store), authority.asking())
        with pytest.raises(PeerError) as caught:
            transport.connect(served.peer, time.monotonic() + WAIT_S)
        assert caught.value.reason in (Reason.REFUSED, Reason.UNREACHABLE)


def test_without_tls_nothing_listens_beyond_loopback_unless_told_to() -> None:
    with serving() as served:
        with pytest.raises(UsageError, match="no TLS"):
            TcpListener(served.holder, "0.0.0.0")
        with pytest.raises(UsageError, match="no TLS"):
            TcpListener(served.holder, "")
        insecure = TcpListener(served.holder, "0.0.0.0", insecure=True)
        insecure.close()
        with pytest.raises(UsageError, match="CERT_REQUIRED"):
            TcpListener(served.holder, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def test_a_port_that_is_taken_is_an_error_of_one_line() -> None:
    with serving() as served:
        port = int(served.listener.endpoint.rpartition(":")[2])
        with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1:{port}"):
            TcpListener(served.holder, port=port)

"""Peers as processes of their own with real Zenoh sessions: who sees whom, and when."""

import dataclasses
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.peer.certs import TlsFiles, make_ca, make_certificate
from kvbench.peer.cluster import CONTROL, MembershipConfig, check_fits, id_of, peer_of, token_of
from kvbench.peer.membership import Handlers, Membership
from kvbench.peer.model import Peer, PeerError, PeerId
from kvbench.peer.replication import Answers, Replication
from tests.peer.eventful import Eventful, eventually, keys, peer

pytest.importorskip("zenoh")
ROOT = Path(__file__).parents[2]
LEASE_S = 1.0


class Other:
    """A peer in a process of its own: told by a line of JSON, and tells its view in lines."""

    def __init__(self, number: int, join: Sequence[str], **options: object) -> None:
        order = {"number": number, "join": list(join), "lease_s": LEASE_S, **options}
        self.number = number
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.peer.one_peer", json.dumps(order)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.endpoint = ""
        self.view: list[str] = []
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            self.endpoint, self.view = said["endpoint"], said["view"]

    def sees(self, numbers: Sequence[int]) -> bool:
        """Exactly these, with all that each of them holds."""
        return self.view == [f"peer-{number}:{number}" for number in numbers]

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._listener.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def others() -> Iterator[list[Other]]:
    started: list[Other] = []
    try:
        yield started
    finally:
        for other in started:
            other.end()


def replication(
    number: int, *, join: Sequence[str] = (), me: Peer | None = None, tls: TlsFiles | None = None
) -> Replication:
    """A peer of this process that holds `number` blocks."""
    store = Eventful()
    store.put(keys(range(number)))
    me = me or peer(number, epoch=store.log.epoch)
    config = MembershipConfig(join=join, lease_s=LEASE_S, tls=tls)
    return Replication(me, config, store, answers=Answers(status=lambda: b"well"))


def sees(one: Replication, numbers: Sequence[int]) -> bool:
    return sorted((h.peer.name, h.entries) for h in one.directory.holdings()) == sorted(
        (f"peer-{number}", number) for number in numbers
    )


def test_peers_that_join_any_one_see_all_and_who_leaves_crashes_or_freezes_is_gone() -> None:
    with replication(1) as one, others() as started:
        started.append(second := Other(2, one.membership.endpoints))
        assert eventually(lambda: bool(second.endpoint))
        started.append(third := Other(3, [second.endpoint]))  # knows of the first by gossip
        started.append(fourth := Other(4, [second.endpoint]))
        assert eventually(lambda: sees(one, [2, 3, 4]))
        assert eventually(lambda: second.sees([1, 3, 4]))
        assert eventually(lambda: third.sees([1, 2, 4]))
        assert eventually(lambda: fourth.sees([1, 2, 3]))

        third.signal(signal.SIGSTOP)  # frozen: its sockets stay open
        assert eventually(lambda: sees(one, [2, 4]), within_s=2 * LEASE_S)
        assert eventually(lambda: second.sees([1, 4]))
        third.signal(signal.SIGCONT)
        assert eventually(lambda: sees(one, [2, 3, 4]))
        assert eventually(lambda: third.sees([1, 2, 4]))

        second.signal(signal.SIGKILL)  # the one that the others joined
        assert eventually(lambda: sees(one, [3, 4]), within_s=LEASE_S)
        assert eventually(lambda: third.sees([1, 4]))

        fourth.tell("leave")
        assert eventually(lambda: sees(one, [3]), within_s=LEASE_S)

        started.append(again := Other(2, [third.endpoint], id=os.urandom(16).hex()))
        assert eventually(lambda: sees(one, [2, 3]))
        assert eventually(lambda: again.sees([1, 3]))


def test_puts_and_evictions_of_a_peer_are_seen_by_another_and_so_is_that_it_drains() -> None:
    with others() as started, replication(1) as one:
        started.append(other := Other(2, one.membership.endpoints))
        assert eventually(lambda: sees(one, [2]))
        holder = one.directory.peers()[0].id
        other.tell("put 100 5")
        assert eventually(lambda: one.directory.holders(keys(range(100, 105))) == [(holder, 5)])
        other.tell("evict 100 5")
        assert eventually(lambda: one.directory.holders(keys(range(100, 105))) == [])
        assert one.directory.holders(keys([0])) == [(holder, 1)]
        assert one.membership.query(holder, "status") == b"peer 2 is well"
        assert one.membership.query(holder, "drain") == b"draining"
        assert eventually(lambda: one.directory.peers()[0].draining)
        assert one.directory.holders(keys([0])) == []
        with pytest.raises(PeerError, match="did not answer to status within"):
            one.membership.query(b"?" * 16, "status", timeout_s=0.2)


@pytest.mark.parametrize(
    ("strange", "why"),
    [
        ({"version": 7}, "speaks version 7 of the protocol, this peer 1"),
        ({"block_bytes": 8192}, "blocks of 8192 bytes in 1 parts, this peer of 4096"),
        ({"namespaces": [(b"x" * 16).hex()]}, "serves no namespace of this peer"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_loudly_once_and_the_others_are_not(
    strange: dict[str, object], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with others() as started, replication(1) as one:
        started.append(Other(3, one.membership.endpoints, **strange))
        started.append(Other(2, one.membership.endpoints))
        assert eventually(lambda: one.membership.counts().refused == 1)
        assert eventually(lambda: sees(one, [2]))
        refusals = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert [why in r.getMessage() for r in refusals] == [True]
        assert [each.name for each in one.directory.peers()] == ["peer-2"]


class Watcher:
    """Who came and went, as an observer sees it."""

    def __init__(self, config: MembershipConfig) -> None:
        self.seen: queue.SimpleQueue[Peer] = queue.SimpleQueue()
        self.bodies: list[bytes] = []
        self.membership = Membership(
            None,
            config,
            Handlers(
                joined=self.seen.put,
                left=lambda _: None,
                told=lambda _, body: self.bodies.append(body),
                page=lambda _: b"",
                status=lambda: b"",
                drain=lambda: b"",
                tick=lambda: None,
            ),
        )


def credentials(folder: Path, name: str) -> TlsFiles:
    make_ca(folder / name)
    return make_certificate(folder / f"{name}-peer", ca=folder / name)


def test_with_the_credential_peers_meet_and_without_it_nothing_is_learned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls, foreign = credentials(tmp_path, "ours"), credentials(tmp_path, "theirs")
    monkeypatch.setattr("kvbench.peer.membership.ALONE_S", 1.0)
    with others() as started, replication(1, tls=tls) as one:
        (where,) = one.membership.endpoints
        assert where.startswith("tls/")
        started.append(Other(2, [where], tls=[str(tls.ca), str(tls.cert), str(tls.key)]))
        assert eventually(lambda: sees(one, [2]))
        plain = where.replace("tls/", "tcp/")
        watchers = [
            Watcher(MembershipConfig(join=[plain], lease_s=LEASE_S)),
            Watcher(MembershipConfig(join=[where], lease_s=LEASE_S, tls=foreign)),
            # The authority's certificate is no secret: it lets nobody in.
            Watcher(
                MembershipConfig(
                    join=[where], lease_s=LEASE_S, tls=dataclasses.replace(foreign, ca=tls.ca)
                )
            ),
        ]
        for watcher in watchers:
            watcher.membership.start()
        one.directory.tidy()
        assert eventually(
            lambda: sum("no peer has answered" in text for text in caplog.messages) == 3
        )
        for watcher in watchers:
            # Not even that there is a session: no link was made.
            assert list(watcher.membership._session.info.links()) == []
            assert watcher.seen.empty()
            assert watcher.bodies == []
            watcher.membership.close()
        member = Watcher(MembershipConfig(join=[where], lease_s=LEASE_S, tls=tls))
        member.membership.start()  # what the others could not do, with the credential
        assert {member.seen.get(timeout=10).name for _ in range(2)} == {"peer-1", "peer-2"}
        member.membership.close()
        assert sees(one, [2])


def test_another_cluster_on_the_same_endpoint_is_another_cluster() -> None:
    with replication(1) as one:
        watcher = Watcher(
            MembershipConfig(cluster="b", join=one.membership.endpoints, lease_s=LEASE_S)
        )
        watcher.membership.start()
        assert eventually(lambda: bool(list(watcher.membership._session.info.links())))
        same = Watcher(MembershipConfig(join=one.membership.endpoints, lease_s=LEASE_S))
        same.membership.start()
        assert same.seen.get(timeout=10).name == "peer-1"
        assert watcher.seen.empty()
        for each in (watcher, same):
            each.membership.close()


@pytest.mark.parametrize(
    ("listen", "multicast"),
    [("0.0.0.0:0", False), ("[::]:7447", False), ("10.1.2.3:7447", False), ("127.0.0.1:0", True)],
)
def test_nothing_listens_beyond_loopback_without_tls_unless_told_so(
    listen: str, *, multicast: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match="without TLS anybody could join"):
        MembershipConfig(listen=[listen], multicast=multicast)
    assert not caplog.records
    MembershipConfig(listen=[listen], multicast=multicast, insecure=True)
    assert "insecure: anybody who reaches" in caplog.text
    MembershipConfig(listen=[listen], multicast=multicast, tls=TlsFiles.of(tmp_path))
    for local in ("localhost:1", "[::1]:1", "127.8.8.8:0", "tcp/127.0.0.1:1"):
        MembershipConfig(listen=[local])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"cluster": "a/b"}, "the cluster is named 'a/b'"),
        ({"cluster": ""}, "the cluster is named ''"),
        ({"lease_s": 0.01}, "lease_s is 0.01"),
        ({"lease_s": float("nan")}, "lease_s is nan"),
        ({"listen": []}, "has to listen somewhere"),
        ({"join": ["10.0.0.1"]}, "'10.0.0.1' is no endpoint"),
        ({"join": ["udp/10.0.0.1:7447"]}, "is no endpoint"),
        ({"join": ["10.0.0.1:70000"]}, "is no endpoint"),
        ({"join": ["10.0.0.1:7447#iface=eth0"]}, "is no endpoint"),
        ({"join": ["tls/10.0.0.1:7447"]}, "has no TLS and speaks tcp/ only"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_clear_line(
    options: dict[str, object], why: str
) -> None:
    with pytest.raises(UsageError, match=why.replace("(", r"\(")):
        MembershipConfig(**options)  # type: ignore[arg-type]


def test_a_port_that_is_taken_is_one_clear_line() -> None:
    with replication(1) as one:
        taken = one.membership.endpoints[0]
        with pytest.raises(PeerError) as refused:
            Watcher(MembershipConfig(listen=[taken])).membership.start()
    assert str(refused.value) == f"cannot listen on {taken}: Address already in use"


def test_localhost_is_loopback_only_if_that_is_where_it_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def elsewhere(*_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", ("127.0.0.1", 0)), (0, 0, 0, "", ("10.0.0.7", 0))]

    monkeypatch.setattr("kvbench.peer.cluster.socket.getaddrinfo", elsewhere)
    with pytest.raises(UsageError, match="localhost:1: beyond loopback without TLS"):
        MembershipConfig(listen=["localhost:1"])
    MembershipConfig(listen=["127.0.0.1:1"])


def test_a_peer_starts_although_nobody_is_there_to_be_joined() -> None:
    start_s = time.monotonic()
    with replication(1, join=["127.0.0.1:9"]) as one:
        assert time.monotonic() - start_s < 5
        assert one.directory.peers() == []
        assert one.membership.me is not None
        assert one.membership.me.endpoints[CONTROL] == one.membership.endpoints[0]


def test_after_it_was_closed_a_peer_says_so_and_closing_again_is_no_error() -> None:
    one = replication(1)
    one.start()
    one.close()
    one.close()
    with pytest.raises(PeerError, match="not connected"):
        one.membership.send(b"")
    with pytest.raises(PeerError, match="not connected"):
        one.membership.query(b"?" * 16, "status")
    assert not one.membership._thread.is_alive()


def test_a_handler_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def joined(newcomer: Peer) -> None:
        seen.append(newcomer.name)
        raise ValueError("a bug")

    with replication(1) as one:
        watcher = Watcher(MembershipConfig(join=one.membership.endpoints, lease_s=LEASE_S))
        watcher.membership._handlers = Handlers(
            joined=joined,
            left=lambda _: seen.append("left"),
            told=lambda _, __: None,
            page=lambda _: b"",
            status=lambda: b"",
            drain=lambda: b"",
            tick=lambda: None,
        )
        watcher.membership.start()
        assert eventually(lambda: seen == ["peer-1"])
        one.close()
        assert eventually(lambda: seen == ["peer-1", "left"])
        watcher.membership.close()
    assert watcher.membership.counts().failed == 1
    assert "a bug" in caplog.text


# Tokens: what somebody says of himself.


def test_a_token_says_who_a_peer_is() -> None:
    me = peer(5, epoch=2**47, draining=True)
    assert peer_of(me.id, token_of(me)) == me
    assert id_of(me.id.hex()) == me.id
    assert id_of("xyz") is None
    assert id_of("00") is None


@pytest.mark.parametrize(
    "token",
    [
        "",
        "*",
        "AAAA",
        "a" * 10_000,
        token_of(peer(6)),  # another's
        token_of(peer(5, block_bytes=0)),
        token_of(peer(5, namespaces=(b"short",))),
        token_of(peer(5, namespaces=tuple(bytes([n]) * 16 for n in range(65)))),
        token_of(peer(5, epoch=-1)),
    ],
)
def test_a_token_that_claims_what_cannot_be_is_refused(token: str) -> None:
    with pytest.raises(PeerError):
        peer_of(peer(5).id, token)


def test_a_peer_that_would_say_too_much_is_told_before_it_starts() -> None:
    many = tuple(number.to_bytes(16, "big") for number in range(2000))
    with pytest.raises(UsageError, match="shorten its name, or serve fewer namespaces"):
        token_of(peer(1, namespaces=many))


def test_peers_fit_that_share_one_namespace_of_several() -> None:
    one, two = peer(1, namespaces=(b"a" * 16, b"b" * 16)), peer(2, namespaces=(b"b" * 16,))
    check_fits(one, two)
    with pytest.raises(PeerError, match="no namespace"):
        check_fits(one, peer(3, namespaces=()))


def test_tokens_in_any_number_are_bounded() -> None:
    membership = Watcher(MembershipConfig()).membership
    gone: list[PeerId] = []
    for number in range(3000):
        membership._alive(f"kvbench/1/default/alive/{peer(number).id.hex()}/AAAA", there=True)
        membership._alive(f"kvbench/1/default/alive/{peer(1).id.hex()}/{number}", there=True)
    assert len(membership._tokens) == 1024
    assert len(membership._tokens[peer(1).id]) == 8
    assert len(membership._told_refused) <= 2048
    assert gone == []

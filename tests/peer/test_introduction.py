"""Who is missed, when it is introduced anew, what others may say of it; and that it works."""

import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.peer.certs import TlsFiles, make_ca, make_certificate
from kvbench.peer.cluster import (
    MOST_MEMBERS,
    Endpoint,
    MembershipConfig,
    introducing_s,
    introducing_settings,
)
from kvbench.peer.introducer import Introducer
from kvbench.peer.introduction import (
    MOST_BYTES,
    MOST_ENDS,
    Introductions,
    Missing,
    Pace,
    decode,
    encode,
)
from kvbench.peer.membership import Handlers, Membership
from kvbench.peer.model import Peer, PeerError, PeerId
from tests.peer.eventful import eventually, peer

PLAIN = MembershipConfig()
PACE = Pace(
    look_s=10.0, soon_s=4.0, patience_s=8.0, first_pause_s=10.0, longest_pause_s=60.0, apart_s=1.0
)
ME, ONE, TWO, LOST = (peer(number).id for number in (0, 1, 2, 9))
WHERE = [Endpoint("tcp", "10.0.0.9", 7447)]


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Looking:
    """A peer that asks whenever it may, and is answered by all what `named` says."""

    def __init__(self, seen: Sequence[PeerId] = (ONE, TWO), pace: Pace = PACE) -> None:
        self.clock = Clock()
        self.seen = dict.fromkeys(seen)
        self.state = Introductions(ME, self.seen, pace, clock=self.clock, spread=lambda: 1.0)
        self.named: dict[PeerId, list[Endpoint]] = {}
        self.asked: list[tuple[float, PeerId]] = []
        self.introduced: list[tuple[float, PeerId]] = []

    def run(self, for_s: float) -> None:
        until_s = self.clock.now_s + for_s
        while self.clock.now_s < until_s:
            self.clock.now_s += 0.5
            at_s = self.clock.now_s - 100.0
            who = self.state.whom_to_ask()
            if who is not None:
                self.asked.append((at_s, who))
                self.state.told(self.named)
            found = self.state.whom_to_introduce()
            if found is not None:
                self.introduced.append((at_s, found.id))


def test_all_are_asked_in_turn_and_nobody_is_introduced_while_nobody_is_missing() -> None:
    looking = Looking()
    looking.named = {ME: WHERE, ONE: WHERE, TWO: WHERE}
    looking.run(45)
    assert looking.asked == [(10, ONE), (20, TWO), (30, ONE), (40, TWO)]
    assert looking.introduced == []


def test_who_is_seen_by_others_is_introduced_after_a_second_answer_and_some_patience() -> None:
    looking = Looking()
    looking.named = {LOST: WHERE}
    looking.run(18)
    assert looking.asked == [(10, ONE), (14, TWO), (18, ONE)]  # sooner, once somebody is missed
    assert looking.introduced == [(18, LOST)]


def test_who_left_is_asked_for_soon_and_the_patience_counts_from_then() -> None:
    looking = Looking([ONE, TWO, LOST])
    looking.run(1)
    del looking.seen[LOST]
    looking.state.left(LOST)
    looking.named = {LOST: WHERE}
    looking.run(9)
    assert looking.asked == [(5, ONE), (9, TWO)]
    assert looking.introduced == [(9, LOST)]


def test_who_left_everybody_is_not_introduced_to_anybody() -> None:
    looking = Looking([ONE, TWO, LOST])
    del looking.seen[LOST]
    looking.state.left(LOST)
    looking.named = {LOST: WHERE}
    looking.run(4)  # the one that was asked had not heard of it yet
    looking.named = {}
    looking.run(300)
    assert looking.asked[:2] == [(4, ONE), (8, TWO)]
    assert looking.introduced == []
    assert len(looking.state._lost) == 0


def test_who_cannot_be_met_is_tried_less_and_less_often() -> None:
    looking = Looking()
    looking.named = {LOST: WHERE}
    looking.run(250)
    assert [at_s for at_s, _ in looking.introduced] == [18, 28, 48, 88, 148, 208]


def test_who_came_by_itself_is_not_introduced_and_starts_anew_when_it_is_missed_again() -> None:
    looking = Looking()
    looking.named = {LOST: WHERE}
    looking.run(17)
    looking.seen[LOST] = None
    looking.run(60)
    assert looking.introduced == []
    del looking.seen[LOST]
    looking.state.left(LOST)
    looking.run(7.5)
    assert looking.introduced == []
    looking.run(1)
    assert [who for _, who in looking.introduced] == [LOST]


def test_several_that_are_missing_take_turns_with_those_tried_less_often_first() -> None:
    looking = Looking()
    third = peer(10).id
    looking.named = {LOST: WHERE, third: WHERE}
    looking.run(30)
    assert looking.introduced == [(18, LOST), (19, third), (28, LOST), (29, third)]


def test_no_question_is_asked_while_one_is_open_or_nobody_is_there() -> None:
    looking = Looking()
    looking.clock.now_s += 10
    assert looking.state.whom_to_ask() == ONE
    looking.clock.now_s += 1000
    assert looking.state.whom_to_ask() is None
    looking.state.told({})
    assert looking.state.whom_to_ask() == TWO
    alone = Looking([])
    alone.run(50)
    assert alone.asked == []


def test_the_latest_endpoints_are_tried() -> None:
    looking = Looking()
    looking.named = {LOST: [Endpoint("tcp", "old", 1)]}
    looking.run(14)
    looking.named = {LOST: WHERE}
    looking.clock.now_s += 4
    assert looking.state.whom_to_ask() is not None
    looking.state.told(looking.named)
    assert looking.state.whom_to_introduce() == Missing(LOST, WHERE)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("wait"), st.integers(0, 40)),
            st.tuples(st.sampled_from(["named", "came", "left"]), st.integers(0, 5)),
        ),
        max_size=60,
    )
)
def test_nobody_who_is_seen_is_introduced_and_nobody_too_soon_again(
    steps: list[tuple[str, int]],
) -> None:
    looking = Looking([ONE])
    tried: dict[PeerId, float] = {}
    for what, number in steps:
        who = peer(number).id
        if what == "wait":
            looking.clock.now_s += number / 2
        elif what == "came" and who != ME:
            looking.seen[who] = None
        elif what == "left" and who in looking.seen:
            del looking.seen[who]
            looking.state.left(who)
            tried.pop(who, None)
        elif what == "named":
            looking.state.told({who: WHERE})
        found = looking.state.whom_to_introduce()
        if found is not None:
            assert found.id != ME
            assert found.id not in looking.seen
            assert looking.clock.now_s >= tried.get(found.id, 0.0) + PACE.first_pause_s
            tried[found.id] = looking.clock.now_s


def test_made_up_peers_in_any_number_take_bounded_memory_and_bounded_attempts() -> None:
    looking = Looking()
    for number in range(10):
        many = range(1000 * (number + 1), 1000 * (number + 2))
        looking.named = {peer(each).id: WHERE for each in many}
        looking.run(10)
        looking.state.left(peer(number + 10).id)
        assert len(looking.state._lost) <= MOST_MEMBERS
    at_s = [at_s for at_s, _ in looking.introduced]
    assert len(at_s) > 50
    assert all(later - sooner >= PACE.apart_s for sooner, later in pairwise(at_s))


# What others say.


def at(number: int, **where: str) -> Peer:
    return msgspec.structs.replace(peer(number), endpoints=where)


def test_what_a_peer_says_it_sees_is_what_another_reads() -> None:
    said = encode(
        [at(1, control="tcp/10.0.0.1:7447,tcp/[::1]:7448", tcp="10.0.0.1:7400"), at(2), at(1)]
    )
    assert decode(said, PLAIN) == {}  # the last word on peer 1 has no endpoint
    said = encode([at(1, control="tcp/10.0.0.1:7447,tcp/[::1]:7448"), at(2)])
    ends = [Endpoint("tcp", "10.0.0.1", 7447), Endpoint("tcp", "[::1]", 7448)]
    assert decode(said, PLAIN) == {ONE: ends}


@pytest.mark.parametrize("every", ["0.0.0.0", "[::]"])
def test_who_listens_on_every_address_is_to_be_found_where_its_blocks_are(every: str) -> None:
    said = encode([at(1, control=f"tcp/{every}:7447", tcp="10.0.0.1:7400")])
    assert decode(said, PLAIN) == {ONE: [Endpoint("tcp", "10.0.0.1", 7447)]}
    said = encode([at(1, control="tcp/127.0.0.1:7447", tcp="10.0.0.1:7400")])
    assert decode(said, PLAIN) == {ONE: [Endpoint("tcp", "127.0.0.1", 7447)]}


def packed(*named: tuple[object, object]) -> bytes:
    return msgspec.msgpack.encode(named)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91" * 50_000,
        packed((b"short", "tcp/10.0.0.1:1")),
        packed((b"x" * 17, "tcp/10.0.0.1:1")),
        packed((ONE, "x" * 257)),
        packed((ONE, 7)),
        packed(*[(peer(each).id, "tcp/10.0.0.1:1") for each in range(MOST_MEMBERS + 1)]),
        b"\x90" + b"x" * MOST_BYTES,
    ],
)
def test_an_answer_that_claims_what_cannot_be_is_refused(body: bytes) -> None:
    with pytest.raises(PeerError, match="list of peers"):
        decode(body, PLAIN)


@pytest.mark.parametrize(
    "where",
    [
        "",
        "tls/10.0.0.1:7447",
        "udp/10.0.0.1:7447",
        "unixsock-stream/tmp/x:1",
        "tcp/10.0.0.1:0",
        "tcp/10.0.0.1:70000",
        "tcp/10.0.0.1:7447#iface=eth0",
        "tcp/10.0.0.1:7447?prio=1",
    ],
)
def test_an_endpoint_that_this_peer_does_not_speak_to_spoils_no_other(where: str) -> None:
    said = packed((ONE, where), (TWO, f"{where},tcp/10.0.0.2:7447"))
    assert decode(said, PLAIN) == {TWO: [Endpoint("tcp", "10.0.0.2", 7447)]}


def test_with_tls_nothing_is_connected_to_without_it(tmp_path: Path) -> None:
    config = MembershipConfig(tls=TlsFiles.of(tmp_path))
    said = packed((ONE, "tcp/10.0.0.1:1"), (TWO, "tls/10.0.0.2:7447"))
    ends = [Endpoint("tls", "10.0.0.2", 7447)]
    assert decode(said, config) == {TWO: ends}
    settings = introducing_settings(config, ends)
    assert settings["transport/link/protocols"] == ["tls"]
    assert settings["listen/endpoints"] == []
    assert settings["transport/link/tls"]


def test_an_introduction_tries_once_within_its_time_as_closing_waits_for_what_is_tried() -> None:
    for lease_s, most_s in ((0.2, 1.2), (2.0, 3.0), (3600.0, 11.0)):
        config = MembershipConfig(lease_s=lease_s)
        settings = introducing_settings(config, WHERE)
        retry = settings["connect/retry"]
        assert isinstance(retry, dict)
        assert introducing_s(config) == most_s
        assert settings["transport/unicast/open_timeout"] == most_s * 1000
        assert retry["period_init_ms"] > most_s * 1000


def test_of_many_endpoints_of_one_peer_few_are_tried() -> None:
    said = packed((ONE, ",".join(f"tcp/a:{port}" for port in range(1, 30))))
    assert [each.port for each in decode(said, PLAIN)[ONE]] == list(range(1, MOST_ENDS + 1))


def test_the_longest_list_can_be_read_and_a_peer_with_an_endpoint_too_long_spoils_it_not() -> None:
    host = "h" * 240
    many = [at(each, control=f"tcp/{host}:7447") for each in range(MOST_MEMBERS + 5)]
    assert len(decode(encode(many), PLAIN)) == MOST_MEMBERS
    wild = at(1, control="tcp/0.0.0.0:7447", tcp=f"{'h' * 250}:7400")
    assert list(decode(encode([wild, many[2]]), PLAIN)) == [TWO]


# The thread that does it.


@contextmanager
def silent() -> Iterator[str]:
    """An endpoint that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp/127.0.0.1:{server.getsockname()[1]}"


EAGER = Pace(
    look_s=0.05, soon_s=0.0, patience_s=0.0, first_pause_s=0.0, longest_pause_s=0.0, apart_s=0.0
)


def test_closing_does_not_wait_for_an_introduction_and_only_one_is_under_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("zenoh")
    caplog.set_level(logging.INFO, "kvbench.peer")
    config = MembershipConfig(lease_s=60.0)  # an introduction would take 11 s
    answers = iter([b"no list"])

    def answered(_: PeerId, then: Callable[[bytes | None], None]) -> None:
        then(next(answers, packed((LOST, there), (TWO, there))))

    with silent() as here, silent() as there:
        introducer = Introducer(at(0, control=here), config, {ONE: None}, answered, EAGER)
        assert eventually(introducer.tick)
        assert not any(introducer.tick() for _ in range(20))
        thread = introducer._thread
        assert thread is not None
        start_s = time.monotonic()
        introducer.close()
        assert time.monotonic() - start_s < 5
    # Its ends are closed: now nothing is left to be waited for.
    assert eventually(lambda: not thread.is_alive(), within_s=5)
    assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]


# Three peers of this process.


class Member:
    """A peer, and whom it sees."""

    def __init__(self, number: int, config: MembershipConfig, pace: Pace) -> None:
        self.sees: set[int] = set()
        self.membership = Membership(
            peer(number),
            config,
            Handlers(
                joined=lambda other: self.sees.add(int.from_bytes(other.id, "big")),
                left=lambda other_id: self.sees.discard(int.from_bytes(other_id, "big")),
                told=lambda _, _body: None,
                page=lambda _: b"",
                status=lambda: b"",
                drain=lambda: b"",
                tick=lambda: None,
            ),
            pace,
        )


@contextmanager
def three(pace: Pace, tls: TlsFiles | None = None) -> Iterator[list[Member]]:
    """Three that see each other."""
    with ExitStack() as stack:
        members: list[Member] = []
        for number in (1, 2, 3):
            join = members[0].membership.endpoints if members else []
            members.append(Member(number, MembershipConfig(join=join, tls=tls), pace))
            stack.enter_context(members[-1].membership)
        assert eventually(lambda: [m.sees for m in members] == [{2, 3}, {1, 3}, {1, 2}])
        yield members


def cut(one: Membership, other: Membership) -> None:
    """Break the connection of two peers of this process."""
    zid = other._session.zid()
    ends = [
        {str(end).partition("/")[2] for end in (link.src, link.dst)}
        for link in one._session.info.links()
        if link.zid == zid
    ]
    assert ends
    assert any(broken(int(file.name), ends) for file in Path("/proc/self/fd").iterdir())


def broken(file: int, ends: Sequence[set[str]]) -> bool:
    try:
        if not stat.S_ISSOCK(os.fstat(file).st_mode):
            return False
        with socket.socket(fileno=os.dup(file)) as same:
            if same.family != socket.AF_INET:
                return False
            names = ["{}:{}".format(*name) for name in (same.getsockname(), same.getpeername())]
            if set(names) not in ends:
                return False
            same.shutdown(socket.SHUT_RDWR)
    except OSError:  # closed meanwhile, or not connected
        return False
    return True


# Only that one left has others asked in time.
QUICK = Pace(look_s=60.0, soon_s=0.2, patience_s=0.4, first_pause_s=1.0, apart_s=0.1)
NEVER = Pace(look_s=3600.0, soon_s=3600.0, patience_s=0.0)


@pytest.fixture(params=["tcp", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> TlsFiles | None:
    pytest.importorskip("zenoh")
    if request.param == "tcp":
        return None
    make_ca(tmp_path / "ca")
    return make_certificate(tmp_path / "peer", ca=tmp_path / "ca")


def test_two_peers_whose_connection_broke_find_each_other_again(tls: TlsFiles | None) -> None:
    with three(QUICK, tls) as (first, second, third):
        cut(second.membership, third.membership)  # neither was told to join the other
        assert eventually(lambda: 3 not in second.sees)
        assert eventually(lambda: second.sees == {1, 3} and third.sees == {1, 2}, within_s=20)
        assert second.membership.counts().introduced + third.membership.counts().introduced >= 1
        assert first.membership.counts()[:2] == (2, 0)  # it missed nobody meanwhile


def test_two_peers_whose_connection_broke_do_not_find_each_other_by_themselves() -> None:
    pytest.importorskip("zenoh")
    with three(NEVER) as (first, second, third):
        cut(second.membership, third.membership)
        assert eventually(lambda: second.sees == {1} and third.sees == {1})
        assert not eventually(lambda: 3 in second.sees or 2 in third.sees, within_s=2.0)
        assert first.sees == {2, 3}


def test_a_peer_says_to_any_other_whom_it_sees() -> None:
    pytest.importorskip("zenoh")
    with three(NEVER) as (first, second, third):
        said = first.membership.query(peer(2).id, "peers")
        assert said == third.membership.query(peer(2).id, "peers")
        assert {
            peer_id: [str(each) for each in ends] for peer_id, ends in decode(said, PLAIN).items()
        } == {peer(1).id: first.membership.endpoints, peer(3).id: third.membership.endpoints}
        assert second.membership.counts().introduced == 0

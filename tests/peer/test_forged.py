"""Somebody with the credential sends in the names of others: no peer loses its place by it."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kvbench.peer.cluster import MembershipConfig
from kvbench.peer.directory import pack
from kvbench.peer.publisher import Beat, Delta, encode
from kvbench.peer.replication import Replication
from tests.peer.eventful import Eventful, eventually, key, keys, peer

zenoh = pytest.importorskip("zenoh")
HEALED_S = 20.0  # a peer at rest beats every 5 s


@contextmanager
def cluster(count: int) -> Iterator[tuple[list[Replication], list[Eventful]]]:
    """Peers 1 to `count`, of this process, that hold as many blocks as their number."""
    with ExitStack() as close:
        ones: list[Replication] = []
        stores: list[Eventful] = []
        for number in range(1, count + 1):
            store = Eventful()
            store.put(keys(range(number)))
            join = ones[0].membership.endpoints if ones else ()
            config = MembershipConfig(join=join, lease_s=10.0)
            ones.append(
                close.enter_context(Replication(peer(number, epoch=store.log.epoch), config, store))
            )
            stores.append(store)
        yield ones, stores


@contextmanager
def forger(join: str) -> Iterator[Any]:
    """A plain session of Zenoh, which has no token: nobody knows that it is there."""
    config = zenoh.Config()
    for name, value in (
        ("mode", "peer"),
        ("connect/endpoints", [join]),
        ("scouting/multicast/enabled", False),
    ):
        config.insert_json5(name, json.dumps(value))
    with zenoh.open(config) as session:
        yield session


def all_equal(ones: Sequence[Replication]) -> bool:
    """Each knows of each other what that one has told."""
    return all(
        one.directory.summary(other.membership.me.id) == other.publisher.summary()
        for one in ones
        for other in ones
        if one is not other and other.membership.me is not None
    )


def forge(session: Any, victim: int, *bodies: bytes) -> None:
    for body in bodies:
        session.put(f"kvbench/1/default/delta/{peer(victim).id.hex()}", body)


def test_garbage_and_made_up_deltas_in_the_names_of_all_expel_nobody_and_views_heal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with cluster(3) as (ones, stores):
        assert eventually(lambda: all_equal(ones))
        with forger(ones[0].membership.endpoints[0]) as session:
            linked = eventually(lambda: len(list(session.info.peers_zid())) == len(ones))
            assert linked

            def garbage_came() -> bool:
                for number in (1, 2, 3):
                    forge(session, number, b"", b"\xc1" * 40, os.urandom(200))
                return all(one.follower.repairs().garbage >= 3 for one in ones)

            assert eventually(garbage_came)
            assert "garbage in the name of peer peer-1" in caplog.text

            def forged_came() -> bool:
                for number, one, store in zip((1, 2, 3), ones, stores, strict=True):
                    told, epoch = one.publisher.summary().sequence, store.log.epoch
                    made_up = [
                        encode(Delta(epoch, sequence, pack([900 + number]), pack([0])))
                        for sequence in (told + 1, told + 2, told + 1000, 2**61)
                    ]
                    forge(session, number, *made_up, encode(Beat(epoch, 2**61, 7, 7)))
                return any(one.directory.holders([key(n)]) for one in ones for n in (901, 902, 903))

            assert eventually(forged_came)
        stores[0].put([key(50)])  # one goes on meanwhile, the others have nothing to tell
        assert eventually(lambda: all_equal(ones), HEALED_S)
        for one in ones:
            assert len(one.directory.peers()) == len(ones) - 1
            assert [one.directory.holders([key(n)]) for n in (901, 902, 903)] == [[]] * 3
        assert ones[1].directory.holders([key(50)]) == [(peer(1).id, 1)]

"""Zenoh's sessions: who of two connects, and that leaving does not wait for who does not answer."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kvbench.peer.cluster import Endpoint, MembershipConfig, free_port, zenoh_id, zenoh_settings
from kvbench.peer.membership import Handlers, Membership
from kvbench.peer.session import opened
from tests.peer.eventful import eventually

pytest.importorskip("zenoh", reason="needs the extra peer: pip install 'kvbench[peer]'")


def session(stack: ExitStack, join: list[str], *, reached: bool) -> tuple[Any, Endpoint]:
    where = free_port(Endpoint("tcp", "127.0.0.1", 0))
    settings = zenoh_settings(MembershipConfig(join=join), [where])
    made = opened(settings | {"id": zenoh_id(reached=reached)})
    stack.callback(made.close)
    return made, where


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened_here:
        yield opened_here


@pytest.mark.parametrize("attempt", range(4))  # ids are random: half of all orders is luck
def test_who_cannot_be_reached_connects_to_who_can(stack: ExitStack, attempt: int) -> None:
    _, hub = session(stack, [], reached=True)
    reached = [True, False] if attempt % 2 else [False, True]  # whoever comes first
    made = {each: session(stack, [str(hub)], reached=each) for each in reached}
    (inner, own), (_, others) = made[False], made[True]

    def ends() -> set[str]:
        links = inner.info.links()
        return {str(end) for link in links for end in (link.src, link.dst)}

    eventually(lambda: len(inner.info.peers_zid()) == 2)
    assert str(others) in ends()  # it dialled the other's port
    assert str(own) not in ends()  # and nobody dialled its own


def test_leaving_does_not_wait_for_an_address_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        join = f"127.0.0.1:{silent.getsockname()[1]}"
        does: Any = dict.fromkeys(Handlers.__dataclass_fields__, lambda *_: b"")
        member = Membership(None, MembershipConfig(join=[join], lease_s=30.0), Handlers(**does))
        member.start()
        connection, _ = silent.accept()
        with connection:
            began_s = time.monotonic()
            member.close()
            assert time.monotonic() - began_s < 4.0

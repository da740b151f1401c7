"""What Zenoh's connections would do when they are closed after their other end was cut off."""

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvbench.peer.cluster import MembershipConfig
from kvbench.peer.lingering import close_at_once
from kvbench.peer.membership import Handlers, Membership
from tests.peer.eventful import eventually

LINGER = struct.pack("ii", 1, 10)


def lingering(end: socket.socket) -> bool:
    on: int = struct.unpack("ii", end.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0]
    return bool(on)


def text(address: tuple[str, int]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"{host}:{address[1]}"


@pytest.fixture(params=["127.0.0.1", "::1"])
def connected(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        try:
            server = stack.enter_context(
                socket.create_server(
                    (request.param, 0),
                    family=socket.AF_INET6 if ":" in request.param else socket.AF_INET,
                )
            )
        except OSError as error:
            pytest.skip(f"no {request.param} here: {error}")
        client = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
        accepted = stack.enter_context(server.accept()[0])
        for end in (client, accepted):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        yield client, accepted


def test_the_named_connection_loses_its_linger_and_no_other_does(
    connected: tuple[socket.socket, socket.socket],
) -> None:
    client, accepted = connected
    here, there = text(client.getsockname()[:2]), text(client.getpeername()[:2])
    files = len(list(Path("/proc/self/fd").iterdir()))
    assert close_at_once(here, there)
    assert not lingering(client)
    assert lingering(accepted)
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    client.sendall(b"still open")
    assert accepted.recv(16) == b"still open"


def test_a_connection_that_is_gone_is_no_error(
    connected: tuple[socket.socket, socket.socket],
) -> None:
    client, accepted = connected
    here = text(client.getsockname()[:2])
    assert not close_at_once(here, here)
    assert lingering(client)
    assert lingering(accepted)


def connections() -> list[bool]:
    """Of each TCP connection of this process, whether it lingers."""
    found: list[bool] = []
    for file in Path("/proc/self/fd").iterdir():
        try:
            with socket.socket(fileno=os.dup(int(file.name))) as same:
                same.getpeername()
                if same.type == socket.SOCK_STREAM and same.family != socket.AF_UNIX:
                    found.append(lingering(same))
        except OSError:
            continue
    return found


def test_no_connection_between_members_lingers() -> None:
    pytest.importorskip("zenoh")
    before = len(connections())
    ignore = Handlers(
        joined=lambda _: None,
        left=lambda _: None,
        told=lambda _, _body: None,
        page=lambda _: b"",
        status=lambda: b"",
        drain=lambda: b"",
        tick=lambda: None,
    )
    with (
        Membership(None, MembershipConfig(), ignore) as one,
        Membership(None, MembershipConfig(join=[one.endpoints[0]]), ignore),
    ):
        assert eventually(lambda: len(connections()) >= before + 2 and not any(connections()))

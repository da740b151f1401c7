"""Two ends of a connection in memory, and conversations between them, for tests of the protocol."""

import hashlib
from collections.abc import Iterable

import numpy as np

from kvbench.peer.messages import (
    BUSY,
    GONE,
    HERE,
    Answer,
    AnyMessage,
    Ask,
    Goodbye,
    Hello,
    Place,
    Prove,
    Proven,
    Refused,
    Release,
    Welcome,
)
from kvbench.peer.model import PROTOCOL_VERSION
from kvbench.peer.protocol import Connection, Event, Role, frame
from kvbench.store.block import Bytes, Layout, checksums

LAYOUT = Layout(512, parts=2)
TAG = b"t" * 16
NONCE = b"n" * 32
HELLO = Hello(PROTOCOL_VERSION, b"a" * 16, LAYOUT.block_bytes, LAYOUT.parts, NONCE, "tcp")
WELCOME = Welcome(PROTOCOL_VERSION, b"h" * 16, 77, NONCE)
PROVE = Prove(TAG, b"p" * 32)
PROVEN = Proven(TAG, b"q" * 32)
REFUSED = Refused("busy", "later")
RELEASE = Release(3)
GOODBYE = Goodbye()


def key_of(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def block_of(number: int) -> Bytes:
    return np.random.default_rng(number).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)


def ask_of(keys: int, number: int = 1, *, place: bool = False) -> Ask:
    return Ask(number, TAG, 77, [key_of(i) for i in range(keys)], place, 2000)


def answer_of(states: bytes, number: int = 1, *, place: bool = False) -> Answer:
    """Every block that is HERE is the block of its own index."""
    here = [i for i, state in enumerate(states) if state == HERE]
    sums = [checksums(block_of(i), LAYOUT) for i in here]
    places = [Place(4096 * i) for i in here] if place else []
    return Answer(number, states, ["dram"] * len(here), sums, places)


def rows_of(count: int) -> Bytes:
    return np.full((count, LAYOUT.block_bytes), 0xEE, np.uint8)


def asker() -> Connection:
    return Connection(Role.ASKER, LAYOUT)


def holder() -> Connection:
    return Connection(Role.HOLDER, LAYOUT, lambda prove: prove == PROVE)


def feed(end: Connection, data: bytes, cuts: Iterable[int] = ()) -> list[Event]:
    """Give bytes to an end: never beyond a cut at once, nor beyond what it has room for."""
    events: list[Event] = []
    at = 0
    for cut in (*sorted(cuts), len(data)):
        while at < cut:
            views = end.buffers(LAYOUT.block_bytes)
            some = data[at : min(cut, at + sum(len(view) for view in views))]
            at += len(some)
            events += end.received(_scatter(some, views))
    return events


def _scatter(some: bytes, views: list[memoryview]) -> int:
    """As recvmsg_into does."""
    at = 0
    for view in views:
        part = some[at : at + len(view)]
        view[: len(part)] = part
        at += len(part)
    return len(some)


def open_pair() -> tuple[Connection, Connection]:
    """An asker and a holder after their greetings and one proof."""
    one, two = asker(), holder()
    feed(two, one.send(HELLO))
    feed(one, two.send(WELCOME))
    feed(two, one.prove(PROVE, PROVEN.proof))
    feed(one, two.send(PROVEN))
    return one, two


def payload_of(states: bytes) -> bytes:
    return b"".join(block_of(i).tobytes() for i, state in enumerate(states) if state == HERE)


def holder_says(states: bytes, *, place: bool = False) -> bytes:
    """All that a holder sends in a conversation with one Ask, and then its goodbye."""
    end = holder()
    feed(end, asker_says(len(states), place=place)[0])
    said = end.send(WELCOME)
    feed(end, frame(PROVE))
    said += end.send(PROVEN)
    feed(end, asker_says(len(states), place=place)[1][len(frame(PROVE)) :])
    said += end.send(answer_of(states, place=place))
    if not place and HERE in states:
        said += payload_of(states)
        end.payload_sent()
    return said + end.send(GOODBYE)


def asker_says(keys: int, *, place: bool = False) -> tuple[bytes, bytes]:
    """What an asker sends before the Welcome, and after it."""
    end = asker()
    hello = end.send(HELLO)
    feed(end, holder_welcome())
    rows = [] if place else list(rows_of(keys))
    proof = end.prove(PROVE, PROVEN.proof)
    feed(end, frame(PROVEN))
    return hello, proof + end.ask(ask_of(keys, place=place), rows)


def holder_welcome() -> bytes:
    end = holder()
    fresh = asker()
    feed(end, fresh.send(HELLO))
    return end.send(WELCOME)


STATES = bytes((HERE, GONE, HERE, BUSY, HERE))
EVERY: tuple[AnyMessage, ...] = (
    HELLO,
    WELCOME,
    REFUSED,
    PROVE,
    PROVEN,
    ask_of(2),
    answer_of(bytes((HERE, GONE))),
    RELEASE,
    GOODBYE,
)

"""Malformed and mutated bytes for both ends of a connection: events or a PeerError, nothing else.

`scripts/fuzz_peer` runs a million cases in several processes, the tests some thousand. A case is
its seed: what comes out of it is the same on any machine. Checked after each: the error, the state,
how much memory the core offers, and that no row was written that was not announced.
"""

import argparse
import faulthandler
import multiprocessing
import os
import random
import resource
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from kvbench.peer.messages import (
    HERE,
    MOST_MESSAGE_BYTES,
    Answer,
    Ask,
    Hello,
    Place,
    Prove,
    Proven,
    Welcome,
)
from kvbench.peer.model import PeerError
from kvbench.peer.protocol import HEADER, MESSAGE, Arrived, Role, State, frame
from tests.peer.protocol_ends import (
    EVERY,
    HELLO,
    LAYOUT,
    PROVE,
    PROVEN,
    STATES,
    WELCOME,
    answer_of,
    ask_of,
    asker,
    asker_says,
    holder,
    holder_says,
    rows_of,
)

DEEPEST = 3  # lists within lists of a strange message
AT_ONCE = 2000  # cases for a process at a time
HANG_S = 60.0  # so many cases that take longer hang
GROWN_BYTES = 64 * 2**20  # of a process, over all its cases
KEYS = len(STATES)
ROWS = rows_of(KEYS)
TARGETS = list(ROWS)
UNTOUCHED = 0xEE
ASK = ask_of(KEYS)
ANSWER = answer_of(STATES)
FRAMES = [frame(message) for message in (*EVERY, ASK, ANSWER)]
AS_LISTS = [msgspec.msgpack.decode(each[HEADER.size :]) for each in FRAMES]
NO_SUMS = bytes(8 * LAYOUT.parts)
FROM_HOLDER = holder_says(STATES)
FROM_ASKER = b"".join(asker_says(KEYS))
EDGES = (0, 1, 2, 7, 8, 15, 16, 31, 32, 33, 255, 256, 512, 1024, 65535, 2**18, 2**31, 2**32 - 1)


class _Case:
    """One end, in some state, and what it makes of what it gets."""

    def __init__(self, role: Role, depth: int) -> None:
        """An end that is `depth` steps into a conversation; it goes on as it should by itself."""
        self.end = asker() if role is Role.ASKER else holder()
        self.arrived: set[int] = set()
        if role is Role.ASKER:
            self.end.send(HELLO)
            if depth > 0:
                self._hear(frame(WELCOME))
            if depth > 1:
                self._hear(frame(PROVEN))
            if depth > 2:
                self._hear(frame(ANSWER))
            return
        for message in (HELLO, PROVE, ASK)[:depth]:
            self._hear(frame(message))

    def hear(self, data: bytes, at_once: int) -> str:
        """The kind of outcome: events, or the beginning of an error's text."""
        try:
            for at in range(0, len(data), at_once):
                self._hear(data[at : at + at_once])
        except PeerError as error:
            assert self.end.state is State.CLOSED, "an error that left the connection open"
            return str(error)[:12]
        return f"events, {self.end.state.value}"

    def _hear(self, data: bytes) -> None:
        end, at = self.end, 0
        while at < len(data):
            view = end.buffer()
            size = min(len(view), len(data) - at)
            assert 0 < size <= MOST_MESSAGE_BYTES, "nowhere to go, or too much memory"
            view[:size] = data[at : at + size]
            at += size
            for event in end.received(size):
                if isinstance(event, Arrived):
                    self.arrived.update(event.indexes)
                else:
                    self._go_on(event)

    def _go_on(self, event: object) -> None:
        """Say what this end would say now, so that the conversation gets somewhere."""
        end = self.end
        if isinstance(event, Hello):
            end.send(WELCOME)
        elif isinstance(event, Prove):
            end.send(PROVEN)
        elif isinstance(event, Ask):
            end.send(_answer(event))
            if end.state is State.PAYLOAD:
                end.payload_sent()
        elif isinstance(event, Welcome):
            end.prove(PROVE, PROVEN.proof)
        elif isinstance(event, Proven):
            end.ask(ASK, TARGETS)


def _answer(ask: Ask) -> Answer:
    states = bytes(i % 3 for i in range(len(ask.keys)))
    here = states.count(HERE)
    places = [Place(0)] * here if ask.place else []
    return Answer(ask.number, states, ["dram"] * here, [NO_SUMS] * here, places)


# What a case says. Each gets a source of randomness and the role of the end that hears it.


def garbage(rng: random.Random, role: Role) -> bytes:
    """Any bytes, often after a header that promises them."""
    del role
    data = rng.randbytes(rng.choice((1, 7, 8, 9, 40, 300)))
    if rng.random() < 0.5:
        return data
    return HEADER.pack(rng.choice((1, 1, 2)), 0, 0, len(data)) + data


def header(rng: random.Random, role: Role) -> bytes:
    """A header with a length, a kind or flags at an edge."""
    del role
    kind, flags, reserved = rng.choice((0, 1, 1, 1, 2, 2, 3, 255)), 0, 0
    if rng.random() < 0.2:
        flags, reserved = rng.randrange(256), rng.randrange(65536)
    size = rng.choice((*EDGES, LAYOUT.block_bytes * rng.randrange(8), rng.randrange(2**32)))
    return HEADER.pack(kind, flags, reserved, size) + rng.randbytes(rng.randrange(64))


def mutated_message(rng: random.Random, role: Role) -> bytes:
    """A message of which some bytes are others; its frame is right."""
    del role
    body = bytearray(rng.choice(FRAMES)[HEADER.size :])
    for _ in range(rng.randrange(1, 5)):
        body[rng.randrange(min(len(body), rng.choice((4, 40, 4000))))] = rng.randrange(256)
    if rng.random() < 0.2:
        del body[rng.randrange(1, len(body)) :]
    return HEADER.pack(MESSAGE, 0, 0, len(body)) + bytes(body)


def strange_message(rng: random.Random, role: Role) -> bytes:
    """An array with a message's tag and about its fields, of any type and length."""
    del role
    fields: list[object] = [
        _field(rng, 0) if rng.random() < 0.4 else field
        for field in rng.choice(AS_LISTS)[: rng.randrange(1, 12)]
    ]
    if rng.random() < 0.2:
        fields.insert(rng.randrange(len(fields) + 1), _field(rng, 0))
    body = msgspec.msgpack.encode(fields)[:MOST_MESSAGE_BYTES]
    return HEADER.pack(MESSAGE, 0, 0, len(body)) + body


def _field(rng: random.Random, depth: int) -> object:
    plain: tuple[Callable[[], object], ...] = (
        lambda: rng.choice((-1, 2**63, 2**64 - 1, *EDGES)),
        lambda: bytes(rng.choice((0, 15, 16, 17, 32, 33, 1024))),
        lambda: "x" * rng.choice((0, 1, 16, 17, 256, 257)),
        lambda: rng.choice((None, True, False, 1.5, float("nan"), float("inf"))),
        lambda: "\ud7ff\0\U0010ffff",
        lambda: rng.randbytes(rng.randrange(40)),
    )
    nested: tuple[Callable[[], object], ...] = (
        lambda: {"t": _field(rng, depth + 1)},
        lambda: [_field(rng, depth + 1)] * rng.choice((0, 1, 2, 5, 3 if depth else 200)),
        lambda: [_field(rng, depth + 1) for _ in range(rng.randrange(4))],
    )
    return rng.choice(plain if depth == DEEPEST else plain + nested)()


def mutated_conversation(rng: random.Random, role: Role) -> bytes:
    """All that the other side says, with bytes changed, lost, doubled or moved."""
    data = bytearray(FROM_HOLDER if role is Role.ASKER else FROM_ASKER)
    for _ in range(rng.randrange(1, 4)):
        at, size = rng.randrange(len(data)), rng.choice((1, 2, 8, 64, 600))
        how = rng.randrange(5)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at : at + size]
        elif how == 2:
            data[at:at] = data[at : at + size]
        elif how == 3:
            data[at:at] = rng.randbytes(size)
        else:
            data[at : at + size] = bytes(len(data[at : at + size]))
        if not data:
            break
    return bytes(data)


def disordered(rng: random.Random, role: Role) -> bytes:
    """Messages that are right, one after the other in any order."""
    del role
    return b"".join(rng.choice(FRAMES) for _ in range(rng.randrange(1, 7)))


SAY: tuple[Callable[[random.Random, Role], bytes], ...] = (
    garbage,
    header,
    mutated_message,
    strange_message,
    mutated_conversation,
    disordered,
)


def one(seed: int) -> tuple[str, str]:
    """Run one case: what it said, and the kind of its outcome.

    Raises:
        AssertionError, or whatever the core raised besides a PeerError.
    """
    rng = random.Random(seed)
    say = rng.choice(SAY)
    role = rng.choice((Role.ASKER, Role.HOLDER))
    depth = 0 if say is mutated_conversation else rng.randrange(4)
    data = say(rng, role)
    at_once = rng.choice((2**20, 2**20, 4096, 100, 1 if len(data) < 200 else 37))
    ROWS[:] = UNTOUCHED
    case = _Case(role, depth)
    outcome = case.hear(data, at_once)
    assert case.arrived <= set(range(KEYS))
    if say in (garbage, header, disordered):  # the Answer is as it was
        absent = [i for i, state in enumerate(STATES) if state != HERE]
        assert case.arrived.isdisjoint(absent)
        assert (ROWS[absent] == UNTOUCHED).all(), "a row that was not announced was written to"
    return say.__name__, outcome


Result = tuple[Counter[tuple[str, str]], list[str], int]


def some(first: int, count: int) -> Result:
    """Cases from one seed on: outcomes, what went wrong, and bytes that the process grew by."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for seed in range(first, first + count):
        try:
            outcomes[one(seed)] += 1
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is looked for
            wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
    faulthandler.cancel_dump_traceback_later()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return outcomes, wrong, grown * 1024


def main(arguments: list[str]) -> int:
    """Run so many cases; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="fuzz_peer", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None, help="of the first case; drawn if absent")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    first = struct.unpack("<I", os.urandom(4))[0] << 20 if options.seed is None else options.seed
    say = sys.stdout.write
    say(f"{options.cases} cases from seed {first}\n")
    sys.stdout.flush()
    start_s = time.perf_counter()
    jobs = [
        (at, min(AT_ONCE, first + options.cases - at))
        for at in range(first, first + options.cases, AT_ONCE)
    ]
    outcomes: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    grown = 0
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for more, bad, size in pool.starmap(some, jobs, chunksize=1):
            outcomes += more
            wrong += bad
            grown += size
    took_s = time.perf_counter() - start_s
    for (name, outcome), count in sorted(outcomes.items()):
        say(f"{count:9} {name:22} {outcome}\n")
    say(f"{took_s:.1f} s, {options.cases / took_s:.0f} cases/s, grown by {grown >> 20} MiB\n")
    say(("\n".join(wrong[:50]) or "nothing else than events and PeerErrors") + "\n")
    return 1 if wrong or grown > GROWN_BYTES * options.processes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

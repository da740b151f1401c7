"""One connection between an asker and a holder, without I/O: who may say what, and when.

Bytes go into `buffer()`, `received(n)` says what they were, `send()` gives bytes to be sent. Blocks
are received where they are to stay: `buffer()` then is the caller's own memory. Frames and limits
are checked before anything is read into them. What is not in TRANSITIONS ends the connection.
Knows no clock, no socket, no namespace: what a right proof is, the caller says.

May import: kvbench.peer.{model, messages}, kvbench.store.block.
"""

import enum
import hmac
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from kvbench.peer.messages import (
    HERE,
    MOST_KEYS,
    MOST_MESSAGE_BYTES,
    MOST_TAGS,
    Answer,
    AnyMessage,
    Ask,
    Goodbye,
    Hello,
    Prove,
    Proven,
    Refused,
    Release,
    Welcome,
    decode,
    encode,
)
from kvbench.peer.model import PeerError, Reason
from kvbench.store.block import KEY_BYTES, SUM_BYTES, Bytes, Layout

HEADER = struct.Struct("!BBHI")  # kind, flags (0), reserved (0), bytes of the body
MESSAGE, PAYLOAD = 1, 2  # kinds
MOST_HELLO_BYTES = 256  # of a stranger's first message
MOST_ASK_BYTES = MOST_KEYS * (KEY_BYTES + 2) + 128
MOST_PAYLOAD_BYTES = 2**31  # of one Answer; a block alone may not have more than MOST_BLOCK_BYTES
_ROW_BYTES = 32  # of an Answer for each key, besides its checksums: state, tier, place


class Role(enum.Enum):
    """Which end of a connection."""

    ASKER = "asker"
    HOLDER = "holder"


class State(enum.Enum):
    """Where a conversation is; both ends pass through the same."""

    START = "start"
    GREETED = "greeted"  # Hello was said
    OPEN = "open"  # nothing is outstanding
    PROVING = "proving"  # a Proven is
    ASKED = "asked"  # an Answer is
    PAYLOAD = "payload"  # the blocks of an Answer are
    CLOSED = "closed"


class Blocks:
    """Stands in TRANSITIONS for the payload of an Answer, also one without bytes."""


What: TypeAlias = type[AnyMessage] | type[Blocks]

TRANSITIONS: dict[tuple[State, Role, What], State] = {
    (State.START, Role.ASKER, Hello): State.GREETED,
    (State.GREETED, Role.HOLDER, Welcome): State.OPEN,
    (State.OPEN, Role.ASKER, Prove): State.PROVING,
    (State.PROVING, Role.HOLDER, Proven): State.OPEN,
    (State.OPEN, Role.ASKER, Ask): State.ASKED,
    (State.OPEN, Role.ASKER, Release): State.OPEN,
    (State.ASKED, Role.HOLDER, Answer): State.PAYLOAD,
    (State.PAYLOAD, Role.HOLDER, Blocks): State.OPEN,
    # A holder refuses between frames only, the asker may leave at any time.
    **{
        (state, Role.HOLDER, what): State.CLOSED
        for state in (State.START, State.GREETED, State.OPEN, State.PROVING, State.ASKED)
        for what in (Refused, Goodbye)
    },
    **{(state, Role.ASKER, Goodbye): State.CLOSED for state in State if state is not State.CLOSED},
}


class Arrived(NamedTuple):
    """Blocks are in their targets, whole; nobody has checked them."""

    indexes: list[int]  # of their keys in the Ask


Event: TypeAlias = AnyMessage | Arrived


def frame(message: AnyMessage) -> bytes:
    """The message as it is sent; `Connection.send` also keeps to the rules.

    Raises:
        PeerError: it is longer than a message may be.
    """
    body = encode(message)
    return HEADER.pack(MESSAGE, 0, 0, len(body)) + body


def most_keys(layout: Layout) -> int:
    """How many keys one Ask may have, so that the Answer, with its checksums, is within limits."""
    by_sums = (MOST_MESSAGE_BYTES - 1024) // (SUM_BYTES * layout.parts + _ROW_BYTES)
    return max(1, min(MOST_KEYS, by_sums, MOST_PAYLOAD_BYTES // layout.block_bytes))


def _nothing_is_proven(prove: Prove) -> bool:
    del prove
    return False


class Connection:
    """The rules of one connection. For one thread at a time.

    `proves` is asked by a holder whether a proof is right. Every error is a PeerError, whoever's
    fault it is, and leaves the connection CLOSED.
    """

    def __init__(
        self, role: Role, layout: Layout, proves: Callable[[Prove], bool] = _nothing_is_proven
    ) -> None:
        self.role = role
        self.layout = layout
        self.state = State.START
        self.proven: set[bytes] = set()  # tags, by both sides to each other
        self._proves = proves
        self._proving: Prove | None = None
        self._wanted = b""  # the proof that has to answer it; empty: none is right
        self._ask: Ask | None = None
        self._targets: list[memoryview] = []  # one for each key of the Ask
        self._owed: list[int] = []  # indexes of the keys whose blocks are to come, in order
        self._at = 0  # in `_owed`
        self._header = bytearray(HEADER.size)
        self._body: bytearray | None = None
        self._into = memoryview(self._header)
        self._filled = 0  # of `_into`
        self._in_rows = False

    # Receiving.

    def buffer(self) -> memoryview:
        """Where the next bytes go; never empty, and never beyond the end of what is expected.

        Raises:
            PeerError: the connection is closed.
        """
        self._check_open()
        return self._into[self._filled :]

    def buffers(self, most_bytes: int) -> list[memoryview]:
        """As `buffer`, with those that come after it, until they have `most_bytes` or more."""
        views = [self.buffer()]
        if self._in_rows:
            size = self.layout.block_bytes
            more = max(0, -(-(most_bytes - len(views[0])) // size))
            views += [self._targets[i] for i in self._owed[self._at + 1 : self._at + 1 + more]]
        return views

    def received(self, size: int) -> list[Event]:
        """`size` bytes are in the buffers; what they complete. 0: the other side has closed.

        Raises:
            PeerError: they are not what may come now, or the connection is closed.
        """
        self._check_open()
        if size == 0:
            raise self._cut_off()
        if self._in_rows:
            return self._received_rows(size)
        self._filled += size
        if self._filled < len(self._into):
            return []
        if self._body is None:
            self._received_header()
            return []
        body, self._body = self._body, None
        self._expect(memoryview(self._header))
        try:
            message = decode(body)
        except PeerError:
            self.state = State.CLOSED
            raise
        except UnicodeDecodeError:  # msgspec lets it through as it is
            raise self._violation("no message: a text that is not UTF-8") from None
        self._advance(self._other, message)
        return [message]

    # Sending.

    def send(self, message: AnyMessage) -> bytes:
        """The bytes of a message that may be sent now.

        After those of an Answer that owes blocks, which include the payload's header, follow the
        blocks and then `payload_sent`. An Ask for blocks goes through `ask`, and a Prove through
        `prove`.

        Raises:
            PeerError: it may not be sent now, or says what may not be said.
        """
        return self.ask(message, ()) if isinstance(message, Ask) else self._send(message)

    def ask(self, ask: Ask, targets: Sequence[Bytes]) -> bytes:
        """The bytes of an Ask whose blocks are to go into these: uint8 [block_bytes] for each key.

        Without targets if it asks for places.

        Raises:
            PeerError: it may not be sent now.
            ValueError: the targets do not fit.
        """
        if len(targets) != (0 if ask.place else len(ask.keys)):
            raise ValueError(f"{len(targets)} targets for {len(ask.keys)} keys")
        views = [target.data.cast("B") for target in targets]
        fit = list(map(len, views)).count(self.layout.block_bytes)
        if fit < len(views) or True in [view.readonly for view in views]:
            raise ValueError(f"a target that does not take {self.layout.block_bytes} bytes")
        data = self._send(ask)
        self._targets = views
        return data

    def prove(self, prove: Prove, wanted: bytes) -> bytes:
        """The bytes of a Prove, which only a Proven with the proof `wanted` answers.

        Raises:
            PeerError: it may not be sent now.
        """
        data = self._send(prove)
        self._wanted = wanted
        return data

    def payload_sent(self) -> None:
        """All blocks of the Answer have been sent.

        Raises:
            PeerError: none are owed.
        """
        if self.state is not State.PAYLOAD or self.role is not Role.HOLDER:
            raise self._violation("a payload that nobody asked for")
        self._finish()

    # Behind it.

    @property
    def _other(self) -> Role:
        return Role.HOLDER if self.role is Role.ASKER else Role.ASKER

    def _check_open(self) -> None:
        if self.state is State.CLOSED:
            raise PeerError("the connection is closed", Reason.UNREACHABLE)

    def _violation(self, text: str) -> PeerError:
        self.state = State.CLOSED
        return PeerError(text, Reason.REFUSED)

    def _cut_off(self) -> PeerError:
        began = self._body is None and self._filled and not self._in_rows
        if began and self._header[0] not in (MESSAGE, PAYLOAD):
            return self._violation(f"no kvbench peer: it began with byte {self._header[0]:#04x}")
        state, self.state = self.state, State.CLOSED
        inside = " within a frame" if self._in_rows or self._body or self._filled else ""
        return PeerError(
            f"the {self._other.value} closed the connection{inside} (state {state.value})",
            Reason.UNREACHABLE,
        )

    def _expect(self, into: memoryview) -> None:
        self._into, self._filled = into, 0

    def _received_header(self) -> None:
        kind, flags, reserved, size = HEADER.unpack(self._header)
        if kind not in (MESSAGE, PAYLOAD) or flags or reserved:
            raise self._violation(
                f"no frame: it begins with {self._header.hex()}; "
                "the other side speaks another protocol, or TLS where this one does not"
            )
        if (kind == PAYLOAD) != (self.state is State.PAYLOAD and self.role is Role.ASKER):
            raise self._violation(f"a frame of kind {kind} in state {self.state.value}")
        if kind == PAYLOAD:
            owed = len(self._owed) * self.layout.block_bytes
            if size != owed:
                raise self._violation(f"a payload of {size} bytes: {owed} were announced")
            self._in_rows = True
            self._expect(self._targets[self._owed[0]])
            return
        if not 1 <= size <= self._most_bytes():
            raise self._violation(f"a message of {size} bytes: at most {self._most_bytes()} now")
        self._body = bytearray(size)
        self._expect(memoryview(self._body))

    def _most_bytes(self) -> int:
        if self.role is Role.ASKER:
            return MOST_MESSAGE_BYTES
        return MOST_HELLO_BYTES if self.state is State.START else MOST_ASK_BYTES

    def _received_rows(self, size: int) -> list[Event]:
        done, self._filled = divmod(self._filled + size, self.layout.block_bytes)
        if not done:
            return []
        arrived = Arrived(self._owed[self._at : self._at + done])
        self._at += done
        if self._at < len(self._owed):
            self._into = self._targets[self._owed[self._at]]
        else:
            self._expect(memoryview(self._header))
            self._finish()
        return [arrived]

    def _send(self, message: AnyMessage) -> bytes:
        self._check_open()
        try:
            data = frame(message)
        except PeerError:
            self.state = State.CLOSED
            raise
        self._advance(self.role, message)
        if self.state is State.PAYLOAD:
            size = len(self._owed) * self.layout.block_bytes
            data += HEADER.pack(PAYLOAD, 0, 0, size)
        return data

    def _advance(self, who: Role, message: AnyMessage) -> None:
        """The one place where a message changes the state."""
        after = TRANSITIONS.get((self.state, who, type(message)))
        if after is None:
            raise self._violation(
                f"a {type(message).__name__} of the {who.value} in state {self.state.value}"
            )
        if isinstance(message, Prove):
            self._prove(message)
        elif isinstance(message, Proven):
            self._check_proven(message)
        elif isinstance(message, Ask):
            self._check_ask(message)
            self._ask = message
        elif isinstance(message, Answer):
            self._check_answer(message)
        self.state = after
        if after is State.PAYLOAD and not self._owed:
            self._finish()

    def _finish(self) -> None:
        self.state = TRANSITIONS[self.state, Role.HOLDER, Blocks]
        self._ask, self._targets, self._owed = None, [], []
        self._at, self._in_rows = 0, False

    def _prove(self, prove: Prove) -> None:
        if len(self.proven) >= MOST_TAGS and prove.tag not in self.proven:
            raise self._violation(f"proofs of more than {MOST_TAGS} namespaces")
        if self.role is Role.HOLDER and not self._proves(prove):
            raise self._violation("no such namespace, or a wrong proof")
        self._proving, self._wanted = prove, b""

    def _check_proven(self, proven: Proven) -> None:
        proving = self._proving
        assert proving is not None
        if proven.tag != proving.tag:
            raise self._violation("a Proven of another namespace than was to be proven")
        if self.role is Role.ASKER and not hmac.compare_digest(self._wanted, proven.proof):
            raise self._violation("the holder did not prove that it knows the namespace")
        self.proven.add(proven.tag)
        self._proving, self._wanted = None, b""

    def _check_ask(self, ask: Ask) -> None:
        if ask.tag not in self.proven:
            raise self._violation("an Ask of a namespace that was not proven")
        if len(ask.keys) > most_keys(self.layout):
            raise self._violation(
                f"an Ask of {len(ask.keys)} keys: at most {most_keys(self.layout)} of this layout"
            )

    def _check_answer(self, answer: Answer) -> None:
        ask = self._ask
        assert ask is not None
        if answer.number != ask.number:
            raise self._violation(f"an Answer to {answer.number}: Ask {ask.number} is open")
        if len(answer.states) != len(ask.keys):
            raise self._violation(
                f"an Answer of {len(answer.states)} states to an Ask of {len(ask.keys)} keys"
            )
        here = [i for i, state in enumerate(answer.states) if state == HERE]
        lists = len(answer.tiers), len(answer.sums), len(answer.places)
        if lists != (len(here), len(here), len(here) if ask.place else 0):
            raise self._violation("an Answer whose lists do not fit what was asked")
        size = SUM_BYTES * self.layout.parts
        if list(map(len, answer.sums)).count(size) < len(here):
            raise self._violation(f"an Answer with checksums of other than {size} bytes")
        self._owed = [] if ask.place else here

"""The messages of two peers, and the limits of everything that they may claim.

msgpack arrays with a tag, by msgspec. A message that decodes is one whose every field has been
checked: nothing in it is longer, larger or more than is said here. What may follow what is for
`kvbench.peer.protocol`.

May import: kvbench.peer.model. msgspec.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from kvbench.peer.model import PEER_ID_BYTES, TAG_BYTES, PeerError, Reason
from kvbench.store.block import KEY_BYTES, MOST_PARTS, SUM_BYTES

MOST_MESSAGE_BYTES = 256 * 1024
MOST_KEYS = 1024  # of one Ask
MOST_TAGS = 64  # namespaces of one peer
MOST_BLOCK_BYTES = 2**30
MOST_TEXT = 256
MOST_MS = 3_600_000
NONCE_BYTES = 32
PROOF_BYTES = 32

Id = Annotated[bytes, Meta(min_length=PEER_ID_BYTES, max_length=PEER_ID_BYTES)]
Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
Tag = Annotated[bytes, Meta(min_length=TAG_BYTES, max_length=TAG_BYTES)]
Proof = Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]
Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Text = Annotated[str, Meta(max_length=MOST_TEXT)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Millis = Annotated[int, Meta(ge=0, le=MOST_MS)]
Version = Annotated[int, Meta(ge=0, lt=2**16)]
BlockBytes = Annotated[int, Meta(ge=1, le=MOST_BLOCK_BYTES)]
Parts = Annotated[int, Meta(ge=1, le=MOST_PARTS)]

# The states of the keys of an Answer, one byte each.
HERE, GONE, BUSY = 0, 1, 2
STATES = frozenset((HERE, GONE, BUSY))


class Message(msgspec.Struct, frozen=True, array_like=True, tag_field="t", gc=False):
    """Any message."""


class Hello(Message, tag=1, frozen=True):
    """The asking side begins."""

    version: Version
    id: Id
    block_bytes: BlockBytes
    parts: Parts
    nonce: Nonce
    how: Annotated[str, Meta(max_length=16)]  # the transport: what the Answers are to be


class Welcome(Message, tag=2, frozen=True):
    """The holder agrees. `detail` is the transport's own, such as NIXL's metadata."""

    version: Version
    id: Id
    epoch: Number
    nonce: Nonce
    detail: Annotated[bytes, Meta(max_length=MOST_MESSAGE_BYTES // 2)] = b""


class Refused(Message, tag=3, frozen=True):
    """The holder does not; or not any more. It closes afterwards."""

    code: Annotated[str, Meta(max_length=16)]  # a Reason's value
    text: Text = ""


class Prove(Message, tag=4, frozen=True):
    """The asking side knows the digest of a namespace. A Proven answers, unless it is wrong."""

    tag: Tag
    proof: Proof


class Ask(Message, tag=5, frozen=True):
    """Lease these blocks of a namespace that was proven, of that epoch of the holder's store."""

    number: Number
    tag: Tag
    epoch: Number
    keys: Annotated[list[Key], Meta(min_length=1, max_length=MOST_KEYS)]
    place: bool  # say where they lie, instead of sending them
    within_ms: Millis  # afterwards nobody waits for the answer


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a block lies in the memory that the transport shares."""

    offset: Number


class Answer(Message, tag=6, frozen=True):
    """One state for each key; tiers, checksums and places of those HERE, in their order.

    Unless places were asked for, one payload frame with the blocks that are HERE follows.
    """

    number: Number
    states: Annotated[bytes, Meta(min_length=1, max_length=MOST_KEYS)]
    tiers: Annotated[list[Annotated[str, Meta(max_length=16)]], Meta(max_length=MOST_KEYS)]
    sums: Annotated[
        list[Annotated[bytes, Meta(min_length=SUM_BYTES, max_length=SUM_BYTES * MOST_PARTS)]],
        Meta(max_length=MOST_KEYS),
    ]
    places: Annotated[list[Place], Meta(max_length=MOST_KEYS)]
    loan: Number = 0  # to be released once the blocks have been read, or their payload has come
    expires_ms: Millis = 0  # from now: later their memory may hold other blocks


class Release(Message, tag=7, frozen=True):
    """The blocks of a loan have been read."""

    loan: Number


class Goodbye(Message, tag=8, frozen=True):
    """No Ask will come, or be answered, any more."""

    text: Text = ""


class Proven(Message, tag=9, frozen=True):
    """The proof of the asking side is right, and the holder knows the digest as well."""

    tag: Tag
    proof: Proof


AnyMessage = Hello | Welcome | Refused | Prove | Proven | Ask | Answer | Release | Goodbye

_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()


def encode(message: AnyMessage) -> bytes:
    """The message as msgpack, without its frame.

    Raises:
        PeerError: it is longer than a message may be.
    """
    body = _encoder.encode(message)
    if len(body) > MOST_MESSAGE_BYTES:
        raise PeerError(
            f"a {type(message).__name__} of {len(body)} bytes: at most {MOST_MESSAGE_BYTES}",
            Reason.REFUSED,
        )
    return body


def decode(body: bytes | bytearray | memoryview) -> AnyMessage:
    """The message in a body, every field of it checked.

    Raises:
        PeerError: it is none, or claims too much; what it was is in the text, its bytes are not.
    """
    if len(body) > MOST_MESSAGE_BYTES:
        raise PeerError(f"a message of {len(body)} bytes", Reason.REFUSED)
    try:
        message = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"no message: {str(error)[:MOST_TEXT]}", Reason.REFUSED) from None
    if isinstance(message, Answer):
        _check_answer(message)
    return message


def _check_answer(answer: Answer) -> None:
    """The lists of an Answer belong to each other."""
    here = answer.states.count(HERE)
    if not STATES.issuperset(answer.states):
        raise PeerError("an Answer with an unknown state", Reason.REFUSED)
    if len(answer.tiers) != here or len(answer.sums) != here:
        raise PeerError("an Answer whose lists have different lengths", Reason.REFUSED)
    if answer.places and len(answer.places) != here:
        raise PeerError("an Answer whose lists have different lengths", Reason.REFUSED)

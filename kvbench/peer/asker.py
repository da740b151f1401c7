"""The asking side of a connection, for every transport: greet, prove, ask.

Whose blocks arrive in a stream gets them here block by block; whose blocks are read where they lie
gets an Answer of places. What a transport does with them is its own business.

May import: kvbench.peer.{model, messages, protocol, shares, wire}, kvbench.store.block.
"""

import itertools
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence

from kvbench.peer.messages import (
    BUSY,
    GONE,
    MOST_MS,
    NONCE_BYTES,
    Answer,
    AnyMessage,
    Ask,
    Goodbye,
    Hello,
    Prove,
    Refused,
    Release,
    Welcome,
)
from kvbench.peer.model import PROTOCOL_VERSION, Peer, PeerError, PeerId, Pull, Reason, Tag
from kvbench.peer.protocol import Arrived, Event, State
from kvbench.peer.shares import holder_proof_of, proof_of, tag_of
from kvbench.peer.wire import Stream, reason_of
from kvbench.store.block import Bytes

_log = logging.getLogger("kvbench.peer")

REASONS = {GONE: Reason.GONE, BUSY: Reason.BUSY}  # of the states of an Answer
_ENDS = (Refused, Goodbye)


class Asker:
    """A connection that was welcomed. For one thread at a time; errors are PeerErrors."""

    def __init__(self, stream: Stream, welcome: Welcome, nonce: bytes) -> None:
        self.stream = stream
        self.welcome = welcome
        self._nonce = nonce
        self._tags: dict[bytes, Tag] = {}  # of namespaces that it has asked for
        self._numbers = itertools.count(1)

    def ask(
        self, pull: Pull, part: slice, targets: Sequence[Bytes], *, place: bool = False
    ) -> Answer:
        """Ask for some of a pull's keys, and wait for the Answer.

        Before the first of a namespace, both sides prove that they know it: no key is named to a
        holder that did not.

        The blocks of `targets`, one for each of these keys, come by `arrived`.
        """
        self.begin(pull, part, targets, place=place)
        return self.answer(pull)

    def begin(
        self, pull: Pull, part: slice, targets: Sequence[Bytes], *, place: bool = False
    ) -> None:
        """Ask as `ask` does, and do not wait: `answer` has to come before anything else is sent."""
        core = self.stream.core
        tag = self._tags.get(pull.namespace)
        if tag is None:
            tag = tag_of(pull.namespace)
            if tag not in core.proven:
                self._prove(pull, tag)
            self._tags[pull.namespace] = tag
        left_ms = math.ceil(max(0.0, pull.expires_s - time.monotonic()) * 1000)
        keys = list(pull.keys[part])
        ask = Ask(next(self._numbers), tag, pull.epoch, keys, place, min(left_ms, MOST_MS))
        self.stream.send_bytes(core.ask(ask, targets), pull.expires_s)

    def answer(self, pull: Pull) -> Answer:
        """Wait for the Answer to what was asked."""
        while True:
            for event in self._events(pull):
                if isinstance(event, Answer):
                    return event

    def arrived(self, pull: Pull) -> Iterator[list[int]]:
        """Indexes, among the keys last asked for, of the blocks that came since; until all have."""
        while self.stream.core.state is State.PAYLOAD:
            for event in self._events(pull):
                if isinstance(event, Arrived):
                    yield event.indexes

    def release(self, loan: int, expires_s: float) -> None:
        """The blocks of a loan have been read."""
        self.stream.send(Release(loan), expires_s)

    def close(self) -> None:
        """Say goodbye, if that goes without waiting, and end it; once more is no error."""
        if self.stream.core.state is State.OPEN:
            self.stream.tell(self.stream.core.send(Goodbye()))
        self.stream.close()

    def _prove(self, pull: Pull, tag: Tag) -> None:
        nonces = self.welcome.nonce, self._nonce
        wanted = holder_proof_of(pull.namespace, *nonces, self.welcome.id)
        core = self.stream.core
        data = core.prove(Prove(tag, proof_of(pull.namespace, *nonces)), wanted)
        self.stream.send_bytes(data, pull.expires_s)
        try:
            while tag not in core.proven:
                self._events(pull)
        except PeerError as error:
            if error.reason is Reason.REFUSED:
                _log.warning(
                    "peer: asked nothing of %s: namespace %s: %s",
                    self.welcome.id.hex(),
                    tag.hex(),
                    error,
                )
            raise

    def _events(self, pull: Pull) -> list[Event]:
        if pull.cancelled():
            raise PeerError("cancelled", Reason.CANCELLED)
        events = self.stream.events(pull.expires_s)
        for event in events:
            if isinstance(event, _ENDS):
                raise _ended(event)
        return events


def greet(stream: Stream, me: PeerId, holder: Peer, how: str, expires_s: float) -> Asker:
    """Agree with a holder on transport `how`, by `expires_s`.

    Raises:
        PeerError: it refuses, is another process than `holder`, or does not answer. The stream is
            to be closed then.
    """
    nonce = os.urandom(NONCE_BYTES)
    layout = stream.core.layout
    hello = Hello(PROTOCOL_VERSION, me, layout.block_bytes, layout.parts, nonce, how)
    stream.send(hello, expires_s)
    while True:
        for event in stream.events(expires_s):
            if not isinstance(event, Welcome):
                raise _ended(event)
            if event.version != PROTOCOL_VERSION:
                raise PeerError(f"protocol version {event.version}", Reason.REFUSED)
            if event.id != holder.id:
                raise PeerError(f"{holder.name} is another process now", Reason.RESTARTED)
            return Asker(stream, event, nonce)


def _ended(event: AnyMessage | Arrived) -> PeerError:
    if isinstance(event, Refused):
        return PeerError(f"the holder refused ({event.code!r}): {event.text!r}", reason_of(event))
    return PeerError("the holder said goodbye", Reason.UNREACHABLE)

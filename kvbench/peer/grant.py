"""What one connection may have of a holder: its proofs, its epoch, its loans of places.

No I/O: whoever serves a connection gives it the messages that `kvbench.peer.protocol` let through.

May import: kvbench.peer.{model, messages, shares, holder}. msgspec.
"""

import hmac
import itertools
import os
import time

from msgspec import structs

from kvbench.peer.holder import Holder, Places, Served
from kvbench.peer.messages import (
    BUSY,
    HERE,
    MOST_MS,
    NONCE_BYTES,
    Answer,
    Ask,
    Hello,
    Prove,
    Proven,
    Welcome,
)
from kvbench.peer.model import PROTOCOL_VERSION, PeerError, Reason
from kvbench.peer.shares import holder_proof_of, proof_of


class Grant:
    """What one connection may have of a holder. For one thread at a time."""

    def __init__(self, holder: Holder, how: str) -> None:
        self.asker = b""  # its id, once it said so
        self.why = ""  # a proof was not accepted: for the log, not for the asker
        self.nonce = os.urandom(NONCE_BYTES)
        self._holder = holder
        self._how = how
        self._asker_nonce = b""
        self._loans: dict[int, Served] = {}
        self._numbers = itertools.count(1)

    def welcome(self, hello: Hello, detail: bytes = b"") -> Welcome:
        """The answer to a Hello that fits.

        Raises:
            PeerError: it does not.
        """
        me = self._holder.me
        if hello.version != PROTOCOL_VERSION:
            self._holder.count(other_version=1)
            raise PeerError(
                f"protocol version {hello.version}: this peer speaks {PROTOCOL_VERSION}",
                Reason.REFUSED,
            )
        if (hello.block_bytes, hello.parts) != (me.block_bytes, me.parts):
            self._holder.count(other_layout=1)
            raise PeerError(
                f"blocks of {hello.block_bytes} bytes in {hello.parts} parts: this peer has "
                f"{me.block_bytes} in {me.parts}",
                Reason.REFUSED,
            )
        if hello.how != self._how:
            raise PeerError(f"transport {hello.how!r}: this is {self._how}", Reason.REFUSED)
        self.asker, self._asker_nonce = hello.id, hello.nonce
        return Welcome(PROTOCOL_VERSION, me.id, me.epoch, self.nonce, detail)

    def proves(self, prove: Prove) -> bool:
        """Whether the asker knows the namespace, and this peer shares it; else `why` not."""
        share = self._holder.share(prove.tag)
        if share is None:
            self._holder.count(unknown_namespace=1)
            self.why = f"namespace {prove.tag.hex()} is not shared here"
            return False
        good = proof_of(share.digest, self.nonce, self._asker_nonce)
        if not hmac.compare_digest(good, prove.proof):
            self._holder.count(wrong_proof=1)
            self.why = f"a wrong proof of namespace {prove.tag.hex()}"
            return False
        return True

    def proven(self, prove: Prove) -> Proven:
        """The answer to a proof that was right: the holder's own.

        Raises:
            PeerError: the namespace is not shared.
        """
        share = self._holder.share(prove.tag)
        if share is None:
            raise PeerError("no such namespace", Reason.REFUSED)
        proof = holder_proof_of(share.digest, self.nonce, self._asker_nonce, self._holder.me.id)
        return Proven(prove.tag, proof)

    def answer(self, ask: Ask, places: Places | None = None) -> Served:
        """What the holder has of an Ask; its loan is kept here until it is released, or over.

        Raises:
            PeerError: it is for another epoch, or transport, or the store is closed.
        """
        holder = self._holder
        if ask.place and places is None:
            raise PeerError(f"transport {self._how} does not answer like that", Reason.REFUSED)
        if ask.epoch != holder.me.epoch:
            holder.count(other_epoch=1)
            raise PeerError(
                f"epoch {ask.epoch}: this store began with {holder.me.epoch}", Reason.RESTARTED
            )
        self.expire()
        if len(self._loans) >= holder.limits.loans:
            holder.count(asks=1, busy_blocks=len(ask.keys))
            busy = Answer(ask.number, bytes([BUSY]) * len(ask.keys), [], [], [])
            return Served(busy, [], time.monotonic(), lambda _used: None)
        served = holder.answer(ask, places if ask.place else None)
        if HERE not in served.answer.states:
            served.end(used=False)
            return served
        number = next(self._numbers)
        left_ms = int(max(0.0, served.expires_s - time.monotonic()) * 1000)
        served.answer = structs.replace(
            served.answer, loan=number, expires_ms=min(left_ms, MOST_MS)
        )
        self._loans[number] = served
        return served

    def release(self, loan: int) -> None:
        """The asker has read the blocks of a loan; one that is over, or never was, is no error."""
        served = self._loans.pop(loan, None)
        if served is not None:
            served.end(used=True)

    def expire(self) -> None:
        """End loans whose time is up."""
        now_s = time.monotonic()
        for number in [n for n, served in self._loans.items() if served.expires_s <= now_s]:
            self._loans.pop(number).end(used=False)
            self._holder.count(loans_expired=1)

    def close(self) -> None:
        """The connection is over, and with it all that was lent."""
        while self._loans:
            self._loans.popitem()[1].end(used=False)

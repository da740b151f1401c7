"""Who of the others this peer has lost, whom to ask about it, and when to introduce the two anew.

Zenoh's gossip tries a pair of peers once. Where that fails, or the link of one pair breaks while
both keep all others, nobody would try again. So peers tell each other now and then whom they see,
and who is seen by others and not here, for some time, is to be introduced: see
`kvbench.peer.introducer`, which does it. No I/O and no threads here; the clock is passed in.

May import: kvbench.errors, kvbench.peer.{cluster,messages,model}. msgspec.
"""

import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple, Self

import msgspec
from msgspec import Meta

from kvbench.errors import UsageError
from kvbench.peer.cluster import (
    CONTROL,
    MOST_MEMBERS,
    MOST_NAME,
    OPEN_MS,
    Endpoint,
    MembershipConfig,
)
from kvbench.peer.messages import Id
from kvbench.peer.model import Peer, PeerError, PeerId, Reason

LOOK_S = 10.0
FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 300.0
APART_S = 1.0
ANSWERS = 2  # that have to name who is missing: one may have been on its way as that peer left
LOOKS = 6  # without being named, after which nobody misses it any more
MOST_ENDS = 4  # endpoints of one peer that are tried
MOST_BYTES = MOST_MEMBERS * (MOST_NAME + 32)  # of a message: none is longer with all its texts full
_EVERY_ADDRESS = ("/0.0.0.0:", "/[::]:")


class Named(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A peer that another one sees."""

    id: Id
    where: Annotated[str, Meta(max_length=MOST_NAME)]  # where it can be joined, with commas between


_decoder = msgspec.msgpack.Decoder(Annotated[list[Named], Meta(max_length=MOST_MEMBERS)])


def encode(peers: Iterable[Peer]) -> bytes:
    """What a peer answers that is asked whom it sees."""
    named = {peer.id: Named(peer.id, reachable(peer.endpoints)) for peer in peers}
    # A host's name put in may have made a text longer than the others take.
    fit = [each for each in named.values() if len(each.where) <= MOST_NAME]
    return msgspec.msgpack.encode(fit[:MOST_MEMBERS])


def decode(body: bytes, config: MembershipConfig) -> dict[PeerId, list[Endpoint]]:
    """Whom another peer sees and where they can be joined: one endpoint at least of each.

    Who has none that this peer could use is left out: it may be the fault of that one, for which
    the others are not to be missed.

    Raises:
        PeerError: it is none, or claims too much.
    """
    if len(body) > MOST_BYTES:
        raise PeerError(f"a list of peers of {len(body)} bytes", Reason.REFUSED)
    try:
        named = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"no list of peers: {str(error)[:MOST_NAME]}", Reason.REFUSED) from None
    found = {each.id: endpoints(each.where, config) for each in named}
    return {peer_id: ends for peer_id, ends in found.items() if ends}


def endpoints(where: str, config: MembershipConfig) -> list[Endpoint]:
    """Those of a peer that this one could connect to, in the protocol that it speaks; some at most.

    It connects to nothing else: what is no endpoint, or of the other protocol, is left out.
    """
    found: list[Endpoint] = []
    for text in where.split(",")[:MOST_ENDS]:
        try:
            found += [each for each in config.endpoints([text]) if each.port and _one(each)]
        except UsageError:
            continue
    return found


def _one(endpoint: Endpoint) -> bool:
    """Whether it is an address of a machine, not all of them."""
    return not any(every in str(endpoint) for every in _EVERY_ADDRESS)


def reachable(where: dict[str, str]) -> str:
    """Where others can join a peer, of `Peer.endpoints`.

    Who listens on every address of a machine has named one of them for its blocks.
    """
    control, host = where.get(CONTROL, ""), where.get("tcp", "").rpartition(":")[0]
    for every in _EVERY_ADDRESS if host else ():
        control = control.replace(every, f"/{host}:")
    return control


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often something is done, in seconds; what peers would do together is spread out."""

    look_s: float = LOOK_S  # between questions
    soon_s: float  # the same while somebody has just left or is newly missed
    patience_s: float  # that somebody is missing before anything is done: most come by themselves
    first_pause_s: float = FIRST_PAUSE_S  # before the next attempt with the same one; doubles
    longest_pause_s: float = LONGEST_PAUSE_S
    apart_s: float = APART_S  # between two introductions, whoever they are of

    @classmethod
    def of(cls, lease_s: float) -> Self:
        """For a lease: an attempt of Zenoh's that is under way ends within the patience."""
        return cls(soon_s=min(2 * lease_s, LOOK_S), patience_s=max(2 * lease_s, OPEN_MS / 1000))


class Missing(NamedTuple):
    """Who is to be introduced, and where it can be joined."""

    id: PeerId
    where: list[Endpoint]


@dataclass(slots=True)
class _Lost:
    """What is known of one that is not seen."""

    named_s: float  # when it was named last, or left
    due_s: float
    pause_s: float
    where: list[Endpoint]
    answers: int = 0
    attempts: int = 0


class Introductions:
    """What one peer knows of those that it misses. For one thread.

    `seen` holds whoever is seen now; it is the caller's, who changes it as they come and go.
    """

    def __init__(
        self,
        me: PeerId,
        seen: Collection[PeerId],
        pace: Pace,
        *,
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = lambda: random.uniform(0.75, 1.25),
    ) -> None:
        self._me = me
        self._seen = seen
        self._pace = pace
        self._clock = clock
        self._spread = spread
        self._lost: dict[PeerId, _Lost] = {}
        self._asked = me  # last: each goes round from its own place
        self._asking = False
        self._look_s = clock() + pace.look_s * spread()
        self._free_s = 0.0

    def left(self, peer_id: PeerId) -> None:
        """A peer is not seen any more: soon the others are asked whether they see it."""
        now_s = self._clock()
        if len(self._lost) < MOST_MEMBERS:
            self._lost[peer_id] = self._lost_of([], now_s)
        self._look_soon(now_s)

    def whom_to_ask(self) -> PeerId | None:
        """Who is to be asked now whom it sees; `told` has to follow. One at a time, in turn."""
        now_s = self._clock()
        # Of more than MOST_MEMBERS some are left out on purpose.
        if self._asking or now_s < self._look_s or not 0 < len(self._seen) < MOST_MEMBERS:
            return None
        self._asking = True
        self._asked = min((i for i in self._seen if i > self._asked), default=min(self._seen))
        self._look_s = now_s + self._pace.look_s * self._spread()
        return self._asked

    def told(self, named: dict[PeerId, list[Endpoint]]) -> None:
        """Whom the one that was asked sees, see `decode`; empty if no answer came."""
        self._asking = False
        now_s = self._clock()
        for peer_id, where in named.items():
            if peer_id == self._me or peer_id in self._seen:
                continue
            lost = self._lost.get(peer_id)
            if lost is None:
                if len(self._lost) >= MOST_MEMBERS:
                    continue
                lost = self._lost[peer_id] = self._lost_of(where, now_s)
            lost.where, lost.named_s = where, now_s
            lost.answers += 1
            if not lost.attempts:
                self._look_soon(now_s)

    def whom_to_introduce(self) -> Missing | None:
        """With whom it is to be tried now; the caller does one after the other."""
        if not self._lost:
            return None
        now_s, pace = self._clock(), self._pace
        for peer_id, lost in list(self._lost.items()):
            if peer_id in self._seen or now_s > lost.named_s + LOOKS * pace.look_s:
                del self._lost[peer_id]
        due = [
            i for i, lost in self._lost.items() if lost.answers >= ANSWERS and now_s >= lost.due_s
        ]
        if not due or now_s < self._free_s:
            return None
        chosen = min(due, key=lambda i: (self._lost[i].attempts, self._lost[i].due_s))
        lost = self._lost[chosen]
        lost.attempts += 1
        lost.due_s = now_s + lost.pause_s * self._spread()
        lost.pause_s = min(2 * lost.pause_s, pace.longest_pause_s)
        self._free_s = now_s + pace.apart_s
        return Missing(chosen, lost.where)

    def _lost_of(self, where: list[Endpoint], now_s: float) -> _Lost:
        pace = self._pace
        return _Lost(now_s, now_s + pace.patience_s, pace.first_pause_s, where)

    def _look_soon(self, now_s: float) -> None:
        self._look_s = min(self._look_s, now_s + self._pace.soon_s * self._spread())

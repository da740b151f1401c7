"""Pulls of blocks that are read where they lie, by shared memory or one-sided READs.

Asks a holder for places, has a Reader fetch from them, compares checksums, releases. A slot that
was given to another block meanwhile, or changed, is found by its checksum: CORRUPT. Blocks that the
holder has elsewhere, on a drive or a GPU, come as payload on the connection that one asks by.

May import: kvbench.peer.{model, messages, protocol, asker, tcp}, kvbench.store.block.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Protocol

from kvbench.peer.asker import Asker
from kvbench.peer.messages import BUSY, HERE, Answer
from kvbench.peer.model import Outcome, PeerError, Pull, Reason
from kvbench.peer.protocol import State, most_keys
from kvbench.peer.tcp import ASK_BYTES, TcpChannel
from kvbench.store.block import Bytes

MANY_KEYS = 32  # to look up so many takes a holder as long as reading some
FIRST_BYTES = 8 * 2**20
UNWANTED_S = 0.05  # for an Answer that nobody wants any more


class Reader(Protocol):
    """Reads a holder's memory, for one thread at a time."""

    def read(
        self, offsets: Sequence[int], targets: Sequence[Bytes], pull: Pull
    ) -> Iterator[list[bytes]]:
        """Copy the blocks at these offsets, some at a time.

        Yields the checksums of what came to the targets, as `Stamp.sums`, in order; ends early if
        the pull is cancelled. After it has ended or raised, nothing is written to a target.

        Raises:
            PeerError: LATE, UNREACHABLE, or REFUSED for an offset that is not in the memory.
        """
        ...

    def close(self) -> None:
        """Let go of the memory; once more is no error."""
        ...


class PlacedChannel:
    """A connection to one peer, and a Reader of its memory; see `Channel`."""

    def __init__(self, asker: Asker, reader: Reader, path: str) -> None:
        self.path = path
        self._asker = asker
        self._reader = reader
        # What is not to be read in place is sent, by the protocol that any stream socket has.
        self._sent = TcpChannel(asker, path)
        layout = asker.stream.core.layout
        self._block_bytes = layout.block_bytes
        self._at_once = min(most_keys(layout), max(1, ASK_BYTES // layout.block_bytes))

    @property
    def broken(self) -> bool:
        """See `Channel.broken`; also once the holder has closed an idle connection."""
        return self._sent.broken

    def pull(self, pull: Pull) -> list[Outcome]:
        """See `Channel.pull`."""
        count = len(pull.keys)
        if pull.epoch != self._asker.welcome.epoch:
            return [Outcome(Reason.RESTARTED)] * count
        outcomes: list[Outcome | None] = [None] * count
        left = Outcome(Reason.CANCELLED)
        elsewhere: list[int] = []
        try:
            self._pull_placed(pull, outcomes, elsewhere)
        except PeerError as error:
            self._asker.stream.close()
            left = Outcome(error.reason)
        if elsewhere and self._asker.stream.core.state is State.OPEN:
            rest = replace(
                pull,
                keys=[pull.keys[i] for i in elsewhere],
                targets=[pull.targets[i] for i in elsewhere],
            )
            for i, outcome in zip(elsewhere, self._sent.pull(rest), strict=True):
                outcomes[i] = outcome
        return [outcome or left for outcome in outcomes]

    def close(self) -> None:
        """See `Channel.close`."""
        self._asker.close()
        self._reader.close()

    def _pull_placed(
        self, pull: Pull, outcomes: list[Outcome | None], elsewhere: list[int]
    ) -> None:
        """Those that lie in the memory; `elsewhere` gets the indexes of those that do not.

        What comes next is asked for before what was lent is read: the holder finds it meanwhile.
        """
        core = self._asker.stream.core
        parts = self._parts(len(pull.keys))
        loan = 0
        for part, after in zip_longest(parts, parts[1:]):
            if pull.cancelled():
                break
            if core.state is State.OPEN:
                self._asker.begin(pull, part, (), place=True)
            answer = self._asker.answer(pull)
            self._release(loan, pull.expires_s)
            if after is not None:
                self._asker.begin(pull, after, (), place=True)
            self._read(pull, part, answer, (outcomes, elsewhere))
            loan = answer.loan
        if core.state is State.ASKED:  # cancelled: hear it out, or the connection is of no more use
            until_s = min(pull.expires_s, time.monotonic() + UNWANTED_S)
            unwanted = replace(pull, cancelled=lambda: False, expires_s=until_s)
            self._release(self._asker.answer(unwanted).loan, pull.expires_s)
        self._release(loan, pull.expires_s)

    def _parts(self, count: int) -> list[slice]:
        """What is asked for at a time: of many keys a few first, which are read meanwhile."""
        few = max(1, min(FIRST_BYTES // self._block_bytes, count // 4))
        start = few if count >= MANY_KEYS else 0
        firsts = [*range(0, start, self._at_once), *range(start, count, self._at_once)]
        return [slice(at, end) for at, end in zip(firsts, [*firsts[1:], count], strict=True)]

    def _read(
        self,
        pull: Pull,
        part: slice,
        answer: Answer,
        found: tuple[list[Outcome | None], list[int]],
    ) -> None:
        outcomes, elsewhere = found
        here: list[int] = []
        for i, state in enumerate(answer.states, part.start):
            if state == HERE:
                here.append(i)
            elif state == BUSY:
                elsewhere.append(i)
            else:
                outcomes[i] = Outcome(Reason.GONE)
        offsets = [place.offset for place in answer.places]
        wanted = iter(zip(here, answer.sums, answer.tiers, strict=True))
        for some in self._reader.read(offsets, [pull.targets[i] for i in here], pull):
            for sums, (i, right, tier) in zip(some, wanted, strict=False):
                outcomes[i] = Outcome(None if sums == right else Reason.CORRUPT, tier)

    def _release(self, loan: int, expires_s: float) -> None:
        if loan:
            with contextlib.suppress(PeerError):  # the blocks are here, whatever became of the peer
                self._asker.release(loan, expires_s)

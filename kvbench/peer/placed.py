"""Pulls of blocks that are read where they lie, by shared memory or one-sided READs.

Asks a holder for places, has a Reader fetch from them, compares checksums, releases. A slot that
was given to another block meanwhile, or changed, is found by its checksum: CORRUPT. Blocks that the
holder has elsewhere, on a drive or a GPU, come as payload on the connection that one asks by.

May import: kvbench.peer.{model, messages, protocol, asker, tcp}, kvbench.store.block.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from kvbench.peer.asker import Asker
from kvbench.peer.messages import BUSY, HERE
from kvbench.peer.model import Outcome, PeerError, Pull, Reason
from kvbench.peer.protocol import State, most_keys
from kvbench.peer.tcp import ASK_BYTES, TcpChannel
from kvbench.store.block import Bytes


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
            for first in range(0, count, self._at_once):
                if pull.cancelled():
                    break
                part = slice(first, min(first + self._at_once, count))
                elsewhere += self._pull_some(pull, part, outcomes)
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

    def _pull_some(self, pull: Pull, part: slice, outcomes: list[Outcome | None]) -> list[int]:
        """Those that lie in the memory; the indexes of those that may come otherwise."""
        answer = self._asker.ask(pull, part, (), place=True)
        here: list[int] = []
        elsewhere: list[int] = []
        for i, state in enumerate(answer.states, part.start):
            if state == HERE:
                here.append(i)
            elif state == BUSY:
                elsewhere.append(i)
            else:
                outcomes[i] = Outcome(Reason.GONE)
        offsets = [place.offset for place in answer.places]
        wanted = iter(zip(here, answer.sums, answer.tiers, strict=True))
        for found in self._reader.read(offsets, [pull.targets[i] for i in here], pull):
            for sums, (i, right, tier) in zip(found, wanted, strict=False):
                outcomes[i] = Outcome(None if sums == right else Reason.CORRUPT, tier)
        if answer.loan:
            with contextlib.suppress(PeerError):  # the blocks are here, whatever became of the peer
                self._asker.release(answer.loan, pull.expires_s)
        return elsewhere

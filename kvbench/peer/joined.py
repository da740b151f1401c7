"""A request that the local store and peers serve together, and the rows that peers are to fill.

Moves no bytes and has no threads: both halves settle their own keys.

May import: kvbench.store.{block, request, rows}.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future

from kvbench.store.block import Bytes, Status
from kvbench.store.request import Request, Result
from kvbench.store.rows import Rows


def when_done(request: Request, call: Callable[[], object]) -> None:
    """Call it on the thread that settles the last key, or now; it has to be quick.

    Not through the request's own future: its callbacks wait for those of everybody's callers.
    """

    def told(_: Future[Result]) -> None:
        call()

    Future[Result].add_done_callback(request.future, told)


class Joined(Request):
    """What `here` missed, `away` has been asked for: `at` says which keys of `here` those are."""

    def __init__(self, here: Request, away: Request, at: Sequence[int]) -> None:
        super().__init__(here.kind, here.size, deadline_s=None)
        self.started_ns = here.started_ns
        self.expires_s = here.expires_s
        self._here = here
        self._away = away
        self._at = at
        self._halves = 2
        self._ending = threading.Lock()
        when_done(here, self._half_done)
        when_done(away, self._half_done)

    @property
    def statuses(self) -> list[Status | None]:
        """What is known so far; None where it is not."""
        if len(self._at) == self.size:
            return self._away.statuses
        merged = self._here.statuses
        for i, status in zip(self._at, self._away.statuses, strict=True):
            merged[i] = status
        return merged

    def layer(self, part: int) -> threading.Event:
        """See `Request.layer`."""
        return _Both(self._here.layer(part), self._away.layer(part))

    def give_up(
        self,
        reason: str,
        indexes: Iterable[int] | None = None,
        status: Status = Status.TIMEOUT,
    ) -> int:
        """See `Request.give_up`."""
        if indexes is None:
            settled = self._here.give_up(reason, None, status)
            return settled + self._away.give_up(reason, None, status)
        wanted = set(indexes)
        settled = self._here.give_up(reason, wanted.difference(self._at), status)
        away = [j for j, i in enumerate(self._at) if i in wanted]
        return settled + self._away.give_up(reason, away, status)

    def _half_done(self) -> None:
        with self._ending:
            self._halves -= 1
            if self._halves:
                return
        at, found = self._at, self.statuses
        if here := self._here.reasons:
            elsewhere = set(at)
            self.reasons.update({i: why for i, why in here.items() if i not in elsewhere})
        self.reasons.update({at[j]: why for j, why in self._away.reasons.items()})
        if found == [Status.OK] * self.size:  # most often
            self.settle(range(self.size), Status.OK)
            return
        by_status: dict[Status, list[int]] = {}
        for i, status in enumerate(found):
            assert status is not None
            by_status.setdefault(status, []).append(i)
        for status, indexes in by_status.items():
            self.settle(indexes, status)


class _Both(threading.Event):
    """Set when two others are; for waiting only."""

    def __init__(self, first: threading.Event, second: threading.Event) -> None:
        super().__init__()
        self._events = first, second

    def is_set(self) -> bool:
        """Whether both are."""
        return all(each.is_set() for each in self._events)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for both."""
        until_s = None if timeout is None else time.monotonic() + timeout
        for each in self._events:
            left_s = None if until_s is None else max(0.0, until_s - time.monotonic())
            if not each.wait(left_s):
                return False
        return True


class Some:
    """Some rows of others, by new numbers."""

    def __init__(self, rows: Rows, at: Sequence[int]) -> None:
        self._rows = rows
        self._at = at

    def __len__(self) -> int:
        return len(self._at)

    def send_many(self, indexes: Sequence[int], outs: Sequence[Bytes]) -> None:
        """See `Rows.send_many`."""
        self._rows.send_many([self._at[i] for i in indexes], outs)

    def receive_many(self, indexes: Sequence[int], part: int | None, data: Sequence[Bytes]) -> None:
        """See `Rows.receive_many`."""
        self._rows.receive_many([self._at[i] for i in indexes], part, data)

    def finish(self, indexes: Sequence[int], part: int | None) -> None:
        """See `Rows.finish`."""
        self._rows.finish([self._at[i] for i in indexes], part)

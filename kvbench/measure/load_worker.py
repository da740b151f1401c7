"""The process that keeps a tier busy: `python -m kvbench.measure.load_worker`.

Takes an `Assignment` like a worker that measures, does that work without end, and says again and
again how many bytes it has moved in all. Takes no samples, computes no rate and checks no data but
what its body checks as they come. It ends when its standard input is closed, so it cannot outlive
the run that started it.
"""

import time
from collections.abc import Iterator

import msgspec

from kvbench.measure.body import StepBody, StreamBody
from kvbench.measure.clock import Clock
from kvbench.measure.worker import Assignment, Failure, SendAny, attempt, context_of, serve

TELL_S = 0.05  # short against the time for which a case is measured


class Moved(msgspec.Struct, frozen=True, tag="moved"):
    """How many bytes it has moved since it began, and when that was so."""

    bytes: int
    at_s: float  # of the monotonic clock, which is one for all processes


Said = Moved | Failure


def main() -> None:
    """Do the work on standard input until that is closed."""
    serve(keep_moving)


def keep_moving(assignment: Assignment, send: SendAny) -> Failure:
    """Move a case's bytes without end; why that ended."""

    def work(body: StepBody | StreamBody, clock: Clock) -> Failure:
        body.set_up(context_of(assignment))
        moved = 0
        send(Moved(moved, time.monotonic()))
        for more in _streaming(body) if isinstance(body, StreamBody) else _stepping(body, clock):
            moved += more
            send(Moved(moved, time.monotonic()))
        raise AssertionError("a load has no end of its own")

    return attempt(assignment, work)


def _streaming(body: StreamBody) -> Iterator[int]:
    """Bytes that completed since it was last asked, none of them an answer too."""
    body.start()
    while True:
        yield int(body.poll(TELL_S).sizes(body.operation_bytes).sum())


def _stepping(body: StepBody, clock: Clock) -> Iterator[int]:
    """Bytes of as many steps as fit `TELL_S`, one at least; the clock waits for their work."""
    while True:
        until_s = time.monotonic() + TELL_S
        moved = clock.time(body.step)[0]
        while time.monotonic() < until_s:
            moved += clock.time(body.step)[0]
        yield moved


if __name__ == "__main__":
    main()

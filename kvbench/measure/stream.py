"""Keeps a fixed number of operations in flight and records when each one completes.

One thread a lane; a lane starts its next operation as soon as the last one is done, so the load
is closed: the queue depth is held, the arrival rate follows. Operations must release the GIL
while they wait (preadv, pwritev and KvikIO do). Knows nothing of files.

An operation whose size or time is not the lane's own business says so by an `Outcome`: a request of
a trace, which began when it arrived and not when a lane was free for it.

A stream can be slowed on purpose. Sleeping would not do it: on a drive that is busy, one lane's
pause is another's gain. So a lane does operations that it does not tell of, `slowdown` of them for
each that it tells of: throughput falls to 1 / (1 + slowdown), and the latency of the operations
that are told of stays what it was.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from kvbench.measure.body import Completions

JOIN_S = 60.0  # an operation that takes longer than this at the end of a stream is stuck


class Outcome(NamedTuple):
    """What an operation moved, when that was there, and how long it took; 0 bytes: not told of."""

    end_ns: int  # of time.perf_counter_ns
    latency_ns: int
    size_bytes: int


class LaneStuckError(RuntimeError):
    """An operation did not come back."""


class Lanes:
    """`operate(lane, n)` does the n-th operation of a lane and returns when it is complete.

    It returns an `Outcome` each time, or never: then an operation is as long as the call.
    """

    timeline: ClassVar[Mapping[str, str]] = {"_run": "python"}  # for kvbench.profile

    def __init__(
        self,
        queue_depth: int,
        operate: Callable[[int, int], object],
        *,
        slowdown: float = 0.0,
    ) -> None:
        self._operate = operate
        self._slowdown = slowdown
        self._counts = [0] * queue_depth
        self._ends_ns: list[list[int]] = [[] for _ in range(queue_depth)]
        self._latencies_ns: list[list[int]] = [[] for _ in range(queue_depth)]
        self._sizes_bytes: list[list[int]] = [[] for _ in range(queue_depth)]
        self._untold = [0] * queue_depth
        self._seen = [0] * queue_depth
        self._stopping = False
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"lane-{lane}", daemon=True)
            for lane in range(queue_depth)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def poll(self, wait_s: float) -> Completions:
        """Sleep, then return what completed since the last poll; raise what a lane raised."""
        time.sleep(wait_s)
        if self._failure is not None:
            raise self._failure
        ends: list[int] = []
        latencies: list[int] = []
        sizes: list[int] = []
        for lane, done in enumerate(self._ends_ns):
            first, last = self._seen[lane], len(done)
            # The lane appends the end last, so every end has its latency already.
            ends += done[first:last]
            latencies += self._latencies_ns[lane][first:last]
            sizes += self._sizes_bytes[lane][first:last]
            self._seen[lane] = last
        return Completions(
            np.array(ends, dtype=np.int64),
            np.array(latencies, dtype=np.int64),
            np.array(sizes, dtype=np.int64) if sizes else None,
        )

    def stop(self) -> None:
        """Let what is in flight finish.

        Raises:
            LaneStuckError: an operation did not come back in time.
        """
        self._stopping = True
        deadline_s = time.monotonic() + JOIN_S
        for thread in self._threads:
            if thread.ident is None:
                continue
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                raise LaneStuckError(f"an operation did not complete within {JOIN_S:.0f} s")

    def counts(self) -> list[int]:
        """Operations that each lane has completed, also those it did not tell of."""
        return list(self._counts)

    def slowed(self) -> float:
        """Operations beyond those that were asked for, as a share; of a stream that has stopped."""
        asked_for = sum(self._counts) - sum(self._untold)
        return sum(self._untold) / asked_for if asked_for else 0.0

    def _run(self, lane: int) -> None:
        now_ns, operate = time.perf_counter_ns, self._operate
        ends, latencies = self._ends_ns[lane], self._latencies_ns[lane]
        sizes = self._sizes_bytes[lane]
        n = 0
        # Lanes begin with different parts of one, so that they do not all fall behind at once.
        owed = (lane + 0.5) / len(self._threads)
        try:
            while not self._stopping:
                began = now_ns()
                outcome = operate(lane, n)
                ended = now_ns()
                if not isinstance(outcome, Outcome):
                    latencies.append(ended - began)
                    ends.append(ended)
                elif outcome.size_bytes:
                    sizes.append(outcome.size_bytes)
                    latencies.append(outcome.latency_ns)
                    ends.append(outcome.end_ns)
                n += 1
                self._counts[lane] = n
                owed += self._slowdown
                while owed >= 1:  # also when the stream stops: what is owed belongs to what counts
                    operate(lane, n)
                    n += 1
                    self._untold[lane] += 1
                    self._counts[lane] = n
                    owed -= 1
        except BaseException as failure:  # noqa: BLE001  re-raised by poll, in the caller's thread
            self._failure = failure
            self._stopping = True

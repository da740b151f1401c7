"""How much of this machine fetching may take: bytes in flight, bytes a second, memory for blocks.

Sharing is not to starve decode. Who waits for a limit waits in a queue, first come first served,
no longer than until his own deadline, and leaves when he is cancelled.

May import: kvbench.errors, kvbench.units, kvbench.peer.model, kvbench.store.{block, posix}.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from kvbench.errors import UsageError
from kvbench.peer.model import Reason
from kvbench.store.block import Bytes
from kvbench.store.posix import mapped_buffer
from kvbench.units import MIB

POLL_S = 0.02  # how often who waits looks whether he is cancelled
PAGE_BYTES = 4096
LEAST_BURST_S = 0.02  # of the cap's bytes can go at once: less and every pull would be split


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """Limits and choices of fetching; every default is finite.

    `hedge_s`: a pull that has not answered by then is asked of a second holder too; None: never.
    `staged`: blocks arrive in memory of the fetcher and are copied from there, as they are for
    `hedge_s` and for rows of a device; else they arrive in the rows. Then a row stays in use until
    the channel has returned, which costs nothing where channels keep their word.
    `recompute_s_per_block`: what a block costs to compute; None: every fetch is worth it.

    Raises:
        UsageError: a limit is not positive.
    """

    deadline_s: float = 2.0  # of a fetch, unless its caller has less time
    streams: int = 2  # channels to one peer
    threads: int = 32  # of all peers together
    most_pull_bytes: int = 16 * MIB
    most_pull_blocks: int = 64
    least_pull_bytes: int = 8 * MIB  # less is not shared out among streams and holders
    hedge_s: float | None = None
    staged: bool = False
    in_flight_bytes: int = 256 * MIB
    bytes_per_s: float | None = None  # None: as fast as it goes
    connect_s: float = 1.0  # of a fetch's time, for a channel
    probe_s: float = 0.5  # how long a probe of a peer that failed may take
    pause_s: float = 1.0  # before the first probe; doubles up to:
    most_pause_s: float = 30.0
    idle_s: float = 60.0  # channels that nobody used for so long are closed
    recompute_s_per_block: float | None = None
    expected_latency_s: float = 0.001  # of a path that nothing is known of yet
    expected_bytes_per_s: float = 1e9
    worth_probe_s: float = 10.0  # between tries of a peer that is slower than recomputing

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if name != "staged" and value is not None and not value > 0:
                raise UsageError(f"{name} is {value}: it has to be more than 0")


class TokenBucket:
    """A cap of bytes a second with a burst. Pure: the clock is passed in; the caller locks.

    What is larger than the burst goes when the bucket is full, and leaves it in debt.
    """

    def __init__(self, bytes_per_s: float, burst_bytes: float, now_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self.burst_bytes = burst_bytes
        self._level = burst_bytes
        self._at_s = now_s

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """How long until so many bytes may go; 0: now."""
        self._fill(now_s)
        missing = min(size_bytes, self.burst_bytes) - self._level
        # Parts of a byte are rounding: waiting for them might not move the clock at all.
        return 0.0 if missing < 1 else missing / self.bytes_per_s

    def take(self, size_bytes: int, now_s: float) -> None:
        """They go."""
        self._fill(now_s)
        self._level -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        """They did not go after all."""
        self._level = min(self.burst_bytes, self._level + size_bytes)

    def _fill(self, now_s: float) -> None:
        grown = self._level + (now_s - self._at_s) * self.bytes_per_s
        self._level = min(self.burst_bytes, grown)
        self._at_s = now_s


class Limits:
    """The bytes that are in flight, and those of the last moments. Thread-safe.

    A pull that is larger than all that may be in flight goes when nothing else is.
    """

    def __init__(
        self,
        in_flight_bytes: int,
        bytes_per_s: float | None = None,
        *,
        burst_bytes: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Condition, float], object] = threading.Condition.wait,
    ) -> None:
        self.limit_bytes = in_flight_bytes
        self._clock = clock
        self._wait = wait
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._in_flight_bytes = 0
        self._bucket: TokenBucket | None = None
        if bytes_per_s is not None:
            burst = bytes_per_s * LEAST_BURST_S if burst_bytes is None else burst_bytes
            self._bucket = TokenBucket(bytes_per_s, burst, clock())

    @property
    def in_flight_bytes(self) -> int:
        """What has entered and not left."""
        return self._in_flight_bytes

    @property
    def waiting(self) -> int:
        """How many wait to enter."""
        return len(self._queue)

    def enter(
        self, size_bytes: int, expires_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> Reason | None:
        """Wait until so many bytes may be in flight; `leave` has to follow.

        Else BUSY: not by `expires_s`; CANCELLED.
        """
        me = object()
        with self._changed:
            self._queue.append(me)
            try:
                while True:
                    now_s = self._clock()
                    if cancelled():
                        return Reason.CANCELLED
                    wait_s = self._wait_s(me, size_bytes, now_s)
                    if not wait_s:
                        break
                    if now_s >= expires_s:
                        return Reason.BUSY
                    self._wait(self._changed, min(wait_s, expires_s - now_s, POLL_S))
                self._in_flight_bytes += size_bytes
                if self._bucket is not None:
                    self._bucket.take(size_bytes, now_s)
            finally:
                self._queue.remove(me)
                self._changed.notify_all()
        return None

    def leave(self, size_bytes: int, unused_bytes: int = 0) -> None:
        """They are in flight no more; `unused_bytes` of them were never sent."""
        with self._changed:
            self._in_flight_bytes -= size_bytes
            if self._bucket is not None and unused_bytes:
                self._bucket.give_back(unused_bytes)
            self._changed.notify_all()

    def _wait_s(self, me: object, size_bytes: int, now_s: float) -> float:
        """How long to wait before asking again; 0: come in."""
        if self._queue[0] is not me:
            return POLL_S
        if self._in_flight_bytes and self._in_flight_bytes + size_bytes > self.limit_bytes:
            return POLL_S
        return 0.0 if self._bucket is None else self._bucket.wait_s(size_bytes, now_s)


class Staging:
    """Memory for blocks on their way, used again: its pages are touched once. Thread-safe.

    It bounds what it keeps for later; what is out is bounded by `Limits`.
    """

    def __init__(self, block_bytes: int, area_blocks: int, keep: int) -> None:
        self._stride = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
        self._block_bytes = block_bytes
        self._blocks = area_blocks
        self._keep = keep
        self._free: list[Bytes] = []
        self._lock = threading.Lock()

    def take(self, count: int) -> tuple[Bytes, list[Bytes]]:
        """An area, to be given back, and `count` (at most `area_blocks`) blocks of it."""
        with self._lock:
            area = self._free.pop() if self._free else None
        if area is None:
            area = mapped_buffer(self._blocks * self._stride, huge_pages=True)
        starts = range(0, count * self._stride, self._stride)
        return area, [area[at : at + self._block_bytes] for at in starts]

    def give(self, area: Bytes) -> None:
        """Nobody will write to it any more."""
        with self._lock:
            if len(self._free) < self._keep:
                self._free.append(area)

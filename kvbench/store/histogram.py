"""How long operations took: histograms of fixed memory that merge without loss.

The buckets are those of HdrHistogram with five significant bits, 32 to each power of two of
nanoseconds. The library itself takes twice as long a value in Python (1.2 µs against 0.6), and
270 kB a histogram against 10: too much for one of each operation in each tier.
No threads here: the caller holds a lock.

May import nothing of kvbench. msgspec.
"""

import math
from itertools import accumulate

import msgspec

_BITS = 5
_PER_OCTAVE = 1 << _BITS
_OCTAVES = 42  # up to 73 minutes; what takes longer is in the last bucket
BUCKETS = (_OCTAVES - _BITS + 1) << _BITS
_HIGHEST_NS = (1 << _OCTAVES) - 1
# Where histograms are cut for Prometheus: 1 µs to 69 s by factors of two, which are our edges too.
_CUTS = range(10, 37)


class Latencies(msgspec.Struct, frozen=True, kw_only=True):
    """How long an operation took. Percentiles are at most 3.2 % above the true ones, never below.

    Durations are rounded to nanoseconds; from 73 minutes on a percentile is `max_s`. `buckets` are
    those of `Histogram` that are not empty, by number: they merge without loss.
    """

    count: int
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    sum_s: float
    buckets: dict[int, int]


class Histogram:
    """Durations in nanoseconds, in buckets that hold their upper edges and not their lower ones."""

    __slots__ = ("buckets", "max_s", "sum_s")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS
        self.sum_s = 0.0
        self.max_s = 0.0

    def record(self, seconds: float, n: int = 1) -> None:
        """`n` operations that took so long each; none leave no trace."""
        if not n:
            return
        ns = int(seconds * 1e9 + 0.5) - 1  # an upper edge belongs to the bucket that ends there
        if ns >= _HIGHEST_NS:
            ns = _HIGHEST_NS
        elif ns < 0:
            ns = 0
        shift = ns.bit_length() - _BITS - 1
        self.buckets[(shift << _BITS) + (ns >> shift) if shift > 0 else ns] += n
        self.sum_s += seconds * n
        self.max_s = max(self.max_s, seconds)

    def add(self, other: Latencies) -> None:
        """Merge what another histogram holds."""
        for at, n in other.buckets.items():
            self.buckets[at] += n
        self.sum_s += other.sum_s
        self.max_s = max(self.max_s, other.max_s)

    def copy(self) -> "Histogram":
        """As it is now."""
        same = Histogram()
        same.buckets, same.sum_s, same.max_s = self.buckets.copy(), self.sum_s, self.max_s
        return same

    def latencies(self) -> Latencies:
        """What it holds."""
        totals = list(accumulate(self.buckets))
        count = totals[-1]
        return Latencies(
            count=count,
            mean_s=self.sum_s / count if count else 0.0,
            p50_s=self._percentile_s(totals, 0.50),
            p95_s=self._percentile_s(totals, 0.95),
            p99_s=self._percentile_s(totals, 0.99),
            max_s=self.max_s,
            sum_s=self.sum_s,
            buckets={at: n for at, n in enumerate(self.buckets) if n},
        )

    def _percentile_s(self, totals: list[int], share: float) -> float:
        """The upper edge of the bucket that the sample of this rank is in."""
        rank = math.ceil(share * totals[-1])
        at = next((at for at, total in enumerate(totals) if total >= rank), 0)
        if at == BUCKETS - 1:
            return self.max_s  # it has no upper edge
        return min(_upper_ns(at) / 1e9, self.max_s)


def cumulative(latencies: Latencies) -> list[tuple[float, int]]:
    """Seconds, rising, and how many operations took at most so long: exact to the nanosecond."""
    found: list[tuple[float, int]] = []
    for power in _CUTS:
        last = ((power - _BITS) << _BITS) + _PER_OCTAVE - 1  # the bucket that ends at 2**power ns
        within = sum(n for at, n in latencies.buckets.items() if at <= last)
        found.append(((1 << power) / 1e9, within))
    return found


def _upper_ns(at: int) -> int:
    if at < 2 * _PER_OCTAVE:
        return at + 1
    return ((at & (_PER_OCTAVE - 1)) + _PER_OCTAVE + 1) << ((at >> _BITS) - 1)

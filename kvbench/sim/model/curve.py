"""How fast a tier moves blocks, by their size, the blocks of a request and the requests in flight.

A curve is measured points and one law fitted to them, seconds a byte:

    1 / B + c / block + g / request + (a / request + w / block + e) / depth

with a request of batch * block bytes. B is the rate that nothing exceeds, c what a block and g what
a request costs whoever else is served; what requests in flight share are a, the latency of a
request, w, that of a block, and e, what one flow alone cannot do. All are at least 0 and fitted to
the relative error; a term that the points cannot tell from those before it is left out. What the
law misses at points nearby is carried over from them.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.sim.model.least import F64, nonnegative
from kvbench.sim.model.prediction import Prediction, around
from kvbench.sim.scenario import Path

REACH = 2.0  # doublings
NEAR = 0.5  # doublings within which points count alike: each is measured with an error


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One measured rate of a stream of requests of `batch` blocks, `depth` of them in flight."""

    block_bytes: int
    batch: int = 1
    depth: int = 1
    bytes_per_s: float
    low: float
    high: float


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A law, its points and how far they are from it. `source` is what predictions name."""

    source: str
    s_per_byte: float  # 1 / B
    s_per_block: float  # c
    s_per_request: float  # g
    latency_s: float  # a
    block_latency_s: float  # w
    flow_s_per_byte: float  # e
    low: float  # a prediction's range: factors of its seconds
    high: float
    points: tuple[Point, ...]

    def s_of_byte(self, block_bytes: float, batch: float = 1, depth: float = 1) -> float:
        """Seconds a byte takes in a steady stream."""
        law = self._law(block_bytes, batch, depth)
        return law * math.exp(self._missed(block_bytes, batch, depth))

    def _law(self, block_bytes: float, batch: float, depth: float) -> float:
        return (
            self.s_per_byte
            + self.s_per_block / block_bytes
            + self.s_per_request / (block_bytes * batch)
            + self.latency_s / (block_bytes * batch * depth)
            + self.block_latency_s / (block_bytes * depth)
            + self.flow_s_per_byte / depth
        )

    def _missed(self, block_bytes: float, batch: float, depth: float) -> float:
        """The logarithm of what the law misses: a mean of the points', the nearest count most.

        Weights fall with the square of the distance in doublings (Shepard); a law that nobody
        contradicts weighs as much as a point `REACH` doublings away, so that far from all points
        the law is what stays.
        """
        weighed, weights = 0.0, 1 / REACH**2
        for point in self.points:
            away = (
                math.log2(block_bytes / point.block_bytes) ** 2
                + math.log2(batch / point.batch) ** 2
                + math.log2(depth / point.depth) ** 2
            )
            weight = 1 / (away + NEAR**2)
            law = self._law(point.block_bytes, point.batch, point.depth)
            weighed -= weight * math.log(law * point.bytes_per_s)
            weights += weight
        return weighed / weights

    def seconds(
        self, size_bytes: float, *, block_bytes: float, batch: float = 1, depth: float = 1
    ) -> Prediction:
        """To move `size_bytes` in blocks of `block_bytes`. No depth is larger than the requests."""
        if size_bytes <= 0:
            return around(0.0, self.low, self.high, unit="s", source=self.source)
        block_bytes = min(block_bytes, size_bytes)  # less than a block is one
        blocks = math.ceil(size_bytes / block_bytes)
        batch = min(batch, blocks)
        flying = min(depth, math.ceil(blocks / batch))
        return around(
            size_bytes * self.s_of_byte(block_bytes, batch, flying),
            self.low,
            self.high,
            unit="s",
            source=self.source,
            outside=self.outside(block_bytes, batch, flying),
        )

    def bytes_per_s(self, *, block_bytes: float, batch: float = 1, depth: float = 1) -> Prediction:
        """The rate of a steady stream."""
        return around(
            1 / self.s_of_byte(block_bytes, batch, depth),
            1 / self.high,
            1 / self.low,
            unit="B/s",
            source=self.source,
            outside=self.outside(block_bytes, batch, depth),
        )

    def path(self, *, block_bytes: float, depth: float) -> Path:
        """For the simulator: latency of one block, and what one flow and all flows reach.

        Where only latencies were seen, all flows together reach what was measured at best.
        """
        least = self.s_per_byte + self.s_per_block / block_bytes
        total = 1 / least if least > 0 else max(point.bytes_per_s for point in self.points)
        flow = min(total, 1 / self.s_of_byte(block_bytes, 1, depth))
        latency_s = self.s_per_request + self.latency_s + self.block_latency_s
        return Path(latency_s=latency_s, bytes_per_s=total, flow_bytes_per_s=flow)

    def most(self, depth: int) -> int:
        """As many requests in flight, or as many as were measured."""
        return min([depth, *([max(p.depth for p in self.points)] if self.points else [])])

    def outside(self, block_bytes: float, batch: float | None, depth: float) -> tuple[str, ...]:
        """Which of the three is beyond the points, and by what. None: any batch will do."""
        asked = {"block_bytes": block_bytes, "batch": batch, "depth": depth}
        reasons: list[str] = []
        for name, value in asked.items():
            known = [float(getattr(point, name)) for point in self.points]
            if value is not None and known and not min(known) <= value <= max(known):
                reasons.append(f"{name} {value:g} is outside {min(known):g} to {max(known):g}")
        return tuple(reasons)


def fit(points: Sequence[Point], source: str) -> Curve:
    """The law that suits the points best.

    Its range holds both the points' own intervals (the median of them, as they are independent) and
    the residuals (twice the root mean square, for 95 %).

    Raises:
        UsageError: no points, or one whose rate is not above 0.
    """
    if not points or any(not point.bytes_per_s > 0 for point in points):
        raise UsageError(f"{source}: expected points with rates above 0, got {len(points)} points")
    terms = np.array([_terms(point) for point in points])
    used = _identifiable(terms)
    rates = np.array([point.bytes_per_s for point in points])
    found = nonnegative(terms[:, used] * rates[:, None], np.ones(len(points)))
    law = np.zeros(terms.shape[1])
    law[used] = found
    if not law.any():
        law[0] = float(np.median(1 / rates))
    ratios = 1 / rates / (terms @ law)
    doubt = math.hypot(2 * float(np.sqrt(np.mean(np.log(ratios) ** 2))), _half_width(points))
    return Curve(
        source=source,
        s_per_byte=float(law[0]),
        s_per_block=float(law[1]),
        s_per_request=float(law[2]),
        latency_s=float(law[3]),
        block_latency_s=float(law[4]),
        flow_s_per_byte=float(law[5]),
        low=math.exp(-doubt),
        high=math.exp(doubt),
        points=tuple(points),
    )


def _terms(point: Point) -> tuple[float, ...]:
    block, batch, depth = float(point.block_bytes), point.batch, point.depth
    request = block * batch
    return 1.0, 1 / block, 1 / request, 1 / (request * depth), 1 / (block * depth), 1 / depth


def _identifiable(terms: F64) -> list[int]:
    """Columns that are not a multiple of one before them: what the points cannot tell apart."""
    used = [0]
    for column in (3, 1, 2, 5, 4):  # the latency first: it is what a lone point shows
        some = terms[:, [*used, column]]
        scaled = some / np.linalg.norm(some, axis=0)
        if np.linalg.matrix_rank(scaled, tol=1e-6) == len(used) + 1:
            used.append(column)
    return used


def _half_width(points: Sequence[Point]) -> float:
    """Of the points' intervals, in logarithms; 0 where they have none."""
    widths = [
        math.log(point.high / point.low) / 2 for point in points if 0 < point.low <= point.high
    ]
    return float(np.median(widths)) if widths else 0.0

"""Whether a transfer is expected to be faster than recomputing. Pure: the clock is passed in.

For a peer and a path, n bytes on one stream are expected to take

    T(n) = L + n / B

with L the latency of a pull and B the bytes a second of one stream. Both are exponentially
weighted means of what pulls took, beginning with a prior. A pull of n bytes that took t says
something of L and of 1/B, and more of that which made the larger part of it:

    w = (n / B) / T(n)
    L   <- L   + A (1 - w) (max(0, t - n / B) - L)
    1/B <- 1/B + A w       (max(0, t - L) / n - 1/B)

A fetch of b blocks is worth it if T(n) < R b, R being the seconds that a block takes to compute.
Once it was not, T(n) has to be better by HYSTERESIS: so the answer does not flutter. While it is
no, one small pull in `probe_s` is let through, which nobody waits for: or an estimate that was bad
once would be believed for ever.

Not thread-safe: the caller locks. May import nothing of kvbench.
"""

from dataclasses import dataclass, field

WEIGHT = 0.25  # A: half of the memory is the last two or three pulls
HYSTERESIS = 1.25
LEAST_BYTES_PER_S = 1e3  # keeps 1/B finite
MOST_BYTES_PER_S = 1e12


@dataclass(slots=True)
class Estimate:
    """Of one stream to one peer by one path."""

    latency_s: float
    bytes_per_s: float
    pulls: int = 0  # that it rests on; 0: the prior
    worth: bool = True
    tried_s: float = field(default=float("-inf"))  # when a probe was last let through

    def expected_s(self, size_bytes: int) -> float:
        """T(n)."""
        return self.latency_s + size_bytes / self.bytes_per_s

    def took(self, size_bytes: int, seconds: float) -> None:
        """A pull of so many bytes was over after so long."""
        if size_bytes <= 0:
            return
        by_size_s = size_bytes / self.bytes_per_s
        share = by_size_s / max(by_size_s + self.latency_s, 1e-12)
        latency_s = max(0.0, seconds - by_size_s)
        s_per_byte = max(0.0, seconds - self.latency_s) / size_bytes
        self.latency_s += WEIGHT * (1 - share) * (latency_s - self.latency_s)
        inverse = 1 / self.bytes_per_s
        inverse += WEIGHT * share * (s_per_byte - inverse)
        highest, lowest = 1 / LEAST_BYTES_PER_S, 1 / MOST_BYTES_PER_S
        self.bytes_per_s = 1 / min(max(inverse, lowest), highest)
        self.pulls += 1

    def missed(self, size_bytes: int, seconds: float) -> None:
        """A pull of so many bytes was not over after so long: it takes longer, who knows how much.

        Learned only where more was expected of it.
        """
        if seconds > self.expected_s(size_bytes):
            self.took(size_bytes, seconds)


class Worth:
    """Estimates of all peers and paths, and what is decided by them.

    `recompute_s_per_block`: R; None if unknown, and every fetch is worth it.
    """

    def __init__(
        self,
        recompute_s_per_block: float | None,
        *,
        latency_s: float,
        bytes_per_s: float,
        probe_s: float,
    ) -> None:
        self.recompute_s_per_block = recompute_s_per_block
        self._prior = (latency_s, bytes_per_s)
        self._probe_s = probe_s
        self._known: dict[tuple[bytes, str], Estimate] = {}

    def of(self, peer: bytes, path: str) -> Estimate:
        """What is expected of a peer by a path; the prior, if nothing is known."""
        known = self._known.get((peer, path))
        if known is None:
            known = self._known[peer, path] = Estimate(*self._prior)
        return known

    def forget(self, peer: bytes) -> None:
        """The peer is gone."""
        for each in [each for each in self._known if each[0] == peer]:
            del self._known[each]

    def asks(self, peer: bytes, path: str, stream_bytes: int, blocks: int) -> bool:
        """Whether so many blocks should be fetched, of which one stream carries `stream_bytes`."""
        if self.recompute_s_per_block is None:
            return True
        estimate = self.of(peer, path)
        transfer_s = estimate.expected_s(stream_bytes)
        recompute_s = self.recompute_s_per_block * blocks
        estimate.worth = transfer_s * (1 if estimate.worth else HYSTERESIS) < recompute_s
        return estimate.worth

    def probe_due(self, peer: bytes, path: str, now_s: float) -> bool:
        """Whether a probe may go, of a peer for which the answer was no; asking uses it up."""
        estimate = self.of(peer, path)
        if estimate.worth or now_s - estimate.tried_s < self._probe_s:
            return False
        estimate.tried_s = now_s
        return True

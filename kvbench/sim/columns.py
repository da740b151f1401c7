"""A trace as arrays: what replays, curves and simulations run over.

Reads no file. A block's id names its whole prefix: equal ids mean equal tokens up to its end.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """n requests in order of arrival, with m blocks in all.

    The blocks of request i are ids[starts[i] : starts[i + 1]], in the order of its input; the last
    may be partial. Ids are 0 to unique_blocks - 1 in the order in which they first appear. A trace
    that has lengths only (Azure, BurstGPT) has no ids, and all of `starts` is 0.
    """

    name: str
    digest: str  # 16 hex digits: XXH3-64 of the file, or of what was made up
    block_tokens: int
    arrival_s: NDArray[np.float64]  # (n,) since the first
    input_tokens: NDArray[np.int32]  # (n,)
    output_tokens: NDArray[np.int32]  # (n,)
    starts: NDArray[np.int64]  # (n + 1,)
    ids: NDArray[np.int32]  # (m,)
    unique_blocks: int
    notes: tuple[str, ...] = ()  # what a reader left out or could not know, for the user

    @property
    def requests(self) -> int:
        """How many requests it has."""
        return len(self.arrival_s)

    @property
    def has_blocks(self) -> bool:
        """Whether it says what is used again."""
        return len(self.ids) > 0

    def first(self, count: int) -> "Columns":
        """The first `count` requests; name, digest and notes stay those of the whole."""
        if count >= self.requests:
            return self
        ids = self.ids[: self.starts[count]]
        return replace(
            self,
            arrival_s=self.arrival_s[:count],
            input_tokens=self.input_tokens[:count],
            output_tokens=self.output_tokens[:count],
            starts=self.starts[: count + 1],
            ids=ids,
            unique_blocks=int(ids.max()) + 1 if len(ids) else 0,  # in the order of first use
        )

"""Seeded, incompressible bytes that differ in every 4 KiB sector and can be made again.

A pool of random bytes is repeated, and each sector starts with its own number and the seed. So a
drive can neither compress nor deduplicate the data, and a sector that arrives from the wrong
place, or from an earlier run, is told from the right one.
"""

import numpy as np
import xxhash
from numpy.typing import NDArray

SECTOR_BYTES = 4096
POOL_SECTORS = 4096  # 16 MiB: larger than the window of any compressor in a drive or filesystem
_WORDS = SECTOR_BYTES // 8

Bytes = NDArray[np.uint8]


class Pattern:
    """What any range of a file of this seed holds."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        generator = np.random.default_rng(seed)
        self._pool = generator.integers(0, 2**64, (POOL_SECTORS, _WORDS), dtype=np.uint64)

    def fill(self, out: Bytes, position_bytes: int) -> None:
        """Overwrite uint8 [n] with what the range starting at `position_bytes` holds.

        Both the length and the position are multiples of 4096.
        """
        sectors = out.view(np.uint64).reshape(-1, _WORDS)
        first, count = position_bytes // SECTOR_BYTES, len(sectors)
        done = 0
        while done < count:
            at = (first + done) % POOL_SECTORS
            run = min(count - done, POOL_SECTORS - at)
            sectors[done : done + run] = self._pool[at : at + run]
            done += run
        sectors[:, 0] = np.arange(first, first + count, dtype=np.uint64)
        sectors[:, 1] = self.seed


def digest(block: Bytes) -> int:
    """XXH3-64 of a contiguous block."""
    return xxhash.xxh3_64_intdigest(block.data)

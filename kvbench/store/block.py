"""What every tier agrees on about one block: its size, its stamp, what a request may answer.

A stamp travels with its payload through all tiers. Whoever hands a payload on checks it against
the stamp first; nobody checks it for him. No I/O and no threads here.

May import: kvbench.errors. xxhash and numpy, not torch.
"""

import enum
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from kvbench.errors import CorruptDataError, KvbenchError, UsageError

Bytes = NDArray[np.uint8]
KEY_BYTES = 32
SUM_BYTES = 8
MOST_PARTS = 384  # their checksums have to fit into a record's header
MOST_TENANT_BYTES = 64


class Status(enum.Enum):
    """What became of one key of a request."""

    OK = "ok"
    MISS = "miss"  # not here, or not any more: only this may be remembered as absence
    TIMEOUT = "timeout"  # not in time; the block may well be here
    CORRUPT = "corrupt"  # it was here, and its bytes were not what was stored
    BUSY = "busy"  # no room, or a queue is full: nothing was done


class CorruptBlockError(CorruptDataError):
    """A slot does not hold what was written to it."""

    code = "corrupt_block"


class OtherBlockError(CorruptBlockError):
    """A slot holds a whole record, but of another block than was asked for."""

    code = "other_block"


class BlockRefusedError(KvbenchError):
    """A tier does not take this block, for what is in it; nothing is wrong with the tier."""

    code = "block_refused"


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of every block of a store: `parts` equal parts (layers, say) of one payload.

    Parts are checked one by one, so that the first can be used while the last is still arriving.

    Raises:
        UsageError: the sizes are not positive, or the parts not equal.
    """

    block_bytes: int
    parts: int = 1

    def __post_init__(self) -> None:
        if self.block_bytes < 1 or not 1 <= self.parts <= MOST_PARTS:
            raise UsageError(
                f"a block of {self.block_bytes} bytes in {self.parts} parts: sizes are positive, "
                f"and there are at most {MOST_PARTS} parts"
            )
        if self.block_bytes % self.parts:
            raise UsageError(
                f"a block of {self.block_bytes} bytes cannot be cut into {self.parts} equal parts"
            )

    @property
    def part_bytes(self) -> int:
        """Bytes of one part."""
        return self.block_bytes // self.parts

    def part(self, payload: Bytes, part: int) -> Bytes:
        """A view of one part of a payload of uint8 [block_bytes]."""
        return payload[part * self.part_bytes : (part + 1) * self.part_bytes]


class Stamp(NamedTuple):
    """What is known of a block besides its payload: 32-byte keys, and checksums of its parts."""

    key: bytes
    parent: bytes | None  # the block before it in its prefix; None for a first block
    position: int  # blocks before it in its prefix
    tenant: str  # who pays for it; at most MOST_TENANT_BYTES of UTF-8
    sums: bytes  # XXH3-64 of each part, little-endian, one after the other


def checksums(payload: Bytes, layout: Layout) -> bytes:
    """XXH3-64 of each part of uint8 [block_bytes], as `Stamp.sums`.

    For a block of one part that is XXH3-64 of the payload.
    """
    digest = xxhash.xxh3_64_intdigest
    if layout.parts == 1:
        return struct.pack("<Q", digest(payload.data))
    size = layout.part_bytes
    return struct.pack(
        f"<{layout.parts}Q",
        *(digest(payload[at : at + size].data) for at in range(0, layout.block_bytes, size)),
    )


def part_matches(stamp: Stamp, part: int, data: Bytes) -> bool:
    """Whether uint8 [part_bytes] is that part of the block as it was stored."""
    (wanted,) = struct.unpack_from("<Q", stamp.sums, SUM_BYTES * part)
    return bool(xxhash.xxh3_64_intdigest(data.data) == wanted)


def payload_matches(stamp: Stamp, payload: Bytes, layout: Layout) -> bool:
    """Whether uint8 [block_bytes] is the block as it was stored."""
    return checksums(payload, layout) == stamp.sums

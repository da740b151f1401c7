"""Copies of blocks with their checksums, many in one call, in one pass over the bytes.

What a put, a get and every check of the store come to. Where the compiled kernel cannot work
(no llvmlite, parts of at most 240 bytes) NumPy copies and the xxhash package hashes: the same
bytes and the same checksums in two passes. Knows nothing of tiers and rows.

May import: kvbench.store.block, kvbench.store.xxh3. numpy, xxhash.
"""

from array import array
from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import TYPE_CHECKING, cast

import numpy as np

from kvbench.store.block import SUM_BYTES, Bytes, Layout, checksums
from kvbench.store.xxh3 import LEAST_BYTES, STREAM_ALIGNMENT, How, kernel

if TYPE_CHECKING:
    from typing_extensions import Buffer

# From here on copies go past the caches: the stores of an ordinary copy first fetch the lines that
# they overwrite, which costs a third of the memory's bandwidth. A block of this size or more comes
# in requests of many that no core's own cache can hold.
STREAM_BYTES = 32 * 1024


def copy_with_sums(
    sources: Sequence[Bytes], targets: Sequence[Bytes], layout: Layout
) -> list[bytes]:
    """Copy each block; its checksums as `Stamp.sums`, of the bytes that went to the target.

    All are contiguous uint8 [layout.block_bytes], or blocks of another layout given as `layout`.

    Raises:
        ValueError: an array is of another size or not contiguous, or they are not of one number.
    """
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} blocks for {len(targets)} targets")
    if kernel() is None or layout.part_bytes < LEAST_BYTES:
        for source, target in zip(sources, targets, strict=True):
            np.copyto(target, source)
        return [checksums(target, layout) for target in targets]
    from_, to = _addresses(sources, layout), _addresses(targets, layout)
    streams = (
        layout.block_bytes >= STREAM_BYTES
        and layout.part_bytes % STREAM_ALIGNMENT == 0
        and not any(address % STREAM_ALIGNMENT for address in to)
    )
    return _run(How.STREAM if streams else How.COPY, from_, to, layout)


def sums_of(payloads: Sequence[Bytes], layout: Layout) -> list[bytes]:
    """The checksums of each block, uint8 [layout.block_bytes], as `Stamp.sums`.

    Raises:
        ValueError: an array is of another size or not contiguous.
    """
    if kernel() is None or layout.part_bytes < LEAST_BYTES:
        return [checksums(payload, layout) for payload in payloads]
    addresses = _addresses(payloads, layout)
    return _run(How.HASH, addresses, addresses, layout)


def _addresses(arrays: Sequence[Bytes], layout: Layout) -> "array[int]":
    size = layout.block_bytes
    found = array("Q")
    for each in arrays:
        if each.nbytes != size:
            raise ValueError(f"a block of {each.nbytes} bytes: expected {size}, contiguous")
        try:  # four times as fast as asking NumPy, and refuses what is not contiguous
            found.append(addressof(c_char.from_buffer(cast("Buffer", each))))
        except TypeError:  # so it does with memory that may only be read
            if not each.flags.c_contiguous:
                raise ValueError(
                    f"a scattered block of {each.nbytes} bytes: expected {size}, contiguous"
                ) from None
            found.append(each.__array_interface__["data"][0])
    return found


def address_of(array_: Bytes) -> int:
    """Where an array's first byte lies."""
    try:
        return addressof(c_char.from_buffer(cast("Buffer", array_)))
    except TypeError:
        address: int = array_.__array_interface__["data"][0]
        return address


def _run(how: How, from_: "array[int]", to: "array[int]", layout: Layout) -> list[bytes]:
    compiled = kernel()
    assert compiled is not None
    size = SUM_BYTES * layout.parts
    sums = array("Q", bytes(len(from_) * size))
    shape = len(from_), layout.parts, layout.part_bytes
    compiled.digest(how, from_.buffer_info()[0], to.buffer_info()[0], shape, sums.buffer_info()[0])
    whole = sums.tobytes()
    return [whole[at : at + size] for at in range(0, len(whole), size)]

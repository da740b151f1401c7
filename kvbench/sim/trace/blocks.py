"""From the hash ids of a file to ids from 0 in the order of their first use, and their check.

An id of `Columns` names its whole prefix, so it always follows the same one. Knows no file.
"""

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_NONE = -1  # what the first block of a request follows


def prefix_hashes(hashes: I64, starts: I64) -> tuple[I32, int, tuple[int, str] | None]:
    """Ids of hashes that name their whole prefix already, as in Mooncake's traces.

    Args:
        hashes: int64 [m], as they stand in the file.
        starts: int64 [n + 1], where the blocks of each request begin in `hashes`.

    Returns:
        ids int32 [m], how many different ones there are, and where one follows another than it did
        at first and what is to say about it; None where none does.
    """
    ids, first = _in_order(hashes)
    before = _before(ids, starts)
    expected = before[first][ids]
    broken = np.flatnonzero(before != expected)
    if len(broken) == 0:
        return ids, len(first), None
    at = int(broken[0])
    here, there = (
        "first" if one == _NONE else f"after {int(hashes[first[one]])}"
        for one in (int(before[at]), int(expected[at]))
    )
    what = f"hash id {int(hashes[at])} comes {here} and elsewhere {there}"
    return ids, len(first), (at, f"{what}: expected one prefix of an id")


def block_hashes(hashes: I64, starts: I64) -> tuple[I32, int, None]:
    """Ids of hashes that may name their own block only: an id is made of (id before, hash)."""
    ids, unique, broken = prefix_hashes(hashes, starts)
    if broken is None:
        return ids, unique, None
    index: dict[tuple[int, int], int] = {}
    named = np.empty(len(hashes), np.int32)
    values, ends = hashes.tolist(), starts.tolist()
    for i in range(len(ends) - 1):
        last = _NONE
        for at in range(ends[i], ends[i + 1]):
            last = index.setdefault((last, values[at]), len(index))
            named[at] = last
    return named, len(index), None


def _in_order(hashes: I64) -> tuple[I32, I64]:
    """Ids in the order of first use, and where each is used first."""
    if len(hashes) == 0:
        return np.zeros(0, np.int32), np.zeros(0, np.int64)
    lowest = int(hashes.min())
    span = int(hashes.max()) - lowest + 1
    if span <= 4 * len(hashes):  # dense, as published traces are: no need to sort
        of, size = hashes - lowest, span
    else:
        values, of = np.unique(hashes, return_inverse=True)
        size = len(values)
    first = np.full(size, -1, np.int64)
    first[of[::-1]] = np.arange(len(of) - 1, -1, -1)  # of equal indices the last assignment stays
    used = np.flatnonzero(first >= 0)
    order = used[np.argsort(first[used])]
    rank = np.empty(size, np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank[of], first[order]


def _before(ids: I32, starts: I64) -> I32:
    """The id that each follows; _NONE for the first of a request."""
    before = np.empty(len(ids), np.int32)
    before[1:] = ids[:-1]
    # Where a request has no blocks, its start is that of the next one or the end.
    begins = starts[:-1]
    before[begins[begins < len(ids)]] = _NONE
    return before

"""Blocks by column as a few large blobs, which are read ten times as fast as rows.

Also the check that columns from a database make sense, since SQLite has no checksums. No I/O.

May import: kvbench.store.block, kvbench.store.records. numpy and xxhash, not torch.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import xxhash

from kvbench.store.block import KEY_BYTES
from kvbench.store.records import Columns, cut_keys

SNAPSHOT_ROWS = 1 << 16  # in one blob
_ROW_BYTES = 4 * 8 + 2 * KEY_BYTES + 1
Part = tuple[int, int, bytes, bytes]  # number, blocks, XXH3-64 of the blob, the blob


class IndexDamagedError(Exception):
    """The index does not hold what it should; whoever sees this rebuilds it."""


def pack(found: Columns) -> Iterator[Part]:
    """The columns as parts: 0 holds the tenants' names and the number of all blocks.

    The others hold four columns of int64 (slot, position, sequence, number of the tenant), then
    the keys, the parents, and a byte for each block that says whether it has a parent.
    """
    names = sorted(set(found.tenants))
    numbers = {name: number for number, name in enumerate(names)}
    head = "\0".join(names).encode()
    yield 0, len(found), xxhash.xxh3_64_digest(head), head
    nothing = bytes(KEY_BYTES)
    for part, at in enumerate(range(0, len(found), SNAPSHOT_ROWS), start=1):
        rows = slice(at, at + SNAPSHOT_ROWS)
        parents = found.parents[rows]
        fixed = np.array(
            [
                found.slots[rows],
                found.positions[rows],
                found.sequences[rows],
                [numbers[name] for name in found.tenants[rows]],
            ],
            np.int64,
        )
        data = b"".join(
            (
                fixed.tobytes(),
                *found.keys[rows],
                *(parent if parent is not None else nothing for parent in parents),
                bytes(parent is not None for parent in parents),
            )
        )
        yield part, len(parents), xxhash.xxh3_64_digest(data), data


def unpack(parts: Iterable[Part], slots: int) -> Columns:
    """What `pack` was given.

    Raises:
        IndexDamagedError: a checksum does not match, a part is missing or a slot out of range.
    """
    names: list[str] = []
    found = Columns()
    total = -1
    for part, rows, digest, data in parts:
        if xxhash.xxh3_64_digest(data) != digest:
            raise IndexDamagedError(f"the checksum of its part {part} does not match")
        if part == 0:
            names, total = data.decode().split("\0"), rows
            continue
        if len(data) != rows * _ROW_BYTES:
            raise IndexDamagedError(f"its part {part} has {len(data)} bytes for {rows} blocks")
        fixed = np.frombuffer(data, np.int64, 4 * rows).reshape(4, rows)
        found.slots += fixed[0].tolist()
        found.positions += fixed[1].tolist()
        found.sequences += fixed[2].tolist()
        found.tenants += map(names.__getitem__, fixed[3].tolist())
        at = 4 * 8 * rows
        found.keys += cut_keys(data[at : at + KEY_BYTES * rows])
        at += KEY_BYTES * rows
        parents: list[bytes | None] = list(cut_keys(data[at : at + KEY_BYTES * rows]))
        for i in np.flatnonzero(np.frombuffer(data[-rows:], np.uint8) == 0).tolist():
            parents[i] = None
        found.parents += parents
    if len(found) != total:
        raise IndexDamagedError(f"it holds {len(found)} of {total} blocks")
    if found.slots and not 0 <= min(found.slots) <= max(found.slots) < slots:
        raise IndexDamagedError("a slot is out of range")
    return found


def still_true(old: Columns, pairs: Iterable[int], slots: int) -> tuple[Columns, list[int]]:
    """Of a snapshot that no longer holds, the blocks that are still there; which slots to look up.

    `pairs` are slot and sequence number of every block that is there now, one after the other.
    Both together name one record, since a sequence number is never used for another block.

    Raises:
        TypeError, ValueError, IndexError: they are no such numbers, or out of range.
    """
    now = np.fromiter(pairs, np.int64).reshape(-1, 2)
    if (now < 0).any():
        raise ValueError("a slot or a sequence number is below 0")
    current = np.full(slots, -1, np.int64)
    current[now[:, 0]] = now[:, 1]
    places = np.array(old.slots, np.int64)
    same = current[places] == np.array(old.sequences, np.int64)
    current[places[same]] = -1
    left = np.flatnonzero(current >= 0).tolist()
    return (old if same.all() else old.take(np.flatnonzero(same).tolist())), left


def check(found: Columns, slots: int) -> None:
    """Refuse rows, in the order of their slots, that cannot all be right.

    Raises:
        IndexDamagedError: it says what is wrong.
    """
    if not found.slots:
        return
    numbers = np.array([found.slots, found.positions, found.sequences])
    parents = [parent for parent in found.parents if parent is not None]
    if numbers.dtype != np.int64 or {*map(type, found.keys), *map(type, parents)} != {bytes}:
        raise IndexDamagedError("a row has a value of the wrong type")
    if {*map(len, found.keys), *map(len, parents)} != {KEY_BYTES}:
        raise IndexDamagedError(f"a row's key has not {KEY_BYTES} bytes")
    if numbers.min() < 0 or found.slots[-1] >= slots or (np.diff(numbers[0]) <= 0).any():
        raise IndexDamagedError("a row's slot is out of range, or its position below 0")

"""Blocks and stores for the tests of the store."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.drives import capacity_for
from kvbench.store.nvme import NvmeTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore

LAYOUT = Layout(16_384, parts=4)
NAMESPACE = hashlib.sha256(b"namespace of the tests").digest()
WAIT_S = 20.0  # longer than anything takes here; a test that waits so long has failed


def keys_of(count: int, prefix: int = 0) -> list[bytes]:
    """The keys of one prefix; other numbers have others."""
    return [hashlib.sha256(f"{prefix}/{at}".encode()).digest() for at in range(count)]


def payload_of(key: bytes, layout: Layout = LAYOUT) -> Bytes:
    """The one payload that belongs to a key."""
    seed = int.from_bytes(key[:8], "little")
    return np.random.default_rng(seed).integers(0, 256, layout.block_bytes, dtype=np.uint8)


def payloads_of(keys: Sequence[bytes], layout: Layout = LAYOUT) -> Bytes:
    """uint8 [keys, block_bytes]."""
    return np.stack([payload_of(key, layout) for key in keys])


def empty_rows(count: int, layout: Layout = LAYOUT) -> Bytes:
    """uint8 [count, block_bytes] of 0xEE, which no payload is."""
    return np.full((count, layout.block_bytes), 0xEE, np.uint8)


def drive(folder: Path, slots: int, layout: Layout = LAYOUT) -> NvmeTier:
    """A small drive; a directory that is there is opened again."""
    folder.mkdir(exist_ok=True)
    return NvmeTier(
        [folder],
        layout,
        capacity_bytes=capacity_for(slots, layout),
        namespace=NAMESPACE,
        min_free_bytes=0,
    )


def two_tiers(
    folder: Path, *, dram: int = 8, nvme: int = 32, options: Options | None = None
) -> TieredStore:
    """A store of so many blocks in memory and on a drive."""
    return TieredStore([DramTier(LAYOUT, dram), drive(folder, nvme)], options)


def put(store: TieredStore, keys: Sequence[bytes], **options: object) -> list[Status]:
    """Store the keys' own payloads and wait."""
    request = store.put(keys, payloads_of(keys, store.layout), **options)  # type: ignore[arg-type]
    return request.result(WAIT_S)


def get(store: TieredStore, keys: Sequence[bytes]) -> list[Status]:
    """Read the keys one by one; every row that is OK has to hold its key's own payload."""
    rows = empty_rows(len(keys), store.layout)
    statuses = store.get_into(keys, rows).result(WAIT_S)
    for key, row, status in zip(keys, rows, statuses, strict=True):
        if status is Status.OK:
            assert (row == payload_of(key, store.layout)).all(), f"wrong bytes for {key.hex()[:8]}"
    return statuses


OK, MISS, BUSY = Status.OK, Status.MISS, Status.BUSY

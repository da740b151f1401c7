"""Blocks on drives, for the tests of that tier: each block has one right content, by its seed."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kvbench.store.block import Bytes, Layout, Stamp, checksums, payload_matches
from kvbench.store.drives import capacity_for
from kvbench.store.nvme import NvmeTier
from kvbench.store.posix import mapped_buffer
from kvbench.store.records import HEADER_BYTES
from kvbench.units import KIB

NAMESPACE = hashlib.sha256(b"tests/store/on_drives").digest()
LAYOUT = Layout(16 * KIB, 4)
RECORD = HEADER_BYTES + LAYOUT.block_bytes
SLOTS = 16


def opened(
    *folders: Path,
    slots: int | None = SLOTS,
    layout: Layout = LAYOUT,
    namespace: bytes = NAMESPACE,
    engine: str = "posix",
) -> NvmeTier:
    for each in folders:
        each.mkdir(exist_ok=True)
    return NvmeTier(
        folders,
        layout,
        capacity_bytes=None if slots is None else capacity_for(slots, layout, len(folders)),
        namespace=namespace,
        engine=engine,
        min_free_bytes=0,
    )


def payload_of(seed: int, layout: Layout = LAYOUT) -> Bytes:
    row = mapped_buffer(-(-layout.block_bytes // 4096) * 4096)[: layout.block_bytes]
    row[:] = np.random.default_rng(seed).integers(0, 256, layout.block_bytes, dtype=np.uint8)
    return row


def key_of(seed: int) -> bytes:
    return hashlib.sha256(seed.to_bytes(8, "little")).digest()


def stamp_of(seed: int, layout: Layout = LAYOUT) -> Stamp:
    parent = key_of(seed - 1) if seed % 8 else None
    sums = checksums(payload_of(seed, layout), layout)
    return Stamp(key_of(seed), parent, seed % 8, f"t{seed % 3}", sums)


def write(tier: NvmeTier, slots: Sequence[int], seeds: Sequence[int]) -> list[Exception | None]:
    return tier.write(
        slots,
        [stamp_of(seed, tier.layout) for seed in seeds],
        [payload_of(seed, tier.layout) for seed in seeds],
    )


def fill(tier: NvmeTier, slots: Sequence[int]) -> None:
    """A block into each slot whose seed is the slot."""
    tier.recover()
    assert write(tier, slots, slots) == [None] * len(slots)


def read(tier: NvmeTier, slots: Sequence[int]) -> list[Stamp | Exception | None]:
    """What each slot gives: a stamp if the payload fits it, None if it does not, or the error."""
    outs = [payload_of(0, tier.layout) for _ in slots]
    found: list[Stamp | Exception | None] = []
    for stamp, out in zip(tier.read(slots, outs), outs, strict=True):
        fits = isinstance(stamp, Exception) or payload_matches(stamp, out, tier.layout)
        found.append(stamp if fits else None)
    return found


def crash(tier: NvmeTier) -> None:
    """Close without a flush, as a kill would, but for the locks of this process."""
    tier.index.close(slots=tier.slots, clean=False)
    tier.drives.close()


def blocks(tier: NvmeTier) -> dict[int, bytes]:
    found = tier.recover()
    return dict(zip(found.slots, found.keys, strict=True))


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))

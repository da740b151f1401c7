"""Every tier and every wrapper keeps what the protocol promises (TierTests)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kvbench.store.block import Bytes, Layout
from kvbench.store.codec import Codec, CodecTier, Format
from kvbench.store.dram import DramTier
from kvbench.store.drives import capacity_for
from kvbench.store.faults import FaultyTier
from kvbench.store.hbm import HbmTier
from kvbench.store.nvme import NvmeTier
from kvbench.store.records import HEADER_BYTES
from kvbench.store.tier import Tier
from kvbench.store.wrappers import CountingTier, ThrottledTier, TimedTier, Wrapper
from kvbench.testing.durable_tiers import DurableTierTests
from kvbench.testing.tiers import TierTests


class TestDram(TierTests):
    def make(self, layout: Layout, slots: int, tmp_path: Path) -> Tier:  # noqa: ARG002  no files
        return self.wrapped(DramTier(layout, slots))

    def wrapped(self, tier: Tier) -> Tier:
        return tier

    def damage(self, tier: Tier, slot: int, byte: int) -> None:
        view = tier.view(slot)
        assert view is not None
        view[byte] ^= 0x10


class TestHbmInHostMemory(TierTests):
    device = "cpu"

    def make(self, layout: Layout, slots: int, tmp_path: Path) -> Tier:  # noqa: ARG002  no files
        return HbmTier(layout, slots, device=self.device)

    def damage(self, tier: Tier, slot: int, byte: int) -> None:
        assert isinstance(tier, HbmTier)
        tier.tensor[slot, byte] ^= 0x10


@pytest.mark.gpu
class TestHbm(TestHbmInHostMemory):
    __test__ = torch.cuda.is_available()
    device = "cuda"


class TestWrapper(TestDram):
    def wrapped(self, tier: Tier) -> Tier:
        return Wrapper(tier)


class TestTimed(TestDram):
    def wrapped(self, tier: Tier) -> Tier:
        return TimedTier(tier)


class TestCounting(TestDram):
    def wrapped(self, tier: Tier) -> Tier:
        return CountingTier(tier)


class TestFaultyWithoutFaults(TestDram):
    def wrapped(self, tier: Tier) -> Tier:
        return FaultyTier(tier)


class TestThrottled(TestDram):
    def wrapped(self, tier: Tier) -> Tier:
        return ThrottledTier(tier, bytes_per_s=1e9, latency_s=1e-5, queue_depth=4)


class TestNvme(DurableTierTests):
    def make(self, layout: Layout, slots: int, tmp_path: Path) -> Tier:
        return NvmeTier(
            [tmp_path],
            layout,
            capacity_bytes=capacity_for(slots, layout),
            namespace=bytes(32),
            min_free_bytes=0,
        )

    reopen = make

    def damage(self, tier: Tier, slot: int, byte: int) -> None:
        assert isinstance(tier, NvmeTier)
        drive, record_at = tier.drives.place(slot)
        with tier.drives.paths[drive].open("r+b") as file:
            at = record_at + HEADER_BYTES + byte
            file.seek(at)
            (old,) = file.read(1)
            file.seek(at)
            file.write(bytes([old ^ 0x10]))


class OfCodecs(TierTests):
    """Lossy: a value may come back as far off as the format allows."""

    __test__ = False
    lossless = False
    layouts = (Layout(4096), Layout(64 * 1024, parts=32), Layout(7 * 256, parts=7))
    form: Format
    group: int

    def make(self, layout: Layout, slots: int, tmp_path: Path) -> Tier:  # noqa: ARG002  no files
        codec = Codec(layout=layout, format=self.form, group=self.group)
        return CodecTier(self.inner(codec.encoded, slots), codec)

    def inner(self, layout: Layout, slots: int) -> Tier:
        return DramTier(layout, slots)

    def damage(self, tier: Tier, slot: int, byte: int) -> None:
        assert isinstance(tier, CodecTier)
        view = tier.inner.view(slot)
        assert view is not None
        view[byte * len(view) // tier.layout.block_bytes] ^= 0x10

    def payload(self, layout: Layout, seed: int) -> Bytes:
        values = torch.randn(layout.block_bytes // 2, generator=torch.Generator().manual_seed(seed))
        payload: Bytes = values.to(torch.bfloat16).view(torch.uint8).numpy()
        return payload

    def same(self, wrote: Bytes, got: Bytes) -> bool:
        sent, back = (self.values(each) for each in (wrote, got))
        error = np.abs(sent - back).max(axis=1)
        size, span = np.abs(sent).max(axis=1), np.ptp(sent, axis=1)
        # A rounding of the result to bf16 apart from what docs/kernels.md says of each format.
        step = {"fp8": size / 17, "int8": size / 254, "int4": span / 30}[self.form]
        return bool((error <= step + size / 200).all())

    def values(self, payload: Bytes) -> np.ndarray:
        values = torch.from_numpy(payload.copy()).view(torch.bfloat16).float()
        return values.view(-1, self.group).numpy()


class TestFp8(OfCodecs):
    __test__ = True
    form, group = "fp8", 128


class TestInt8(OfCodecs):
    __test__ = True
    form, group = "int8", 16


class TestInt4(OfCodecs):
    __test__ = True
    form, group = "int4", 32


class TestCodecAroundAThrottledTier(TestInt8):
    def inner(self, layout: Layout, slots: int) -> Tier:
        return ThrottledTier(DramTier(layout, slots), bytes_per_s=1e9)

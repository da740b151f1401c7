"""A store by its sizes: what most users need to know to have one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvbench.errors import UsageError
from kvbench.store.block import Layout
from kvbench.store.dram import DramTier
from kvbench.store.nvme import NvmeTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from kvbench.store.tier import Tier

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Sizes in bytes; 0, or no directory, leaves a tier out.

    `namespace` is the 32-byte digest of `kvbench.keys.Namespace`: a directory holds blocks of one.
    """

    layout: Layout
    namespace: bytes = bytes(32)
    hbm_bytes: int = 0
    device: str = "cuda"
    dram_bytes: int = 0
    numa_node: int | None = None
    require_locked: bool = False
    directories: Sequence[Path] = ()
    nvme_bytes: int | None = None  # None: as large as it is already
    engine: str = "posix"
    min_free_bytes: int = GIB
    options: Options = field(default_factory=Options)


def open_store(config: StoreConfig) -> TieredStore:
    """The store of that configuration; blocks in its directories are found again.

    Raises:
        UsageError: a tier is too small for one block, or there is no tier.
        KvbenchError: memory or directories cannot be had; see the tiers.
    """
    tiers: list[Tier] = []
    try:
        for build in (_hbm, _dram, _nvme):
            tier = build(config)
            if tier is not None:
                tiers.append(tier)
        return TieredStore(tiers, config.options)
    except BaseException:
        for tier in tiers:
            tier.close()
        raise


def _slots(name: str, size_bytes: int, layout: Layout) -> int:
    slots = size_bytes // layout.block_bytes
    if size_bytes and not slots:
        raise UsageError(
            f"{name} of {size_bytes} bytes holds no block of {layout.block_bytes} bytes: "
            "make it larger or leave it out"
        )
    return slots


def _hbm(config: StoreConfig) -> Tier | None:
    slots = _slots("GPU memory", config.hbm_bytes, config.layout)
    if not slots:
        return None
    from kvbench.store.hbm import HbmTier  # noqa: PLC0415  imports torch

    return HbmTier(config.layout, slots, device=config.device)


def _dram(config: StoreConfig) -> Tier | None:
    slots = _slots("host memory", config.dram_bytes, config.layout)
    if not slots:
        return None
    return DramTier(
        config.layout, slots, node=config.numa_node, require_locked=config.require_locked
    )


def _nvme(config: StoreConfig) -> Tier | None:
    if not config.directories:
        return None
    return NvmeTier(
        config.directories,
        config.layout,
        capacity_bytes=config.nvme_bytes,
        namespace=config.namespace,
        engine=config.engine,
        min_free_bytes=config.min_free_bytes,
    )

"""A store by its sizes: what most users need to know to have one.

Also what becomes of a drive that cannot be opened: is it the drive's fault, the store begins
without it; is it the user's, there is no store, and an error that says what to do.
"""

import contextlib
import errno
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from kvbench.errors import KvbenchError, TierUnavailableError, UsageError
from kvbench.store.absent import AbsentTier
from kvbench.store.block import Layout
from kvbench.store.dram import DramTier
from kvbench.store.identity import DATA, OtherStoreError
from kvbench.store.lock import DirectoryRefusedError
from kvbench.store.nvme import NvmeTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from kvbench.store.tier import Tier

GIB = 2**30
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)  # for what the user asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Sizes in bytes; 0, or no directory, leaves a tier out.

    `namespace` is the 32-byte digest of `kvbench.keys.Namespace`: a directory holds blocks of one.
    `require_drives` refuses to go on without drives that cannot be opened.
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
    require_drives: bool = False
    options: Options = field(default_factory=Options)


def open_store(config: StoreConfig) -> TieredStore:
    """The store of that configuration; blocks in its directories are found again.

    Drives that cannot be opened (gone, not mounted, read-only, EIO, no permission) leave a store
    with the other tiers: tier `nvme` is given up, the reason is in the stats and the log, and
    `unfence("nvme")` tries again.

    Raises:
        UsageError: a tier is too small for one block, or there is no tier; the directories are in
            use, or hold another store.
        TierUnavailableError: memory or an engine cannot be had, or the drives and nothing else.
        OSError: there is no room for the data files (ENOSPC).
    """
    tiers: list[Tier] = []
    try:
        for build in (_hbm, _dram, _nvme):
            tier = build(config)
            if tier is not None:
                tiers.append(tier)
        store = TieredStore(tiers, config.options)
    except BaseException:
        for tier in tiers:
            tier.close()
        raise
    if config.require_drives:
        _check_drives(store)
    return store


def _check_drives(store: TieredStore) -> None:
    found = store.stats().tiers.get(NvmeTier.name)
    if found is not None and found.fence is not None:
        store.close(flush=False)
        raise TierUnavailableError(f"the drives are required: {found.fence}")


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
    build = partial(
        NvmeTier,
        config.directories,
        config.layout,
        capacity_bytes=config.nvme_bytes,
        namespace=config.namespace,
        engine=config.engine,
        min_free_bytes=config.min_free_bytes,
    )
    try:
        return build()
    except (KvbenchError, OSError) as error:
        if not _is_the_drives(error, config.directories):
            raise
        return AbsentTier(NvmeTier.name, config.layout, str(error), build)


def _is_the_drives(error: Exception, directories: Sequence[Path]) -> bool:
    """Whether drives could not be opened for what is wrong with them, not with what was asked."""
    if isinstance(error, OSError):
        return error.errno not in NO_ROOM
    if isinstance(error, DirectoryRefusedError):
        return True
    return isinstance(error, TierUnavailableError | OtherStoreError) and _is_gone(directories)


def _is_gone(directories: Sequence[Path]) -> bool:
    """Whether a directory is not there, or has nothing of a store that others have: not mounted."""
    with contextlib.suppress(OSError):  # who cannot even be asked is gone
        there = [(Path(each) / DATA).exists() for each in directories]
        return not all(Path(each).is_dir() for each in directories) or len(set(there)) > 1
    return True

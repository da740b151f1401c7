"""A drive that cannot be opened costs its own tier and no more; the user's mistakes are told."""

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kvbench.errors import KvbenchError, TierUnavailableError, UsageError
from kvbench.policy.lru import LRU
from kvbench.policy.tenants import TenantPolicy
from kvbench.store.absent import AbsentTier
from kvbench.store.block import Layout
from kvbench.store.config import StoreConfig, open_store
from kvbench.store.dram import DramTier
from kvbench.store.drives import LOCK, capacity_for
from kvbench.store.events import Kind
from kvbench.store.faults import Fail, Fault, FaultyTier
from kvbench.store.identity import DATA, OtherStoreError
from kvbench.store.index_file import INDEX
from kvbench.store.lock import StoreInUseError
from kvbench.store.nvme import NvmeTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from tests.store.blocks import BUSY, LAYOUT, MISS, NAMESPACE, OK, WAIT_S, drive, get, put
from tests.store.consistency import assert_consistent
from tests.store.faulty import EIGHT, OTHERS

if TYPE_CHECKING:
    from kvbench.store.tier import Tier

SLOTS = 32


def config(*folders: Path, **changes: Any) -> StoreConfig:
    settings: dict[str, Any] = {
        "layout": LAYOUT,
        "namespace": NAMESPACE,
        "dram_bytes": 8 * LAYOUT.block_bytes,
        "directories": folders,
        "nvme_bytes": capacity_for(SLOTS, LAYOUT, len(folders)),
        "min_free_bytes": 0,
    }
    return StoreConfig(**{**settings, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store with EIGHT on its drive, closed."""
    (tmp_path / "drive").mkdir()
    with open_store(config(tmp_path / "drive")) as store:
        put(store, EIGHT)
    return tmp_path / "drive"


def refuse(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    """Every opening of a file of this name fails from now on."""
    real = os.open

    def opened(path: Any, flags: int, *more: Any, **others: Any) -> int:
        if os.fspath(path).endswith(name):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", opened)


def vanish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("elsewhere"))
    monkeypatch.chdir(folder.parent)  # nothing to undo


def come_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if folder.is_file():
        folder.unlink()
    elsewhere = folder.with_name("elsewhere")
    if elsewhere.exists():
        elsewhere.rename(folder)


def replaced_by_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vanish(folder, monkeypatch)
    folder.write_text("no directory")


Harm = Callable[[Path, pytest.MonkeyPatch], None]


def opening(name: str, number: int) -> Harm:
    return lambda _, monkeypatch: refuse(monkeypatch, name, number)


def statting(number: int) -> Harm:
    def harm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = os.stat

        def stat(path: Any, *more: Any, **others: Any) -> os.stat_result:
            if not isinstance(path, int) and Path(os.fspath(path)) == folder:
                raise OSError(number, os.strerror(number), os.fspath(path))
            return real(path, *more, **others)

        monkeypatch.setattr(os, "stat", stat)

    return harm


HARMS: dict[str, tuple[Harm, str]] = {
    "gone": (vanish, "is not a directory"),
    "a file": (replaced_by_a_file, "is not a directory"),
    "EIO at the directory": (statting(errno.EIO), "Input/output error"),
    "read-only": (opening(LOCK, errno.EROFS), "Read-only file system"),
    "no permission": (opening(LOCK, errno.EACCES), "Permission denied"),
    "EIO at its data": (opening(DATA, errno.EIO), "Input/output error"),
    "ENXIO at its data": (opening(DATA, errno.ENXIO), "No such device or address"),
}
each_harm = pytest.mark.parametrize(("harm", "said"), HARMS.values(), ids=HARMS)


@each_harm
def test_a_drive_that_cannot_be_opened_leaves_a_store_with_the_other_tiers(
    folder: Path,
    harm: Harm,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    harm(folder, monkeypatch)
    with open_store(config(folder)) as store:
        tier = store.stats().tiers["nvme"]
        assert tier.fence is not None
        assert tier.fence.startswith("it could not be opened: ")
        assert said in tier.fence
        assert (tier.slots, tier.facts["memory"]) == (0, "absent")
        errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
        assert errors == [f"tier nvme is not used any more: {tier.fence}"]
        assert store.events().events[0].kind is Kind.FENCED
        assert put(store, OTHERS) == [OK] * 8
        assert get(store, OTHERS) == [OK] * 8
        assert get(store, EIGHT) == [MISS] * 8
        assert len(store.lookup(EIGHT)) == 0
        flushed = store.flush(OTHERS)
        assert flushed.result(WAIT_S) == [BUSY] * 8
        assert said in flushed.reasons[0]
        assert_consistent(store)
    assert len(caplog.records) == 1, "closing has nothing to add"


@each_harm
def test_a_drive_that_can_be_opened_again_is_used_again_with_its_blocks(
    folder: Path, harm: Harm, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm(folder, monkeypatch)
    with open_store(config(folder)) as store:
        put(store, OTHERS)
        with pytest.raises((KvbenchError, OSError), match=said):
            store.unfence("nvme")
        assert store.stats().tiers["nvme"].fence is not None
        assert get(store, OTHERS) == [OK] * 8
        come_back(folder, monkeypatch)
        store.unfence("nvme")
        tier = store.stats().tiers["nvme"]
        assert (tier.fence, tier.slots, tier.used) == (None, SLOTS, 8)
        with store.lookup(EIGHT, owner="a test") as lease:
            assert lease.tiers == ("nvme",) * 8
        assert store.flush(OTHERS).result(WAIT_S) == [OK] * 8
        assert get(store, EIGHT) == [OK] * 8
        assert_consistent(store)
    with open_store(config(folder, dram_bytes=0)) as store:
        assert get(store, [*EIGHT, *OTHERS]) == [OK] * 16


def test_blocks_that_are_found_again_are_evicted_parents_last_and_owned_by_their_tenants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "drive"
    folder.mkdir()
    small = partial(config, folder, nvme_bytes=capacity_for(8, LAYOUT))
    with open_store(small()) as store:
        put(store, EIGHT, tenant="a")
    vanish(folder, monkeypatch)
    watched: list[str] = []

    def watch(tier: str, policy: TenantPolicy[bytes]) -> TenantPolicy[bytes]:
        watched.append(tier)
        return policy

    options = Options(
        policy=LRU,
        quotas={"nvme": {"a": LAYOUT.block_bytes}},
        watched=watch,
        low_water=1.0,
    )
    with open_store(small(options=options)) as store:
        come_back(folder, monkeypatch)
        store.unfence("nvme")
        use = store.stats().tenants["a"]["nvme"]
        assert (use.blocks, use.quota_bytes) == (8, LAYOUT.block_bytes)
        assert put(store, OTHERS[:2]) == [OK] * 2
        assert store.flush(OTHERS[:2]).result(WAIT_S) == [OK] * 2
        with store.lookup(EIGHT) as lease:
            assert len(lease) == 6, "the last two of the prefix went"
        assert_consistent(store)
    assert watched.count("nvme") == 2


def test_a_drive_of_several_that_is_not_mounted_leaves_a_store_with_the_other_tiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "drive", tmp_path / "other"]
    for each in folders:
        each.mkdir()
    with open_store(config(*folders)) as store:
        put(store, EIGHT)
    vanish(folders[0], monkeypatch)
    folders[0].mkdir()  # what it is mounted on
    with open_store(config(*folders)) as store:
        assert "is its drive mounted?" in (store.stats().tiers["nvme"].fence or "")
        assert put(store, OTHERS) == [OK] * 8
        (folders[0] / LOCK).unlink()
        folders[0].rmdir()
        come_back(folders[0], monkeypatch)
        store.unfence("nvme")
        assert get(store, EIGHT) == [OK] * 8


def test_drives_that_are_not_read_as_they_are_opened_are_asked_again(tmp_path: Path) -> None:
    folder = tmp_path / "drive"
    with TieredStore([drive(folder, SLOTS)]) as store:
        put(store, EIGHT)
    tier = FaultyTier(drive(folder, SLOTS))
    tier.add(Fault(operation="recover", kind=Fail(errno.EIO), times=2))
    with TieredStore([DramTier(LAYOUT, 8), tier]) as store:
        assert "Input/output error" in (store.stats().tiers["nvme"].fence or "")
        assert get(store, EIGHT) == [MISS] * 8
        assert put(store, OTHERS) == [OK] * 8
        with pytest.raises(OSError, match="Input/output error"):
            store.unfence("nvme")
        store.unfence("nvme")
        assert get(store, EIGHT) == [OK] * 8
        assert_consistent(store)


def test_without_any_tier_there_is_no_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vanish(folder, monkeypatch)
    with pytest.raises(TierUnavailableError, match=r"^no tier of this store .*not a directory"):
        open_store(config(folder, dram_bytes=0))
    tier = FaultyTier(drive(tmp_path / "new", SLOTS))
    tier.add(Fault(operation="recover", kind=Fail(errno.EIO)))
    with pytest.raises(TierUnavailableError, match=r"nvme: .*Input/output error"):
        TieredStore([tier])
    tier.close()


def test_drives_that_are_required_are_an_error_if_they_cannot_be_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(config(folder, require_drives=True)) as store:
        assert get(store, EIGHT) == [OK] * 8
    vanish(folder, monkeypatch)
    with pytest.raises(TierUnavailableError, match=r"the drives are required: .*not a directory"):
        open_store(config(folder, require_drives=True))


# ---------------------------------------------------------------- the user's own


def test_what_the_user_has_to_change_is_an_error_and_no_absent_drive(
    folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for settings, error, said in (
        (config(folder, namespace=bytes(32)), OtherStoreError, "holds another store: namespace"),
        (
            config(folder, layout=Layout(LAYOUT.block_bytes, 2)),
            OtherStoreError,
            "4 parts a block instead of 2",
        ),
        (
            config(folder, layout=Layout(32_768, 4)),
            OtherStoreError,
            "16KiB instead of 32KiB",
        ),
        (config(empty, nvme_bytes=None), UsageError, "holds no store: give a capacity"),
        (config(folder, nvme_bytes=4096), UsageError, "holds no block"),
        (config(folder, nvme_bytes=capacity_for(9, LAYOUT)), UsageError, "store compact"),
        (config(folder, engine="floppy"), UsageError, "engine 'floppy'"),
        (config(tmp_path / "gone", engine="floppy"), UsageError, "engine 'floppy'"),
        (config(folder, folder), UsageError, "several different ones"),
    ):
        with pytest.raises(error, match=said) as caught:
            open_store(settings)
        assert "\n" not in str(caught.value)
    with open_store(config(folder)) as store:
        assert get(store, EIGHT) == [OK] * 8, "none of that harmed it"


def test_a_store_that_is_in_use_is_an_error_and_no_absent_drive(folder: Path) -> None:
    with open_store(config(folder)) as store:
        with pytest.raises(StoreInUseError, match="is in use by process"):
            open_store(config(folder))
        assert get(store, EIGHT) == [OK] * 8


def test_too_little_room_is_an_error_and_no_absent_drive(tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    with pytest.raises(OSError, match="are to stay free: make room") as caught:
        open_store(config(tmp_path / "drive", min_free_bytes=2**60))
    assert caught.value.errno == errno.ENOSPC


def test_a_drive_that_came_back_as_another_store_stays_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanish(folder, monkeypatch)
    with open_store(config(folder)) as store:
        folder.mkdir()
        open_store(config(folder, namespace=bytes(32))).close()
        with pytest.raises(OtherStoreError, match="holds another store"):
            store.unfence("nvme")
        with pytest.raises(UsageError, match="no tier 'tape'"):
            store.unfence("tape")
        assert store.stats().tiers["nvme"].fence is not None
        assert put(store, EIGHT) == [OK] * 8
    open_store(config(folder, namespace=bytes(32))).close()  # nobody holds its lock


def test_a_drive_that_is_damaged_as_it_is_found_again_is_let_go_and_can_be_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanish(folder, monkeypatch)
    with open_store(config(folder)) as store:
        come_back(folder, monkeypatch)
        (folder / INDEX).unlink()

        def refused(*_: object) -> None:
            raise OSError(errno.EIO, "the platter is scratched")

        with monkeypatch.context() as patch:
            patch.setattr("kvbench.store.nvme.scan", refused)
            with pytest.raises(OSError, match="scratched"):
                store.unfence("nvme")
        store.unfence("nvme")
        assert get(store, EIGHT) == [OK] * 8


def test_a_store_that_is_closed_opens_no_drive(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanish(folder, monkeypatch)
    store = open_store(config(folder))
    store.close()
    come_back(folder, monkeypatch)
    with pytest.raises(UsageError, match="the store is closed"):
        store.unfence("nvme")
    drive(folder, SLOTS).close()  # nobody holds its lock


# ---------------------------------------------------------------- the tier in its place


def test_an_absent_tier_answers_every_call_with_an_error() -> None:
    tier: Tier = AbsentTier(NvmeTier.name, LAYOUT, "unplugged", lambda: DramTier(LAYOUT, 1))
    for error in (*tier.read([0, 1], []), *tier.write([0], [], [])):
        assert isinstance(error, OSError)
        assert (error.errno, error.filename) == (errno.ENODEV, "unplugged")
    for call in (tier.flush, lambda: tier.forget([0]), lambda: tier.quarantine([0], "bad")):
        with pytest.raises(OSError, match="unplugged"):
            call()
    with pytest.raises(TierUnavailableError, match="it could not be opened: unplugged"):
        tier.recover()
    assert tier.view(0) is None
    tier.close()

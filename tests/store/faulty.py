"""Stores over a drive that does as it is told, for the tests of faults."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from kvbench.store.dram import DramTier
from kvbench.store.faults import Fault, FaultyTier, Operation, Stuck
from kvbench.store.options import Options
from kvbench.store.store import TieredStore
from tests.store.blocks import LAYOUT, OK, WAIT_S, drive, keys_of, put

EIGHT = keys_of(8)
OTHERS = keys_of(8, prefix=1)


def faulty(
    folder: Path, *, dram: int = 8, nvme: int = 32, options: Options | None = None
) -> tuple[TieredStore, FaultyTier]:
    """Memory over a drive that does as it is told."""
    tier = FaultyTier(drive(folder, nvme))
    return TieredStore([DramTier(LAYOUT, dram), tier], options), tier


def on_the_drive_alone(store: TieredStore) -> None:
    """EIGHT go to the drive, and OTHERS take their places in memory."""
    assert put(store, EIGHT) == [OK] * 8
    assert store.flush().result(WAIT_S) == [OK] * 8
    assert put(store, OTHERS) == [OK] * 8
    with store.lookup(EIGHT) as lease:
        assert lease.tiers == ("nvme",) * 8


def hang(tier: FaultyTier, operation: Operation) -> Stuck:
    stuck = Stuck()
    tier.add(Fault(operation=operation, kind=stuck))
    return stuck


def wait_for(happened: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < give_up_s, "it never happened"
        threading.Event().wait(0.005)


def wait_for_fence(store: TieredStore) -> str:
    wait_for(lambda: store.stats().tiers["nvme"].fence is not None)
    return store.stats().tiers["nvme"].fence or ""


def fill(store: TieredStore, prefix: int, count: int = 8) -> list[bytes]:
    keys = keys_of(count, prefix=prefix)
    assert put(store, keys) == [OK] * count
    return keys

"""Mixed load on a small store for minutes, and whether it stands that.

Many threads put, get, lease (and forget), prefetch, flush and cancel, with deadlines and tenants
over their quotas, four times as many blocks as memory and drive hold together. Looked at:

- contents: every block that is answered OK holds its key's one payload, and rows that are the
  caller's again do not change;
- deadlock: a thread without an answer for WATCHDOG_S is one; all stacks are then printed;
- growth: in the last quarter of the time the median of the resident memory may not be more than
  GROWTH_BYTES, nor the most descriptors more at all, than in the second (the first is warm-up);
- decisions: what every tier's policy was asked is asked of a fresh one, which must answer the same;
- rest: when the load ends no slot is left writing, evicting or leased, no queue holds anything.

`python -m kvbench.testing.soak [--seconds N] [--threads N] [--dir DIR] [--seed N]`; exit status 1
if anything is wrong. CPU and drive are busy for that time.
"""

import argparse
import faulthandler
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import psutil

from kvbench.policy.lru import LRU
from kvbench.policy.tenants import TenantPolicy, Tenants
from kvbench.store.block import Bytes, Status
from kvbench.store.dram import DramTier
from kvbench.store.drives import capacity_for
from kvbench.store.metrics import StoreStats
from kvbench.store.nvme import NvmeTier
from kvbench.store.options import Options
from kvbench.store.request import Request
from kvbench.store.store import TieredStore
from kvbench.testing.crash import LAYOUT, NAMESPACE, key_of, payload_of
from kvbench.testing.decisions import RecordingPolicy, replay

MEMORY_SLOTS, DRIVE_SLOTS = 96, 416
LENGTH = 8  # blocks of a prefix
PREFIXES = 4 * (MEMORY_SLOTS + DRIVE_SLOTS) // LENGTH
BLOCK = LAYOUT.block_bytes
QUOTAS = {
    "dram": {"small": 12 * BLOCK, "middle": 40 * BLOCK},
    "nvme": {"small": 40 * BLOCK, "middle": 200 * BLOCK},
}
TENANTS = ("small", "middle", "large")
ANSWER_S = 60.0
WATCHDOG_S = 30.0
REST_S = 10.0
SAMPLE_S = 0.2
GROWTH_BYTES = 16 * 2**20
FORGOTTEN_S = 0.5  # leases that nobody releases
USED = 0xAB  # what a caller writes into rows that are his again
MIB = 2**20


@dataclass(slots=True)
class Findings:
    """What was done and what was wrong."""

    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter[str])  # by call and status
    verified: int = 0
    decisions: int = 0
    resident_bytes: tuple[float, float] = (0.0, 0.0)  # second quarter, last quarter
    descriptors: tuple[int, int] = (0, 0)
    faults: list[str] = field(default_factory=list[str])


class Watched:
    """The policies of a store, and beside each a fresh one that is asked the same later."""

    def __init__(self) -> None:
        self._pairs: list[tuple[str, RecordingPolicy[bytes], Tenants[bytes]]] = []
        self.compared = 0

    def __call__(self, tier: str, policy: TenantPolicy[bytes]) -> TenantPolicy[bytes]:
        """For `Options.watched`. Raises TypeError: it is not a policy of this store's kind."""
        if not isinstance(policy, Tenants):
            raise TypeError(f"the policy of {tier} is {type(policy).__name__}, expected Tenants")
        blocks = {tenant: quota // BLOCK for tenant, quota in QUOTAS[tier].items()}
        recording = RecordingPolicy[bytes](cast("Tenants[bytes]", policy))
        self._pairs.append((tier, recording, Tenants[bytes](LRU, blocks)))
        return recording

    def compare(self) -> str | None:
        """Ask the fresh ones what was asked since; the first difference. By one thread only."""
        for tier, recording, fresh in self._pairs:
            part = recording.record[:]  # what comes meanwhile is left for the next time
            del recording.record[: len(part)]
            self.compared += len(part)
            difference = replay(part, fresh)
            if difference is not None:
                return f"the policy of {tier}, replayed: {difference}"
        return None


class Client:
    """One thread of the load."""

    def __init__(self, store: TieredStore, seed: str, stop: threading.Event) -> None:
        self.statuses: Counter[str] = Counter()
        self.verified = 0
        self.faults: list[str] = []
        self.since_s = time.monotonic()  # when it began to wait for its last answer
        self._store = store
        self._rng = random.Random(seed)
        self._stop = stop
        self._rows = np.full((LENGTH, BLOCK), USED, np.uint8)
        self.thread = threading.Thread(target=self._run, name=f"client {seed}", daemon=True)

    def _run(self) -> None:
        calls = (self._put, self._get, self._leased, self._prefetch, self._flush, self._cancelled)
        weights = (30, 30, 20, 8, 4, 8)
        try:
            while not self._stop.is_set() and not self.faults:
                self.since_s = time.monotonic()
                first = int(PREFIXES * self._rng.random() ** 2) * LENGTH  # some are hot
                numbers = range(first, first + self._rng.randint(1, LENGTH))
                (call,) = self._rng.choices(calls, weights)
                call(numbers)
        except TimeoutError:
            self.faults.append(f"{self.thread.name}: no answer for {ANSWER_S:.0f} s")
        finally:
            self.since_s = float("inf")

    def _put(self, numbers: range) -> None:
        rows = np.stack([payload_of(number) for number in numbers])
        tenant = TENANTS[numbers[0] // LENGTH % len(TENANTS)]
        request = self._store.put(
            _keys(numbers), rows, tenant=tenant, deadline_s=self._rng.choice((None, None, 0.01))
        )
        self._note(request)
        rows[:] = USED  # or the store would store this, were it to copy late

    def _get(self, numbers: range) -> None:
        self._read(numbers, _keys(numbers), by_layer=self._rng.random() < 0.3)  # noqa: PLR2004

    def _leased(self, numbers: range) -> None:
        forgotten = self._rng.random() < 0.2  # noqa: PLR2004  one in five
        ttl_s = FORGOTTEN_S if forgotten else None
        lease = self._store.lookup(_keys(numbers), owner=self.thread.name, ttl_s=ttl_s)
        self._read(numbers[: len(lease)], lease.keys, by_layer=self._rng.random() < 0.5)  # noqa: PLR2004
        if not forgotten:
            lease.release()

    def _prefetch(self, numbers: range) -> None:
        self._note(self._store.prefetch(_keys(numbers)))

    def _flush(self, numbers: range) -> None:
        self._note(self._store.flush(_keys(numbers), deadline_s=self._rng.choice((None, 1.0))))

    def _cancelled(self, numbers: range) -> None:
        request = self._store.get_into(_keys(numbers), self._rows[: len(numbers)])
        self._store.cancel(request)
        self._judge(numbers, self._note(request))

    def _read(self, numbers: range, keys: Sequence[bytes], *, by_layer: bool) -> None:
        deadline_s = self._rng.choice((None, 0.0, 0.005, 1.0))
        rows = self._rows[: len(numbers)]
        request = self._store.get_into(keys, rows, deadline_s=deadline_s, by_layer=by_layer)
        self._judge(numbers, self._note(request))

    def _note(self, request: Request) -> list[Status]:
        statuses = request.result(ANSWER_S)
        self.statuses.update(f"{request.kind} {status.name}" for status in statuses)
        return statuses

    def _judge(self, numbers: range, statuses: Sequence[Status]) -> None:
        """Check what is OK, and that none of the rows changes when they are the caller's again."""
        for number, row, status in zip(numbers, self._rows, statuses, strict=False):
            if status is Status.OK:
                self.verified += 1
                if not np.array_equal(row, payload_of(number)):
                    self.faults.append(f"wrong bytes of block {number}")
            if status is Status.CORRUPT:
                self.faults.append(f"block {number} is corrupt on a drive that works")
        self._rows[:] = USED
        self._look_at(self._rows)

    def _look_at(self, rows: Bytes) -> None:
        self._stop.wait(self._rng.random() * 0.002)
        if (rows != USED).any():
            self.faults.append("rows that were the caller's again have changed")


def _keys(numbers: Sequence[int]) -> list[bytes]:
    return [key_of(number) for number in numbers]


def soak(folder: Path, *, seconds: float, threads: int, seed: int = 1) -> Findings:
    """Load a store in `folder` for so long; what was found."""
    findings = Findings(seconds=seconds)
    watched = Watched()
    tier = NvmeTier(
        [folder],
        LAYOUT,
        capacity_bytes=capacity_for(DRIVE_SLOTS, LAYOUT),
        namespace=NAMESPACE,
        min_free_bytes=0,
    )
    options = Options(quotas=QUOTAS, watched=watched)
    stop = threading.Event()
    with TieredStore([DramTier(LAYOUT, MEMORY_SLOTS), tier], options) as store:
        clients = [Client(store, f"{seed}/{at}", stop) for at in range(threads)]
        for client in clients:
            client.thread.start()
        _watch(clients, watched, findings)
        stop.set()
        for client in clients:
            client.thread.join(ANSWER_S)
            findings.statuses += client.statuses
            findings.verified += client.verified
            findings.faults += client.faults
        findings.faults += _at_rest(store)
        findings.faults += [each for each in [watched.compare()] if each]
    findings.decisions = watched.compared
    return findings


def _watch(clients: Sequence[Client], watched: Watched, findings: Findings) -> None:
    """Until the time is over or something is wrong: memory, descriptors, deadlock, decisions."""
    process = psutil.Process()
    start_s = time.monotonic()
    samples: list[tuple[float, int, int]] = []
    while (now_s := time.monotonic()) - start_s < findings.seconds:
        share = (now_s - start_s) / findings.seconds
        samples.append((share, process.memory_info().rss, process.num_fds()))
        late = [each for each in clients if now_s - each.since_s > WATCHDOG_S]
        if late:
            names = ", ".join(each.thread.name for each in late)
            findings.faults.append(f"no answer for {WATCHDOG_S:.0f} s: {names}")
            faulthandler.dump_traceback(all_threads=True)
        difference = watched.compare()
        if difference is not None:
            findings.faults.append(difference)
        if findings.faults or any(client.faults for client in clients):
            return
        threading.Event().wait(SAMPLE_S)
    _judge_growth([each for each in samples if 0.25 <= each[0] < 0.5], samples, findings)  # noqa: PLR2004


def _judge_growth(
    early: Sequence[tuple[float, int, int]],
    samples: Sequence[tuple[float, int, int]],
    findings: Findings,
) -> None:
    late = [each for each in samples if each[0] >= 0.75]  # noqa: PLR2004  the last quarter
    before, after = (statistics.median(rss for _, rss, _ in part) for part in (early, late))
    findings.resident_bytes = (before, after)
    findings.descriptors = (max(n for _, _, n in early), max(n for _, _, n in late))
    if after - before > GROWTH_BYTES:
        findings.faults.append(
            f"memory grew from {before / MIB:.1f} to {after / MIB:.1f} MiB: "
            f"at most {GROWTH_BYTES // MIB} more are allowed"
        )
    if findings.descriptors[1] > findings.descriptors[0]:
        findings.faults.append("descriptors grew from {} to {}".format(*findings.descriptors))


def _at_rest(store: TieredStore) -> list[str]:
    """What is left that should not be, once nothing is asked for any more."""
    give_up_s = time.monotonic() + REST_S
    while (left := _left(store.stats())) and time.monotonic() < give_up_s:
        threading.Event().wait(0.05)
    return [f"{REST_S:.0f} s after the load ended: {each}" for each in left]


def _left(stats: StoreStats) -> list[str]:
    left = [f"queue {name} holds {each.depth}" for name, each in stats.queues.items() if each.depth]
    for name, tier in stats.tiers.items():
        left += [
            f"{name} has {tier.states[state]} slots {state}"
            for state in ("WRITING", "EVICTING", "LEASED", "DOOMED", "QUARANTINED")
            if tier.states[state]
        ]
        blocks = sum(each[name].blocks for each in stats.tenants.values() if name in each)
        if blocks != tier.used:
            left.append(f"tenants have {blocks} blocks in {name}, which holds {tier.used}")
        if tier.fence is not None:
            left.append(f"{name} was given up: {tier.fence}")
    if stats.leases:
        left.append(f"{stats.leases} leases are out")
    return left


def page(findings: Findings) -> str:
    """The findings on a page."""
    done = sum(findings.statuses.values())
    rate = done / findings.seconds
    before, after = findings.resident_bytes
    lines = [
        f"{findings.seconds:.0f} s of load: {done} blocks asked for ({rate:.0f} a second), "
        f"{findings.verified} read and verified",
        f"resident memory {before / MIB:.1f} MiB in the second quarter, {after / MIB:.1f} MiB in "
        f"the last; descriptors {findings.descriptors[0]} and {findings.descriptors[1]}",
        f"{findings.decisions} calls of policies replayed",
    ]
    by_call: dict[str, list[str]] = {}
    for name, number in sorted(findings.statuses.items()):
        call, status = name.split(" ")
        by_call.setdefault(call, []).append(f"{number} {status}")
    lines += [f"  {call:9}{', '.join(parts)}" for call, parts in by_call.items()]
    lines += [f"FAULT: {fault}" for fault in findings.faults[:20]] or ["nothing wrong"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """The command; see the head of this file."""
    parser = argparse.ArgumentParser(description="load a store for minutes and see that it stands")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--dir", type=Path, help="where; default: a temporary directory")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        findings = soak(
            Path(made), seconds=options.seconds, threads=options.threads, seed=options.seed
        )
    sys.stdout.write(page(findings))
    return int(bool(findings.faults))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

"""Blocks of kvbench's peers against iperf3, Redis, NIXL alone and Mooncake; ratios, interleaved.

    python -m benchmarks.peer_against_others.compare [--sizes 65536 1048576] [--rounds 9]

Run it from the root of the repository; README.md says what is equal and what is not. The work is
that of the suite `peer`: the same bodies, their turns taken one after the other in each round.
Exit status 1: a bar was missed, or somebody who is installed has no figures.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvbench.errors import KvbenchError
from kvbench.geometry import load_geometry
from kvbench.machine import Machine, probe_machine
from kvbench.measure.body import Context
from kvbench.measure.suite import Operation, Plan, Value
from kvbench.units import KIB, MIB, exact_bytes
from kvbench_suites.peer import (
    BATCH,
    GET,
    IPERF3,
    MOONCAKE_READ,
    NIXL_READ,
    PYTHON_MOONCAKE,
    REDIS_GET,
)
from kvbench_suites.peer_baselines import RedisGet, free_port
from kvbench_suites.peer_bodies import BlockBody, Get
from kvbench_suites.peer_one_sided import MooncakeRead, NixlRead

SIZES = (64 * KIB, MIB, 4 * MIB)
TURN_BYTES = 256 * MIB
LEAST_REQUESTS = 2
STREAM = "iperf3"
OURS, ONE = "tcp", "tcp, 1 stream"
BARS = (
    *(
        (tcp, other, bar)
        for tcp in (OURS, ONE)
        for other, bar in ((STREAM, 0.9), ("redis", 1.5), ("mooncake", 2.0))
    ),
    ("nixl", "nixl alone", 0.9),
    ("shm", OURS, 2.0),
    ("shm", ONE, 2.0),
)
CONTESTANTS: dict[str, tuple[type[BlockBody], Operation, dict[str, Value]]] = {
    OURS: (Get, GET, {"transport": "tcp", "streams": 2}),  # the default
    ONE: (Get, GET, {"transport": "tcp", "streams": 1}),
    "shm": (Get, GET, {"transport": "shm", "streams": 1}),
    "nixl": (Get, GET, {"transport": "nixl", "streams": 1}),
    "redis": (RedisGet, REDIS_GET, {}),
    "nixl alone": (NixlRead, NIXL_READ, {}),
    "mooncake": (MooncakeRead, MOONCAKE_READ, {}),
}


@dataclass(slots=True)
class Entry:
    """One contestant at one block size: bytes a second of each round, or why there are none."""

    name: str
    reason: str | None = None
    rates: list[float] = field(default_factory=list[float])
    body: BlockBody | None = None
    pids: list[int] = field(default_factory=list[int])  # processes that work for it
    path: str | None = None


@contextlib.contextmanager
def contestants(block_bytes: int, machine: Machine, scratch: Path) -> Iterator[list[Entry]]:
    """All of them, ready and standing still."""
    entries: list[Entry] = []
    try:
        for name, (kind, operation, params) in CONTESTANTS.items():
            case = operation.case({"block_bytes": block_bytes, "batch": BATCH, **params})
            entry = Entry(name, case.unmet(machine))
            entries.append(entry)
            if entry.reason is not None:
                entry.reason = f"skipped: {entry.reason}"
                continue
            before = set(children())
            entry.body = kind()
            context = Context(
                params=dict(case.params),
                geometry=load_geometry("llama-3.1-8b"),
                machine=machine,
                plan=Plan(data_bytes=2 * TURN_BYTES),
                seed=1,
                process=0,
                scratch=scratch,
            )
            try:
                entry.body.set_up(context)
                entry.body.operate(0, 0)
            except (KvbenchError, OSError) as error:
                entry.reason = f"does not start: {error}"
            entry.pids = sorted(set(children()) - before)
            send(entry.pids, signal.SIGSTOP)
        reason = IPERF3.unmet({}, machine)
        entries.append(Entry(STREAM, reason and f"skipped: {reason}"))
        yield entries
    finally:
        for entry in entries:
            send(entry.pids, signal.SIGCONT)
            if entry.body is not None:
                entry.body.tear_down()


def children() -> list[int]:
    """Processes that this one has started."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in (task / "children").read_text().split()]
    return found


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """A signal to each; who is gone is gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def take_turn(entry: Entry, block_bytes: int, number: int) -> None:
    """One round of one contestant."""
    requests = max(LEAST_REQUESTS, TURN_BYTES // (BATCH * block_bytes))
    size_bytes = requests * BATCH * block_bytes
    if entry.name == STREAM:
        entry.rates.append(iperf3_bytes_per_s(size_bytes))
        return
    body = entry.body
    assert body is not None
    send(entry.pids, signal.SIGCONT)
    try:
        body.operate(0, number)  # the first is not timed
        start_s = time.perf_counter()
        for n in range(requests):
            body.operate(0, number + n)
        entry.rates.append(size_bytes / (time.perf_counter() - start_s))
    finally:
        send(entry.pids, signal.SIGSTOP)


def iperf3_bytes_per_s(size_bytes: int) -> float:
    """What one stream receives a second, by iperf3's own count."""
    port = str(free_port())
    server = subprocess.Popen(
        ["iperf3", "-s", "-1", "-B", "127.0.0.1", "-p", port, "--forceflush"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            assert server.poll() is None, "iperf3 does not start"
        command = ["iperf3", "-c", "127.0.0.1", "-p", port, "-n", str(size_bytes), "-J"]
        told = subprocess.run(command, check=True, capture_output=True, text=True)
        said: dict[str, Any] = json.loads(told.stdout)
        return float(said["end"]["sum_received"]["bits_per_second"]) / 8
    finally:
        server.kill()
        server.wait()


def verify(entry: Entry) -> None:
    """Everything once more, compared whole: without it there are no figures."""
    body = entry.body
    if body is None or entry.reason is not None:
        return
    send(entry.pids, signal.SIGCONT)
    try:
        for n in range(body.blocks // BATCH):
            body.operate(0, n)
            body.check_rows(body.numbers(0, n), body.rows_of(0))
        entry.path = body.observed().path
    except KvbenchError as error:
        entry.reason = f"at the end: {error}"
    finally:
        send(entry.pids, signal.SIGSTOP)


def measure(
    block_bytes: int, rounds: int, machine: Machine, scratch: Path, only: Sequence[str]
) -> list[Entry]:
    """All rounds of one block size."""
    with contestants(block_bytes, machine, scratch) as entries:
        for entry in entries:
            if not any(part in entry.name for part in only):
                entry.reason = entry.reason or "skipped: not asked for"
        for number in range(rounds):
            print(f"{exact_bytes(block_bytes)}: round {number + 1}", file=sys.stderr, flush=True)
            for entry in random.sample(entries, len(entries)):
                if entry.reason is None:
                    try:
                        take_turn(entry, block_bytes, number)
                    except (KvbenchError, OSError, subprocess.CalledProcessError) as error:
                        entry.reason = f"round {number + 1}: {error}"
        for entry in entries:
            verify(entry)
    return entries


def ratios(entries: Sequence[Entry], ours: str, theirs: str) -> list[float]:
    """Round by round; none where one has no figures."""
    found = {entry.name: entry for entry in entries if entry.reason is None}
    if ours not in found or theirs not in found:
        return []
    pairs = zip(found[ours].rates, found[theirs].rates, strict=True)
    return [one / two for one, two in pairs]


def show(block_bytes: int, entries: Sequence[Entry]) -> bool:
    """Print the table of a size; whether all is as it has to be."""
    print(f"\n{exact_bytes(block_bytes)}, batches of {BATCH}")
    good = True
    for entry in entries:
        if entry.reason is not None:
            print(f"  {entry.name:16} {entry.reason}")
            good &= entry.reason.startswith("skipped")
            continue
        rates = [each / 1e9 for each in entry.rates]
        print(
            f"  {entry.name:16} {statistics.median(rates):6.2f} GB/s "
            f"({min(rates):.2f} to {max(rates):.2f})  {entry.path or ''}"
        )
    for ours, theirs, bar in BARS:
        found = ratios(entries, ours, theirs)
        if not found:
            continue
        met = statistics.median(found) >= bar
        good &= met
        print(
            f"  {ours} over {theirs}: {statistics.median(found):.2f} "
            f"({min(found):.2f} to {max(found):.2f}), bar {bar}: {'met' if met else 'MISSED'}"
        )
    return good


def main() -> int:
    """Measure every size, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of contestants")
    parser.add_argument("--python-mooncake", help=f"default: ${PYTHON_MOONCAKE}, else this one")
    parser.add_argument("--dir", type=Path, default=Path(), help="nothing is written there")
    parser.add_argument("--out", type=Path, help="all rounds as JSON")
    chosen = parser.parse_args()
    if chosen.python_mooncake:
        os.environ[PYTHON_MOONCAKE] = chosen.python_mooncake
    machine = probe_machine(chosen.dir)
    good, found = True, {}
    for block_bytes in chosen.sizes:
        entries = measure(block_bytes, chosen.rounds, machine, chosen.dir, chosen.only)
        good &= show(block_bytes, entries)
        sys.stdout.flush()
        found[block_bytes] = {
            entry.name: {"reason": entry.reason, "bytes_per_s": entry.rates} for entry in entries
        }
    if chosen.out is not None:
        chosen.out.write_text(json.dumps({"batch": BATCH, "sizes": found}, indent=2))
    return 0 if good else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # UCX may crash as a process ends

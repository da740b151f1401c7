"""Kills a store at random instants under load, damages its files, and looks what is left.

A child process works on a store and says through a pipe what it begins to put and what it has
flushed; it is killed by SIGKILL. Another child opens the store again and reads every key. Each
key has one payload, so every byte can be judged:

- wrong: a block was answered OK with other bytes;
- lost: a block whose flush had returned is not there (the drive is larger than all keys together);
- phantom: a block is there that nobody began to put.

`python -m kvbench.testing.crash [--kills N] [--damages N] [--dir DIR] [--seed N]`; exit status 1 if
any of these is not zero. A loss of power is not simulated: the kernel survives a SIGKILL.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kvbench.errors import KvbenchError
from kvbench.store.block import Bytes, Layout, Status
from kvbench.store.dram import DramTier
from kvbench.store.drives import capacity_for
from kvbench.store.nvme import NvmeTier
from kvbench.store.options import Options
from kvbench.store.store import TieredStore

LAYOUT = Layout(16_384, parts=2)
NAMESPACE = hashlib.sha256(b"kvbench.testing.crash").digest()
PREFIXES, LENGTH = 96, 8  # keys: so many prefixes of so many blocks
SLOTS = 1024  # more than all keys, so that nothing is evicted and everything flushed must be there
FEW_SLOTS = 256  # less than all keys: slots are used again and again
MEMORY_SLOTS = 128
THREADS = 8
LONGEST_LIFE_S = 0.4
WAIT_S = 60.0
PUT, FLUSHED = b"P", b"F"


@dataclass(slots=True)
class Findings:
    """What was found after kills or damages; only `wrong`, `lost` and `phantom` are faults."""

    rounds: int = 0
    read: int = 0
    flushed: int = 0
    wrong: int = 0
    lost: int = 0
    phantom: int = 0
    corrupt: int = 0  # answered CORRUPT, never served
    refused: int = 0  # the store did not open, with a clear error
    examples: list[str] = field(default_factory=list[str])

    @property
    def faults(self) -> int:
        """What must be zero."""
        return self.wrong + self.lost + self.phantom

    def line(self) -> str:
        """In words."""
        return (
            f"{self.rounds} rounds, {self.read} blocks read, {self.flushed} known to be flushed: "
            f"{self.wrong} wrong, {self.lost} lost, {self.phantom} phantom "
            f"({self.corrupt} answered CORRUPT, {self.refused} refused to open)"
        )


def key_of(number: int) -> bytes:
    """The key of a block of the universe."""
    return hashlib.sha256(number.to_bytes(4, "little")).digest()


def payload_of(number: int) -> Bytes:
    """Its payload: the only right one."""
    return np.random.default_rng(number).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)


def open_test_store(folder: Path, slots: int, *, demotion: bool = True) -> TieredStore:
    """The store that is killed; blocks go to the drive at their first put or at their second."""
    tier = NvmeTier(
        [folder],
        LAYOUT,
        capacity_bytes=capacity_for(slots, LAYOUT),
        namespace=NAMESPACE,
        min_free_bytes=0,
    )
    options = Options(demotion="always" if demotion else "second_touch")
    return TieredStore([DramTier(LAYOUT, MEMORY_SLOTS), tier], options)


def work(folder: Path, slots: int, seed: int, tell: int) -> None:
    """Put, get and flush until somebody kills this process."""
    store = open_test_store(folder, slots, demotion=bool(seed % 2))
    threads = [
        threading.Thread(target=_client, args=(store, random.Random(f"{seed}/{at}"), tell))
        for at in range(THREADS)
    ]
    os.write(tell, b"R" + bytes(4))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _client(store: TieredStore, rng: random.Random, tell: int) -> None:
    while True:
        first = rng.randrange(PREFIXES) * LENGTH
        numbers = range(first, first + rng.randint(1, LENGTH))
        keys = [key_of(number) for number in numbers]
        what = rng.random()
        if what < 0.5:  # noqa: PLR2004  half of what is done
            _say(tell, PUT, numbers)
            store.put(keys, np.stack([payload_of(number) for number in numbers])).result(WAIT_S)
        elif what < 0.8:  # noqa: PLR2004  three in ten
            rows = np.empty((len(keys), LAYOUT.block_bytes), np.uint8)
            store.get_into(keys, rows, deadline_s=0.05).result(WAIT_S)
        else:
            statuses = store.flush(keys).result(WAIT_S)
            done = [n for n, status in zip(numbers, statuses, strict=True) if status is Status.OK]
            _say(tell, FLUSHED, done)


def _say(tell: int, word: bytes, numbers: Sequence[int]) -> None:
    # One write below PIPE_BUF is whole or absent, whoever is killed.
    os.write(tell, b"".join(word + number.to_bytes(4, "little") for number in numbers))


def look(folder: Path, slots: int, tell: int) -> None:
    """Open the store, read every key, and say what each was: one byte a key."""
    with open_test_store(folder, slots) as store:
        keys = [key_of(number) for number in range(PREFIXES * LENGTH)]
        rows = np.empty((len(keys), LAYOUT.block_bytes), np.uint8)
        statuses = store.get_into(keys, rows).result(WAIT_S)
        said = bytearray()
        for number, (row, status) in enumerate(zip(rows, statuses, strict=True)):
            letter = {Status.OK: b"o", Status.CORRUPT: b"c"}.get(status, b"m")
            if status is Status.OK and not (row == payload_of(number)).all():
                letter = b"w"
            said += letter
    _write_all(tell, bytes(said))


def _write_all(tell: int, data: bytes) -> None:
    while data:
        data = data[os.write(tell, data) :]


def in_child(task: Callable[[int], None]) -> tuple[int, int]:
    """Run a task in a forked process, which gets the writing end of a pipe: pid and reading end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    status = 1
    try:
        os.close(reading)
        task(writing)
        status = 0
    except KvbenchError as error:
        _write_all(writing, b"!" + str(error).encode())
        status = 0
    finally:
        os._exit(status)


def _read_all(reading: int) -> bytes:
    with os.fdopen(reading, "rb") as pipe:
        return pipe.read()


def kill_round(folder: Path, slots: int, seed: int) -> tuple[set[int], set[int]]:
    """Let a child work and kill it: which keys it began to put, and which it had flushed."""
    pid, reading = in_child(lambda tell: work(folder, slots, seed, tell))
    said = bytearray()
    done = threading.Event()

    def listen() -> None:
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            while piece := pipe.read(65_536):
                said.extend(piece)
                done.set()
        done.set()

    listener = threading.Thread(target=listen)
    listener.start()
    done.wait(WAIT_S)
    # Small numbers too: many die while they open, recover or write their first blocks.
    time.sleep(random.Random(f"life {seed}").random() ** 2 * LONGEST_LIFE_S)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    listener.join()
    put: set[int] = set()
    flushed: set[int] = set()
    for word, number in _words(bytes(said)):
        if word in PUT + FLUSHED:
            (put if word in PUT else flushed).add(number)
    return put, flushed


def _words(said: bytes) -> Iterator[tuple[int, int]]:
    for at in range(0, len(said) - 4, 5):
        yield said[at], int.from_bytes(said[at + 1 : at + 5], "little")


def judge(findings: Findings, said: bytes, put: set[int], flushed: set[int]) -> None:
    """Count what a look has found."""
    findings.rounds += 1
    if said.startswith(b"!"):
        findings.refused += 1
        findings.examples.append(said[1:].decode())
        return
    if len(said) != PREFIXES * LENGTH:
        findings.wrong += 1
        findings.examples.append("the process that looked did not finish")
        return
    findings.read += said.count(b"o") + said.count(b"w")
    findings.flushed += len(flushed)
    findings.corrupt += said.count(b"c")
    findings.wrong += said.count(b"w")
    for number, letter in enumerate(said):
        if letter in b"ow" and number not in put:
            findings.phantom += 1
            findings.examples.append(f"phantom {number}")
        if letter not in b"ow" and number in flushed:
            findings.lost += 1
            findings.examples.append(f"lost {number}: {chr(letter)}")


def kills(folder: Path, count: int, seed: int) -> Findings:
    """So many kills: of a store that holds everything, and of one that has to evict, by turns."""
    findings = Findings()
    stores = [(folder / "large", SLOTS), (folder / "small", FEW_SLOTS)]
    known: list[tuple[set[int], set[int]]] = [(set(), set()), (set(), set())]
    for place, _ in stores:
        place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        which = number % 2
        place, slots = stores[which]
        put, flushed = kill_round(place, slots, seed + number)
        known[which][0].update(put)
        known[which][1].update(flushed)
        must = known[0][1] if which == 0 else set[int]()
        pid, reading = in_child(lambda tell, p=place, s=slots: look(p, s, tell))  # type: ignore[misc]
        said = _read_all(reading)
        os.waitpid(pid, 0)
        judge(findings, said, known[which][0], must)
        if findings.refused:
            findings.lost += len(must)
    return findings


def damages(folder: Path, count: int, seed: int) -> dict[str, Findings]:
    """So many random flips and truncations of each file of a store that was closed or killed."""
    origin = folder / "origin"
    origin.mkdir(parents=True)
    with open_test_store(origin, FEW_SLOTS) as store:
        numbers = range(FEW_SLOTS - 16)
        for at in range(0, len(numbers), LENGTH):
            some = numbers[at : at + LENGTH]
            rows = np.stack([payload_of(number) for number in some])
            store.put([key_of(number) for number in some], rows).result(WAIT_S)
            store.flush().result(WAIT_S)
    put = set(numbers)
    found: dict[str, Findings] = {}
    for path in sorted(origin.iterdir()):
        findings = found[path.name] = Findings()
        for number in range(count):
            rng = random.Random(f"{seed}/{path.name}/{number}")
            copy = folder / "copy"
            shutil.copytree(origin, copy)
            damage(copy / path.name, rng)
            pid, reading = in_child(lambda tell: look(copy, FEW_SLOTS, tell))  # noqa: B023  at once
            said = _read_all(reading)
            os.waitpid(pid, 0)
            judge(findings, said, put, set())
            shutil.rmtree(copy)
    return found


def damage(path: Path, rng: random.Random) -> None:
    """Flip bits of a few bytes of a file, or cut it short."""
    size = path.stat().st_size
    if not size or rng.random() < 0.25:  # noqa: PLR2004  one in four
        os.truncate(path, rng.randrange(size) if size else 0)
        return
    with path.open("r+b") as file:
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << rng.randrange(8))]))


def main(arguments: Sequence[str]) -> int:
    """The command; see the head of this file."""
    parser = argparse.ArgumentParser(description="kill and damage a store, and look what is left")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--damages", type=int, default=200, help="of each file of a store")
    parser.add_argument("--dir", type=Path, help="where; default: a temporary directory")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.dir) as made:
        folder = Path(made)
        results = {"kill -9": kills(folder, options.kills, options.seed)}
        if options.damages:
            results |= damages(folder / "damages", options.damages, options.seed)
    for name, findings in results.items():
        sys.stdout.write(f"{name}: {findings.line()}\n")
        for example in findings.examples[:5]:
            sys.stdout.write(f"  {example}\n")
    return int(any(findings.faults for findings in results.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

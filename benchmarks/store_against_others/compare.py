"""kvbench's NVMe store against vLLM's and LMCache's, and against what fio gets from the drive.

    python -m benchmarks.store_against_others.compare --dir DIRECTORY \
        --python-vllm VLLM/bin/python --python-lmcache LMCACHE/bin/python [--out FILE]

Run it from the root of the repository; README.md says how the two environments are made. In each
round every contestant has the same blocks, the same rows in memory and an empty folder on the same
drive, one after the other, in an order that changes from round to round. Only blocks of which every
byte was compared count. Exit status 1: a bar was missed, or a contestant has no figures.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.store_against_others.contestants import (
    KVBENCH,
    LARGE_BYTES,
    OTHERS,
    SMALL_BYTES,
    Contestant,
)
from benchmarks.store_against_others.figures import DIRECTIONS, Entry, resources, table
from benchmarks.store_against_others.fio import fio_seconds
from benchmarks.store_against_others.workers import Worker, WorkerError
from kvbench.machine import probe_machine
from kvbench.measure.scratch import Scratch
from kvbench.units import format_bytes

FIO = {"fio": False, "fio, huge pages": True}
PYTHONS = {"vllm": "KVBENCH_PYTHON_VLLM", "lmcache": "KVBENCH_PYTHON_LMCACHE"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is the same for all."""

    folder: Path
    rounds: int
    rest_s: float
    huge_pages: bool  # of the rows
    pythons: dict[str, Path | None]  # by environment
    others: list[Contestant]


def measure(setting: Setting, block_bytes: int, blocks: int) -> list[Entry]:
    """All rounds of one block size; the list begins with kvbench."""
    contestants = (KVBENCH, *setting.others)
    entries = [
        Entry(
            name=each.name, blocks=blocks, block_bytes=block_bytes, bar=each.bars.get(block_bytes)
        )
        for each in contestants
    ]
    workers: list[Worker | None] = []
    with ExitStack() as stack:
        work = ["--blocks", str(blocks), "--block-bytes", str(block_bytes)]
        if setting.huge_pages:
            work.append("--huge-pages")
        for contestant, entry in zip(contestants, entries, strict=True):
            worker = start(contestant, entry, setting, work)
            workers.append(worker)
            if worker is None:
                continue
            stack.enter_context(worker)
            try:
                worker.wait_until_ready()
            except WorkerError as error:
                entry.reason = f"its worker did not start: {error}"
        for name in FIO:
            entries.append(Entry(name=name, blocks=blocks, block_bytes=block_bytes))
            workers.append(None)
            if shutil.which("fio") is None:
                entries[-1].reason = "skipped: fio is not installed"
        for number in range(1, setting.rounds + 1):
            print(f"{format_bytes(block_bytes)}: round {number}", file=sys.stderr, flush=True)
            for at in order(len(entries), number, setting.rounds):
                if entries[at].reason is None:
                    take_turn(entries[at], workers[at], setting, number)
    return entries


def start(contestant: Contestant, entry: Entry, setting: Setting, work: list[str]) -> Worker | None:
    """Its worker; None, with the reason noted, if there is no environment for it."""
    python = setting.pythons[contestant.environment]
    if python is None:
        entry.reason = f"skipped: no --python-{contestant.environment}"
        return None
    return Worker(contestant, python, setting.folder / f"{contestant.name}.log", work)


def order(size: int, number: int, rounds: int) -> list[int]:
    """Who goes when: each round starts elsewhere, and every other one goes backwards.

    Nobody always follows the same neighbour, nor has the drive when it is most rested.
    """
    first = number * max(1, size // rounds) % size
    turns = [(first + step) % size for step in range(size)]
    return turns[::-1] if number % 2 else turns


def take_turn(entry: Entry, worker: Worker | None, setting: Setting, number: int) -> None:
    """One round of one contestant, or of fio, in a new folder."""
    folder = setting.folder / "turn"
    folder.mkdir()
    try:
        if worker is None:
            huge_pages = FIO[entry.name]
            times = fio_seconds(folder, entry.block_bytes, entry.blocks, huge_pages=huge_pages)
            entry.add_seconds(number, *times)
        else:
            entry.add(number, worker.run_round(folder, seed=number))
    except WorkerError as error:
        entry.reason = f"round {number}: {error}"
    except subprocess.CalledProcessError as error:
        entry.reason = f"round {number}: {error.stderr.strip() or error}"
    finally:
        shutil.rmtree(folder)
        os.sync()  # deleting is work for the drive too: not at the expense of who comes next
        time.sleep(setting.rest_s)


def missed(ours: Entry, entries: list[Entry]) -> bool:
    """Whether anybody who was to be measured was not, or kvbench is below a bar."""
    for entry in entries:
        if entry.reason is not None and not entry.reason.startswith("skipped"):
            return True
        if entry.bar is not None and entry.reason is None:
            ratios = [ours.over(entry, direction) for direction in DIRECTIONS]
            if any(ratio is None or ratio.median < entry.bar for ratio in ratios):
                return True
    return False


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dir", type=Path, required=True, help="a directory on the drive")
    for name, variable in PYTHONS.items():
        known = os.environ.get(variable)
        parser.add_argument(
            f"--python-{name}",
            type=_program,
            default=known,
            help=f"Python of the environment with {name}; default: ${variable}",
        )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-blocks", type=int, default=512, help="how many of 1 MiB; 0: none")
    parser.add_argument("--small-blocks", type=int, default=4096, help="how many of 64 KiB")
    parser.add_argument("--rest", type=float, default=1.0, help="seconds between two turns")
    parser.add_argument("--huge-pages", action="store_true", help="rows in such pages, for all")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of contestants")
    parser.add_argument("--out", type=Path, help="all rounds as JSON")
    return parser.parse_args()


def _program(text: str) -> Path:
    """A path as it was given: to follow the link of an environment's Python leads out of it."""
    path = Path(text).absolute()
    if not os.access(path, os.X_OK):
        raise argparse.ArgumentTypeError(f"{text} is no program: name the environment's Python")
    return path


def main() -> int:
    """Measure both sizes, print the tables, write the JSON."""
    chosen = arguments()
    sizes = {LARGE_BYTES: chosen.large_blocks, SMALL_BYTES: chosen.small_blocks}
    found: dict[int, list[Entry]] = {}
    with Scratch(chosen.dir) as scratch:
        setting = Setting(
            folder=scratch.path,
            rounds=chosen.rounds,
            rest_s=chosen.rest,
            huge_pages=chosen.huge_pages,
            pythons={
                "kvbench": Path(sys.executable),
                "vllm": chosen.python_vllm,
                "lmcache": chosen.python_lmcache,
            },
            others=[each for each in OTHERS if any(part in each.name for part in chosen.only)],
        )
        for block_bytes, blocks in sizes.items():
            if blocks:
                entries = found[block_bytes] = measure(setting, block_bytes, blocks)
                print("\n".join(table(entries[0], entries)) + "\n")
                print("\n".join(resources(entries)) + "\n", flush=True)
        machine = probe_machine(chosen.dir)
    if chosen.out is not None:
        report = {
            "rounds": chosen.rounds,
            "rest_s": chosen.rest,
            "machine": machine,
            "sizes": found,
        }
        chosen.out.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    return int(any(missed(entries[0], entries) for entries in found.values()))


if __name__ == "__main__":
    sys.exit(main())

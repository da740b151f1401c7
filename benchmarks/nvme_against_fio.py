"""NVMe reads by kvbench against fio: one file, O_DIRECT, queue depth 16, interleaved A B A B.

    python benchmarks/nvme_against_fio.py --dir DIRECTORY [--rounds 5] [--seconds 3] [--engine X]

Prints each round and the ratio of the medians; kvbench's figure comes from `run_case`, as a row's
does. Noise of a shared machine is in both, which is why only the ratio means anything.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from kvbench.geometry import load_geometry
from kvbench.machine import probe_machine
from kvbench.measure.pattern import Pattern
from kvbench.measure.runner import CaseFinished, Setting, run_case
from kvbench.measure.scratch import Scratch
from kvbench.measure.suite import Case, Plan
from kvbench.units import GIB, KIB, MIB, format_bytes
from kvbench_suites.nvme import READ
from kvbench_suites.nvme_bodies import ensure_file

QUEUE_DEPTH = 16
RAMP_S = 0.5
# kvbench checks its data after each run by reading them once more. On a drive with burst credits
# (most cloud disks) whoever came next would find them spent, so both sides rest before they start.
SETTLE_S = 2.0
SIZES = (256 * KIB, 1 * MIB, 4 * MIB)


def kvbench_bytes_per_s(case: Case, setting: Setting) -> float:
    """One row from one fresh worker process."""
    row = None
    for event in run_case(case, setting):
        if isinstance(event, CaseFinished):
            row = event.row
    if row is None or row.bytes_per_s is None:
        sys.exit(f"kvbench has no figure: {row.reason if row else 'no row'}")
    return row.bytes_per_s


def fio_bytes_per_s(path: Path, block_bytes: int, seconds: float, engine: str) -> float:
    """Bytes over run time of one fio run, its ramp left out."""
    many = {"psync": ("--numjobs=16",), "libaio": ("--iodepth=16",)}[engine]
    command = [
        *("fio", "--name=read", f"--filename={path}", "--readonly", "--rw=randread", "--direct=1"),
        *(f"--bs={block_bytes}", f"--ioengine={engine}", *many, "--group_reporting"),
        *("--time_based", f"--runtime={seconds}", f"--ramp_time={RAMP_S}", "--output-format=json"),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["jobs"][0]["read"]["bw_bytes"])


def main() -> None:
    """Compare at each block size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--engine", choices=("psync", "libaio"), default="psync")
    arguments = parser.parse_args()
    with Scratch(arguments.dir) as scratch:
        setting = Setting(
            geometry=load_geometry("llama-3.1-8b"),
            machine=probe_machine(arguments.dir),
            plan=Plan(
                processes=1,
                warmup_s=RAMP_S,
                time_limit_s=arguments.seconds,
                min_time_s=arguments.seconds,  # as long as fio runs, however soon it is sure
                data_bytes=2 * GIB,
            ),
            scratch=scratch.path,
        )
        file = scratch.path / "read.dat"
        ensure_file(file, setting.plan.data_bytes, Pattern(setting.seed))
        for block_bytes in SIZES:
            case = READ.case({"block_bytes": block_bytes, "queue_depth": QUEUE_DEPTH})
            ours: list[float] = []
            theirs: list[float] = []
            for _ in range(arguments.rounds):
                time.sleep(SETTLE_S)
                ours.append(kvbench_bytes_per_s(case, setting))
                time.sleep(SETTLE_S)
                theirs.append(
                    fio_bytes_per_s(file, block_bytes, arguments.seconds, arguments.engine)
                )
            ratio = statistics.median(ours) / statistics.median(theirs)
            print(f"{format_bytes(block_bytes)} at depth {QUEUE_DEPTH}, fio {arguments.engine}")
            print("  kvbench GB/s " + " ".join(f"{value / 1e9:.3f}" for value in ours))
            print("  fio     GB/s " + " ".join(f"{value / 1e9:.3f}" for value in theirs))
            print(f"  kvbench / fio, medians: {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()

"""How long do large reports take? `python benchmarks/large_reports.py`.

Makes two reports of 5,000 rows by ten processes and compares them by the command line, and reads
one report of 50 MB through the library, several times each. The goals are 2 s and 1 s.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

from kvbench.geometry import load_geometry
from kvbench.machine import probe_machine
from kvbench.measure.result import ProcessResult, Report, Row, State, read_report, write_report

ROWS, PROCESSES, SAMPLES, ROUNDS = 5_000, 10, 12, 5
LARGE_BYTES = 50_000_000


def make_report(seed: int, rows: int, samples: int) -> Report:
    """A report of made-up figures: this times the software, not a machine."""
    random = np.random.default_rng(seed)
    return Report(
        kvbench_version="0",
        session_id=f"{seed:032x}",
        suite="large",
        command=["run", "large"],
        started_at="2026-01-01T00:00:00+00:00",
        finished_at="2026-01-01T01:00:00+00:00",
        plan={"processes": PROCESSES, "seed": seed},
        machine=probe_machine(),
        model=load_geometry("llama-3.1-8b"),
        rows=[make_row(number, random, samples) for number in range(rows)],
    )


def make_row(number: int, random: np.random.Generator, samples: int) -> Row:
    """One row with a rate of about 10 GB/s."""
    tier = ("hbm", "dram", "nvme", "peer")[number % 4]
    rates = 1e10 * np.exp(0.01 * random.standard_normal((PROCESSES, samples)))
    processes = [
        ProcessResult(
            process=at,
            statistic="median",
            bytes_per_s=float(np.median(each)),
            payload_bytes=2**30,
            traffic_bytes=2**31,
            timed_bytes=2**30,
            elapsed_s=0.1,
            sample_bytes_per_s=each.tolist(),
            sample_count=samples,
            warmup_samples=3,
            stopped_by="interval",
            half_width=0.01,
            autocorrelation=0.2,
            slow_fraction=0.0,
            steady=True,
            latency_p99_s=float(1e-3 * np.exp(0.02 * random.standard_normal())),
        )
        for at, each in enumerate(rates)
    ]
    return Row(
        id=f"{tier}.read/case-{number}",
        tier=tier,
        operation="read",
        params={"block_bytes": 2**21, "queue_depth": 16},
        state=State.OK,
        definition_hash="0123456789abcdef",
        bytes_per_s=float(np.median([each.bytes_per_s for each in processes])),
        processes=processes,
    )


def main() -> None:
    """Print both times of every round."""
    with tempfile.TemporaryDirectory() as folder:
        base, new, large = (Path(folder) / f"{name}.json" for name in ("base", "new", "large"))
        for seed, path in enumerate((base, new), start=1):
            write_report(make_report(seed, ROWS, SAMPLES), path)
        one_row = len(msgspec.json.encode(make_report(3, 101, 1000))) / 101
        write_report(make_report(3, round(LARGE_BYTES / one_row), 1000), large)
        print(f"base {base.stat().st_size / 1e6:.0f} MB, large {large.stat().st_size / 1e6:.0f} MB")
        command = [sys.executable, "-m", "kvbench", "compare", str(base), str(new)]
        for _ in range(ROUNDS):
            began_s = time.perf_counter()
            done = subprocess.run([*command, "--assume-quiet"], capture_output=True, check=False)
            compared_s = time.perf_counter() - began_s
            assert done.returncode == 0, done.stderr.decode()
            began_s = time.perf_counter()
            read_report(large)
            print(f"compare {compared_s:.2f} s   read {time.perf_counter() - began_s:.2f} s")


if __name__ == "__main__":
    main()

"""How fast traces are read, described and made up, and what memory that takes. By hand.

    python benchmarks/trace_speed.py [TRACE] [--requests 1000000]

Prints processor and wall time of each step on this machine; the first use of a compiled function
is shown apart. Not a test: figures depend on what else runs.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kvbench.sim.curve import lru_curve
from kvbench.sim.trace import generated, read_columns, write_trace
from kvbench.sim.trace.fit import fit_shape
from kvbench.sim.trace.goodness import goodness_of_fit
from kvbench.sim.trace.stats import trace_stats

TEN_MILLION = 10_000_000
T = TypeVar("T")


def shown(name: str, work: Callable[[], T], requests: int) -> T:
    """Do it once; print how long it took."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = work()
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    rate = requests / wall_s
    print(f"{name:<38}{wall_s:>9.3f} s{cpu_s:>9.3f} s cpu{rate:>14,.0f} requests/s")
    return result


def memory_bytes() -> int:
    """The most that this process has held so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts KiB


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # so that the first read is one
        path = Path(folder) / "trace.jsonl"
        if options.trace is None:
            write_trace(generated(12_000, 0), path)
        else:
            path.write_bytes(options.trace.read_bytes())
        describe(path)
    before = memory_bytes()
    shown("generate", lambda: generated(options.requests, 1), options.requests)
    taken = (memory_bytes() - before) * TEN_MILLION / options.requests
    print(
        f"memory of {options.requests:,} requests, scaled to ten million: {taken / 2**30:.2f} GiB"
    )


def describe(path: Path) -> None:
    """Read a trace cold and warm, then all that is computed of it."""
    columns = read_columns(path, cache=False)
    count = columns.requests
    shown("read, cold", lambda: read_columns(path), count)
    shown("read, warm", lambda: read_columns(path), count)
    shown("LRU curve, compiling or loading it", lambda: lru_curve(columns), count)
    shown("LRU curve", lambda: lru_curve(columns), count)
    shown("statistics", lambda: trace_stats(columns), count)
    shape = shown("fit", lambda: fit_shape(columns, "it"), count)
    shown("twin, compiling or loading it", lambda: generated(10, 1, shape=shape), 10)
    twin = shown("twin", lambda: generated(count, 1, shape=shape), count)
    shown("goodness of fit", lambda: goodness_of_fit(columns, twin), count)


if __name__ == "__main__":
    main()

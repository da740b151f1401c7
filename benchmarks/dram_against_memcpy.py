"""DRAM copies by kvbench against a C loop over memcpy: 256 MiB, one thread, interleaved A B A B.

    python benchmarks/dram_against_memcpy.py [--rounds 5] [--seconds 2]

The C program is compiled here with the system's compiler; it maps, touches and copies memory as
the `dram.copy` case does (pageable, page by page first, pinned to the first core), in a process of
its own, and prints the median of its copies.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from kvbench.geometry import load_geometry
from kvbench.machine import probe_machine
from kvbench.measure.runner import CaseFinished, Setting, run_case
from kvbench.measure.suite import Plan
from kvbench_suites.dram import COPY, COPY_BYTES

PROGRAM = r"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    size_t bytes = strtoull(argv[1], NULL, 10);
    double seconds = atof(argv[2]);
    cpu_set_t allowed, one;
    sched_getaffinity(0, sizeof allowed, &allowed);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &allowed)) { CPU_SET(cpu, &one); break; }
    sched_setaffinity(0, sizeof one, &one);
    char *source = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *target = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (source == MAP_FAILED || target == MAP_FAILED || argc != 3) return 1;
    for (size_t at = 0; at < bytes; at += 8) *(size_t *)(source + at) = at * 2654435761u;
    memset(target, 1, bytes);
    for (double end = now() + 0.3; now() < end;) memcpy(target, source, bytes);
    static double took[100000];
    int n = 0;
    for (double end = now() + seconds; now() < end && n < 100000; n++) {
        double start = now();
        memcpy(target, source, bytes);
        __asm__ volatile("" : : "r"(target) : "memory");
        took[n] = now() - start;
    }
    qsort(took, n, sizeof *took, by_value);
    printf("%.6e\n", bytes / took[n / 2]);
    return 0;
}
"""


def main() -> None:
    """Compare, interleaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    case = COPY.case({"block_bytes": COPY_BYTES, "threads": 1})
    seconds = arguments.seconds
    plan = Plan(processes=1, warmup_s=0.3, time_limit_s=seconds, min_time_s=seconds)
    setting = Setting(geometry=load_geometry("llama-3.1-8b"), machine=probe_machine(), plan=plan)
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "copy"
        command = ["cc", "-O2", "-x", "c", "-o", str(binary), "-"]
        subprocess.run(command, input=PROGRAM, text=True, check=True)
        for _ in range(arguments.rounds):
            for event in run_case(case, setting):
                if isinstance(event, CaseFinished):
                    if event.row.bytes_per_s is None:
                        sys.exit(f"kvbench has no figure: {event.row.reason}")
                    ours.append(event.row.bytes_per_s)
            command = [str(binary), str(COPY_BYTES), str(seconds)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            theirs.append(float(done.stdout))
    print("kvbench GB/s " + " ".join(f"{value / 1e9:.2f}" for value in ours))
    print("memcpy  GB/s " + " ".join(f"{value / 1e9:.2f}" for value in theirs))
    print(f"kvbench / memcpy, medians: {statistics.median(ours) / statistics.median(theirs):.3f}")


if __name__ == "__main__":
    main()

"""How fast clusters are simulated, what compiling takes, and the memory of ten million requests.

    python benchmarks/cluster_speed.py [TRACE] [--requests 1000000] [--light] [--rule mooncake]

Eight nodes with HBM, DRAM and NVMe, sharing peer to peer, under four routing rules. Prints
processor time, of one core, beside wall time; the first run in a process is shown apart, since it
compiles or loads what it needs. With `--light`, a made-up trace of short requests (about 3 blocks)
is used, as for ten million of them. Not a test: figures depend on what else runs.
"""

import argparse
import resource
import time
from pathlib import Path as File

from kvbench.sim.cluster import simulate
from kvbench.sim.columns import Columns
from kvbench.sim.scenario import Architecture, Decode, Path, Prefill, Router, Scenario, Tier
from kvbench.sim.trace import default_trace, generated, read_columns
from kvbench.sim.trace.stated import Stated, stated_shape

RULES = ("round-robin", "least-work", "cost", "mooncake")
LIGHT = Stated(
    rate_per_s=200.0, first_tokens=800.0, turn_tokens=200.0, answer_tokens=60.0, turns=3.0
)


def scenario(rule: str, *, light: bool) -> Scenario:
    """A node of the FAST'25 testbed, or a faster one of a small model for the light trace."""
    return Scenario(
        nodes=8,
        architecture=Architecture.P2P,
        router=Router(name=rule),
        prefill=Prefill(
            fixed_s=0.004 if light else 0.08,
            per_token_s=1.5e-5 if light else 1.147e-4,
            per_token2_s=1e-11 if light else 7.182e-10,
        ),
        decode=Decode(fixed_s=0.006 if light else 0.02, per_sequence_s=5e-5, per_context_token_s=0),
        tiers=(
            Tier(name="hbm", capacity_blocks=1000),
            Tier(
                name="dram",
                capacity_blocks=6000,
                read=Path(latency_s=2e-5, bytes_per_s=50e9),
                write=Path(latency_s=2e-5, bytes_per_s=50e9),
            ),
            Tier(
                name="nvme",
                capacity_blocks=20_000,
                read=Path(latency_s=1e-4, bytes_per_s=12e9),
                write=Path(latency_s=1e-4, bytes_per_s=6e9),
            ),
        ),
        block_tokens=512,
        kv_bytes_per_token=131_072.0 if light else 327_680.0,
        layers=32 if light else 80,
        network=Path(latency_s=1e-5, bytes_per_s=50e9),
        replicate_ratio=2.0,
    )


def timed(columns: Columns, rule: str, *, light: bool, note: str = "") -> None:
    """Simulate once and print how long it took."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    outcome = simulate(columns, scenario(rule, light=light))
    wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    requests = outcome.requests
    hit = requests.hit_blocks.sum() / max(1, requests.blocks.sum())
    print(
        f"{rule + note:<32}{wall_s:>8.2f} s{cpu_s:>8.2f} s cpu"
        f"{60 * columns.requests / cpu_s / 1e6:>8.2f} M requests/minute/core"
        f"   hit {hit:.3f}, TTFT {requests.ttft_s.mean():.3f} s"
    )


def main() -> None:
    """Run all rules."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", nargs="?", type=File)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--light", action="store_true")
    parser.add_argument("--rule", action="append", choices=RULES, help="by default all four")
    options = parser.parse_args()
    if options.light:
        columns = generated(options.requests or 1_000_000, 1, shape=stated_shape(LIGHT))
    elif options.trace is not None:
        columns = read_columns(options.trace)
    else:
        columns = default_trace(options.requests or 12_000)
    held = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{columns.name}: {columns.requests:,} requests, {len(columns.ids):,} blocks of which "
        f"{columns.unique_blocks:,} differ; {held / 2**30:.2f} GiB held so far"
    )
    timed(columns.first(100), RULES[0], light=options.light, note=", compiling or loading")
    for rule in options.rule or RULES:
        timed(columns, rule, light=options.light)
    held = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts KiB
    print(f"most memory held: {held / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()

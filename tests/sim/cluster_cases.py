"""Small clusters of every kind, through the loop and through its plain twin: are they the same?

`python -m tests.sim.cluster_cases FIRST COUNT` prints what came of the cases as JSON. In a process
of its own, since whether the loop is compiled is decided when it is imported (KVBENCH_NO_NUMBA).
"""

import json
import math
import random
import sys
from typing import Any

import numpy as np

from kvbench.policy import NAMES
from kvbench.sim.cluster.reference import Reference
from kvbench.sim.cluster.rules import RULES
from kvbench.sim.cluster.simulate import simulate_tables
from kvbench.sim.columns import Columns
from kvbench.sim.outcome import SOURCES, Outcome
from kvbench.sim.scenario import (
    Architecture,
    Decode,
    Objective,
    Path,
    Prefill,
    Router,
    Scenario,
    Tier,
)

BLOCK_TOKENS = 4
OPTIONS: dict[str, dict[str, tuple[float, ...]]] = {
    "cost": {"overlap_weight": (0.0, 1.0, 2.0), "temperature": (0.0, 0.5)},
    "cache-aware": {"balance_absolute": (0.0, 2.0)},
    "mooncake": {"threshold": (1.0, 2.0)},
}


def trace(draw: random.Random) -> Columns:
    """Requests for prefixes of a small forest, several at the same time."""
    blocks = draw.randint(2, 40)
    parents = [draw.randint(-1, block - 1) for block in range(blocks)]
    requests: list[list[int]] = []
    for _ in range(draw.randint(4, 50)):
        block, prefix = draw.randrange(blocks), list[int]()
        while block >= 0:
            prefix.append(block)
            block = parents[block]
        requests.append(prefix[::-1])
    numbers: dict[int, int] = {}
    ids = [numbers.setdefault(block, len(numbers)) for each in requests for block in each]
    sizes = [len(each) for each in requests]
    tokens = [BLOCK_TOKENS * size - draw.randrange(BLOCK_TOKENS) for size in sizes]
    return Columns(
        name="small",
        digest="0" * 16,
        block_tokens=BLOCK_TOKENS,
        arrival_s=np.cumsum([draw.choice([0, 0, 1, 2, 3, 8]) / 8 for _ in sizes]),
        input_tokens=np.array(tokens, np.int32),
        output_tokens=np.array([draw.choice([1, 1, 2, 3, 9, 20]) for _ in sizes], np.int32),
        starts=np.array([0, *np.cumsum(sizes)], np.int64),
        ids=np.array(ids, np.int32),
        unique_blocks=len(numbers),
    )


def path(draw: random.Random) -> Path:
    """Slow enough that transfers meet."""
    return Path(
        latency_s=draw.choice([0.0, 1 / 64, 1 / 4]),
        bytes_per_s=draw.choice([4.0, 16.0, 64.0, 1000.0]),
        flow_bytes_per_s=draw.choice([math.inf, 8.0, 3.0]),
    )


def tier(draw: random.Random, name: str, capacities: tuple[int, ...]) -> Tier:
    """One of them, by any policy."""
    eviction = draw.choice(["lru", "leaf-lru", "ttl:1", *NAMES])
    return Tier(
        name=name,
        capacity_blocks=draw.choice(capacities),
        eviction=eviction,
        read=None if name == "hbm" else path(draw),
        write=None if name == "hbm" else draw.choice([None, path(draw)]),
        staging_blocks=draw.choice([4096, 3]),
    )


def scenario(draw: random.Random, architecture: Architecture, rule: str) -> Scenario:
    """A cluster of this architecture under this routing rule; everything else is drawn."""
    options = {name: draw.choice(values) for name, values in OPTIONS.get(rule, {}).items()}
    return Scenario(
        nodes=draw.randint(1, 4),
        decode_nodes=draw.choice([0, 0, 1, 2]),
        architecture=architecture,
        router=Router(name=rule, options=options),
        prefill=Prefill(
            fixed_s=draw.choice([0.0, 1 / 16]),
            per_token_s=draw.choice([1 / 64, 1 / 16]),
            per_token2_s=draw.choice([0.0, 1 / 1024]),
        ),
        decode=Decode(
            fixed_s=1 / 64,
            per_sequence_s=1 / 256,
            per_context_token_s=draw.choice([0.0, 1 / 4096]),
            most_sequences=draw.choice([1, 2, 8]),
            most_context_tokens=draw.choice([0, 60]),
        ),
        tiers=(
            tier(draw, "hbm", (0, 1, 3, 6, 100)),
            tier(draw, "dram", (0, 2, 5, 100)),
            tier(draw, "nvme", (0, 4, 50)),
        ),
        block_tokens=BLOCK_TOKENS,
        kv_bytes_per_token=draw.choice([1 / 16, 1 / 2, 2.0]),
        stored_bytes_per_token=draw.choice([0.0, 1 / 4]),
        layers=draw.choice([1, 4]),
        overlap=draw.random() < 0.7,
        network=path(draw),
        central=tier(draw, "central", (3, 20, 100)),
        directory_delay_s=draw.choice([0.0, 0.25, 2.0]),
        replicate_ratio=draw.choice([math.inf, 1.0, 2.0]),
        recompute_if_faster=draw.random() < 0.6,
        write_through=draw.random() < 0.3,
        inclusive=draw.random() < 0.5,
        objective=Objective(
            ttft_s=draw.choice([math.inf, 2.0]),
            tpot_s=draw.choice([math.inf, 0.1]),
            reject=draw.random() < 0.3,
        ),
        seed=draw.randint(0, 9),
    )


def difference(columns: Columns, outcome: Outcome, twin: Reference) -> str:
    """What the loop and its twin do not agree on, to the last bit; nothing if they do."""
    rows, use = outcome.requests, outcome.use
    for i, job in enumerate(twin.run()):
        ours: list[Any] = [rows.node[i], rows.cached_tokens[i], *rows.hit_blocks[i]]
        ours += [rows.queue_s[i], rows.load_s[i], rows.transfer_s[i], rows.hand_off_s[i]]
        ours += [rows.ttft_s[i], rows.tpot_s[i], rows.finish_s[i]]
        other: list[Any] = [job.node, job.cached, *job.hits]
        other += [job.queue_s, job.load_s, job.transfer_s, job.hand_off_s]
        other += [job.ttft_s, job.tpot_s, job.finish_s]
        if not np.array_equal(np.array(ours, float), np.array(other, float), equal_nan=True):
            return f"request {i} of {columns.requests}: {ours} is not {other}"
    nodes = twin.cluster.nodes
    for name, field in {
        "evicted_blocks": "evicted",
        "dropped_blocks": "dropped",
        "read_bytes": "read_bytes",
        "write_bytes": "write_bytes",
    }.items():
        counted = [[getattr(pool, field) for pool in node.pools] for node in nodes]
        if not np.array_equal(getattr(use, name), np.array(counted)):
            return f"{name}: {getattr(use, name).tolist()} is not {counted}"
    if (use.stale_hints, use.replicated_blocks) != (twin.cluster.stale, twin.cluster.replicated):
        return "stale hints or replicated blocks"
    return ""


def main(first: int, count: int) -> None:
    """All architectures and rules in turn, from case `first` on."""
    kinds = [(architecture, rule) for architecture in Architecture for rule in RULES]
    wrong: list[str] = []
    seen: dict[str, float] = dict.fromkeys((*SOURCES, "refused", "stale", "replicated"), 0.0)
    parts = 0.0
    for number in range(first, first + count):
        draw = random.Random(number)
        columns, kind = trace(draw), kinds[number % len(kinds)]
        wanted = scenario(draw, *kind)
        outcome = simulate_tables(columns, wanted)
        if found := difference(columns, outcome, Reference(columns, wanted)):
            wrong.append(f"case {number}, {kind[0]}, {kind[1]}: {found}")
        rows = outcome.requests
        for at, source in enumerate(SOURCES):
            seen[source] += float(rows.hit_blocks[:, at].sum())
        seen["refused"] += float((rows.node < 0).sum())
        seen["stale"] += outcome.use.stale_hints
        seen["replicated"] += outcome.use.replicated_blocks
        path_s = rows.queue_s + rows.load_s + rows.transfer_s + rows.compute_s + rows.hand_off_s
        parts = max(parts, float(np.nanmax(np.abs(path_s - rows.ttft_s), initial=0.0)))
    sys.stdout.write(json.dumps({"wrong": wrong, "seen": seen, "parts": parts}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""Hand-made simulations for the renderers: chosen figures, through the summary that is real."""

import msgspec
import numpy as np

from kvbench.sim.options import Axis, Options, Prices
from kvbench.sim.outcome import SOURCES, Outcome, Requests, Use
from kvbench.sim.record import Ideal, Run, Simulation, State, Traffic
from kvbench.sim.scenario import Decode, Objective, Path, Prefill, Scenario, Tier
from kvbench.sim.summary import request_path, summarise

NODES, BLOCK = 2, 512
SCENARIO = Scenario(
    nodes=NODES,
    prefill=Prefill(fixed_s=0.08, per_token_s=1e-4, per_token2_s=7e-10),
    decode=Decode(fixed_s=0.02, per_sequence_s=1e-4, per_context_token_s=1e-8),
    tiers=(
        Tier(name="hbm", capacity_blocks=1_000),
        Tier(
            name="dram",
            capacity_blocks=4_000,
            read=Path(latency_s=1e-5, bytes_per_s=5e10),
            write=Path(latency_s=1e-5, bytes_per_s=4e10),
        ),
    ),
    block_tokens=BLOCK,
    kv_bytes_per_token=327_680.0,
    objective=Objective(ttft_s=3.0, tpot_s=0.1),
)


def make_outcome(count: int = 1_200, *, slower: float = 1.0, found: float = 0.3) -> Outcome:
    """Requests of 4 blocks in turn on two nodes; the last one of ten is refused."""
    index = np.arange(count)
    served = index % 10 != 9
    blocks = np.full(count, 4)
    hit = np.where(served & (index % 100 < 100 * found), 2, 0)
    hits = np.zeros((count, len(SOURCES)), np.int64)
    hits[:, 0] = hit // 2
    hits[:, 1] = hit - hit // 2
    queue = np.where(served, slower * (index % 50) / 25, np.nan)
    compute = np.where(served, 0.5 - 0.1 * hit, np.nan)
    load = np.where(served, 0.01 * hit, np.nan)
    zero = np.where(served, 0.0, np.nan)
    ttft = queue + compute + load
    tpot = np.where(served & (index % 7 > 0), 0.03, np.nan)
    arrival = np.arange(count, dtype=np.float64) / 2
    two = np.array([100.0, 300.0])
    tiers = np.array([[0.0, 1e9], [0.0, 3e9]])
    return Outcome(
        requests=Requests(
            arrival_s=arrival,
            input_tokens=np.full(count, 2_000),
            output_tokens=np.where(index % 7 > 0, 100, 1),
            blocks=blocks,
            node=np.where(served, index % NODES, -1),
            decode_node=np.where(served, index % NODES, -1),
            hit_blocks=hits,
            cached_tokens=np.minimum(hit * BLOCK, 1_999),
            queue_s=queue,
            load_s=load,
            transfer_s=zero,
            compute_s=compute,
            hand_off_s=zero,
            ttft_s=ttft,
            tpot_s=tpot,
            finish_s=arrival + ttft + 3,
        ),
        use=Use(
            duration_s=600.0,
            prefill_busy_s=two,
            decode_busy_s=two / 2,
            read_bytes=tiers,
            read_busy_s=tiers / 1e9,
            write_bytes=tiers,
            write_busy_s=tiers / 1e9,
            network_bytes=np.zeros(NODES),
            network_busy_s=np.zeros(NODES),
            central_bytes=np.zeros(2),
            central_busy_s=np.zeros(2),
            evicted_blocks=np.array([[5, 2], [6, 0]]),
            stale_hints=0,
            replicated_blocks=0,
            dropped_blocks=np.array([[0, 0], [0, 1]]),
        ),
    )


def make_run(
    *, slower: float, found: float, dollars: float | None = 50.0, **changed: float | str
) -> Run:
    outcome = make_outcome(slower=slower, found=found)
    return Run(
        changed=dict(changed),
        state=State.SIMULATED,
        calibrations=["prefill: fitted on rows, ±12 %", "dram.read: datasheet x 0.8"],
        capacity_blocks={"hbm": 1_000, "dram": int(10 * float(changed.get("dram_gib", 100)))},
        summary=summarise(outcome, SCENARIO, dollars_per_hour=dollars),
        request=request_path(outcome, 3),
    )


def make_simulation(runs: list[Run], sweep: list[Axis], *, priced: bool = True) -> Simulation:
    """A simulation of these runs."""
    return Simulation(
        kvbench_version="0.1.0",
        trace=Traffic(
            name="trace.jsonl",
            digest="0123456789abcdef",
            generated=False,
            block_tokens=BLOCK,
            has_blocks=True,
            requests=1_200,
            duration_s=600.0,
            input_tokens=2_400_000,
            output_tokens=100_000,
            unique_blocks=3_000,
        ),
        options=Options(nodes=NODES, slo_ttft_s=3.0, slo_tpot_s=0.1),
        prices=Prices(date="2026-11-26", gpu_hour=2.5) if priced else None,
        sweep=sweep,
        notes=[],
        ideal=Ideal(
            capacity_blocks=[1, 10, 100, 1_000, 3_000], block_hit_rate=[0, 0.05, 0.1, 0.2, 0.25]
        ),
        runs=runs,
    )


def swept() -> Simulation:
    """Four capacities, of which the last changes nothing, and one that failed."""
    axis = Axis(option="dram_gib", values=[0.0, 64.0, 256.0, 1024.0, 4096.0])
    shape = [(0.0, 3.0, 0.1), (64.0, 2.0, 0.2), (256.0, 1.0, 0.3), (1024.0, 1.0, 0.3)]
    runs = [
        make_run(slower=slower, found=found, dollars=50 + size / 20, dram_gib=size)
        for size, slower, found in shape
    ]
    failed = Run(changed={"dram_gib": 4096.0}, state=State.FAILED, reason="out of memory")
    return make_simulation([*runs, failed], [axis])


def single() -> Simulation:
    """One run, in full."""
    return make_simulation([make_run(slower=1.0, found=0.3)], [])


def hostile(simulation: Simulation, text: str) -> Simulation:
    """The same with `text` wherever a file or a user puts words."""
    return msgspec.structs.replace(
        simulation,
        trace=msgspec.structs.replace(simulation.trace, name=text),
        options=msgspec.structs.replace(simulation.options, model=text, tiers=text),
        notes=[text],
        runs=[
            msgspec.structs.replace(run, reason=text, calibrations=[text], outside=[text])
            for run in simulation.runs
        ],
    )

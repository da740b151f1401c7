"""What the slow simulator gives, in the form in which the fast one does."""

from typing import Any

import numpy as np

from kvbench.sim.cluster.build import TIER_NAMES
from kvbench.sim.cluster.reference import Reference
from kvbench.sim.cluster.reference_cluster import Job, Node
from kvbench.sim.columns import Columns
from kvbench.sim.outcome import F64, I64, Outcome, Requests, Use
from kvbench.sim.scenario import Scenario


def simulate_reference(columns: Columns, scenario: Scenario) -> Outcome:
    """As `kvbench.sim.cluster.simulate`, by the reference."""
    reference = Reference(columns, scenario)
    jobs = reference.run()
    last_s = 0.0
    if jobs:
        finished_s = [job.finish_s for job in jobs if job.node >= 0]
        last_s = max([*finished_s, jobs[-1].arrival_s]) - jobs[0].arrival_s
    return Outcome(requests=_requests(columns, jobs), use=_use(reference, scenario, last_s))


def _requests(columns: Columns, jobs: list[Job]) -> Requests:
    def times(name: str) -> F64:
        return np.array([getattr(job, name) for job in jobs], np.float64)

    def counts(name: str, kind: type[np.signedinteger[Any]]) -> I64:
        return np.array([getattr(job, name) for job in jobs], kind)

    return Requests(
        arrival_s=columns.arrival_s,
        input_tokens=columns.input_tokens,
        output_tokens=columns.output_tokens,
        blocks=np.diff(columns.starts),
        node=counts("node", np.int16),
        decode_node=counts("decode_node", np.int16),
        hit_blocks=counts("hits", np.int32).reshape(len(jobs), 5),
        cached_tokens=counts("cached", np.int32),
        queue_s=times("queue_s"),
        load_s=times("load_s"),
        transfer_s=times("transfer_s"),
        compute_s=times("compute_s"),
        hand_off_s=times("hand_off_s"),
        ttft_s=times("ttft_s"),
        tpot_s=times("tpot_s"),
        finish_s=times("finish_s"),
    )


def _use(reference: Reference, scenario: Scenario, duration_s: float) -> Use:
    cluster = reference.cluster
    tiers = [TIER_NAMES.index(tier.name) for tier in scenario.tiers]
    apart = cluster.decoders if cluster.decoders is not cluster.nodes else []
    every: list[Node] = [*cluster.nodes, *apart]
    central: list[F64] = [np.zeros(2), np.zeros(2)]
    if cluster.central is not None:
        links = (cluster.central_read, cluster.central_write)
        central = [
            np.array([cluster.central.read_bytes, cluster.central.write_bytes]),
            np.array([link.busy_s for link in links]),
        ]

    def of_pools(name: str) -> Any:  # noqa: ANN401 - bytes or blocks
        return np.array([[getattr(n.pools[t], name) for t in tiers] for n in cluster.nodes])

    def busy(name: str) -> F64:
        links = [[getattr(node, name)[t] for t in tiers] for node in cluster.nodes]
        return np.array([[link.busy_s if link else 0.0 for link in row] for row in links])

    return Use(
        duration_s=duration_s,
        prefill_busy_s=np.array([node.prefill_busy_s for node in cluster.nodes]),
        decode_busy_s=np.array([node.decode_busy_s for node in cluster.decoders]),
        read_bytes=of_pools("read_bytes"),
        read_busy_s=busy("read"),
        write_bytes=of_pools("write_bytes"),
        write_busy_s=busy("write"),
        network_bytes=np.array([node.receive.bytes for node in every]),
        network_busy_s=np.array([node.receive.busy_s for node in every]),
        central_bytes=central[0],
        central_busy_s=central[1],
        evicted_blocks=of_pools("evicted"),
        dropped_blocks=of_pools("dropped"),
        stale_hints=cluster.stale,
        replicated_blocks=cluster.replicated,
    )

"""From a trace and a scenario to what would have happened. Nothing in it is measured."""

import numpy as np

from kvbench.sim.cluster import loop
from kvbench.sim.cluster import state as st
from kvbench.sim.cluster.build import TIER_NAMES, build, check, more_cells, more_flows, more_news
from kvbench.sim.cluster.reference_outcome import simulate_reference
from kvbench.sim.columns import Columns
from kvbench.sim.jit import COMPILES
from kvbench.sim.outcome import Outcome, Requests, Use
from kvbench.sim.scenario import Scenario


def simulate(columns: Columns, scenario: Scenario) -> Outcome:
    """Runs the trace through the cluster; the same arguments give the same bytes.

    Where there is no numba the reference does it, at some thousand requests a second, to the same
    outcome.

    Raises:
        UsageError: a tier, a policy or a rule that does not exist, paths that are missing, or a
            trace of other blocks than the scenario's.
    """
    check(columns, scenario)
    if COMPILES:
        return simulate_tables(columns, scenario)
    return simulate_reference(columns, scenario)


def simulate_tables(columns: Columns, scenario: Scenario) -> Outcome:
    """As `simulate`, by the loop over tables, be it compiled or not."""
    s = build(columns, scenario)
    while True:
        short = loop.advance(s)
        if short == loop.ALL_DONE:
            return _outcome(s, columns, scenario)
        if short == loop.MORE_FLOWS:
            s = more_flows(s, 2 * len(s.flow))
        elif short == loop.MORE_CELLS:
            s = more_cells(s, 2 * len(s.cell))
        else:
            s = more_news(s, 2 * len(s.news))


def _outcome(s: st.State, columns: Columns, scenario: Scenario) -> Outcome:
    row = s.request
    requests = Requests(
        arrival_s=columns.arrival_s,
        input_tokens=columns.input_tokens,
        output_tokens=columns.output_tokens,
        blocks=np.diff(columns.starts),
        node=row.node,
        decode_node=row.decode_node,
        hit_blocks=s.hits,
        cached_tokens=row.cached,
        queue_s=row.queue_s,
        load_s=row.load_s,
        transfer_s=row.transfer_s,
        compute_s=row.compute_s,
        hand_off_s=row.hand_off_s,
        ttft_s=row.ttft_s,
        tpot_s=row.tpot_s,
        finish_s=row.finish_s,
    )
    nodes, first = scenario.nodes, columns.arrival_s[0] if columns.requests else 0.0
    # A column for each tier that the scenario names, in its order
    tiers = [TIER_NAMES.index(tier.name) for tier in scenario.tiers]
    pool = s.pool[:-1].reshape(nodes, st.TIERS)[:, tiers]
    last_s = max(float(s.clock[0].last_s), float(columns.arrival_s[-1]) if columns.requests else 0)
    decoders = slice(nodes, None) if scenario.decode_nodes else slice(0, nodes)
    reads, writes = s.ways[:nodes, : st.TIERS], s.ways[:nodes, st.TIERS :]
    central = np.array([s.params[0].central_read, s.params[0].central_write])
    return Outcome(
        requests=requests,
        use=Use(
            duration_s=last_s - first,
            prefill_busy_s=s.node.prefill_busy_s[:nodes].copy(),
            decode_busy_s=s.node.decode_busy_s[decoders].copy(),
            read_bytes=pool.read_bytes.copy(),
            read_busy_s=_busy(s, reads)[:, tiers],
            write_bytes=pool.write_bytes.copy(),
            write_busy_s=_busy(s, writes)[:, tiers],
            network_bytes=s.link.bytes[s.ways[:, 0]].copy(),
            network_busy_s=s.link.busy_s[s.ways[:, 0]].copy(),
            central_bytes=np.array([s.pool[-1].read_bytes, s.pool[-1].write_bytes]),
            central_busy_s=_busy(s, central),
            evicted_blocks=pool.evicted.copy(),
            dropped_blocks=pool.dropped.copy(),
            stale_hints=int(s.clock[0].stale),
            replicated_blocks=int(s.clock[0].replicated),
        ),
    )


def _busy(s: st.State, links: st.Table) -> st.Table:
    """Busy seconds of those links, 0 where there is none: HBM, in whose column the network is."""
    values = np.where(links >= 0, s.link.busy_s[np.maximum(links, 0)], 0.0)
    if values.ndim > 1:
        values[:, st.HBM] = 0.0
    return values

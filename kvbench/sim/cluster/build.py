"""From a trace and a scenario to the tables that the loop runs on."""

import math

import msgspec
import numpy as np

from kvbench.errors import UsageError
from kvbench.policy.names import Kind, ruled
from kvbench.sim.cluster import state as st
from kvbench.sim.cluster.rules import MOONCAKE, numbers_of
from kvbench.sim.columns import Columns
from kvbench.sim.replay_rows import POOL_WORDS, make_pools
from kvbench.sim.scenario import Architecture, Path, Scenario, Tier

TIER_NAMES = ("hbm", "dram", "nvme")
ARCHITECTURES = (Architecture.NONE, Architecture.CENTRAL, Architecture.P2P)
FLOWS, CELLS, NEWS = 256, 1 << 14, 1 << 14  # to begin with


def own_tiers(scenario: Scenario) -> list[Tier]:
    """HBM, DRAM and NVMe in this order; a tier that the nodes lack has no capacity."""
    tiers = [Tier(name=name, capacity_blocks=0) for name in TIER_NAMES]
    for tier in scenario.tiers:
        if tier.name not in TIER_NAMES:
            raise UsageError(f"tier {tier.name!r}: expected one of {', '.join(TIER_NAMES)}")
        tiers[TIER_NAMES.index(tier.name)] = tier
    for tier in tiers[1:]:
        if tier.capacity_blocks > 0 and tier.read is None:
            raise UsageError(f"tier {tier.name}: expected the path that its blocks are read by")
    return tiers


def _pools(columns: Columns, scenario: Scenario) -> tuple[st.Table, st.Table, st.Table]:
    """Pools, their memory, and what policies ask about blocks."""
    tiers = own_tiers(scenario) * scenario.nodes
    central = scenario.central if scenario.architecture is Architecture.CENTRAL else None
    tiers.append(central or Tier(name="central", capacity_blocks=0))
    pool = st.table(st.POOL, len(tiers))
    kept: list[st.Table] = []
    asks = False
    for row, tier in zip(pool, tiers, strict=True):
        rule = ruled(tier.eviction)
        # More than all different blocks cannot be needed
        row.capacity = min(tier.capacity_blocks, columns.unique_blocks)
        row.place = -1
        row.staging = tier.staging_blocks
        row.leaf = rule.leaf_first
        row.ttl_s = rule.ttl_s if math.isfinite(rule.ttl_s) else 0.0
        if row.capacity > 0:
            row.place = len(kept) * POOL_WORDS
            kept.append(row)
            asks |= rule.leaf_first or rule.kind in (Kind.LENGTH_AWARE, Kind.DEEP_FIRST)
    named = [tier for row, tier in zip(pool, tiers, strict=True) if row.place >= 0]
    memory = make_pools(
        [tier.eviction for tier in named],
        [int(row.capacity) for row in kept],
        columns.unique_blocks,
    )
    return pool, memory, _about(columns) if asks else np.zeros((1, 2), dtype=np.int32)


def _about(columns: Columns) -> st.Table:
    """Parent (-1: none) and depth of each block: an id names all that is before it."""
    about = np.empty((columns.unique_blocks, 2), dtype=np.int32)
    before = np.empty_like(columns.ids)
    before[1:] = columns.ids[:-1]
    first = columns.starts[:-1][np.diff(columns.starts) > 0]
    before[first] = -1
    about[columns.ids, 0] = before
    depth = np.arange(len(columns.ids)) - np.repeat(columns.starts[:-1], np.diff(columns.starts))
    about[columns.ids, 1] = depth
    return about


def _links(scenario: Scenario) -> tuple[st.Table, st.Table, int, int]:
    """Links; those of each node (State.ways); the central store's read and write."""
    network = scenario.network or Path(latency_s=0.0, bytes_per_s=math.inf)
    sending = msgspec.structs.replace(network, latency_s=0.0)  # counted where it is received
    tiers = own_tiers(scenario)
    paths: list[Path] = []
    ways = np.full((scenario.nodes + scenario.decode_nodes, 6), -1, dtype=np.int64)
    for node in range(len(ways)):
        ways[node, 0], ways[node, st.TIERS] = len(paths), len(paths) + 1
        paths += [network, sending]
        for number in range(1, st.TIERS) if node < scenario.nodes else ():
            read, write = tiers[number].read, tiers[number].write
            if read is None:
                continue
            ways[node, number] = ways[node, st.TIERS + number] = len(paths)
            paths.append(read)
            if write is not None:
                ways[node, st.TIERS + number] = len(paths)
                paths.append(write)
    central = (-1, -1)
    if scenario.architecture is Architecture.CENTRAL and scenario.central is not None:
        central = (len(paths), len(paths))
        if scenario.central.read is not None:  # `check` has seen that it is there
            paths.append(scenario.central.read)
        if scenario.central.write is not None:
            central = (len(paths) - 1, len(paths))
            paths.append(scenario.central.write)
    link = st.table(st.LINK, len(paths))
    for row, path in zip(link, paths, strict=True):
        row.bytes_per_s, row.latency_s = path.bytes_per_s, path.latency_s
        row.flow_bytes_per_s = path.flow_bytes_per_s
    link.first = link.last = -1
    return link, ways, central[0], central[1]


def _params(columns: Columns, scenario: Scenario) -> st.Table:
    rule, numbers = numbers_of(scenario.router)
    params = st.table(st.PARAMETERS, 1)
    row = params[0]
    row.nodes, row.decode_nodes = scenario.nodes, scenario.decode_nodes
    row.architecture = ARCHITECTURES.index(scenario.architecture)
    row.router = rule
    row.block_tokens = scenario.block_tokens
    row.words = -(-scenario.nodes // st.WORD_BITS)
    row.token_bytes = scenario.kv_bytes_per_token
    row.hbm_block_bytes = scenario.kv_bytes_per_token * scenario.block_tokens
    stored = scenario.stored_bytes_per_token or scenario.kv_bytes_per_token
    row.block_bytes = stored * scenario.block_tokens
    row.fixed_s, row.per_token_s = scenario.prefill.fixed_s, scenario.prefill.per_token_s
    row.per_token2_s = scenario.prefill.per_token2_s
    row.step_fixed_s = scenario.decode.fixed_s
    row.step_sequence_s = scenario.decode.per_sequence_s
    row.step_context_s = scenario.decode.per_context_token_s
    row.most_sequences = scenario.decode.most_sequences
    row.most_context = scenario.decode.most_context_tokens
    row.tail = 1.0 / scenario.layers if scenario.overlap else 1.0
    row.delay_s = scenario.directory_delay_s
    row.fetch_ratio = numbers["threshold"] if rule == MOONCAKE else 1.0
    row.replicate_ratio = scenario.replicate_ratio
    row.recompute = scenario.recompute_if_faster
    row.through, row.inclusive = scenario.write_through, scenario.inclusive
    row.on_arrival = scenario.on_arrival
    row.limit_ttft_s, row.limit_tpot_s = scenario.objective.ttft_s, scenario.objective.tpot_s
    row.reject, row.seed = scenario.objective.reject, scenario.seed
    row.random_ties = int(numbers.get("random_ties", 0.0))
    row.most_blocks = int(np.diff(columns.starts).max(initial=0))
    return params


def check(columns: Columns, scenario: Scenario) -> None:
    """Whether the two fit together.

    Raises:
        UsageError: they do not, or something is named that does not exist.
    """
    if columns.has_blocks and columns.block_tokens != scenario.block_tokens:
        raise UsageError(
            f"{columns.name} has blocks of {columns.block_tokens} tokens, the scenario of "
            f"{scenario.block_tokens}: they have to be the same"
        )
    if columns.requests and min(columns.input_tokens.min(), columns.output_tokens.min() + 1) < 1:
        raise UsageError(
            f"{columns.name} has requests without input, or with less than no output: at least one "
            "token of input is computed"
        )
    central = scenario.central if scenario.architecture is Architecture.CENTRAL else None
    for tier in (*own_tiers(scenario), *((central,) if central else ())):
        ruled(tier.eviction)
    if central is not None and central.read is None:
        raise UsageError("central store: expected the path that its blocks are read by")
    numbers_of(scenario.router)


def build(columns: Columns, scenario: Scenario) -> st.State:
    """Tables of a cluster in which nothing has happened yet; `check` has seen the arguments."""
    params = _params(columns, scenario)
    link, ways, params[0].central_read, params[0].central_write = _links(scenario)
    pool, memory, about = _pools(columns, scenario)
    params[0].expires = bool((pool.ttl_s > 0).any())
    nodes = scenario.nodes + scenario.decode_nodes
    most = int(params[0].most_blocks)
    node = st.table(st.NODE, nodes)
    node.current = -1
    event = st.table(st.EVENT, 2 * nodes)
    event.turn = np.tile(np.arange(nodes), 2)
    clock = st.table(st.CLOCK, 1)
    clock[0].free_flow = clock[0].free_cell = -1
    options = np.zeros(8)
    numbers = list(numbers_of(scenario.router)[1].values())
    options[: len(numbers)] = numbers
    empty = st.State(
        params=params,
        clock=clock,
        options=options,
        node=node,
        link=link,
        ways=ways,
        flow=st.table(st.FLOW, 0),
        end=st.table(st.END, 0),
        cell=st.table(st.CELL, 0),
        news=st.table(st.NEWS, NEWS if scenario.directory_delay_s > 0 else 1),
        heap=np.zeros(2 * nodes, dtype=np.int64),
        event=event,
        request=st.table(st.REQUEST, columns.requests),
        hits=np.zeros((columns.requests, 5), dtype=np.int32),
        pool=pool,
        memory=memory,
        about=about,
        holders=np.zeros((columns.unique_blocks, int(params[0].words)), dtype=np.int64),
        sequence=st.table(
            st.SEQUENCE,
            (scenario.decode_nodes or scenario.nodes, scenario.decode.most_sequences),
        ),
        have=np.zeros(scenario.nodes, dtype=np.int64),
        score=np.zeros(scenario.nodes),
        mask=np.zeros((2, int(params[0].words)), dtype=np.int64),
        found=np.zeros((st.PLACES, st.TIERS), dtype=np.int64),
        peers=np.zeros(st.MOST_PEERS, dtype=np.int64),
        gone=np.zeros(4 * most + 64, dtype=np.int64),
        arrival_s=_readable(columns.arrival_s, np.float64),
        input_tokens=_readable(columns.input_tokens, np.int32),
        output_tokens=_readable(columns.output_tokens, np.int32),
        starts=_readable(columns.starts, np.int64),
        ids=_readable(columns.ids, np.int32),
    )
    return more_cells(more_flows(empty, FLOWS), max(CELLS, 16 * most))


def _readable(values: st.Table, kind: type) -> st.Table:
    """The same, read-only: a trace that lies in a file and one in memory are one type to numba."""
    view = np.require(values, kind, ["C", "A"]).view()
    view.flags.writeable = False
    return view


def more_flows(s: st.State, rows: int) -> st.State:
    """The same with room for `rows` transfers."""
    old, clock = len(s.flow), s.clock[0]
    flow = st.grown(s.flow, rows)
    flow.next_free[old:-1] = np.arange(old + 1, rows)
    flow.next_free[-1] = clock.free_flow
    clock.free_flow = old
    clock.free_flows += rows - old
    entities = 2 * len(s.node) + rows
    return s._replace(
        flow=flow,
        end=st.grown(s.end, 3 * rows),
        heap=st.grown(s.heap, entities),
        event=st.grown(s.event, entities),
    )


def more_cells(s: st.State, rows: int) -> st.State:
    """The same with room for `rows` blocks on their way."""
    old, clock = len(s.cell), s.clock[0]
    cell = st.grown(s.cell, rows)
    cell.next[old:-1] = np.arange(old + 1, rows)
    cell.next[-1] = clock.free_cell
    clock.free_cell = old
    clock.free_cells += rows - old
    return s._replace(cell=cell)


def more_news(s: st.State, rows: int) -> st.State:
    """The same with room for `rows` pieces of news."""
    clock = s.clock[0]
    order = (clock.news_first + np.arange(len(s.news))) % len(s.news)
    news = st.grown(s.news[order], rows)
    clock.news_first = 0
    return s._replace(news=news)

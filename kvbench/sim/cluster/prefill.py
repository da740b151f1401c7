"""Prefill of a node: one request at a time, first come first served.

When a request's turn comes it is decided what is loaded and what is computed; the transfers start
together with computing (layer-wise overlap) or before it, and the prefill ends when both are done.
"""

from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.directory import best_peer, tier_of
from kvbench.sim.cluster.events import plan
from kvbench.sim.cluster.pools import has, use
from kvbench.sim.cluster.routing import cached_tokens, prefill_s
from kvbench.sim.cluster.state import (
    CENTRAL,
    CENTRAL_STORE,
    DRAM,
    FETCH,
    FIRST_PEER,
    FROM_CENTRAL,
    HAND_OFF,
    HBM,
    LOAD,
    MOST_PEERS,
    ON_PREFILL_END,
    OWN_FIRST,
    OWN_LATER,
    PEER,
    PEERS,
    PLACES,
    TIERS,
    State,
)
from kvbench.sim.cluster.transfers import seconds, start, take

NEVER = 1e300  # as good as infinite


@kernel
def _peer_row(s: State, peer: int) -> int:
    """The row of `found` for this peer, -1 if there are too many already."""
    for i in range(MOST_PEERS):
        if s.peers[i] == peer:
            return FIRST_PEER + i
        if s.peers[i] < 0:
            s.peers[i] = peer
            return FIRST_PEER + i
    return -1


@kernel
def _shared(s: State, node: int, at: int, last: int, peer: int) -> tuple[int, int, int]:
    """Where else the block ids[at] is: (row of `found`, tier, peer), row -1 if nowhere.

    The peer that gave the block before is asked first, then whom the directory names. A peer that
    turns out not to have it costs the network's latency, and nobody else is asked.
    """
    block = s.ids[at]
    if s.params[0].architecture == CENTRAL_STORE:
        p = s.params[0].nodes * TIERS
        return (FROM_CENTRAL if has(s, p, block) else -1), HBM, -1
    if s.params[0].architecture != PEERS:
        return -1, HBM, -1
    if peer >= 0:
        tier = tier_of(s, peer, block)
        if tier >= 0:
            return _peer_row(s, peer), tier, peer
    peer = best_peer(s, node, at, last)
    if peer < 0:
        return -1, HBM, -1
    row = _peer_row(s, peer)
    tier = tier_of(s, peer, block)
    if tier < 0:
        s.clock[0].stale += 1
        s.clock[0].vain = row
        return -1, HBM, peer
    return row, tier, peer


@kernel
def look(s: State, r: int, node: int) -> tuple[int, int, int]:
    """Fills `found` and `peers`; leading blocks in HBM, in the node's tiers, and anywhere."""
    first, last = s.starts[r], s.starts[r + 1]
    s.found[:, :] = 0
    s.peers[:] = -1
    s.clock[0].vain = -1
    top = local = used = 0
    peer = -1
    for at in range(first, last):
        tier = tier_of(s, node, s.ids[at])
        if tier >= 0:
            s.found[OWN_FIRST if local == used else OWN_LATER, tier] += 1
            if tier == HBM and top == used:
                top += 1
            if local == used:
                local += 1
            used += 1
            continue
        row, tier, peer = _shared(s, node, at, last, peer)
        if row < 0:
            break
        s.found[row, tier] += 1
        used += 1
    return top, local, used


@kernel
def _links(s: State, node: int, row: int, tier: int) -> tuple[int, int, int]:
    """What bytes from a place of `found` cross on their way to the node's HBM."""
    if row < FIRST_PEER:
        return s.ways[node, tier], -1, -1
    if row == FROM_CENTRAL:
        return s.params[0].central_read, s.ways[node, 0], -1
    peer = s.peers[row - FIRST_PEER]
    reads = s.ways[peer, tier] if tier > HBM else -1
    return reads, s.ways[peer, TIERS], s.ways[node, 0]


@kernel
def _pool(s: State, node: int, row: int, tier: int) -> int:
    """The pool that a place of `found` and a tier stand for."""
    if row == FROM_CENTRAL:
        return int(s.params[0].nodes * TIERS)
    owner = node if row < FIRST_PEER else s.peers[row - FIRST_PEER]
    return int(owner * TIERS + tier)


@kernel
def _bytes(s: State, row: int, tier: int, blocks: int) -> float:
    """A block of a peer's HBM is as large as in HBM, elsewhere as large as it is stored."""
    params = s.params[0]
    if row >= FIRST_PEER and row < FROM_CENTRAL and tier == HBM:
        return float(blocks * params.hbm_block_bytes)
    return float(blocks * params.block_bytes)


@kernel
def _loading_s(s: State, node: int, rows: int) -> float:
    """Predicted seconds until the last of the transfers of the first `rows` places arrives."""
    longest = 0.0
    for row in range(rows):
        for tier in range(TIERS):
            blocks = s.found[row, tier]
            if blocks > 0 and (row >= FIRST_PEER or tier > HBM):
                size_bytes = _bytes(s, row, tier, blocks)
                longest = max(longest, seconds(s, size_bytes, _links(s, node, row, tier)))
    return longest


@kernel
def _end_s(s: State, r: int, blocks: int, loading_s: float) -> float:
    params = s.params[0]
    tokens = s.input_tokens[r]
    computing = prefill_s(params, tokens, cached_tokens(params, tokens, blocks))
    return float(max(computing, loading_s + computing * params.tail))


@kernel
def choose(s: State, r: int, node: int) -> int:
    """How many leading blocks are used: (HBM | own tiers | all that was found), by what is soonest.

    `found` is left with what will be used. Equal times go to the longer prefix.
    """
    params = s.params[0]
    top, local, used = look(s, r, node)
    tokens = s.input_tokens[r]
    if cached_tokens(params, tokens, used) <= params.fetch_ratio * max(
        cached_tokens(params, tokens, local), 1
    ):
        used = local
    row = s.request[r]
    ratio = cached_tokens(params, tokens, used) / max(cached_tokens(params, tokens, local), 1)
    copies = ratio > params.replicate_ratio or (local == 0 and params.replicate_ratio < NEVER)
    row.kept = 1 if params.architecture != PEERS or copies else 0
    if params.recompute == 1:
        whole = _end_s(s, r, used, _loading_s(s, node, PLACES)) if used > local else NEVER
        near = _end_s(s, r, local, _loading_s(s, node, OWN_FIRST + 1))
        nothing = _end_s(s, r, top, 0.0)
        if whole > min(near, nothing):
            used = local
            if near > nothing:
                used = top
    if used <= local:
        s.found[OWN_LATER:, :] = 0
    if used < local:
        s.found[OWN_FIRST, DRAM:] = 0
        s.found[OWN_FIRST, HBM] = used
    row.local = min(local, used)
    row.blocks_used = used
    return used


@kernel
def read(s: State, r: int, node: int) -> None:
    """Counts where the blocks come from, and touches those of lower tiers and the central store.

    HBM is touched when prefill ends. What a peer asks for moves none of the holder's blocks.
    """
    for row in range(PLACES):
        for tier in range(TIERS):
            source = tier if row < FIRST_PEER else CENTRAL if row == FROM_CENTRAL else PEER
            s.hits[r, source] += s.found[row, tier]
    first, last = s.starts[r], s.starts[r] + s.request[r].blocks_used
    for at in range(first, last):
        _read_one(s, node, s.ids[at], False)
    for at in range(last - 1, first - 1, -1):
        _read_one(s, node, s.ids[at], True)


@kernel
def _read_one(s: State, node: int, block: int, leaf_first: bool) -> None:
    """Touches the block where it is read, if the policy there is of this kind."""
    tier = tier_of(s, node, block)
    p = node * TIERS + tier
    if tier < 0:
        if s.params[0].architecture != CENTRAL_STORE:
            return
        p = s.params[0].nodes * TIERS
    if tier != HBM and (s.pool[p].leaf == 1) == leaf_first:
        use(s, p, block)


@kernel
def decide(s: State, r: int, node: int) -> None:
    """What is loaded, from where, and what is computed, by what the caches are now."""
    row = s.request[r]
    choose(s, r, node)
    read(s, r, node)
    row.cached = cached_tokens(s.params[0], s.input_tokens[r], row.blocks_used)
    row.peer = s.peers[0]


@kernel
def _recall(s: State, r: int) -> None:
    """Fills `found` as decided when r arrived; the first peer gives all blocks of peers."""
    s.found[:, :] = 0
    s.peers[:] = -1
    s.clock[0].vain = -1
    for tier in range(TIERS):
        s.found[OWN_FIRST, tier] = s.hits[r, tier]
    s.peers[0] = s.request[r].peer
    s.found[FIRST_PEER, HBM] = s.hits[r, PEER]
    s.found[FROM_CENTRAL, HBM] = s.hits[r, CENTRAL]


@kernel
def begin(s: State, r: int, node: int) -> None:
    """It is r's turn: decides, sets off the transfers and computing."""
    params, clock = s.params[0], s.clock[0]
    row, here = s.request[r], s.node[node]
    if params.on_arrival == 1:
        _recall(s, r)
    else:
        decide(s, r, node)
    here.waiting_s -= row.compute_s  # until now the prediction
    if here.waiting == 0:
        here.waiting_s = 0.0
    loading = _loading_s(s, node, PLACES)
    here.current = r
    here.current_end_s = clock.now_s + _end_s(s, r, row.blocks_used, loading)
    row.queue_s = clock.now_s - s.arrival_s[r]
    row.compute_s = prefill_s(params, s.input_tokens[r], row.cached)
    row.load_s = row.transfer_s = clock.now_s
    _set_off(s, r, node)
    if row.pending == 0:
        end_s = clock.now_s + row.compute_s
        plan(clock, s.heap, s.event, node, end_s, ON_PREFILL_END)


@kernel
def _set_off(s: State, r: int, node: int) -> None:
    params, clock, row = s.params[0], s.clock[0], s.request[r]
    for place in range(PLACES):
        for tier in range(TIERS):
            blocks = s.found[place, tier]
            if blocks == 0 or (place < FIRST_PEER and tier == HBM):
                continue
            row.pending += 1
            flow = take(s, LOAD if place < FIRST_PEER else FETCH, r, node, tier)
            size_bytes = _bytes(s, place, tier, blocks)
            s.pool[_pool(s, node, place, tier)].read_bytes += size_bytes
            start(s, flow, size_bytes, _links(s, node, place, tier))
    vain = clock.vain
    if vain >= 0:  # the answer is that it is not there
        row.pending += 1
        start(s, take(s, FETCH, r, node, 0), 0.0, _links(s, node, vain, HBM))
    row.legs = 1
    if params.decode_nodes > 0 and params.tail < 1.0 and s.output_tokens[r] > 1:
        row.legs = 2
        hand_off(s, r, node, 1.0 - params.tail)


@kernel
def hand_off(s: State, r: int, node: int, share: float) -> None:
    """Sends a share of the KV cache of r's input to the node that will decode it."""
    size_bytes = s.input_tokens[r] * s.params[0].token_bytes * share
    decoder = s.params[0].nodes + s.request[r].decode_node
    flow = take(s, HAND_OFF, r, decoder, 0)
    start(s, flow, size_bytes, (s.ways[node, TIERS], s.ways[decoder, 0], -1))


@kernel
def loaded(s: State, flow: int) -> None:
    """A transfer that a prefill waits for arrived."""
    clock, row = s.clock[0], s.request[s.flow[flow].request]
    if s.flow[flow].kind == LOAD:
        row.load_s = clock.now_s
    else:
        row.transfer_s = clock.now_s
    row.pending -= 1
    if row.pending == 0:
        begun_s = s.arrival_s[s.flow[flow].request] + row.queue_s
        end_s = max(begun_s + row.compute_s, clock.now_s + row.compute_s * s.params[0].tail)
        plan(clock, s.heap, s.event, s.flow[flow].node, end_s, ON_PREFILL_END)


@kernel
def finish(s: State, node: int) -> int:
    """Prefill of the node's current request ends and is accounted for; which one that was."""
    clock, params = s.clock[0], s.params[0]
    here = s.node[node]
    r = here.current
    row = s.request[r]
    begun_s = s.arrival_s[r] + row.queue_s
    hidden_s = row.compute_s * (1.0 - params.tail)
    exposed_s = max(0.0, clock.now_s - begun_s - row.compute_s)
    row.load_s = min(exposed_s, max(0.0, row.load_s - begun_s - hidden_s))
    row.transfer_s = exposed_s - row.load_s
    here.prefill_busy_s += clock.now_s - begun_s
    here.current = -1
    return int(r)

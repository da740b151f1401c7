"""The loop: the next event, whichever it is, until nothing is left to happen.

`advance` returns early when a table is nearly full; whoever called makes it larger and calls again.
"""

from kvbench.sim.cluster.compiling import held, kernel
from kvbench.sim.cluster.decode import (
    done,
    end_segment,
    interrupt,
    join,
    resume,
    room_for,
    steps_s,
)
from kvbench.sim.cluster.directory import believed, hear
from kvbench.sim.cluster.events import cancel
from kvbench.sim.cluster.placing import expire, keep, written
from kvbench.sim.cluster.prefill import begin, decide, finish, hand_off, loaded
from kvbench.sim.cluster.routing import elsewhere_of, estimate, queued_s, route
from kvbench.sim.cluster.state import FETCH, HAND_OFF, LOAD, State
from kvbench.sim.cluster.transfers import drained, release, seconds
from kvbench.sim.jit import compiled, pointed

ALL_DONE, MORE_FLOWS, MORE_CELLS, MORE_NEWS = range(4)
SPARE_FLOWS = 64  # more than any one event starts


@kernel
def _short(s: State) -> int:
    """Which table one more event could overfill, ALL_DONE if none."""
    clock, most = s.clock[0], s.params[0].most_blocks
    if clock.free_flows < SPARE_FLOWS:
        return MORE_FLOWS
    if clock.free_cells < 8 * most + 64:
        return MORE_CELLS
    if s.params[0].delay_s > 0.0 and len(s.news) - clock.news_count < 12 * most + 64:
        return MORE_NEWS
    return ALL_DONE


@kernel
def _next(s: State, node: int) -> None:
    """The node is free: prefill if one waits, else decode."""
    here = s.node[node]
    if here.waiting > 0:
        r = here.queue_first
        here.queue_first = s.request[r].next
        here.waiting -= 1
        if s.params[0].expires == 1:
            expire(s)
        begin(s, r, node)
    else:
        resume(s, node)


@kernel
def _first_token(s: State, node: int, r: int) -> None:
    """Prefill of r ended on the node: it is handed over, decoded here, or done."""
    clock, params = s.clock[0], s.params[0]
    s.request[r].ttft_s = clock.now_s - s.arrival_s[r]
    if params.decode_nodes > 0:
        s.node[node].outstanding -= 1
        s.node[node].active_blocks -= s.starts[r + 1] - s.starts[r]
    if s.output_tokens[r] <= 1:
        first = params.nodes if params.decode_nodes > 0 else 0
        s.node[first + s.request[r].decode_node].assigned -= 1
        done(s, r, node)
    elif params.decode_nodes == 0:
        join(s, node, r)
    else:
        hand_off(s, r, node, params.tail)


@kernel
def _least_assigned(s: State) -> int:
    """The decode node with the fewest requests in it or on their way; the lowest of equals."""
    first, count = s.params[0].nodes, s.params[0].decode_nodes
    pick = 0
    for d in range(1, count):
        if s.node[first + d].assigned < s.node[first + pick].assigned:
            pick = d
    return pick


@kernel
def _misses(s: State, r: int, node: int, decoder: int, prefill_s: float) -> bool:
    """Whether the request is predicted to miss its objective."""
    params = s.params[0]
    ttft_s = queued_s(s, node) + prefill_s
    if params.decode_nodes > 0 and s.output_tokens[r] > 1:
        size_bytes = s.input_tokens[r] * params.token_bytes * params.tail
        ttft_s += seconds(s, size_bytes, (s.ways[node, 3], s.ways[decoder, 0], -1))
    if ttft_s > params.limit_ttft_s:
        return True
    if s.output_tokens[r] <= 1:
        return False
    added = params.step_sequence_s + params.step_context_s * s.input_tokens[r]
    return bool(steps_s(s, decoder, 1) + added > params.limit_tpot_s)


@kernel
def _arrive(s: State, r: int) -> int:
    """A request arrives: it is routed and queued; its node, or -1 if it is refused."""
    params = s.params[0]
    row = s.request[r]
    if params.expires == 1:
        expire(s)
    believed(s, s.starts[r], s.starts[r + 1], params.nodes)
    elsewhere = elsewhere_of(s, r)
    node = route(s, r, elsewhere)
    d = _least_assigned(s) if params.decode_nodes > 0 else node
    decoder = params.nodes + d if params.decode_nodes > 0 else node
    prefill_s = estimate(s, r, node, elsewhere)
    if params.reject == 1 and _misses(s, r, node, decoder, prefill_s):
        row.node = row.decode_node = -1
        row.queue_s = row.load_s = row.transfer_s = row.compute_s = row.hand_off_s = float("nan")
        row.ttft_s = row.tpot_s = row.finish_s = float("nan")
        return -1
    row.node, row.decode_node = node, d
    row.compute_s = prefill_s
    here = s.node[node]
    here.outstanding += 1
    here.active_blocks += s.starts[r + 1] - s.starts[r]
    s.node[decoder].assigned += 1
    here.waiting_s += prefill_s
    row.next = -1
    if here.waiting == 0:
        here.queue_first = r
    else:
        s.request[here.queue_last].next = r
    here.queue_last = r
    here.waiting += 1
    return int(node)


@kernel
def _arrived(s: State, flow: int) -> int:
    """A transfer arrived: a node that may go on with that, or -1."""
    row = s.flow[flow]
    free = -1
    if row.kind in (LOAD, FETCH):
        loaded(s, flow)
    elif row.kind == HAND_OFF:
        s.request[row.request].legs -= 1
        if s.request[row.request].legs == 0:
            join(s, row.node, row.request)
            if room_for(s, row.node):
                interrupt(s, row.node, True)  # transfers come before steps that end
            if s.node[row.node].segment == 0:
                free = row.node
    else:
        written(s, flow)
    release(s, flow)
    return int(free)


@compiled
def advance(state: State) -> int:  # noqa: C901 - each level of calls takes seconds to compile
    """Runs until all is done (ALL_DONE) or a table has to grow.

    What happens at the same time happens in this order: news, transfers that arrive, prefills that
    end, decode steps that end, requests that arrive.
    """
    s = held(
        state.params,
        state.clock,
        state.options,
        state.node,
        state.link,
        state.ways,
        state.flow,
        state.end,
        state.cell,
        state.news,
        state.heap,
        state.event,
        state.request,
        state.hits,
        state.pool,
        pointed(state.memory),
        state.about,
        state.holders,
        state.sequence,
        state.have,
        state.score,
        state.mask,
        state.found,
        state.peers,
        state.gone,
        state.arrival_s,
        state.input_tokens,
        state.output_tokens,
        state.starts,
        state.ids,
    )
    clock = s.clock[0]
    requests, nodes = len(s.arrival_s), len(s.node)
    while True:
        short = _short(s)
        r = clock.next
        if short != ALL_DONE or (clock.events == 0 and r >= requests):
            return short
        entity = int(s.heap[0]) if clock.events > 0 else -1
        if r < requests and (entity < 0 or s.event[entity].time_s > s.arrival_s[r]):
            entity = -1
        clock.now_s = s.event[entity].time_s if entity >= 0 else s.arrival_s[r]
        clock.handled += 1
        hear(s, clock.now_s)
        free = -1  # a node that has something new to begin
        if entity < 0:
            clock.next += 1
            node = _arrive(s, r)
            if node >= 0 and s.params[0].on_arrival == 1:
                decide(s, r, node)
                keep(s, node, r)
            if node >= 0 and s.node[node].segment == 0 and s.node[node].current < 0:
                free = node
            elif node >= 0:
                interrupt(s, node, False)  # requests come after steps that end
        elif entity < nodes:
            free = entity
            cancel(clock, s.heap, s.event, entity)
            ended = finish(s, entity)
            if s.params[0].on_arrival == 0:
                keep(s, entity, ended)
            _first_token(s, entity, ended)
        elif entity < 2 * nodes:
            free = entity - nodes
            end_segment(s, free)
        elif drained(s, entity - 2 * nodes):
            free = _arrived(s, entity - 2 * nodes)
        if free >= 0:
            _next(s, free)

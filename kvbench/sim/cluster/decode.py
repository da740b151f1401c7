"""Continuous batching: every step gives each sequence of a node's batch one token.

Between two changes of a batch nothing happens but steps, so they are taken many at a time: k steps
from a context of C tokens in B sequences take k (f + p B + c C) + c B k (k - 1) / 2. Sequences join
and leave between steps. On a node that also does prefill, prefill goes first: decode stops at the
end of the step in which a request arrives and goes on when nothing waits for prefill.
"""

from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.events import cancel, plan
from kvbench.sim.cluster.state import ON_DECODE_END, State


@kernel
def steps_s(s: State, node: int, steps: int) -> float:
    """Seconds that the next `steps` steps of the node's batch take."""
    params, here = s.params[0], s.node[node]
    first = (
        params.step_fixed_s
        + params.step_sequence_s * here.batch
        + params.step_context_s * here.context
    )
    growth = params.step_context_s * here.batch
    return float(steps * first + growth * (steps * (steps - 1) / 2.0))


@kernel
def join(s: State, node: int, r: int) -> None:
    """Request r has its first token (or its KV cache has arrived) and waits for a place."""
    here = s.node[node]
    s.request[r].next = -1
    if here.joining == 0:
        here.join_first = r
    else:
        s.request[here.join_last].next = r
    here.join_last = r
    here.joining += 1


@kernel
def _fits(s: State, node: int, r: int) -> bool:
    params, here = s.params[0], s.node[node]
    if here.batch >= params.most_sequences:
        return False
    need = int(s.input_tokens[r]) + int(s.output_tokens[r])
    return bool(
        params.most_context == 0 or here.batch == 0 or here.reserved + need <= params.most_context
    )


@kernel
def _admit(s: State, node: int) -> None:
    """Those who wait join while there is room, in their order."""
    clock, params, here = s.clock[0], s.params[0], s.node[node]
    while here.joining > 0 and _fits(s, node, here.join_first):
        r = here.join_first
        row = s.request[r]
        here.join_first = row.next
        here.joining -= 1
        place = s.sequence[_batch_row(s, node), here.batch]
        place.request = r
        place.last_step = here.steps + s.output_tokens[r] - 1
        here.batch += 1
        here.context += s.input_tokens[r] + 1
        here.reserved += int(s.input_tokens[r]) + int(s.output_tokens[r])
        if params.decode_nodes > 0:
            ended_s = s.arrival_s[r] + row.ttft_s  # of its prefill
            row.hand_off_s = clock.now_s - ended_s
            row.ttft_s = clock.now_s - s.arrival_s[r]


@kernel
def _batch_row(s: State, node: int) -> int:
    return int(node - s.params[0].nodes if s.params[0].decode_nodes > 0 else node)


@kernel
def resume(s: State, node: int) -> None:
    """The node may decode: takes in who waits and goes on until the batch changes."""
    clock, here = s.clock[0], s.node[node]
    _admit(s, node)
    if here.batch == 0:
        return
    row = _batch_row(s, node)
    soonest = s.sequence[row, 0].last_step
    for i in range(1, here.batch):
        soonest = min(soonest, s.sequence[row, i].last_step)
    here.segment = soonest - here.steps
    here.segment_start_s = clock.now_s
    _plan(s, node)


@kernel
def _plan(s: State, node: int) -> None:
    here = s.node[node]
    end_s = here.segment_start_s + steps_s(s, node, here.segment)
    plan(s.clock[0], s.heap, s.event, len(s.node) + node, end_s, ON_DECODE_END)


@kernel
def interrupt(s: State, node: int, just_now: bool) -> None:
    """Decoding stops after the step that is running; `just_now`: one that ends now still is."""
    here = s.node[node]
    now_s = s.clock[0].now_s
    few, many = 1, here.segment  # 0: it does not decode, and nothing changes
    while few < many:
        middle = (few + many) // 2
        end_s = here.segment_start_s + steps_s(s, node, middle)
        if end_s > now_s or (just_now and end_s == now_s):
            many = middle
        else:
            few = middle + 1
    if few < here.segment:
        here.segment = few
        _plan(s, node)


@kernel
def room_for(s: State, node: int) -> bool:
    """Whether the first of those who wait could join the batch after this step."""
    here = s.node[node]
    return here.joining > 0 and _fits(s, node, here.join_first)


@kernel
def done(s: State, r: int, node: int) -> None:
    """The last token of r is out; `node` served it."""
    clock, row = s.clock[0], s.request[r]
    row.finish_s = clock.now_s
    clock.last_s = max(clock.last_s, clock.now_s)
    if s.output_tokens[r] > 1:
        row.tpot_s = (clock.now_s - s.arrival_s[r] - row.ttft_s) / (s.output_tokens[r] - 1)
    else:
        row.tpot_s = float("nan")
    if s.params[0].decode_nodes == 0:
        s.node[node].outstanding -= 1
        s.node[node].active_blocks -= s.starts[r + 1] - s.starts[r]


@kernel
def end_segment(s: State, node: int) -> None:
    """The planned steps are over: contexts have grown, who has all tokens leaves."""
    clock, here = s.clock[0], s.node[node]
    cancel(clock, s.heap, s.event, len(s.node) + node)
    here.steps += here.segment
    here.context += here.segment * here.batch
    here.decode_busy_s += clock.now_s - here.segment_start_s
    here.segment = 0
    row = _batch_row(s, node)
    left = 0
    for i in range(here.batch):
        place = s.sequence[row, i]
        r = place.request
        if place.last_step > here.steps:
            kept = s.sequence[row, left]
            kept.request = r
            kept.last_step = place.last_step
            left += 1
            continue
        tokens = int(s.input_tokens[r]) + int(s.output_tokens[r])
        here.context -= tokens
        here.reserved -= tokens
        here.assigned -= 1
        done(s, r, node)
    here.batch = left

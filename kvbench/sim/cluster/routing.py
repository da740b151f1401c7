"""Which node a request goes to. Every rule gives each node a score; the lowest wins.

What a rule knows: the directory (as late as its news), the load that was routed, predictions of
prefill. It does not know in which tier a block is. Formulas: docs/simulator.md.
"""

import math

from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.draws import below, hashed, uniform
from kvbench.sim.cluster.pools import has
from kvbench.sim.cluster.rules import (
    CACHE_AWARE,
    CONSISTENT_HASH,
    COST,
    LEAST_OUTSTANDING,
    LEAST_WORK,
    LOAD_AWARE,
    LONGEST_PREFIX,
    MOONCAKE,
    POWER_OF_TWO,
    RANDOM,
    ROUND_ROBIN,
    SCORED,
)
from kvbench.sim.cluster.state import CENTRAL_STORE, NO_SHARING, TIERS, State, Table
from kvbench.sim.cluster.transfers import seconds

PICK, SAMPLE, FIRST, SECOND = range(4)  # what a request draws for


@kernel
def prefill_s(params: Table, tokens: int, cached: int) -> float:
    """Seconds to compute what is not cached (`Prefill.seconds`)."""
    n, p = float(tokens), float(cached)
    return float(
        params.fixed_s + params.per_token_s * (n - p) + params.per_token2_s * (n * n - p * p)
    )


@kernel
def cached_tokens(params: Table, tokens: int, blocks: int) -> int:
    """Tokens that `blocks` leading blocks save: at least one is always computed."""
    return int(min(blocks * params.block_tokens, tokens - 1))


@kernel
def queued_s(s: State, node: int) -> float:
    """Predicted seconds until the node would begin something new."""
    row = s.node[node]
    rest = row.current_end_s - s.clock[0].now_s if row.current >= 0 else 0.0
    return float(row.waiting_s + max(0.0, rest))


@kernel
def central_match(s: State, first: int, last: int) -> int:
    """Leading blocks of ids[first:last] that the central store has."""
    p = s.params[0].nodes * TIERS
    for i in range(first, last):
        if not has(s, p, s.ids[i]):
            return i - first
    return last - first


@kernel
def estimate(s: State, r: int, node: int, elsewhere: int) -> float:
    """Predicted seconds from the start of prefill to its end.

    `elsewhere` leading blocks are to be had from a peer or the central store; they are fetched if
    that is more than `fetch_ratio` times what the node has itself (Mooncake's Algorithm 1).
    """
    params = s.params[0]
    tokens = s.input_tokens[r]
    own = cached_tokens(params, tokens, s.have[node])
    best = cached_tokens(params, tokens, elsewhere)
    if best <= params.fetch_ratio * max(own, 1):
        return prefill_s(params, tokens, own)
    size_bytes = (elsewhere - s.have[node]) * params.block_bytes
    out = params.central_read if params.architecture == CENTRAL_STORE else -1
    moving = seconds(s, size_bytes, (out, s.ways[node, 0], -1))
    computing = prefill_s(params, tokens, best)
    return float(max(computing, moving + computing * params.tail))


@kernel
def elsewhere_of(s: State, r: int) -> int:
    """Leading blocks that somebody is believed to have whom any node may ask."""
    params = s.params[0]
    if params.architecture == NO_SHARING:
        return 0
    if params.architecture == CENTRAL_STORE:
        return central_match(s, s.starts[r], s.starts[r + 1])
    best = 0
    for j in range(params.nodes):
        best = max(best, s.have[j])
    return int(best)


@kernel
def lowest(s: State, r: int) -> int:
    """The node with the lowest score; equals by the rule of `random_ties`."""
    params = s.params[0]
    pick, ties = 0, 0
    for j in range(params.nodes):
        if ties == 0 or s.score[j] < s.score[pick]:
            pick, ties = j, 1
        elif s.score[j] == s.score[pick] and params.random_ties == 1:
            ties += 1
            if below(params.seed, r, 16 + ties, ties) == 0:
                pick = j
    return pick


@kernel
def sampled(s: State, r: int, temperature: float) -> int:
    """A node drawn with probability in proportion to exp(-(score / the largest) / temperature).

    Scores count from the least, so that a low temperature ends in the least and not in 0 / 0.
    """
    nodes = s.params[0].nodes
    largest, least = 0.0, s.score[0]
    for j in range(nodes):
        largest = max(largest, s.score[j])
        least = min(least, s.score[j])
    if largest <= 0.0:
        largest = 1.0
    total = 0.0
    for j in range(nodes):
        total += math.exp((least - s.score[j]) / largest / temperature)
    point = uniform(s.params[0].seed, r, SAMPLE) * total
    for j in range(nodes):
        point -= math.exp((least - s.score[j]) / largest / temperature)
        if point < 0.0:
            return j
    return int(nodes - 1)


@kernel
def _without_prefix(s: State, r: int, rule: int) -> int:
    """The node, by a rule that does not ask who has the prefix; -1 if it is another."""
    params = s.params[0]
    nodes = params.nodes
    if rule == RANDOM:
        return below(params.seed, r, PICK, nodes)
    if rule == ROUND_ROBIN:
        s.clock[0].robin += 1
        return int((s.clock[0].robin - 1) % nodes)
    if rule == POWER_OF_TWO:
        a = below(params.seed, r, FIRST, nodes)
        b = (a + 1 + below(params.seed, r, SECOND, max(nodes - 1, 1))) % nodes
        return b if s.node[b].outstanding < s.node[a].outstanding else a
    if rule == CONSISTENT_HASH:
        count = s.starts[r + 1] - s.starts[r]
        name = r if count == 0 else s.ids[s.starts[r] + min(int(s.options[0]), count - 1)]
        for j in range(nodes):  # rendezvous hashing: few move when a node is added
            s.score[j] = -float(hashed(params.seed, name, j))
        return lowest(s, r)
    for j in range(nodes):
        s.score[j] = queued_s(s, j) if rule == LEAST_WORK else float(s.node[j].outstanding)
    if rule in (LEAST_OUTSTANDING, LEAST_WORK):
        return lowest(s, r)
    return -1


@kernel
def _score_cache_aware(s: State, r: int) -> None:
    """Least loaded if uneven, else the longest match if it is long, else the smallest tree."""
    nodes = s.params[0].nodes
    least = most = s.node[0].outstanding
    longest = s.have[0]
    for j in range(nodes):
        least = min(least, s.node[j].outstanding)
        most = max(most, s.node[j].outstanding)
        longest = max(longest, s.have[j])
    uneven = most - least > s.options[1] and most > s.options[2] * least
    tokens = s.input_tokens[r]
    match = cached_tokens(s.params[0], tokens, longest) / tokens
    for j in range(nodes):
        if uneven:
            s.score[j] = float(s.node[j].outstanding)
        elif match > s.options[3]:
            s.score[j] = -float(s.have[j])
        else:
            s.score[j] = float(s.node[j].held_blocks)


@kernel
def _score_weighted(s: State, r: int) -> None:
    """llm-d: each scorer gives 0 to 1, the highest weighted sum wins."""
    params = s.params[0]
    nodes = params.nodes
    least = most = s.node[0].waiting
    for j in range(nodes):
        least = min(least, s.node[j].waiting)
        most = max(most, s.node[j].waiting)
    tokens = s.input_tokens[r]
    for j in range(nodes):
        prefix = cached_tokens(params, tokens, s.have[j]) / tokens
        queue = 1.0 if most == least else (most - s.node[j].waiting) / (most - least)
        free = 1.0 - min(1.0, s.node[j].active_blocks / max(1, s.pool[j * TIERS].capacity))
        s.score[j] = -(s.options[1] * prefix + s.options[2] * queue + s.options[3] * free)


@kernel
def _score_load_aware(s: State, r: int) -> None:
    """Production-stack: match / prompt - beta (L - mean L) / max(1, mean L), the highest wins."""
    nodes = s.params[0].nodes
    total = 0.0
    for j in range(nodes):
        total += s.node[j].outstanding
    mean = total / nodes
    tokens = s.input_tokens[r]
    for j in range(nodes):
        match = cached_tokens(s.params[0], tokens, s.have[j]) / tokens
        s.score[j] = s.options[1] * (s.node[j].outstanding - mean) / max(1.0, mean) - match


@kernel
def route(s: State, r: int, elsewhere: int) -> int:
    """The node for request r; `have` says what each is believed to have of it."""
    params = s.params[0]
    rule = params.router
    pick = _without_prefix(s, r, rule)
    if pick >= 0:
        return pick
    if rule == CACHE_AWARE:
        _score_cache_aware(s, r)
    elif rule == SCORED:
        _score_weighted(s, r)
    elif rule == LOAD_AWARE:
        _score_load_aware(s, r)
    else:
        blocks = s.starts[r + 1] - s.starts[r]
        for j in range(params.nodes):
            if rule == LONGEST_PREFIX:
                s.score[j] = -float(s.have[j])
            elif rule == COST:
                missing = float(blocks - s.have[j])
                s.score[j] = s.options[1] * missing + s.node[j].active_blocks
            elif rule == MOONCAKE:
                s.score[j] = queued_s(s, j) + estimate(s, r, j, elsewhere)
    if rule == COST and s.options[2] > 0.0:
        return sampled(s, r, s.options[2])
    return lowest(s, r)

"""Who is believed to have which block: what routers and peers look in.

A bit for each node and block, in words of 62 nodes. News of a block that came or went takes
`directory_delay_s` to arrive; a node's own tiers are never looked up here.
"""

from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.pools import has
from kvbench.sim.cluster.state import TIERS, WORD_BITS, State, Table


@kernel
def _set(holders: Table, node: int, block: int, came: bool) -> None:
    word, bit = node // WORD_BITS, 1 << (node % WORD_BITS)
    if came:
        holders[block, word] = holders[block, word] | bit
    else:
        holders[block, word] = holders[block, word] & ~bit


@kernel
def _tell(s: State, node: int, block: int, came: bool) -> None:
    """News for all: at once, or after the delay."""
    clock, delay = s.clock[0], s.params[0].delay_s
    if delay <= 0.0:
        _set(s.holders, node, block, came)
        return
    row = s.news[(clock.news_first + clock.news_count) % len(s.news)]
    row.due_s = clock.now_s + delay
    row.id = block
    row.node = node
    row.came = 1 if came else 0
    clock.news_count += 1


@kernel
def hear(s: State, now_s: float) -> None:
    """Everything due by now becomes known, in the order in which it happened."""
    clock = s.clock[0]
    while clock.news_count > 0:
        row = s.news[clock.news_first]
        if row.due_s > now_s:
            return
        _set(s.holders, int(row.node), row.id, row.came == 1)
        clock.news_first = (clock.news_first + 1) % len(s.news)
        clock.news_count -= 1


@kernel
def tier_of(s: State, node: int, block: int) -> int:
    """The fastest of the node's tiers that has the block, -1 if none."""
    for tier in range(TIERS):
        if has(s, node * TIERS + tier, block):
            return tier
    return -1


@kernel
def came(s: State, node: int, block: int) -> None:
    """A tier of the node got the block."""
    s.node[node].held_blocks += 1
    _tell(s, node, block, True)


@kernel
def went(s: State, node: int, block: int) -> None:
    """A tier of the node lost the block; others hear of it if no other tier of the node has it."""
    s.node[node].held_blocks -= 1
    if tier_of(s, node, block) < 0:
        _tell(s, node, block, False)


@kernel
def believed(s: State, first: int, last: int, nodes: int) -> None:
    """Fills `have`: leading blocks of ids[first:last] that each node is believed to have."""
    words = s.holders.shape[1]
    for j in range(nodes):
        s.have[j] = last - first
    for w in range(words):
        s.mask[0, w] = (1 << min(WORD_BITS, nodes - w * WORD_BITS)) - 1
    for i in range(first, last):
        alive = 0
        for w in range(words):
            was = s.mask[0, w]
            now = was & s.holders[s.ids[i], w]
            lost = was & ~now
            if lost:
                for j in range(w * WORD_BITS, min(nodes, (w + 1) * WORD_BITS)):
                    if lost >> (j - w * WORD_BITS) & 1:
                        s.have[j] = i - first
                s.mask[0, w] = now
            alive |= now
        if alive == 0:
            return


@kernel
def best_peer(s: State, node: int, first: int, last: int) -> int:
    """The other node believed to have the longest run from ids[first], -1 if nobody has it.

    Among equals, the one that sends the fewest transfers, then the lowest number.
    """
    nodes, words = s.params[0].nodes, s.holders.shape[1]
    for w in range(words):
        s.mask[1, w] = (1 << min(WORD_BITS, nodes - w * WORD_BITS)) - 1
    s.mask[1, node // WORD_BITS] &= ~(1 << (node % WORD_BITS))
    for i in range(first, last):
        alive = 0
        for w in range(words):
            alive |= s.mask[1, w] & s.holders[s.ids[i], w]
        if alive == 0:
            if i == first:
                return -1
            break
        for w in range(words):
            s.mask[1, w] &= s.holders[s.ids[i], w]
    best, fewest = -1, 0
    for j in range(nodes):
        if s.mask[1, j // WORD_BITS] >> (j % WORD_BITS) & 1:
            sending = s.link[s.ways[j, TIERS]].flows
            if best < 0 or sending < fewest:
                best, fewest = j, sending
    return best

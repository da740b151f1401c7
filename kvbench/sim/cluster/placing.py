"""How blocks get from tier to tier: what a node keeps, and what goes down when room is made.

A block that loses its place goes to the next lower tier that the node has (write-back), unless it
is there already; with write-through new blocks are written to every tier below at once and those
that lose their place are just forgotten. A block on its way down can be read from nowhere until
its bytes have arrived; what does not fit in the staging buffer is dropped and counted.
"""

from kvbench.sim.cluster.compiling import kernel
from kvbench.sim.cluster.directory import came, tier_of, went
from kvbench.sim.cluster.pools import evict, expired, has, hold, is_full, put, take_out, use
from kvbench.sim.cluster.state import CENTRAL_STORE, DEMOTE, HBM, PEERS, PUBLISH, TIERS, State
from kvbench.sim.cluster.transfers import release, start, take


@kernel
def _lose(s: State, block: int) -> None:
    clock = s.clock[0]
    s.gone[clock.gone] = block
    clock.gone += 1


@kernel
def place(s: State, p: int, block: int) -> None:
    """The block, which pool p does not have, comes in; what has to go for it is in `gone`.

    It stays out if nothing may go, and goes straight on if the pool has no capacity.
    """
    central = p == s.params[0].nodes * TIERS
    if s.pool[p].place < 0:
        _lose(s, block)
        return
    use(s, p, block)  # policies with ghosts learn from what was missed
    if is_full(s, p):
        old = evict(s, p)
        if old < 0:
            return
        _lose(s, old)
        if not central:
            went(s, p // TIERS, old)
    put(s, p, block)
    if not central:
        came(s, p // TIERS, block)


@kernel
def expire(s: State) -> None:
    """Blocks that "ttl" lets go leave all tiers at which their time is over; nothing goes down."""
    pools = len(s.pool)
    for p in range(pools):
        while True:
            block = expired(s, p)
            if block < 0:
                break
            if p < pools - 1:
                went(s, p // TIERS, block)


@kernel
def _stage(s: State, flow: int, p: int, block: int) -> bool:
    """Adds a block to a transfer into pool p, unless the staging buffer is full."""
    row = s.pool[p]
    if row.staged >= row.staging:
        row.dropped += 1
        return False
    row.staged += 1
    clock = s.clock[0]
    at = clock.free_cell
    cell = s.cell[at]
    clock.free_cell = cell.next
    clock.free_cells -= 1
    cell.id = block
    cell.next = s.flow[flow].cells
    s.flow[flow].cells = at
    return True


@kernel
def _send(s: State, flow: int, p: int, blocks: int, links: tuple[int, int, int]) -> None:
    if blocks == 0:
        release(s, flow)
        return
    size_bytes = blocks * s.params[0].block_bytes
    s.pool[p].write_bytes += size_bytes
    start(s, flow, size_bytes, links)


@kernel
def demote(s: State, node: int, tier: int) -> None:
    """Sends what `gone` holds from the node's `tier` down, in one transfer."""
    clock = s.clock[0]
    count = clock.gone
    clock.gone = 0
    under = tier + 1
    while under < TIERS and s.pool[node * TIERS + under].place < 0:
        under += 1
    if under == TIERS or s.params[0].through == 1 or count == 0:
        return
    p = node * TIERS + under
    flow = take(s, DEMOTE, -1, node, under)
    blocks = 0
    for i in range(count - 1, -1, -1):  # a list is built from its end
        if not has(s, p, s.gone[i]) and _stage(s, flow, p, s.gone[i]):
            blocks += 1
    _send(s, flow, p, blocks, (s.ways[node, TIERS + under], -1, -1))


@kernel
def _is_fetched(s: State, r: int, position: int) -> bool:
    """Whether the block came from a peer or the central store, as far as is still known."""
    return bool(s.request[r].local <= position < s.request[r].blocks_used)


@kernel
def _write(s: State, node: int, r: int, p: int, central: bool) -> None:
    """Writes the blocks of request r that pool p lacks to it, in one transfer."""
    flow = take(s, PUBLISH if central else DEMOTE, -1, node, 0 if central else p % TIERS)
    blocks = 0
    first = s.starts[r]
    for i in range(s.starts[r + 1] - 1, first - 1, -1):
        if s.request[r].kept == 0 and _is_fetched(s, r, i - first):
            continue
        if not has(s, p, s.ids[i]) and _stage(s, flow, p, s.ids[i]):
            blocks += 1
    if central:
        _send(s, flow, p, blocks, (s.ways[node, TIERS], s.params[0].central_write, -1))
    else:
        _send(s, flow, p, blocks, (s.ways[node, TIERS + p % TIERS], -1, -1))


@kernel
def written(s: State, flow: int) -> None:
    """A transfer into a lower tier or the central store arrived: its blocks can be read."""
    row = s.flow[flow]
    clock, params = s.clock[0], s.params[0]
    p = params.nodes * TIERS if row.kind == PUBLISH else row.node * TIERS + row.tier
    exclusive = row.kind == DEMOTE and params.inclusive == 0 and params.through == 0
    at = row.cells
    while at >= 0:
        cell = s.cell[at]
        block, after = int(cell.id), cell.next
        cell.next = clock.free_cell
        clock.free_cell = at
        clock.free_cells += 1
        s.pool[p].staged -= 1
        at = after
        if has(s, p, block) or (exclusive and has(s, row.node * TIERS, block)):
            continue  # somebody else wrote it, or it came back up on its way
        place(s, p, block)
    if row.kind == PUBLISH:
        clock.gone = 0
    else:
        demote(s, row.node, row.tier)


@kernel
def _own(s: State, node: int, block: int) -> bool:
    return tier_of(s, node, block) > HBM


@kernel
def _keep_one(s: State, node: int, r: int, i: int) -> None:
    """Block i of the trace, of request r, is in the node's HBM from now on, if it may stay."""
    params, row = s.params[0], s.request[r]
    top, block = node * TIERS + HBM, s.ids[i]
    if has(s, top, block):
        use(s, top, block)
        return
    fetched = _is_fetched(s, r, i - s.starts[r]) and not _own(s, node, block)
    if fetched and row.kept == 0:
        return
    if fetched and params.architecture == PEERS:
        s.clock[0].replicated += 1
    place(s, top, block)
    if params.inclusive == 0 and params.through == 0 and s.pool[top].place >= 0:
        for t in range(1, TIERS):
            if has(s, node * TIERS + t, block):
                take_out(s, node * TIERS + t, block)
                went(s, node, block)


@kernel
def _keep_leaf_first(s: State, node: int, r: int) -> None:
    """Those that are there are touched tail first, and none goes to make room for the others."""
    top, first, last = node * TIERS + HBM, s.starts[r], s.starts[r + 1]
    for i in range(last - 1, first - 1, -1):
        if has(s, top, s.ids[i]):
            use(s, top, s.ids[i])
            hold(s, top, s.ids[i], True)
    for i in range(first, last):
        if not has(s, top, s.ids[i]):
            _keep_one(s, node, r, i)
            hold(s, top, s.ids[i], True)
    for i in range(first, last):
        hold(s, top, s.ids[i], False)


@kernel
def keep(s: State, node: int, r: int) -> None:
    """The blocks of r, computed and loaded, are in HBM; what had to go for them goes down.

    Flat policies see the blocks from head to tail.
    """
    params = s.params[0]
    if s.pool[node * TIERS + HBM].leaf == 1:
        _keep_leaf_first(s, node, r)
    else:
        for i in range(s.starts[r], s.starts[r + 1]):
            _keep_one(s, node, r, i)
    demote(s, node, HBM)
    for t in range(1, TIERS):
        if params.through == 1 and s.pool[node * TIERS + t].place >= 0:
            _write(s, node, r, node * TIERS + t, False)
    if params.architecture == CENTRAL_STORE:
        _write(s, node, r, params.nodes * TIERS, True)

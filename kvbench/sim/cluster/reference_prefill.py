"""Prefill and placing of blocks in the slow simulator. See `kvbench.sim.cluster.reference`."""

import math
from dataclasses import dataclass, field

from kvbench.sim.cluster.reference_cluster import Cluster, Job, Node
from kvbench.sim.cluster.reference_parts import Link, Pool, alone_s
from kvbench.sim.scenario import Architecture

MOST_PEERS = 4
HBM, DRAM, NVME, PEER, CENTRAL = range(5)


@dataclass
class Source:
    """Blocks that come from one place: how many, how, and when that would be done."""

    hit: int  # HBM ... CENTRAL
    pool: Pool
    links: list[Link]
    block_bytes: float
    blocks: int = 0

    @property
    def free(self) -> bool:
        """Whether nothing has to be moved."""
        return self.hit == HBM

    @property
    def bytes(self) -> float:
        """All of them."""
        return self.blocks * self.block_bytes


@dataclass
class Found:
    """Leading blocks of a request: in HBM, in the node's tiers, anywhere; and where."""

    top: int = 0
    local: int = 0
    used: int = 0
    near: dict[int, Source] = field(default_factory=dict[int, Source])  # the first `local`
    later: dict[int, Source] = field(default_factory=dict[int, Source])  # the node's, after others
    peers: dict[tuple[int, int], Source] = field(default_factory=dict[tuple[int, int], Source])
    asked: list[int] = field(default_factory=list[int])  # peers, in order
    central: Source | None = None
    vain: Node | None = None

    def sources(self) -> list[Source]:
        """Of what is used, in the order in which transfers start."""
        peers = [
            self.peers[peer, tier]
            for peer in self.asked
            for tier in range(3)
            if (peer, tier) in self.peers
        ]
        own = [sources[t] for sources in (self.near, self.later) for t in sorted(sources)]
        return own + peers + ([self.central] if self.central else [])


def _own(cluster: Cluster, node: Node, tier: int) -> Source:
    link = node.read[tier]
    return Source(tier, node.pools[tier], [link] if link else [], cluster.block_bytes)


def look(cluster: Cluster, job: Job, node: Node) -> Found:
    """Where the request's leading blocks are now."""
    found = Found()
    peer = -1
    for at, block in enumerate(job.blocks):
        tier = node.tier_of(block)
        if tier >= 0:
            where = found.near if found.local == found.used else found.later
            where.setdefault(tier, _own(cluster, node, tier)).blocks += 1
            if tier == HBM and found.top == found.used:
                found.top += 1
            if found.local == found.used:
                found.local += 1
            found.used += 1
            continue
        if cluster.central is not None:
            if block not in cluster.central:
                break
            links = [cluster.central_read, node.receive]
            size = cluster.block_bytes
            found.central = found.central or Source(CENTRAL, cluster.central, links, size)
            found.central.blocks += 1
        elif cluster.scenario.architecture is Architecture.P2P:
            peer = _ask(cluster, found, job.blocks[at:], node, peer)
            if peer < 0:
                break
        else:
            break
        found.used += 1
    return found


def _ask(cluster: Cluster, found: Found, blocks: list[int], node: Node, before: int) -> int:
    """The peer that gives blocks[0], counted in `found`; -1 if none does."""
    peer = before
    if peer < 0 or cluster.nodes[peer].tier_of(blocks[0]) < 0:
        runs = {
            n.number: cluster.directory.run(n.number, blocks)
            for n in cluster.nodes
            if n is not node
        }
        longest = max(runs.values(), default=0)
        if longest == 0:
            return -1
        best = [n for n, run in runs.items() if run == longest]
        peer = min(best, key=lambda n: len(cluster.nodes[n].send.flows))
    known = peer in found.asked
    if not known and len(found.asked) < MOST_PEERS:
        found.asked.append(peer)
    other = cluster.nodes[peer]
    tier = other.tier_of(blocks[0])
    if tier < 0:
        cluster.stale += 1
        found.vain = other if peer in found.asked else None
        return -1
    if peer not in found.asked:
        return -1
    read = other.read[tier]
    size = cluster.block_bytes
    if tier == HBM:
        size = cluster.scenario.kv_bytes_per_token * cluster.scenario.block_tokens
    links = [*([read] if read else []), other.send, node.receive]
    source = found.peers.setdefault((peer, tier), Source(PEER, other.pools[tier], links, size))
    source.blocks += 1
    return peer


def _end_s(cluster: Cluster, job: Job, blocks: int, sources: list[Source]) -> float:
    loading = max([alone_s(s.links, s.bytes) for s in sources if not s.free], default=0.0)
    computing = cluster.prefill_s(job, cluster.cached(job, blocks))
    return max(computing, loading + computing * cluster.tail)


def decide(cluster: Cluster, job: Job, node: Node) -> Found:
    """What of the prefix is used, by what is soonest; equal times go to the longer prefix."""
    found = look(cluster, job, node)
    local, whole = cluster.cached(job, found.local), cluster.cached(job, found.used)
    if whole <= cluster.fetch_ratio * max(local, 1):
        found.used = found.local
    ratio = cluster.scenario.replicate_ratio
    if cluster.scenario.architecture is Architecture.P2P:
        whole = cluster.cached(job, found.used)
        job.kept = whole / max(local, 1) > ratio or (found.local == 0 and math.isfinite(ratio))
    if cluster.scenario.recompute_if_faster:
        all_s = math.inf
        if found.used > found.local:
            all_s = _end_s(cluster, job, found.used, found.sources())
        near_s = _end_s(cluster, job, found.local, list(found.near.values()))
        top_s = _end_s(cluster, job, found.top, [])
        if all_s > min(near_s, top_s):
            found.used = found.top if near_s > top_s else found.local
    if found.used <= found.local:
        found.later, found.peers, found.central = {}, {}, None
    if found.used < found.local:
        found.near = {HBM: _own(cluster, node, HBM)} if found.used else {}
        for source in found.near.values():
            source.blocks = found.used
    job.local, job.used = min(found.local, found.used), found.used
    job.cached = cluster.cached(job, found.used)
    for source in found.sources():
        job.hits[source.hit] += source.blocks
    _touch(cluster, job, node)
    return found


def _touch(cluster: Cluster, job: Job, node: Node) -> None:
    """Blocks that are read from the node's lower tiers or the central store are used there."""
    used = job.blocks[: job.used]
    for blocks, leaf_first in ((used, False), (used[::-1], True)):
        for block in blocks:
            tier = node.tier_of(block)
            p = node.pools[tier] if tier >= 0 else cluster.central
            if p is not None and tier != HBM and p.leaf_first == leaf_first:
                p.use(block)


def keep(cluster: Cluster, job: Job, node: Node) -> None:
    """The request's blocks are in HBM; what had to go for them goes down."""
    demote(cluster, node, HBM, _fill(cluster, job, node, node.pools[HBM]))
    if cluster.scenario.write_through:
        for tier in (DRAM, NVME):
            if node.pools[tier].policy is not None:
                _write(cluster, job, node, node.pools[tier], tier)
    if cluster.central is not None:
        _write(cluster, job, node, cluster.central, CENTRAL)


def _fill(cluster: Cluster, job: Job, node: Node, top: Pool) -> list[int]:
    """Brings the request's blocks into HBM; what lost its place."""
    lost: list[int] = []
    if not top.leaf_first:
        for position, block in enumerate(job.blocks):
            if block in top:
                top.use(block)
            else:
                lost += _bring(cluster, job, node, position)
        return lost
    here = [block for block in job.blocks[::-1] if block in top]
    top.held.update(here)
    for block in here:
        top.use(block)
    for position, block in enumerate(job.blocks):
        if block not in top:
            lost += _bring(cluster, job, node, position)
            top.held.add(block)
    top.held.clear()
    return lost


def _bring(cluster: Cluster, job: Job, node: Node, position: int) -> list[int]:
    """One block that HBM does not have comes into it; what lost its place."""
    block, top = job.blocks[position], node.pools[HBM]
    if job.local <= position < job.used and node.tier_of(block) < 0:
        if not job.kept:
            return []
        cluster.replicated += cluster.scenario.architecture is Architecture.P2P
    came, lost = top.place(block)
    _tell(cluster, node, block, came, lost)
    exclusive = not cluster.scenario.inclusive and not cluster.scenario.write_through
    if exclusive and top.policy is not None:
        for lower in node.pools[1:]:
            if block in lower:
                lower.take_out(block)
                cluster.went(node, block)
    return lost


def _tell(cluster: Cluster, node: Node, block: int, came: bool, lost: list[int]) -> None:
    for old in lost:
        if old != block:
            cluster.went(node, old)
    if came:
        cluster.directory.tell(node.number, block, True)


def demote(cluster: Cluster, node: Node, tier: int, lost: list[int]) -> None:
    """What lost its place in a tier goes to the next lower one."""
    under = next((t for t in range(tier + 1, 3) if node.pools[t].policy is not None), None)
    if under is None or cluster.scenario.write_through:
        return
    _send(cluster, node, node.pools[under], under, lost[::-1])


def _write(cluster: Cluster, job: Job, node: Node, p: Pool, tier: int) -> None:
    blocks = [
        block
        for position, block in enumerate(job.blocks)
        if job.kept or not job.local <= position < job.used
    ]
    _send(cluster, node, p, tier, blocks[::-1])


def _send(cluster: Cluster, node: Node, p: Pool, tier: int, blocks: list[int]) -> None:
    """Blocks that the pool lacks are written to it; `blocks` is last first."""
    staged: list[int] = []
    for block in blocks:
        if block in p:
            continue
        if p.staged >= p.tier.staging_blocks:
            p.dropped += 1
            continue
        p.staged += 1
        staged.insert(0, block)
    if not staged:
        return
    link = node.write[tier] if tier < CENTRAL else None
    links = [node.send, cluster.central_write] if link is None else [link]
    p.write_bytes += len(staged) * cluster.block_bytes
    cluster.net.send(
        links,
        len(staged) * cluster.block_bytes,
        lambda: _written(cluster, node, p, tier, staged),
    )


def _written(cluster: Cluster, node: Node, p: Pool, tier: int, blocks: list[int]) -> None:
    exclusive = not cluster.scenario.inclusive and not cluster.scenario.write_through
    all_lost: list[int] = []
    for block in blocks:
        p.staged -= 1
        if block in p or (tier < CENTRAL and exclusive and block in node.pools[HBM]):
            continue
        came, lost = p.place(block)
        if tier < CENTRAL:
            _tell(cluster, node, block, came, lost)
            all_lost += lost
    if tier < CENTRAL:
        demote(cluster, node, tier, all_lost)

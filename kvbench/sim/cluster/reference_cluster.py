"""The cluster of the slow simulator: nodes, their tiers and links, who waits; predicted times.

Makes nothing happen. See `kvbench.sim.cluster.reference`.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import msgspec

from kvbench.sim.cluster.build import own_tiers
from kvbench.sim.cluster.reference_parts import (
    Agenda,
    Directory,
    Link,
    Network,
    Pool,
    alone_s,
    pool,
)
from kvbench.sim.cluster.rules import numbers_of
from kvbench.sim.columns import Columns
from kvbench.sim.scenario import Architecture, Path, Scenario, Tier

TRANSFER, PREFILL, DECODE = range(3)


@dataclass
class Job:
    """A request on its way."""

    number: int
    arrival_s: float
    tokens: int
    output: int
    blocks: list[int]
    node: int = -1
    decoder: int = -1
    decode_node: int = -1
    hits: list[int] = field(default_factory=lambda: [0] * 5)
    used: int = 0
    local: int = 0
    kept: bool = True
    cached: int = 0
    estimate_s: float = 0.0
    begun_s: float = 0.0
    compute_s: float = math.nan
    loaded_s: float = 0.0
    fetched_s: float = 0.0
    pending: int = 0
    legs: int = 1
    moves: list[tuple[str, Pool, list[Link], float]] = field(
        default_factory=list[tuple[str, Pool, list[Link], float]]
    )
    queue_s: float = math.nan
    load_s: float = math.nan
    transfer_s: float = math.nan
    hand_off_s: float = math.nan
    ttft_s: float = math.nan
    tpot_s: float = math.nan
    finish_s: float = math.nan
    last_step: int = 0


class Node:
    """A node: its tiers, its links, who waits, who decodes."""

    def __init__(self, number: int, tiers: list[Tier], network: Path) -> None:
        self.number = number
        self.receive = Link(network)
        # A latency is counted where it is received
        self.send = Link(msgspec.structs.replace(network, latency_s=0.0))
        self.read = [Link(t.read) if t.read is not None else None for t in tiers]
        self.write = [
            Link(t.write) if t.write is not None else read
            for t, read in zip(tiers, self.read, strict=True)
        ]
        self.pools: list[Pool] = []
        self.queue: deque[Job] = deque()
        self.waiting_s = 0.0
        self.current: Job | None = None
        self.current_end_s = 0.0
        self.outstanding: list[Job] = []
        self.joining: deque[Job] = deque()
        self.assigned = 0
        self.batch: list[Job] = []
        self.steps = 0
        self.segment: tuple[float, int, int] | None = None  # start, context then, steps so far
        self.prefill_busy_s = 0.0
        self.decode_busy_s = 0.0

    def tier_of(self, block: int) -> int:
        """The fastest tier that has the block, -1 if none."""
        return next((t for t, p in enumerate(self.pools) if block in p), -1)

    @property
    def context(self) -> int:
        """Tokens of the batch so far."""
        return sum(j.tokens + j.output - (j.last_step - self.steps) for j in self.batch)


class Cluster:
    """Nodes and links, and the requests to come."""

    def __init__(self, columns: Columns, scenario: Scenario) -> None:
        self.scenario = scenario
        self.agenda = Agenda()
        self.net = Network(self.agenda)
        self.directory = Directory(scenario.nodes, scenario.directory_delay_s, self.agenda)
        self.rule, self.numbers = scenario.router.name, numbers_of(scenario.router)[1]
        self.tail = 1.0 / scenario.layers if scenario.overlap else 1.0
        self.stale = self.replicated = 0
        self.turn = 0
        network = scenario.network or Path(latency_s=0.0, bytes_per_s=math.inf)
        tiers = own_tiers(scenario)
        self.jobs = [_job(columns, r) for r in range(columns.requests)]
        about: dict[int, tuple[int | None, int]] = {}
        for job in self.jobs:
            for depth, block in enumerate(job.blocks):
                about[block] = (job.blocks[depth - 1] if depth else None, depth)
        self.nodes = [Node(n, tiers, network) for n in range(scenario.nodes)]
        for node in self.nodes:
            node.pools = [pool(t, columns.unique_blocks, about, self.agenda) for t in tiers]
        count = scenario.nodes
        self.decoders = [Node(count + d, [], network) for d in range(scenario.decode_nodes)]
        self.decoders = self.decoders or self.nodes
        self.central: Pool | None = None
        if scenario.architecture is Architecture.CENTRAL and scenario.central is not None:
            self.central = pool(scenario.central, columns.unique_blocks, about, self.agenda)
            read = scenario.central.read
            assert read is not None
            self.central_read = Link(read)
            write = scenario.central.write
            self.central_write = Link(write) if write is not None else self.central_read
        self.block_bytes = scenario.block_tokens * (
            scenario.stored_bytes_per_token or scenario.kv_bytes_per_token
        )

    def cached(self, job: Job, blocks: int) -> int:
        """Tokens that so many leading blocks save."""
        return min(blocks * self.scenario.block_tokens, job.tokens - 1)

    def prefill_s(self, job: Job, cached: int) -> float:
        """Seconds to compute what is not cached."""
        n, p, prefill = float(job.tokens), float(cached), self.scenario.prefill
        return (
            prefill.fixed_s + prefill.per_token_s * (n - p) + prefill.per_token2_s * (n * n - p * p)
        )

    def queued_s(self, node: Node) -> float:
        """Predicted seconds until the node begins something new."""
        rest = node.current_end_s - self.agenda.now_s if node.current else 0.0
        return node.waiting_s + max(0.0, rest)

    def estimate(self, job: Job, node: Node, have: int, elsewhere: int) -> float:
        """Predicted seconds of its prefill there."""
        own, best = self.cached(job, have), self.cached(job, elsewhere)
        if best <= self.fetch_ratio * max(own, 1):
            return self.prefill_s(job, own)
        links = [self.central_read, node.receive] if self.central else [node.receive]
        moving = alone_s(links, (elsewhere - have) * self.block_bytes)
        computing = self.prefill_s(job, best)
        return max(computing, moving + computing * self.tail)

    @property
    def fetch_ratio(self) -> float:
        """How much longer a prefix has to be elsewhere to be fetched."""
        return self.numbers["threshold"] if self.rule == "mooncake" else 1.0

    def steps_s(self, batch: int, context: int, steps: int) -> float:
        """Seconds of so many steps of a batch."""
        decode = self.scenario.decode
        first = (
            decode.fixed_s + decode.per_sequence_s * batch + decode.per_context_token_s * context
        )
        growth = decode.per_context_token_s * batch
        return steps * first + growth * (steps * (steps - 1) / 2.0)

    def elsewhere(self, job: Job, have: list[int]) -> int:
        """Leading blocks that somebody has whom any node may ask."""
        if self.central is not None:
            central = self.central
            return next((n for n, b in enumerate(job.blocks) if b not in central), len(job.blocks))
        return max(have) if self.scenario.architecture is Architecture.P2P else 0

    def went(self, node: Node, block: int) -> None:
        """A tier of the node lost the block."""
        if node.tier_of(block) < 0:
            self.directory.tell(node.number, block, False)

    def expire(self) -> None:
        """Blocks whose time is over leave all tiers."""
        for node in self.nodes:
            for p in node.pools:
                for block in p.expire():
                    self.went(node, block)
        if self.central is not None:
            self.central.expire()


def _job(columns: Columns, r: int) -> Job:
    first, last = int(columns.starts[r]), int(columns.starts[r + 1])
    return Job(
        number=r,
        arrival_s=float(columns.arrival_s[r]),
        tokens=int(columns.input_tokens[r]),
        output=int(columns.output_tokens[r]),
        blocks=columns.ids[first:last].tolist(),
    )

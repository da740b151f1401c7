"""What is simulated: nodes, their tiers and links, how requests are routed and blocks are shared.

Plain data with its units, checked once when it is made. Knows neither traces nor how a simulation
runs. Times of computing and moving come from `kvbench.sim.model`, which says how it knows them.
"""

import math
from enum import StrEnum

import msgspec

from kvbench.errors import UsageError


class Architecture(StrEnum):
    """Who may read a block that a node has computed."""

    NONE = "none"  # nobody else
    CENTRAL = "central"  # everybody, from one store that all nodes write to and read from
    P2P = "p2p"  # everybody, straight from the tiers of the node that has it


class Prefill(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds to compute the KV cache of n tokens of which p are cached, causal attention.

    fixed_s + per_token_s (n - p) + per_token2_s (n^2 - p^2)
    """

    fixed_s: float
    per_token_s: float
    per_token2_s: float

    def seconds(self, tokens: int, cached_tokens: int = 0) -> float:
        """Of a request with `tokens` of input, the first `cached_tokens` of them at hand."""
        new = tokens - cached_tokens
        squares = tokens * tokens - cached_tokens * cached_tokens
        return self.fixed_s + self.per_token_s * new + self.per_token2_s * squares


class Decode(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one step of a batch: every sequence gets one token.

    fixed_s + per_sequence_s * sequences + per_context_token_s * (sum of their context lengths)
    """

    fixed_s: float
    per_sequence_s: float
    per_context_token_s: float
    most_sequences: int = 256  # of a node at a time; more wait
    most_context_tokens: int = 0  # of a batch, with what it will still generate; 0: no limit


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """A way for bytes. Transfers at the same time share `bytes_per_s` evenly.

    A lone transfer of b bytes takes latency_s + b / min(bytes_per_s, flow_bytes_per_s).
    """

    latency_s: float
    bytes_per_s: float
    flow_bytes_per_s: float = math.inf  # what one transfer can use at most

    def __post_init__(self) -> None:
        if not (
            0 <= self.latency_s < math.inf and min(self.bytes_per_s, self.flow_bytes_per_s) > 0
        ):
            raise UsageError(
                f"a path of {self.bytes_per_s:g} bytes/s, {self.flow_bytes_per_s:g} for one "
                f"transfer, and {self.latency_s:g} s: expected speeds above 0 and a latency of at "
                "least 0"
            )


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node keeps blocks. `read` leads to HBM, `write` from it; HBM itself needs neither.

    HBM's capacity is what is left for blocks that may be used again: the running batch has its own
    (`Decode.most_context_tokens`). Without `write`, reads and writes share `read`.
    """

    name: str  # "hbm" | "dram" | "nvme"
    capacity_blocks: int  # of one node; 0: the node has no such tier
    eviction: str = "lru"  # a name of `kvbench.policy`
    read: Path | None = None
    write: Path | None = None
    staging_blocks: int = 4096  # on their way into it at most; more are dropped


class Router(msgspec.Struct, frozen=True, kw_only=True):
    """Which node a request goes to: a name of `kvbench.sim.cluster.routing` and its numbers."""

    name: str = "least-outstanding"
    options: dict[str, float] = {}  # those that the rule knows; others are refused


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """What a request has to reach to count as good."""

    ttft_s: float = math.inf
    tpot_s: float = math.inf
    reject: bool = False  # refuse on arrival what is predicted to miss it


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster under one rule set. Every node is alike."""

    nodes: int  # that compute prefill; of an aggregated cluster all
    decode_nodes: int = 0  # 0: aggregated, each node does both
    architecture: Architecture = Architecture.NONE
    router: Router = Router()
    prefill: Prefill
    decode: Decode
    tiers: tuple[Tier, ...]  # fastest first; the first is HBM
    block_tokens: int
    kv_bytes_per_token: float  # of the whole model, on all ranks of a node
    stored_bytes_per_token: float = 0.0  # below HBM, if quantised there; 0: the same
    layers: int = 1  # transfers may hide behind all but one layer's prefill
    overlap: bool = True  # layer-wise
    network: Path | None = None  # of one node, each way: peers, central store, prefill to decode
    central: Tier | None = None  # capacity of the whole store; its paths are shared by all nodes
    directory_delay_s: float = 0.0  # p2p: until others know of a block that came or went
    replicate_ratio: float = math.inf  # p2p: copy a prefix that is this much longer elsewhere
    recompute_if_faster: bool = True  # else whatever is found is loaded
    write_through: bool = False  # new blocks go to every tier at once; else down when they must go
    inclusive: bool = True  # a block that comes up stays below as well
    on_arrival: bool = False  # caches change when a request arrives, as in replays without time
    objective: Objective = Objective()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.decode_nodes < 0:
            raise UsageError(
                f"nodes {self.nodes}, decode_nodes {self.decode_nodes}: expected at least 1 and 0"
            )
        if self.block_tokens < 1 or not self.kv_bytes_per_token > 0:
            raise UsageError(
                f"block_tokens {self.block_tokens}, kv_bytes_per_token {self.kv_bytes_per_token}: "
                "expected more than 0"
            )
        if self.layers < 1 or self.decode.most_sequences < 1 or not self.directory_delay_s >= 0:
            raise UsageError(
                f"layers {self.layers}, most_sequences {self.decode.most_sequences}, "
                f"directory_delay_s {self.directory_delay_s:g}: expected at least 1, 1 and 0"
            )
        if not self.tiers or self.tiers[0].name != "hbm":
            raise UsageError("tiers: expected HBM first, then dram and nvme where a node has them")
        if self.architecture is Architecture.CENTRAL and self.central is None:
            raise UsageError("architecture central: expected the central store's capacity and path")
        if self.architecture is not Architecture.NONE and self.network is None:
            raise UsageError(f"architecture {self.architecture}: expected the network's path")

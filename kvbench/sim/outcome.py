"""What a simulation gives: columns with a row for each request, and what nodes and paths did.

All of it is simulated. Reads no trace and simulates nothing; percentiles, hit rates and costs are
computed from the columns by whoever shows them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
# Counts and numbers of nodes; of ten million requests the narrow kinds matter
I64 = NDArray[np.signedinteger[Any]]

# Columns of `hit_blocks`: where the blocks were that a request found
SOURCES = ("hbm", "dram", "nvme", "peer", "central")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """n requests in order of arrival. Times in seconds; NaN for those that were refused."""

    arrival_s: F64  # (n,)
    input_tokens: I64
    output_tokens: I64
    blocks: I64  # of the input, the last possibly partial
    node: I64  # that computed the prefill, -1: refused
    decode_node: I64
    hit_blocks: I64  # (n, len(SOURCES)): leading blocks that were used, by where they came from
    cached_tokens: I64  # that were not computed: at most input_tokens - 1
    # The critical path to the first token; the five add up to ttft_s
    queue_s: F64  # waiting for the node
    load_s: F64  # waiting for blocks of the node's own tiers, beyond what computing hid
    transfer_s: F64  # waiting for blocks of peers or the central store, beyond what computing hid
    compute_s: F64  # prefill of what was not cached
    hand_off_s: F64  # prefill to decode, of a disaggregated cluster, and waiting there
    ttft_s: F64
    tpot_s: F64  # mean time of the tokens after the first; NaN with less than two
    finish_s: F64


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What nodes and paths did in `duration_s` seconds from the first arrival to the last finish.

    `tiers` are those of the scenario, in its order. Where reads and writes of a tier share a path,
    both busy times are the path's.
    """

    duration_s: float
    prefill_busy_s: F64  # (nodes,)
    decode_busy_s: F64  # (nodes or decode_nodes,)
    read_bytes: F64  # (nodes, tiers) from each tier, by the node and its peers
    read_busy_s: F64
    write_bytes: F64
    write_busy_s: F64
    network_bytes: F64  # (nodes,) received
    network_busy_s: F64
    central_bytes: F64  # (2,) read, written
    central_busy_s: F64
    evicted_blocks: I64  # (nodes, tiers)
    dropped_blocks: I64  # (nodes, tiers): on their way into it, for want of staging room
    stale_hints: int  # p2p: looked for at a peer that no longer had it
    replicated_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One simulation."""

    requests: Requests
    use: Use

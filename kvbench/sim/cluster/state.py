"""The state of a simulation as tables: what the compiled loop reads and writes.

Each table is a record array with named columns, so that the loop reads like the model it runs and
still has no object in it. Whatever may fill up while a simulation runs (transfers, blocks on their
way, news) grows between two events; nothing here grows with the number of requests except the
trace and one row a request.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

# A table: np.recarray. Its columns are dynamic, so no type checker can follow them.
Table = Any

HBM, DRAM, NVME, PEER, CENTRAL = range(5)
TIERS = 3  # a node's own
NO_SHARING, CENTRAL_STORE, PEERS = range(3)
WORD_BITS = 62  # of the directory's words: a mask stays a positive int64
MOST_PEERS = 4  # that one request fetches from
OWN_FIRST, OWN_LATER, FIRST_PEER = 0, 1, 2  # rows of `found`
FROM_CENTRAL = FIRST_PEER + MOST_PEERS
PLACES = FROM_CENTRAL + 1

# What a transfer is for
LOAD, FETCH, DEMOTE, PUBLISH, HAND_OFF = range(5)

# Events at the same time happen in this order; equals by number of node, or the older transfer.
ON_ARRIVAL_OF_BYTES, ON_PREFILL_END, ON_DECODE_END = range(3)  # then the arrival of a request

PARAMETERS: DTypeLike = [
    ("nodes", "i8"),
    ("decode_nodes", "i8"),
    ("architecture", "i8"),
    ("router", "i8"),
    ("block_tokens", "i8"),
    ("words", "i8"),
    ("hbm_block_bytes", "f8"),
    ("block_bytes", "f8"),
    ("token_bytes", "f8"),
    ("fixed_s", "f8"),
    ("per_token_s", "f8"),
    ("per_token2_s", "f8"),
    ("step_fixed_s", "f8"),
    ("step_sequence_s", "f8"),
    ("step_context_s", "f8"),
    ("most_sequences", "i8"),
    ("most_context", "i8"),
    ("tail", "f8"),  # the share of prefill that cannot run before the last byte is there
    ("delay_s", "f8"),
    ("fetch_ratio", "f8"),
    ("replicate_ratio", "f8"),
    ("recompute", "i8"),
    ("through", "i8"),
    ("inclusive", "i8"),
    ("on_arrival", "i8"),
    ("limit_ttft_s", "f8"),
    ("limit_tpot_s", "f8"),
    ("reject", "i8"),
    ("expires", "i8"),  # whether any tier has "ttl"
    ("seed", "i8"),
    ("random_ties", "i8"),
    ("central_read", "i8"),
    ("central_write", "i8"),
    ("most_blocks", "i8"),
]
CLOCK: DTypeLike = [
    ("now_s", "f8"),
    ("next", "i8"),  # request to arrive
    ("transfers", "i8"),  # so far
    ("events", "i8"),  # in the heap
    ("robin", "i8"),  # whose turn it is in round-robin
    ("free_flow", "i8"),
    ("free_flows", "i8"),
    ("free_cell", "i8"),
    ("free_cells", "i8"),
    ("news_first", "i8"),
    ("news_count", "i8"),
    ("gone", "i8"),
    ("stale", "i8"),
    ("vain", "i8"),  # row of `found` of a peer that was asked for what it does not have, or -1
    ("replicated", "i8"),
    ("handled", "i8"),  # events so far
    ("last_s", "f8"),  # when the last request finished
]
NODE: DTypeLike = [
    ("queue_first", "i8"),
    ("queue_last", "i8"),
    ("waiting", "i8"),
    ("waiting_s", "f8"),  # predicted prefill seconds of those that wait
    ("current", "i8"),  # request in prefill
    ("current_end_s", "f8"),  # predicted
    ("outstanding", "i8"),
    ("active_blocks", "i8"),
    ("held_blocks", "i8"),  # in any of its tiers, counted in each
    ("join_first", "i8"),
    ("join_last", "i8"),
    ("joining", "i8"),
    ("assigned", "i8"),
    ("batch", "i8"),
    ("context", "i8"),
    ("reserved", "i8"),
    ("steps", "i8"),
    ("segment", "i8"),  # steps planned, 0: not decoding
    ("segment_start_s", "f8"),
    ("prefill_busy_s", "f8"),
    ("decode_busy_s", "f8"),
]
LINK: DTypeLike = [
    ("bytes_per_s", "f8"),
    ("flow_bytes_per_s", "f8"),
    ("latency_s", "f8"),
    ("flows", "i8"),
    ("first", "i8"),
    ("last", "i8"),
    ("since_s", "f8"),
    ("busy_s", "f8"),
    ("bytes", "f8"),
]
FLOW: DTypeLike = [
    ("kind", "i8"),
    ("request", "i8"),
    ("node", "i8"),
    ("tier", "i8"),
    ("left_bytes", "f8"),
    ("rate", "f8"),
    ("most", "f8"),
    ("settled_s", "f8"),
    ("latency_s", "f8"),
    ("draining", "i8"),
    ("cells", "i8"),
    ("next_free", "i8"),
]
END: DTypeLike = [
    ("link", "i8"),
    ("next", "i8"),
    ("prev", "i8"),
]  # flow f on its i-th link: 3 f + i
CELL: DTypeLike = [("id", "i4"), ("next", "i8")]
NEWS: DTypeLike = [("due_s", "f8"), ("id", "i4"), ("node", "i2"), ("came", "i1")]
EVENT: DTypeLike = [("time_s", "f8"), ("rank", "i8"), ("turn", "i8"), ("place", "i8")]
REQUEST: DTypeLike = [
    ("queue_s", "f8"),
    ("load_s", "f8"),
    ("transfer_s", "f8"),
    ("compute_s", "f8"),
    ("hand_off_s", "f8"),
    ("ttft_s", "f8"),
    ("tpot_s", "f8"),
    ("finish_s", "f8"),
    ("cached", "i4"),
    ("next", "i4"),  # in the queue it waits in
    ("blocks_used", "i4"),
    ("node", "i2"),
    ("decode_node", "i2"),
    ("pending", "i2"),  # transfers it waits for
    ("peer", "i2"),  # the first it fetches from
    ("legs", "i2"),  # of its hand-off that are still to come
    ("kept", "i1"),
    ("local", "i4"),
]
POOL: DTypeLike = [
    ("place", "i8"),  # in `memory`, -1: no capacity
    ("capacity", "i8"),
    ("leaf", "i8"),
    ("ttl_s", "f8"),  # 0: no such policy
    ("evicted", "i8"),
    ("dropped", "i8"),
    ("staged", "i8"),
    ("staging", "i8"),
    ("read_bytes", "f8"),
    ("write_bytes", "f8"),
]
SEQUENCE: DTypeLike = [("request", "i8"), ("last_step", "i8")]


class State(NamedTuple):
    """All of a simulation. Tables by name of what a row is."""

    params: Table  # one row
    clock: Table  # one row
    options: Table  # float64 (8,): the router's numbers
    node: Table  # prefill nodes, then decode nodes
    link: Table
    ways: Table  # int64 (nodes, 6): links: 0 receive, 1-2 read a tier, 3 send, 4-5 write a tier
    flow: Table
    end: Table
    cell: Table
    news: Table
    heap: Table  # int64: entities, soonest first
    event: Table  # by entity: prefill of each node, decode of each node, each flow
    request: Table
    hits: Table  # int32 (n, 5)
    pool: Table  # node 0 hbm, dram, nvme, node 1 ..., the central store
    memory: Table  # int64: the pools of kvbench.sim.replay_kernels
    about: Table  # int32 (unique blocks, 2): parent and depth; one row if no policy asks
    holders: Table  # int64 (unique blocks, words): bit of each node that has the block
    sequence: Table  # (nodes with decode, most_sequences)
    have: Table  # int64 (nodes,): leading blocks that the directory knows of
    score: Table  # float64 (nodes,)
    mask: Table  # int64 (2, words)
    found: Table  # int64 (PLACES, TIERS): blocks of a plan
    peers: Table  # int64 (MOST_PEERS,)
    gone: Table  # int32: blocks that lost their place in an event
    arrival_s: Table
    input_tokens: Table
    output_tokens: Table
    starts: Table
    ids: Table


def table(columns: DTypeLike, rows: int | tuple[int, int]) -> Table:
    """Of zeros."""
    return np.zeros(rows, dtype=np.dtype(columns, align=True)).view(np.recarray)


def grown(old: Table, rows: int) -> Table:
    """The same table with more rows of zeros at its end."""
    new = np.zeros((rows, *old.shape[1:]), dtype=old.dtype)
    new[: len(old)] = old
    return new.view(np.recarray)

"""What users of other simulators complain about must not happen here; computed by hand.

Each case names what was seen elsewhere: storage that is never charged, offload that is free,
prefixes that are there before they are computed, bytes counted twice, hits without a tier.
"""

import math
import random
from typing import Any

import msgspec
import numpy as np
import pytest

from kvbench.errors import UsageError
from kvbench.sim.cluster import simulate
from kvbench.sim.cluster.reference import Reference
from kvbench.sim.outcome import SOURCES
from kvbench.sim.scenario import Architecture, Decode, Objective, Prefill, Router, Scenario
from tests.sim import cluster_cases
from tests.sim.clusters import BLOCK_BYTES, columns, path, scenario, tier

pytestmark = pytest.mark.timeout(600)  # compiling takes a minute where nothing is on disk yet

A, B, C = [0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]
APART_S = 1000.0  # so long that all is quiet again


def times(count: int) -> list[float]:
    return [APART_S * i for i in range(count)]


def hits(outcome: Any, request: int) -> dict[str, int]:
    found = dict(zip(SOURCES, outcome.requests.hit_blocks[request].tolist(), strict=True))
    return {name: blocks for name, blocks in found.items() if blocks}


def two_tiers(**changes: Any) -> Scenario:
    """HBM for one request of four blocks, DRAM for many; a block takes a second to load."""
    dram = tier("dram", 100, BLOCK_BYTES)
    return scenario(tiers=(tier("hbm", 4), dram), **changes)


def test_a_cached_prefix_shortens_prefill_but_one_token_is_always_computed() -> None:
    outcome = simulate(columns(times(2), [A, A]), scenario())
    assert outcome.requests.ttft_s.tolist() == [40.0, 1.0]
    assert outcome.requests.cached_tokens.tolist() == [0, 39]


def test_blocks_that_come_from_a_tier_are_waited_for() -> None:
    outcome = simulate(columns(times(3), [A, B, [*A, 4, 5]]), two_tiers())
    assert hits(outcome, 2) == {"dram": 4}
    assert outcome.requests.load_s.tolist() == [0.0, 0.0, 4.0]
    assert outcome.requests.ttft_s[2] == 4.0 + 20.0


@pytest.mark.parametrize("layers", [1, 2, 10])
@pytest.mark.parametrize("new_blocks", [1, 3, 9])
@pytest.mark.parametrize("block_s", [1.0, 8.0])
def test_loads_hide_behind_all_but_one_layer_of_computing(
    layers: int, new_blocks: int, block_s: float
) -> None:
    tiers = (tier("hbm", 4), tier("dram", 100, BLOCK_BYTES / block_s))
    outcome = simulate(
        columns(times(3), [A, B, [*A, *range(30, 30 + new_blocks)]]),
        scenario(tiers=tiers, overlap=True, layers=layers, recompute_if_faster=False),
    )
    hidden_s = 10.0 * new_blocks * (layers - 1) / layers
    exposed_s = max(0.0, 4 * block_s - hidden_s)
    assert outcome.requests.load_s[2] == pytest.approx(exposed_s)
    assert outcome.requests.ttft_s[2] == pytest.approx(10.0 * new_blocks + exposed_s)


def test_what_is_computed_sooner_than_loaded_is_computed() -> None:
    trace = columns(times(3), [A, B, A])
    slow = (tier("hbm", 4), tier("dram", 100, BLOCK_BYTES / 100))
    computed = simulate(trace, scenario(tiers=slow))
    loaded = simulate(trace, scenario(tiers=slow, recompute_if_faster=False))
    assert (computed.requests.ttft_s[2], hits(computed, 2)) == (40.0, {})
    assert computed.use.read_bytes.sum() == 0.0
    assert (loaded.requests.ttft_s[2], hits(loaded, 2)) == (401.0, {"dram": 4})


def test_offloading_slows_loads_that_share_its_path() -> None:
    # B pushes A out; while A is being written, C, which came before, is loaded.
    trace = columns([0.0, APART_S, 2 * APART_S, 2 * APART_S + 41.0], [C, A, B, C])
    apart, shared = (
        simulate(
            trace,
            scenario(tiers=(tier("hbm", 4), tier("dram", 100, BLOCK_BYTES, write=write))),
        )
        for write in (path(BLOCK_BYTES / 10), None)
    )
    assert apart.requests.load_s[3] == 4.0
    assert shared.requests.load_s[3] > 5.0
    assert apart.use.write_bytes[0, 1] == shared.use.write_bytes[0, 1] > 0


def test_an_offloaded_block_can_be_loaded_only_once_it_was_written() -> None:
    # B ends at 1040 and pushes A out: 40 bytes at a byte a second.
    slow = (tier("hbm", 4), tier("dram", 100, math.inf, write=path(1.0)))
    for arrival_s, expected in ((1079.0, {}), (1081.0, {"dram": 4})):
        outcome = simulate(columns([0.0, 1000.0, arrival_s], [A, B, A]), scenario(tiers=slow))
        assert hits(outcome, 2) == expected


def test_blocks_that_find_no_room_on_their_way_down_are_dropped_and_counted() -> None:
    small = (tier("hbm", 4), tier("dram", 100, BLOCK_BYTES, staging_blocks=3))
    outcome = simulate(columns(times(3), [A, B, A]), scenario(tiers=small))
    assert outcome.use.dropped_blocks.tolist() == [[0, 2]]  # one of A's four, then one of B's
    assert outcome.use.evicted_blocks.tolist() == [[8, 0]]


def test_a_prefix_is_not_there_before_it_was_computed() -> None:
    # The second comes while the first is being computed, to the other node; the fourth afterwards.
    trace = columns([0.0, 10.0, APART_S, APART_S], [A, A, A, A])
    outcome = simulate(trace, scenario(nodes=2, architecture=Architecture.P2P, network=path(1e9)))
    assert [hits(outcome, i) for i in range(4)] == [{}, {}, {"hbm": 4}, {"hbm": 4}]


def test_blocks_come_from_the_tier_where_they_are_and_are_counted_there() -> None:
    tiers = (tier("hbm", 4), tier("dram", 4, 1e9), tier("nvme", 100, 1e9))
    trace = columns(times(4), [A, B, C, A])
    outcome = simulate(trace, scenario(tiers=tiers, inclusive=False))
    assert hits(outcome, 3) == {"nvme": 4}
    again = simulate(columns(times(4), [A, B, C, B]), scenario(tiers=tiers))
    assert hits(again, 3) == {"dram": 4}
    assert hits(simulate(columns(times(4), [A, B, C, C]), scenario(tiers=tiers)), 3) == {"hbm": 4}


def test_lower_tiers_are_asked_though_there_is_room_in_hbm() -> None:
    # The first two blocks of A are in HBM, the others in DRAM.
    trace = columns(times(3), [A, [50, 51], A])
    leaf = (tier("hbm", 4, eviction="leaf-lru"), tier("dram", 100, BLOCK_BYTES))
    outcome = simulate(trace, scenario(tiers=leaf))
    assert hits(outcome, 2) == {"hbm": 2, "dram": 2}


def test_bytes_read_are_those_of_the_blocks_that_were_hit_and_no_more() -> None:
    bytes_of = {"hbm": 0.0, "dram": 3.0, "nvme": 3.0}
    tiers = (tier("hbm", 6), tier("dram", 8, 100.0), tier("nvme", 30, 50.0))
    draw = np.random.default_rng(1)
    blocks = [
        [100 * family + depth for depth in range(size)]
        for family, size in zip(draw.integers(0, 9, 300), draw.integers(1, 9, 300), strict=True)
    ]
    outcome = simulate(
        columns(times(300), blocks),
        scenario(tiers=tiers, stored_bytes_per_token=0.3, recompute_if_faster=False),
    )
    assert outcome.requests.hit_blocks.sum(axis=0)[:3].min() > 0
    for column, (name, size_bytes) in enumerate(bytes_of.items()):
        expected = outcome.requests.hit_blocks[:, column].sum() * size_bytes
        assert outcome.use.read_bytes[0, column] == pytest.approx(expected), name
    # Every written byte is that of a block that HBM or DRAM lost and that the tier below lacked.
    assert outcome.use.write_bytes[0, 1] <= 3.0 * outcome.use.evicted_blocks[0, 0]
    assert outcome.use.write_bytes[0, 2] <= 3.0 * outcome.use.evicted_blocks[0, 1]


def test_write_through_writes_each_new_block_to_every_tier_once() -> None:
    tiers = (tier("hbm", 4), tier("dram", 100, 1e9), tier("nvme", 100, 1e9))
    trace = columns(times(4), [A, B, A, B])
    outcome = simulate(trace, scenario(tiers=tiers, write_through=True))
    assert outcome.use.write_bytes.tolist() == [[0.0, 80.0, 80.0]]


@pytest.mark.parametrize(("inclusive", "written_blocks"), [(True, 8), (False, 12)])
def test_an_inclusive_tier_keeps_what_comes_up_and_need_not_be_written_again(
    inclusive: bool, written_blocks: int
) -> None:
    outcome = simulate(columns(times(4), [A, B, A, B]), two_tiers(inclusive=inclusive))
    assert hits(outcome, 3) == {"dram": 4}
    assert outcome.use.write_bytes[0, 1] == written_blocks * BLOCK_BYTES


def test_two_transfers_on_one_link_take_turns() -> None:
    # Loads of 4 and 2 blocks from the central store begin together: 1 shares until the shorter
    # ends at 4 s, and the longer ends at 6 s.
    trace = columns([0.0, 100.0, APART_S, APART_S], [A, B, A, B[:2]])
    outcome = simulate(
        trace,
        scenario(
            nodes=2,
            tiers=(tier("hbm", 0),),
            architecture=Architecture.CENTRAL,
            central=tier("central", 100, BLOCK_BYTES),
            network=path(1e9),
        ),
    )
    assert [hits(outcome, i) for i in (2, 3)] == [{"central": 4}, {"central": 2}]
    np.testing.assert_allclose(outcome.requests.transfer_s[2:], [6.0, 4.0], rtol=1e-6)
    assert outcome.use.central_bytes.tolist() == [60.0, 80.0]
    assert outcome.use.central_busy_s[0] == pytest.approx(6.0)


def peers(**changes: Any) -> Scenario:
    """Two nodes that take turns, and a link between them on which a block takes a second."""
    return scenario(
        nodes=2, architecture=Architecture.P2P, network=path(BLOCK_BYTES, 0.5), **changes
    )


def test_a_peers_blocks_cross_the_network_and_are_kept_only_if_asked_for() -> None:
    trace = columns(times(3), [A, A, [60]])
    used = simulate(trace, peers())
    assert hits(used, 1) == {"peer": 4}
    assert used.requests.transfer_s[1] == 4.5
    assert (used.use.network_bytes.tolist(), used.use.replicated_blocks) == ([0.0, 40.0], 0)
    trace = columns(times(4), [A, A, [60], A])
    assert hits(simulate(trace, peers()), 3) == {"peer": 4}
    kept = simulate(trace, peers(replicate_ratio=1.0))
    assert (hits(kept, 3), kept.use.replicated_blocks) == ({"hbm": 4}, 4)


def test_who_asks_a_peer_for_what_it_no_longer_has_waits_for_the_answer() -> None:
    # B pushes A out of node 0 long before the directory says so.
    trace = columns([0.0, 200.0, 400.0, 600.0], [A, [60], B, A])
    late = peers(tiers=(tier("hbm", 4),), directory_delay_s=300.0)
    outcome = simulate(trace, late)
    assert (outcome.use.stale_hints, hits(outcome, 3)) == (1, {})
    assert outcome.requests.ttft_s[3] == 40.0 + 0.5
    told = simulate(trace, peers(tiers=(tier("hbm", 4),), directory_delay_s=100.0))
    assert (told.use.stale_hints, told.requests.ttft_s[3]) == (0, 40.0)


def test_nobody_knows_of_a_block_before_the_directory_does() -> None:
    for delay_s, expected in ((900.0, {"peer": 4}), (961.0, {})):
        outcome = simulate(columns(times(2), [A, A]), peers(directory_delay_s=delay_s))
        assert hits(outcome, 1) == expected


def test_the_prefix_that_decode_needs_is_handed_over() -> None:
    apart = scenario(decode_nodes=1, network=path(BLOCK_BYTES, 0.5))
    outcome = simulate(columns([0.0], [A], outputs=[2]), apart)
    assert outcome.requests.hand_off_s.tolist() == [4.5]
    assert outcome.requests.ttft_s.tolist() == [44.5]
    assert outcome.use.network_bytes.tolist() == [0.0, 40.0]
    layered = msgspec.structs.replace(apart, overlap=True, layers=4)
    outcome = simulate(columns([0.0], [A], outputs=[2]), layered)
    assert outcome.requests.hand_off_s.tolist() == [1.5]  # the last layer
    assert outcome.use.network_bytes.tolist() == [0.0, 40.0]


def test_a_step_takes_longer_the_more_sequences_and_context_it_has() -> None:
    decode = Decode(fixed_s=1.0, per_sequence_s=0.25, per_context_token_s=0.01)
    one = simulate(columns([0.0], tokens=[100], outputs=[4]), scenario(decode=decode))
    steps_s = [1.0 + 0.25 + 0.01 * context for context in (101, 102, 103)]
    assert one.requests.tpot_s[0] == pytest.approx(sum(steps_s) / 3)
    first_s = Prefill(fixed_s=1.0, per_token_s=0.0, per_token2_s=0.0)
    two = simulate(
        columns([0.0, 0.0], tokens=[100, 100], outputs=[4, 4]),
        scenario(decode=decode, prefill=first_s),
    )
    steps_s = [1.0 + 0.5 + 0.02 * context for context in (101, 102, 103)]
    assert two.requests.tpot_s[1] == pytest.approx(sum(steps_s) / 3)


def test_decode_stops_for_prefill_at_the_end_of_a_step() -> None:
    decode = Decode(fixed_s=10.0, per_sequence_s=0.0, per_context_token_s=0.0)
    trace = columns([0.0, 25.0], tokens=[1, 7], outputs=[5, 1])
    rows = simulate(trace, scenario(decode=decode)).requests
    assert rows.queue_s.tolist() == [0.0, 6.0]  # steps end at 11, 21, 31
    assert rows.finish_s.tolist() == [48.0, 38.0]


def test_a_request_that_is_predicted_to_be_late_is_refused_and_takes_no_time() -> None:
    trace = columns([0.0, 1.0, 2.0], tokens=[40, 40, 10])
    strict = scenario(objective=Objective(ttft_s=50.0, reject=True))
    rows = simulate(trace, strict).requests
    assert rows.node.tolist() == [0, -1, 0]
    assert np.isnan(rows.ttft_s).tolist() == [False, True, False]
    assert rows.ttft_s[2] == 48.0
    assert simulate(trace, scenario()).requests.node.tolist() == [0, 0, 0]


class Watched(Reference):
    """Looks at every tier and every batch after every event."""

    def _happen(self) -> None:
        super()._happen()
        decode = self.scenario.decode
        for node in self.cluster.nodes:
            for pool in node.pools:
                assert pool.policy is None or len(pool.policy) <= pool.tier.capacity_blocks
                assert 0 <= pool.staged <= pool.tier.staging_blocks
        for node in self.cluster.decoders:
            assert len(node.batch) <= decode.most_sequences
            reserved = sum(job.tokens + job.output for job in node.batch)
            assert (
                not decode.most_context_tokens
                or len(node.batch) == 1
                or (reserved <= decode.most_context_tokens)
            )


@pytest.mark.parametrize("number", range(0, 72, 3))
def test_no_tier_holds_more_than_it_can_and_no_node_decodes_more_than_it_may(number: int) -> None:
    draw = random.Random(number)
    trace = cluster_cases.trace(draw)
    kinds = [(each, rule) for each in Architecture for rule in ("round-robin", "mooncake")]
    jobs = Watched(trace, cluster_cases.scenario(draw, *kinds[number % len(kinds)])).run()
    assert all(job.node < 0 or job.finish_s >= job.arrival_s for job in jobs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": Router(name="nearest")}, "router 'nearest'"),
        ({"router": Router(name="cost", options={"weight": 1.0})}, "has no option 'weight'"),
        ({"tiers": (tier("hbm", 1), tier("tape", 1))}, "tier 'tape'"),
        ({"tiers": (tier("hbm", 1, eviction="mru"),)}, "no eviction policy is called 'mru'"),
        ({"tiers": (tier("hbm", 1), tier("dram", 1, read=None))}, "expected the path"),
        ({"block_tokens": 16}, "they have to be the same"),
        ({"layers": 0}, "layers 0"),
        ({"decode_nodes": -1}, "decode_nodes -1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        simulate(columns([0.0], [A]), scenario(**changes))


@pytest.mark.parametrize(("bytes_per_s", "latency_s"), [(0.0, 0.0), (math.nan, 0.0), (1.0, -1.0)])
def test_a_path_that_cannot_be_is_refused(bytes_per_s: float, latency_s: float) -> None:
    with pytest.raises(UsageError, match=r"^a path of .*: expected speeds above 0 "):
        path(bytes_per_s, latency_s)


def test_a_trace_with_a_request_of_no_input_is_refused() -> None:
    with pytest.raises(UsageError, match="requests without input"):
        simulate(columns([0.0, 1.0], tokens=[5, 0]), scenario())


def test_a_trace_without_requests_gives_an_outcome_without_any() -> None:
    outcome = simulate(columns([]), scenario())
    assert (len(outcome.requests.ttft_s), outcome.use.duration_s) == (0, 0.0)

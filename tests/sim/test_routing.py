"""Routing rules: worked examples from their authors' manuals, and what each does with ties."""

import math
from collections import Counter
from typing import Any

import pytest

from kvbench.sim.cluster import simulate
from kvbench.sim.cluster.reference_cluster import Cluster, Job
from kvbench.sim.cluster.reference_routing import ROUTES, route
from kvbench.sim.cluster.rules import RULES
from kvbench.sim.scenario import Architecture, Prefill, Router
from tests.sim.clusters import BLOCK_BYTES, BLOCK_TOKENS, columns, path, scenario

pytestmark = pytest.mark.timeout(600)  # compiling takes a minute where nothing is on disk yet

LONG = Prefill(fixed_s=1e6, per_token_s=0.0, per_token2_s=0.0)  # nothing ends
# Dynamo's manual: a request of 10 blocks; workers that have 2, 5 and 8 of them and decode 10, 5, 9.
CACHED, DECODING = [2, 5, 8], [10, 5, 9]


def job(blocks: int, number: int = 0) -> Job:
    return Job(
        number=number,
        arrival_s=0.0,
        tokens=BLOCK_TOKENS * blocks,
        output=1,
        blocks=list(range(blocks)),
    )


def cluster(loads: list[int], rule: str, **numbers: float) -> Cluster:
    """Nodes with so many blocks outstanding, each block a request."""
    made = Cluster(
        columns([0.0], [range(10)]),
        scenario(nodes=len(loads), router=Router(name=rule, options=numbers)),
    )
    for node, load in zip(made.nodes, loads, strict=True):
        node.outstanding = [job(1) for _ in range(load)]
    return made


@pytest.mark.parametrize(
    ("weight", "costs"), [(1, [18, 10, 11]), (0, [10, 5, 9]), (2, [26, 15, 13])]
)
def test_the_worked_example_of_dynamos_manual_gives_its_costs(
    weight: float, costs: list[int]
) -> None:
    made = cluster(DECODING, "cost", overlap_weight=weight)
    assert route(made, job(10), CACHED) == costs.index(min(costs))


@pytest.mark.parametrize(("weight", "node"), [(1.0, 2), (0.0, 2)])
def test_the_loop_sends_the_request_of_the_example_where_the_manual_does(
    weight: float, node: int
) -> None:
    # Three requests that never end leave the nodes as in the manual, its workers 1, 3 and 2.
    prefix = list(range(10))
    before = [[*prefix[:2], *range(20, 28)], [*prefix[:8], 30], prefix[:5]]
    options = {"overlap_weight": weight, "random_ties": 0.0}
    rows = simulate(
        columns([0.0, 1.0, 2.0, 3.0], [*before, prefix]),
        scenario(
            nodes=3, router=Router(name="cost", options=options), prefill=LONG, on_arrival=True
        ),
    ).requests
    assert rows.node.tolist() == [0, 1, 2, node]


def test_a_temperature_draws_by_a_softmax_of_costs_over_the_largest() -> None:
    made = cluster(DECODING, "cost", temperature=0.5)
    count = 20_000
    drawn = Counter(route(made, job(10, number), CACHED) for number in range(count))
    shares = [math.exp(-cost / 18 / 0.5) for cost in (18, 10, 11)]
    for node, share in enumerate(shares):
        expected = share / sum(shares)
        assert drawn[node] / count == pytest.approx(expected, abs=4 * math.sqrt(0.25 / count))


def test_cache_aware_goes_by_load_if_that_is_uneven_else_by_a_long_match_else_by_the_tree() -> None:
    long_match, short_match = [0, 4, 0], [0, 2, 0]
    assert route(cluster([200, 200, 9], "cache-aware"), job(10), long_match) == 2
    assert route(cluster([64, 64, 0], "cache-aware"), job(10), long_match) == 1  # 64 is not uneven
    assert route(cluster([300, 300, 210], "cache-aware"), job(10), long_match) == 1  # nor is 1.43
    made = cluster([0, 0, 0], "cache-aware")
    for node, held in zip(made.nodes, (3, 2, 1), strict=True):
        for block in range(held):
            node.pools[0].place(block)
    assert route(made, job(10), short_match) == 2


def test_weighted_scorers_give_each_node_the_weighted_sum_of_what_each_scorer_says() -> None:
    made = cluster([0, 0, 0], "scored")
    for node, waiting in zip(made.nodes, (2, 1, 0), strict=True):
        node.queue.extend(job(1) for _ in range(waiting))
    # Prefix 3 x (1, .5, 0), queue 2 x (0, .5, 1): 3, 2.5 and 2, with utilisation the same.
    assert route(made, job(1000), [1000, 500, 0]) == 0
    assert route(made, job(1000), [300, 500, 0]) == 1
    assert route(made, job(1000), [100, 100, 0]) == 2


def test_load_aware_weighs_the_match_against_the_load_above_the_mean() -> None:
    # Mean load 4: 1 - .5, .9 - .25, 0 + .75
    assert route(cluster([6, 5, 1], "load-aware"), job(1000), [1000, 900, 0]) == 2
    assert route(cluster([6, 5, 1], "load-aware", beta=0.1), job(1000), [1000, 900, 0]) == 0


@pytest.mark.parametrize(
    ("architecture", "threshold", "node"),
    [(Architecture.P2P, 1.0, 1), (Architecture.P2P, 3.0, 0), (Architecture.NONE, 1.0, 0)],
)
def test_mooncake_takes_the_least_of_queue_transfer_and_prefill(
    architecture: Architecture, threshold: float, node: int
) -> None:
    # Node 0 has 8 of 10 blocks and is busy for 30 s: 30 + 20. Node 1 has 4: 60, or, if it fetches
    # what is twice as long elsewhere, 4 + 20; a block takes a second to move.
    router = Router(name="mooncake", options={"threshold": threshold})
    made = Cluster(
        columns([]),
        scenario(nodes=2, architecture=architecture, router=router, network=path(BLOCK_BYTES)),
    )
    made.nodes[0].waiting_s = 30.0
    assert route(made, job(10), [8, 4]) == node


def test_power_of_two_takes_the_less_loaded_of_two_that_are_drawn() -> None:
    drawn = Counter(
        route(cluster([0, 5, 9], "power-of-two"), job(1, number), [0, 0, 0])
        for number in range(3000)
    )
    # The first is drawn in two pairs of three and then wins, the second in one.
    assert drawn[0] / 3000 == pytest.approx(2 / 3, abs=0.04)
    assert drawn[2] == 0


def test_a_conversation_stays_where_it_is_when_a_node_is_added() -> None:
    def places(nodes: int) -> list[int]:
        made = cluster([0] * nodes, "consistent-hash", block=0.0)
        found: list[int] = []
        for name in range(2000):
            each = job(1)
            each.blocks = [name]
            found.append(route(made, each, [0] * nodes))
        return found

    few, more = places(4), places(5)
    moved = [b for a, b in zip(few, more, strict=True) if a != b]
    assert set(moved) == {4}
    assert len(moved) / 2000 == pytest.approx(1 / 5, abs=0.04)
    assert max(Counter(few).values()) < 600


@pytest.mark.parametrize("rule", [name for name, (_, has) in RULES.items() if "random_ties" in has])
def test_equals_are_drawn_or_the_lowest_number_wins_as_asked(rule: str) -> None:
    for ties, expected in ((1.0, {0, 1, 2}), (0.0, {0})):
        made = cluster([0, 0, 0], rule, random_ties=ties)
        assert {route(made, job(4, number), [0, 0, 0]) for number in range(60)} == expected


def test_every_rule_has_a_plain_twin() -> None:
    assert ROUTES.keys() == RULES.keys()


def test_round_robin_takes_turns_among_all_nodes() -> None:
    rows: Any = simulate(columns([float(i) for i in range(7)], tokens=[1] * 7), scenario(nodes=3))
    assert rows.requests.node.tolist() == [0, 1, 2, 0, 1, 2, 0]

"""Numbers of routing rules: what cannot be is refused, and costs lead where they have to."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from kvbench.errors import UsageError
from kvbench.sim.cluster import reference_routing
from kvbench.sim.cluster.rules import numbers_of
from kvbench.sim.scenario import Router


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("consistent-hash", "block", math.nan),
        ("consistent-hash", "block", -5.0),
        ("consistent-hash", "block", 1.5),
        ("mooncake", "threshold", math.nan),
        ("cost", "temperature", -1.0),
        ("cache-aware", "threshold", math.inf),
        ("least-work", "random_ties", 7.0),
    ],
)
def test_a_number_that_cannot_be_is_refused_in_one_line(
    name: str, option: str, value: float
) -> None:
    with pytest.raises(UsageError, match=rf"^router {name}: {option} is .*: expected [^\n]*$"):
        numbers_of(Router(name=name, options={option: value}))


def test_numbers_that_can_be_are_taken_and_the_others_are_the_defaults() -> None:
    _, numbers = numbers_of(Router(name="cost", options={"temperature": 0.5}))
    assert (numbers["temperature"], numbers["overlap_weight"]) == (0.5, 1.0)


def costs_of(weight: float, temperature: float = 0.0, number: int = 0) -> tuple[list[float], int]:
    """The scores and the pick of the plain twin for a request of ten blocks on three nodes."""
    cached, active = (2, 5, 8), (10, 5, 9)
    nodes = [
        SimpleNamespace(outstanding=[SimpleNamespace(blocks=range(blocks))]) for blocks in active
    ]
    numbers = {"overlap_weight": weight, "temperature": temperature, "random_ties": 0.0}
    cluster: Any = SimpleNamespace(
        nodes=nodes, numbers=numbers, scenario=SimpleNamespace(seed=7), random_ties=False
    )
    job: Any = SimpleNamespace(blocks=range(10), number=number)
    scores: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        lowest = reference_routing.lowest

        def looked_at(cluster: Any, job: Any, costs: list[float]) -> int:
            scores.extend(costs)
            return lowest(cluster, job, costs)

        patch.setattr(reference_routing, "lowest", looked_at)
        return scores, reference_routing._cost(cluster, job, list(cached))


@pytest.mark.parametrize(
    ("weight", "costs", "pick"),
    [(1.0, [18, 10, 11], 1), (0.0, [10, 5, 9], 1), (2.0, [26, 15, 13], 2)],
)
def test_costs_are_those_of_the_example_in_dynamos_manual(
    weight: float, costs: list[float], pick: int
) -> None:
    # w = 1 is the manual's own; w = 0 and w = 2 follow from its formula.
    assert costs_of(weight) == (costs, pick)


def test_a_temperature_near_0_picks_the_least_cost_and_not_the_last_node() -> None:
    assert {costs_of(1.0, 1e-9, number)[1] for number in range(50)} == {1}
    assert {costs_of(1.0, 5.0, number)[1] for number in range(50)} == {0, 1, 2}

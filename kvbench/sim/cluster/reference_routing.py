"""The routing rules of the slow simulator, one function each: (cluster, request, matches) to node.

See `kvbench.sim.cluster.routing` for what they mean.
"""

import math
from collections.abc import Callable

from kvbench.sim.cluster.draws import below, hashed, uniform
from kvbench.sim.cluster.reference_cluster import Cluster, Job

PICK, SAMPLE, FIRST, SECOND = range(4)


def route(cluster: Cluster, job: Job, have: list[int]) -> int:
    """The node for this request, of which each node is believed to have `have` blocks."""
    return ROUTES[cluster.rule](cluster, job, have)


def lowest(cluster: Cluster, job: Job, scores: list[float]) -> int:
    """The node with the lowest score; equals by the rule of `random_ties`."""
    ties = [n for n, score in enumerate(scores) if score == min(scores)]
    pick = ties[0]
    if cluster.numbers.get("random_ties", 0.0) == 1:
        for count, n in enumerate(ties[1:], start=2):
            if below(cluster.scenario.seed, job.number, 16 + count, count) == 0:
                pick = n
    return pick


def _random(cluster: Cluster, job: Job, have: list[int]) -> int:
    return below(cluster.scenario.seed, job.number, PICK, len(have))


def _round_robin(cluster: Cluster, job: Job, have: list[int]) -> int:
    del job
    cluster.turn += 1
    return (cluster.turn - 1) % len(have)


def _loads(cluster: Cluster) -> list[int]:
    return [len(node.outstanding) for node in cluster.nodes]


def _least_outstanding(cluster: Cluster, job: Job, have: list[int]) -> int:
    del have
    return lowest(cluster, job, [float(load) for load in _loads(cluster)])


def _least_work(cluster: Cluster, job: Job, have: list[int]) -> int:
    del have
    return lowest(cluster, job, [cluster.queued_s(node) for node in cluster.nodes])


def _power_of_two(cluster: Cluster, job: Job, have: list[int]) -> int:
    nodes, seed = len(have), cluster.scenario.seed
    a = below(seed, job.number, FIRST, nodes)
    b = (a + 1 + below(seed, job.number, SECOND, max(nodes - 1, 1))) % nodes
    loads = _loads(cluster)
    return b if loads[b] < loads[a] else a


def _longest_prefix(cluster: Cluster, job: Job, have: list[int]) -> int:
    return lowest(cluster, job, [-float(match) for match in have])


def _cache_aware(cluster: Cluster, job: Job, have: list[int]) -> int:
    numbers, loads = cluster.numbers, _loads(cluster)
    most, least = max(loads), min(loads)
    uneven = most - least > numbers["balance_absolute"]
    if uneven and most > numbers["balance_relative"] * least:
        return lowest(cluster, job, [float(load) for load in loads])
    if cluster.cached(job, max(have)) / job.tokens > numbers["threshold"]:
        return lowest(cluster, job, [-float(match) for match in have])
    held = [sum(len(p.policy) for p in node.pools if p.policy) for node in cluster.nodes]
    return lowest(cluster, job, [float(blocks) for blocks in held])


def _active_blocks(cluster: Cluster) -> list[int]:
    return [sum(len(job.blocks) for job in node.outstanding) for node in cluster.nodes]


def _cost(cluster: Cluster, job: Job, have: list[int]) -> int:
    weight, temperature = cluster.numbers["overlap_weight"], cluster.numbers["temperature"]
    active = _active_blocks(cluster)
    costs = [
        weight * (len(job.blocks) - match) + busy for match, busy in zip(have, active, strict=True)
    ]
    if temperature <= 0:
        return lowest(cluster, job, costs)
    largest = max(0.0, *costs) or 1.0
    least = min(costs)
    shares = [math.exp((least - cost) / largest / temperature) for cost in costs]
    total = 0.0
    for share in shares:
        total += share
    point = uniform(cluster.scenario.seed, job.number, SAMPLE) * total
    for node, share in enumerate(shares):
        point -= share
        if point < 0:
            return node
    return len(have) - 1


def _mooncake(cluster: Cluster, job: Job, have: list[int]) -> int:
    elsewhere = cluster.elsewhere(job, have)
    return lowest(
        cluster,
        job,
        [
            cluster.queued_s(node) + cluster.estimate(job, node, match, elsewhere)
            for node, match in zip(cluster.nodes, have, strict=True)
        ],
    )


def _scored(cluster: Cluster, job: Job, have: list[int]) -> int:
    numbers = cluster.numbers
    waiting = [len(node.queue) for node in cluster.nodes]
    most, least = max(waiting), min(waiting)
    capacity = max(1, cluster.nodes[0].pools[0].capacity)
    scores: list[float] = []
    for match, wait, active in zip(have, waiting, _active_blocks(cluster), strict=True):
        prefix = cluster.cached(job, match) / job.tokens
        queue = 1.0 if most == least else (most - wait) / (most - least)
        free = 1.0 - min(1.0, active / capacity)
        scores.append(
            -(
                numbers["prefix_weight"] * prefix
                + numbers["queue_weight"] * queue
                + numbers["utilisation_weight"] * free
            )
        )
    return lowest(cluster, job, scores)


def _load_aware(cluster: Cluster, job: Job, have: list[int]) -> int:
    loads = _loads(cluster)
    mean = sum(loads) / len(loads)
    scores = [
        cluster.numbers["beta"] * (load - mean) / max(1.0, mean)
        - cluster.cached(job, match) / job.tokens
        for load, match in zip(loads, have, strict=True)
    ]
    return lowest(cluster, job, scores)


def _consistent_hash(cluster: Cluster, job: Job, have: list[int]) -> int:
    name = job.number
    if job.blocks:
        name = job.blocks[min(int(cluster.numbers["block"]), len(job.blocks) - 1)]
    seed = cluster.scenario.seed
    return lowest(cluster, job, [-float(hashed(seed, name, n)) for n in range(len(have))])


ROUTES: dict[str, Callable[[Cluster, Job, list[int]], int]] = {
    "random": _random,
    "round-robin": _round_robin,
    "least-outstanding": _least_outstanding,
    "least-work": _least_work,
    "power-of-two": _power_of_two,
    "longest-prefix": _longest_prefix,
    "cache-aware": _cache_aware,
    "cost": _cost,
    "mooncake": _mooncake,
    "scored": _scored,
    "load-aware": _load_aware,
    "consistent-hash": _consistent_hash,
}

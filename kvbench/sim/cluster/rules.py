"""The names of routing rules, their numbers with defaults, and where they come from."""

import math

from kvbench.errors import UsageError
from kvbench.sim.scenario import Router

(
    RANDOM,
    ROUND_ROBIN,
    LEAST_OUTSTANDING,
    LEAST_WORK,
    POWER_OF_TWO,
    LONGEST_PREFIX,
    CACHE_AWARE,
    COST,
    MOONCAKE,
    SCORED,
    LOAD_AWARE,
    CONSISTENT_HASH,
) = range(12)

# Equal scores: 1 draws one of the equals, 0 takes the lowest number (a bias on an idle cluster).
TIES = {"random_ties": 1.0}

# name: (code, numbers in the order in which the loop reads them)
RULES: dict[str, tuple[int, dict[str, float]]] = {
    "random": (RANDOM, {}),
    "round-robin": (ROUND_ROBIN, {}),
    "least-outstanding": (LEAST_OUTSTANDING, TIES),
    "least-work": (LEAST_WORK, TIES),
    "power-of-two": (POWER_OF_TWO, {}),
    # Ties go to the lowest number: breaking them by load does not help against the trap
    "longest-prefix": (LONGEST_PREFIX, {"random_ties": 0.0}),
    # SGLang's and vLLM's routers
    "cache-aware": (
        CACHE_AWARE,
        {**TIES, "balance_absolute": 64.0, "balance_relative": 1.5, "threshold": 0.3},
    ),
    # NVIDIA Dynamo's KV router
    "cost": (COST, {**TIES, "overlap_weight": 1.0, "temperature": 0.0}),
    # Mooncake, FAST'25, Algorithm 1; its threshold is set by hand there and not given
    "mooncake": (MOONCAKE, {**TIES, "threshold": 1.0}),
    # llm-d's weighted scorers, its profile for prefix caching
    "scored": (
        SCORED,
        {**TIES, "prefix_weight": 3.0, "queue_weight": 2.0, "utilisation_weight": 2.0},
    ),
    # vLLM production-stack's `loadaware`
    "load-aware": (LOAD_AWARE, {**TIES, "beta": 1.0}),
    # The block that is hashed names all before it; 0 is often a system prompt that all share
    "consistent-hash": (CONSISTENT_HASH, {"block": 1.0}),
}


_WHOLE = frozenset({"block", "random_ties"})
_MOST = {"random_ties": 1.0, "block": 1e9}


def numbers_of(router: Router) -> tuple[int, dict[str, float]]:
    """The rule's code and all its numbers.

    Raises:
        UsageError: a rule or an option it does not know, or a number that cannot be.
    """
    if router.name not in RULES:
        raise UsageError(f"router {router.name!r}: expected one of {', '.join(RULES)}")
    code, defaults = RULES[router.name]
    unknown = [name for name in router.options if name not in defaults]
    if unknown:
        known = ", ".join(defaults) or "none"
        raise UsageError(f"router {router.name} has no option {unknown[0]!r}: it has {known}")
    for name, value in router.options.items():
        if not (math.isfinite(value) and 0 <= value <= _MOST.get(name, math.inf)) or (
            name in _WHOLE and value != int(value)
        ):
            kind = "a whole number" if name in _WHOLE else "a number"
            most = f" and at most {_MOST[name]:g}" if name in _MOST else ""
            raise UsageError(
                f"router {router.name}: {name} is {value:g}: expected {kind} of at least 0{most}"
            )
    return code, {**defaults, **router.options}

"""From an outcome's columns to a summary: hit rates, times, goodput, busy shares, cost.

Definitions are those that `kvbench.sim.record` states. Simulates nothing and rounds nothing.
"""

import math

import numpy as np

from kvbench.errors import UsageError
from kvbench.sim.outcome import F64, I64, SOURCES, Outcome, Requests, Use
from kvbench.sim.record import Busy, Cost, Parts, RequestPath, Source, Spread, Summary
from kvbench.sim.scenario import Scenario

_BEYOND = 10  # requests beyond a percentile that is stated
_MILLION = 1e6
_S_PER_HOUR = 3600.0
_CURVE = (*(at / 50 for at in range(50)), 0.99, 0.995, 0.999, 1.0)  # shares


def summarise(
    outcome: Outcome, scenario: Scenario, *, dollars_per_hour: float | None = None
) -> Summary:
    """What users want to know of one simulation."""
    requests, use = outcome.requests, outcome.use
    duration_s = float(use.duration_s)
    served = requests.node >= 0
    ttft_s, tpot_s = requests.ttft_s[served], requests.tpot_s[served]
    # A single token has no time between tokens, so it cannot miss that objective.
    good = (ttft_s <= scenario.objective.ttft_s) & ~(tpot_s > scenario.objective.tpot_s)
    tokens_in = int(requests.input_tokens[served].sum())
    tokens_out = int(requests.output_tokens[served].sum())
    block_rate, token_rate, sources = _hits(requests, served)
    missing: dict[str, str] = {}
    if block_rate is None:
        missing["block_hit_rate"] = "no request that was served has blocks"
    if dollars_per_hour is None:
        missing["cost"] = "no prices were given"
    elif not tokens_in + tokens_out:
        missing["cost"] = "no request was served"
    times = _spread(ttft_s, "ttft_s", missing), _spread(tpot_s, "tpot_s", missing)
    return Summary(
        requests=len(served),
        served=int(served.sum()),
        refused=int((~served).sum()),
        good=int(good.sum()),
        good_share=float(good.sum() / len(served)),
        goodput_per_s=_per(float(good.sum()), duration_s),
        duration_s=duration_s,
        input_tokens_per_s=_per(tokens_in, duration_s),
        output_tokens_per_s=_per(tokens_out, duration_s),
        block_hit_rate=block_rate,
        token_hit_rate=token_rate,
        sources=sources,
        ttft_s=times[0],
        tpot_s=times[1],
        parts_s=_mean_parts(requests, served),
        busy=_busy(use, scenario),
        busiest_node=_busiest(requests.node[served], scenario.nodes),
        evicted_blocks=_by_tier(use.evicted_blocks, scenario),
        dropped_blocks=_by_tier(use.dropped_blocks, scenario),
        stale_hints=use.stale_hints,
        replicated_blocks=use.replicated_blocks,
        cost=_cost(dollars_per_hour, duration_s, tokens_in, tokens_out),
        ttft_curve=_curve(ttft_s),
        missing=missing,
    )


def request_path(outcome: Outcome, number: int) -> RequestPath:
    """Where the time of request `number`, from 0, went.

    Raises:
        UsageError: there is no such request.
    """
    requests = outcome.requests
    if not 0 <= number < len(requests.node):
        raise UsageError(
            f"--request {number}: there are requests 0 to {len(requests.node) - 1} in order of "
            "arrival"
        )
    served = bool(requests.node[number] >= 0)
    decode_node = int(requests.decode_node[number])
    return RequestPath(
        number=number,
        arrival_s=float(requests.arrival_s[number]),
        input_tokens=int(requests.input_tokens[number]),
        output_tokens=int(requests.output_tokens[number]),
        cached_tokens=int(requests.cached_tokens[number]),
        blocks=int(requests.blocks[number]),
        hit_blocks={
            name: int(requests.hit_blocks[number, column]) for column, name in enumerate(SOURCES)
        },
        node=int(requests.node[number]) if served else None,
        decode_node=decode_node if decode_node >= 0 else None,
        parts_s=_parts(requests, slice(number, number + 1)) if served else None,
        ttft_s=_known(requests.ttft_s[number]),
        tpot_s=_known(requests.tpot_s[number]),
        finish_s=_known(requests.finish_s[number]),
    )


def _hits(
    requests: Requests, served: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
) -> tuple[float | None, float | None, list[Source]]:
    """Block and token hit rate, and each source's part of them."""
    blocks = requests.blocks[served]
    hits = requests.hit_blocks[served].astype(np.float64)
    found = hits.sum(axis=1)
    tokens = requests.cached_tokens[served].astype(np.float64)
    if not blocks.sum():
        return None, None, []
    all_blocks, all_tokens = float(blocks.sum()), float(requests.input_tokens[served].sum())
    each = np.divide(tokens, found, out=np.zeros_like(tokens), where=found > 0)
    return (
        float(found.sum() / all_blocks),
        float(tokens.sum() / all_tokens),
        [
            Source(
                name=name,
                block=float(hits[:, column].sum() / all_blocks),
                token=float((hits[:, column] * each).sum() / all_tokens),
            )
            for column, name in enumerate(SOURCES)
        ],
    )


def _spread(values: F64, name: str, missing: dict[str, str]) -> Spread:
    known = values[np.isfinite(values)]
    found: dict[str, float | None] = {}
    for percent in (50, 90, 99):
        needed = math.ceil(_BEYOND / (1 - percent / 100) - 1e-6)
        key = f"p{percent}"
        found[key] = float(np.quantile(known, percent / 100)) if len(known) >= needed else None
        if found[key] is None:
            missing[f"{name}.{key}"] = f"{len(known):,} requests have it, {needed:,} needed"
    mean = float(known.mean()) if len(known) else None
    if mean is None:
        missing[f"{name}.mean"] = "no request has it"
    return Spread(count=len(known), mean=mean, p50=found["p50"], p90=found["p90"], p99=found["p99"])


def _mean_parts(
    requests: Requests, served: "np.ndarray[tuple[int], np.dtype[np.bool_]]"
) -> Parts | None:
    return _parts(requests, served) if served.any() else None


def _parts(
    requests: Requests, which: "slice | np.ndarray[tuple[int], np.dtype[np.bool_]]"
) -> Parts:
    return Parts(
        queue=float(requests.queue_s[which].mean()),
        load=float(requests.load_s[which].mean()),
        transfer=float(requests.transfer_s[which].mean()),
        compute=float(requests.compute_s[which].mean()),
        hand_off=float(requests.hand_off_s[which].mean()),
    )


def _busy(use: Use, scenario: Scenario) -> list[Busy]:
    """Nodes, tiers with a path, network and central store."""
    found = [
        _share("prefill", use.prefill_busy_s, use.duration_s),
        _share("decode", use.decode_busy_s, use.duration_s),
    ]
    for index, tier in enumerate(scenario.tiers):
        if tier.capacity_blocks and tier.read is not None:
            for way, busy_s, moved in (
                ("read", use.read_busy_s, use.read_bytes),
                ("write", use.write_busy_s, use.write_bytes),
            ):
                name = f"{tier.name} {way}"
                found.append(_share(name, busy_s[:, index], use.duration_s, moved[:, index]))
    if scenario.network is not None and use.network_bytes.any():
        found.append(_share("network", use.network_busy_s, use.duration_s, use.network_bytes))
    if scenario.central is not None and use.central_bytes.any():
        for index, way in enumerate(("read", "write")):
            part = slice(index, index + 1)
            name = f"central {way}"
            found.append(
                _share(name, use.central_busy_s[part], use.duration_s, use.central_bytes[part])
            )
    return found


def _by_tier(blocks: I64, scenario: Scenario) -> dict[str, int]:
    """Over all nodes."""
    return {tier.name: int(blocks[:, index].sum()) for index, tier in enumerate(scenario.tiers)}


def _share(name: str, busy_s: F64, duration_s: float, moved: F64 | None = None) -> Busy:
    return Busy(
        name=name,
        mean=_per(float(busy_s.mean()), duration_s),
        most=_per(float(busy_s.max()), duration_s),
        bytes=None if moved is None else float(moved.sum()),
    )


def _busiest(node: I64, nodes: int) -> float | None:
    if not len(node):
        return None
    counts = np.bincount(node, minlength=nodes)
    return float(counts.max() / counts.mean())


def _cost(
    dollars_per_hour: float | None, duration_s: float, tokens_in: int, tokens_out: int
) -> Cost | None:
    if dollars_per_hour is None or not tokens_in + tokens_out:
        return None
    dollars = dollars_per_hour * duration_s / _S_PER_HOUR
    return Cost(
        per_hour=dollars_per_hour,
        per_million_tokens=dollars * _MILLION / (tokens_in + tokens_out),
        per_million_output_tokens=dollars * _MILLION / tokens_out if tokens_out else None,
    )


def _curve(ttft_s: F64) -> list[tuple[float, float]]:
    if not len(ttft_s):
        return []
    values = np.quantile(ttft_s, _CURVE)
    return list(zip(_CURVE, (float(each) for each in values), strict=True))


def _per(amount: float, duration_s: float) -> float:
    return float(amount / duration_s) if duration_s > 0 else 0.0


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

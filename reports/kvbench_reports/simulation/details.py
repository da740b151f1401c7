"""One run in full: where blocks were, how long things took, what was busy, one request's path."""

from collections.abc import Sequence

from kvbench.sim.record import Busy, Parts, RequestPath, Run, Source, Spread, Summary
from kvbench.units import format_bytes
from kvbench_reports.figures import Column
from kvbench_reports.simulation.figures import seconds_words, share_words
from kvbench_reports.simulation.grid import Grid
from kvbench_reports.words import NONE, clean, count, number, percent, time_scale

PARTS = ("queue", "load", "transfer", "compute", "hand_off")
_PART_WORDS = {
    "queue": "waiting for the node",
    "load": "blocks from the node's own tiers, beyond what computing hid",
    "transfer": "blocks from peers or the store, beyond what computing hid",
    "compute": "prefill of what was not cached",
    "hand_off": "prefill node to decode node, and waiting there",
}
_TOTAL = "together"
_SHORTEST_S = 1e-9


def hits(summary: Summary) -> Grid:
    """Hit rates by source, in both definitions."""
    found = [each for each in summary.sources if each.block]
    rows = [_hit(each) for each in found]
    if summary.block_hit_rate is not None and summary.token_hit_rate is not None:
        rows.append(
            _hit(Source(name=_TOTAL, block=summary.block_hit_rate, token=summary.token_hit_rate))
        )
    return Grid(
        columns=(
            Column(key="name", title="found in", unit=""),
            Column(key="block", title="of all blocks", unit="%"),
            Column(key="token", title="of all tokens", unit="%"),
        ),
        rows=rows,
    )


def times(summary: Summary) -> Grid:
    """TTFT and TPOT."""
    return Grid(
        columns=(
            Column(key="name", title="time", unit=""),
            *(Column(key=key, title=key, unit="") for key in ("mean", "p50", "p90", "p99")),
        ),
        rows=[_spread("TTFT", summary.ttft_s), _spread("TPOT", summary.tpot_s)],
    )


def parts(found: Parts) -> Grid:
    """Where the time to the first token goes."""
    values = _values(found)
    total = sum(values.values())
    unit, factor = time_scale([total] if total else [1.0])
    rows = [
        {
            "name": name.replace("_", "-"),
            "time": number(value / factor),
            "share": percent(value / total) if total else NONE,
            "what": _PART_WORDS[name],
        }
        for name, value in values.items()
    ]
    return Grid(
        columns=(
            Column(key="name", title="of the TTFT", unit=""),
            Column(key="time", title="time", unit=unit),
            Column(key="share", title="share", unit="%"),
            Column(key="what", title="which is", unit=""),
        ),
        rows=rows,
        left=("name", "what"),
        dropped_first=("what",),
    )


def busy(found: Sequence[Busy]) -> Grid:
    """How much of the time each thing worked."""
    return Grid(
        columns=(
            Column(key="name", title="busy", unit=""),
            Column(key="mean", title="mean", unit="%"),
            Column(key="most", title="busiest", unit="%"),
            Column(key="bytes", title="moved", unit=""),
        ),
        rows=[
            {
                "name": clean(each.name),
                "mean": percent(each.mean),
                "most": percent(each.most),
                "bytes": NONE if each.bytes is None else format_bytes(each.bytes),
            }
            for each in found
        ],
        dropped_first=("bytes",),
    )


def sentences(run: Run) -> list[str]:
    """What else is worth a word of one run."""
    it = run.summary
    if it is None:
        return []
    served = f"{it.served:,} of {count(it.requests, 'request')} served"
    found = [
        f"{served} in {number(it.duration_s)} s: {number(it.input_tokens_per_s)} tokens/s in, "
        f"{number(it.output_tokens_per_s)} out"
    ]
    if it.refused:
        found.append(f"{count(it.refused, 'request')} refused on arrival")
    if it.good < it.requests:
        found.append(
            f"{share_words(it.good_share)} % of all requests within the SLO: goodput "
            f"{number(it.goodput_per_s)} requests/s"
        )
    if it.busiest_node is not None:
        found.append(f"the busiest node got {number(it.busiest_node)} times the mean of requests")
    for what, blocks in (("evicted", it.evicted_blocks), ("not taken in", it.dropped_blocks)):
        of_tiers = [f"{value:,} by {clean(name)}" for name, value in blocks.items() if value]
        if of_tiers:
            found.append(f"blocks {what}: {', '.join(of_tiers)}")
    if it.stale_hints:
        found.append(f"{it.stale_hints:,} times a peer no longer had what the directory said")
    if it.replicated_blocks:
        found.append(f"{count(it.replicated_blocks, 'block')} copied to another node")
    if it.cost is not None:
        out = it.cost.per_million_output_tokens
        also = f", ${number(out)} of output tokens alone" if out is not None else ""
        found.append(
            f"${number(it.cost.per_hour)} an hour: ${number(it.cost.per_million_tokens)} a million "
            f"tokens{also}"
        )
    return found


def request_sentence(path: RequestPath) -> str:
    """The head of one request's critical path."""
    facts = [
        f"request {path.number:,} arrived at {number(path.arrival_s)} s",
        f"{count(path.input_tokens, 'token')} in, {path.output_tokens:,} out",
    ]
    if path.node is None:
        return ", ".join([*facts, "refused"])
    found = {clean(name): blocks for name, blocks in path.hit_blocks.items() if blocks}
    hit = [f"{blocks:,} of {path.blocks:,} blocks in {name}" for name, blocks in found.items()]
    facts.append(f"node {path.node}")
    if path.decode_node is not None and path.decode_node != path.node:
        facts.append(f"decode node {path.decode_node}")
    facts += hit or [f"none of {count(path.blocks, 'block')} found"]
    facts.append(f"{path.cached_tokens:,} tokens not computed")
    if path.ttft_s is not None:
        facts.append(f"TTFT {seconds_words(path.ttft_s)}")
    if path.tpot_s is not None:
        facts.append(f"TPOT {seconds_words(path.tpot_s)}")
    return ", ".join(facts)


def parts_sentence(found: Parts) -> str:
    """`queue 120 ms, load 20 ms, …`: parts that are 0 are left out."""
    values = {name: float(getattr(found, name)) for name in PARTS}
    said = [
        f"{name.replace('_', '-')} {seconds_words(value)}"
        for name, value in values.items()
        if value
    ]
    return ", ".join(said)


def _values(found: Parts) -> dict[str, float]:
    """Seconds by part; what subtraction leaves of nothing is nothing."""
    values = {name: float(getattr(found, name)) for name in PARTS}
    return {name: value if value >= _SHORTEST_S else 0.0 for name, value in values.items()}


def _hit(source: Source) -> dict[str, str]:
    return {
        "name": clean(source.name),
        "block": share_words(source.block),
        "token": share_words(source.token),
    }


def _spread(name: str, spread: Spread) -> dict[str, str]:
    found = {key: getattr(spread, key) for key in ("mean", "p50", "p90", "p99")}
    return {"name": name} | {
        key: NONE if value is None else seconds_words(value) for key, value in found.items()
    }

"""A hand-made comparison with every verdict, for the renderers; nothing here was measured."""

from kvbench.compare.record import (
    REGRESSION,
    Comparison,
    Design,
    Finding,
    Kind,
    Sight,
    Source,
    Verdict,
)
from kvbench.geometry import load_geometry
from kvbench.machine import Machine
from kvbench.measure.result import Caution

MARGINS = {"hbm": 0.02, "dram": 0.03, "nvme": 0.05, "peer": 0.05, "p99": 0.10}
NOW = "2026-11-25T16:01:07+00:00"


def tested(
    case: str, verdict: Verdict, change: tuple[float, float, float], **fields: object
) -> Finding:
    """A finding with a test behind it; `change` is (change, low, high) in time."""
    kind = Kind(str(fields.pop("kind", Kind.RATE)))
    group = "p99" if kind is Kind.P99 else case.partition(".")[0].partition(" ")[0]
    base, new = 6.5e9, 6.5e9 / (1 + change[0])
    if kind is Kind.P99:
        base, new = 7.7e-3, 7.7e-3 * (1 + change[0])
    known: dict[str, object] = {
        "id": f"{case} p99" if kind is Kind.P99 else case,
        "kind": kind,
        "group": group,
        "margin": MARGINS[group],
        "verdict": verdict,
        "row": None if kind is Kind.TIER else case,
        "base": None if kind is Kind.TIER else base,
        "new": None if kind is Kind.TIER else new,
        "change": change[0],
        "low": change[1],
        "high": change[2],
        "mde": 0.17,
        "test": "paired t, 10 pairs",
        "df": 9.0,
        "standard_error": 0.02,
        "p_slower": 0.0004,
        "p_slower_adjusted": 0.012,
        "p_faster_adjusted": 1.0,
        "rank": 1,
        "tests": 30,
        "base_values": [base * (1 + 0.01 * i) for i in range(-5, 5)],
        "new_values": [new * (1 + 0.01 * i) for i in range(-5, 5)],
    }
    return Finding(**(known | fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def untested(case: str, verdict: Verdict, reason: str, **fields: object) -> Finding:
    group = case.partition(".")[0]
    known: dict[str, object] = {
        "id": case,
        "kind": Kind.RATE,
        "group": group,
        "margin": MARGINS[group],
        "verdict": verdict,
        "row": case,
        "reason": reason,
    }
    return Finding(**(known | fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


FINDINGS = [
    tested("nvme.read/posix/2MiB/qd16/random", Verdict.SLOWER, (0.145, 0.098, 0.194), fails=True),
    tested(
        "nvme (tier)",
        Verdict.SLOWER,
        (0.099, 0.070, 0.129),
        kind=Kind.TIER,
        fails=True,
        tests=3,
        base_values=[-22.6, -22.61],
        new_values=[-22.5, -22.51],
        members=["nvme.read/posix/2MiB/qd16/random", "nvme.write/posix/2MiB/qd16/random"],
    ),
    tested(
        "nvme.write/posix/2MiB/qd16/random",
        Verdict.UNSURE,
        (0.062, -0.051, 0.188),
        reason="the interval reaches from faster to slower than the margin",
        p_slower_adjusted=0.9,
        rank=2,
    ),
    tested(
        "nvme.read/posix/2MiB/qd16/random",
        Verdict.UNSURE,
        (0.082, -0.45, 0.986),
        kind=Kind.P99,
        reason="the interval reaches from faster to slower than the margin",
    ),
    tested("dram.copy/locked/256MiB/t1", Verdict.FASTER, (-0.055, -0.066, -0.044)),
    tested("dram.copy/pageable/256MiB/t1", Verdict.SAME, (0.004, -0.006, 0.014)),
    tested("dram.copy/pageable/256MiB/t2", Verdict.SAME, (-0.001, -0.011, 0.009)),
    tested("dram (tier)", Verdict.SAME, (0.001, -0.004, 0.006), kind=Kind.TIER, tests=3),
    untested(
        "nvme.read/kvikio/2MiB/qd16/random",
        Verdict.NOT_COMPARABLE,
        "BASE went by GDS, NEW by kvikio POSIX",
        fails=True,
    ),
    untested(
        "nvme.write/posix/2MiB/qd1/random/fsync",
        Verdict.MISSING,
        "failed in NEW: no space left on device",
        base=1.8e9,
        fails=True,
    ),
    untested("dram.gather/locked/2MiB/page32KiB/t2", Verdict.NEW, "not in BASE", new=13e9),
]


def make_comparison(machine: Machine, **fields: object) -> Comparison:
    """Red: two findings slower, one vanished, one went another way."""
    known: dict[str, object] = {
        "kvbench_version": "0.1.0",
        "base": Source(
            path="base.json",
            kvbench_version="0.1.0",
            session_id="5f2c",
            suite="ci",
            started_at=NOW,
            commit="1f3c9e2aa",
            side="env:",
        ),
        "new": Source(
            path="new.json",
            kvbench_version="0.1.0",
            session_id="5f2c",
            suite="ci",
            started_at=NOW,
            commit="88ab01f00",
            side="env:MALLOC_ARENA_MAX=1",
            inject={"nvme.read*": 0.08},
        ),
        "machine": machine,
        "model": load_geometry("llama-3.1-8b"),
        "simulated": None,
        "design": Design.PAIRED,
        "blocks": 10,
        "alpha": 0.05,
        "margins": MARGINS,
        "noise": None,
        "findings": FINDINGS,
        "sight": [
            Sight(group="dram", metrics=3, metric=0.076, tier=0.04),
            Sight(group="nvme", metrics=2, metric=0.17, tier=0.09),
            Sight(
                group="p99", metrics=0, metric=None, tier=None, reason="5 processes a side needed"
            ),
        ],
        "conditions": [
            Caution(code="kernel", message="kernel 6.1.0 in BASE, 6.8.0 in NEW"),
            Caution(
                code="no_steady_state",
                message="the rate was still moving in 1 row of BASE, 3 of NEW",
                fix="kvbench run ci --time-limit 30",
            ),
        ],
        "differences": [],
        "exit_code": REGRESSION,
        "reasons": [
            "2 slower than allowed",
            "1 of BASE is missing from NEW",
            "1 not comparable: it went another way",
        ],
        "confirm": "kvbench ab env: env:MALLOC_ARENA_MAX=1 ci --only 'nvme.read/posix/2MiB/*'",
    }
    return Comparison(**(known | fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

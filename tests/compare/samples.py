"""Reports with chosen process values, for tests of comparing. Nothing here was measured."""

from collections.abc import Mapping, Sequence

import numpy as np

from kvbench.geometry import load_geometry
from kvbench.machine import Cpu, Machine, Os
from kvbench.measure.result import ProcessResult, Report, Row, State

MACHINE = Machine(cpu=Cpu(model="test CPU", logical_cores=8), os=Os(kernel="6.1"), fingerprint="ab")
LLAMA = load_geometry("llama-3.1-8b")
RATE = 10e9


def noisy(seed: int, *, slower: float = 0.0, sd: float = 0.01, processes: int = 10) -> list[float]:
    """Rates around 10 GB/s, log sd between processes, slower in time by a share."""
    normals = np.random.default_rng(seed).standard_normal(processes)
    return [float(rate) for rate in RATE / (1 + slower) * np.exp(sd * normals)]


def make_process(at: int, rate: float, **fields: object) -> ProcessResult:
    known: dict[str, object] = {
        "process": at,
        "statistic": "median",
        "bytes_per_s": rate,
        "payload_bytes": 2**30,
        "traffic_bytes": 2**31,
        "timed_bytes": 2**30,
        "elapsed_s": 2**30 / rate,
        "sample_bytes_per_s": [rate],
        "sample_count": 1,
        "warmup_samples": 0,
        "stopped_by": "interval",
        "half_width": None,
        "autocorrelation": None,
        "slow_fraction": None,
        "steady": True,
    }
    return ProcessResult(**(known | fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def make_row(
    case: str,
    rates: Sequence[float],
    *,
    p99_s: Sequence[float] = (),
    blocks: bool = False,
    **fields: object,
) -> Row:
    tier, _, rest = case.partition(".")
    row = Row(
        id=case,
        tier=tier,
        operation=rest.partition("/")[0],
        params={},
        state=State.OK,
        definition_hash=f"hash of {case}",
        bytes_per_s=float(np.median(rates)),
        processes=[
            make_process(
                at,
                rate,
                latency_p99_s=p99_s[at] if p99_s else None,
                block=at if blocks else None,
                order="AB" if blocks else None,
            )
            for at, rate in enumerate(rates)
        ],
    )
    for name, value in fields.items():
        setattr(row, name, value)
    return row


def make_report(rows: Sequence[Row], session: str, **fields: object) -> Report:
    known: dict[str, object] = {
        "kvbench_version": "0.1.0",
        "session_id": session,
        "suite": "ci",
        "command": ["run", "ci", "--dir", "~/kv", "-o", "x.json"],
        "started_at": "2026-11-20T10:00:00+00:00",
        "finished_at": "2026-11-20T10:10:00+00:00",
        "plan": {"processes": 10, "seed": 3},
        "machine": MACHINE,
        "model": LLAMA,
        "rows": list(rows),
    }
    return Report(**(known | fields))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def two_sessions(
    base: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]]
) -> tuple[Report, Report]:
    reports = [
        make_report([make_row(case, rates) for case, rates in rows.items()], session)
        for session, rows in (("one", base), ("two", new))
    ]
    return reports[0], reports[1]


def one_session(
    base: Mapping[str, Sequence[float]], new: Mapping[str, Sequence[float]]
) -> tuple[Report, Report]:
    """As `kvbench ab` makes them."""
    reports = [
        make_report(
            [make_row(case, rates, blocks=True) for case, rates in rows.items()],
            "shared",
            side=side,
            command=["ab", "env:", "env:A=1", "ci"],
        )
        for side, rows in (("env:", base), ("env:A=1", new))
    ]
    return reports[0], reports[1]

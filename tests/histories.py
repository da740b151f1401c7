"""Hand-made entries of a history, and a report to make one of; nothing here was measured."""

import datetime as dt
from collections.abc import Sequence

import msgspec

from kvbench.geometry import load_geometry
from kvbench.history import Entry, Kept, Model
from kvbench.machine import Cpu, Machine, Os
from kvbench.measure.result import ProcessResult, Report, Row, State

READ = "nvme.read/posix/2MiB/qd16/random"
START = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)
MIB = 2**20


def kept(case: str, rate: float, **fields: object) -> Kept:
    """A row of a session; `fields` are those of `Kept`."""
    row = Kept(id=case, definition_hash="d1", bytes_per_s=float(rate), log_se=0.002, processes=5)
    return msgspec.structs.replace(row, **fields)


def entry(day: int, rows: Sequence[Kept], **fields: object) -> Entry:
    """A session that started so many days after `START`."""
    known = Entry(
        session_id=f"{day:08x}cafe",
        side=None,
        started_at=START + dt.timedelta(days=day),
        commit=f"{day:04x}1f3c9e2aab77",
        kvbench_version="0.1.0",
        suite="ci",
        model=Model(name="llama-3.1-8b", cache_dtype="bf16", block_bytes=2 * MIB),
        machine="0123456789abcdef",
        cpu="Test CPU",
        gpus=[],
        kernel="6.1.0",
        driver=None,
        simulated=None,
        rows=list(rows),
    )
    return msgspec.structs.replace(known, **fields)


def sessions(rates: Sequence[float], case: str = READ) -> list[Entry]:
    """A session a day with one row."""
    return [entry(day, [kept(case, rate)]) for day, rate in enumerate(rates)]


def process(rate: float, p99_s: float | None = None) -> ProcessResult:
    """What one process measured."""
    return ProcessResult(
        process=0,
        statistic="elapsed",
        bytes_per_s=rate,
        payload_bytes=MIB,
        traffic_bytes=MIB,
        timed_bytes=MIB,
        elapsed_s=MIB / rate,
        sample_bytes_per_s=[rate],
        sample_count=1,
        warmup_samples=0,
        stopped_by="time",
        half_width=None,
        autocorrelation=None,
        slow_fraction=None,
        steady=None,
        latency_p99_s=p99_s,
    )


def row(case: str, *processes: ProcessResult, state: State = State.OK) -> Row:
    """A row of a report, its figure from its processes."""
    tier, operation = case.partition("/")[0].split(".")
    return Row(
        id=case,
        tier=tier,
        operation=operation,
        params={},
        state=state,
        definition_hash="d1",
        bytes_per_s=processes[0].bytes_per_s if processes else None,
        path_observed="posix-direct",
        processes=list(processes),
    )


def report(session_id: str = "5f2c", *rows: Row, **fields: object) -> Report:
    """A finished report."""
    known = Report(
        kvbench_version="0.1.0",
        session_id=session_id,
        suite="ci",
        command=["run", "ci"],
        started_at="2026-11-25T16:01:07+00:00",
        finished_at="2026-11-25T16:05:00+00:00",
        commit="1f3c9e2aab77",
        plan={"processes": 2},
        machine=Machine(
            cpu=Cpu(model="Test CPU"), os=Os(kernel="6.1.0"), fingerprint="0123456789abcdef"
        ),
        model=load_geometry("llama-3.1-8b"),
        rows=list(rows) or [row(READ, process(5e9), process(6e9))],
    )
    return msgspec.structs.replace(known, **fields)

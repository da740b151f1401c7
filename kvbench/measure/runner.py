"""Runs one case in fresh worker processes and turns their messages into events and a row.

Every wait has a deadline: a drive or a driver that hangs costs one row, not the run. Writes no
file and prints nothing.
"""

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.child import Child
from kvbench.measure.inject import format_share, injection_for, was_heeded
from kvbench.measure.load import Load
from kvbench.measure.result import Caution, ProcessResult, Row, State
from kvbench.measure.rows import empty_row, failed_row, make_row
from kvbench.measure.side import Side
from kvbench.measure.simulated import PATH, Profile
from kvbench.measure.suite import Case, Limit, Plan
from kvbench.measure.worker import Assignment, Estimate, Failure, Message, Phase, Result

SETUP_GRACE_S = 120.0  # imports and allocation; CUDA start-up on a loaded machine takes tens
SLOWEST_DRIVE_BYTES_PER_S = 20e6  # a data file written or checked more slowly is stuck
MEASURE_GRACE_S = 60.0
WORKER = "kvbench.measure.worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all cases of a run share."""

    geometry: KVGeometry
    machine: Machine
    plan: Plan
    seed: int = 0
    scratch: Path | None = None
    profile: Profile | None = None
    limits: Mapping[str, float] = field(
        default_factory=dict[str, float]
    )  # tier → what the user says it can do
    inject: Mapping[str, float] = field(
        default_factory=dict[str, float]
    )  # glob → share by which matching cases are slowed on purpose, the last given at the end
    side: Side | None = None  # how the workers are started; None: as this process was
    half: int = 0  # 1 on the second side of a pair


@dataclass(frozen=True, slots=True)
class ProcessStarted:
    """A worker process was started."""

    case: Case
    process: int
    processes: int
    side: str | None = None  # of a pair: "A" | "B"; `process` then counts both sides' together


@dataclass(frozen=True, slots=True)
class Progress:
    """A worker said what it does, or how it is going."""

    case: Case
    process: int
    message: Phase | Estimate
    side: str | None = None


@dataclass(frozen=True, slots=True)
class CaseFinished:
    """A case has its row."""

    case: Case
    row: Row


Event = ProcessStarted | Progress | CaseFinished


def run_case(case: Case, setting: Setting) -> Iterator[Event]:
    """Measure one case; the last event holds its row."""
    began_s = time.monotonic()
    row = unrunnable(case, setting)
    if row is None:
        plan = plan_for(case, setting.plan)
        done: list[ProcessResult] = []
        failure: Failure | None = None
        for process in range(plan.processes):
            yield ProcessStarted(case, process, plan.processes)
            outcome = yield from run_process(case, setting, process)
            if isinstance(outcome, Failure):
                failure = outcome
                break  # the next process would fail alike, and one that did not would hide this
            done.append(outcome)
        row = row_of(case, setting, done, failure)
    row.elapsed_s = time.monotonic() - began_s
    yield CaseFinished(case, row)


def row_of(
    case: Case, setting: Setting, done: Sequence[ProcessResult], failure: Failure | None
) -> Row:
    """The row that a case's processes give, or that the failure of one of them gives."""
    if failure is not None:
        return failed_row(case, failure, done)
    row = make_row(case, done, limit_of(case, setting), simulated=setting.profile is not None)
    share = injection_for(case.id, setting.inject)
    if share:
        text = f"slowed by {format_share(share)} on purpose (--inject)"
        row.warnings.append(Caution(code="injected", message=text))
    return row


def plan_for(case: Case, plan: Plan) -> Plan:
    """The run's plan with the case's own time limit, where it has one."""
    if case.time_limit_s is None:
        return plan
    return replace(plan, time_limit_s=case.time_limit_s)


def data_files(case: Case, setting: Setting) -> set[str]:
    """One name for each data file that the case and its load move to or from a usable drive."""
    if setting.profile is not None or case.unmet(setting.machine) is not None:
        return set()
    both = (case, case.beside) if case.beside else (case,)
    drives = [each for each in both if "nvme" in {each.operation.tier, each.params.get("tier")}]
    return {each.operation.name for each in drives}


def limit_of(case: Case, setting: Setting) -> Limit:
    """What the user says, else what the simulated device is, else what the machine record gives."""
    operation = case.operation
    name = operation.limited_by or operation.tier
    if name in setting.limits:
        # A data sheet speaks of traffic; a copy has to move each byte of payload twice.
        traffic = operation.traffic(case.params)
        source = f"--limit {name}" + (f" ÷ {traffic:g}: read and written" if traffic > 1 else "")
        return setting.limits[name] / traffic, source
    if setting.profile is not None:
        device = setting.profile.devices[operation.tier]
        return device.limit_bytes_per_s or device.bandwidth_bytes_per_s, "simulated device"
    return case.operation.limit(case.params, setting.machine)


def unrunnable(case: Case, setting: Setting) -> Row | None:
    """The row of a case that this machine, or the simulated one, cannot run."""
    if setting.profile is None:
        reason = case.unmet(setting.machine)
    elif case.operation.tier not in setting.profile.devices:
        reason = f"profile {setting.profile.name!r} has no {case.operation.tier} device"
    else:
        # Each simulated device is alone in its own time: there is nothing to share.
        reason = "a simulated device knows no load beside it" if case.beside else None
    return None if reason is None else empty_row(case, State.SKIPPED, "unmet", reason)


def run_process(
    case: Case, setting: Setting, process: int, side: str | None = None
) -> Generator[Event, None, ProcessResult | Failure]:
    """Measure a case once, in a fresh worker process; `side` is what its events say.

    A case that names a load is measured while that runs, in a process of its own.
    """
    if case.beside is None:
        return (yield from _measure(case, setting, process, side, None))
    yield Progress(case, process, Phase("start the load"), side)
    plan = plan_for(case, setting.plan)
    orders = _assignment(case.beside, setting, plan, process)
    orders = msgspec.structs.replace(orders, inject=0.0)  # the case may be slowed, not its load
    with Load(case.beside.id, orders, setting.side, set_up_s=_set_up_s(plan)) as load:
        refused = load.wait_until_running()
        if refused is not None:
            return refused
        outcome = yield from _measure(case, setting, process, side, load)
    if isinstance(outcome, ProcessResult):
        return msgspec.structs.replace(outcome, load_bytes_per_s=load.bytes_per_s)
    return outcome


def _measure(
    case: Case, setting: Setting, process: int, side: str | None, load: Load | None
) -> Generator[Event, None, ProcessResult | Failure]:
    plan = plan_for(case, setting.plan)
    assignment = _assignment(case, setting, plan, process)
    orders = msgspec.json.encode(assignment)
    with Child(WORKER, orders, assignment.scratch, setting.side) as worker:
        for message in _messages(worker, plan):
            if isinstance(message, Phase | Estimate):
                ended = load.follow(message) if load is not None else None
                if ended is not None:
                    return ended
                yield Progress(case, process, message, side)
            elif isinstance(message, Result):
                return _heeded(message.value, assignment.inject)
            else:
                return message
    raise AssertionError("a worker's messages end with a result or a failure")


def _heeded(result: ProcessResult, asked: float) -> ProcessResult | Failure:
    """The result, if the worker slowed itself as it was asked; an old one does not know how to."""
    if was_heeded(asked, result.inject):
        return result
    return Failure(
        "failed",
        "inject_ignored",
        f"asked to be slowed by {format_share(asked)}, the worker was by "
        f"{format_share(result.inject)}: too few operations for that, or a side whose kvbench "
        "does not know --inject",
    )


def _assignment(case: Case, setting: Setting, plan: Plan, process: int) -> Assignment:
    device = setting.profile.devices[case.operation.tier] if setting.profile else None
    return Assignment(
        body=PATH if device else case.operation.body,
        stream=case.operation.stream,
        traffic_per_payload=case.operation.traffic(case.params),
        params=dict(case.params),
        plan=plan,
        geometry=setting.geometry,
        machine=setting.machine,
        seed=setting.seed,
        process=process,
        scratch=str(setting.scratch) if setting.scratch else None,
        device=device,
        half=setting.half,
        inject=injection_for(case.id, setting.inject),
    )


def _set_up_s(plan: Plan) -> float:
    """How long a worker may set up, its data file included."""
    return SETUP_GRACE_S + plan.data_bytes / SLOWEST_DRIVE_BYTES_PER_S


def _messages(worker: Child, plan: Plan) -> Iterator[Message]:
    """What the worker says; a failure is made up for it when it dies or goes silent."""
    allowed_s = {
        "set up": _set_up_s(plan),
        "measure": plan.warmup_s + plan.time_limit_s + MEASURE_GRACE_S,
        "verify": _set_up_s(plan),
    }
    phase = "set up"
    worker.deadline_s = time.monotonic() + allowed_s[phase]
    for line in worker.lines():
        if line is None:
            text = f"no result from “{phase}” within {allowed_s[phase]:.0f} s"
            yield Failure("failed", "deadline", f"{text}; the worker was ended")
            return
        try:
            message = msgspec.json.decode(line, type=Message)
        except msgspec.MsgspecError as error:  # a side of another version
            yield Failure("failed", "protocol", f"the worker's answer has no meaning: {error}")
            return
        if isinstance(message, Phase):
            phase = message.name
            worker.deadline_s = time.monotonic() + allowed_s[phase]
        yield message
        if isinstance(message, Result | Failure):
            return
    yield worker.death(phase)

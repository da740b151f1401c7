"""Runs one case in fresh worker processes and turns their messages into events and a row.

Every wait has a deadline: a drive or a driver that hangs costs one row, not the run. Writes no
file and prints nothing.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Self, cast

import msgspec

from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.inject import format_share, injection_for, was_heeded
from kvbench.measure.result import Caution, ProcessResult, Row, State
from kvbench.measure.rows import empty_row, failed_row, make_row
from kvbench.measure.side import Side, worker_environ
from kvbench.measure.simulated import PATH, Profile
from kvbench.measure.suite import Case, Limit, Plan
from kvbench.measure.worker import Assignment, Estimate, Failure, Message, Phase, Result

SETUP_GRACE_S = 120.0  # imports and allocation; CUDA start-up on a loaded machine takes tens
SLOWEST_DRIVE_BYTES_PER_S = 20e6  # a data file written or checked more slowly is stuck
MEASURE_GRACE_S = 60.0
KILL_GRACE_S = 10.0
KEPT_STDERR_LINES = 20
READ_BYTES = 1 << 16


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


def needs_data(case: Case, setting: Setting) -> bool:
    """Whether the case will write data files: it moves them to or from a drive that can be used."""
    return (
        case.operation.tier == "nvme"
        and setting.profile is None
        and case.operation.unmet(case.params, setting.machine) is None
    )


def limit_of(case: Case, setting: Setting) -> Limit:
    """What the user says, else what the simulated device is, else what the machine record gives."""
    operation = case.operation
    name = operation.limited_by or operation.tier
    if name in setting.limits:
        # A data sheet speaks of traffic; a copy has to move each byte of payload twice.
        traffic = operation.traffic_per_payload
        source = f"--limit {name}" + (f" ÷ {traffic:g}: read and written" if traffic > 1 else "")
        return setting.limits[name] / traffic, source
    if setting.profile is not None:
        device = setting.profile.devices[operation.tier]
        return device.limit_bytes_per_s or device.bandwidth_bytes_per_s, "simulated device"
    return case.operation.limit(case.params, setting.machine)


def unrunnable(case: Case, setting: Setting) -> Row | None:
    """The row of a case that this machine, or the simulated one, cannot run."""
    if setting.profile is not None:
        if case.operation.tier in setting.profile.devices:
            return None
        reason = f"profile {setting.profile.name!r} has no {case.operation.tier} device"
    else:
        unmet = case.operation.unmet(case.params, setting.machine)
        if unmet is None:
            return None
        reason = unmet
    return empty_row(case, State.SKIPPED, "unmet", reason)


def run_process(
    case: Case, setting: Setting, process: int, side: str | None = None
) -> Generator[Event, None, ProcessResult | Failure]:
    """Measure a case once, in a fresh worker process; `side` is what its events say."""
    plan = plan_for(case, setting.plan)
    assignment = _assignment(case, setting, plan, process)
    with _Worker(assignment, setting.side) as worker:
        for message in worker.messages(plan):
            if isinstance(message, Phase | Estimate):
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
        traffic_per_payload=case.operation.traffic_per_payload,
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


def _environment(scratch: str | None, side: Side | None) -> dict[str, str]:
    """CuFile writes its log to the current directory unless it is told another place."""
    log = str(Path(scratch) / "cufile.log") if scratch else os.devnull
    return {"CUFILE_LOGFILE_PATH": log, **worker_environ(side)}


class _Worker:
    """One worker process: started, listened to, and ended whatever happens."""

    def __init__(self, assignment: Assignment, side: Side | None) -> None:
        self._assignment = assignment
        self._side = side

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [self._side.python if self._side else sys.executable, "-m", "kvbench.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C goes to the run, which then decides
            env=_environment(self._assignment.scratch, self._side),
        )
        self._stderr: deque[str] = deque(maxlen=KEPT_STDERR_LINES)
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()
        with contextlib.suppress(BrokenPipeError):  # it died at once; messages() says how
            stdin = cast("IO[bytes]", self._process.stdin)
            stdin.write(msgspec.json.encode(self._assignment) + b"\n")
            stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # A process stuck in a driver does not even die; the run goes on without it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_GRACE_S)
        self._drain.join(timeout=1.0)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def messages(self, plan: Plan) -> Iterator[Message]:
        """What the worker says; a failure is made up for it when it dies or goes silent."""
        data_s = plan.data_bytes / SLOWEST_DRIVE_BYTES_PER_S
        allowed_s = {
            "set up": SETUP_GRACE_S + data_s,
            "measure": plan.warmup_s + plan.time_limit_s + MEASURE_GRACE_S,
            "verify": SETUP_GRACE_S + data_s,
        }
        phase = "set up"
        self._deadline_s = time.monotonic() + allowed_s[phase]
        for line in self._lines():
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
                self._deadline_s = time.monotonic() + allowed_s[phase]
            yield message
            if isinstance(message, Result | Failure):
                return
        yield self._death(phase)

    def _lines(self) -> Iterator[bytes | None]:
        """Lines of the worker's output; None once the deadline has passed."""
        stdout = cast("IO[bytes]", self._process.stdout)
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, self._deadline_s - time.monotonic())):
                    yield None
                    return
                chunk = os.read(stdout.fileno(), READ_BYTES)
                if not chunk:
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                yield from lines

    def _death(self, phase: str) -> Failure:
        try:
            code = self._process.wait(KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            return Failure("failed", "stuck", f"worker closed its output in “{phase}” and lives on")
        self._drain.join(timeout=1.0)
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", by a user or for want of memory (dmesg tells)" if name == "SIGKILL" else ""
            return Failure("failed", "worker_killed", f"worker ended by {name} in “{phase}”{hint}")
        said = next((line for line in reversed(self._stderr) if line.strip()), "nothing on stderr")
        return Failure("failed", "worker_crashed", f"worker exited {code} in “{phase}”: {said}")

    def _read_stderr(self) -> None:
        stderr = cast("IO[bytes]", self._process.stderr)
        for line in stderr:
            self._stderr.append(line.decode(errors="replace").rstrip())

"""Runs a case in a fresh process that records itself, and brings the recording home.

Every wait has a deadline, and the process ends with this one or with an interruption.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from kvbench.errors import NothingMeasuredError, UsageError
from kvbench.measure.child import Child
from kvbench.measure.runner import (
    MEASURE_GRACE_S,
    SETUP_GRACE_S,
    SLOWEST_DRIVE_BYTES_PER_S,
    Setting,
)
from kvbench.measure.suite import Case
from kvbench.measure.worker import Assignment, Failure, Phase
from kvbench.profile.slices import Batch, Recording, Slice, windowed

CHILD = "kvbench.profile.child"
TRACERS = ("auto", "torch", "proton", "none")


def take(
    case: Case,
    setting: Setting,
    length_s: float,
    *,
    tracer: str = "auto",
    on_phase: Callable[[str], None] = lambda _name: None,
) -> Recording:
    """Record a case for so long, once it is warm; its slices are cut to that window.

    `tracer` is "torch" to have torch.profiler look on as well, "proton" to have Proton count, or
    "none"; "auto" is torch where the case works on a GPU. `on_phase` is told what the process
    begins to do.

    Raises:
        NothingMeasuredError: this machine cannot run the case, or it failed.
        UsageError: the case has a load beside it.
    """
    if case.beside is not None:
        raise UsageError(f"{case.id} has a load beside it: profile one of the two alone")
    if reason := case.unmet(setting.machine):
        raise NothingMeasuredError(f"{case.id} cannot run here: {reason}")
    orders = msgspec.json.encode(_assignment(case, setting, length_s, tracer))
    scratch = str(setting.scratch) if setting.scratch else None
    slices: list[Slice] = []
    phase, allowed_s = "set up", _allowed_s("set up", setting, length_s)
    with Child(CHILD, orders, scratch, None) as child:
        child.deadline_s = time.monotonic() + allowed_s
        for line in child.lines():
            if line is None:
                raise NothingMeasuredError(
                    f"{case.id}: nothing came from “{phase}” within {allowed_s:.0f} s"
                )
            message = msgspec.json.decode(line, type=Phase | Batch | Recording | Failure)
            if isinstance(message, Batch):
                slices += message.slices
            elif isinstance(message, Recording):
                return windowed(msgspec.structs.replace(message, slices=slices))
            elif isinstance(message, Failure):
                raise NothingMeasuredError(f"{case.id}: {message.text}")
            else:
                phase, allowed_s = message.name, _allowed_s(message.name, setting, length_s)
                child.deadline_s = time.monotonic() + allowed_s
                on_phase(phase)
        raise NothingMeasuredError(f"{case.id}: {child.death(phase).text}")


def _allowed_s(phase: str, setting: Setting, length_s: float) -> float:
    if phase == "measure":
        return setting.plan.warmup_s + length_s + MEASURE_GRACE_S
    return SETUP_GRACE_S + setting.plan.data_bytes / SLOWEST_DRIVE_BYTES_PER_S


def _assignment(case: Case, setting: Setting, length_s: float, tracer: str) -> Assignment:
    if tracer == "auto":
        on_gpu = (
            case.operation.tier not in {"dram", "nvme"} or case.params.get("memory") == "device"
        )
        tracer = "torch" if on_gpu and setting.machine.has_gpu else "none"
    return Assignment(
        body=case.operation.body,
        stream=case.operation.stream,
        traffic_per_payload=case.operation.traffic(case.params),
        params=dict(case.params),
        plan=replace(setting.plan, time_limit_s=length_s),
        geometry=setting.geometry,
        machine=setting.machine,
        seed=setting.seed,
        process=0,
        scratch=str(setting.scratch) if setting.scratch else None,
        tracer=tracer,
    )

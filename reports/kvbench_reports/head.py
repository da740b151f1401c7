"""What a report is of, in a few lines of words: the run, the model, the machine, the drive.

The head and the closing line of every format for people come from here, so that all of them say
the same, and all say when devices were simulated.
"""

import re
from collections import Counter
from datetime import datetime

from kvbench.geometry import KVGeometry
from kvbench.machine import Gpu, Machine, Storage
from kvbench.measure.result import Report, State
from kvbench.units import format_bytes
from kvbench_reports.figures import TOKENS
from kvbench_reports.view import state_counts
from kvbench_reports.words import clean, count

SEPARATOR = " · "
SIMULATED = "simulated"
_UNKNOWN = "unknown"
_MARKS = re.compile(r"\((R|TM)\)")  # in the names of CPUs


def head(report: Report) -> list[tuple[str, list[str]]]:
    """The lines at the top of a report: a name, and facts to be printed with `SEPARATOR`."""
    notice = simulated_notice(report)
    return [
        ("kvbench", _run(report)),
        *([(SIMULATED, [notice])] if notice else []),
        ("model", _model(report.model)),
        ("machine", _machine(report.machine)),
        ("drive", _drive(report.machine.storage)),
    ]


def simulated_notice(report: Report) -> str | None:
    """The sentence that keeps simulated figures from being taken for a machine's, or None."""
    rows = sum(row.state is State.SIMULATED for row in report.rows)
    if not report.simulated and not rows:
        return None
    profile = f"profile {clean(report.simulated)}" if report.simulated else "profile not recorded"
    return f"{count(rows, 'row')} from simulated devices ({profile}), true of no machine"


def closing(report: Report) -> str:
    """`14 rows: 8 ok, 1 degraded …`, and whether the run is complete."""
    states = state_counts(report.rows)
    rows = count(len(report.rows), "row")
    text = f"{rows}: {states}" if states else "no rows"
    return text if report.finished_at else f"{text}; the run did not finish, --resume goes on"


def _run(report: Report) -> list[str]:
    started = _instant(report.started_at)
    when = f"{started:%Y-%m-%d %H:%M} UTC" if started else clean(report.started_at)
    finished = _instant(report.finished_at or "")
    parts = [clean(report.kvbench_version), f"suite {clean(report.suite)}", when]
    if not report.finished_at:
        parts.append("not finished")
    elif started and finished:
        parts.append(f"took {_duration((finished - started).total_seconds())}")
    return parts


def _model(model: KVGeometry) -> list[str]:
    tokens = count(model.block_size, "token")
    parts = [
        f"{clean(model.name)} in {model.cache_dtype}",
        f"{model.bytes_per_token:,} B/token",
        f"block of {tokens} = {format_bytes(model.block_bytes)}",
        f"{TOKENS:,} tokens = {format_bytes(model.bytes_for(TOKENS))}",
    ]
    grid = [
        f"{name} {ways}"
        for name, ways in (("TP", model.tensor_parallel), ("PP", model.pipeline_parallel))
        if ways > 1
    ]
    return [*parts, "one rank of " + ", ".join(grid)] if grid else parts


def _machine(machine: Machine) -> list[str]:
    cpu, memory = machine.cpu, machine.memory
    parts = [
        _MARKS.sub("", clean(cpu.model or "unknown CPU")),
        _cores(machine),
        f"{format_bytes(memory.total_bytes) if memory.total_bytes else _UNKNOWN} memory",
        _gpus(machine),
    ]
    if memory.cgroup_limit_bytes is not None:
        parts[2] += f", limited to {format_bytes(memory.cgroup_limit_bytes)}"
    if cpu.virtualised:
        parts.append(f"{clean(cpu.hypervisor)} guest" if cpu.hypervisor else "virtual machine")
    return parts


def _cores(machine: Machine) -> str:
    present, usable = machine.cpu.logical_cores, machine.cpu.affinity_cores
    if present is None and usable is None:
        return "unknown cores"
    if present is None or usable is None or present == usable:
        text = count(usable or present or 0, "core")
    else:
        text = f"{usable} of {count(present, 'core')}"
    quota = machine.cgroup.cpu_quota_cores
    return text if quota is None else f"{text}, quota of {quota:g}"


def _gpus(machine: Machine) -> str:
    if not machine.has_gpu:
        return "no GPU visible" if machine.gpus else "no GPU"
    alike = Counter(_gpu(gpu) for gpu in machine.visible_gpus)
    names = ", ".join(f"{gpus} x {name}" if gpus > 1 else name for name, gpus in alike.items())
    driver = machine.cuda.driver_version
    return f"{names}, driver {clean(driver)}" if driver else names


def _gpu(gpu: Gpu) -> str:
    name = clean(gpu.name or "unknown GPU")
    return f"{name} {format_bytes(gpu.memory_bytes)}" if gpu.memory_bytes else name


def _drive(storage: Storage | None) -> list[str]:
    if storage is None:
        return ["no directory named"]
    filesystem = clean(storage.filesystem or "unknown filesystem")
    device = clean(storage.block_device or "") or "no block device"
    described = [clean(storage.device_model or ""), storage.device_kind]
    known = ", ".join(word for word in described if word and word != _UNKNOWN)
    return [
        f"{filesystem} on {device} ({known})" if known else f"{filesystem} on {device}",
        clean(storage.directory or "directory not recorded"),
        "O_DIRECT" if storage.direct_io else "no O_DIRECT",
    ]


def _instant(text: str) -> datetime | None:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return instant if instant.tzinfo is not None else None


def _duration(elapsed_s: float) -> str:
    minutes, seconds = divmod(round(elapsed_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

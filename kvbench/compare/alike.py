"""Whether two reports may be held against each other, and what else differs between them.

Three severities. A difference of identity (machine, model, simulated or not) refuses the
comparison; a condition (kernel, plan, throttling) is named beside it; everything else (clock
readings, free space) differs every time and is never looked at.
"""

from collections.abc import Iterator, Sequence
from typing import cast

from kvbench.compare.metrics import Metric
from kvbench.errors import NotComparableError, UsageError
from kvbench.machine import Machine, identity
from kvbench.measure.result import IMPRECISE, Caution, Report

SLOW_MODE_SHARE, SLOW_MODE_GROWTH = 0.02, 3.0  # a median does not see a mode below one half
NOT_OF_THE_PLAN = {"seed"}


def check_sources(base: Report, new: Report, paths: tuple[str, str]) -> None:
    """Refuse what can be no baseline, and a report held against itself.

    Raises:
        UsageError: BASE was slowed on purpose, or both are the same processes.
    """
    if base.inject:
        slowed = ", ".join(f"{glob} +{share:.4g}" for glob, share in base.inject.items())
        raise UsageError(
            f"{paths[0]} was slowed on purpose (--inject {slowed}) and can be no baseline: "
            "measure one without --inject"
        )
    if base.session_id == new.session_id and not interleaved(base, new):
        raise UsageError(
            f"{paths[0]} and {paths[1]} are one session, not two: measure again, or use "
            "`kvbench ab`"
        )


def interleaved(base: Report, new: Report) -> bool:
    """Whether the two are the sides of one `kvbench ab`."""
    return (
        base.session_id == new.session_id
        and base.side is not None
        and any(process.block is not None for row in base.rows for process in row.processes)
        and any(process.block is not None for row in new.rows for process in row.processes)
    )


def differences(base: Report, new: Report) -> list[str]:
    """What of machine, model and kind of device is not the same, in words."""
    facts = list(_model_facts(base, new))
    if base.simulated is None or base.simulated != new.simulated:
        # Figures of simulated devices are the profile's, whatever machine computed them.
        ours, theirs = identity(base.machine), identity(new.machine)
        facts = [*((name, ours[name], theirs[name]) for name in ours), *facts]
    found = [
        f"{name}: {_said(before)} in BASE, {_said(after)} in NEW"
        for name, before, after in facts
        if before != after
    ]
    if base.simulated != new.simulated:
        before, after = (
            f"simulated ({each})" if each else "measured"
            for each in (base.simulated, new.simulated)
        )
        found.append(f"devices: {before} in BASE, {after} in NEW")
    return found


def require_alike(found: Sequence[str], *, force: bool) -> None:
    """Refuse different machines or models unless forced.

    Raises:
        NotComparableError: something differs; it is named.
    """
    if found and not force:
        raise NotComparableError(
            f"not comparable: {'; '.join(found)}; --force compares them all the same"
        )


def conditions(base: Report, new: Report, pairs: Sequence[tuple[Metric, Metric]]) -> list[Caution]:
    """What differs, or was wrong on a side, without making the two incomparable."""
    return [*_report_conditions(base, new), *_row_conditions(pairs)]


def _report_conditions(base: Report, new: Report) -> Iterator[Caution]:
    for side, report in (("BASE", base), ("NEW", new)):
        if report.finished_at is None:
            yield Caution(code="unfinished", message=f"{side} is the report of an unfinished run")
    one, other = base.machine, new.machine
    gpu_one, gpu_other = (
        sorted({reason for gpu in each.visible_gpus for reason in gpu.throttle_reasons})
        for each in (one, other)
    )
    facts: list[tuple[str, object, object]] = [
        ("kvbench", base.kvbench_version, new.kvbench_version),
        ("kernel", one.os.kernel, other.os.kernel),
        ("GPU driver", one.cuda.driver_version, other.cuda.driver_version),
        ("Python", one.os.python_version, other.os.python_version),
        ("CPU governor", one.cpu.governor, other.cpu.governor),
        ("KvikIO", one.kvikio.version, other.kvikio.version),
        ("GPU throttling", ", ".join(gpu_one), ", ".join(gpu_other)),
        ("GPU link", _gpu_links(one), _gpu_links(other)),
        ("NUMA nodes", len(one.numa_nodes), len(other.numa_nodes)),
        ("drive link", _drive_link(one), _drive_link(other)),
        ("GPUDirect Storage", one.storage and one.storage.gds, other.storage and other.storage.gds),
    ]
    for name, before, after in facts:
        if before != after:
            text = f"{name}: {_said(before)} in BASE, {_said(after)} in NEW"
            yield Caution(code=name.lower().replace(" ", "_"), message=text)
    changed = [
        f"{name} {base.plan.get(name, '-')} in BASE, {new.plan.get(name, '-')} in NEW"
        for name in sorted({*base.plan, *new.plan} - NOT_OF_THE_PLAN)
        if base.plan.get(name) != new.plan.get(name)
    ]
    if changed:
        yield Caution(code="plan", message=f"other plans: {'; '.join(changed)}")


def _row_conditions(pairs: Sequence[tuple[Metric, Metric]]) -> Iterator[Caution]:
    for code in ("no_steady_state", "other_traffic", IMPRECISE):
        in_base, in_new = (
            [row for row in rows if any(caution.code == code for caution in row.warnings)]
            for rows in ([base.row for base, _ in pairs], [new.row for _, new in pairs])
        )
        if in_base or in_new:
            first = next(c for c in (in_new or in_base)[0].warnings if c.code == code)
            yield Caution(
                code=code,
                message=f"{first.message} ({len(in_base)} metrics of BASE, {len(in_new)} of NEW)",
                fix=first.fix,
            )
    shares = [(_slow_share(new), _slow_share(base), new.id) for base, new in pairs]
    grown = [
        each
        for each in shares
        if each[0] > SLOW_MODE_SHARE and each[0] > SLOW_MODE_GROWTH * each[1]
    ]
    if grown:
        after, before, name = max(grown)
        text = f"{name}: {after:.0%} of samples in a slow mode, {before:.0%} in BASE"
        others = f"; so {len(grown) - 1} others" if len(grown) > 1 else ""
        yield Caution(code="slow_mode", message=f"{text}{others}; a median does not see it")


def _slow_share(metric: Metric) -> float:
    shares = [process.slow_fraction or 0.0 for process in metric.row.processes]
    return sum(shares) / len(shares)


def _gpu_links(machine: Machine) -> str:
    """As far as GPU and slot go: a card at rest negotiates less."""
    return ", ".join(
        f"Gen{gpu.pcie_generation_max} x{gpu.pcie_width_max}" for gpu in machine.visible_gpus
    )


def _drive_link(machine: Machine) -> str | None:
    drive = machine.storage
    if drive is None or drive.link_generation is None:
        return None
    return f"Gen{drive.link_generation} x{drive.link_width}"


def _model_facts(base: Report, new: Report) -> Iterator[tuple[str, object, object]]:
    one, other = base.model, new.model
    yield "model", one.name, other.name
    yield "cache dtype", one.cache_dtype, other.cache_dtype
    yield "tokens in a block", one.block_size, other.block_size
    yield "tensor parallel", one.tensor_parallel, other.tensor_parallel
    yield "pipeline parallel", one.pipeline_parallel, other.pipeline_parallel
    yield "bytes per token", one.bytes_per_token, other.bytes_per_token


def _said(value: object) -> str:
    if value is None or value in ("", []):
        return "none"
    if isinstance(value, list):
        return ", ".join(_said(each) for each in cast("list[object]", value))
    return str(value)

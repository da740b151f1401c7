"""The bars S1 to S12: limits with their reasons, and whether one build keeps to them.

Judges records that `kvbench_kernels.static` read, and compares them with golden files kept beside
this module. Compiles nothing. S4 and S5 rest on assumed latencies and clocks: they catch a variant
that got worse, and predict no bandwidth.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench_kernels.checks import UNIT_BYTES
from kvbench_kernels.variant import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kvbench_kernels.static import Accesses, Static
    from kvbench_kernels.variant import Variant

BARS: Mapping[str, str] = {
    "S1": "payload is read and written 16 bytes at a time",
    "S2": "no registers are spilled to local memory",
    "S3": "registers a thread",
    "S4": "bytes in flight an SM",
    "S5": "time to issue over time to move",
    "S6": "occupancy",
    "S7": "shared memory and barriers",
    "S8": "arithmetic: no float64, no calls, no fused rounding, the hardware's own casts",
    "S9": "registers and instructions near those of the golden file",
    "S10": "the build that knows nothing of alignment fails S1, so S1 can fail",
    "S11": "16-byte accesses move what the byte model says",
    "S12": "it compiles for every architecture that it is meant for",
}

# An SM has 65,536 registers: 64 leave room for half its threads, 128 for a quarter.
MOST_REGISTERS: Mapping[Work, int] = {
    Work.MOVE: 64,
    Work.HARDWARE_CAST: 96,
    Work.SOFTWARE_CAST: 96,
    Work.INT8: 96,
    Work.INT4: 96,
    Work.CHECKSUM: 96,
    Work.CHANNELS: 128,  # a thread keeps its channel's tokens
}
# Little's law: bandwidth x an assumed latency of 0.6 to 0.8 us / SMs is 11, 17 and 42 KiB; two to
# three times that, since loads do not arrive evenly.
LEAST_IN_FLIGHT_BYTES: Mapping[int, int] = {80: 32 * 1024, 90: 48 * 1024, 100: 96 * 1024}
# Shares of the time to move the bytes. A conversion is allowed most of that time, since it can
# hide behind the loads of other warps; a plain move next to nothing. Nothing for int4 on sm_100:
# its HBM has outgrown its instruction rate, and no variant comes below 0.9. Nothing for fp8 in
# software where there is an instruction for it.
_CONVERSION = {80: 0.6, 90: 0.6, 100: 0.9}
MOST_ISSUE_RATIO: Mapping[Work, Mapping[int, float]] = {
    Work.MOVE: {80: 0.15, 90: 0.15, 100: 0.15},
    Work.HARDWARE_CAST: _CONVERSION,
    Work.INT8: _CONVERSION,
    Work.CHECKSUM: _CONVERSION,
    Work.SOFTWARE_CAST: {80: 0.9},
    Work.INT4: {80: 0.9, 90: 0.9},
    Work.CHANNELS: {80: 0.9, 90: 0.9},
}
LEAST_OCCUPANCY = 0.5  # enough warps to hide one another's waits,
LEAST_OCCUPANCY_IN_FLIGHT = 0.25  # fewer when each has enough bytes under way (S4)
MOST_SHARED_BYTES = 16 * 1024  # eight CTAs and more an SM on all three
MOST_BARRIERS = 5  # two exchanges of a tile between threads; a third is a layout to think over
FIRST_E4M3_CAPABILITY = 89
MOST_DRIFT = 0.1
MOST_MODEL_ERROR = 0.05
MOST_LINT_CPU_S = 300.0  # of all builds; of a processor, so that a busy machine fails nobody

GOLDEN = Path(__file__).parent / "golden"


class Verdict(Enum):
    """What a bar says of a build."""

    PASS = "pass"
    FAIL = "fail"
    EXEMPT = "exempt"  # fails, and the variant gives the reason why it must
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One bar of one build."""

    bar: str
    verdict: Verdict
    text: str  # what was seen and what is allowed, one line
    used: float | None = None  # share of the limit that is used up; above 1 fails
    reason: str = ""  # of an exemption


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """What a build was when somebody last looked at it and found it good."""

    variant: str
    capability: int
    triton: str  # counts of another version say nothing
    registers: int
    instructions: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """A bar's answer before exemptions; `kept` is None where it does not apply."""

    kept: bool | None
    text: str
    used: float | None = None


def judge(
    variant: Variant,
    static: Static,
    *,
    golden: Golden | None,
    unhinted: Accesses | None = None,
) -> tuple[Finding, ...]:
    """Hold one build against all bars, in order.

    A bar that the variant is exempt from ("S4", or "S4.sm_100" for one architecture) does not
    fail; one that is kept although "S4.sm_100" exempts it does, so that no exemption outlives its
    reason.

    Args:
        variant: What was compiled.
        static: What it compiled to.
        golden: What it was before; None fails S9.
        unhinted: The accesses of its build without hints; None leaves S10 out.
    """
    by_bar: dict[str, _Seen] = {
        "S1": _width(variant, static.accesses),
        **{bar: look(variant, static) for bar, look in _LOOKS.items()},
        "S9": _drift(static, golden),
        "S10": _contract(variant, unhinted),
        "S11": _model(variant, static),
        "S12": _Seen(kept=True, text=f"compiles for sm_{static.capability}"),
    }
    return tuple(_finding(variant, static.capability, bar, by_bar[bar]) for bar in BARS)


def judge_failed_build(error: str) -> tuple[Finding, ...]:
    """The findings of a variant that does not compile: S12 fails, nothing else can be said."""
    rest = tuple(
        Finding(bar=bar, verdict=Verdict.NOT_CHECKED, text="there is no build")
        for bar in BARS
        if bar != "S12"
    )
    return (*rest, Finding(bar="S12", verdict=Verdict.FAIL, text=error))


def golden_path(variant: str, capability: int, folder: Path = GOLDEN) -> Path:
    """Where the golden file of a build is kept."""
    return folder / f"sm_{capability}" / f"{variant}.json"


def read_golden(variant: str, capability: int, folder: Path = GOLDEN) -> Golden | None:
    """The golden record of a build, None if there is none.

    Raises:
        ValueError: the file is not what `write_golden` writes.
    """
    path = golden_path(variant, capability, folder)
    if not path.exists():
        return None
    try:
        return Golden(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path.name} of sm_{capability} is no golden file: {error}; "
            "write it anew with --update-golden"
        ) from None


def write_golden(static: Static, folder: Path = GOLDEN) -> Golden:
    """Make this build the one that later builds are held against."""
    golden = Golden(
        variant=static.variant,
        capability=static.capability,
        triton=static.triton,
        registers=static.registers,
        instructions=static.instructions,
    )
    path = golden_path(static.variant, static.capability, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: getattr(golden, name) for name in Golden.__dataclass_fields__}
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return golden


def _finding(variant: Variant, capability: int, bar: str, seen: _Seen) -> Finding:
    if seen.kept is None:
        return Finding(bar=bar, verdict=Verdict.NOT_CHECKED, text=seen.text)
    exactly = f"{bar}.sm_{capability}"
    if seen.kept and exactly not in variant.exempt:
        return Finding(bar=bar, verdict=Verdict.PASS, text=seen.text, used=seen.used)
    if seen.kept:
        text = f"{seen.text}; take the exemption {exactly} out of the variant, it is not needed"
        return Finding(bar=bar, verdict=Verdict.FAIL, text=text, used=seen.used)
    reason = variant.exempt.get(exactly) or variant.exempt.get(bar, "")
    verdict = Verdict.EXEMPT if reason else Verdict.FAIL
    return Finding(bar=bar, verdict=verdict, text=seen.text, used=seen.used, reason=reason)


def _width(variant: Variant, accesses: Accesses) -> _Seen:
    """S1: no more narrow accesses than declared, and payload both ways in wide ones."""
    problems: list[str] = []
    sides = (
        ("loads", accesses.loads, variant.narrow_loads, variant.payload_load_bytes),
        ("stores", accesses.stores, variant.narrow_stores, variant.payload_store_bytes),
    )
    for name, counts, declared, payload_bytes in sides:
        narrow = sum(count for width, count in counts.items() if width < UNIT_BYTES)
        if narrow > declared:
            found = " + ".join(f"{count} of {width} B" for width, count in counts.items())
            problems.append(
                f"{narrow} {name} narrower than {UNIT_BYTES} B, {declared} allowed ({found})"
            )
        elif payload_bytes != 0 and UNIT_BYTES not in counts and not accesses.bulk_copies:
            problems.append(f"no {name} of {UNIT_BYTES} B")
    if problems:
        return _Seen(kept=False, text="; ".join(problems))
    return _Seen(kept=True, text=f"payload in accesses of {UNIT_BYTES} B")


def _spills(variant: Variant, static: Static) -> _Seen:
    del variant
    spilled = (static.stack_bytes, static.local_bytes, static.local_accesses)
    text = "stack {} B, local {} B, {} local accesses; none allowed".format(*spilled)
    return _Seen(kept=not any(spilled), text=text)


def _registers(variant: Variant, static: Static) -> _Seen:
    most = MOST_REGISTERS[variant.work]
    return _at_most(static.registers, most, f"{static.registers} registers of {most}")


def _in_flight(variant: Variant, static: Static) -> _Seen:
    del variant
    least_bytes = LEAST_IN_FLIGHT_BYTES[static.capability]
    seen_bytes = static.in_flight_bytes
    return _Seen(
        kept=seen_bytes >= least_bytes,
        text=f"{seen_bytes / 1024:.0f} KiB in flight an SM, at least {least_bytes // 1024} wanted",
        used=least_bytes / seen_bytes if seen_bytes else float("inf"),
    )


def _issue(variant: Variant, static: Static) -> _Seen:
    most = MOST_ISSUE_RATIO[variant.work].get(static.capability)
    ratio = static.issue_ratio
    if ratio is None:
        why = "it has a loop" if static.has_loop else "it has no byte model"
        return _Seen(kept=None, text=f"no issue ratio: {why}")
    if most is None:
        return _Seen(kept=None, text=f"issue ratio {ratio:.2f}, no limit on this architecture")
    return _at_most(ratio, most, f"issue ratio {ratio:.2f} of {most}")


def _occupancy(variant: Variant, static: Static) -> _Seen:
    enough_in_flight = bool(_in_flight(variant, static).kept)
    least = LEAST_OCCUPANCY_IN_FLIGHT if enough_in_flight else LEAST_OCCUPANCY
    why = "" if enough_in_flight else " while too little is in flight"
    return _Seen(
        kept=static.occupancy >= least,
        text=f"occupancy {static.occupancy:.0%}, at least {least:.0%} wanted{why}",
    )


def _shared(variant: Variant, static: Static) -> _Seen:
    del variant
    if static.accesses.bulk_copies:
        return _Seen(kept=None, text="bulk copies live in shared memory")
    text = (
        f"{static.shared_bytes:,} B of shared memory of {MOST_SHARED_BYTES:,}, "
        f"{static.barriers} barriers of {MOST_BARRIERS}"
    )
    used = max(static.shared_bytes / MOST_SHARED_BYTES, static.barriers / MOST_BARRIERS)
    return _Seen(kept=used <= 1, text=text)


def _arithmetic(variant: Variant, static: Static) -> _Seen:
    problems: list[str] = []
    if static.double_instructions:
        problems.append(f"{static.double_instructions} instructions on float64")
    if static.calls:
        problems.append(f"{static.calls} calls, as the slow path of a division")
    if static.magic_rounding and static.fused_instructions:
        problems.append(
            f"{static.fused_instructions} fused multiply-adds beside a rounding by a constant: "
            "launch with enable_fp_fusion=False"
        )
    has_instruction = static.capability >= FIRST_E4M3_CAPABILITY
    if variant.work is Work.HARDWARE_CAST and not static.e4m3_casts:
        problems.append("no conversion instruction to or from e4m3")
    if variant.work is Work.SOFTWARE_CAST and has_instruction:
        problems.append("converts by integer arithmetic where there is an instruction")
    if problems:
        return _Seen(kept=False, text="; ".join(problems))
    return _Seen(kept=True, text="no float64, no calls, no fused rounding")


def _drift(static: Static, golden: Golden | None) -> _Seen:
    if golden is None:
        return _Seen(kept=False, text="no golden file: write it with --update-golden")
    if golden.triton != static.triton:
        return _Seen(
            kept=None,
            text=f"not compared: golden is of triton {golden.triton}, this {static.triton}",
        )
    pairs = (
        ("registers", static.registers, golden.registers),
        ("instructions", static.instructions, golden.instructions),
    )
    worst = max(abs(now - was) / was for _, now, was in pairs)
    shown = ", ".join(f"{now} {name}, golden {was}" for name, now, was in pairs)
    if worst > MOST_DRIFT:
        shown += f": more than {MOST_DRIFT:.0%} apart; if that is meant, use --update-golden"
    return _Seen(kept=worst <= MOST_DRIFT, text=shown)


def _contract(variant: Variant, unhinted: Accesses | None) -> _Seen:
    if unhinted is None:
        return _Seen(kept=None, text="tried on another architecture")
    failed = not _width(variant, unhinted).kept
    text = "without hints S1 fails" if failed else "S1 passes even without hints: it shows nothing"
    return _Seen(kept=failed, text=text)


def _model(variant: Variant, static: Static) -> _Seen:
    if static.accesses.bulk_copies:
        return _Seen(kept=None, text="bulk copies are not counted in bytes")
    sides = (
        ("loads", static.accesses.loads, variant.payload_load_bytes),
        ("stores", static.accesses.stores, variant.payload_store_bytes),
    )
    parts: list[str] = []
    kept = True
    for name, counts, model_bytes in sides:
        if model_bytes is None:
            continue
        seen_bytes = counts.get(UNIT_BYTES, 0) * UNIT_BYTES * static.threads
        parts.append(f"{name} {seen_bytes:,} B of {model_bytes:,}")
        kept = kept and abs(seen_bytes - model_bytes) <= MOST_MODEL_ERROR * model_bytes
    if not parts:
        return _Seen(kept=None, text="the variant gives no bytes of a program")
    return _Seen(kept=kept, text="a program " + ", ".join(parts))


def _at_most(value: float, most: float, text: str) -> _Seen:
    return _Seen(kept=value <= most, text=text, used=value / most)


_LOOKS: Mapping[str, Callable[[Variant, Static], _Seen]] = {
    "S2": _spills,
    "S3": _registers,
    "S4": _in_flight,
    "S5": _issue,
    "S6": _occupancy,
    "S7": _shared,
    "S8": _arithmetic,
}

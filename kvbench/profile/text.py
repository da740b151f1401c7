"""A summary in words and columns, for a terminal or a log. Scales numbers; computes none."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvbench.profile.slices import COPY, IO, KERNEL, PYTHON
from kvbench.profile.summary import IDLE, PARTS, Summary, ThreadUse
from kvbench.units import format_bytes, format_rate

LABELS = {KERNEL: "GPU kernel", COPY: "copy", IO: "I/O wait", PYTHON: "Python", IDLE: "idle"}
NOT_STATED = "too few"


def render(summary: Summary, about: Mapping[str, Any]) -> str:
    """What is printed of a trace: `about` is its `otherData`. Lines, with a newline at the end."""
    lines = [
        f"{about['case']}: {summary.wall_s:.3f} s recorded, after {about['warmup_s']:g} s of "
        "warm-up",
        "",
        *_wall(summary),
        "",
        *_threads(summary),
        *_calls(summary),
        "",
        _verdict(summary),
        f"{format_bytes(summary.payload_bytes)} moved, {format_rate(summary.bytes_per_s)} while "
        "profiling (slower than `kvbench run`).",
        f"Processor time {about['cpu_s']:.3f} s, {about['cpu_s'] / summary.wall_s:.0%} of one "
        f"core. Path: {about['path_observed'] or 'not known'}. "
        f"{format_bytes(about['verified_bytes'])} checked.",
    ]
    lines += [f"warning: {caution['message']}" for caution in about["cautions"]]
    lines += _tools(about["tools"])
    if about["stopped_by"] == "slices":
        lines.append("Cut short: no more slices fit a trace. Record a shorter time with --seconds.")
    return "\n".join(lines) + "\n"


def _wall(summary: Summary) -> list[str]:
    rows = [(LABELS[part], summary.parts_s[part]) for part in PARTS]
    rows.append(("sum", sum(summary.parts_s.values())))
    return [
        f"{'wall time':<14}{'s':>8}{'share':>10}",
        *(f"{name:<14}{each:>8.3f}{each / summary.wall_s:>10.1%}" for name, each in rows),
    ]


def _threads(summary: Summary) -> list[str]:
    """Threads of one kind in one row: 32 lanes look alike, and the trace has each of them."""
    kinds: dict[tuple[str, str], list[ThreadUse]] = {}
    for thread in summary.threads:
        kinds.setdefault((thread.process, re.sub(r"-\d+$", "", thread.name)), []).append(thread)
    rows: list[str] = []
    for (process, _), threads in kinds.items():
        ends = dict.fromkeys((threads[0].name, threads[-1].name))  # one of them, if it is alone
        name = " to ".join(ends)
        name = name if process == "kvbench" else f"{process} {name}"
        means = {part: _mean([each.parts_s[part] for each in threads]) for part in PARTS}
        row = f"{name:<24}" + "".join(f"{means[part] / summary.wall_s:>11.1%}" for part in PARTS)
        if len(threads) > 1:
            most = max(PARTS, key=lambda part: means[part])
            shares = [each.parts_s[most] / summary.wall_s for each in threads]
            row += f"   {LABELS[most]} {min(shares):.1%} to {max(shares):.1%}"
        rows.append(row)
    return [f"{'thread':<24}" + "".join(f"{LABELS[part]:>11}" for part in PARTS), *rows]


def _calls(summary: Summary) -> list[str]:
    if not summary.calls:
        return []
    return [
        "",
        f"{'I/O call':<14}{'count':>10}{'p50':>12}{'p99':>12}{'longest':>12}",
        *(
            f"{each.name:<14}{each.count:>10}{_us(each.p50_s):>12}{_us(each.p99_s):>12}"
            f"{_us(each.max_s):>12}"
            for each in summary.calls
        ),
    ]


def _tools(tools: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if torch := tools.get("torch.profiler"):
        error_us = torch["clock_error_s"] * 1e6
        lines.append(f"torch.profiler looked on; its clock is off by at most {error_us:.1f} µs.")
    if proton := tools.get("Proton"):
        lines += [
            "",
            f"{'kernel, by Proton':<40}{'launches':>10}{'total s':>10}{'mean':>12}",
            *(
                f"{each['name'][:39]:<40}{each['launches']:>10}{each['time_s']:>10.3f}"
                f"{_us(each['time_s'] / max(1, each['launches'])):>12}"
                for each in proton["kernels"]
            ),
            "Warm-up included. Proton has no timeline: its kernels are no part of the times above.",
        ]
    return lines


def _verdict(summary: Summary) -> str:
    part = max(PARTS, key=lambda each: summary.parts_s[each])
    share = summary.parts_s[part] / summary.wall_s
    if part == IDLE:
        return f"Nothing was going on for {share:.1%} of the time, the largest part."
    name = LABELS[part][0].upper() + LABELS[part][1:]
    return f"{name} took the largest part of the time, {share:.1%}."


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _us(seconds: float | None) -> str:
    return NOT_STATED if seconds is None else f"{seconds * 1e6:.1f} µs"

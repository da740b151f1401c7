"""A summary in words and columns, for a terminal or a log.

Scales numbers; computes none. Columns fit the width that is asked for, or become sentences; to wrap
sentences is left to who prints them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvbench.profile.slices import COPY, IO, KERNEL, PYTHON
from kvbench.profile.summary import IDLE, PARTS, Calls, Summary, ThreadUse
from kvbench.units import format_bytes, format_rate

LABELS = {KERNEL: "GPU kernel", COPY: "copy", IO: "I/O wait", PYTHON: "Python", IDLE: "idle"}
NOT_STATED = "too few"


def render(summary: Summary, about: Mapping[str, Any], width: int) -> Iterator[str]:
    """What is printed of a trace, line by line: `about` is its `otherData`.

    Rows of columns are no longer than `width` characters; sentences may be.
    """
    yield (
        f"{about['case']}: {summary.wall_s:.3f} s recorded, after {about['warmup_s']:g} s of "
        "warm-up"
    )
    yield ""
    yield from _wall(summary, width)
    yield ""
    yield from _threads(summary, width)
    yield from _calls("I/O call", summary.calls, width)
    yield from _calls("request", summary.requests, width)
    yield ""
    yield _verdict(summary)
    yield (
        f"{format_bytes(summary.payload_bytes)} moved, {format_rate(summary.bytes_per_s)} while "
        "profiling (slower than `kvbench run`)."
    )
    yield (
        f"Processor time {about['cpu_s']:.3f} s, {about['cpu_s'] / summary.wall_s:.0%} of one "
        f"core. Path: {about['path_observed'] or 'not known'}. "
        f"{format_bytes(about['verified_bytes'])} checked."
    )
    yield from (f"warning: {caution['message']}" for caution in about["cautions"])
    yield from _tools(about["tools"], width)
    if about["stopped_by"] == "slices":
        yield "Cut short: no more slices fit a trace. Record a shorter time with --seconds."


def _wall(summary: Summary, width: int) -> Iterator[str]:
    rows = [(LABELS[part], summary.parts_s[part]) for part in PARTS]
    rows.append(("sum", sum(summary.parts_s.values())))
    yield from _columns(
        [("wall time", 14), ("s", 8), ("share", 10)],
        [(name, f"{each:.3f}", f"{each / summary.wall_s:.1%}") for name, each in rows],
        width,
    )


def _threads(summary: Summary, width: int) -> Iterator[str]:
    """Threads of one kind in one row: 32 lanes look alike, and the trace has each of them."""
    kinds: dict[tuple[str, str], list[ThreadUse]] = {}
    for thread in summary.threads:
        kinds.setdefault((thread.process, re.sub(r"-\d+$", "", thread.name)), []).append(thread)
    rows: list[list[str]] = []
    for (process, _), threads in kinds.items():
        ends = dict.fromkeys((threads[0].name, threads[-1].name))  # one of them, if it is alone
        name = " to ".join(ends)
        name = name if process == "kvbench" else f"{process} {name}"
        means = {part: _mean([each.parts_s[part] for each in threads]) for part in PARTS}
        row = [name, *(f"{means[part] / summary.wall_s:.1%}" for part in PARTS)]
        if len(threads) > 1:
            most = max(PARTS, key=lambda part: means[part])
            shares = [each.parts_s[most] / summary.wall_s for each in threads]
            row.append(f"{LABELS[most]} {min(shares):.1%} to {max(shares):.1%}")
        rows.append(row)
    yield from _columns([("thread", 24), *((LABELS[part], 11) for part in PARTS)], rows, width)


def _calls(title: str, calls: Sequence[Calls], width: int) -> Iterator[str]:
    if not calls:
        return
    yield ""
    yield from _columns(
        [(title, 14), ("count", 10), ("p50", 12), ("p99", 12), ("longest", 12)],
        [
            (each.name, str(each.count), _us(each.p50_s), _us(each.p99_s), _us(each.max_s))
            for each in calls
        ],
        width,
    )


def _tools(tools: Mapping[str, Any], width: int) -> Iterator[str]:
    if torch := tools.get("torch.profiler"):
        error_us = torch["clock_error_s"] * 1e6
        yield f"torch.profiler looked on; its clock is off by at most {error_us:.1f} µs."
    if proton := tools.get("Proton"):
        yield ""
        yield from _columns(
            [("kernel, by Proton", 40), ("launches", 10), ("total s", 10), ("mean", 12)],
            [
                (
                    each["name"][:39],
                    str(each["launches"]),
                    f"{each['time_s']:.3f}",
                    _us(each["time_s"] / max(1, each["launches"])),
                )
                for each in proton["kernels"]
            ],
            width,
        )
        yield (
            "Warm-up included. Proton has no timeline: its kernels are no part of the times above."
        )


def _columns(
    heading: Sequence[tuple[str, int]], rows: Sequence[Sequence[str]], width: int
) -> Iterator[str]:
    """Rows below a heading of titles and widths, or sentences where the columns do not fit.

    A row may end in a remark, which has no title; it has a line of its own where it must.
    """
    (first, least), *others = heading
    size = max([least, *(len(row[0]) for row in rows)])
    fits = size + sum(each for _, each in others) <= width
    yield _row([title for title, _ in heading], size, others) if fits else f"{first}:"
    for row in rows:
        cells, remarks = row[: len(heading)], row[len(heading) :]
        if not fits:
            told = zip(others, cells[1:], strict=True)
            said = ", ".join(f"{title} {cell}" for (title, _), cell in told)
            yield "; ".join([f"{cells[0]}: {said}", *remarks])
            continue
        line = _row(cells, size, others)
        beside = "   ".join([line, *remarks])
        yield from [beside] if len(beside) <= width else [line, *(f"  {each}" for each in remarks)]


def _row(cells: Sequence[str], size: int, others: Sequence[tuple[str, int]]) -> str:
    name, *rest = cells
    padded = (cell.rjust(each) for cell, (_, each) in zip(rest, others, strict=True))
    return "".join([name.ljust(size), *padded])


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

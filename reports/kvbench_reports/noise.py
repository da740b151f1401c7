"""What a calibration says: how far sessions lie apart, and what comparisons will be able to see."""

import shlex
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from rich.console import Console, RenderableType
from rich.text import Text

from kvbench.compare.noise import STALE_DAYS, Foresight, Noise
from kvbench.compare.selfcheck import SelfCheck
from kvbench_reports.layout import prose
from kvbench_reports.table import Part, plain_text, print_parts
from kvbench_reports.words import NONE, clean, count, percent

_HEADINGS: tuple[str, ...] = ("group", "metrics", "process sd", "session sd")
_SEEN_HEADINGS: tuple[tuple[str, ...], ...] = (
    ("group", "processes", "one metric:", "compare", "whole group:", "compare"),
    ("", "", "ab", "--noise", "ab", "--noise"),
)


def show(
    noise: Noise,
    foresight: Sequence[Foresight],
    check: SelfCheck,
    console: Console,
    path: str = "FILE",
) -> None:
    """Print a calibration; `path` is the file that `compare --noise` reads."""
    print_parts(_parts(noise, foresight, check, path), console)


def render(noise: Noise, foresight: Sequence[Foresight], check: SelfCheck) -> str:
    """The same as text without colour."""
    return plain_text(_parts(noise, foresight, check, "FILE"))


def _parts(
    noise: Noise, foresight: Sequence[Foresight], check: SelfCheck, path: str
) -> list[RenderableType]:
    return [
        Part(partial(_head, noise)),
        Part(partial(_spread, noise)),
        Part(partial(_seen, foresight)),
        Part(partial(_closing, noise, check, path)),
    ]


def _head(noise: Noise, width: int) -> Iterator[Text]:
    what = f"noise floor of {noise.sessions} sessions, suite {clean(noise.suite)}"
    if noise.simulated:
        what += f", simulated devices (profile {clean(noise.simulated)}): true of no machine"
    yield from prose(what, width, style="bold", hang=2)
    machine = clean(noise.machine.cpu.model or "unknown CPU")
    model = clean(noise.model.name)
    yield from prose(f"{model}, {machine}, fingerprint {noise.machine.fingerprint}", width)


def _spread(noise: Noise, width: int) -> Iterator[Text]:
    text = "how far the same code lies apart (median over the metrics of a group)"
    yield from prose(text, width, style="bold", hang=2)
    rows = [_HEADINGS]
    for group in dict.fromkeys(floor.group for floor in noise.metrics.values()):
        floors = [floor for floor in noise.metrics.values() if floor.group == group]
        process = float(np.median([floor.process_sd for floor in floors]))
        # The variance is that of a difference of two sessions: half of it is one session's.
        session = float(np.median([np.sqrt(floor.variance / 2) for floor in floors]))
        cells = (f"{percent(process)} %", f"{percent(session)} %")
        rows.append((clean(group), str(len(floors)), *cells))
    yield from _aligned(rows)


def _seen(foresight: Sequence[Foresight], width: int) -> Iterator[Text]:
    text = "smallest slowdown that will be seen with 80 % power (predicted from these sessions)"
    yield from prose(text, width, style="bold", hang=2)
    rows = list(_SEEN_HEADINGS)
    for each in foresight:
        shares = (
            each.interleaved,
            each.two_sessions,
            each.tier_interleaved,
            each.tier_two_sessions,
        )
        rows.append((clean(each.group), str(each.processes), *(_share(share) for share in shares)))
    yield from _aligned(rows, headings=len(_SEEN_HEADINGS))


def _closing(noise: Noise, check: SelfCheck, path: str, width: int) -> Iterator[Text]:
    pairs = count(check.pairs, "ordered pair")
    with_floor = (
        "too few sessions to try the floor on the rest"
        if check.floor_alarms is None
        else f"{check.floor_alarms} SLOWER with the floor of the other sessions"
    )
    text = (
        f"the same code held against itself, {pairs} of sessions: {check.quiet_alarms} SLOWER "
        f"when sessions are assumed alike, {with_floor}"
    )
    yield from prose(text, width, hang=2)
    aged = (
        f"measured {noise.measured_at[:10]}; `compare` warns after {STALE_DAYS} days, or with "
        "another kernel or driver"
    )
    yield from prose(aged, width, style="dim", hang=2)
    yield Text.assemble(("next: ", "dim"), f"kvbench compare BASE NEW --noise {shlex.quote(path)}")


def _share(share: float | None) -> str:
    if share is None:
        return NONE
    return ">100 %" if share > 1 else f"{percent(share)} %"


def _aligned(rows: Sequence[Sequence[str]], *, headings: int = 1) -> Iterator[Text]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for number, row in enumerate(rows):
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        yield Text("  ".join((first, *rest)), style="dim" if number < headings else "")

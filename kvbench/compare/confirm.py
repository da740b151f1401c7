"""The command that settles a suspicion: the same cases again, interleaved.

Built from how NEW was measured, so that it can be pasted.
"""

from collections.abc import Mapping, Sequence

from kvbench.compare.metrics import MARGINS
from kvbench.compare.record import Finding, Kind
from kvbench.machine import shell_quoted
from kvbench.measure.result import DIRTY, Report

MOST_GLOBS = 4
ELSEWHERE = ("env:", "env:VAR=value")  # nothing in the reports tells the sides apart
_DROPPED = ("-o", "--out", "--only", "--seed", "--format", "--margin")
_DROPPED_OF_RUN = (*_DROPPED, "--processes")  # `ab` takes as many pairs as precision asks for
_DROPPED_FLAGS = ("--resume", "--all", "--strict")


def confirm_command(
    base: Report, new: Report, suspects: Sequence[Finding], margins: Mapping[str, float]
) -> str | None:
    """`kvbench ab A B SUITE … --only …` for the suspects; None without any.

    What NEW was slowed by on purpose is kept: without it there would be nothing to confirm.
    """
    if not suspects:
        return None
    verb, rest = (new.command[0], new.command[1:]) if new.command else ("", [])
    if verb == "ab":
        command = ["ab", *_kept(rest)]
    else:
        command = [
            "ab",
            *_sides(base, new),
            *(_kept(rest, _DROPPED_OF_RUN) if verb == "run" else [new.suite]),
        ]
    for group, margin in margins.items():
        if margin != MARGINS.get(group):
            command += ["--margin", f"{group}={100 * margin:.4g}%"]
    for glob in _globs(suspects):
        command += ["--only", glob]
    return " ".join(["kvbench", *(shell_quoted(word) for word in command)])


def _sides(base: Report, new: Report) -> tuple[str, str]:
    """Two commits of kvbench itself, where the reports are of such; the working tree if changed."""
    if not base.commit or not new.commit or base.commit == new.commit:
        return ELSEWHERE
    if not base.commit_of_kvbench or not new.commit_of_kvbench or base.commit.endswith(DIRTY):
        return ELSEWHERE
    after = "env:" if new.commit.endswith(DIRTY) else f"git:{new.commit[:12]}"
    return f"git:{base.commit[:12]}", after


def _globs(suspects: Sequence[Finding]) -> list[str]:
    """The rows themselves while they are few; else, or for a whole tier, all of the tier."""
    rows = list(dict.fromkeys(each.row for each in suspects if each.row))
    tiers = [each.group for each in suspects if each.kind is Kind.TIER and each.group != "p99"]
    if rows and not tiers and len(rows) <= MOST_GLOBS:
        return rows
    return [f"{tier}.*" for tier in dict.fromkeys([*tiers, *(row.split(".")[0] for row in rows)])]


def _kept(words: Sequence[str], dropped: Sequence[str] = _DROPPED) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in dropped:
            skip = True
        elif word not in _DROPPED_FLAGS and not word.startswith(
            tuple(f"{option}=" for option in dropped)
        ):
            kept.append(word)
    return kept

"""The command that settles a suspicion: the same cases again, interleaved.

Built from how NEW was measured, so that it can be pasted.
"""

import shlex
from collections.abc import Sequence

from kvbench.compare.record import Finding, Kind
from kvbench.measure.result import Report

MOST_GLOBS = 4
ELSEWHERE = ("env:", "env:VAR=value")  # nothing in the reports tells the sides apart
_DROPPED = ("-o", "--out", "--only", "--seed", "--inject", "--format")
_DROPPED_FLAGS = ("--resume", "--all", "--strict")


def confirm_command(base: Report, new: Report, suspects: Sequence[Finding]) -> str | None:
    """`kvbench ab A B SUITE … --only …` for the suspects; None without any."""
    if not suspects:
        return None
    words = [word for word in new.command if word != "kvbench"]
    verb, rest = (words[0], words[1:]) if words else ("run", [new.suite])
    if verb == "ab":
        command = ["ab", *_kept(rest)]
    else:
        command = ["ab", *_sides(base, new), *(_kept(rest) if verb == "run" else [new.suite])]
    for glob in _globs(suspects):
        command += ["--only", glob]
    return " ".join(["kvbench", *(_quoted(word) for word in command)])


def _sides(base: Report, new: Report) -> tuple[str, str]:
    if base.commit and new.commit and base.commit != new.commit:
        before, after = (each.removesuffix("-dirty")[:12] for each in (base.commit, new.commit))
        if before != after:
            return f"git:{before}", f"git:{after}"
    return ELSEWHERE


def _globs(suspects: Sequence[Finding]) -> list[str]:
    """The rows themselves while they are few; else, or for a whole tier, all of the tier."""
    rows = list(dict.fromkeys(each.row for each in suspects if each.row))
    tiers = [each.group for each in suspects if each.kind is Kind.TIER and each.group != "p99"]
    if rows and len(rows) <= MOST_GLOBS:
        return rows
    return [f"{tier}.*" for tier in dict.fromkeys([*tiers, *(row.split(".")[0] for row in rows)])]


def _kept(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _DROPPED:
            skip = True
        elif word not in _DROPPED_FLAGS and not word.startswith(
            tuple(f"{option}=" for option in _DROPPED)
        ):
            kept.append(word)
    return kept


def _quoted(word: str) -> str:
    """For a shell; the ~ of a redacted home stays outside the quotes, where it names one."""
    home = "~/" if word.startswith("~/") else ""
    return home + shlex.quote(word.removeprefix(home))

"""The command that settles a suspicion can be pasted and measures the suspects."""

import shlex

import pytest

from kvbench.compare.compare import Options, compare
from kvbench.compare.metrics import parse_margins
from kvbench.compare.record import Comparison
from kvbench.measure.result import Report
from tests.compare.samples import noisy, one_session, two_sessions

QUIET = Options(assume_quiet=True)
A, B = "a" * 40, "b" * 40


def slower(rows: int = 1, *, of: int = 1) -> tuple[Report, Report]:
    """Two sessions; the first rows of a tier are 50 % slower, each in a tier with others."""
    names = [f"dram.copy/{at}" for at in range(of)]
    base = {name: noisy(at) for at, name in enumerate(names)}
    new = {name: noisy(100 + at, slower=0.5 if at < rows else 0.0) for at, name in enumerate(names)}
    return two_sessions(base, new)


def words(comparison: Comparison) -> list[str]:
    assert comparison.confirm is not None
    return shlex.split(comparison.confirm)


def test_it_repeats_how_new_was_measured_without_what_belongs_to_that_run() -> None:
    base, new = slower()
    new.command = ["run", "mix.toml", "--dir", "kvbench", "--seed=3", "-o", "x y.json", "--resume"]
    new.command += ["--model", "my model/config.json", "--only", "dram*"]
    found = words(compare(base, new, options=QUIET))
    assert found == [
        *["kvbench", "ab", "env:", "env:VAR=value", "mix.toml", "--dir", "kvbench"],
        *["--model", "my model/config.json", "--only", "dram.copy/0"],
    ]


@pytest.mark.parametrize(
    ("commits", "ours", "sides"),
    [
        ((A, B), True, ["git:aaaaaaaaaaaa", "git:bbbbbbbbbbbb"]),
        ((A, f"{B}-dirty"), True, ["git:aaaaaaaaaaaa", "env:"]),
        ((f"{A}-dirty", B), True, ["env:", "env:VAR=value"]),
        ((A, B), False, ["env:", "env:VAR=value"]),
        ((A, A), True, ["env:", "env:VAR=value"]),
        ((None, B), True, ["env:", "env:VAR=value"]),
    ],
)
def test_sides_are_commits_only_where_they_are_kvbenchs_and_were_measured(
    commits: tuple[str | None, str], ours: bool, sides: list[str]
) -> None:
    base, new = slower()
    for report, commit in zip((base, new), commits, strict=True):
        report.commit, report.commit_of_kvbench = commit, ours
    assert words(compare(base, new, options=QUIET))[2:4] == sides


def test_what_was_slowed_on_purpose_and_the_margins_are_kept() -> None:
    base, new = slower()
    new.inject = {"dram.*": 0.5}
    new.command = ["run", "ci", "--inject", "dram.*=+50%"]
    options = Options(assume_quiet=True, margins=parse_margins(["dram=12.5%"]))
    found = words(compare(base, new, options=options))
    assert found[4:] == [
        *["ci", "--inject", "dram.*=+50%", "--margin", "dram=12.5%", "--only", "dram.copy/0"]
    ]


def test_a_tier_that_became_slower_is_measured_whole() -> None:
    found = words(compare(*slower(3, of=3), options=QUIET))
    assert found[-2:] == ["--only", "dram.*"]


def test_ab_is_repeated_as_it_was() -> None:
    base, new = one_session({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2, slower=0.4)})
    new.command = ["ab", "env:", "env:A='x y'", "ci", "--all", "--only", "dram*", "-o", "z"]
    found = words(compare(base, new))
    assert found == ["kvbench", "ab", "env:", "env:A='x y'", "ci", "--only", "dram.copy/a"]

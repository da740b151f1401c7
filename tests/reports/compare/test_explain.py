"""What `--explain` says of a finding."""

import io

import msgspec
import pytest
from rich.console import Console

from kvbench.compare.record import Comparison, Design, Finding, Kind, Verdict
from kvbench.errors import UsageError
from kvbench_reports.compare import explain
from kvbench_reports.compare.explain import because
from tests.reports.comparisons import FINDINGS
from tests.reports.comparisons import tested as checked

READ = "nvme.read/posix/2MiB/qd16/random"


def of(comparison: Comparison, *findings: Finding, **fields: object) -> str:
    changed = msgspec.structs.replace(comparison, findings=list(findings), **fields)
    return explain.render(changed, "*")


def rows(text: str) -> list[list[str]]:
    """The lines of the table of pairs, without its two lines of titles."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("pair"))
    return [line.split() for line in lines[first + 2 :]]


def test_an_id_explains_that_finding_alone(comparison: Comparison) -> None:
    text = explain.render(comparison, READ)
    assert text.startswith(f"{READ}\n")
    assert text.count("\nverdict") == 1


def test_a_glob_explains_all_that_it_matches(comparison: Comparison) -> None:
    matched = [each.id for each in comparison.findings if each.id.startswith("nvme.read")]
    text = explain.render(comparison, "nvme.read*")
    assert [part.splitlines()[0] for part in text.split("\n\n")] == matched


def test_an_id_that_looks_like_a_glob_is_taken_as_it_stands(comparison: Comparison) -> None:
    odd = [
        checked(name, Verdict.SAME, (0, -0.1, 0.1)) for name in ("nvme.read/[ab]", "nvme.read/a")
    ]
    changed = msgspec.structs.replace(comparison, findings=odd)
    text = explain.render(changed, "nvme.read/[ab]")
    assert text.startswith("nvme.read/[ab]\n")
    assert text.count("\nverdict") == 1


@pytest.mark.parametrize("wanted", ["nvme.raed/posix/2MiB/qd16/random", "POSIX/2MiB/qd16"])
def test_an_unknown_row_is_an_error_that_names_close_ones(
    comparison: Comparison, wanted: str
) -> None:
    with pytest.raises(UsageError, match="matches no finding; close ones: ") as caught:
        explain.render(comparison, wanted)
    assert READ in str(caught.value)
    assert wanted in str(caught.value)


def test_an_unknown_row_like_nothing_says_where_the_ids_are(comparison: Comparison) -> None:
    with pytest.raises(UsageError, match="--all lists them"):
        explain.render(comparison, "xyz")


def test_everything_behind_a_verdict_is_there(comparison: Comparison) -> None:
    text = explain.render(comparison, READ)
    for fact in (
        "verdict   SLOWER · one of the reasons why the gate is red",
        "base      6.5 GB/s · median of 10 processes",
        "+14.50 % in time",
        "95 % interval +9.80 to +19.40 % · margin 5 %",
        "paired t, 10 pairs",
        "d +0.1354",
        "standard error 0.0200",
        "9 degrees of freedom",
        "t +4.33 from the margin",
        "0.0004 if slower by no more than the margin",
        "rank 1 of 30 tests",
        "0.012 after Holm, at most 0.025 is SLOWER",
        "a slowdown of 17 % with 80 % power",
    ):
        assert fact in text, fact


@pytest.mark.parametrize("design", [Design.PAIRED, Design.INTERLEAVED])
def test_pairs_stand_side_by_side_with_their_difference_in_time(
    comparison: Comparison, design: Design
) -> None:
    values: dict[str, object] = {"base_values": [2e9, 4e9], "new_values": [1e9, 5e9]}
    rate = checked("nvme.read/a", Verdict.UNSURE, (0, -1, 1), **values)
    assert rows(of(comparison, rate, design=design)) == [
        ["1", "2.000", "1.000", "+100.00"],
        ["2", "4.000", "5.000", "-20.00"],
    ]
    late: dict[str, object] = {"base_values": [2e-3, 4e-3], "new_values": [1e-3, 5e-3]}
    p99 = checked("nvme.read/a", Verdict.UNSURE, (0, -1, 1), kind=Kind.P99, **late)
    assert [row[3] for row in rows(of(comparison, p99, design=design))] == ["-50.00", "+25.00"]


def test_values_of_two_sessions_are_not_shown_as_pairs(comparison: Comparison) -> None:
    finding = checked("nvme.read/a", Verdict.UNSURE, (0, -1, 1), base_values=[2e9, 3e9, 4e9])
    text = of(comparison, finding, design=Design.QUIET)
    assert "pair " not in text
    assert "\nbase GB/s  2.000  3.000  4.000\n" in text


def test_values_of_a_tier_are_times_against_the_mean_of_base(comparison: Comparison) -> None:
    finding = checked(
        "nvme (tier)",
        Verdict.SLOWER,
        (0.1, 0, 0.2),
        kind=Kind.TIER,
        base_values=[-22.0, -22.2],
        new_values=[-22.0, -22.0],
        members=["a", "b", "c"],
    )
    text = of(comparison, finding)
    assert rows(text) == [["1", "+10.52", "+10.52", "0.00"], ["2", "-9.52", "+10.52", "+22.14"]]
    assert "geometric mean of 3 metrics · 2 processes" in text


EXPLAINED = {
    Verdict.SLOWER: "Slower by more than 5 % beyond doubt: adjusted p 0.012, at most 0.025 needed.",
    Verdict.MISSING: "BASE has a figure and NEW has none: failed in NEW",
    Verdict.NOT_COMPARABLE: "not of the same thing: BASE went by GDS",
    Verdict.UNSURE: "Not shown to be slower by more than 5 % (adjusted p 0.9, at most 0.025",
    Verdict.FASTER: "Faster by more than 3 % beyond doubt: adjusted p 1,",
    Verdict.NEW: "Only NEW has a figure: not in BASE.",
    Verdict.SAME: "put the change within ±6 %, twice the margin.",
}


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_a_sentence_that_says_why(
    comparison: Comparison, verdict: Verdict
) -> None:
    finding = next(each for each in FINDINGS if each.verdict is verdict)
    assert EXPLAINED[verdict] in because(comparison, finding)


def test_without_a_noise_floor_the_sentence_says_that_no_verdict_is_possible(
    comparison: Comparison,
) -> None:
    unknown = msgspec.structs.replace(comparison, design=Design.UNKNOWN)
    finding = checked(
        "nvme.b", Verdict.UNSURE, (0.1, 0.05, 0.2), reason="looks slower; two sessions"
    )
    assert because(unknown, finding) == "No verdict is possible: looks slower; two sessions."


def test_where_nothing_varies_the_sentence_says_that_there_was_no_test(
    comparison: Comparison,
) -> None:
    finding = checked("dram.a", Verdict.SLOWER, (0.1, 0.1, 0.1), standard_error=0.0)
    assert "+10.00 % is held against the margin of 3 % without a test" in because(
        comparison, finding
    )
    assert "from the margin" not in of(comparison, finding)


def test_a_finding_with_too_few_processes_says_so_and_shows_what_there_is(
    comparison: Comparison,
) -> None:
    finding = Finding(
        id="nvme.read/a",
        kind=Kind.RATE,
        group="nvme",
        margin=0.05,
        verdict=Verdict.UNSURE,
        reason="3 and 3 processes: 5 a side needed",
        base=2e9,
        new=3e9,
        base_values=[1e9, 2e9, 3e9],
        new_values=[3e9, 3e9, 3e9],
    )
    text = of(comparison, finding, design=Design.UNKNOWN)
    assert "It was not tested: 3 and 3 processes: 5 a side needed." in text
    assert "base GB/s  1.000  2.000  3.000" in text


def test_an_injected_side_is_named_in_every_explanation(comparison: Comparison) -> None:
    text = explain.render(comparison, "dram.copy*")
    assert text.count("NEW was slowed on purpose: nvme.read* by 8 %") == 3


@pytest.mark.parametrize("width", [40, 60, 100])
def test_an_explanation_fits_the_terminal(comparison: Comparison, width: int) -> None:
    text = io.StringIO()
    explain.show(comparison, READ, Console(file=text, width=width))
    assert max(map(len, text.getvalue().splitlines())) <= width


def test_values_that_no_machine_can_have_do_not_break_it(comparison: Comparison) -> None:
    for kind, values in ((Kind.RATE, [0.0, -1.0]), (Kind.TIER, [1e6, -1e6])):
        finding = checked(
            "nvme.read/\x1b[2J",
            Verdict.UNSURE,
            (0.0, -1.0, 1e300),
            kind=kind,
            base_values=values,
            new_values=values[::-1],
        )
        finding = msgspec.structs.replace(finding, change=-1.0)
        assert "\x1b" not in of(comparison, finding)

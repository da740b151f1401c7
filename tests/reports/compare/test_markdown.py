"""Markdown of a comparison as GitHub reads it."""

import re

import msgspec
import pytest

from kvbench.compare.record import PASSED, Comparison, Finding, Sight, Verdict
from kvbench.measure.result import Caution
from kvbench_reports.compare import markdown
from tests.reports.comparisons import tested as checked
from tests.reports.comparisons import untested

CELL_END = re.compile(r"(?<!\\)\|")
MOST_BYTES = 60_000


def changed(comparison: Comparison, **fields: object) -> Comparison:
    return msgspec.structs.replace(comparison, **fields)


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in CELL_END.split(line)[1:-1]] for line in lines]


def verdicts(text: str) -> list[str]:
    return [cells[0].strip("*") for cells in rows(text) if cells[0].strip("*") in list(Verdict)]


def check_shape(text: str) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(CELL_END.findall(line)) for line in table.splitlines()}) == 1, table


def many(how_many: int) -> list[Finding]:
    return [
        untested(f"dram.copy/{i}", verdict, f"reason {i}")
        if verdict in {Verdict.MISSING, Verdict.NOT_COMPARABLE, Verdict.NEW}
        else checked(f"nvme.read/{i}", verdict, (i / 1000, i / 1000 - 0.1, 0.2))
        for i in range(how_many // len(Verdict))
        for verdict in Verdict
    ]


def test_the_first_line_is_the_outcome_with_its_reasons(comparison: Comparison) -> None:
    first = markdown.render(comparison).splitlines()[0]
    assert first.startswith("## kvbench compare: FAIL, exit 3: 2 slower than allowed; 1 of BASE")
    assert first.isascii()
    green = changed(comparison, exit_code=PASSED, reasons=[], confirm=None)
    assert markdown.render(green).startswith("## kvbench compare: PASS: nothing was shown")


def test_what_matters_comes_worst_first_and_same_is_folded(comparison: Comparison) -> None:
    above, details, below = re.split(r"</?details>", markdown.render(comparison))
    expected = ["SLOWER", "SLOWER", "MISSING", "NOT COMPARABLE", "UNSURE", "UNSURE", "FASTER"]
    assert verdicts(above) == [*expected, "NEW"]
    assert details.startswith("<summary>SAME 3</summary>\n\n|")
    assert len(rows(details)) == 2 + 3
    assert "could have seen" in below


def test_a_row_that_turns_the_gate_red_is_in_bold(comparison: Comparison) -> None:
    cells = {each[1]: each[0] for each in rows(markdown.render(comparison))}
    assert cells["`nvme.read/posix/2MiB/qd16/random`"] == "**SLOWER**"
    assert cells["`nvme.write/posix/2MiB/qd16/random`"] == "UNSURE"


def test_figures_have_their_units(comparison: Comparison) -> None:
    text = markdown.render(comparison)
    line = next(each for each in rows(text) if each[1] == "`nvme.read/posix/2MiB/qd16/random`")
    assert line[2:7] == ["6.5 GB/s", "5.7 GB/s", "+14.5", "+9.8 to +19.4", "5 %"]


def test_the_command_stands_alone_in_a_code_block(comparison: Comparison) -> None:
    text = markdown.render(comparison)
    assert f"Confirm with:\n\n```sh\n{comparison.confirm}\n```\n" in text


def test_a_command_with_backticks_stays_in_its_block(comparison: Comparison) -> None:
    text = markdown.render(changed(comparison, confirm="kvbench ab ```x``` y"))
    assert "\n````sh\nkvbench ab ```x``` y\n````\n" in text


def test_a_command_too_long_for_a_comment_is_not_cut(comparison: Comparison) -> None:
    text = markdown.render(changed(comparison, confirm="kvbench " + "x" * 100_000))
    assert "xxx" not in text
    assert "Confirm with the command that `kvbench compare` prints" in text


def test_what_could_have_been_seen_is_said_of_every_group(comparison: Comparison) -> None:
    text = markdown.render(comparison)
    assert "- nvme: 17 % in one metric (2 tested), 9.0 % in all of them together\n" in text
    assert "- p99: nothing: 5 processes a side needed\n" in text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"simulated": "nvme-gen4"}, "> **simulated**: figures are from simulated devices"),
        ({}, r"> **injected**: NEW was slowed on purpose: nvme.read\* by 8 %"),
        ({"differences": ["CPU: a, b"]}, "> **forced**: not comparable without --force: CPU: a, b"),
    ],
)
def test_notices_stand_above_the_figures(
    comparison: Comparison, fields: dict[str, object], said: str
) -> None:
    above, _, _ = markdown.render(changed(comparison, **fields)).partition("| verdict")
    assert said in above


@pytest.mark.parametrize("text", ["a|b", "a\\|b", "`a|b`", "a\nb|", "||", "</details>", "<!--"])
def test_no_text_ends_a_cell_or_the_fold(comparison: Comparison, text: str) -> None:
    findings = [
        msgspec.structs.replace(each, id=f"{text}{i}", reason=text, group=text)
        for i, each in enumerate(comparison.findings)
    ]
    made = markdown.render(
        changed(comparison, findings=findings, conditions=[Caution(code=text, message=text)])
    )
    check_shape(made)
    assert len(rows(made)) == 4 + len(findings)
    outside = re.sub(r"`+[^`\n]+`+", "", made)
    assert len(re.findall(r"(?<!\\)</details>", outside)) == 1
    assert not re.search(r"(?<!\\)<!--", outside)


def test_five_thousand_findings_fit_a_comment_and_the_rest_is_counted(
    comparison: Comparison,
) -> None:
    findings = many(5_000)
    text = markdown.render(changed(comparison, findings=findings))
    assert len(text.encode()) < MOST_BYTES
    check_shape(text)
    above, details, _ = re.split(r"</?details>", text)
    shown = verdicts(above)
    left = {
        verdict: int(number.replace(",", ""))
        for number, verdict in re.findall(r"([\d,]+) (SLOWER|MISSING|NOT \w+|[A-Z]+)", above)
    }
    for verdict in Verdict:
        if verdict is not Verdict.SAME:
            total = sum(each.verdict is verdict for each in findings)
            assert shown.count(verdict) + left.get(verdict, 0) == total, verdict
    same = sum(each.verdict is Verdict.SAME for each in findings)
    hidden = re.search(r"([\d,]+) more SAME left out", details)
    assert hidden
    assert len(rows(details)) - 2 + int(hidden[1].replace(",", "")) == same


def test_endless_texts_do_not_make_it_too_long(comparison: Comparison) -> None:
    endless = "é" * 50_000
    findings = [
        checked(f"nvme.{endless}{i}", verdict, (0.1, 0, 0.2), reason=endless, group=endless)
        for i, verdict in enumerate(Verdict)
    ]
    side = msgspec.structs.replace(comparison.base, path=endless, suite=endless)
    text = markdown.render(
        changed(
            comparison,
            findings=[*findings, *many(5_000)],
            base=side,
            simulated=endless,
            differences=[endless] * 10,
            reasons=[endless, *map(str, range(5_000))],
            conditions=[Caution(code="c", message=endless, fix=endless)] * 10,
            sight=[Sight(group=endless, metrics=0, metric=None, tier=None)] * 10,
            margins={endless: 0.05},
            confirm=endless,
        )
    )
    assert len(text.encode()) < MOST_BYTES
    assert "> **simulated**" in text
    assert "> **forced**" in text
    assert "10 conditions left out" in text


def test_a_long_reason_does_not_push_its_finding_out(comparison: Comparison) -> None:
    finding = untested("nvme.read/a", Verdict.MISSING, "x" * 50_000)
    text = markdown.render(changed(comparison, findings=[finding]))
    assert "| MISSING | `nvme.read/a` |" in text
    assert "xxx… |" in text

"""Workflow commands, read as GitHub's runner reads them, and the step summary."""

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvbench.compare.record import PASSED, Comparison, Design, Verdict
from kvbench.measure.result import Caution, Report, State
from kvbench_reports import github, markdown
from kvbench_reports.compare import markdown as compare_markdown
from tests.reports.comparisons import FINDINGS, make_comparison
from tests.reports.conftest import SERVER, make_row
from tests.reports.test_golden import compare

DATA = (("%0D", "\r"), ("%0A", "\n"), ("%25", "%"))
PROPERTY = (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%"))


@dataclass(frozen=True)
class Shown:
    level: str
    title: str
    text: str


def unescape(text: str, mapping: tuple[tuple[str, str], ...]) -> str:
    for escape, character in mapping:
        text = text.replace(escape, character)
    return text


def parse(line: str) -> Shown:
    """As actions/runner does: `::`, a name, a space, properties between commas, `::`, data."""
    assert line.startswith("::")
    head, _, data = line[2:].partition("::")
    level, _, properties = head.partition(" ")
    found = dict(each.split("=", 1) for each in properties.split(","))
    assert found.keys() == {"title"}
    return Shown(level, unescape(found["title"], PROPERTY), unescape(data, DATA))


def shown(text: str) -> list[Shown]:
    assert text.endswith("\n")
    return [parse(line) for line in text.split("\n")[:-1]]


def test_the_commands_are_as_they_were(measured: Report, comparison: Comparison) -> None:
    compare("report_measured.github.txt", github.render(measured))
    compare("comparison.github.txt", github.render_comparison(comparison))


def test_a_comparison_is_summed_up_first_with_its_exit_status_reasons_and_command(
    comparison: Comparison,
) -> None:
    first = shown(github.render_comparison(comparison))[0]
    assert (first.level, first.title) == ("error", "kvbench compare: FAIL, exit 3")
    assert first.text.startswith("2 slower than allowed.\n1 of BASE is missing from NEW.\n")
    assert "\n11 findings: 2 slower, 1 missing, 1 not comparable, 2 unsure" in first.text
    assert "\nNEW was slowed on purpose: nvme.read*=+8%.\n" in first.text
    assert first.text.endswith(f"\nTo confirm: {comparison.confirm}")


def test_what_fails_the_gate_comes_next_the_worst_first(comparison: Comparison) -> None:
    errors = [each for each in shown(github.render_comparison(comparison)) if each.level == "error"]
    verdicts = [each.title.partition(": ")[0] for each in errors[1:]]
    assert verdicts == ["SLOWER", "SLOWER", "MISSING", "NOT COMPARABLE"]
    assert errors[1].text.startswith("+14.5% in time, 95% interval +9.8% to +19.4%, margin 5%\n")
    assert errors[2].title.startswith("SLOWER: nvme (tier)")
    assert errors[3].text == "base 1.8 GB/s\nfailed in NEW: no space left on device"


def test_an_unsure_metric_warns_only_when_its_estimate_is_beyond_the_margin(
    comparison: Comparison,
) -> None:
    warned = [x for x in shown(github.render_comparison(comparison)) if x.level == "warning"]
    unsure = [each.title for each in warned if each.title.startswith("UNSURE")]
    assert unsure == ["UNSURE: nvme.write/posix/2MiB/qd16/random (injected)"]  # not +8.2 % of 10 %


def test_conditions_and_forced_differences_warn_with_the_command_that_helps() -> None:
    forced = make_comparison(SERVER, differences=["GPU: H100 in BASE, A100 in NEW"])
    found = shown(github.render_comparison(forced))
    assert Shown("warning", "compared although they differ", "GPU: H100 in BASE, A100 in NEW") in (
        found
    )
    assert found[-1].title == "condition: no_steady_state"
    assert found[-1].text.endswith("\nFix: kvbench run ci --time-limit 30")


def test_a_passed_gate_is_one_notice() -> None:
    same = [each for each in FINDINGS if each.verdict in {Verdict.SAME, Verdict.FASTER}]
    passed = make_comparison(
        SERVER, findings=same, conditions=[], exit_code=PASSED, reasons=[], confirm=None
    )
    (only,) = shown(github.render_comparison(passed))
    assert (only.level, only.title) == ("notice", "kvbench compare: PASS")
    assert only.text.startswith("nothing was shown to be slower than allowed.\n4 findings: ")


def test_a_pass_that_could_not_have_failed_says_so() -> None:
    unsure = [each for each in FINDINGS if each.verdict is Verdict.UNSURE]
    blind = make_comparison(
        SERVER, findings=unsure, design=Design.UNKNOWN, exit_code=PASSED, reasons=[]
    )
    first = shown(github.render_comparison(blind))[0]
    assert (first.level, first.title) == ("notice", "kvbench compare: PASS")
    assert first.text.startswith("without a noise floor nothing can be called slower")
    assert f"\nTo settle it: {blind.confirm}" in first.text


def test_a_simulated_comparison_says_so() -> None:
    first = shown(github.render_comparison(make_comparison(SERVER, simulated="nvme-gen4")))[0]
    assert "simulated device (profile nvme-gen4), true of no machine." in first.text


@pytest.mark.parametrize("findings", [9, 10, 400])
def test_there_are_never_more_than_ten_and_what_is_left_out_is_counted(findings: int) -> None:
    many = [
        msgspec.structs.replace(FINDINGS[0], id=f"nvme.read/{i}", change=0.1 + i / 1000)
        for i in range(findings)
    ]
    found = shown(github.render_comparison(make_comparison(SERVER, findings=many, conditions=[])))
    assert len(found) == 10
    assert found[1].title == f"SLOWER: nvme.read/{findings - 1} (injected)"
    left = findings - 9
    assert (f"\n{left} more in the full report." in found[0].text) == bool(left)


def test_a_report_shows_failed_and_invalid_rows_as_errors_and_degraded_ones_as_warnings(
    measured: Report,
) -> None:
    found = shown(github.render(measured))
    assert [(each.level, each.title) for each in found[:4]] == [
        ("error", "kvbench run quick"),
        ("error", "failed: nvme.write/posix/2MiB/qd16/sequential"),
        ("error", "invalid: nvme.read/posix/2MiB/qd32/random"),
        ("warning", "degraded: nvme.read/kvikio/2MiB/qd16/random"),
    ]
    assert found[0].text == "14 rows: 5 ok, 1 degraded, 1 invalid, 6 skipped, 1 failed."


def test_a_doubt_warns_once_with_its_command(measured: Report) -> None:
    found = [each for each in shown(github.render(measured)) if "cold_unknown" in each.title]
    assert [each.title for each in found] == ["cold_unknown (2 rows)"]
    assert found[0].text.endswith("\nFix: kvbench run quick --dir /mnt/nvme")


def test_a_report_without_faults_is_one_notice_that_says_simulated_and_slowed(
    simulated: Report,
) -> None:
    simulated.inject = {"nvme.read*": 0.1}
    (only,) = shown(github.render(simulated))
    assert only.level == "notice"
    assert "2 rows from simulated devices (profile nvme-gen4), true of no machine." in only.text
    assert "The run was slowed on purpose: nvme.read*=+10%." in only.text


@given(st.text(), st.text())
def test_no_text_of_a_report_can_start_a_command_of_its_own(case: str, reason: str) -> None:
    row = make_row("nvme.read/x", state=State.FAILED, reason=f"::error::{reason}")
    row.id = f"a:b,c%3A\r\n::error::{case}"
    comparison = make_comparison(SERVER)
    report = Report(
        kvbench_version="0.1.0",
        session_id="1",
        suite="quick",
        command=[],
        started_at="",
        plan={},
        machine=comparison.machine,
        model=comparison.model,
        rows=[row],
        warnings=[Caution(code=case, message=reason, fix=case)],
    )
    first, bad, doubt = shown(github.render(report))
    assert first.level == bad.level == "error"
    assert bad.title.startswith("failed: a:b,c%3A ::error::")
    assert bad.text.startswith("::error::")
    assert doubt.level == "warning"


def test_a_summary_is_the_markdown_of_the_report(measured: Report) -> None:
    assert github.summary(measured) == markdown.render(measured)


def test_a_summary_of_a_comparison_is_its_markdown(comparison: Comparison) -> None:
    assert github.summary_comparison(comparison) == compare_markdown.render(comparison)


def test_a_summary_of_a_comparison_fits_however_many_findings_there_are() -> None:
    many = [
        msgspec.structs.replace(FINDINGS[0], id=f"nvme.read/{i}/{'µ' * 300}") for i in range(3000)
    ]
    text = github.summary_comparison(make_comparison(SERVER, findings=many))
    assert len(text.encode()) <= github.SUMMARY_BYTES


def test_a_summary_too_long_for_github_is_cut_at_a_line_and_says_so(measured: Report) -> None:
    (row,) = (each for each in measured.rows if each.id == "dram.copy/all-cores")
    measured.rows = [
        msgspec.structs.replace(row, id=f"dram.copy/{i}/{'µ' * 300}") for i in range(2000)
    ]
    whole, cut = markdown.render(measured), github.summary(measured)
    assert len(whole) < github.SUMMARY_BYTES < 1024 * 1024 < len(whole.encode())
    assert 900_000 < len(cut.encode()) <= github.SUMMARY_BYTES
    notice, _, rest = cut.partition("\n\n")
    assert notice.startswith(f"**Cut: the whole is {len(whole.encode()):,} bytes long")
    assert whole.startswith(rest)
    assert whole[len(rest) - 1] == "\n"

"""JUnit files, read as a CI service reads them."""

import re
import xml.etree.ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

from kvbench.compare.record import NOT_COMPARABLE, PASSED, Comparison, Verdict
from kvbench.measure.result import Report, State
from kvbench_reports import junit
from tests.reports.comparisons import FINDINGS, make_comparison
from tests.reports.conftest import SERVER, make_row
from tests.reports.test_golden import compare

# What may stand in what: junit-10.xsd of Jenkins' xUnit plugin, as far as it is used here.
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase"},
    "properties": {"property"},
    "testcase": {"failure", "error", "skipped", "system-out"},
}
ATTRIBUTES = {  # required, allowed
    "testsuites": (set[str](), {"name"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"time", "skipped", "timestamp"}),
    "property": ({"name", "value"}, set[str]()),
    "testcase": ({"name"}, {"time", "classname"}),
    "failure": (set[str](), {"type", "message"}),
    "error": (set[str](), {"type", "message"}),
    "skipped": (set[str](), {"type", "message"}),
}
TIME = re.compile(r"[0-9]*(\.[0-9]*)?")


def suite_of(text: str) -> TestSuite:
    (suite,) = JUnitXml.fromstring(text.encode())
    return suite


def cases_of(text: str) -> dict[str, TestCase]:
    return {str(case.name): case for case in suite_of(text)}


def check(element: ET.Element) -> None:
    required, allowed = ATTRIBUTES.get(element.tag, (set[str](), set[str]()))
    assert required <= set(element.attrib) <= required | allowed, element.tag
    assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
    assert TIME.fullmatch(element.get("time", "")), element.attrib
    for child in element:
        check(child)


def properties_of(text: str) -> dict[str | None, str | None]:
    found = ET.fromstring(text).iterfind("testsuite/properties/property")
    return {each.get("name"): each.get("value") for each in found}


def result_of(case: TestCase) -> tuple[type, str, str]:
    (result,) = case.result
    return type(result), str(result.message), str(result.type)


def test_the_files_are_as_they_were(measured: Report, comparison: Comparison) -> None:
    compare("report_measured.junit.xml", junit.render(measured))
    compare("comparison.junit.xml", junit.render_comparison(comparison))


def test_the_files_follow_the_schema(
    measured: Report, simulated: Report, comparison: Comparison
) -> None:
    measured.rows[0].elapsed_s = 0.000_01  # not 1e-05
    for text in (
        junit.render(measured),
        junit.render(simulated),
        junit.render_comparison(comparison),
    ):
        check(ET.fromstring(text))


def test_every_row_is_a_case_under_its_tier(measured: Report) -> None:
    found = [(case.classname, case.name) for case in suite_of(junit.render(measured))]
    assert found == [(row.tier, row.id) for row in measured.rows]


def test_the_time_of_a_case_is_that_of_its_row_where_it_is_known(measured: Report) -> None:
    cases = cases_of(junit.render(measured))
    assert cases["nvme.read/posix/2MiB/qd16/random"].time == 11.5
    assert cases["dram.copy/all-cores"].time is None


def test_failed_is_an_error_invalid_a_failure_and_skipped_skipped_with_their_reasons(
    measured: Report,
) -> None:
    cases = cases_of(junit.render(measured))
    expected = {State.FAILED: Error, State.INVALID: Failure, State.SKIPPED: Skipped}
    bad = [row for row in measured.rows if row.state in expected]
    assert {row.state for row in bad} == set(expected)
    for row in bad:
        kind, message, code = result_of(cases[row.id])
        assert kind is expected[row.state]
        assert message == row.reason
        assert code == (row.reason_code or row.state)


def test_a_degraded_row_passes_and_says_how_it_is_degraded(measured: Report) -> None:
    case = cases_of(junit.render(measured))["nvme.read/kvikio/2MiB/qd16/random"]
    assert case.is_passed
    assert case.system_out
    assert case.system_out.startswith("degraded: asked for gds, the bytes went by posix-bounce\n")
    assert "warning wide_interval: " in case.system_out


def test_an_invalid_row_shows_no_figure(measured: Report) -> None:
    text = junit.render(measured)
    assert cases_of(text)["nvme.read/posix/2MiB/qd32/random"].system_out is None
    assert "31.2" not in text
    assert "1.06 ms" not in text


def test_the_suite_counts_what_is_in_it(measured: Report) -> None:
    suite = suite_of(junit.render(measured))
    assert (suite.tests, suite.errors, suite.failures, suite.skipped) == (14, 1, 1, 6)
    assert suite.timestamp == "2026-11-25T16:01:07"


def test_the_suite_says_which_machine_model_and_version_it_is_of(measured: Report) -> None:
    found = properties_of(junit.render(measured))
    assert found["kvbench.version"] == "0.1.0"
    assert found["machine.fingerprint"] == "0123456789abcdef"
    assert found["model"] == "llama-3.1-8b"
    assert found["warning"] == "governor: the CPU governor is powersave"
    assert (found["simulated"], found["inject"]) == ("", "")


def test_a_simulated_or_slowed_run_says_so_in_its_properties_and_in_every_case(
    simulated: Report,
) -> None:
    simulated.inject = {"nvme.*": 0.08}
    text = junit.render(simulated)
    found = properties_of(text)
    assert (found["simulated"], found["inject"]) == (
        "nvme-gen4",
        "slowed on purpose: nvme.*=+8%",
    )
    for case in suite_of(text):
        assert case.system_out
        assert "simulated device (profile nvme-gen4), true of no machine\n" in case.system_out
        assert "the run was slowed on purpose: nvme.*=+8%\n" in case.system_out


@given(st.text() | st.text(alphabet=st.characters(codec=None)))
def test_no_text_of_a_report_can_make_the_file_unreadable(text: str) -> None:
    row = make_row("nvme.read/x", state=State.FAILED, reason=text, reason_code=text)
    row.id = f"nvme.read/{text}"
    comparison = make_comparison(
        SERVER, findings=[msgspec.structs.replace(FINDINGS[0], id=text, reason=text)]
    )
    check(ET.fromstring(junit.render_comparison(comparison)))
    report = Report(
        kvbench_version=text,
        session_id=text,
        suite=text,
        command=[],
        started_at=text,
        plan={},
        machine=comparison.machine,
        model=comparison.model,
        rows=[row],
    )
    check(ET.fromstring(junit.render(report)))


def test_characters_that_xml_cannot_hold_are_shown_as_escapes(measured: Report) -> None:
    measured.rows[0].id = "dram.copy/\x1b[31m\ufffe"
    assert r"dram.copy/\x1b[31m\ufffe" in cases_of(junit.render(measured))


def test_each_verdict_of_a_comparison_has_its_outcome(comparison: Comparison) -> None:
    cases = cases_of(junit.render_comparison(comparison))
    expected = {
        Verdict.SLOWER: Failure,
        Verdict.MISSING: Error,
        Verdict.NOT_COMPARABLE: Error,
        Verdict.UNSURE: Skipped,
    }
    assert len(cases) == len(comparison.findings)
    for finding in comparison.findings:
        case = cases[finding.id]
        assert case.classname == finding.group
        if finding.verdict in expected:
            kind, message, code = result_of(case)
            assert kind is expected[finding.verdict]
            assert message.startswith(f"{finding.verdict}: ")
            assert code == finding.verdict
        else:
            assert case.is_passed
            assert case.system_out
            assert case.system_out.startswith(finding.verdict)


def test_a_failure_names_change_interval_and_margin(comparison: Comparison) -> None:
    cases = cases_of(junit.render_comparison(comparison))
    _, message, _ = result_of(cases["nvme.read/posix/2MiB/qd16/random"])
    assert message == "SLOWER: +14.5% in time, 95% interval +9.8% to +19.4%, margin 5%"
    out = cases["nvme.read/posix/2MiB/qd16/random"].system_out
    assert out
    assert "\nbase 6.5 GB/s, new 5.68 GB/s\npaired t, 10 pairs, p of slower 0.012 by Holm" in out


def test_a_tier_is_a_case_and_an_unsure_one_says_why(comparison: Comparison) -> None:
    cases = cases_of(junit.render_comparison(comparison))
    assert cases["nvme (tier)"].is_failure
    _, message, _ = result_of(cases["nvme.write/posix/2MiB/qd16/random"])
    assert message.endswith("; the interval reaches from faster to slower than the margin")


@pytest.mark.parametrize(
    ("verdict", "fails", "kind"),
    [
        (Verdict.MISSING, True, Error),
        (Verdict.MISSING, False, Skipped),
        (Verdict.UNSURE, True, Failure),
        (Verdict.UNSURE, False, Skipped),
        (Verdict.SLOWER, False, Failure),
        (Verdict.NOT_COMPARABLE, False, Error),
    ],
)
def test_what_makes_the_gate_red_is_red(verdict: Verdict, fails: bool, kind: type) -> None:
    finding = msgspec.structs.replace(FINDINGS[0], verdict=verdict, fails=fails, reason="so")
    compared = make_comparison(SERVER, findings=[finding], exit_code=PASSED)
    (case,) = suite_of(junit.render_comparison(compared))
    assert result_of(case)[0] is kind


def test_a_red_gate_never_reads_as_a_green_suite() -> None:
    new = [each for each in FINDINGS if each.verdict is Verdict.NEW]
    red = make_comparison(SERVER, findings=new, exit_code=NOT_COMPARABLE, reasons=["no common row"])
    cases = cases_of(junit.render_comparison(red))
    assert result_of(cases[junit.GATE]) == (Error, "exit 4: no common row", "gate")
    green = make_comparison(SERVER, findings=new, exit_code=PASSED, reasons=[])
    suite = suite_of(junit.render_comparison(green))
    assert (suite.tests, suite.errors, suite.failures) == (1, 0, 0)


def test_a_comparison_says_which_side_was_slowed_on_purpose(comparison: Comparison) -> None:
    text = junit.render_comparison(comparison)
    found = properties_of(text)
    assert found["inject"] == "slowed on purpose: nvme.read*=+8%"
    assert found["inject.base"] == ""
    assert found["base"] == "base.json at 1f3c9e2aa"
    for case in cases_of(text).values():
        assert case.system_out
        assert "NEW was slowed on purpose: nvme.read*=+8%" in case.system_out

"""What the terminal table of a comparison promises at every width, on every kind of output."""

import io
import re
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kvbench.compare.record import (
    INCONCLUSIVE,
    NOT_COMPARABLE,
    PASSED,
    Comparison,
    Design,
    Finding,
    NoiseUse,
    Sight,
    Verdict,
)
from kvbench.measure.result import Caution
from kvbench_reports.compare import COMPARE_FORMATS, table
from kvbench_reports.compare.table import ROWS, share_rows
from tests.reports.comparisons import tested as checked
from tests.reports.comparisons import untested

COMMANDS = ("confirm: ", "      fix: ")
WORST_FIRST = ["SLOWER", "MISSING", "NOT COMPARABLE", "UNSURE", "FASTER", "NEW", "SAME"]
GROUP = re.compile(rf"({'|'.join(WORST_FIRST)}) [\d,]+\b")


def printed(comparison: Comparison, width: int = 100, *, all_: bool = False) -> str:
    text = io.StringIO()
    table.show(comparison, Console(file=text, width=width), all_=all_)
    return text.getvalue()


def terminal(comparison: Comparison, environment: dict[str, str]) -> str:
    text = io.StringIO()
    console = Console(
        file=text,
        width=100,
        force_terminal=True,
        color_system="standard",
        _environ=environment,
    )
    table.show(comparison, console)
    return text.getvalue()


def encoded(comparison: Comparison, encoding: str) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, newline="")
    table.show(comparison, Console(file=file, width=100))
    file.flush()
    return raw.getvalue().decode(encoding)


def changed(comparison: Comparison, **fields: object) -> Comparison:
    return msgspec.structs.replace(comparison, **fields)


def many(verdict: Verdict, how_many: int) -> list[Finding]:
    return [
        untested(f"dram.copy/{i}", verdict, f"reason {i}", fails=True)
        if verdict in {Verdict.MISSING, Verdict.NOT_COMPARABLE, Verdict.NEW}
        else checked(f"nvme.read/{i}/{verdict[:2]}", verdict, (i / 1000, i / 1000 - 0.1, 0.2))
        for i in range(how_many)
    ]


def group(text: str, verdict: str) -> list[str]:
    """The lines below a verdict's heading."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if re.match(rf"{verdict} \d", line))
    below = lines[first + 1 :]
    ends = (i for i, line in enumerate(below) if not line or GROUP.match(line))
    return below[: next(ends)]


any_width = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@any_width
@given(width=st.integers(40, 220), all_=st.booleans())
def test_no_line_but_a_command_is_wider_than_the_terminal(
    comparison: Comparison, width: int, all_: bool
) -> None:
    lines = printed(comparison, width, all_=all_).splitlines()
    assert not [line for line in lines if len(line) > width and not line.startswith(COMMANDS)]


@any_width
@given(width=st.integers(20, 220))
def test_an_id_is_never_cut_and_a_command_never_broken(comparison: Comparison, width: int) -> None:
    lines = printed(comparison, width, all_=True).splitlines()
    assert all(any(line.startswith(each.id) for line in lines) for each in comparison.findings)
    assert f"confirm: {comparison.confirm}" in lines
    assert "      fix: kvbench run ci --time-limit 30" in lines


@any_width
@given(width=st.integers(36, 220))
def test_what_there_is_no_room_for_is_named(comparison: Comparison, width: int) -> None:
    text = printed(comparison, width)
    heading = next(line for line in text.splitlines() if line.startswith("finding"))
    given_up = re.search(r"no room for ([^:]*?) at this width", " ".join(text.split()))
    named = given_up[1] if given_up else ""
    assert ("●" in text) != ("the bars" in named)
    assert ("95 %" in heading) != ("95 % interval" in named)
    assert ("base" in heading) != ("base" in named)
    assert "change" in heading


def test_the_bar_shrinks_before_anything_else_goes(comparison: Comparison) -> None:
    def rule(width: int) -> int:
        return max(len(line) for line in printed(comparison, width).splitlines() if "──" in line)

    assert rule(200) > rule(110) > rule(100)
    for width in (100, 110, 200):
        assert "no room" not in printed(comparison, width)


def test_one_endless_id_does_not_take_the_bars_from_the_others(comparison: Comparison) -> None:
    endless = "nvme.read/" + "x" * 300
    findings = [
        *many(Verdict.UNSURE, 8),
        checked(endless, Verdict.UNSURE, (0.1, 0.0, 0.2)),
    ]
    text = printed(changed(comparison, findings=findings), 100)
    assert f"\n{endless}\n" in text
    row = next(line for line in text.splitlines() if line.startswith("nvme.read/7"))
    assert "GB/s" in row
    assert "●" in row


def test_verdicts_come_worst_first_and_each_heading_counts_them(comparison: Comparison) -> None:
    headings = [line for line in printed(comparison).splitlines() if GROUP.match(line)]
    assert [GROUP.match(line)[1] for line in headings] == WORST_FIRST  # type: ignore[index]  # pyright: ignore[reportOptionalSubscript]
    assert headings[0] == "SLOWER 2"
    assert headings[-1] == "SAME 3 (--all lists them)"


def test_within_a_verdict_the_largest_change_comes_first(comparison: Comparison) -> None:
    findings = [
        *(checked(f"nvme.read/{x}", Verdict.SLOWER, (x, x, x)) for x in (0.1, 0.4, 0.2)),
        *(checked(f"nvme.write/{x}", Verdict.FASTER, (x, x, x)) for x in (-0.1, -0.4, -0.2)),
    ]
    text = printed(changed(comparison, findings=findings))
    assert [line.split()[0] for line in group(text, "SLOWER")] == [
        "nvme.read/0.4",
        "nvme.read/0.2",
        "nvme.read/0.1",
    ]
    assert [line.split()[0] for line in group(text, "FASTER")][:3] == [
        "nvme.write/-0.4",
        "nvme.write/-0.2",
        "nvme.write/-0.1",
    ]


def test_the_order_does_not_depend_on_the_order_of_the_file(comparison: Comparison) -> None:
    alike = [checked(f"nvme.read/{i}", Verdict.SLOWER, (0.1, 0.0, 0.2)) for i in range(5)]
    findings = [*comparison.findings, *alike, *many(Verdict.NEW, 5)]
    forwards = changed(comparison, findings=findings)
    backwards = changed(comparison, findings=findings[::-1])
    for form in ("table", "csv", "markdown"):
        assert COMPARE_FORMATS[form](backwards) == COMPARE_FORMATS[form](forwards)


def test_same_is_a_count_unless_all_are_asked_for(comparison: Comparison) -> None:
    same = "dram.copy/pageable/256MiB/t1"
    assert same not in printed(comparison)
    text = printed(comparison, all_=True)
    assert f"\n{same}" in text
    assert "--all" not in text


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.SAME])
def test_rows_that_are_left_out_are_counted(comparison: Comparison, verdict: Verdict) -> None:
    text = printed(changed(comparison, findings=many(verdict, 1234)))
    listed = [line for line in group(text, verdict) if re.match(r"\w+\.\w+/", line)]
    assert len(listed) == ROWS == 25
    assert f"{verdict} 1,234" in text
    assert f"\n{1234 - ROWS:,} more {verdict}: --all lists them\n" in text


def test_a_flood_of_one_verdict_does_not_hide_the_others(comparison: Comparison) -> None:
    findings = [each for verdict in Verdict for each in many(verdict, 500)]
    text = printed(changed(comparison, findings=findings))
    for verdict in WORST_FIRST[:-1]:
        assert f"{verdict} 500" in text
        assert f"more {verdict}: --all lists them" in text
        assert re.match(r"\w+\.\w+/", group(text, verdict)[0])
    rows = [line for line in text.splitlines() if re.match(r"(nvme|dram)\.\w+/", line)]
    assert len(rows) == ROWS


@given(st.lists(st.integers(0, 100), min_size=7, max_size=7))
def test_rows_are_shared_out_worst_first_and_none_is_wasted(sizes: list[int]) -> None:
    groups = dict(zip(Verdict, sizes, strict=True))
    shares = share_rows(groups, ROWS)
    assert sum(shares.values()) == min(sum(sizes), ROWS)
    assert all(min(2, size) <= shares[verdict] <= size for verdict, size in groups.items())
    cut = [verdict for verdict in Verdict if shares[verdict] < groups[verdict]]
    if cut:  # whoever comes after one that was cut has no more than everybody has
        later = list(Verdict)[list(Verdict).index(cut[0]) + 1 :]
        assert all(shares[verdict] <= 2 for verdict in later)


def test_what_there_is_none_of_is_said_of_the_grave_verdicts(comparison: Comparison) -> None:
    findings = [each for each in comparison.findings if each.verdict is Verdict.SAME]
    text = printed(changed(comparison, findings=findings))
    assert "0 SLOWER, 0 MISSING, 0 NOT COMPARABLE" in text


def test_base_and_new_have_one_unit_and_the_digits_that_the_spread_supports(
    comparison: Comparison,
) -> None:
    slow = checked("nvme.read/a", Verdict.UNSURE, (0.005, 0.003, 0.007), base=999e6, new=1004e6)
    wild = checked("nvme.read/b", Verdict.UNSURE, (0.005, -0.3, 0.4), base=999e6, new=1004e6)
    text = printed(changed(comparison, findings=[slow, wild]))
    rows = {line.split()[0]: line.split()[1:4] for line in group(text, "UNSURE")[:2]}
    assert rows["nvme.read/a"] == ["0.9990", "1.004", "GB/s"]
    assert rows["nvme.read/b"] == ["1.0", "1.0", "GB/s"]


def test_a_change_has_a_sign_and_what_the_sign_means_is_said(comparison: Comparison) -> None:
    text = printed(comparison)
    assert "+ is slower" in text
    assert "faster │ slower" in text
    slower = next(line for line in group(text, "SLOWER") if "qd16" in line)
    assert slower.split()[4:8] == ["+14.5", "+9.8", "to", "+19.4"]
    assert group(text, "FASTER")[0].split()[4] == "-5.5"


def test_a_tier_says_of_how_many_metrics_it_is_the_mean(comparison: Comparison) -> None:
    line = next(line for line in group(printed(comparison), "SLOWER") if "(tier)" in line)
    assert line.split()[2:5] == ["2", "metrics", "+9.9"]


def test_a_small_margin_gets_changes_with_two_decimals(comparison: Comparison) -> None:
    finding = checked("nvme.read/a", Verdict.SLOWER, (0.0042, 0.0031, 0.0053), margin=0.001)
    text = printed(changed(comparison, findings=[finding]))
    assert "+0.42  +0.31 to +0.53" in text


def test_a_reason_stands_below_its_row(comparison: Comparison) -> None:
    lines = group(printed(comparison), "MISSING")
    assert lines[0].startswith("nvme.write/posix/2MiB/qd1/random/fsync")
    assert lines[1] == "    failed in NEW: no space left on device"


def test_a_reason_that_all_share_is_said_once_beside_the_verdict(comparison: Comparison) -> None:
    text = printed(comparison)
    reason = "the interval reaches from faster to slower than the margin"
    assert text.count(reason) == 1
    assert f"\nUNSURE 2: {reason}\n" in text


def test_a_reason_that_some_share_is_a_note_below_the_group(comparison: Comparison) -> None:
    reasons = ["shared", "own", "shared", "other", "other"]
    findings = [
        checked(f"nvme.read/{i}", Verdict.UNSURE, (0.01, 0.0, 0.02), reason=reason)
        for i, reason in enumerate(reasons)
    ]
    lines = group(printed(changed(comparison, findings=findings)), "UNSURE")
    words = [line.split()[:2] for line in lines]
    assert words[0] == ["nvme.read/0", "(1)"]
    assert words[3] == ["nvme.read/2", "(1)"]
    assert words[4] == ["nvme.read/3", "(2)"]
    assert lines[2] == "    own"
    assert lines[6:8] == ["(1) shared", "(2) other"]


def test_a_group_of_which_only_some_fail_the_gate_says_how_many(comparison: Comparison) -> None:
    findings = [
        untested("nvme.read/a", Verdict.NOT_COMPARABLE, "defined differently"),
        untested("nvme.read/b", Verdict.NOT_COMPARABLE, "another path", fails=True),
    ]
    text = printed(changed(comparison, findings=findings))
    assert "NOT COMPARABLE 2 (1 fails the gate)" in text
    assert group(text, "NOT COMPARABLE")[0] == "nvme.read/b"


DESIGNS: list[tuple[dict[str, object], str]] = [
    ({}, "one session, 10 interleaved pairs"),
    ({"design": Design.INTERLEAVED, "blocks": 6}, "one session, 6 interleaved pairs: too few"),
    (
        {
            "design": Design.FLOOR,
            "noise": NoiseUse(
                path="noise.json", sessions=8, measured_at="2026-11-01T00:00:00+00:00"
            ),
        },
        "two sessions, noise floor of 8 sessions (noise.json, 2026-11-01 00:00 UTC)",
    ),
    ({"design": Design.QUIET, "blocks": None}, "two sessions, assumed quiet"),
    (
        {"design": Design.UNKNOWN, "blocks": None},
        "two sessions, no noise floor: nothing can be called slower, faster or same",
    ),
]


@pytest.mark.parametrize(("fields", "said"), DESIGNS)
def test_the_design_is_said_in_words(
    comparison: Comparison, fields: dict[str, object], said: str
) -> None:
    assert f"\ndesign    {said}" in printed(changed(comparison, **fields))


def test_the_sides_are_named_with_commit_side_and_time(comparison: Comparison) -> None:
    text = printed(comparison)
    assert "\nbase      base.json · commit 1f3c9e2aa · side env: · 2026-11-25 16:01 UTC\n" in text
    assert "side env:MALLOC_ARENA_MAX=1" in text
    assert "suite other" not in text
    other = msgspec.structs.replace(comparison.base, suite="other", kvbench_version="0.0.9")
    text = printed(changed(comparison, base=other), 200)
    assert "suite other · kvbench 0.0.9" in text


def test_the_rule_names_the_margins_in_use_and_counts_the_tests(comparison: Comparison) -> None:
    text = printed(comparison)
    assert "slower by more than dram 3 %, nvme 5 %, p99 10 %" in text
    assert "5 % family-wise over 30 + 3 tests (Holm)" in text


NOTICES: list[tuple[dict[str, object], str]] = [
    ({"simulated": "nvme-gen4"}, "simulated devices (profile nvme-gen4), true of no machine"),
    ({}, "NEW was slowed on purpose: nvme.read* by 8 %"),
    ({"differences": ["CPU: A in BASE, B in NEW"]}, "without --force: CPU: A in BASE, B in NEW"),
]


@pytest.mark.parametrize(("fields", "said"), NOTICES)
def test_what_makes_it_no_fair_comparison_is_said_at_the_head_and_at_the_end(
    comparison: Comparison, fields: dict[str, object], said: str
) -> None:
    parts = printed(changed(comparison, **fields)).split("\n\n")
    assert said in parts[0]
    assert said in parts[-1]


def test_what_could_have_been_seen_is_always_said(comparison: Comparison) -> None:
    text = printed(comparison)
    assert "    nvme  17 % in one metric (2 tested), 9.0 % in all of them together\n" in text
    assert "    p99   nothing: 5 processes a side needed\n" in text
    assert "nothing: no metric was tested" in printed(changed(comparison, sight=[]))
    alone = Sight(group="hbm", metrics=1, metric=0.03, tier=None)
    assert "3.0 % in one metric (1 tested)\n" in printed(changed(comparison, sight=[alone]))


def test_a_condition_stands_with_its_fix(comparison: Comparison) -> None:
    text = printed(comparison)
    assert "3 of NEW (no_steady_state)\n      fix: kvbench run ci --time-limit 30\n" in text


def test_a_red_comparison_ends_with_exit_status_reasons_and_the_command(
    comparison: Comparison,
) -> None:
    assert printed(comparison, 200).endswith(
        "FAIL, exit 3: 2 slower than allowed; 1 of BASE is missing from NEW; 1 not comparable: "
        "it went\n    another way\n"
        "confirm: kvbench ab env: env:MALLOC_ARENA_MAX=1 ci --only 'nvme.read/posix/2MiB/*'\n"
    )
    for code in (NOT_COMPARABLE, INCONCLUSIVE):
        text = printed(changed(comparison, exit_code=code, reasons=["why"], confirm=None))
        assert text.endswith(f"\nFAIL, exit {code}: why\n")


def test_a_pass_says_what_it_does_and_does_not_mean(comparison: Comparison) -> None:
    green: dict[str, object] = {"exit_code": PASSED, "reasons": [], "confirm": None}
    findings = [checked("nvme.read/a", Verdict.UNSURE, (0.01, -0.1, 0.1))]
    text = printed(changed(comparison, findings=findings, **green))
    assert "PASS: nothing was shown to be slower than allowed; 1 finding: 1 unsure\n" in text
    unknown = changed(comparison, findings=findings, design=Design.UNKNOWN, **green)
    assert "PASS: without a noise floor nothing can be called slower" in printed(unknown)
    bare = changed(comparison, findings=[untested("nvme.b", Verdict.NEW, "new")], **green)
    assert "PASS: nothing was tested; 1 finding: 1 new\n" in printed(bare)


def test_an_empty_comparison_prints_in_every_format(comparison: Comparison) -> None:
    empty = changed(
        comparison,
        findings=[],
        sight=[],
        conditions=[],
        exit_code=NOT_COMPARABLE,
        reasons=["no metric can be compared"],
        confirm=None,
    )
    assert "FAIL, exit 4: no metric can be compared\n" in printed(empty, all_=True)
    assert "finding  " not in printed(empty)
    for render in COMPARE_FORMATS.values():
        assert render(empty)


def test_colour_says_nothing_that_words_do_not(comparison: Comparison) -> None:
    coloured = terminal(comparison, {})
    assert "\x1b[1;31m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == table.render(comparison)


def test_no_color_is_obeyed(comparison: Comparison) -> None:
    codes = re.findall(r"\x1b\[([\d;]*)m", terminal(comparison, {"NO_COLOR": "1"}))
    assert {code for joined in codes for code in joined.split(";")} <= {"0", "1", "2"}  # bold, dim


def test_a_file_gets_no_escape_sequences(comparison: Comparison) -> None:
    assert "\x1b" not in printed(comparison)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_plain_signs_in_the_same_places(
    comparison: Comparison, encoding: str
) -> None:
    ours = encoded(comparison, encoding)
    assert [len(line) for line in ours.splitlines()] == [
        len(line) for line in printed(comparison).splitlines()
    ]
    assert "<-------+-o:----->" in ours
    assert "?" not in ours


HOSTILE = [
    "nvme.read/\x1b[2J\x07",
    "nvme.read/[bold]x[/bold]",
    "nvme.read/a\nFAKE 1\n",
    "nvme.read/\u202eevil",
    "nvme.read/漢字漢字",
    "",
    "=1+1|`*",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("width", [40, 100])
def test_text_of_a_file_can_neither_move_the_cursor_nor_add_a_line(
    comparison: Comparison, name: str, width: int
) -> None:
    def lines(text: str) -> int:
        hostile = changed(
            comparison,
            findings=[
                checked("nvme.a", Verdict.SLOWER, (0.1, 0, 0.2), id=text, group=text, reason=None)
            ],
            conditions=[Caution(code="c", message="m", fix=f"fix {text}")],
            confirm=f"kvbench {text}",
            sight=[],
        )
        shown = printed(hostile, width)
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        return len(shown.splitlines())

    assert lines(name) <= lines("nvme.read/short") + 2  # an id on a line of its own; a long rule


def test_markup_in_an_id_is_text(comparison: Comparison) -> None:
    findings = [checked("nvme.read/[bold]x", Verdict.SLOWER, (0.1, 0, 0.2))]
    assert "\nnvme.read/[bold]x " in printed(changed(comparison, findings=findings))


def test_findings_of_one_id_are_both_printed(comparison: Comparison) -> None:
    twice = [checked("nvme.read/a", Verdict.SLOWER, (x, 0.1, 0.3)) for x in (0.2, 0.25)]
    lines = group(printed(changed(comparison, findings=twice)), "SLOWER")
    assert [line.split()[4] for line in lines[:2]] == ["+25.0", "+20.0"]


@pytest.mark.parametrize("form", ["table", "json", "csv", "markdown"])
def test_five_thousand_findings_are_printed_at_once(comparison: Comparison, form: str) -> None:
    findings = [each for verdict in Verdict for each in many(verdict, 715)]
    large = changed(comparison, findings=findings)
    render = COMPARE_FORMATS[form]
    assert min(_seconds(render, large) for _ in range(3)) < 0.3


def _seconds(render: Callable[[Comparison], str], comparison: Comparison) -> float:
    started = time.process_time()  # of this process: other load on the machine is not its fault
    render(comparison)
    return time.process_time() - started

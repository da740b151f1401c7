"""What the terminal table promises at every width, on every kind of output."""

import io
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from kvbench.measure.result import Caution, Report, Row, State
from kvbench_reports import table
from kvbench_reports.layout import DROPPED_FIRST
from kvbench_reports.words import NONE

TITLES = {"p50": "p50", "p99": "p99", "limit": "limit", "interval": "95 %", "block": "block"}
COMMANDS = ("next: ", "    fix: ")


def printed(report: Report, width: int = 100) -> str:
    text = io.StringIO()
    table.show(report, Console(file=text, width=width), "report.json")
    return text.getvalue()


def terminal(report: Report, environment: dict[str, str]) -> str:
    text = io.StringIO()
    console = Console(
        file=text,
        width=100,
        force_terminal=True,
        color_system="standard",
        _environ=environment,
    )
    table.show(report, console)
    return text.getvalue()


def tier(report: Report, name: str, width: int) -> str:
    """The lines of one tier, up to the next blank line."""
    return next(part for part in printed(report, width).split("\n\n") if part.startswith(name))


any_width = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@any_width
@given(width=st.integers(30, 220))
def test_no_line_is_wider_than_the_terminal(measured: Report, width: int) -> None:
    lines = printed(measured, width).splitlines()
    too_wide = [line for line in lines if len(line) > width and not line.startswith(COMMANDS)]
    # At 30 columns the narrowest table has no more columns to give up.
    assert not too_wide or width < 44


@any_width
@given(width=st.integers(44, 220))
def test_a_case_id_is_never_broken(measured: Report, width: int) -> None:
    text = printed(measured, width)
    tried = [row for row in measured.rows if row.state is not State.SKIPPED]
    assert all(any(row.id in line for line in text.splitlines()) for row in tried)


@any_width
@given(width=st.integers(44, 220))
def test_columns_are_given_up_in_one_order_and_named(measured: Report, width: int) -> None:
    text = tier(measured, "nvme", width)
    heading = next(line for line in text.splitlines() if line.startswith("case"))
    shown = [title in heading for title in (TITLES[key] for key in DROPPED_FIRST if key in TITLES)]
    assert shown == sorted(shown), "a column was dropped before one that goes first"
    for title, is_shown in zip(TITLES.values(), shown, strict=True):
        named = re.search(rf"no room for [^:]*{re.escape(title)}", text.replace("\n  ", " "))
        assert bool(named) != is_shown


def test_every_column_fits_in_eighty_columns_with_long_ids_on_their_own_lines(
    measured: Report,
) -> None:
    text = tier(measured, "nvme", 80)
    assert "no room" not in text
    assert "\nnvme.read/kvikio/2MiB/qd16/random\n" in text


def test_an_invalid_row_says_so_and_why_and_prints_no_figure(measured: Report) -> None:
    text = tier(measured, "nvme", 120)
    _, _, after = text.partition("nvme.read/posix/2MiB/qd32/random")
    line, reason = after.splitlines()[:2]
    assert line.split() == ["2,048", *[NONE] * 6, "invalid"]
    assert "measured 397% of the limit" in reason


def test_a_degraded_row_says_which_path_was_seen(measured: Report) -> None:
    row = next(row for row in measured.rows if row.state is State.DEGRADED)
    assert "asked for gds, the bytes went by posix-bounce\n" in tier(measured, "nvme", 120)
    row.reason = "the device had written only 40% of the bytes"
    expected = f"{row.reason} (path requested: gds, observed: posix-bounce)"
    assert expected in tier(measured, "nvme", 120)
    row.path_observed = None
    assert "observed: not recorded)" in tier(measured, "nvme", 120)


def test_a_missing_percentile_is_a_dash_and_explained(measured: Report) -> None:
    text = tier(measured, "nvme", 120)
    line = next(line for line in text.splitlines() if "64KiB/qd1" in line)
    assert line.split()[4:7] == ["9.3", "0.0834", NONE]
    assert "no p99 in 2 rows, for example: 312 effective samples, 1000 needed" in text


def test_neighbouring_skipped_rows_of_one_reason_are_one_line(measured: Report) -> None:
    hbm = [row for row in measured.rows if row.tier == "hbm"]
    assert "\n5 cases skipped: no CUDA device: no NVIDIA driver" in tier(measured, "hbm", 100)
    hbm[2].reason = "triton is not installed"
    text = tier(measured, "hbm", 100)
    assert text.count("2 cases skipped: no CUDA device") == 2
    assert f"\n{hbm[2].id} skipped: triton is not installed\n" in text


def test_a_warning_is_said_once_with_its_rows_and_its_fix(measured: Report) -> None:
    text = printed(measured)
    assert text.count("processes differ by more than ±10 %") == 1
    assert "(wide_interval, 2 rows)\n    fix: kvbench run … --processes 10\n" in text
    assert "w1  the CPU governor is powersave (governor, whole run)" in text
    assert "degraded w2 w3\n" in text


def test_a_fix_is_printed_though_the_first_row_with_the_warning_has_none(
    measured: Report,
) -> None:
    measured.warnings.append(Caution(code="slow", message="slow"))
    measured.rows[0].warnings = [Caution(code="slow", message="slow", fix="first")]
    measured.rows[1].warnings = [Caution(code="slow", message="slow", fix="second")]
    assert "slow (slow, 2 rows)\n    fix: first\nw3" in printed(measured)


def test_a_long_fix_stays_in_one_piece_to_be_copied(measured: Report) -> None:
    fix = "sudo " + "very-long-option " * 20 + "end"
    measured.warnings.append(Caution(code="long", message="long", fix=fix))
    assert f"fix: {fix}\n" in printed(measured, 60)


def test_the_source_of_a_limit_is_named_once(measured: Report) -> None:
    text = tier(measured, "nvme", 100)
    assert text.count("limit: 7.88 GB/s, PCIe 4.0 x4 link of nvme0n1") == 1
    dram = tier(measured, "dram", 100)
    assert "96 (a)" in dram
    assert "limit (a): 24.9 GB/s, memcpy of 256 MiB on all cores" in dram


def test_figures_have_the_digits_that_their_interval_supports(measured: Report) -> None:
    dram = tier(measured, "dram", 100).splitlines()
    locked = next(line for line in dram if line.startswith("dram.gather/locked"))
    assert locked.split()[2:4] == ["18", "14"]  # 18.3 GB/s ±14 %


def test_decimal_points_stand_below_each_other(measured: Report) -> None:
    lines = [line for line in tier(measured, "nvme", 120).splitlines() if "nvme.read" in line]
    after_block = lines[0].index("2,048") + len("2,048")
    assert len({line.index(".", after_block) for line in lines[:3]}) == 1


def test_the_time_for_8192_tokens_is_their_bytes_over_the_rate(measured: Report) -> None:
    line = next(x for x in tier(measured, "nvme", 120).splitlines() if "qd16/random" in x)
    assert line.split()[-2] == f"{131072 * 8192 / 6.514e9 * 1e3:.0f}"


def test_a_simulated_report_says_so_in_its_rows_its_head_and_its_foot(simulated: Report) -> None:
    parts = printed(simulated).split("\n\n")
    said = "2 rows from simulated devices (profile nvme-gen4), true of no machine"
    assert said in parts[0]
    assert said in parts[-1]
    assert parts[1].count(" simulated\n") == 3  # the tier's line and both rows


def test_an_interrupted_run_says_how_to_go_on(simulated: Report) -> None:
    assert "the run did not finish, --resume goes on" in printed(simulated)


def test_the_closing_lines_count_the_states_and_name_the_next_command(measured: Report) -> None:
    assert printed(measured).endswith(
        "\n14 rows: 5 ok, 1 degraded, 1 invalid, 6 skipped, 1 failed\n"
        "next: kvbench report report.json --format markdown\n"
    )


def test_the_next_command_can_be_pasted_whatever_the_file_is_called(measured: Report) -> None:
    text = io.StringIO()
    table.show(measured, Console(file=text, width=100), "my report.json")
    assert "kvbench report 'my report.json' --format markdown" in text.getvalue()


def test_tiers_come_from_fast_to_slow_and_unknown_ones_last(measured: Report) -> None:
    measured.rows.insert(
        0, Row(id="tape.read/1", tier="tape", operation="read", params={}, state=State.SKIPPED)
    )
    parts = [part.split()[0] for part in printed(measured).split("\n\n")]
    assert parts[1:5] == ["hbm", "dram", "nvme", "tape"]


def test_a_file_gets_no_escape_sequences(measured: Report) -> None:
    assert "\x1b" not in printed(measured)


def test_colour_says_nothing_that_words_do_not(measured: Report) -> None:
    coloured = terminal(measured, {})
    assert "\x1b[1;31m" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == table.render(measured)


def test_no_color_is_obeyed(measured: Report) -> None:
    codes = re.findall(r"\x1b\[([\d;]*)m", terminal(measured, {"NO_COLOR": "1"}))
    assert {code for joined in codes for code in joined.split(";")} <= {"0", "1", "2"}  # bold, dim


def test_a_terminal_without_unicode_gets_plain_signs_in_the_same_places(measured: Report) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", newline="")
    table.show(measured, Console(file=file, width=120))
    file.flush()
    ours = raw.getvalue().decode("ascii")
    assert [len(line) for line in ours.splitlines()] == [
        len(line) for line in printed(measured, 120).replace("report.json", "FILE").splitlines()
    ]


def test_control_characters_in_a_report_do_not_reach_the_terminal(measured: Report) -> None:
    failed = next(row for row in measured.rows if row.state is State.FAILED)
    failed.reason = "\x1b]0;title\x07 lost"
    failed.id = "nvme.write/\x1b[2J"
    measured.warnings.append(Caution(code="\x1b[1m", message="[bold]\x1b[3m", fix="rm\x1b[4m"))
    text = printed(measured)
    assert "\x1b" not in text
    assert "[bold]" in text  # Rich markup is text


def test_a_report_without_rows_prints(measured: Report) -> None:
    measured.rows.clear()
    assert "\nno rows\n" in printed(measured)


def test_a_row_that_holds_no_rate_prints_dashes_not_zero(measured: Report) -> None:
    row = next(row for row in measured.rows if row.state is State.OK)
    row.bytes_per_s = 0.0
    line = next(x for x in tier(measured, "dram", 100).splitlines() if x.startswith(row.id))
    assert line.split()[1:] == [*[NONE] * 5, "ok"]

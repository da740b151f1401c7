"""A history for people and for spreadsheets: worst first, advice only, at any width."""

import csv
import io
import json
import math
import sys

import msgspec
import numpy as np
import pytest
from rich.console import Console

from kvbench.history import Added, Entry, Kept, Trends, find_trends
from kvbench_reports.history import HISTORY_FORMATS, csv_, table
from kvbench_reports.history.added import show_added
from kvbench_reports.history.layout import ASCII_BARS, BARS, sparkline
from tests.histories import READ, entry, kept, sessions

ADVICE = "advisory: not a gate; two sessions differ by more than their intervals"


def stepped(days: int = 30) -> list[Entry]:
    """Rows that got slower by 14 %, faster by 6 % and nothing at all, and one with a long id."""
    rng = np.random.default_rng(4)
    found: list[Entry] = []
    for day in range(days):
        late = day >= 20
        noise = np.exp(rng.normal(0, 0.01, 4))
        rows = [
            kept("dram.copy/same", 9e9 * noise[0]),
            kept("dram.copy/faster", (9.54e9 if late else 9e9) * noise[1]),
            kept(
                READ,
                (5e9 / 1.14 if late else 5e9) * noise[2],
                latency_p99_s=float(7e-3 * noise[3]),
            ),
        ]
        found.append(entry(day, rows, kernel="6.8.0" if late else "6.1.0"))
    return found


def trends(entries: list[Entry]) -> Trends:
    return find_trends(entries, path="h.jsonl")


def shown(found: Trends, width: int = 100, *, all_: bool = False, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # strict, as standard output is
    table.show(found, Console(file=file, width=width), all_=all_)
    file.seek(0)
    return file.read()


def flat(text: str) -> str:
    return " ".join(text.split())


def rates(*values: float, **fields: object) -> list[Kept]:
    return [kept(f"dram.copy/{n}", value, **fields) for n, value in enumerate(values)]


def test_every_terminal_table_says_that_it_is_advice_and_no_gate() -> None:
    for entries in (stepped(), sessions([5e9])):
        assert ADVICE in shown(trends(entries))


def test_a_change_says_how_much_when_at_which_commit_and_what_else_changed() -> None:
    text = flat(shown(trends(stepped())))

    assert (
        "+13.3 % slower from 2026-01-22 12:00 UTC on (10 sessions), commit 00141f3c9e, "
        "session 00000014; kernel: 6.1.0 before, 6.8.0 now"
    ) in text


def test_the_worst_recent_change_is_first_then_improvements_then_the_rest() -> None:
    text = shown(trends(stepped()))

    places = [text.index(name) for name in (READ, "dram.copy/faster", "dram.copy/same")]
    assert places == sorted(places)


def test_of_two_rows_that_got_slower_the_worse_is_first() -> None:
    levels = [(1.0, 1.0)] * 6 + [(0.9, 0.8)] * 6
    entries = [entry(day, rates(1e9 * a, 1e9 * b)) for day, (a, b) in enumerate(levels)]

    text = shown(trends(entries))
    assert text.index("dram.copy/1") < text.index("dram.copy/0")


def test_a_row_has_its_points_its_change_in_words_and_the_spread_of_its_sessions() -> None:
    line = next(each for each in shown(trends(stepped())).splitlines() if each.startswith(READ))
    cells = line.split()

    assert cells[2] == "30"
    assert cells[3:5] == ["4.41", "GB/s"]
    assert float(cells[5]) == pytest.approx(14, abs=4)
    assert cells[6] == "slower"
    assert float(cells[7]) == pytest.approx(1.0, abs=0.5)
    assert cells[8] == "1"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((5e9, 4e9), "+25.0 slower"),
        ((4e9, 5e9), "-20.0 faster"),
        ((4e9, 4e9), "0.0 noise"),
        ((5.0e9, 4.9e9, 5.1e9, 4.95e9), "+1.0 noise"),
        ((5e9,), "\N{EN DASH}"),
    ],
)
def test_the_change_from_first_to_last_is_in_time_with_its_word(
    values: tuple[float, ...], said: str
) -> None:
    text = shown(trends(sessions(values)))
    line = next(each for each in text.splitlines() if each.startswith(READ))

    assert flat(line.partition("GB/s")[2]).startswith(said)


def test_a_p99_is_a_row_of_its_own_in_a_unit_of_time() -> None:
    line = next(e for e in shown(trends(stepped())).splitlines() if e.startswith(f"{READ} p99"))

    assert " ms " in line


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("days", [1, 5, 30, 300])
def test_no_line_is_wider_than_the_terminal_and_no_id_is_cut(width: int, days: int) -> None:
    text = shown(trends(stepped(days)), width)

    assert max(len(line) for line in text.splitlines()) <= width
    assert READ in text
    assert f"{READ} p99" in text


def test_columns_stay_in_line_at_every_width() -> None:
    for width in (60, 80, 100, 200):
        lines = shown(trends(stepped()), width).splitlines()
        start = next(n for n, line in enumerate(lines) if line.startswith("row"))
        ends = {len(line) for line in lines if line.endswith((" none", " 1"))}
        assert ends == {len(lines[start])}, width
        assert len(lines[start + 2]) == len(lines[start])  # the rule


def test_a_wider_terminal_shows_more_points() -> None:
    bars = [
        max(sum(letter in BARS for letter in line) for line in text.splitlines())
        for text in (shown(trends(stepped(300)), width) for width in (100, 200))
    ]
    assert bars[0] < bars[1] == 40


def test_an_encoding_without_bars_gets_letters_in_the_same_columns() -> None:
    rich, plain = (shown(trends(stepped()), encoding=name) for name in ("utf-8", "ascii"))

    assert plain.isascii()
    assert "?" not in plain
    assert rich.translate(str.maketrans(f"{BARS}·─", f"{ASCII_BARS}--")) == plain


def test_no_colour_leaves_the_words() -> None:
    found = trends(stepped())
    coloured, plain = io.StringIO(), io.StringIO()
    table.show(found, Console(file=coloured, force_terminal=True, width=100))
    table.show(found, Console(file=plain, force_terminal=True, no_color=True, width=100))

    assert "\x1b[1;31m" in coloured.getvalue()
    assert "\x1b[1;31m" not in plain.getvalue()
    assert "slower from" in plain.getvalue()


def test_rows_with_few_points_say_that_they_are_too_few() -> None:
    text = shown(trends(sessions([5e9] * 5)))

    assert "too few" in next(line for line in text.splitlines() if line.startswith(READ))
    assert "too few points for change points in 1 row: 6 sessions are needed" in text


def test_without_ruptures_the_command_that_installs_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    text = shown(trends(stepped()))

    assert text.count("pip install 'kvbench[history]'") == 1
    assert "none" not in text  # nobody looked


def test_with_ruptures_nothing_is_said_of_installing_it() -> None:
    assert "pip install" not in shown(trends(stepped()))


def test_at_most_25_rows_are_listed_and_how_many_are_not_is_said() -> None:
    entries = [entry(0, rates(*[1e9] * 40)), entry(1, rates(*[1e9] * 40))]

    short, whole = (shown(trends(entries), all_=all_) for all_ in (False, True))
    assert short.count("dram.copy/") == 25
    assert "15 more rows, 0 with a change point: --all lists all" in short
    assert whole.count("dram.copy/") == 40
    assert "--all" not in whole


def test_rows_of_every_machine_compete_for_the_25_places() -> None:
    calm = [entry(day, rates(*[1e9] * 30)) for day in range(2)]
    bad = [entry(day, rates(1e9 / (1 + day)), machine="feed") for day in range(2)]

    text = shown(trends([*calm, *bad]))
    assert text.index("machine feed") < text.index("machine 0123456789abcdef")


def test_only_the_latest_three_changes_of_a_row_are_told_unless_all_are_asked_for() -> None:
    levels = np.repeat([5e9, 4e9, 5e9, 4e9, 5e9, 4e9], 6)
    found = trends(sessions(list(levels)))

    short, whole = (shown(found, all_=all_) for all_ in (False, True))
    days = [
        line.split(" UTC on ")[0].split()[-2] for line in short.splitlines() if " UTC on " in line
    ]
    assert days == ["2026-02-01", "2026-01-26", "2026-01-20"]
    assert "2 earlier changes: --all lists them" in short
    assert whole.count(" UTC on ") == 5


def test_a_changed_definition_is_marked_on_both_series_and_the_old_one_comes_last() -> None:
    old = [entry(day, rates(1e9 / (1 + day))) for day in range(3)]
    new = [entry(day, rates(1e9, definition_hash="d2")) for day in (3, 4)]

    text = shown(trends([*old, *new]))
    marks = (
        "new definition since 2026-01-05 12:00 UTC: 3 sessions before it apart",
        "old definition, measured no more",
    )
    places = [text.index(mark) for mark in marks]
    assert places == sorted(places)


def test_simulated_devices_and_sides_are_named() -> None:
    entries = sessions([5e9])
    text = flat(
        shown(
            trends([msgspec.structs.replace(entries[0], simulated="steady", side="env:A=1")]),
        )
    )

    assert "simulated devices (profile steady), true of no machine" in text
    assert "side env:A=1" in text


def test_notes_about_the_file_are_in_the_table() -> None:
    found = find_trends(sessions([5e9]), path="h.jsonl", notes=["h.jsonl:2 is torn"])

    assert "h.jsonl:2 is torn" in shown(found)


def test_text_out_of_the_file_cannot_move_the_cursor_or_break_a_line() -> None:
    wild = [
        msgspec.structs.replace(
            entry(day, [kept("nvme.read/\x1b[2J\nx", 5e9 if day < 6 else 4e9, path="\x1b[1m")]),
            commit="\x1b[31m\n",
            session_id=f"\x1b\n{day}",
            cpu="\x1b[0m",
            side="\x07",
        )
        for day in range(12)
    ]
    found = trends(wild)

    assert "\x1b" not in shown(found, all_=True)
    assert "\x07" not in shown(found)
    assert len(csv_.render(found).splitlines()) == 13


# The sparkline


def test_a_sparkline_shows_a_step_and_keeps_small_noise_flat() -> None:
    assert sparkline([1e9] * 3 + [2e9] * 3, 10) == "▁▁▁███"
    assert set(sparkline([1e9, 1.01e9, 1e9, 0.99e9], 10)) <= set("▄▅▆")
    assert len(sparkline([7.0], 10)) == 1


def test_a_sparkline_without_room_shows_medians_of_equal_parts() -> None:
    values = [1e9] * 50 + [2e9] * 50
    values[10] = 100e9  # one session among ten does not show

    assert sparkline(values, 10) == "▁▁▁▁▁█████"


def test_all_bars_of_a_sparkline_can_be_reached() -> None:
    assert sparkline([math.exp(step) for step in range(8)], 8) == BARS


# JSON and CSV


def test_json_holds_every_point_in_base_units() -> None:
    said = json.loads(HISTORY_FORMATS["json"](trends(stepped())))
    (group,) = said["groups"]
    read = next(each for each in group["trends"] if each["id"] == READ)

    assert said["schema"] == "kvbench.trends/1"
    assert len(read["points"]) == 30
    assert read["points"][0]["value"] == pytest.approx(5e9, rel=0.05)
    (change,) = read["changes"]
    assert change["index"] == 20
    assert change["change"] == pytest.approx(0.14, abs=0.02)


def test_csv_has_a_line_a_point_and_the_change_where_its_level_begins() -> None:
    lines = list(csv.DictReader(io.StringIO(HISTORY_FORMATS["csv"](trends(stepped())))))
    read = [line for line in lines if line["id"] == READ]
    tail = [line for line in lines if line["id"] == f"{READ} p99"]

    assert tuple(lines[0]) == csv_.COLUMNS
    assert [n for n, line in enumerate(read) if line["change_point"]] == [20]
    assert float(read[20]["change_point"]) == pytest.approx(0.14, abs=0.02)
    assert float(read[0]["bytes_per_s"]) == pytest.approx(5e9, rel=0.05)
    assert {line["latency_p99_s"] for line in read} == {""}
    assert {line["bytes_per_s"] for line in tail} == {""}
    assert float(tail[0]["latency_p99_s"]) == pytest.approx(7e-3, rel=0.05)


def test_no_text_of_the_csv_is_a_formula_for_a_spreadsheet() -> None:
    found = trends([entry(0, [kept(READ, 5e9)], commit="=1+1", session_id="@x", side="-y")])
    (line,) = csv.DictReader(io.StringIO(csv_.render(found)))

    assert (line["commit"], line["session_id"], line["side"]) == ("'=1+1", "'@x", "'-y")


# What `add` says


def test_each_report_that_was_added_or_skipped_has_its_line() -> None:
    one, other = sessions([5e9, 6e9])
    file = io.StringIO()
    done = Added(added=[("a.json", one)], known=[("b.json", other)], notes=["h.jsonl:2 is torn"])
    show_added(done, Console(file=file, width=40), "my history.jsonl")

    assert file.getvalue().splitlines() == [
        "added    a.json (session 00000000, 1 row)",
        "skipped  b.json (session 00000001, 1 row): it is there already",
        "h.jsonl:2 is torn",
        "next: kvbench history show --file 'my history.jsonl'",
    ]

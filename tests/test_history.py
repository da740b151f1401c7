"""The history file and what is read from it: kept whole, never interleaved, slow to cry wolf."""

import datetime as dt
import importlib
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvbench.compare.record import Kind
from kvbench.errors import UsageError
from kvbench.history import (
    SCHEMA,
    Entry,
    Missing,
    Trend,
    add_reports,
    change_points,
    find_trends,
    make_entry,
    noise_sd,
    read_history,
)
from kvbench.measure.result import Report, State
from tests.histories import READ, START, entry, kept, process, report, row, sessions

SD = 0.01


def encode(*entries: Entry) -> bytes:
    return b"".join(msgspec.json.encode(each) + b"\n" for each in entries)


def only_trend(entries: list[Entry], *, last: int | None = None) -> Trend:
    (group,) = find_trends(entries, path="h.jsonl", last=last).groups
    (trend,) = group.trends
    return trend


def raw_lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")


# What goes into a line


def test_a_rate_is_the_geometric_mean_over_processes_with_the_standard_error_of_its_log() -> None:
    (found,) = make_entry(report("s", row(READ, process(4e9), process(9e9))), "r.json").rows

    assert found.bytes_per_s == pytest.approx(6e9)
    assert found.log_se == pytest.approx(math.log(9 / 4) / 2)  # of two values: half their distance
    assert (found.id, found.definition_hash, found.processes) == (READ, "d1", 2)
    assert found.path == "posix-direct"


def test_one_process_has_no_standard_error_rather_than_none_at_all() -> None:
    (found,) = make_entry(report("s", row(READ, process(4e9))), "r.json").rows

    assert (found.log_se, found.processes) == (None, 1)


def test_a_p99_is_kept_only_where_every_process_has_one() -> None:
    whole = row("nvme.read/a", process(4e9, 2e-3), process(4e9, 8e-3))
    gap = row("nvme.read/b", process(4e9, 2e-3), process(4e9, None))

    rows = make_entry(report("s", whole, gap), "r.json").rows
    assert rows[0].latency_p99_s == pytest.approx(4e-3)
    assert rows[1].latency_p99_s is None


def test_rows_without_a_figure_are_left_out() -> None:
    states = {state.value: row(f"nvme.read/{state}", process(1e9), state=state) for state in State}

    ids = {each.id for each in make_entry(report("s", *states.values()), "r.json").rows}
    assert ids == {"nvme.read/ok", "nvme.read/degraded", "nvme.read/simulated"}


def test_a_line_says_where_and_of_what_it_was_measured() -> None:
    made = make_entry(report("s", side="env:A=1", simulated="steady"), "r.json")

    assert (made.schema, made.session_id, made.side) == (SCHEMA, "s", "env:A=1")
    assert (made.commit, made.suite, made.simulated) == ("1f3c9e2aab77", "ci", "steady")
    assert made.started_at == dt.datetime(2026, 11, 25, 16, 1, 7, tzinfo=dt.UTC)
    assert (made.model.name, made.model.cache_dtype) == ("llama-3.1-8b", "bf16")
    assert (made.model.block_bytes, made.machine) == (2 * 2**20, "0123456789abcdef")
    assert (made.cpu, made.kernel) == ("Test CPU", "6.1.0")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (report("s", finished_at=None), r"r\.json is not finished"),
        (report("s", inject={"nvme.*": 0.08}), r"slowed on purpose \(--inject nvme\.\*\)"),
        (report("s", started_at="2026-11-25T16:01:07"), "expected a time with its zone"),
        (report("s", started_at="yesterday"), "expected a time with its zone"),
        (report("s", row(READ, state=State.SKIPPED)), "no row with a figure"),
    ],
)
def test_what_is_no_history_is_refused_and_nothing_is_written(
    changed: Report, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "h.jsonl"

    with pytest.raises(UsageError, match=said) as caught:
        add_reports([("good.json", report("good")), ("r.json", changed)], path)
    assert "\n" not in str(caught.value)
    assert not path.exists()


# The file


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    add_reports([("a.json", report("a"))], path)
    done = add_reports([("b.json", report("b")), ("c.json", report("c"))], path)

    assert [source for source, _ in done.added] == ["b.json", "c.json"]
    assert [each.session_id for each in read_history(path).entries] == ["a", "b", "c"]
    assert read_history(path).entries[0] == make_entry(report("a"), "a.json")


def test_a_report_that_is_there_already_is_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    add_reports([("a.json", report("a"))], path)
    before = path.read_bytes()
    done = add_reports([("again.json", report("a")), ("again.json", report("a"))], path)

    assert done.added == []
    assert [source for source, _ in done.known] == ["again.json"] * 2
    assert path.read_bytes() == before


def test_both_sides_of_one_session_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    sides = [(side, report("s", side=side)) for side in ("env:", "env:A=1")]
    add_reports(sides, path)

    assert [each.side for each in read_history(path).entries] == ["env:", "env:A=1"]


def test_a_line_that_two_merged_branches_both_had_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_bytes(encode(*sessions([5e9, 6e9])) + encode(*sessions([5e9])))

    assert len(read_history(path).entries) == 2


ROOT = Path(__file__).parents[1]
ADD_MANY = """
import sys
from pathlib import Path
from kvbench.history import add_reports
from tests.histories import process, report, row
rows = [row(f"nvme.read/{index}", process(1e9)) for index in range(300)]  # 50 KB a line
first = int(sys.argv[2])
for number in range(first, first + 25):
    add_reports([("r.json", report(f"session-{number}", *rows))], Path(sys.argv[1]))
"""


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT)


def test_writers_at_the_same_time_neither_mix_lines_nor_write_one_twice(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    # Every session is added by two of the four: whoever is first must be seen by the other.
    writers = [start(ADD_MANY, path, 25 * (number // 2)) for number in range(4)]
    assert [each.wait(100) for each in writers] == [0] * 4

    *lines, end = raw_lines(path)
    assert end == b""
    ids = [msgspec.json.decode(line, type=Entry).session_id for line in lines]
    assert sorted(ids) == sorted(f"session-{number}" for number in range(50))


CUT = encode(entry(1, [kept("nvme.read/é", 5e9)], commit="ü"))


@pytest.mark.parametrize("size", range(1, len(CUT) - 1))
def test_a_line_torn_at_any_byte_is_named_left_out_and_never_written_onto(
    size: int, tmp_path: Path
) -> None:
    path = tmp_path / "h.jsonl"
    torn = encode(*sessions([5e9])) + CUT[:size]
    path.write_bytes(torn)
    note = f"{path}:2 is torn (a crash while it was written?) and was left out"

    assert len(read_history(path).entries) == 1
    assert read_history(path).notes == [note]
    assert add_reports([("a.json", report("a"))], path).notes == [note]
    after = read_history(path)
    assert [each.session_id for each in after.entries] == ["00000000cafe", "a"]
    assert after.notes == [note]
    assert path.read_bytes().startswith(torn + b"\n")


def test_a_last_line_that_lacks_only_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    path.write_bytes(encode(*sessions([5e9])).rstrip())
    done = add_reports([("a.json", report("a"))], path)

    assert done.notes == []
    assert [each.session_id for each in read_history(path).entries] == ["00000000cafe", "a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"<<<<<<< main", "is not a line of a kvbench history"),
        (b"\0" * 100, "is not a line of a kvbench history"),
        (b"3", "is not a line of a kvbench history"),
        (b'{"schema":"kvbench.report/1"}', "schema 'kvbench.report/1', expected"),
        (b'{"schema":"kvbench.history/one"}', "schema 'kvbench.history/one', expected"),
        (b'{"schema":"kvbench.history/2","new":[]}', "upgrade kvbench to read it"),
        (b'{"schema":"kvbench.history/1"}', "is damaged"),
        (CUT.replace(b":5000000000.0", b":0.0").rstrip(), "is damaged"),
        (CUT.replace(b":5000000000.0", b":1e999").rstrip(), "is damaged"),
        (CUT.replace(b"12:00:00Z", b"12:00:00").rstrip(), "is damaged"),
    ],
)
def test_a_line_that_is_none_of_ours_is_named_by_file_and_number_and_stops_everything(
    line: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "h.jsonl"
    path.write_bytes(encode(*sessions([5e9])) + b"\n" + line + b"\n" + encode(entry(2, [])))
    before = path.read_bytes()

    for act in (lambda: read_history(path), lambda: add_reports([("a", report("a"))], path)):
        with pytest.raises(UsageError, match=said) as caught:
            act()
        assert str(caught.value).startswith(f"{path}:3 ")  # an empty line is a line
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


ADD_WITHIN = """
import resource, signal, sys
from pathlib import Path
from kvbench.errors import UsageError
from kvbench.history import add_reports
from tests.histories import report
made = report("a")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    add_reports([("a.json", made)], Path(sys.argv[1]))
except UsageError as error:
    assert "nothing was added" in str(error)
    sys.exit(7)
"""


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_write_that_finds_no_room_leaves_nothing_of_itself(room: int, tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    before = encode(*sessions([5e9]))
    path.write_bytes(before)

    assert start(ADD_WITHIN, path, len(before) + room).wait(100) == 7
    assert path.read_bytes() == before


def test_what_is_no_file_to_append_to_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "no" / "h.jsonl", Path("/dev/null")):
        with pytest.raises(UsageError, match="cannot write"):
            add_reports([("a.json", report("a"))], path)


def test_a_new_file_has_the_permissions_that_the_user_gives_to_files(tmp_path: Path) -> None:
    add_reports([("a.json", report("a"))], tmp_path / "h.jsonl")
    (tmp_path / "other").touch()

    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("h.jsonl", "other")]
    assert modes[0] == modes[1]


# Trends


def test_a_history_without_a_session_says_how_to_begin() -> None:
    with pytest.raises(UsageError, match=r"h\.jsonl holds no session yet: `kvbench history add"):
        find_trends([], path="h.jsonl")


def test_sessions_are_in_the_order_they_were_measured_not_added() -> None:
    entries = sessions([1e9, 2e9, 3e9])

    trend = only_trend([entries[2], entries[0], entries[1]])
    assert [point.value for point in trend.points] == [1e9, 2e9, 3e9]


def test_a_rate_that_halved_is_100_percent_slower_and_a_p99_that_doubled_too() -> None:
    entries = [
        entry(0, [kept(READ, 4e9, latency_p99_s=1e-3)]),
        entry(1, [kept(READ, 2e9, latency_p99_s=2e-3)]),
    ]
    (group,) = find_trends(entries, path="h.jsonl").groups

    assert {each.kind: each.change for each in group.trends} == {
        Kind.RATE: pytest.approx(1.0),
        Kind.P99: pytest.approx(1.0),
    }
    assert [each.id for each in group.trends] == [READ, f"{READ} p99"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("machine", "fedcba9876543210"),
        ("model", msgspec.structs.replace(sessions([1e9])[0].model, cache_dtype="fp8")),
        ("model", msgspec.structs.replace(sessions([1e9])[0].model, block_bytes=4096)),
        ("model", msgspec.structs.replace(sessions([1e9])[0].model, name="qwen3-32b")),
        ("simulated", "steady"),
        ("side", "env:A=1"),
    ],
)
def test_what_cannot_be_held_against_each_other_is_in_two_groups(field: str, value: object) -> None:
    entries = [entry(0, [kept(READ, 4e9)]), entry(1, [kept(READ, 2e9)], **{field: value})]

    groups = find_trends(entries, path="h.jsonl").groups
    assert [len(group.trends[0].points) for group in groups] == [1, 1]


def test_a_suite_is_no_reason_to_part_sessions() -> None:
    entries = [entry(0, [kept(READ, 4e9)]), entry(1, [kept(READ, 2e9)], suite="full")]

    assert len(only_trend(entries).points) == 2


def test_a_changed_definition_starts_a_new_series_and_both_are_marked() -> None:
    old = sessions([4e9] * 3)
    new = [entry(day, [kept(READ, 2e9, definition_hash="d2")]) for day in (3, 4)]
    (group,) = find_trends([*old, *new], path="h.jsonl").groups

    facts = {
        each.definition_hash: (each.retired, each.earlier, each.change) for each in group.trends
    }
    assert facts == {"d1": (True, 2, 0.0), "d2": (False, 3, 0.0)}


def test_only_the_last_points_are_used_when_so_asked() -> None:
    rates = [9e9, 9e9, 9e9, 4e9, 4e9, 4e9, 2e9]

    assert [point.value for point in only_trend(sessions(rates), last=2).points] == [4e9, 2e9]
    assert only_trend(sessions(rates), last=2).change == pytest.approx(1.0)


def test_rows_are_chosen_by_a_glob_that_must_match() -> None:
    entries = [entry(0, [kept("nvme.read/a", 1e9), kept("dram.copy/b", 1e9)])]
    (group,) = find_trends(entries, path="h.jsonl", only="dram.*").groups

    assert [each.id for each in group.trends] == ["dram.copy/b"]
    with pytest.raises(UsageError, match=r"'hbm\.\*' matches no row; there are 2: nvme\.read/a"):
        find_trends(entries, path="h.jsonl", only="hbm.*")


def test_the_spread_of_sessions_is_that_of_neighbours_so_that_a_step_does_not_widen_it() -> None:
    noise = np.random.default_rng(11).normal(0, SD, 400)
    step = np.where(np.arange(400) < 200, 0.0, 1.0)

    assert noise_sd(noise) == pytest.approx(SD, rel=0.15)
    assert noise_sd(noise + step) == pytest.approx(noise_sd(noise), rel=0.02)


# Change points


def noise_series(count: int, points: int) -> np.ndarray:
    return np.random.default_rng(20260102).normal(0, SD, (count, points))


def test_pure_noise_has_a_change_point_in_at_most_5_of_100_series() -> None:
    alarms = sum(bool(change_points(series)) for series in noise_series(200, 30))

    assert alarms <= 10


def test_short_series_of_noise_cry_wolf_no_more_often() -> None:
    for points in (6, 8, 10):
        alarms = sum(bool(change_points(series)) for series in noise_series(400, points))
        assert alarms <= 28, points  # 5 %, and two standard errors of 400 series


def test_a_step_of_5_percent_is_found_where_it_is_in_95_of_100_series() -> None:
    step = np.where(np.arange(30) < 15, 0.0, math.log(1.05))
    found = [change_points(series + step) for series in noise_series(200, 30)]

    assert sum(len(each) == 1 and abs(each[0] - 15) <= 1 for each in found) >= 190


def test_one_bad_session_is_no_change_wherever_it_is() -> None:
    alarms = 0
    for index, series in enumerate(noise_series(200, 30)):
        series[index % 30] += 0.3 if index % 2 else -0.3
        alarms += bool(change_points(series))

    assert alarms <= 10


def test_three_sessions_on_another_level_are_a_change_even_at_the_end() -> None:
    series = noise_series(1, 30)[0]
    series[27:] += 0.1

    assert change_points(series) == [27]


def test_points_alike_to_the_last_digit_have_no_noise_but_a_step_is_seen() -> None:
    assert change_points(np.zeros(30)) == []
    assert change_points(np.where(np.arange(30) < 20, 0.0, 0.02)) == [20]


def test_noise_that_processes_already_show_is_no_change() -> None:
    series = np.where(np.arange(30) < 15, 0.0, 0.02)  # neighbours alike by chance

    assert change_points(series) == [15]
    assert change_points(series, least_sd=0.02) == []
    rates = 1e9 * np.exp(-series)
    noisy = [entry(day, [kept(READ, rate, log_se=0.02)]) for day, rate in enumerate(rates)]
    assert only_trend(noisy).changes == []


def test_the_steps_are_those_of_pelt_with_the_l2_cost() -> None:
    # Plain Pelt is a thousand times as slow, and says the same.
    pelt = importlib.import_module("ruptures").Pelt
    rng = np.random.default_rng(3)
    for _ in range(40):
        levels = rng.normal(0, 2, 3).repeat(12)
        series = levels + rng.uniform(-1, 1, 36)  # no outliers to clip
        penalty = 5.0 * noise_sd(series) ** 2 * math.log(36)
        slow = pelt(model="l2", min_size=3, jump=1).fit(series).predict(pen=penalty)
        assert change_points(series) == slow[:-1]


def test_a_change_says_when_at_which_commit_by_how_much_and_what_else_changed() -> None:
    rates = np.where(np.arange(20) < 12, 5e9, 5e9 / 1.1) * np.exp(noise_series(1, 20)[0])
    entries = [
        entry(day, [kept(READ, rate)], kernel="6.1.0" if day < 12 else "6.8.0")
        for day, rate in enumerate(rates)
    ]
    trend = only_trend(entries)

    assert trend.changes is not None
    (change,) = trend.changes
    assert (change.index, change.sessions) == (12, 8)
    assert change.session_id == entries[12].session_id
    assert change.commit == entries[12].commit
    assert change.started_at == START + dt.timedelta(days=12)
    assert change.change == pytest.approx(0.1, abs=0.015)
    assert change.with_it == ["kernel: 6.1.0 before, 6.8.0 now"]


def test_fewer_than_6_points_are_too_few_to_look() -> None:
    five, six = only_trend(sessions([5e9] * 5)), only_trend(sessions([5e9] * 6))

    assert (five.changes, five.changes_missing) == (None, Missing.TOO_FEW)
    assert (six.changes, six.changes_missing) == ([], None)
    assert str(Missing.TOO_FEW) == "too few points for change points"


def test_without_ruptures_everything_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruptures", None)
    trend = only_trend(sessions([5e9] * 5 + [4e9]))

    assert (trend.changes, trend.changes_missing) == (None, Missing.NO_RUPTURES)
    assert trend.change == pytest.approx(0.25)
    assert trend.noise_sd == 0.0


def test_ruptures_is_not_loaded_for_a_history_that_is_too_short() -> None:
    code = (
        "import sys\n"
        "from kvbench.history import find_trends\n"
        "from tests.histories import sessions\n"
        "find_trends(sessions([5e9] * 5), path='h')\n"
        "assert not {'ruptures', 'scipy', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        timeout=60,
        cwd=ROOT,
    )

"""The noise floor of sessions, what it foresees, and what it says of itself when it is old."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvbench.compare import gate
from kvbench.compare.metrics import MARGINS
from kvbench.compare.noise import (
    Noise,
    age_cautions,
    encode_noise,
    foresee,
    make_noise,
    noise_schema,
    read_noise,
)
from kvbench.compare.selfcheck import self_check
from kvbench.errors import UsageError
from kvbench.measure.result import Report
from tests.compare.samples import MACHINE, make_report, make_row, noisy

Sample = tuple[str, Report]


def session(number: int, rows: Mapping[str, Sequence[float]], **fields: object) -> Sample:
    started = {"started_at": f"2026-11-{10 + number:02d}T10:00:00+00:00"}
    cases = [make_row(case, rates) for case, rates in rows.items()]
    return f"{number}.json", make_report(cases, f"session {number}", **(started | fields))


def sessions(offsets: Sequence[float], cases: Sequence[str] = ("dram.copy/a",)) -> list[Sample]:
    """A session for each offset, by which all of its cases are slower."""
    return [
        session(
            number,
            {
                case: noisy(100 * number + at, slower=offset, sd=0.003)
                for at, case in enumerate(cases)
            },
        )
        for number, offset in enumerate(offsets)
    ]


def fixes(noise: Noise, path: str = "floors/h100.json", **fields: object) -> list[str | None]:
    """Of the cautions for a NEW of another kernel."""
    machine = msgspec.structs.replace(MACHINE, os=msgspec.structs.replace(MACHINE.os, kernel="6.8"))
    _, new = session(9, {}, **({"machine": machine} | fields))
    return [each.fix for each in age_cautions(noise, new, path)]


def test_a_metric_that_the_first_session_lacks_is_calibrated_by_the_others() -> None:
    reports = sessions([0.0] * 6, ("dram.copy/a", "dram.copy/b"))
    del reports[0][1].rows[1]
    noise = make_noise(reports)
    assert noise.metrics["dram.copy/a"].sessions == [0, 1, 2, 3, 4, 5]
    assert noise.metrics["dram.copy/b"].sessions == [1, 2, 3, 4, 5]


def test_a_session_with_too_few_processes_of_a_metric_does_not_count_for_it() -> None:
    reports = sessions([0.0] * 6)
    reports[2] = session(2, {"dram.copy/a": noisy(1, processes=4)})
    floor = make_noise(reports).metrics["dram.copy/a"]
    assert floor.sessions == [0, 1, 3, 4, 5]
    assert [len(values) for values in floor.values] == [10] * 5
    reports[3] = session(3, {"dram.copy/a": noisy(1, processes=4)})
    with pytest.raises(UsageError, match="no metric has 5 processes in each of 5 sessions"):
        make_noise(reports)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"suite": "other"}, "suite"),
        ({"plan": {"processes": 20, "seed": 3}}, "plan"),
        ({"machine": msgspec.structs.replace(MACHINE, fingerprint="other")}, "machine"),
    ],
)
def test_sessions_of_different_things_make_no_floor(
    fields: Mapping[str, object], what: str
) -> None:
    reports = sessions([0.0] * 6)
    reports[4] = session(4, {"dram.copy/a": noisy(1)}, **fields)
    with pytest.raises(UsageError, match=f"4.json and 0.json are not of one {what}"):
        make_noise(reports)


def test_sessions_may_differ_in_their_seed() -> None:
    reports = sessions([0.0] * 6)
    reports[4] = session(4, {"dram.copy/a": noisy(1)}, plan={"processes": 10, "seed": 8})
    assert make_noise(reports).sessions == 6


def test_the_floor_of_a_mean_holds_each_session_against_itself() -> None:
    # Every session moves both cases by the same share, up and down in turns. Were b's sessions, one
    # short, held against a's by their place, up would meet down and the floor be far too low.
    moves = [0.1, -0.1] * 4
    reports = sessions(moves, ("dram.copy/a", "dram.copy/b"))
    del reports[0][1].rows[1]
    found = make_noise(reports).floor_of_mean(["dram.copy/a", "dram.copy/b"])
    assert found is not None
    expected = 2 * np.log1p(moves[1:]).var(ddof=1)
    assert found[0] == pytest.approx(expected, rel=0.1)
    assert found[1] == 6  # seven sessions have both
    # Equal numbers of sessions are no sign of the same sessions.
    del reports[7][1].rows[0]
    found = make_noise(reports).floor_of_mean(["dram.copy/a", "dram.copy/b"])
    assert found is not None
    assert found[0] == pytest.approx(2 * np.log1p(moves[1:7]).var(ddof=1), rel=0.1)
    assert found[1] == 5


def test_metrics_that_share_too_few_sessions_have_no_floor_of_a_mean() -> None:
    reports = sessions([0.0] * 8, ("dram.copy/a", "dram.copy/b"))
    for number in range(8):
        if number in {0, 1}:
            del reports[number][1].rows[0]
        elif number in {2, 3}:
            del reports[number][1].rows[1]
    noise = make_noise(reports)
    assert len(noise.metrics["dram.copy/a"].sessions) == 6
    assert noise.floor_of_mean(["dram.copy/a", "dram.copy/b"]) is None
    assert noise.floor_of_mean(["dram.copy/a", "dram.copy/unknown"]) is None
    assert {each.tier_two_sessions for each in foresee(noise)} == {None}


@pytest.mark.parametrize("processes", [5, 7, 8, 20])
def test_what_is_foreseen_is_what_comparisons_then_could_see(processes: int) -> None:
    # As many draws as give medians to a percent: comparisons of a case whose process sd is 3 %, on
    # a machine whose sessions differ by 2 %.
    draws = np.random.default_rng(7)
    sd, between, cases = 0.03, 0.02, ("dram.copy/a", "dram.copy/b")
    days = draws.normal(0, between, 60)
    reports = [
        session(
            number,
            {case: list(1e10 / np.exp(day + draws.normal(0, sd, 60))) for case in cases},
            started_at=f"2026-11-10T10:{number:02d}:00+00:00",
        )
        for number, day in enumerate(days)
    ]
    noise = make_noise(reports)
    (found,) = foresee(noise, [processes])
    assert (found.group, found.processes, found.metrics) == ("dram", processes, 2)
    floors = [noise.floor_of_mean([case]) for case in cases]
    floor = float(np.mean([each[0] for each in floors if each])), 59.0
    margin = np.full(4000, np.log1p(MARGINS["dram"]))

    def seen(sd: float, floor: tuple[float, float], tests: int, *, interleaved: bool) -> float:
        base, new = draws.normal(0, sd, (2, 4000, processes))
        both = np.full(4000, floor[0]), np.full(4000, floor[1])
        change = gate.change(base, new, interleaved=interleaved, floor=both)
        return float(np.median(gate.smallest_visible(change, margin, tests)))

    assert found.interleaved == pytest.approx(seen(sd, floor, 2, interleaved=True), rel=0.025)
    assert found.two_sessions == pytest.approx(seen(sd, floor, 2, interleaved=False), rel=0.025)
    mean = noise.floor_of_mean(cases)
    assert mean is not None
    half = sd / np.sqrt(2)
    assert found.tier_interleaved == pytest.approx(seen(half, mean, 1, interleaved=True), rel=0.025)
    assert found.tier_two_sessions == pytest.approx(
        seen(half, mean, 1, interleaved=False), rel=0.025
    )


def test_a_group_of_one_metric_has_no_tier_to_foresee() -> None:
    found = foresee(make_noise(sessions([0.0] * 6)), [10])
    assert [(each.metrics, each.tier_interleaved) for each in found] == [(1, None)]


def test_the_self_check_leaves_the_two_sessions_out_of_the_floor_they_are_held_against() -> None:
    # One session of eight is far off. A floor that knows it is too wide to see it by; the floor of
    # the six others sees it in NEW against each of the seven, and all others under a wide floor.
    found = self_check(sessions([0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0]))
    assert (found.pairs, found.quiet_alarms, found.floor_alarms) == (56, 7, 7)


def test_the_self_check_needs_five_sessions_beside_the_two() -> None:
    assert self_check(sessions([0.0] * 6)).floor_alarms is None
    assert self_check(sessions([0.0] * 7)).floor_alarms == 0
    few = sessions([0.0] * 7)
    for number in (0, 1):  # five sessions have the only metric, fewer without two of them
        few[number] = session(number, {"dram.copy/a": noisy(1, processes=4)})
    assert self_check(few).floor_alarms is None


def test_an_old_floor_says_its_own_command_again_into_a_new_file() -> None:
    command = ["calibrate", "my suites/gate.toml", "--dir", "~/kv", "--only", "nvme.*", "--resume"]
    for out in (["-o", "floors/h100.json"], ["--out=floors/h100.json"], ["-ofloors/h100.json"]):
        (fix,) = fixes(make_noise(sessions([0.0] * 6), [*command, *out, "--tp", "2"]))
        assert fix == (
            "kvbench calibrate 'my suites/gate.toml' --dir ~/kv --only 'nvme.*' --tp 2 "
            "-o floors/h100-2026-11-19.json"
        )


def test_a_floor_of_given_reports_says_the_suite_again() -> None:
    noise = make_noise(sessions([0.0] * 6))
    (fix,) = fixes(noise, "my floors/h100.json")
    assert fix is not None
    assert shlex.split(fix) == [
        *("kvbench", "calibrate", "ci", "-o"),
        "my floors/h100-2026-11-19.json",
    ]


def test_the_new_file_is_never_the_old_one() -> None:
    noise = make_noise(sessions([0.0] * 6))
    assert fixes(noise, "h-2026-10-01.json") == ["kvbench calibrate ci -o h-2026-11-19.json"]
    assert fixes(noise, "h-2026-11-19.json") == ["kvbench calibrate ci -o h-2026-11-19-2.json"]
    assert fixes(noise, simulated="noisy") == []


def test_a_floor_is_read_as_it_was_written_and_follows_its_schema(tmp_path: Path) -> None:
    noise = make_noise(sessions([0.0] * 6), ["calibrate", "ci"])
    path = tmp_path / "noise.json"
    path.write_bytes(encode_noise(noise))
    assert read_noise(path) == noise
    schema = noise_schema()
    top = schema["$defs"]["Noise"]
    written = msgspec.json.decode(encode_noise(noise))
    assert set(written) == set(top["properties"])
    assert {"suite", "sessions", "machine", "model", "metrics"} <= set(top["required"])
    floor = schema["$defs"]["Floor"]
    assert set(written["metrics"]["dram.copy/a"]) == set(floor["properties"])
    assert "sessions" in floor["required"]


def test_a_damaged_floor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    raw = msgspec.json.decode(encode_noise(make_noise(sessions([0.0] * 6))))
    raw["metrics"]["dram.copy/a"]["sessions"] = [0, 1]
    path.write_bytes(msgspec.json.encode(raw))
    with pytest.raises(UsageError, match="values of 6 sessions and names 2"):
        read_noise(path)
    path.write_bytes(msgspec.json.encode(raw | {"schema": "kvbench.noise/2"}))
    with pytest.raises(UsageError, match=r"has schema 'kvbench\.noise/2'"):
        read_noise(path)
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match="is no noise floor"):
        read_noise(path)

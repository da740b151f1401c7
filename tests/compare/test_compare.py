"""Two reports into verdicts and an exit status."""

import datetime as dt

import msgspec
import numpy as np
import pytest

from kvbench.compare.compare import Options, compare
from kvbench.compare.gate import change, decide
from kvbench.compare.metrics import parse_margins
from kvbench.compare.noise import make_noise
from kvbench.compare.record import Comparison, Design, Finding, Kind, Verdict
from kvbench.errors import NotComparableError, UsageError
from kvbench.machine import Storage
from kvbench.measure.result import Caution, Report, State
from tests.compare.samples import (
    LLAMA,
    MACHINE,
    make_report,
    make_row,
    noisy,
    one_session,
    two_sessions,
)

QUIET = Options(assume_quiet=True)


def finding(comparison: Comparison, name: str) -> Finding:
    return next(each for each in comparison.findings if each.id == name)


def verdicts(comparison: Comparison) -> dict[str, str]:
    return {each.id: each.verdict.value for each in comparison.findings}


def test_a_slower_row_turns_the_comparison_red_and_its_neighbours_stay() -> None:
    base = {"dram.copy/a": noisy(1), "dram.copy/b": noisy(2), "nvme.read/c": noisy(3)}
    new = {"dram.copy/a": noisy(4, slower=0.2), "dram.copy/b": noisy(5), "nvme.read/c": noisy(6)}
    found = compare(*one_session(base, new))
    assert found.exit_code == 3
    assert found.design is Design.PAIRED
    assert found.blocks == 10
    assert verdicts(found) == {
        "dram.copy/a": "SLOWER",
        "dram.copy/b": "SAME",
        "nvme.read/c": "SAME",
        "dram (tier)": "SLOWER",
    }
    slow = finding(found, "dram.copy/a")
    assert slow.change == pytest.approx(0.2, abs=0.02)
    assert slow.low is not None
    assert slow.high is not None
    assert slow.low < 0.2 < slow.high
    assert (slow.rank, slow.tests, slow.test) == (1, 3, "paired t, 10 pairs")


def test_a_row_that_became_faster_never_fails() -> None:
    found = compare(
        *one_session({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2, slower=-0.15)})
    )
    assert verdicts(found) == {"dram.copy/a": "FASTER"}
    assert (found.exit_code, found.reasons, found.confirm) == (0, [], None)


def test_latency_is_tested_with_its_own_margin_and_more_is_slower() -> None:
    tails = [0.010 * rate / 10e9 for rate in noisy(7)]
    reports = [
        make_report(
            [
                make_row(
                    "nvme.read/a", noisy(seed), p99_s=[each * by for each in tails], blocks=True
                )
            ],
            "s",
            side="env:",
        )
        for seed, by in ((1, 1.0), (2, 1.5))
    ]
    found = compare(reports[0], reports[1])
    assert verdicts(found) == {"nvme.read/a": "SAME", "nvme.read/a p99": "SLOWER"}
    tail = finding(found, "nvme.read/a p99")
    assert (tail.group, tail.margin, tail.kind) == ("p99", 0.10, Kind.P99)
    assert tail.change == pytest.approx(0.5)
    assert tail.base == pytest.approx(0.010, rel=0.05)


def test_two_sessions_without_a_floor_prove_nothing_and_say_so() -> None:
    base, new = {"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2, slower=0.5)}
    found = compare(*two_sessions(base, new))
    only = finding(found, "dram.copy/a")
    assert (found.design, found.exit_code) == (Design.UNKNOWN, 0)
    assert "as alike as processes" in str(found.sight[0].reason)
    assert only.verdict is Verdict.UNSURE
    assert only.reason == "looks slower; two sessions without a noise floor cannot show it"
    assert found.confirm is not None  # what looks slower can be settled
    quiet = compare(*two_sessions(base, new), options=QUIET)
    assert (quiet.design, quiet.exit_code) == (Design.QUIET, 3)


def sessions(offset_sd: float, *, count: int = 8) -> list[tuple[str, Report]]:
    offsets = offset_sd * np.random.default_rng(20).standard_normal(count)
    return [
        (
            f"{number}.json",
            make_report(
                [
                    make_row("dram.copy/a", noisy(100 + number, slower=float(offset))),
                    make_row("dram.copy/b", noisy(200 + number, slower=float(offset))),
                ],
                f"session {number}",
            ),
        )
        for number, offset in enumerate(offsets)
    ]


def test_a_noise_floor_swallows_what_sessions_differ_by_and_shows_what_is_more() -> None:
    noise = make_noise(sessions(0.05))
    day = {"dram.copy/a": noisy(1), "dram.copy/b": noisy(2)}
    other = {"dram.copy/a": noisy(3, slower=0.08), "dram.copy/b": noisy(4, slower=0.08)}
    assert compare(*two_sessions(day, other), options=QUIET).exit_code == 3
    floored = compare(*two_sessions(day, other), options=Options(noise=noise, noise_path="n"))
    assert (floored.design, floored.exit_code) == (Design.FLOOR, 0)
    broken = {name: noisy(5, slower=2.0) for name in day}
    slow = compare(*two_sessions(day, broken), options=Options(noise=noise, noise_path="n"))
    assert slow.exit_code == 3
    only = finding(slow, "dram.copy/a")
    assert only.floor_sd is not None
    assert only.floor_sd > 0.03
    assert only.test == "Welch t, 10 and 10 processes and noise floor"


def test_a_row_that_was_not_calibrated_is_unsure() -> None:
    noise = make_noise(sessions(0.01))
    base = {"dram.copy/a": noisy(1), "dram.copy/c": noisy(2)}
    new = {"dram.copy/a": noisy(3), "dram.copy/c": noisy(4, slower=0.5)}
    found = compare(*two_sessions(base, new), options=Options(noise=noise))
    assert verdicts(found) == {"dram.copy/a": "SAME", "dram.copy/c": "UNSURE"}
    assert finding(found, "dram.copy/c").reason == "not in the noise floor: calibrate again"
    assert found.exit_code == 0


def test_a_noise_floor_ages_and_belongs_to_one_machine() -> None:
    noise = make_noise(sessions(0.01))
    base, new = two_sessions({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2)})
    later = dt.datetime.fromisoformat(new.started_at) + dt.timedelta(days=31)
    new.started_at = later.isoformat()
    new.machine = base.machine = msgspec.structs.replace(
        MACHINE, os=msgspec.structs.replace(MACHINE.os, kernel="6.8")
    )
    found = compare(base, new, options=Options(noise=noise, noise_path="n.json"))
    old = [each.message for each in found.conditions if each.code == "old_noise"]
    assert old == [
        "the noise floor is 31 days old",
        "the noise floor is of kernel 6.1, NEW has 6.8",
    ]
    new.machine = base.machine = msgspec.structs.replace(MACHINE, fingerprint="other")
    forced = compare(base, new, options=Options(noise=noise, noise_path="n.json", force=True))
    assert forced.differences == ["the noise floor n.json is of another machine (ab)"]
    with pytest.raises(NotComparableError, match=r"noise floor n.json is of another machine"):
        compare(base, new, options=Options(noise=noise, noise_path="n.json"))


def test_too_few_processes_give_no_verdict_and_the_reason() -> None:
    base = {"dram.copy/a": noisy(1, processes=3)}
    found = compare(*two_sessions(base, {"dram.copy/a": noisy(2)}), options=QUIET)
    only = finding(found, "dram.copy/a")
    assert (only.verdict, only.mde) == (Verdict.UNSURE, None)
    assert only.reason == "3 and 10 processes: 5 a side needed"
    assert found.sight[0].reason == only.reason


def test_a_row_that_vanished_fails_and_a_new_one_does_not() -> None:
    base = {"dram.copy/a": noisy(1), "dram.copy/gone": noisy(2), "nvme.read/broken": noisy(3)}
    before, after = two_sessions(base, {"dram.copy/a": noisy(4), "dram.copy/new": noisy(5)})
    failed = make_row("nvme.read/broken", noisy(6), state=State.FAILED, reason="disk full")
    failed.bytes_per_s = None
    after.rows.append(failed)
    found = compare(before, after, options=QUIET)
    assert found.exit_code == 4
    assert verdicts(found) == {
        "dram.copy/a": "SAME",
        "dram.copy/gone": "MISSING",
        "nvme.read/broken": "MISSING",
        "dram.copy/new": "NEW",
    }
    assert finding(found, "nvme.read/broken").reason == "failed in NEW: disk full"
    assert found.reasons == ["2 of BASE missing from NEW"]


def test_a_percentile_without_samples_is_not_a_vanished_row() -> None:
    before, after = two_sessions({}, {"nvme.read/a": noisy(2)})
    before.rows.append(make_row("nvme.read/a", noisy(1), p99_s=[0.01] * 10))
    found = compare(before, after, options=QUIET)
    assert verdicts(found) == {"nvme.read/a": "SAME", "nvme.read/a p99": "UNSURE"}
    assert found.exit_code == 0


def test_another_definition_is_not_a_regression_and_another_path_fails() -> None:
    before, after = two_sessions(
        {"dram.copy/a": noisy(1), "nvme.read/b": noisy(2), "dram.copy/c": noisy(5)},
        {"dram.copy/a": noisy(3, slower=1), "nvme.read/b": noisy(4), "dram.copy/c": noisy(6)},
    )
    after.rows[0].definition_hash = "other"
    found = compare(before, after, options=QUIET)
    assert finding(found, "dram.copy/a").verdict is Verdict.NOT_COMPARABLE
    assert found.exit_code == 0
    before.rows[1].path_observed, after.rows[1].path_observed = "GDS", "POSIX, O_DIRECT"
    found = compare(before, after, options=QUIET)
    assert finding(found, "nvme.read/b").reason == "BASE went by GDS, NEW by POSIX, O_DIRECT"
    assert found.exit_code == 4


def test_nothing_in_common_is_not_a_pass() -> None:
    before, after = two_sessions({"dram.copy/a": noisy(1)}, {"dram.copy/b": noisy(2)})
    before.rows = []
    found = compare(before, after, options=QUIET)
    assert (found.exit_code, found.reasons) == (
        4,
        ["no metric of the two reports can be compared"],
    )


def test_several_reasons_are_all_told_and_the_gravest_is_the_status() -> None:
    base = {"dram.copy/a": noisy(1), "dram.copy/gone": noisy(2), "nvme.read/c": noisy(3, sd=0.5)}
    new = {"dram.copy/a": noisy(4, slower=0.3), "nvme.read/c": noisy(5, sd=0.5)}
    options = Options(assume_quiet=True, strict=True)
    found = compare(*two_sessions(base, new), options=options)
    assert found.exit_code == 3
    assert found.reasons == [
        "1 slower than allowed",
        "1 of BASE missing from NEW",
        "1 unsure, and --strict",
    ]


def test_too_few_processes_everywhere_are_no_pass() -> None:
    few = {"dram.copy/a": noisy(1, processes=3)}
    found = compare(
        *two_sessions(few, {"dram.copy/a": noisy(2, slower=3, processes=3)}), options=QUIET
    )
    assert found.exit_code == 4
    assert found.reasons == [
        "no metric of the two reports can be compared: 3 and 3 processes: 5 a side needed"
    ]


def test_a_case_that_only_the_new_side_of_ab_cannot_do_is_missing() -> None:
    base, new = one_session(
        {"dram.copy/a": noisy(1), "nvme.read/b": noisy(2), "nvme.read/c": noisy(3)},
        {"dram.copy/a": noisy(4), "nvme.read/b": noisy(5), "nvme.read/c": noisy(6)},
    )
    # As kvbench.measure.pairs leaves them: the side that broke says why, the other names it.
    for report, at, code, reason in (
        (new, 1, "io_error", "Input/output error"),
        (base, 1, "other_side", "side B has no result"),
        (base, 2, "io_error", "Input/output error"),
        (new, 2, "other_side", "side A has no result"),
    ):
        row = report.rows[at]
        row.state, row.reason_code, row.reason = State.FAILED, code, reason
        row.bytes_per_s = None
    found = compare(base, new)
    assert verdicts(found) == {
        "dram.copy/a": "SAME",
        "nvme.read/b": "MISSING",
        "nvme.read/c": "NEW",
    }
    assert (found.exit_code, found.reasons) == (4, ["1 of BASE missing from NEW"])
    assert finding(found, "nvme.read/b").reason == "failed in NEW: Input/output error"


def test_a_row_that_vanished_with_its_latency_counts_once() -> None:
    before, after = two_sessions({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2)})
    before.rows.append(make_row("nvme.read/b", noisy(3), p99_s=[0.01] * 10))
    found = compare(before, after, options=QUIET)
    assert found.reasons == ["1 of BASE missing from NEW"]


def test_unsure_fails_only_when_strict() -> None:
    reports = two_sessions({"nvme.read/a": noisy(1, sd=0.5)}, {"nvme.read/a": noisy(2, sd=0.5)})
    assert compare(*reports, options=QUIET).exit_code == 0
    strict = compare(*reports, options=Options(assume_quiet=True, strict=True))
    assert strict.exit_code == 5
    assert [each.fails for each in strict.findings] == [True]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        (
            "machine",
            msgspec.structs.replace(
                MACHINE, cpu=msgspec.structs.replace(MACHINE.cpu, model="another")
            ),
            "CPU: test CPU in BASE, another in NEW",
        ),
        (
            "model",
            msgspec.structs.replace(LLAMA, block_size=32),
            "tokens in a block: 16 in BASE, 32 in NEW",
        ),
        ("simulated", "noisy", "devices: measured in BASE, simulated .noisy. in NEW"),
    ],
)
def test_another_machine_or_model_is_refused_by_name_unless_forced(
    field: str, value: object, named: str
) -> None:
    base, new = two_sessions({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2)})
    setattr(new, field, value)
    with pytest.raises(NotComparableError, match=named) as caught:
        compare(base, new, options=QUIET)
    assert caught.value.exit_code == 4
    forced = compare(base, new, options=Options(assume_quiet=True, force=True))
    assert len(forced.differences) >= 1


def test_a_report_slowed_on_purpose_is_no_baseline_but_can_be_judged() -> None:
    base, new = two_sessions({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2, slower=0.2)})
    new.inject = {"dram.*": 0.2}
    assert compare(base, new, options=QUIET).new.inject == {"dram.*": 0.2}
    with pytest.raises(UsageError, match=r"slowed on purpose.*no baseline"):
        compare(new, base, options=QUIET)


def test_a_report_is_not_held_against_itself() -> None:
    base, _ = two_sessions({"dram.copy/a": noisy(1)}, {})
    with pytest.raises(UsageError, match="one session, not two"):
        compare(base, base)


def test_pairs_are_matched_by_block_whatever_the_order_of_processes() -> None:
    drift = np.linspace(0, 1, 10)  # a factor of e over the session, the same for both sides
    base = {"dram.copy/a": [float(10e9 * np.exp(-each)) for each in drift]}
    new = {"dram.copy/a": [float(10e9 * np.exp(-each - 0.1)) for each in drift]}
    one, two = one_session(base, new)
    two.rows[0].processes.reverse()
    found = compare(one, two)
    assert finding(found, "dram.copy/a").verdict is Verdict.SLOWER
    assert finding(found, "dram.copy/a").change == pytest.approx(np.expm1(0.1))
    two.rows[0].processes.pop()  # one block lost: the others are still pairs
    assert finding(compare(one, two), "dram.copy/a").test == "exact: nothing varies"
    assert compare(one, two).blocks == 9


def test_few_pairs_are_tested_as_interleaved_processes() -> None:
    found = compare(
        *one_session({"dram.copy/a": noisy(1, processes=6)}, {"dram.copy/a": noisy(2, processes=6)})
    )
    assert found.design is Design.INTERLEAVED
    assert finding(found, "dram.copy/a").test == "Welch t, 6 and 6 processes"


def test_a_row_that_failed_early_does_not_make_the_others_too_few() -> None:
    base, new = one_session(
        {"dram.copy/a": noisy(1), "dram.copy/b": noisy(2)},
        {"dram.copy/a": noisy(3), "dram.copy/b": noisy(4)},
    )
    for report in (base, new):
        report.rows[1].state, report.rows[1].bytes_per_s = State.FAILED, None
        report.rows[1].processes = report.rows[1].processes[:2]
    assert compare(base, new).design is Design.PAIRED


def test_a_whole_tier_is_seen_where_no_single_metric_is() -> None:
    cases = [f"nvme.read/{number}" for number in range(8)]
    base = {case: noisy(300 + at, sd=0.04) for at, case in enumerate(cases)}
    new = {case: noisy(400 + at, sd=0.04, slower=0.09) for at, case in enumerate(cases)}
    found = compare(*one_session(base, new))
    assert finding(found, "nvme (tier)").verdict is Verdict.SLOWER
    assert len(finding(found, "nvme (tier)").members) == 8
    sight = found.sight[0]
    assert sight.tier is not None
    assert sight.metric is not None
    assert sight.tier < sight.metric


def test_margins_are_the_users() -> None:
    reports = one_session({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2, slower=0.08)})
    assert compare(*reports).exit_code == 3
    assert compare(*reports, options=Options(margins=parse_margins(["dram=20%"]))).exit_code == 0
    assert parse_margins(["0.5"])["p99"] == 0.5
    for wrong in ("cpu=3%", "dram=-1%", "dram", "dram=abc", "nan", "5", "nvme=8", "100%"):
        with pytest.raises(UsageError, match="--margin"):
            parse_margins([wrong])


def test_only_restricts_both_sides_and_matching_nothing_is_an_error() -> None:
    base = {"dram.copy/a": noisy(1), "nvme.read/gone": noisy(2)}
    reports = two_sessions(base, {"dram.copy/a": noisy(3)})
    options = Options(assume_quiet=True, only=["dram.*"])
    assert compare(*reports, options=options).exit_code == 0
    with pytest.raises(UsageError, match=r"--only 'peer\.\*' matches no row"):
        compare(*reports, options=Options(only=["peer.*"]))


def test_what_differs_without_being_identity_is_named() -> None:
    base, new = two_sessions({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2)})
    new.machine = msgspec.structs.replace(
        MACHINE, os=msgspec.structs.replace(MACHINE.os, kernel="6.8")
    )
    new.plan = {"processes": 10, "seed": 99, "time_limit_s": 2.0}
    new.rows[0].warnings.append(Caution(code="no_steady_state", message="moving", fix="longer"))
    new.rows[0].processes = [
        msgspec.structs.replace(each, slow_fraction=0.09) for each in new.rows[0].processes
    ]
    found = {each.code: each.message for each in compare(base, new, options=QUIET).conditions}
    assert "GPU link" not in found
    assert found["kernel"] == "kernel: 6.1 in BASE, 6.8 in NEW"
    assert found["plan"] == "other plans: time_limit_s - in BASE, 2.0 in NEW"  # the seed may differ
    assert found["no_steady_state"] == "moving (0 metrics of BASE, 1 of NEW)"
    assert found["slow_mode"].startswith("dram.copy/a: 9% of samples in a slow mode, 0% in BASE")


def test_a_link_that_became_narrower_and_a_lost_gds_are_named() -> None:
    base, new = two_sessions({"dram.copy/a": noisy(1)}, {"dram.copy/a": noisy(2)})
    drives = [
        Storage(device_kind="nvme", link_generation=4, link_width=width, gds=gds)
        for width, gds in ((4, "nvidia-fs"), (2, "compat"))
    ]
    for report, drive in zip((base, new), drives, strict=True):
        report.machine = msgspec.structs.replace(MACHINE, storage=drive)
    found = {each.code: each.message for each in compare(base, new, options=QUIET).conditions}
    assert found["drive_link"] == "drive link: Gen4 x4 in BASE, Gen4 x2 in NEW"
    assert found["gpudirect_storage"] == "GPUDirect Storage: nvidia-fs in BASE, compat in NEW"


def test_slow_modes_of_many_rows_are_one_condition() -> None:
    cases = {f"dram.copy/{at}": noisy(at) for at in range(9)}
    base, new = two_sessions(cases, cases)
    for at, row in enumerate(new.rows):
        share = 0.05 + 0.01 * at
        row.processes = [
            msgspec.structs.replace(each, slow_fraction=share) for each in row.processes
        ]
    conditions = compare(base, new, options=QUIET).conditions
    (only,) = (each.message for each in conditions if each.code == "slow_mode")
    assert only.startswith("dram.copy/8: 13% of samples in a slow mode, 0% in BASE; so 8 others")


def test_reports_are_judged_by_the_arithmetic_whose_operating_characteristics_are_known() -> None:
    # benchmarks/operating_characteristics.py drives `gate` on arrays; here the same numbers go the
    # whole way, through rows, matching and families.
    random = np.random.default_rng(21)
    groups = {"hbm": 8, "dram": 8, "nvme": 8, "peer": 6}
    names = [f"{group}.read/{at}" for group, size in groups.items() for at in range(size)]
    base, new = 0.02 * random.standard_normal((2, len(names), 10))
    new[:3] += 0.08
    new[16:24] += 0.07
    sides = [
        {name: [float(10e9 * np.exp(-y)) for y in ys] for name, ys in zip(names, side, strict=True)}
        for side in (base, new)
    ]
    found = compare(*one_session(sides[0], sides[1]))
    margins = [parse_margins([])[name.partition(".")[0]] for name in names]
    metrics = decide(change(base, new, interleaved=True), np.log1p(margins))
    means = [
        np.stack([side[at : at + size].mean(0) for at, size in ((0, 8), (8, 8), (16, 8), (24, 6))])
        for side in (base, new)
    ]
    tier_margins = np.log1p([parse_margins([])[group] for group in groups])
    tiers = decide(change(means[0], means[1], interleaved=True), tier_margins)
    for at, name in enumerate(names):
        one = finding(found, name)
        assert one.p_slower_adjusted == pytest.approx(metrics.p_slower_adjusted[at])
        assert (one.verdict is Verdict.SLOWER) == metrics.slower[at]
    for at, group in enumerate(groups):
        one = finding(found, f"{group} (tier)")
        assert one.p_slower_adjusted == pytest.approx(tiers.p_slower_adjusted[at])
        assert (one.verdict is Verdict.SLOWER) == tiers.slower[at]
    assert metrics.slower.sum() > 2
    assert tiers.slower.tolist() == [True, False, True, False]

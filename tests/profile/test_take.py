"""A case is recorded in a process of its own, and what goes wrong there is one line here."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from kvbench.errors import NothingMeasuredError, UsageError
from kvbench.measure.runner import Setting
from kvbench.measure.suite import Case
from kvbench.profile import take as taking
from kvbench.profile.slices import Recording
from kvbench.profile.summary import Summary, summarise
from kvbench.profile.take import take
from kvbench.profile.trace import chrome_trace
from kvbench.units import MIB
from kvbench_suites.dram import COPY
from kvbench_suites.nvme import READ
from tests.profile.bodies import STEP_BYTES
from tests.profile.trace_format import faults, parts_ns, requests


@pytest.fixture(autouse=True)
def bodies_of_these_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def case(name: str, *, stream: bool = False) -> Case:
    operation = replace(COPY, body=f"tests.profile.bodies:{name}", stream=stream)
    return operation.case({"block_bytes": MIB, "threads": 1})


def summary_of(recording: Recording) -> Summary:
    trace = chrome_trace(recording, {"case": "a"})
    assert faults(trace) == []
    summary = summarise(trace)
    assert {part: round(each * 1e9) for part, each in summary.parts_s.items()} == parts_ns(trace)
    return summary


def test_steps_are_recorded_with_their_copies_and_python_in_between(setting: Setting) -> None:
    phases: list[str] = []
    recording = take(case("Stepping"), setting, 0.3, on_phase=phases.append)
    summary = summary_of(recording)
    assert phases == ["set up", "measure", "verify"]
    assert recording.verified_bytes == STEP_BYTES
    assert recording.path_observed == "host memory"
    assert 0.3 <= summary.wall_s < 1
    names = [each.name for each in recording.slices]
    assert names.count("move") == 3 * names.count("step")
    assert summary.payload_bytes == names.count("step") * STEP_BYTES
    # 1 ms of each 1.5 ms, and more: a sleep is never shorter.
    assert summary.parts_s["copy"] > 0.6 * summary.wall_s
    assert summary.parts_s["python"] > 0.01 * summary.wall_s
    assert summary.parts_s["idle"] == 0


def test_lanes_are_recorded_on_their_own_threads_for_as_long_as_the_window(
    setting: Setting,
) -> None:
    recording = take(case("Streaming", stream=True), setting, 0.3)
    summary = summary_of(recording)
    names = [track.thread for track in recording.tracks]
    assert sorted(names) == ["lane-0", "lane-1", "lane-2", "main"]
    for thread in summary.threads:
        if thread.name != "main":
            assert thread.parts_s["idle"] == 0, "a lane is at work from before to after the window"
    steps = [each for each in recording.slices if each.name == "operate"]
    assert summary.payload_bytes == 4096 * sum(each.cut in {"", "start"} for each in steps)
    assert summary.payload_bytes > 0


def test_a_store_that_a_body_owns_is_recorded_with_a_line_for_each_request(
    setting: Setting,
) -> None:
    recording = take(case("Storing"), setting, 0.3)
    summary = summary_of(recording)
    steps = [each for each in recording.slices if each.name == "step"]
    lines = requests(chrome_trace(recording, {"case": "a"}))
    whole = [line for line in lines if not any("cut" in span[3] for span in line)]
    assert len(whole) >= 6 * (len(steps) - 2) > 6, "only the first and last step may be cut"
    for line in whole:
        (queued, read, get) = line
        assert [span[0] for span in line] == ["queued", "read", "get"]
        assert get[1] == queued[1] <= queued[2] == read[1] <= read[2] <= get[2]
        assert get[3]["bytes"] == STEP_BYTES
        assert len({span[3]["request"] for span in line}) == 1
    gets = sorted(line[2][1:3] for line in whole)
    assert any(later[0] < earlier[1] for earlier, later in pairwise(gets)), "requests overlap"
    assert [each.name for each in summary.requests] == ["get", "queued", "read"]
    workers = [thread.name for thread in summary.threads if thread.name.startswith("nvme")]
    assert sorted(workers) == ["nvme_0", "nvme_1"]
    assert summary.parts_s["io"] > 0.5 * summary.wall_s, "the workers' own spans are I/O"


@pytest.mark.parametrize(
    ("name", "stream", "reason"),
    [
        ("Absent", False, r"no such memory here, seed 7$"),
        ("Failing", True, r"Input/output error \(read.dat\)$"),
        ("Crashing", False, r"worker exited 1 in “measure”: ZeroDivisionError: a bug$"),
        ("Dying", False, r"worker ended by SIGABRT in “measure”"),
    ],
)
def test_what_ends_a_case_is_said_in_one_line(
    setting: Setting, name: str, stream: bool, reason: str
) -> None:
    with pytest.raises(NothingMeasuredError, match=f"^dram.copy.*: {reason}") as caught:
        take(case(name, stream=stream), setting, 0.5)
    assert "\n" not in str(caught.value)


def test_a_process_that_says_nothing_is_ended_at_its_deadline(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking, "MEASURE_GRACE_S", 0.3)
    with pytest.raises(NothingMeasuredError, match="nothing came from “measure” within"):
        take(case("Hanging"), setting, 0.1)


def test_a_case_that_this_machine_cannot_run_is_not_started(setting: Setting) -> None:
    pinned = COPY.case({"block_bytes": MIB, "threads": 1, "memory": "pinned"})
    if setting.machine.has_gpu:
        pytest.skip("there is a GPU")
    with pytest.raises(NothingMeasuredError, match="cannot run here: memory is pinned by CUDA"):
        take(pinned, setting, 0.1)


def test_a_case_beside_another_is_refused(setting: Setting) -> None:
    both = replace(case("Stepping"), beside=READ.case({"block_bytes": MIB, "queue_depth": 1}))
    with pytest.raises(UsageError, match="profile one of the two alone"):
        take(both, setting, 0.1)

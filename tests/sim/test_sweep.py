"""Many runs: the same figures wherever they are computed, and every run a result."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvbench.sim.columns import Columns
from kvbench.sim.sweep import Job, load, run_jobs, save
from tests.reports.simulations import SCENARIO
from tests.sim import fakes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _workers_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("KVBENCH_NO_NUMBA", "1")  # so that workers start at once


def trace(count: int = 40) -> Columns:
    """Requests of two blocks each, of which the first is shared."""
    ids = np.stack([np.zeros(count), np.arange(1, count + 1)], axis=1).astype(np.int32)
    return Columns(
        name="two blocks each",
        digest="00000000000000aa",
        block_tokens=512,
        arrival_s=np.arange(count, dtype=np.float64),
        input_tokens=np.full(count, 1_000, np.int32),
        output_tokens=np.full(count, 10, np.int32),
        starts=2 * np.arange(count + 1, dtype=np.int64),
        ids=ids.ravel(),
        unique_blocks=count + 1,
        notes=("made up",),
    )


def jobs(count: int, **options: object) -> list[Job]:
    """One for each seed."""
    return [
        msgspec.structs.replace(
            Job(scenario=msgspec.structs.replace(SCENARIO, seed=seed)), **options
        )
        for seed in range(count)
    ]


def test_a_sweep_gives_the_same_figures_in_the_same_order_on_any_number_of_processes() -> None:
    wanted = jobs(5, requests=30, rate_scale=2.0, request=1, dollars_per_hour=3.0)

    here = run_jobs(trace(), wanted, fakes.quick, workers=1)
    there = run_jobs(trace(), wanted, fakes.quick, workers=3)

    assert msgspec.json.encode(here) == msgspec.json.encode(there)
    means = [done.summary.ttft_s.mean for done in here if done.summary and done.summary.ttft_s.mean]
    assert means == sorted(set(means))  # each seed is slower than the one before
    assert len(means) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_fails_is_a_result_with_its_reason(workers: int) -> None:
    done = run_jobs(trace(), jobs(4), fakes.refusing, workers=workers)

    assert [each.reason for each in done] == ["", "", "no such tier", ""]
    assert [each.summary is None for each in done] == [False, False, True, False]


def test_a_run_whose_process_is_killed_is_a_result_and_the_others_go_on() -> None:
    done = run_jobs(trace(), jobs(5), fakes.dying, workers=2)

    assert "SIGKILL" in done[2].reason
    assert [each.summary is None for each in done] == [False, False, True, False, False]


def test_a_bug_in_a_worker_is_raised_with_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug of ours"):
        run_jobs(trace(), jobs(4), fakes.wrong, workers=2)


def test_more_requests_than_the_trace_has_are_refused() -> None:
    (done,) = run_jobs(trace(), jobs(1, requests=41), fakes.quick)

    assert "41" in done.reason
    assert "40 requests" in done.reason


def test_a_request_that_is_not_there_is_refused() -> None:
    (done,) = run_jobs(trace(), jobs(1, request=40), fakes.quick)

    assert "0 to 39" in done.reason


def test_a_trace_that_workers_map_is_the_trace_and_writing_to_it_changes_no_file(
    tmp_path: Path,
) -> None:
    save(trace(), tmp_path)
    mapped = load(tmp_path)
    mapped.ids[:] = 7

    again = load(tmp_path)
    for name in ("arrival_s", "input_tokens", "output_tokens", "starts", "ids"):
        assert type(getattr(again, name)) is np.ndarray
        np.testing.assert_array_equal(getattr(again, name), getattr(trace(), name))
    assert again.notes == trace().notes
    assert (again.name, again.digest, again.unique_blocks) == (
        "two blocks each",
        trace().digest,
        41,
    )


INTERRUPTED = """
import sys
from tests.sim import fakes
from tests.sim.test_sweep import jobs, trace
from kvbench.sim.sweep import run_jobs
if __name__ == "__main__":
    run_jobs(trace(), jobs(4), fakes.endless, workers=int(sys.argv[1]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_runs_that_never_end_and_leaves_no_process_behind(
    workers: int, tmp_path: Path
) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(INTERRUPTED, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, str(script), str(workers)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while len(began := list(tmp_path.glob("began-*"))) < workers:
                assert time.monotonic() < deadline
                assert process.poll() is None
                os.sched_yield()
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode != 0
    assert said.count("Traceback") == 1  # the parent's; workers say nothing
    for path in began:
        assert not Path("/proc", path.name.rpartition("-")[2]).exists()

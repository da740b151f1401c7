"""The GitHub action, as far as it can be held true without GitHub; scripts/gate for real.

That the gate goes red and stays green is shown by scripts/gate_selftest, which CI runs.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
SCRIPTS = [step for step in STEPS if "run" in step]


def test_inputs_that_steps_use_are_declared_and_the_other_way_round() -> None:
    used = set(re.findall(r"inputs\.([\w-]+)", str(STEPS)))
    assert used == set(ACTION["inputs"])


@pytest.mark.parametrize("step", SCRIPTS, ids=lambda step: str(step["name"]))
def test_no_text_of_a_user_or_a_pull_request_becomes_part_of_a_script(step: dict[str, Any]) -> None:
    assert "${{" not in step["run"]  # it comes through the environment, where it stays a text
    named = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"]))
    given = set(step.get("env", {}))
    of_the_runner = {"RUNNER_TEMP", "GITHUB_PATH", "GITHUB_REPOSITORY", "GITHUB_OUTPUT"}
    assert named <= given | of_the_runner


@pytest.mark.parametrize("step", SCRIPTS, ids=lambda step: str(step["name"]))
def test_every_script_is_bash(step: dict[str, Any]) -> None:
    assert step["shell"] == "bash"
    subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


def test_every_setting_that_the_action_hands_on_is_one_of_the_gate() -> None:
    (measure,) = (step for step in STEPS if step.get("id") == "gate")
    gate = (ROOT / "scripts" / "gate").read_text(encoding="utf-8")
    for name in measure["env"]:
        if name.startswith("KVBENCH_"):
            assert re.search(rf"\b{name}\b", gate), name


def gate(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    bin_path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / "scripts" / "gate"],
        cwd=folder,
        env={**os.environ, "PATH": bin_path, "KVBENCH_OUT": "out dir", **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


ONE_CASE = "--simulate noisy --only 'dram.copy/pageable/2MiB/t1' --processes 5"


def test_no_baseline_yet_is_no_failure_and_says_what_could_become_it(tmp_path: Path) -> None:
    output = tmp_path / "output"
    done = gate(
        tmp_path,
        KVBENCH_SUITE="dram",
        KVBENCH_RUN_ARGS=ONE_CASE,
        KVBENCH_BASELINE="none.json",
        GITHUB_OUTPUT=str(output),
    )
    assert done.returncode == 0, done.stderr
    assert "no baseline yet" in done.stdout
    assert "verdict=no-baseline" in output.read_text(encoding="utf-8")
    assert (tmp_path / "out dir" / "report.json").exists()


def test_two_sides_are_measured_in_turns_and_everything_is_written(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    done = gate(
        tmp_path,
        KVBENCH_A="env:",
        KVBENCH_B="env:A='x y'",
        KVBENCH_SUITE="dram",
        KVBENCH_RUN_ARGS=f"{ONE_CASE} --inject '*=+60%'",
        KVBENCH_COMPARE_ARGS="--margin 8%",
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY=str(summary),
    )
    assert done.returncode == 3, done.stderr
    assert "::error title=" in done.stdout
    assert "SLOWER" in summary.read_text(encoding="utf-8")
    names = {path.name for path in (tmp_path / "out dir").iterdir()}
    assert {"comment.md", "junit.xml", "comparison.json", "report.new.json", "bmf.json"} <= names


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"KVBENCH_RUN_ARGS": "--no-such-option"}, 2),
        ({"KVBENCH_RUN_ARGS": ONE_CASE, "KVBENCH_COMPARE_ARGS": "--margin nonsense"}, 2),
    ],
)
def test_wrong_options_fail_the_job_and_are_no_verdict(
    settings: dict[str, str], status: int, tmp_path: Path
) -> None:
    shutil.copy(ROOT / "reports" / "baselines" / "gate.json", tmp_path / "base.json")
    done = gate(tmp_path, KVBENCH_SUITE="dram", KVBENCH_BASELINE="base.json", **settings)
    assert done.returncode == status
    assert not (tmp_path / "out dir" / "comment.md").exists()

"""The GitHub action, as far as it can be held true without GitHub; scripts/gate for real.

The steps that speak with GitHub run against a stand-in for `gh` that notes what it is asked. That
the gate goes red and stays green is shown by scripts/gate_selftest, which CI runs.
"""

import json
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


# Answers with what the environment says, after jq where a filter is given, and notes its arguments.
GH = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$GH_LOG"
case " $* " in *" $GH_FAILS "*) echo 'HTTP 403' >&2; exit 1 ;; esac
case "$1 $2" in
  "run list") echo "$GH_RUN" ;;
  "run download") cp "$GH_REPORT" "${@: -1}/report.json" ;;
  api\\ *) if [ "$3" = --paginate ]; then jq -r "$5" <<<"$GH_COMMENTS"; fi ;;
esac
"""


def step(name: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script as GitHub does, in `folder`, with the stand-in for gh on the PATH."""
    (script,) = (each for each in SCRIPTS if each["name"] == name)
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "gh").write_text(GH, encoding="utf-8")
    (tools / "gh").chmod(0o755)
    settings = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "GH_LOG": str(folder / "log"),
        "GH_FAILS": "nothing",
        "GITHUB_REPOSITORY": "owner/name",
        "GITHUB_OUTPUT": str(folder / "output"),
        "RUNNER_TEMP": str(folder),
    }
    return subprocess.run(
        ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script["run"]],
        cwd=folder,
        env=settings | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


COMMENT = {"PR": "7", "ID": "", "SUITE": "ci", "ARTIFACT": "kvbench", "GH_COMMENTS": "[]"}


@pytest.fixture
def commented(tmp_path: Path) -> Path:
    """A checkout in which the gate has left something to comment."""
    (tmp_path / "kvbench-out").mkdir()
    (tmp_path / "kvbench-out" / "comment.md").write_text("## passed\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("fails", ["--paginate", "POST"])
def test_a_token_that_may_not_comment_does_not_turn_the_job_red(
    fails: str, commented: Path
) -> None:
    done = step("Comment", commented, **COMMENT, GH_FAILS=fails)
    assert done.returncode == 0, done.stderr
    assert "::notice title=kvbench::no comment: the token may not" in done.stdout


def test_a_runner_without_gh_does_not_turn_the_job_red(commented: Path) -> None:
    done = step("Comment", commented, **COMMENT, PATH=str(commented / "nowhere"))
    assert done.returncode == 0, done.stderr
    assert "::notice title=kvbench::no comment: this runner has no gh" in done.stdout


@pytest.mark.skipif(shutil.which("jq") is None, reason="the stand-in for gh needs jq")
@pytest.mark.parametrize(
    ("kind", "mark", "asked"),
    [
        ("Bot", "<!-- kvbench ci kvbench -->", "--method PATCH repos/owner/name/issues/comments/5"),
        ("User", "<!-- kvbench ci kvbench -->", "--method POST repos/owner/name/issues/7/comments"),
        ("Bot", "> <!-- kvbench ci kvbench -->", "--method POST"),
        ("Bot", "<!-- kvbench ci other -->", "--method POST"),
    ],
)
def test_only_the_actions_own_comment_of_the_same_id_is_rewritten(
    kind: str, mark: str, asked: str, commented: Path
) -> None:
    found = [{"id": 5, "user": {"type": kind}, "body": f"{mark}\n## slower"}]
    done = step("Comment", commented, **COMMENT | {"GH_COMMENTS": json.dumps(found)})
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert asked in (commented / "log").read_text(encoding="utf-8")
    body = (commented / "kvbench-comment.md").read_text(encoding="utf-8")
    assert body == "<!-- kvbench ci kvbench -->\n## passed\n"


def test_the_comment_is_made_after_a_refused_comparison_too() -> None:
    (comment,) = (step for step in STEPS if step["name"] == "Comment")
    assert comment["if"].startswith("always() && ")


BASELINE = {"ARTIFACT": "kvbench", "WORKFLOW": "tiers", "BRANCH": "main", "GH_RUN": "11"}


def test_the_baseline_is_of_a_push_and_leaves_the_checkout_alone(tmp_path: Path) -> None:
    report = tmp_path / "theirs.json"
    report.write_text("{}", encoding="utf-8")
    before = set(tmp_path.glob("*.json"))
    done = step("Fetch the baseline", tmp_path, **BASELINE, GH_REPORT=str(report))
    assert done.returncode == 0, done.stderr
    asked = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert "--branch main --event push --status success" in asked[0]
    assert asked[1].startswith("run download 11 ")
    name, _, path = (tmp_path / "output").read_text(encoding="utf-8").strip().partition("=")
    assert (name, Path(path).read_text(encoding="utf-8")) == ("path", "{}")
    assert set(tmp_path.glob("*.json")) == before
    (measure,) = (step for step in STEPS if step.get("id") == "gate")
    assert "steps.baseline.outputs.path ||" in measure["env"]["KVBENCH_BASELINE"]


def test_no_good_run_yet_is_no_failure_but_no_branch_to_ask_for_is(tmp_path: Path) -> None:
    none = step("Fetch the baseline", tmp_path, **BASELINE | {"GH_RUN": ""})
    assert none.returncode == 0, none.stderr
    assert "::notice title=kvbench::no baseline yet" in none.stdout
    lost = step("Fetch the baseline", tmp_path, **BASELINE | {"BRANCH": ""})
    assert lost.returncode == 2
    assert "::error title=kvbench::no branch is known" in lost.stdout


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
    assert "::warning title=kvbench::nothing can be" not in done.stdout  # the design is paired
    assert done.stderr.count("kvbench: exit ") == 1  # `compare` alone speaks
    assert done.stdout.count("FAIL, exit 3") == 1
    assert "SLOWER" in summary.read_text(encoding="utf-8")
    names = {path.name for path in (tmp_path / "out dir").iterdir()}
    assert {"comment.md", "junit.xml", "comparison.json", "report.new.json", "bmf.json"} <= names


@pytest.mark.parametrize(
    "settings",
    [
        {"KVBENCH_RUN_ARGS": "--no-such-option"},
        {"KVBENCH_RUN_ARGS": ONE_CASE, "KVBENCH_COMPARE_ARGS": "--margin no-such-option"},
        {"KVBENCH_A": "no-such-option"},
    ],
    ids=["run", "compare", "ab"],
)
def test_wrong_options_leave_their_reason_in_place_of_the_last_verdict(
    settings: dict[str, str], tmp_path: Path
) -> None:
    shutil.copy(ROOT / "reports" / "baselines" / "gate.json", tmp_path / "base.json")
    out = tmp_path / "out dir"
    out.mkdir()
    for name in ("comment.md", "junit.xml", "comparison.json", "mine.txt"):
        (out / name).write_text("passed, an hour ago", encoding="utf-8")
    output = tmp_path / "output"
    done = gate(
        tmp_path,
        KVBENCH_SUITE="dram",
        KVBENCH_BASELINE="base.json",
        GITHUB_ACTIONS="true",
        GITHUB_OUTPUT=str(output),
        **settings,
    )
    assert done.returncode == 2, done.stderr
    assert re.findall("::error title=kvbench::.*no-such-option", done.stdout), done.stdout
    comment = (out / "comment.md").read_text(encoding="utf-8")
    assert comment.startswith("## kvbench: no verdict (exit 2)\n")
    assert "no-such-option" in comment
    assert {path.name for path in out.iterdir()} <= {"comment.md", "mine.txt", "report.json"}
    assert output.read_text(encoding="utf-8") == "verdict=2\n"


def test_two_separate_runs_without_a_noise_floor_pass_with_a_warning(tmp_path: Path) -> None:
    case = "'dram.copy/pageable/2MiB/t1'"
    done = gate(
        tmp_path,
        KVBENCH_SUITE=str(ROOT / "reports" / "baselines" / "gate.toml"),
        KVBENCH_RUN_ARGS=f"--simulate noisy --processes 5 --only {case} --inject '*=+60%'",
        KVBENCH_BASELINE=str(ROOT / "reports" / "baselines" / "gate.json"),
        KVBENCH_COMPARE_ARGS=f"--only {case}",
    )
    assert done.returncode == 0, done.stderr
    assert "warning: nothing can be called slower" in done.stdout


@pytest.mark.parametrize("name", ["KVBENCH_RUN_ARGS", "KVBENCH_COMPARE_ARGS"])
def test_an_unbalanced_quote_is_refused_and_not_taken_for_no_options(
    name: str, tmp_path: Path
) -> None:
    done = gate(tmp_path, KVBENCH_BASELINE="none.json", **{name: "--only 'dram.*"})
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert name in line
    assert "No closing quotation" in line


def test_a_baseline_that_the_gate_would_overwrite_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out dir").mkdir()
    baseline = tmp_path / "out dir" / "report.json"
    baseline.write_text("{}", encoding="utf-8")
    done = gate(tmp_path, KVBENCH_BASELINE=str(baseline))
    assert done.returncode == 2
    assert "keep it elsewhere" in done.stderr
    assert baseline.read_text(encoding="utf-8") == "{}"

"""`kvbench lint`, as a user runs it: a verdict by its exit status, and figures in two formats.

Where it is not the worker processes that matter, this process builds: each of them would first
import torch, for seconds.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from kvbench.cli.lint import lint, show_build
from kvbench.errors import UsageError
from kvbench_kernels import bars
from kvbench_kernels import lint as workers
from kvbench_kernels.bars import BARS, read_golden
from kvbench_kernels.catalogue import variants
from kvbench_kernels.lint import judge_one
from kvbench_kernels.static import TRITON_VERSION, Static

APP = typer.Typer()
APP.command("lint")(lint)
COPY = variants()[0]
VERDICTS = ["pass", "fail", "exempt", "not checked"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["schema", "triton", "took_s", "took_cpu_s", "bars", "assumed", "builds"],
    "properties": {
        "schema": {"const": "kvbench.lint/1"},
        "took_s": {"type": "number"},
        "builds": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["variant", "capability", "static", "findings"],
                "properties": {
                    "static": {
                        "type": "object",
                        "required": [each.name for each in fields(Static)],
                        "properties": {"registers": {"type": "integer"}},
                    },
                    "findings": {
                        "type": "array",
                        "minItems": len(BARS),
                        "items": {
                            "type": "object",
                            "required": ["bar", "verdict", "text", "used"],
                            "properties": {
                                "bar": {"enum": list(BARS)},
                                "verdict": {"enum": VERDICTS},
                                "used": {"type": ["number", "null"]},
                            },
                        },
                    },
                },
            },
        },
    },
}


def run(*arguments: object, columns: int = 100) -> Result:
    return CliRunner().invoke(APP, [*map(str, arguments)], env={"COLUMNS": str(columns)})


@pytest.fixture
def golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of golden files that is still empty."""
    folder = tmp_path / "golden"
    monkeypatch.setattr(bars, "GOLDEN", folder)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds are made in this process."""

    def answers(tasks: Sequence[Any], _workers: int) -> Iterator[tuple[Any, Any]]:
        by_name = {variant.name: variant for variant in variants()}
        for task in tasks:
            yield task, workers._build(task, by_name[task.variant])

    monkeypatch.setattr(workers, "_answers", answers)


def test_kernels_that_keep_the_bars_end_with_0_and_a_line_each() -> None:
    said = run(COPY.name, "gather_pages", "--arch", "sm_90")

    assert said.exit_code == 0, said.output
    for name in (COPY.name, "gather_pages"):
        (line,) = [line for line in said.stdout.splitlines() if line.startswith(name)]
        assert line.split()[1] == "90"
        assert line.split()[2].startswith("4x16")
        assert line.endswith("pass")
    assert "2 variants, 2 builds: 0 failed" in said.stdout
    assert "they predict no bandwidth" in " ".join(said.stdout.split())
    assert max(map(len, said.stdout.splitlines())) <= 100


@pytest.mark.usefixtures("here")
def test_json_has_every_figure_and_every_bar(tmp_path: Path) -> None:
    out = tmp_path / "lint.json"
    said = run(COPY.name, "--arch", "sm_80", "--arch", "sm_90", "--format", "json", "-o", out)
    document = json.loads(out.read_text())

    assert (said.exit_code, said.stdout) == (0, "")
    jsonschema.validate(document, SCHEMA)
    assert sorted(each["capability"] for each in document["builds"]) == [80, 90]
    by_arch = {each["capability"]: each["findings"] for each in document["builds"]}
    verdicts = {arch: {each["bar"]: each["verdict"] for each in by_arch[arch]} for arch in by_arch}
    assert verdicts[80] == dict.fromkeys(BARS, "pass")
    assert verdicts[90] == {**verdicts[80], "S10": "not checked"}  # shown on the first one


@pytest.mark.usefixtures("here")
def test_a_kernel_without_a_golden_file_ends_with_3_and_a_narrow_terminal_reads(
    golden: Path,
) -> None:
    said = run(COPY.name, "--arch", "sm_90", columns=60)

    assert said.exit_code == 3
    assert "kvbench: exit 3: 1 of 1 builds fail a bar" in said.stderr
    assert said.stdout.startswith(f"{COPY.name} sm_90: fails S9\n")
    assert "S9 fail: no golden file: write it with" in said.stdout
    assert f"--update-golden: {COPY.name} sm_90" in " ".join(said.stdout.split())
    assert max(map(len, said.stdout.splitlines())) <= 60
    assert not golden.exists(), "nothing is written unless asked"


@pytest.mark.usefixtures("here")
def test_updating_the_golden_file_settles_drift(golden: Path) -> None:
    path = bars.golden_path(COPY.name, 90, golden)
    path.parent.mkdir(parents=True)
    drifted = {"variant": COPY.name, "capability": 90, "registers": 24, "instructions": 99}
    path.write_text(json.dumps({**drifted, "triton": TRITON_VERSION}))
    before = run(COPY.name, "--arch", "sm_90")
    after = run(COPY.name, "--arch", "sm_90", "--update-golden")
    kept = read_golden(COPY.name, 90, golden)

    assert (before.exit_code, after.exit_code) == (3, 0)
    assert "golden 99: more than 10% apart" in " ".join(before.stdout.split())
    assert any(line.endswith("fails S9") for line in before.stdout.splitlines())
    assert kept is not None
    assert kept.instructions < 99


def test_one_build_is_shown_with_all_its_bars(capsys: pytest.CaptureFixture[str]) -> None:
    show_build(judge_one(COPY, 90), Console(width=60))
    said = capsys.readouterr().out

    assert said.startswith(f"{COPY.name} sm_90 (H100 SXM): pass\n")
    assert all(f"  {bar} " in said for bar in BARS)
    assert "16 CTAs an SM" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 60


@pytest.mark.usefixtures("here")
def test_a_lint_that_takes_too_long_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "MOST_LINT_CPU_S", 0.0)
    said = run(COPY.name, "--arch", "sm_90")

    assert said.exit_code == 3
    assert "s of CPU, S12 allows 0" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope*",), "'nope*' matches no kernel: expected a glob over names as copy_contiguous"),
        (("--arch", "sm_75"), "--arch 'sm_75': expected one of sm_80, sm_90, sm_100"),
        (("--format", "xml"), "--format 'xml': expected one of table, json"),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    error = run(*arguments).exception

    assert isinstance(error, UsageError)
    assert str(error).startswith(said)
    assert "\n" not in str(error)


def test_a_process_that_interprets_refuses_to_lint() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvbench", "lint"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "kvbench: TRITON_INTERPRET is set, and a process that interprets cannot compile: unset it"
    ]


def test_ctrl_c_ends_the_command_and_its_workers(tmp_path: Path) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "kvbench", "lint"],
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},  # nothing is compiled yet
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process = psutil.Process(command.pid)
        deadline_s = time.monotonic() + 60
        workers: list[psutil.Process] = []
        while not [*tmp_path.iterdir()] and time.monotonic() < deadline_s:
            time.sleep(0.05)  # until one compiles
        workers = process.children(recursive=True)
        assert workers, "no worker was started"
        command.send_signal(signal.SIGINT)
        _, stderr = command.communicate(timeout=30)
    finally:
        command.kill()

    assert command.returncode == 130
    assert stderr.splitlines() == ["kvbench: interrupted"]
    _, left = psutil.wait_procs(workers, timeout=1)  # they were killed, the system may be slow
    # An assembler whose worker is gone stays a zombie where no init collects it.
    states = {each.pid: each.info["status"] for each in psutil.process_iter(["status"])}
    gone = {None, psutil.STATUS_ZOMBIE}
    assert [each for each in left if states.get(each.pid) not in gone] == []

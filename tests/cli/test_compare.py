"""`kvbench compare`, and `kvbench report` of a comparison, as a shell sees them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.compare.noise import encode_noise, make_noise
from kvbench.measure.result import write_report
from kvbench_reports.compare import COMPARE_FORMATS
from tests.compare.samples import make_report, make_row, noisy, two_sessions


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """BASE, and a NEW in which one of two rows is 30 % slower."""
    base, new = two_sessions(
        {"dram.copy/a": noisy(1), "dram.copy/b": noisy(2)},
        {"dram.copy/a": noisy(3, slower=0.3), "dram.copy/b": noisy(4)},
    )
    paths = tmp_path / "base.json", tmp_path / "new one.json"
    for path, report in zip(paths, (base, new), strict=True):
        write_report(report, path)
    return paths


def run(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvbench", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **env},
    )


def test_a_regression_is_exit_status_3_and_one_line_on_stderr(files: tuple[Path, Path]) -> None:
    done = run("compare", *files, "--assume-quiet")
    assert done.returncode == 3
    assert done.stderr == "kvbench: exit 3: 2 slower than allowed\n"
    assert "SLOWER 2" in done.stdout
    assert "FAIL, exit 3" in done.stdout
    assert "confirm: kvbench ab" in done.stdout


def test_the_confirming_command_is_one_that_ab_understands(files: tuple[Path, Path]) -> None:
    done = run("compare", *files, "--assume-quiet")
    line = next(line for line in done.stdout.splitlines() if line.startswith("confirm: "))
    assert line.endswith("ci --dir ~/kv --only 'dram.*'")


def test_without_a_floor_it_passes_and_says_that_it_proved_nothing(
    files: tuple[Path, Path],
) -> None:
    done = run("compare", *files)
    assert done.returncode == 0
    assert "two sessions, no noise floor" in done.stdout
    assert "looks slower" in done.stdout
    assert run("compare", *files, "--strict").returncode == 5


def test_a_noise_floor_is_read_and_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    sessions = [
        (
            str(number),
            make_report(
                [
                    make_row(f"dram.copy/{row}", noisy(10 * number + at))
                    for at, row in enumerate("ab")
                ],
                f"session {number}",
            ),
        )
        for number in range(8)
    ]
    path = tmp_path / "noise.json"
    path.write_bytes(encode_noise(make_noise(sessions)))
    done = run("compare", *files, "--noise", path)
    assert done.returncode == 3
    assert "noise floor of 8 sessions" in done.stdout


@pytest.mark.parametrize("form", [name for name in COMPARE_FORMATS if name != "table"])
def test_every_format_goes_to_a_file_while_the_table_is_printed(
    form: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = run("compare", *files, "--assume-quiet", "--format", form, "-o", out)
    assert done.returncode == 3
    assert "SLOWER 2" in done.stdout
    assert out.stat().st_size > 2


def test_a_kept_comparison_is_printed_again_in_any_format(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    kept = tmp_path / "comparison.json"
    run("compare", *files, "--assume-quiet", "--format", "json", "-o", kept)
    table = run("compare", *files, "--assume-quiet").stdout
    again = run("report", kept)
    assert (again.returncode, again.stdout) == (0, table)
    markdown = run("report", kept, "--format", "markdown", "-o", tmp_path / "comment.md")
    assert (markdown.returncode, markdown.stdout) == (0, "")
    assert "SLOWER" in (tmp_path / "comment.md").read_text(encoding="utf-8")


def test_the_github_format_writes_the_jobs_summary(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    done = run(
        "compare", *files, "--assume-quiet", "--format", "github", GITHUB_STEP_SUMMARY=str(summary)
    )
    lines = done.stdout.splitlines()
    assert lines
    assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in lines)
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert "dram.copy/a" in text


def test_explain_shows_what_is_behind_one_row(files: tuple[Path, Path]) -> None:
    done = run("compare", *files, "--assume-quiet", "--explain", "dram.copy/b")
    assert done.returncode == 3
    assert "dram.copy/b" in done.stdout
    assert "rank" in done.stdout
    assert "dram.copy/a" not in done.stdout
    unknown = run("compare", *files, "--explain", "nope")
    assert unknown.returncode == 2
    assert len(unknown.stderr.splitlines()) == 1


def test_what_was_measured_is_not_written_over(files: tuple[Path, Path], tmp_path: Path) -> None:
    before = files[0].read_bytes()
    for command in (
        ("compare", *files, "--format", "json", "-o", files[0]),
        ("report", files[1], "--format", "csv", "-o", files[0]),
    ):
        done = run(*command)
        assert done.returncode == 2
        assert "which was measured" in done.stderr
    assert files[0].read_bytes() == before
    text = tmp_path / "why.txt"
    run("compare", *files, "--explain", "dram.copy/a", "-o", text)
    assert "dram.copy/a" in text.read_text(encoding="utf-8")


def test_no_baseline_is_an_answer_not_a_trace(files: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("compare", tmp_path / "none.json", files[1])
    assert done.returncode == 2
    assert done.stderr.startswith("kvbench: no baseline yet")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--explain", "*", "--format", "csv"], "--explain is text"),
        (["--margin", "5"], "expected below 100 %"),
        (["--format", "xml"], "--format 'xml': expected one of table"),
        (["--margin", "fpga=3%"], "--margin 'fpga=3%'"),
        (["--noise", "none.json"], "cannot read none.json"),
        (["--only", "peer.*"], "matches no row"),
        (["-o", "missing/dir/x", "--format", "csv"], "cannot write"),
    ],
)
def test_wrong_use_is_exit_status_2_and_one_line(
    arguments: list[str], said: str, files: tuple[Path, Path]
) -> None:
    done = run("compare", *files, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_another_machine_is_exit_status_4(files: tuple[Path, Path]) -> None:
    raw = json.loads(files[1].read_text(encoding="utf-8"))
    raw["machine"]["cpu"]["model"] = "another"
    files[1].write_text(json.dumps(raw), encoding="utf-8")
    done = run("compare", *files)
    assert done.returncode == 4
    assert "CPU: test CPU in BASE, another in NEW" in done.stderr
    assert run("compare", *files, "--force").returncode == 0


def test_no_colour_and_no_wider_than_asked(files: tuple[Path, Path]) -> None:
    for columns in ("80", "200"):
        done = run("compare", *files, "--assume-quiet", "--all", COLUMNS=columns, NO_COLOR="1")
        assert "\x1b" not in done.stdout
        body = [line for line in done.stdout.splitlines() if not line.startswith("confirm:")]
        assert max(map(len, body)) <= int(columns)


def test_no_device_library_is_loaded(files: tuple[Path, Path]) -> None:
    code = (
        "import sys, typer; from pathlib import Path; from kvbench.cli.compare import compare\n"
        f"try: compare(Path({str(files[0])!r}), Path({str(files[1])!r}))\n"
        "except typer.Exit: pass\n"
        "sys.exit(str({'torch', 'triton', 'kvikio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines() == ["kvbench: exit 0: nothing shown slower", "set()"]

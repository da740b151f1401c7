import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from kvbench.cli.doctor import doctor
from kvbench.errors import UsageError
from kvbench.machine import Machine

app = typer.Typer()
app.command()(doctor)


def output(*arguments: str, columns: int = 80) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns), "NO_COLOR": "1"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_every_check_has_a_sign_a_word_and_what_was_seen(tmp_path: Path) -> None:
    lines = output("--dir", str(tmp_path)).splitlines()
    heads = [i for i, line in enumerate(lines[:-1]) if not line.startswith(" ")]
    words = {"✓": "present", "!": "degraded", "✗": "missing", "?": "unknown"}

    assert len(heads) >= 12
    for at in heads:
        assert lines[at].endswith(f": {words[lines[at][0]]}"), lines[at]
        assert lines[at + 1].startswith("  ")


def test_the_last_line_counts_what_is_above(tmp_path: Path) -> None:
    *lines, totals = output("--dir", str(tmp_path)).splitlines()

    for status in ("present", "degraded", "missing", "unknown"):
        count = sum(line.endswith(f": {status}") for line in lines if line[0] != " ")
        assert f"{count} {status}" in totals


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_text_fits_the_terminal_and_commands_stay_whole(tmp_path: Path, columns: int) -> None:
    lines = output("--dir", str(tmp_path), columns=columns).splitlines()[:-1]

    # A command is there to be copied, and a path cannot be broken.
    prose = [line for line in lines if not line.startswith("  $ ") and str(tmp_path) not in line]
    assert all(len(line) <= columns for line in prose)
    assert all(line == line.rstrip() for line in lines)


def test_json_holds_the_record_and_the_checks(tmp_path: Path) -> None:
    document = json.loads(output("--dir", str(tmp_path), "--json"))
    machine = msgspec.convert(document["machine"], Machine)

    assert machine.storage is not None
    assert {"name", "status", "seen", "cost", "fix"} <= set(document["checks"][0])


def test_a_directory_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--dir", str(tmp_path / "missing")])

    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_a_directory_on_tmpfs_is_no_drive() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm here")
    text = output("--dir", "/dev/shm")

    assert "✗ Drive: missing" in text
    assert "✗ O_DIRECT: missing" in text


def test_nothing_is_left_in_the_directory(tmp_path: Path) -> None:
    output("--dir", str(tmp_path))

    assert list(tmp_path.iterdir()) == []


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    directory = tmp_path / "käse"
    directory.mkdir()
    program = (
        "import typer; from kvbench.cli.doctor import doctor; app = typer.Typer(); "
        "app.command()(doctor); app()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--dir", str(directory)],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )

    assert result.stdout.isascii()
    assert b"x GPU: missing" in result.stdout or b"+ GPU: present" in result.stdout

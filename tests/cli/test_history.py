"""`kvbench history add` and `show`, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from kvbench.cli.history import history
from kvbench.errors import UsageError
from kvbench.measure.result import write_report
from tests.histories import READ, entry, kept, process, report, row

APP = typer.Typer()
APP.add_typer(history, name="history")


def run(*arguments: object) -> Result:
    words = ["history", *map(str, arguments)]
    return CliRunner().invoke(APP, words, env={"COLUMNS": "100"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A history of twelve sessions that got slower by a quarter after eight of them."""
    path = tmp_path / "h.jsonl"
    found = [entry(day, [kept(READ, 5e9 if day < 8 else 4e9)]) for day in range(12)]
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in found))
    return path


@pytest.fixture
def reports(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.json" for name in ("one", "two")]
    for day, path in enumerate(paths, start=1):
        made = report(path.stem, row(READ, process(5e9), process(6e9)))
        made.started_at = f"2026-11-0{day}T00:00:00+00:00"
        write_report(made, path)
    return paths


def test_what_was_added_is_shown(reports: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    added = run("add", *reports, "--file", path)
    said = run("show", "--file", path)

    assert (added.exit_code, said.exit_code) == (0, 0)
    assert added.stdout.count("added    ") == 2
    assert "2 sessions · 2026-11-01 to 2026-11-02" in " ".join(said.stdout.split())
    assert READ in said.stdout


def test_the_file_is_kvbench_history_jsonl_here_unless_named(
    reports: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("add", *reports)

    assert (tmp_path / "kvbench-history.jsonl").is_file()
    assert run("show").exit_code == 0


def test_a_retry_adds_nothing_and_ends_well(reports: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    run("add", *reports, "--file", path)
    before = path.read_bytes()
    again = run("add", *reports, "--file", path)

    assert again.exit_code == 0
    assert again.stdout.count("it is there already") == 2
    assert path.read_bytes() == before


def test_a_regression_in_a_history_is_advice_and_ends_with_0(file: Path) -> None:
    said = run("show", "--file", file)

    assert said.exit_code == 0
    assert "+25.0 % slower from 2026-01-10" in said.stdout
    assert "advisory: not a gate" in said.stdout


def test_json_and_csv_come_out_whole(file: Path) -> None:
    trends = json.loads(run("show", "--file", file, "--format", "json").stdout)
    lines = run("show", "--file", file, "--format", "csv").stdout.splitlines()

    assert trends["sessions"] == 12
    assert len(lines) == 13


def test_options_choose_rows_and_sessions(file: Path) -> None:
    last = run("show", "--file", file, "--last", "2", "--format", "json", "--only", "nvme.*")
    (trend,) = json.loads(last.stdout)["groups"][0]["trends"]

    assert len(trend["points"]) == 2
    assert run("show", "--file", file, "--last", "0").exit_code == 2
    assert run("show", "--file", file, "--all").exit_code == 0


def test_a_torn_line_is_told_in_every_format_without_spoiling_it(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])
    for form in ("table", "json", "csv"):
        said = run("show", "--file", file, "--format", form)
        assert said.exit_code == 0
        where = said.stderr if form == "csv" else said.stdout
        assert " ".join(where.split()).count("h.jsonl:12 is torn") == 1
        assert (form == "csv") == ("torn (" not in said.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "--file", "/no/such/file"), "cannot read /no/such/file"),
        (("show", "--file", "h.jsonl", "--format", "xml"), "expected one of table, json, csv"),
        (("show", "--file", "h.jsonl", "--only", "hbm.*"), "matches no row"),
        (("add", "/no/such/report"), "cannot read /no/such/report"),
        (("add", "h.jsonl"), "h.jsonl is not a kvbench report"),
        (("show", "--file", "empty"), "empty holds no session yet"),
    ],
)
def test_bad_input_is_a_usage_error_of_one_line(
    arguments: tuple[str, ...], said: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "empty").touch()
    result = run(*arguments)

    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
    assert result.stdout == ""


def test_a_report_that_is_no_history_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "slowed.json"
    write_report(report("s", inject={"nvme.*": 0.08}), path)
    result = run("add", path, "--file", tmp_path / "new.jsonl")

    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith(f"{path} was slowed on purpose")
    assert not (tmp_path / "new.jsonl").exists()


def test_each_command_has_help_of_its_own() -> None:
    assert "add" in run("--help").stdout
    assert "--file" in run("add", "--help").stdout
    assert "not a gate" in " ".join(run("show", "--help").stdout.split())


def in_a_process(file: Path, before: str, after: str, **environment: str) -> bytes:
    code = (
        f"import sys\n{before}\n"
        "from pathlib import Path\n"
        "from kvbench.cli.history import show\n"
        f"show(file=Path({str(file)!r}))\n{after}\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    return done.stdout


def test_showing_a_history_imports_neither_torch_nor_a_device_library(file: Path) -> None:
    heavy = "{'torch', 'triton', 'kvikio', 'pynvml'}"
    in_a_process(file, "", f"assert not {heavy} & set(sys.modules)")


def test_a_history_can_be_shown_without_ruptures_and_says_how_to_have_it(file: Path) -> None:
    said = in_a_process(file, "sys.modules['ruptures'] = None", "").decode()

    assert said.count("pip install 'kvbench[history]'") == 1


def test_a_terminal_that_knows_only_ascii_gets_a_trend_in_ascii(file: Path) -> None:
    said = in_a_process(file, "", "", PYTHONIOENCODING="ascii")

    assert said.isascii()
    assert b"%%%%%%%%...." in said

"""`kvbench report FILE`."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.cli.report import report
from kvbench.errors import UsageError
from kvbench.measure.result import Report, write_report
from kvbench_reports import FORMATS, markdown

BUDGET_S = 0.3  # of CPU, user and system
EMPTY_S = 0.03  # an interpreter that does nothing, on an idle core of 2 to 4 GHz


@pytest.fixture
def file(measured: Report, tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    write_report(measured, path)
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvbench", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_tables_come_out_by_default(file: Path) -> None:
    done = run(file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nvme  2 ok, 1 degraded" in done.stdout
    assert f"next: kvbench report {file} --format markdown\n" in done.stdout


def test_every_format_has_its_name_in_the_help() -> None:
    text = run("--help").stdout
    assert all(name in text for name in FORMATS)


def test_markdown_on_standard_output_is_utf8_in_any_locale(file: Path, measured: Report) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvbench", "report", str(file), "--format", "markdown"],
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": "latin-1"},
    )
    assert done.stdout.decode() == markdown.render(measured)


def test_json_keeps_fields_that_this_version_does_not_know(file: Path) -> None:
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["rows"][0]["joules"] = 3
    file.write_text(json.dumps(raw), encoding="utf-8")
    assert json.loads(run(file, "--format", "json").stdout) == raw


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "is not a kvbench report"),
        (b"\x89PNG\xff", "is not a kvbench report"),
        (b'{"hello": 1}', "is not a kvbench report"),
        (b'{"schema": "other/1"}', "schema 'other/1', expected 'kvbench.report/1'"),
        (b'{"schema": "kvbench.report/2"}', "upgrade kvbench"),
        (b'{"schema": "kvbench.report/1"}', "is damaged"),
    ],
)
def test_a_file_that_is_no_report_is_a_usage_error(
    content: bytes, seen: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=seen) as caught:
        report(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(UsageError, match="cannot read"):
            report(path)


def test_an_error_is_one_line_and_exit_status_2(tmp_path: Path, file: Path) -> None:
    for arguments in ((tmp_path / "none.json",), (file, "--format", "xml")):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
    assert "--format 'xml': expected one of table, json, csv, markdown" in done.stderr


# A page's curves of latency are drawn with numpy; nobody waits for a page at a prompt.
@pytest.mark.parametrize("form", sorted(FORMATS.keys() - {"html"}))
def test_no_device_library_and_no_numerics_are_loaded(file: Path, form: str) -> None:
    code = (
        "import sys; from pathlib import Path; from kvbench.cli.report import report; "
        f"report(Path({str(file)!r}), {form!r}); "
        "heavy = {'torch', 'triton', 'numpy', 'scipy', 'kvikio', 'pynvml'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def cpu_s(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_it_starts_within_its_budget_of_cpu_time(file: Path) -> None:
    # The least of several, and more time where even an interpreter that does nothing takes longer
    # than on an idle machine: neighbours on the same cores slow both alike.
    empty = min(cpu_s("-c", "pass") for _ in range(5))
    least = min(cpu_s("-m", "kvbench", "report", str(file)) for _ in range(5))
    budget = BUDGET_S * max(1.0, empty / EMPTY_S)
    assert least < budget, "see where with: python -X importtime -m kvbench report FILE"


def test_a_reader_that_leaves_early_is_no_crash(file: Path) -> None:
    command = f"{sys.executable} -m kvbench report {file} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "141"}  # 0 where the pipe took everything before it closed

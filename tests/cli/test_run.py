"""`kvbench run`, as a user runs it: a process of its own."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvbench.measure.result import read_report

FAST = ("--processes", "1", "--time-limit", "0.2", "--data", "17MB")  # no whole sectors
STEADY = ("--simulate", "steady", "--processes", "2")


def kvbench(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvbench", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        env={**os.environ, "COLUMNS": "120", **environment},
    )


def rows(path: Path) -> dict[str, Any]:
    return {row["id"]: row for row in json.loads(path.read_text())["rows"]}


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in result.stderr.splitlines() if line.startswith("kvbench: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A report from steady devices, and what the command printed."""
    directory = tmp_path_factory.mktemp("simulated")
    only = ("--only", "nvme.read/posix*", "--only", "dram.copy/pageable*")
    result = kvbench("run", "quick", *STEADY, *only, "-o", "r.json", cwd=directory)
    assert result.returncode == 0, result.stderr
    return directory / "r.json", result.stdout


def test_what_a_simulated_device_is_comes_out_of_the_whole_pipeline(
    simulated: tuple[Path, str],
) -> None:
    found = rows(simulated[0])
    # kvbench/data/profiles/steady.toml: 6.5 GB/s and 90 µs. At depth 1 a block of 2 MiB takes
    # 90 µs + 2 MiB / 6.5 GB/s; at depth 16 the bandwidth is reached.
    block = 2 * 2**20
    alone = found["nvme.read/posix/2MiB/qd1/random"]
    assert alone["bytes_per_s"] == pytest.approx(block / (90e-6 + block / 6.5e9), rel=1e-3)
    assert alone["latency_s"]["p50"] == pytest.approx(90e-6 + block / 6.5e9, rel=2e-3)
    deep = found["nvme.read/posix/2MiB/qd16/random"]
    assert deep["bytes_per_s"] == pytest.approx(6.5e9, rel=1e-3)
    assert deep["limit_fraction"] == pytest.approx(1.0, rel=1e-3)
    copy = found["dram.copy/pageable/256MiB/t1"]
    size = 256 * 2**20
    assert copy["bytes_per_s"] == pytest.approx(size / (1e-6 + size / 50e9), rel=1e-3)


def test_simulated_rows_say_so_in_the_file_and_on_the_screen(simulated: tuple[Path, str]) -> None:
    path, printed = simulated
    assert {row["state"] for row in rows(path).values()} == {"simulated"}
    assert json.loads(path.read_text())["simulated"] == "steady"
    assert "simulated devices" in printed


def test_real_memory_and_a_real_drive_are_measured(tmp_path: Path) -> None:
    only = ("--only", "dram.gather*t1", "--only", "nvme.*/posix/64KiB/qd4/random")
    arguments = ("run", "full", *FAST, *only, "--dir", "new/kv", "-o", "r.json")
    result = kvbench(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = read_report(tmp_path / "r.json")
    assert report.finished_at is not None
    assert {row.tier for row in report.rows} == {"dram", "nvme"}
    for row in report.rows:
        if row.state == "ok":
            assert row.bytes_per_s is not None
            assert row.bytes_per_s > 1e6
            assert row.processes[0].verified_bytes > 0
    assert left_in(tmp_path) == ["r.json"], "the directory that was made is tidied away"


def test_a_case_without_its_device_is_skipped_with_the_reason(tmp_path: Path) -> None:
    arguments = ("run", "hbm", *FAST, "-o", "r.json")
    result = kvbench(*arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 4
    assert one_line(result).startswith("kvbench: no row holds a figure")
    for row in rows(tmp_path / "r.json").values():
        assert row["state"] == "skipped"
        assert row["reason"].startswith("no CUDA device: ")
        assert row["bytes_per_s"] is None


def test_a_directory_in_memory_measures_no_drive(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        pytest.skip("no tmpfs here")
    arguments = ("run", "nvme", *FAST, "--dir", str(shm), "-o", "r.json")
    result = kvbench(*arguments, cwd=tmp_path)
    assert result.returncode == 4
    assert "tmpfs is memory, not a drive" in result.stdout.replace("\n", " ")
    assert not list(shm.glob(".kvbench-*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "no suite named 'nope'; there are: quick, full, ci, hbm, "),
        (("missing.toml",), "cannot read suite missing.toml: No such file or directory"),
        (("quick", "--model", "gpt-5"), "gpt-5"),
        (("quick", "--only", "zzz*"), "--only 'zzz*' matches no case"),
        (("quick", "--limit", "nvme"), "--limit 'nvme': expected NAME=RATE"),
        (("quick", "--limit", "disk=1GB/s"), "--limit 'disk=1GB/s': expected NAME=RATE"),
        (("quick", "--limit", "nvme=fast"), "'fast' is not a rate"),
        (("quick", "--data", "lots"), "'lots' is not a size"),
        (("quick", "--data", "4KiB"), "--data 4KiB: expected at least 1MiB"),
        (("quick", "--simulate", "warp"), "no profile named 'warp'; there are: noisy, steady"),
        (("quick", "--kv-dtype", "fp3"), "fp3"),
        (("quick", "-o", "no/such/place.json"), "cannot write the report no/such/place.json"),
        (("quick", "-o", "."), "cannot write the report .: it is a directory"),
        (("quick", "-o", "/dev/null"), "it is no regular file"),
        (("quick", "-o", "a-file"), "will not overwrite: a-file is not a kvbench report"),
        (("quick", "-o", "x" * 300), "File name too long"),
        (("nvme", "--data", "100TiB"), "the data files need"),
        (("quick", "--time-limit", "nan"), "--time-limit"),
        (("quick", "--limit", "nvme=7Gb/s"), "may mean bits"),
        (("nvme", "--dir", "bad\udcff"), "is not UTF-8"),
        (("nvme", "--dir", "a-file/below"), "cannot write to a-file/below"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2_and_leaves_nothing(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "a-file").write_text("")
    result = kvbench("run", *arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in one_line(result)
    assert left_in(tmp_path) == ["a-file"]


@pytest.mark.parametrize(
    "arguments", [("run",), ("run", "quick", "--processes", "0"), ("run", "quick", "--nope")]
)
def test_what_the_option_parser_refuses_is_exit_2_too(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    result = kvbench(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert one_line(result).endswith("see kvbench run --help")


def test_in_a_read_only_directory_memory_is_measured_and_the_drive_skipped(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    mounted = False
    if os.geteuid() == 0:  # root writes where it likes, except on a read-only mount
        for options in (("--bind",), ("-o", "remount,ro,bind")):
            command = ["mount", *options, str(closed), str(closed)]
            mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
        if not mounted:
            pytest.skip("root cannot make a read-only mount here")
    try:
        only = ("--only", "dram.copy/pageable*t1", "--only", "nvme.*")
        arguments = ("run", "quick", *FAST, *only, "--dir", "closed", "-o", "r.json")
        result = kvbench(*arguments, cwd=tmp_path)
    finally:
        if mounted:
            subprocess.run(["umount", str(closed)], check=True)
    assert result.returncode == 0, result.stderr
    for row in rows(tmp_path / "r.json").values():
        if row["tier"] == "nvme":
            assert row["state"] == "skipped"
            assert "cannot be written" in row["reason"]
        else:
            assert row["bytes_per_s"] > 1e6


def interrupt_after_a_row(tmp_path: Path, number: int) -> subprocess.CompletedProcess[str]:
    arguments = ("run", "nvme", *FAST, "--time-limit", "0.5", "--dir", "kv", "-o", "r.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "kvbench", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 60
    while not (tmp_path / "r.json").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(0.7)  # into the next case
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_rows_and_leaves_no_data(tmp_path: Path, number: int) -> None:
    result = interrupt_after_a_row(tmp_path, number)
    assert result.returncode == 128 + number
    assert "repeat the command with --resume" in one_line(result)
    report = read_report(tmp_path / "r.json")
    assert len(report.rows) >= 1
    assert report.finished_at is None
    assert left_in(tmp_path) == ["r.json"]


def test_resume_measures_what_is_missing_and_keeps_what_is_there(tmp_path: Path) -> None:
    command = ("run", "dram", *STEADY, "--only", "dram.copy/pageable/*", "-o", "r.json")
    assert kvbench(*command, cwd=tmp_path).returncode == 0
    path = tmp_path / "r.json"
    whole = json.loads(path.read_text())
    partial = dict(whole, rows=whole["rows"][:2], finished_at=None, added_by_a_newer_minor={"a": 1})
    partial["rows"][0]["bytes_per_s"] = 123.0  # to be told from a row measured again
    partial["rows"][0]["note_of_another_tool"] = "keep me"
    path.write_text(json.dumps(partial))
    result = kvbench(*command, "--resume", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    resumed = json.loads(path.read_text())
    assert [row["id"] for row in resumed["rows"]] == [row["id"] for row in whole["rows"]]
    assert resumed["rows"][0]["bytes_per_s"] == 123.0
    assert resumed["rows"][0]["note_of_another_tool"] == "keep me"
    assert resumed["added_by_a_newer_minor"] == {"a": 1}
    assert resumed["finished_at"] is not None


def test_resuming_fewer_cases_loses_no_row(simulated: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copy(simulated[0], tmp_path / "r.json")
    before = rows(tmp_path / "r.json")
    arguments = ("run", "quick", *STEADY, "--only", "nvme.read/posix/1MiB/*", "--resume")
    assert kvbench(*arguments, "-o", "r.json", cwd=tmp_path).returncode == 0
    assert rows(tmp_path / "r.json") == before


def test_a_new_run_keeps_the_report_that_it_replaces(
    simulated: tuple[Path, str], tmp_path: Path
) -> None:
    before = simulated[0].read_bytes()
    (tmp_path / "kept.json").write_bytes(before)
    (tmp_path / "kept.json").chmod(0o600)
    (tmp_path / "r.json").symlink_to("kept.json")
    arguments = ("run", "quick", *STEADY, "--only", "dram.copy/pageable*t1", "-o", "r.json")
    assert kvbench(*arguments, cwd=tmp_path).returncode == 0
    assert (tmp_path / "kept.previous.json").read_bytes() == before
    assert (tmp_path / "r.json").is_symlink()
    assert len(rows(tmp_path / "kept.json")) == 1
    assert (tmp_path / "kept.json").stat().st_mode & 0o777 == 0o600
    unfinished = json.loads((tmp_path / "kept.json").read_text()) | {"finished_at": None}
    (tmp_path / "kept.json").write_text(json.dumps(unfinished))
    assert kvbench(*arguments, cwd=tmp_path).returncode == 0
    assert (tmp_path / "kept.previous.json").read_bytes() == before, "worth more than half a run"


def test_resume_refuses_a_report_of_something_else(
    simulated: tuple[Path, str], tmp_path: Path
) -> None:
    before = simulated[0].read_bytes()
    (tmp_path / "r.json").write_bytes(before)
    other = ("run", "quick", *STEADY, "-o", "r.json", "--resume", "--model", "qwen2.5-7b")
    result = kvbench(*other, cwd=tmp_path)
    assert result.returncode == 2
    assert "its model differs" in one_line(result)
    assert (tmp_path / "r.json").read_bytes() == before


def test_the_same_seed_and_noise_give_the_same_report(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        arguments = ("run", "dram", "--simulate", "noisy", "--processes", "3", "-o", name)
        only = ("--only", "dram.copy/pageable/256MiB/t1", "--seed", "5")
        assert kvbench(*arguments, *only, cwd=tmp_path).returncode == 0
    a, b = rows(tmp_path / "a.json"), rows(tmp_path / "b.json")
    assert {k: v["bytes_per_s"] for k, v in a.items()} == {
        k: v["bytes_per_s"] for k, v in b.items()
    }
    values = {process["bytes_per_s"] for process in a["dram.copy/pageable/256MiB/t1"]["processes"]}
    assert len(values) == 3, "processes draw their own luck"


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("report", "r.json")])
def test_help_and_report_start_without_device_libraries_and_quickly(
    simulated: tuple[Path, str], arguments: tuple[str, ...]
) -> None:
    tmp_path = simulated[0].parent
    forbid = "import sys; sys.modules.update(torch=None, triton=None, kvikio=None, scipy=None); "
    code = f"{forbid}sys.argv = ['kvbench', *{arguments!r}]; from kvbench.cli import main; main()"
    spent_s = []
    for _ in range(3):  # the best of three: this machine is shared
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        spent_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # 0.3 s is the aim on a quiet machine; importing torch alone takes more than a second.
    assert min(spent_s) < 0.6

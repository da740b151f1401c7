"""What `scripts/gpu_check` expects of a report, and how it ends where it cannot measure.

Reports are made by hand: no GPU is needed and nothing here was measured. For the way through the
whole script a stand-in takes the place of Python where a card would be needed.
"""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu_expectations import JUDGED, expectations, main
from kvbench.geometry import KVGeometry
from kvbench.machine import Machine
from kvbench.measure.result import Report, Row, State, write_report
from kvbench.measure.suite import Operation, Value
from kvbench.units import KIB, MIB
from kvbench_suites import find_suite
from kvbench_suites.hbm import COPY, GATHER
from kvbench_suites.kernels import GATHER_QUANTISE, SWAP
from tests.compare.samples import make_report, make_row

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "gpu_check"
GB_S = 1e9
PEAK = 2 * 1000 * GB_S  # bytes read and written: a copy's payload counts twice
PAGES: dict[str, Value] = {"page_bytes": 32 * KIB, "block_bytes": 2 * MIB, "batch": 64}


def row(operation: Operation, rate: float, **params: Value) -> Row:
    case = operation.case(params)
    made = make_row(case.id, [rate], params=dict(case.params))
    made.payload_bytes = 2**30
    made.traffic_bytes = round(2**30 * operation.traffic(case.params))
    return made


def good_rows() -> list[Row]:
    """A card of 2 TB/s and a link of 50 GB/s on which all is met."""
    copy = row(COPY, 900 * GB_S, block_bytes=256 * MIB, engine="triton")
    copy.limit_fraction, copy.limit_source = 0.9, "peak of a made-up card"
    fused = {**PAGES, "format": "fp8-head", "head_dim": 128}
    rows = [copy, row(GATHER, 880 * GB_S, **PAGES), row(GATHER_QUANTISE, 1150 * GB_S, **fused)]
    return rows + [
        row(SWAP, 30 * GB_S, direction="h2d", block_bytes=size * KIB, batch=1024, programs=16)
        for size in (4, 16, 24)
    ]


def report(*rows: Row, **fields: object) -> Report:
    return make_report(rows, "s1", **fields)


def missed(made: Report) -> list[tuple[str, str]]:
    """First word and reason of each missed line."""
    return [(line.text.split()[0], line.why) for line in expectations(made) if not line.met]


# ---------------------------------------------------------------- the expectations


def test_a_report_in_which_all_is_met_misses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    write_report(report(*good_rows()), path)
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["met"] * 6


@pytest.mark.parametrize(
    ("at", "enough", "too_little"),
    [(1, 0.951 * 900, 0.949 * 900), (3, 25.1, 24.9), (4, 25.1, 24.9), (5, 25.1, 24.9)],
    ids=["gather", "swap of 4 KiB", "swap of 16 KiB", "swap of 24 KiB"],
)
def test_a_rate_just_below_what_is_expected_is_missed(
    at: int, enough: float, too_little: float
) -> None:
    rows = good_rows()
    rows[at].bytes_per_s = enough * GB_S
    assert not missed(report(*rows))
    rows[at].bytes_per_s = too_little * GB_S
    assert len(missed(report(*rows))) == 1


def test_the_copy_is_held_against_the_cards_own_peak() -> None:
    rows = good_rows()
    rows[0].limit_fraction = 0.84
    assert missed(report(*rows)) == [("copy", "peak of a made-up card")]
    rows[0].limit_fraction = rows[0].limit_source = None
    rows[0].missing = {"limit_bytes_per_s": "unknown card"}
    assert missed(report(*rows)) == [("copy", "no limit known: unknown card")]


def test_the_fused_kernel_is_judged_by_the_bytes_that_it_moves_itself() -> None:
    """It writes about half of what it reads, so its payload may go by faster than the copy's."""
    rows = good_rows()
    moved = (rows[2].traffic_bytes or 0) / 2**30  # for each byte of payload
    assert moved == pytest.approx(1 + (128 + 4) / 256)
    rows[2].bytes_per_s = 0.91 * 1800 * GB_S / moved
    assert not missed(report(*rows))
    rows[2].bytes_per_s = 0.89 * 1800 * GB_S / moved
    assert len(missed(report(*rows))) == 1


def test_a_row_that_is_not_there_is_a_missed_line_and_the_others_are_still_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, rows = tmp_path / "r.json", good_rows()
    del rows[3]
    write_report(report(*rows), path)
    assert main([str(path)]) == 3
    out = capsys.readouterr().out
    assert out.count("MISSED") == 1
    assert out.count("met   ") == 5
    assert "(hbm.swap/h2d/4KiB is not in the report)" in out


def test_without_the_copy_what_is_measured_against_it_is_missed_too() -> None:
    lines = missed(report(*good_rows()[1:], finished_at=None))
    assert [text for text, _ in lines] == ["copy", "gather", "gather"]
    assert {why for _, why in lines} == {
        "hbm.copy/triton/256MiB is not in the report, which was cut short"
    }


@pytest.mark.parametrize("at", range(6))
def test_a_skipped_row_is_missed_and_gives_its_reason(at: int) -> None:
    rows = good_rows()
    rows[at].state, rows[at].bytes_per_s = State.SKIPPED, None
    rows[at].reason = "no CUDA device: Driver Not Loaded"
    for _, why in missed(report(*rows)):
        assert why == f"{rows[at].id} is skipped: no CUDA device: Driver Not Loaded"
    assert missed(report(*rows))


@pytest.mark.parametrize("state", [State.INVALID, State.DEGRADED, State.FAILED, State.SIMULATED])
def test_a_figure_that_is_not_of_what_was_asked_meets_nothing(state: State) -> None:
    rows = good_rows()
    rows[0].state, rows[0].reason = state, "because"
    lines = missed(report(*rows))
    assert [text for text, _ in lines] == ["copy", "gather", "gather"]
    assert lines[0][1] == f"hbm.copy/triton/256MiB is {state}: because"


def test_a_simulated_report_says_so_and_meets_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    write_report(report(*good_rows(), simulated="steady"), path)
    assert main([str(path)]) == 3
    first, *lines = capsys.readouterr().out.splitlines()
    assert "SIMULATED steady" in first
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("MISSED     - of")
        assert "nothing was measured" in line


def test_a_report_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}")
    for arguments in ([str(tmp_path / "none.json")], [str(wrong)], []):
        command = [sys.executable, "benchmarks/gpu_expectations.py", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("gpu_expectations: ")


def test_what_is_judged_is_measured_first(llama: KVGeometry) -> None:
    suite = find_suite(str(ROOT / "scripts" / "gpu_check.toml"))
    cases = [case.id for case in suite.build(llama, Machine())]
    for case, start in zip(cases, JUDGED, strict=False):
        assert case.startswith(start)
    assert [row.id for row in good_rows()] == cases[: len(JUDGED)]


# ---------------------------------------------------------------- the script

STAND_IN = """#!/bin/sh
# Python where no card is needed; what would need one is answered from files.
case "$*" in
  *cuda.is_available*) exit 0 ;;
  *"-m pytest"*) "{python}" -c "$PROBE"; exit "$TESTS_STATUS" ;;
  *"-m kvbench"*) for last; do :; done; cp "$REPORT" "$last" ;;
  *) exec "{python}" "$@" ;;
esac
"""
PROBE = """
import numpy, only_in_wheels, subprocess, sys
print(numpy.__file__, flush=True)
subprocess.run([sys.executable, "-c", "import numpy; print(numpy.__file__)"], check=True)
"""


def check(*arguments: object, **environ: object) -> subprocess.CompletedProcess[str]:
    words = {name: str(value) for name, value in environ.items()}
    environment = {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""} | words
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    """A wheel of version 0.1 that holds these files."""
    module = name.replace("-", "_")
    info = f"{module}-0.1.dist-info"
    with zipfile.ZipFile(folder / f"{module}-0.1-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tag)
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def documented() -> list[str]:
    """The packages that docs/kernels.md says WHEELS is to hold."""
    text = (ROOT / "docs" / "kernels.md").read_text()
    found = re.search(r"^\$ pip download --dest WHEELS (.+)$", text, re.MULTILINE)
    assert found
    return [re.split("[<>=]", word.strip('"'))[0] for word in found[1].split()]


@pytest.fixture
def wheels(tmp_path: Path, documented: list[str]) -> Path:
    """WHEELS as the docs fill it, but each package breaks when it is imported."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in documented:
        files = {f"{name.replace('-', '_')}/__init__.py": "raise ImportError('planted')\n"}
        wheel(folder, name, files | ({"only_in_wheels.py": ""} if name == "numpy" else {}))
    return folder


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("arguments", [(), ("a", "b", "c")])
def test_a_wrong_number_of_arguments_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    done = check(*arguments)
    assert done.returncode == 2
    assert done.stderr == "gpu_check: usage: scripts/gpu_check OUT [WHEELS]\n"


def test_a_folder_of_wheels_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    done = check(tmp_path / "out", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr == f"gpu_check: no folder {tmp_path / 'none'}\n"
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_nothing_is_checked_and_one_line_says_so(tmp_path: Path) -> None:
    done = check(tmp_path)
    assert done.returncode == 4
    assert done.stderr == "gpu_check: torch sees no CUDA device: nothing was checked\n"
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_python_without_torch_is_named(tmp_path: Path) -> None:
    done = check(tmp_path, PYTHON="/bin/false")
    assert done.returncode == 4
    assert done.stderr.startswith("gpu_check: /bin/false cannot import torch")
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_wheel_is_one_line(tmp_path: Path, wheels: Path, stand_in: Path) -> None:
    next(wheels.glob("xxhash*")).unlink()
    done = check(tmp_path / "out", wheels, PYTHON=stand_in)
    assert done.returncode == 4
    assert done.stderr.startswith("gpu_check: a wheel is missing")
    assert len(done.stderr.splitlines()) == 1
    assert "xxhash" in (tmp_path / "out" / "pip.log").read_text()


def test_a_package_that_the_image_lacks_is_named_when_there_are_no_wheels(
    tmp_path: Path, stand_in: Path
) -> None:
    (tmp_path / "xxhash.py").write_text("raise ModuleNotFoundError(\"No module named 'xxhash'\")")
    done = check(tmp_path / "out", PYTHON=stand_in, PYTHONPATH=tmp_path)
    assert done.returncode == 4
    lacking = "ModuleNotFoundError: No module named 'xxhash'"
    assert done.stderr == f"gpu_check: a wheel is missing: {lacking}\n"


def test_the_images_own_packages_are_taken_before_those_of_the_wheels(
    tmp_path: Path, wheels: Path, stand_in: Path
) -> None:
    """Each planted package breaks on import: numpy, msgspec, rich … must be the image's."""
    good = tmp_path / "good.json"
    write_report(report(*good_rows()), good)
    out = tmp_path / "out"
    done = check(out, wheels, PYTHON=stand_in, REPORT=good, TESTS_STATUS=0, PROBE=PROBE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "site" / "numpy" / "__init__.py").read_text() == "raise ImportError('planted')\n"
    found = importlib.util.find_spec("numpy")
    assert found
    assert found.origin
    assert (out / "tests.log").read_text().splitlines() == [found.origin] * 2


@pytest.mark.parametrize(("tests", "rows"), [(1, 6), (0, 5), (0, 0)])
def test_a_failed_test_a_missed_expectation_and_no_report_each_end_with_3(
    tmp_path: Path, stand_in: Path, tests: int, rows: int
) -> None:
    made = tmp_path / "made.json"
    if rows:
        write_report(report(*good_rows()[:rows]), made)
    done = check(tmp_path, PYTHON=stand_in, REPORT=made, TESTS_STATUS=tests, PROBE="")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert ("MISSED" in done.stdout) == (rows == 5)
    assert ("the run did not finish" in done.stdout) == (rows == 0)

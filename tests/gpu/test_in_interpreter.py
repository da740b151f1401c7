"""Runs the kernel tests without a GPU: in Triton's interpreter, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# A process each, so that they can run side by side; few, since each first imports torch. Of about
# the same length, and the least number of tests that must have passed, since exit status 0 would
# also be a process that skipped all.
GROUPS = {
    "movement and int4": (
        ("copy", "gather", "pointers", "tokens", "swap", "checksum", "int4", "kivi"),
        700,
    ),
    "relayout": (("relayout",), 300),
    "fp8 and int8": (("casts", "fp8", "int8"), 200),
    "fused and bodies": (("fused", "hbm_kernels", "kernel_bodies"), 200),
}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("group", GROUPS)
def test_the_kernels_do_in_the_interpreter_what_plain_torch_does(group: str) -> None:
    names, least = GROUPS[group]
    files = [str(HERE / f"test_{name}.py") for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider"],
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= least, done.stdout


def test_every_kernel_test_is_in_one_group() -> None:
    grouped = [name for names, _ in GROUPS.values() for name in names]
    there = {
        path.stem.removeprefix("test_")
        for path in HERE.glob("test_*.py")
        if path.stem not in {"test_in_interpreter", "test_static", "test_bars"}
    }
    assert sorted(grouped) == sorted(there)

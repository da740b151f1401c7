"""Runs the kernel tests without a GPU: in Triton's interpreter, in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_kernels_do_in_the_interpreter_what_plain_torch_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, f"\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
    # Exit status 0 would also be a process in which everything was skipped.
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, done.stdout
    assert int(passed[1]) >= 30, done.stdout

"""`kvbench list`, as a user runs it: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
name = "mixed"
question = "Does the listing stay short?"
"""
ON_GPU = """
[[case]]
operation = "hbm.copy"
block_bytes = [{sizes}]
engine = "memcpy"
"""
IN_MEMORY = """
[[case]]
operation = "dram.copy"
block_bytes = "2MiB"
threads = 1
"""


def listed(suite: Path) -> list[str]:
    """What is printed where no GPU can be used."""
    result = subprocess.run(
        [sys.executable, "-m", "kvbench", "list", str(suite)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def write_suite(path: Path, sizes: list[str]) -> Path:
    quoted = ", ".join(f'"{size}"' for size in sizes)
    path.write_text(HEAD + ON_GPU.format(sizes=quoted) + IN_MEMORY)
    return path


def test_a_reason_that_many_cases_in_a_row_share_is_said_once_above_their_ids(
    tmp_path: Path,
) -> None:
    sizes = ["1MiB", "2MiB", "4MiB", "8MiB"]
    heading, *ids, last = listed(write_suite(tmp_path / "s.toml", sizes))
    assert heading.startswith("4 cases need: no CUDA device")
    assert ids == [f"  hbm.copy/memcpy/{size}" for size in sizes]
    assert last.startswith("dram.copy/")
    assert last.endswith("  ready")


@pytest.mark.parametrize("sizes", [["1MiB"], ["1MiB", "2MiB", "4MiB"]])
def test_a_few_cases_each_say_what_they_need(tmp_path: Path, sizes: list[str]) -> None:
    *lacking, last = listed(write_suite(tmp_path / "s.toml", sizes))
    assert len(lacking) == len(sizes)
    for line, size in zip(lacking, sizes, strict=True):
        assert line.startswith(f"hbm.copy/memcpy/{size}  needs: no CUDA device")
    assert last.endswith("  ready")

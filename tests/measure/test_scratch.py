import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.measure.scratch import PREFIX, Scratch

HOLD = """
import sys, pathlib
from kvbench.measure.scratch import Scratch
scratch = Scratch(pathlib.Path(sys.argv[1])).__enter__()
(scratch.path / "data").write_bytes(b"x" * 100)
print(scratch.path, flush=True)
sys.stdin.read()
"""


def holder(directory: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_missing_directory_is_made_and_tidied_away_again(tmp_path: Path) -> None:
    with Scratch(tmp_path / "a" / "b") as scratch:
        (scratch.path / "data").write_bytes(b"x")
        assert scratch.path.parent == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_there_stays_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with Scratch(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process, left = holder(tmp_path)
    process.kill()
    process.communicate()
    assert left.exists()
    with Scratch(tmp_path) as scratch:
        assert not left.exists()
        assert scratch.path.exists()


def test_the_directory_of_a_living_run_is_left_alone(tmp_path: Path) -> None:
    process, held = holder(tmp_path)
    try:
        with Scratch(tmp_path):
            assert (held / "data").exists()
    finally:
        process.kill()
        process.communicate()


def test_a_directory_of_that_name_without_a_lock_is_not_ours_to_remove(tmp_path: Path) -> None:
    foreign = tmp_path / f"{PREFIX}notes"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("keep")
    with Scratch(tmp_path):
        pass
    assert (foreign / "thesis.tex").exists()


@pytest.mark.parametrize("place", ["/proc/no/such", "file/inside"])
def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match=r"cannot write to .*; name a directory .* with --dir"),
        Scratch(tmp_path / place),
    ):
        pass

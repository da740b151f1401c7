"""How hot loops are compiled, and that they run without a compiler too."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kvbench.sim.jit import COMPILES, compiled
from kvbench.sim.replay import replay
from tests.sim.small_traces import conversations

ROOT = Path(__file__).parents[2]
PLAIN = """
from kvbench.sim.jit import COMPILES, compiled
from kvbench.sim.replay import replay
from tests.sim.small_traces import conversations
assert not COMPILES and compiled(len) is len
print(replay(conversations(3, 60, 12), "leaf-arc", 16, victims=True).victims.tolist())
"""


@compiled
def _plus(array: NDArray[np.int64], number: int) -> int:
    return int(array[0]) + number


@compiled
def _sum(array: NDArray[np.int64]) -> int:
    return _plus(array, 1) + _plus(array, 2) + _plus(array, int(array[0]))


@pytest.mark.skipif(not COMPILES, reason="needs numba")
def test_constants_that_a_caller_passes_are_not_compiled_apart() -> None:
    assert _sum(np.array([1], np.int64)) == 2 + 3 + 2
    # Once, or not at all: the code of an earlier run is taken whole
    assert len(_plus.signatures) <= 1  # type: ignore[attr-defined] # what numba makes has it


def test_without_numba_a_replay_decides_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN],
        cwd=ROOT,
        env={**os.environ, "KVBENCH_NO_NUMBA": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    victims = replay(conversations(3, 60, 12), "leaf-arc", 16, victims=True).victims.tolist()
    assert len(victims) > 16
    assert done.stdout == f"{victims}\n"


@pytest.mark.skipif(not COMPILES, reason="needs numba")
def test_machine_code_of_sources_long_gone_is_removed_when_new_code_is_made(tmp_path: Path) -> None:
    old, young = (tmp_path / "kvbench" / f"compiled-{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "index").touch()
    os.utime(old, (0, time.time() - 31 * 86_400))
    subprocess.run(
        [sys.executable, "-c", "import kvbench.sim.jit"],
        cwd=ROOT,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
    )
    assert young.exists()
    assert not old.exists()

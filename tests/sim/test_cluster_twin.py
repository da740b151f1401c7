"""The simulator's loop gives what its slow, obvious twin gives, for clusters of every kind."""

import json
import os
import subprocess
import sys
from typing import Any

CASES = 72  # each architecture under each routing rule twice


def cases(first: int, count: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.sim.cluster_cases", str(first), str(count)],
        env={**os.environ, "KVBENCH_NO_NUMBA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_architecture_and_router_gives_what_the_plain_twin_gives_to_the_last_bit() -> None:
    found = cases(0, CASES)
    assert found["wrong"] == []
    # Else nothing was compared: blocks came from everywhere, some were refused, hints were stale.
    assert all(found["seen"].values()), found["seen"]
    # The critical path is all of the time to the first token.
    assert found["parts"] < 1e-9

"""The compiled loop, the same loop in plain Python, and the reference: one outcome, to the byte."""

import dataclasses
import os
import random
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import xxhash

from kvbench.sim.cluster import build, simulate
from kvbench.sim.cluster.reference_outcome import simulate_reference
from kvbench.sim.cluster.rules import RULES
from kvbench.sim.cluster.simulate import simulate_tables
from kvbench.sim.columns import Columns
from kvbench.sim.outcome import Outcome
from kvbench.sim.scenario import Architecture, Prefill, Router, Scenario
from tests.sim import cluster_cases
from tests.sim.clusters import columns, scenario, tier

# Compiling takes a minute where nothing is on disk yet and others use the processor too.
pytestmark = pytest.mark.timeout(600)

QUICK = Prefill(fixed_s=0.1, per_token_s=0.0, per_token2_s=0.0)
KINDS = [(architecture, rule) for architecture in Architecture for rule in RULES]


def case(number: int) -> tuple[Columns, Scenario]:
    draw = random.Random(number)
    trace = cluster_cases.trace(draw)
    wanted = cluster_cases.scenario(draw, *KINDS[number % len(KINDS)])
    return trace, msgspec.structs.replace(wanted, on_arrival=draw.random() < 0.2)


def digest(outcome: Outcome) -> str:
    """Of all bytes of an outcome; a NaN is a NaN."""
    hashed = xxhash.xxh3_64()
    for part in (outcome.requests, outcome.use):
        for field in dataclasses.fields(part):
            value = np.asarray(getattr(part, field.name))
            wide = value.astype(np.float64 if value.dtype.kind == "f" else np.int64)
            hashed.update(np.ascontiguousarray(np.where(np.isnan(wide), np.nan, wide)).data)
    return hashed.hexdigest()


@pytest.mark.parametrize("number", range(2 * len(KINDS)))
def test_the_loop_and_the_reference_agree_on_every_byte_of_an_outcome(number: int) -> None:
    trace, wanted = case(number)
    ours, other = simulate_tables(trace, wanted), simulate_reference(trace, wanted)
    for part in ("requests", "use"):
        for field in dataclasses.fields(getattr(ours, part)):
            np.testing.assert_array_equal(
                getattr(getattr(ours, part), field.name),
                getattr(getattr(other, part), field.name),
                err_msg=f"{part}.{field.name}, {KINDS[number % len(KINDS)]}",
            )


def test_a_process_without_numba_gives_the_same_bytes() -> None:
    numbers = range(100, 112)
    program = (
        "from tests.sim.test_cluster_compiled import case, digest\n"
        "from kvbench.sim.cluster import simulate\n"
        "from kvbench.sim.cluster.simulate import simulate_tables\n"
        f"for number in {numbers!r}:\n"
        "    print(digest(simulate(*case(number))), digest(simulate_tables(*case(number))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KVBENCH_NO_NUMBA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = [digest(simulate(*case(number))) for number in numbers]
    assert done.stdout.split() == [each for each in here for _ in range(2)]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    trace = columns([0.5 * i for i in range(40)], [[i % 7, 10 + i] for i in range(40)])
    first, again, other = (
        digest(simulate(trace, scenario(nodes=4, router=Router(name="random"), seed=seed)))
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_tables_grow_while_a_simulation_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    # More blocks on their way to a slow drive, and more news, than there is room for at first.
    for name, rows in (("FLOWS", 70), ("CELLS", 1), ("NEWS", 170)):
        monkeypatch.setattr(build, name, rows)
    blocks = [[8 * i + depth for depth in range(8)] for i in range(200)]
    trace = columns([float(i) for i in range(200)], blocks)
    drive = tier("nvme", 1600, bytes_per_s=1.0, staging_blocks=1600)
    wanted = scenario(
        nodes=2, tiers=(tier("hbm", 100), drive), directory_delay_s=1e6, prefill=QUICK
    )
    assert digest(simulate_tables(trace, wanted)) == digest(simulate_reference(trace, wanted))

"""Sweeps on a Ray cluster: two node processes on this machine, through Ray's own local cluster."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from kvbench.cli import app
from kvbench.errors import UsageError
from kvbench.sim.ray_cluster import run_on_ray
from kvbench.sim.sweep import run_jobs
from tests.sim import fakes
from tests.sim.test_sweep import jobs, trace

MISSING = "needs the extra ray: pip install 'kvbench[ray]'"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    library = pytest.importorskip("ray.cluster_utils", reason=MISSING)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # for its workers, which import the fakes
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    running = library.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    running.add_node(num_cpus=1)
    yield running
    running.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ray_cluster_of_two_nodes_gives_the_figures_of_one_process(cluster: Any) -> None:
    wanted = jobs(6, requests=30, request=1, dollars_per_hour=3.0)

    here = run_jobs(trace(), wanted, fakes.refusing, workers=1)
    there = run_on_ray(trace(), wanted, fakes.refusing, address=cluster.address)

    assert msgspec.json.encode(there) == msgspec.json.encode(here)
    assert here[2].reason == "no such tier"


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(600)  # compiles, once in each process of the cluster that finds no code yet
def test_the_command_gives_the_same_bytes_with_one_process_with_two_and_on_ray(
    cluster: Any,
) -> None:
    sweep = ["--requests", "2000", "--sweep", "dram_gib=0,64", "--sweep", "architecture=none,p2p"]
    texts: list[str] = []
    for where in (["--jobs", "1"], ["--jobs", "2"], ["--ray", cluster.address]):
        ran = CliRunner().invoke(app, ["simulate", "--nodes", "3", *sweep, *where, "--json"])
        assert ran.exit_code == 0, ran.exception
        texts.append(ran.stdout)

    assert len(json.loads(texts[0])["runs"]) == 4
    assert texts[1:] == texts[:1] * 2


def test_without_a_cluster_at_that_address_it_says_so_in_one_line() -> None:
    pytest.importorskip("ray", reason=MISSING)

    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1") as error:
        run_on_ray(trace(), jobs(1), fakes.quick, address="127.0.0.1:1")
    assert "\n" not in str(error.value)


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(UsageError, match=r"pip install 'kvbench\[ray\]'"):
        run_on_ray(trace(), jobs(1), fakes.quick, address="auto")

"""What several folders of tests need: a model, this machine, a quick plan, a drive to measure."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

from kvbench.geometry import KVGeometry, load_geometry
from kvbench.machine import Machine, probe_machine
from kvbench.measure.result import Row
from kvbench.measure.runner import CaseFinished, Setting, run_case
from kvbench.measure.suite import Case, Plan

# cuFile writes its log to the current directory unless told otherwise; workers are told by the run.
os.environ.setdefault("CUFILE_LOGFILE_PATH", os.devnull)

# A shell starts a background job with Ctrl-C ignored, and its children inherit that: tests that
# interrupt a command would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A few examples each time, others every time: a test that needs more says so. Nightly: many.
settings.register_profile("quick", max_examples=30, print_blob=True)
settings.register_profile("nightly", max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# Long enough for every rule to act, short enough for a test suite on two cores.
QUICK = Plan(
    processes=1,
    time_limit_s=0.2,
    min_time_s=0.1,
    warmup_s=0.05,
    min_samples=6,
    data_bytes=16 * 2**20,
)


@pytest.fixture(scope="session")
def llama() -> KVGeometry:
    return load_geometry("llama-3.1-8b")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return probe_machine(tmp_path)


@pytest.fixture
def drive(machine: Machine) -> Machine:
    """This machine with tests' files on a real drive that reads past the page cache."""
    storage = machine.storage
    if storage is None or storage.device_kind == "memory" or not storage.direct_io:
        pytest.skip("the tests' temporary directory is not on a drive with O_DIRECT")
    return machine


@pytest.fixture
def setting(llama: KVGeometry, machine: Machine, tmp_path: Path) -> Setting:
    return Setting(geometry=llama, machine=machine, plan=QUICK, seed=7, scratch=tmp_path)


def measure(case: Case, setting: Setting) -> Row:
    """The row of a case, from real worker processes."""
    events = list(run_case(case, setting))
    last = events[-1]
    assert isinstance(last, CaseFinished)
    return last.row

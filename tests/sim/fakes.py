"""Stand-ins for the simulator that worker processes can import: fast, slow, failing, dying."""

import os
import signal
from pathlib import Path

from kvbench.errors import UsageError
from kvbench.sim.columns import Columns
from kvbench.sim.outcome import Outcome
from kvbench.sim.scenario import Scenario
from tests.reports.simulations import make_outcome

BAD_SEED = 2


def quick(columns: Columns, scenario: Scenario) -> Outcome:
    """Other figures for other seeds and for other parts of the trace."""
    return make_outcome(columns.requests, slower=1.0 + scenario.seed + float(columns.arrival_s[-1]))


def refusing(columns: Columns, scenario: Scenario) -> Outcome:
    if scenario.seed == BAD_SEED:
        raise UsageError("no such tier")
    return quick(columns, scenario)


def dying(columns: Columns, scenario: Scenario) -> Outcome:
    if scenario.seed == BAD_SEED:
        os.kill(os.getpid(), signal.SIGKILL)
    return quick(columns, scenario)


def wrong(columns: Columns, scenario: Scenario) -> Outcome:
    if scenario.seed == BAD_SEED:
        raise ZeroDivisionError("a bug of ours")
    return quick(columns, scenario)


def endless(columns: Columns, scenario: Scenario) -> Outcome:
    """Says that it has begun, by its process id, and never ends."""
    Path(f"began-{scenario.seed}-{os.getpid()}").touch()
    while columns.requests:
        signal.pause()
    return quick(columns, scenario)

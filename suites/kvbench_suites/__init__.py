"""The suites that ship with kvbench and the operations that users' own suites are made of.

A new suite is one module and one line here. Nothing registers itself by being imported.
"""

from pathlib import Path

from kvbench.errors import UsageError
from kvbench.measure.suite import Operation, Suite
from kvbench_suites import (
    dram,
    everything,
    hbm,
    interference,
    kernel_suite,
    kernels,
    nvme,
    peer,
    peer_faults,
    replay,
    store,
)
from kvbench_suites.toml_file import load_suite

SUITES: tuple[Suite, ...] = (
    everything.QUICK,
    everything.FULL,
    everything.CI,
    hbm.SUITE,
    kernel_suite.SUITE,
    dram.SUITE,
    nvme.SUITE,
    store.SUITE,
    replay.SUITE,
    peer.SUITE,
    peer_faults.SUITE,
    interference.SUITE,
)
OPERATIONS: tuple[Operation, ...] = (
    *hbm.OPERATIONS,
    *kernels.OPERATIONS,
    *dram.OPERATIONS,
    *nvme.OPERATIONS,
    *store.OPERATIONS,
    *replay.OPERATIONS,
    *peer.OPERATIONS,
    *peer_faults.OPERATIONS,
)


def find_suite(name: str) -> Suite:
    """The suite called `name`, or the one in the TOML file of that path.

    Raises:
        UsageError: there is none of that name, or the file is wrong.
    """
    for suite in SUITES:
        if suite.name == name:
            return suite
    if name.endswith(".toml"):
        return load_suite(Path(name), OPERATIONS)
    known = ", ".join(suite.name for suite in SUITES)
    raise UsageError(f"no suite named {name!r}; there are: {known}, or a path ending in .toml")

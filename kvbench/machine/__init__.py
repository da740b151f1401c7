"""What this machine is: one frozen record, probed once, that goes into every report.

`probe_machine` looks; `doctor.checklist` judges what it found. Never imports torch or kvikio,
never needs root, and never fails because a fact is missing: such a fact is None.
"""

from kvbench.machine.privacy import redact_argument, redact_path, redact_text, shell_quoted
from kvbench.machine.probe import identity, probe_machine
from kvbench.machine.record import (
    Cgroup,
    Cpu,
    Cuda,
    Gpu,
    Kvikio,
    Machine,
    Memory,
    NumaNode,
    Os,
    Storage,
)

__all__ = [
    "Cgroup",
    "Cpu",
    "Cuda",
    "Gpu",
    "Kvikio",
    "Machine",
    "Memory",
    "NumaNode",
    "Os",
    "Storage",
    "identity",
    "probe_machine",
    "redact_argument",
    "redact_path",
    "redact_text",
    "shell_quoted",
]

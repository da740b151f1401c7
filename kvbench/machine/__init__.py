"""What this machine is: one frozen record, probed once, that goes into every report.

`probe_machine` looks; `doctor.checklist` judges what it found. Never imports torch or kvikio,
never needs root, and never fails because a fact is missing: such a fact is None.
What looks is imported when it is first named: a worker process is handed the record, and to import
the probe would be a sixth of its start.
"""

from typing import TYPE_CHECKING

from kvbench.machine.privacy import redact_argument, redact_path, redact_text, shell_quoted
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

if TYPE_CHECKING:
    from kvbench.machine.probe import identity, probe_machine
else:  # type checkers would take any name for one that this knows

    def __getattr__(name: str) -> object:
        if name not in {"identity", "probe_machine"}:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from kvbench.machine import probe  # noqa: PLC0415 - see above

        return getattr(probe, name)


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

"""The checklist: what this machine offers to KV-cache measurements, and what holds it back.

Pure functions from a machine record to checks, so that a report from another machine can be
judged as well. Looks at nothing itself and prints nothing.
"""

from kvbench.machine import doctor_gpu, doctor_host, doctor_storage
from kvbench.machine.check import Check
from kvbench.machine.record import Machine

_CHECKS = (
    doctor_gpu.gpu,
    doctor_gpu.gpu_link,
    doctor_gpu.gpu_throttling,
    doctor_gpu.gpu_clocks,
    doctor_gpu.gpu_sharing,
    doctor_gpu.kvikio,
    doctor_storage.drive,
    doctor_storage.direct_io,
    doctor_storage.drive_link,
    doctor_storage.free_space,
    doctor_storage.gds,
    doctor_host.cores,
    doctor_host.governor,
    doctor_host.virtual_machine,
    doctor_host.numa,
    doctor_host.memory_bandwidth,
    doctor_host.locked_memory,
    doctor_host.huge_pages,
    doctor_host.memory_limit,
)


def checklist(machine: Machine) -> list[Check]:
    """Every check that applies, in the order in which they are printed.

    Checks of a GPU are left out without a GPU, those of a directory without a directory.
    """
    return [check for judge in _CHECKS if (check := judge(machine)) is not None]

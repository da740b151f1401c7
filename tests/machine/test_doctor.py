from collections.abc import Callable

import msgspec
import pytest

from kvbench.machine import (
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
    doctor_gpu,
    doctor_host,
    doctor_storage,
)
from kvbench.machine.check import Check, Status
from kvbench.machine.doctor import checklist

GIB = 2**30

H100 = Gpu(
    index=0,
    cuda_index=0,
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=80 * GIB,
    pcie_generation=5,
    pcie_width=16,
    pcie_generation_max=5,
    pcie_width_max=16,
    pcie_bytes_per_s=63.0e9,
    performance_state=0,
    sm_clock_hz=1_980_000_000,
    sm_clock_max_hz=1_980_000_000,
    numa_node=0,
    mig=False,
    other_processes=0,
)
NVME = Storage(
    directory="/data",
    filesystem="ext4",
    block_device="nvme0n1p1",
    drives=["nvme0n1"],
    device_kind="nvme",
    device_model="Fast 3.84TB",
    rotational=False,
    numa_node=0,
    link_generation=4,
    link_width=4,
    link_generation_max=4,
    link_width_max=4,
    link_bytes_per_s=7.877e9,
    link_source="PCIe 4 x4",
    writable=True,
    direct_io=True,
    direct_io_alignment_bytes=512,
    total_bytes=4000 * GIB,
    free_bytes=3000 * GIB,
    gds="nvidia-fs",
    gds_reason="the nvidia-fs module is loaded",
)
MEMORY = Memory(
    total_bytes=512 * GIB,
    available_bytes=500 * GIB,
    locked_limit_source="unlimited",
    huge_page_bytes=2 * 2**20,
    huge_pages_total=512,
    huge_pages_free=512,
    transparent_huge_pages="madvise",
    bandwidth_bytes_per_s=204.8e9,
    bandwidth_source="SMBIOS",
)
CPU = Cpu(
    model="EPYC",
    logical_cores=64,
    physical_cores=32,
    sockets=2,
    affinity_cores=64,
    governor="performance",
    virtualised=False,
)
GOOD = Machine(
    gpus=[H100],
    cuda=Cuda(driver_version="570.86.15", cuda_driver_version="12.8", pci_gpus=1),
    cpu=CPU,
    numa_nodes=[NumaNode(index=0, cpus=[0]), NumaNode(index=1, cpus=[1])],
    memory=MEMORY,
    storage=NVME,
    kvikio=Kvikio(package="kvikio-cu12", version="26.10.0", libcuda=True, usable=True),
    os=Os(distribution="Ubuntu 24.04 LTS", container=False),
)


def gpu(**facts: object) -> Machine:
    return msgspec.structs.replace(GOOD, gpus=[msgspec.structs.replace(H100, **facts)])


def no_gpu(*, pci_gpus: int, **facts: object) -> Machine:
    cuda = Cuda(nvml_error="NVML: Driver Not Loaded", pci_gpus=pci_gpus)
    return msgspec.structs.replace(GOOD, gpus=[], cuda=cuda, **facts)


def storage(**facts: object) -> Machine:
    return msgspec.structs.replace(GOOD, storage=msgspec.structs.replace(NVME, **facts))


def memory(**facts: object) -> Machine:
    return msgspec.structs.replace(GOOD, memory=msgspec.structs.replace(MEMORY, **facts))


def cpu(**facts: object) -> Machine:
    return msgspec.structs.replace(GOOD, cpu=msgspec.structs.replace(CPU, **facts))


def machine(**facts: object) -> Machine:
    return msgspec.structs.replace(GOOD, **facts)


def test_on_a_well_set_up_machine_everything_is_present_and_nothing_needs_fixing() -> None:
    checks = checklist(GOOD)

    assert len(checks) == 19
    assert [check.name for check in checks if check.status is not Status.PRESENT] == []
    assert [check.name for check in checks if check.fix or check.cost] == []


FLAWS: list[tuple[Callable[[Machine], Check | None], Machine, Status, str, str]] = [
    # check, machine, status, word in what was seen, word in the fix
    (doctor_gpu.gpu, no_gpu(pci_gpus=1), Status.MISSING, "Driver Not Loaded", "ubuntu-drivers"),
    (doctor_gpu.gpu, no_gpu(pci_gpus=0), Status.MISSING, "no NVIDIA GPU", "machine with"),
    (doctor_gpu.gpu, no_gpu(pci_gpus=1, os=Os(container=True)), Status.MISSING, "", "--gpus all"),
    (doctor_gpu.gpu, gpu(cuda_index=None), Status.MISSING, "hides all 1", "unset CUDA_VISIBLE"),
    (doctor_gpu.gpu_link, gpu(pcie_width=8), Status.DEGRADED, "x8", "16 lanes"),
    (doctor_gpu.gpu_link, gpu(pcie_generation=3), Status.DEGRADED, "generation 5", "nvidia-smi"),
    (
        doctor_gpu.gpu_throttling,
        gpu(throttle_reasons=["power cap"]),
        Status.DEGRADED,
        "power cap",
        "nvidia-smi -q -d PERFORMANCE",
    ),
    (doctor_gpu.gpu_clocks, gpu(sm_clock_hz=345_000_000), Status.DEGRADED, "345 MHz", "-lgc 1980"),
    (doctor_gpu.gpu_sharing, gpu(other_processes=2), Status.DEGRADED, "2 other", "nvidia-smi"),
    (doctor_gpu.gpu_sharing, gpu(mig=True), Status.DEGRADED, "MIG", "-mig 0"),
    (
        doctor_gpu.kvikio,
        machine(kvikio=Kvikio(reason="not installed", fix="pip install 'kvbench[cu12]'")),
        Status.MISSING,
        "not installed",
        "pip install",
    ),
    (doctor_storage.drive, storage(device_kind="memory"), Status.MISSING, "memory", "findmnt"),
    (doctor_storage.drive, storage(device_kind="virtio"), Status.DEGRADED, "virtio", "findmnt"),
    (doctor_storage.drive, storage(rotational=True), Status.DEGRADED, "rotational", "findmnt"),
    (doctor_storage.drive, storage(writable=False), Status.MISSING, "not writable", "findmnt"),
    (
        doctor_storage.direct_io,
        storage(direct_io=False, direct_io_reason="refused"),
        Status.MISSING,
        "refused",
        "findmnt",
    ),
    (doctor_storage.drive_link, storage(link_width=2), Status.DEGRADED, "x4", "lspci"),
    (doctor_storage.drive_link, storage(link_generation=3), Status.DEGRADED, "PCIe 4", "lspci"),
    (doctor_storage.free_space, storage(free_bytes=GIB), Status.DEGRADED, "1 GiB", "findmnt"),
    (doctor_storage.gds, storage(gds="compat"), Status.DEGRADED, "compat", "modprobe nvidia-fs"),
    (
        doctor_storage.gds,
        storage(gds="compat", gds_reason="KVIKIO_COMPAT_MODE asks for it"),
        Status.DEGRADED,
        "asks for it",
        "unset KVIKIO_COMPAT_MODE",
    ),
    (doctor_host.cores, cpu(affinity_cores=8), Status.DEGRADED, "may use 8", "taskset -pc 0-63"),
    (
        doctor_host.cores,
        machine(cgroup=Cgroup(cpu_quota_cores=1.5)),
        Status.DEGRADED,
        "1.5 cores",
        "--cpus",
    ),
    (doctor_host.governor, cpu(governor="powersave"), Status.DEGRADED, "powersave", "performance"),
    (
        doctor_host.virtual_machine,
        cpu(virtualised=True, hypervisor="KVM"),
        Status.DEGRADED,
        "KVM",
        "instance",
    ),
    (
        doctor_host.numa,
        machine(gpus=[msgspec.structs.replace(H100, numa_node=1)]),
        Status.DEGRADED,
        "drive on node 0",
        "numactl --cpunodebind=1",
    ),
    (
        doctor_host.locked_memory,
        memory(locked_limit_bytes=8 * 2**20, locked_limit_source="RLIMIT_MEMLOCK"),
        Status.DEGRADED,
        "8 MiB",
        "--memlock=unlimited",
    ),
    (
        doctor_host.huge_pages,
        memory(transparent_huge_pages="never"),
        Status.DEGRADED,
        "512 of 512 reserved pages of 2 MiB",
        "echo madvise",
    ),
    (
        doctor_host.memory_limit,
        machine(cgroup=Cgroup(memory_bytes=4 * GIB)),
        Status.DEGRADED,
        "allows 4 GiB",
        "--memory",
    ),
]


@pytest.mark.parametrize(
    ("check", "flawed", "status", "seen", "fix"),
    FLAWS,
    ids=[f"{check.__name__}-{fix or seen}" for check, _, _, seen, fix in FLAWS],
)
def test_each_flaw_is_seen_with_its_cost_and_its_fix(
    check: Callable[[Machine], Check | None], flawed: Machine, status: Status, seen: str, fix: str
) -> None:
    found = check(flawed)

    assert found is not None
    assert found.status is status
    assert seen in found.seen
    assert found.cost
    assert fix in (found.fix or "")


@pytest.mark.parametrize(
    ("check", "silent"),
    [
        (doctor_gpu.gpu_link, gpu(pcie_generation=None, pcie_width=None)),
        (doctor_storage.drive_link, storage(link_bytes_per_s=None)),
        (doctor_storage.direct_io, storage(direct_io=False, writable=False)),
        (doctor_storage.free_space, storage(free_bytes=None)),
        (doctor_host.governor, cpu(governor=None)),
        (doctor_host.memory_bandwidth, memory(bandwidth_bytes_per_s=None)),
        (doctor_host.locked_memory, memory(locked_limit_source=None)),
    ],
)
def test_what_a_machine_does_not_tell_is_unknown_and_never_called_good(
    check: Callable[[Machine], Check | None], silent: Machine
) -> None:
    found = check(silent)

    assert found is not None
    assert found.status is Status.UNKNOWN


def test_an_empty_record_can_be_judged() -> None:
    checks = checklist(Machine())

    assert {check.status for check in checks} == {Status.MISSING, Status.UNKNOWN}


def test_checks_that_cannot_apply_are_left_out() -> None:
    names = {check.name for check in checklist(no_gpu(pci_gpus=0, storage=None))}

    assert not names & {"GPU link", "GPU clocks", "GPUDirect Storage", "Drive", "O_DIRECT"}
    assert {"GPU", "KvikIO", "CPU", "Memory"} <= names


def test_an_idle_gpu_with_a_lowered_link_is_told_to_be_usual() -> None:
    found = doctor_gpu.gpu_link(gpu(pcie_generation=1, performance_state=8))

    assert found is not None
    assert "idle" in (found.cost or "")


def test_a_memory_table_that_root_can_read_has_a_command() -> None:
    reason = "the SMBIOS table is readable by root alone"
    found = doctor_host.memory_bandwidth(
        memory(bandwidth_bytes_per_s=None, bandwidth_reason=reason)
    )

    assert "sudo" in (found.fix or "")


def test_equal_gpus_are_counted() -> None:
    two = msgspec.structs.replace(H100, index=1, cuda_index=1)

    assert "2 x NVIDIA H100" in doctor_gpu.gpu(machine(gpus=[H100, two])).seen


def test_the_drives_below_a_stripe_are_named() -> None:
    found = doctor_storage.drive(storage(block_device="md0", drives=["nvme0n1", "nvme1n1"]))

    assert found is not None
    assert "md0 (nvme0n1, nvme1n1)" in found.seen

"""Checks of processors, memory and the limits set for this process. Pure functions."""

from kvbench.machine.check import Check, Status
from kvbench.machine.record import Machine
from kvbench.units import MIB, format_bytes, format_rate

# The dram suite locks a source and a destination of 256 MiB, more where caches are larger.
_LOCKED_BYTES = 512 * MIB


def cores(machine: Machine) -> Check:
    """All cores may be used."""
    cpu, quota = machine.cpu, machine.cgroup.cpu_quota_cores
    if not cpu.logical_cores:
        return Check(name="CPU", status=Status.UNKNOWN, seen="the kernel does not list its CPUs")
    model = cpu.model or "unknown model"
    seen = f"{model}, {cpu.logical_cores} logical cores"
    if cpu.physical_cores and cpu.sockets:
        seen += f" ({cpu.physical_cores} physical, {cpu.sockets} socket{'s'[: cpu.sockets - 1]})"
    if quota is not None and quota < cpu.logical_cores:
        return Check(
            name="CPU",
            status=Status.DEGRADED,
            seen=f"{seen}; the control group allows {quota:g} cores' worth of time",
            cost="the scheduler stops threads for part of each 100 ms: long tails, low rates",
            fix="start the container or unit without a quota: docker --cpus, systemd CPUQuota=, "
            "Kubernetes limits.cpu",
            fix_is_command=False,
        )
    if cpu.affinity_cores and cpu.affinity_cores < cpu.logical_cores:
        return Check(
            name="CPU",
            status=Status.DEGRADED,
            seen=f"{seen}; this process may use {cpu.affinity_cores}",
            cost="rows for all cores use only those: less than this machine's memory bandwidth",
            fix=f"taskset -pc 0-{cpu.logical_cores - 1} $$",
        )
    return Check(name="CPU", status=Status.PRESENT, seen=seen)


def governor(machine: Machine) -> Check:
    """CPU frequency does not follow the load."""
    seen = machine.cpu.governor
    if seen == "performance":
        return Check(name="CPU governor", status=Status.PRESENT, seen=seen)
    if seen is None:
        return Check(
            name="CPU governor",
            status=Status.UNKNOWN,
            seen="no frequency control to see"
            + (" in a virtual machine" if machine.cpu.virtualised else ""),
            cost="clock changes cannot be told from noise",
        )
    return Check(
        name="CPU governor",
        status=Status.DEGRADED,
        seen=seen,
        cost="copies and I/O submission start slow and speed up while they are measured",
        fix="echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    )


def virtual_machine(machine: Machine) -> Check:
    """Bare metal."""
    if machine.cpu.virtualised is None:
        return Check(name="Bare metal", status=Status.UNKNOWN, seen="/proc/cpuinfo does not say")
    if not machine.cpu.virtualised:
        return Check(name="Bare metal", status=Status.PRESENT, seen="no hypervisor")
    return Check(
        name="Bare metal",
        status=Status.DEGRADED,
        seen=f"virtual machine under {machine.cpu.hypervisor or 'an unnamed hypervisor'}",
        cost="limits of memory and drive may be hidden; neighbours are measured too",
        fix="measure on the kind of instance that you will deploy on, at more than one time of day",
        fix_is_command=False,
    )


def numa(machine: Machine) -> Check:
    """GPU and drive are on one NUMA node, or there is only one."""
    nodes = [node for node in machine.numa_nodes if node.cpus]
    if not nodes:
        return Check(name="NUMA", status=Status.UNKNOWN, seen="the kernel lists no nodes")
    places = {f"GPU {one.index}": one.numa_node for one in machine.visible_gpus}
    if machine.storage is not None:
        places["drive"] = machine.storage.numa_node
    known = {thing: node for thing, node in places.items() if node is not None}
    seen = f"{len(nodes)} node" + ("s" if len(nodes) > 1 else "")
    if known and len(nodes) > 1:
        seen += "; " + ", ".join(f"{thing} on node {node}" for thing, node in known.items())
    if len(nodes) == 1 or len(set(known.values())) <= 1:
        return Check(name="NUMA", status=Status.PRESENT, seen=seen)
    first = next(iter(known.values()))
    return Check(
        name="NUMA",
        status=Status.DEGRADED,
        seen=seen,
        cost="bytes between drive and GPU cross the link between sockets",
        fix=f"numactl --cpunodebind={first} --membind={first} kvbench run quick",
    )


def memory_bandwidth(machine: Machine) -> Check:
    """A theoretical limit to hold DRAM rows against."""
    memory = machine.memory
    if memory.bandwidth_bytes_per_s:
        return Check(
            name="DRAM limit",
            status=Status.PRESENT,
            seen=f"{format_rate(memory.bandwidth_bytes_per_s)} ({memory.bandwidth_source})",
        )
    reason = memory.bandwidth_reason or "not known"
    root_only = "root" in reason
    return Check(
        name="DRAM limit",
        status=Status.UNKNOWN,
        seen=reason,
        cost="DRAM rows have no % of limit",
        fix='sudo "$(command -v kvbench)" doctor'
        if root_only
        else "name the figure of the memory's data sheet: kvbench run quick --limit dram=RATE",
        fix_is_command=root_only,
    )


def locked_memory(machine: Machine) -> Check:
    """Enough memory may be locked."""
    memory = machine.memory
    if memory.locked_limit_source is None:
        return Check(name="Locked memory", status=Status.UNKNOWN, seen="the kernel shows no limit")
    if memory.locked_limit_bytes is None:
        return Check(
            name="Locked memory",
            status=Status.PRESENT,
            seen=f"no limit ({memory.locked_limit_source})",
        )
    seen = f"limit {format_bytes(memory.locked_limit_bytes)}"
    if memory.locked_limit_bytes >= _LOCKED_BYTES:
        return Check(name="Locked memory", status=Status.PRESENT, seen=seen)
    return Check(
        name="Locked memory",
        status=Status.DEGRADED,
        seen=f"{seen}, the dram suite locks {format_bytes(_LOCKED_BYTES)} or more",
        cost="rows with locked memory are skipped, and RDMA cannot register buffers",
        fix="start the container with: docker run --ulimit memlock=-1 ..."
        if machine.os.container
        else "sudo prlimit --pid $$ --memlock=unlimited",
        fix_is_command=not machine.os.container,
    )


def huge_pages(machine: Machine) -> Check:
    """Buffers get huge pages when they ask with madvise, as the suites' locked buffers do.

    Pages reserved with vm.nr_hugepages are only mentioned: nothing here maps hugetlbfs.
    """
    memory, transparent = machine.memory, machine.memory.transparent_huge_pages
    if transparent is None:
        return Check(name="Huge pages", status=Status.UNKNOWN, seen="the kernel does not say")
    seen = f"transparent: {transparent}"
    if memory.huge_page_bytes and memory.huge_pages_total:
        seen += (
            f"; {memory.huge_pages_free} of {memory.huge_pages_total} reserved pages of "
            f"{format_bytes(memory.huge_page_bytes)} free"
        )
    if transparent != "never":
        return Check(name="Huge pages", status=Status.PRESENT, seen=seen)
    return Check(
        name="Huge pages",
        status=Status.DEGRADED,
        seen=seen,
        cost="gathers of scattered blocks pay for TLB misses of 4 KiB pages",
        fix="echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
    )


def memory_limit(machine: Machine) -> Check:
    """The whole memory may be used."""
    total, limit = machine.memory.total_bytes, machine.cgroup.memory_bytes
    if not total:
        return Check(name="Memory", status=Status.UNKNOWN, seen="/proc/meminfo does not say")
    available = machine.memory.available_bytes
    seen = format_bytes(total) + (f", {format_bytes(available)} available" if available else "")
    if limit is None or limit >= total:
        return Check(name="Memory", status=Status.PRESENT, seen=seen)
    return Check(
        name="Memory",
        status=Status.DEGRADED,
        seen=f"{seen}; the control group allows {format_bytes(limit)}",
        cost="page cache counts towards it: a suite near the limit is killed or reads from disk",
        fix="start the container or unit without a limit: docker --memory, systemd MemoryMax=, "
        "Kubernetes limits.memory",
        fix_is_command=False,
    )

"""Processors, NUMA nodes, memory, control group and operating system, from /proc and /sys.

Only reads; a missing file makes a missing fact. Theoretical memory bandwidth is in
`kvbench.machine.dimms`.
"""

import platform
import re

import kvbench
from kvbench.machine.dimms import memory_bandwidth
from kvbench.machine.record import Cgroup, Cpu, Memory, NumaNode, Os
from kvbench.machine.tree import Tree, kib_to_bytes, parse_cpu_list

_CPUS = "sys/devices/system/cpu"
_NODES = "sys/devices/system/node"
_CGROUP_V2 = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
_CAP_IPC_LOCK = 14  # linux/capability.h
_NO_LIMIT_BYTES = 2**60  # cgroup v1 writes a number near 2**63 for "no limit"


def probe_cpu(tree: Tree) -> Cpu:
    """All processors together."""
    info = tree.fields("proc/cpuinfo")
    flags = info.get("flags", "").split()
    online = parse_cpu_list(tree.text(f"{_CPUS}/online"))
    allowed = parse_cpu_list(tree.fields("proc/self/status").get("Cpus_allowed_list"))
    cores: set[tuple[int | None, int | None]] = set()
    l3_caches: dict[str, int] = {}
    for cpu in online:
        topology = f"{_CPUS}/cpu{cpu}/topology"
        cores.add(
            (tree.number(f"{topology}/physical_package_id"), tree.number(f"{topology}/core_id"))
        )
        cache = f"{_CPUS}/cpu{cpu}/cache/index3"
        sharers, size = tree.text(f"{cache}/shared_cpu_list"), tree.text(f"{cache}/size")
        if sharers and size:
            l3_caches[sharers] = kib_to_bytes(size) or 0  # "32768K"
    known = cores and all(package is not None and core is not None for package, core in cores)
    hypervisor = _hypervisor(tree)
    return Cpu(
        model=info.get("model name") or _arm_model(info),
        vendor=info.get("vendor_id") or info.get("CPU implementer"),
        architecture=platform.machine() or None,
        logical_cores=len(online) or None,
        physical_cores=len(cores) if known else None,
        sockets=len({package for package, _ in cores}) if known else None,
        # The kernel's mask names CPUs that could exist; only those online can be used.
        affinity_cores=len(set(allowed) & set(online)) or None,
        l3_bytes=sum(l3_caches.values()) or None,
        governor=tree.text(f"{_CPUS}/cpu0/cpufreq/scaling_governor"),
        virtualised=("hypervisor" in flags or hypervisor is not None) if info else None,
        hypervisor=hypervisor,
    )


def probe_numa(tree: Tree) -> list[NumaNode]:
    """The NUMA nodes that have CPUs or memory; one on most machines, none without /sys."""
    nodes: list[NumaNode] = []
    for name in tree.names(_NODES):
        match = re.fullmatch(r"node(\d+)", name)
        if not match:
            continue
        # "Node 0 MemTotal:   24684092 kB"
        memory = {
            key.split()[-1]: value for key, value in tree.fields(f"{_NODES}/{name}/meminfo").items()
        }
        nodes.append(
            NumaNode(
                index=int(match[1]),
                cpus=parse_cpu_list(tree.text(f"{_NODES}/{name}/cpulist")),
                memory_bytes=kib_to_bytes(memory.get("MemTotal")),
                free_bytes=kib_to_bytes(memory.get("MemFree")),
            )
        )
    return sorted(nodes, key=lambda node: node.index)


def probe_memory(tree: Tree, cgroup: Cgroup) -> Memory:
    """Host memory, locked memory and huge pages."""
    info = tree.fields("proc/meminfo")
    limit_bytes, source = _locked_limit(tree)
    bandwidth = memory_bandwidth(tree)
    return Memory(
        total_bytes=kib_to_bytes(info.get("MemTotal")),
        available_bytes=kib_to_bytes(info.get("MemAvailable")),
        cgroup_limit_bytes=cgroup.memory_bytes,
        locked_limit_bytes=limit_bytes,
        locked_limit_source=source,
        huge_page_bytes=kib_to_bytes(info.get("Hugepagesize")),
        huge_pages_total=_whole(info.get("HugePages_Total")),
        huge_pages_free=_whole(info.get("HugePages_Free")),
        transparent_huge_pages=tree.chosen("sys/kernel/mm/transparent_hugepage/enabled"),
        bandwidth_bytes_per_s=bandwidth.bytes_per_s,
        bandwidth_source=bandwidth.source,
        bandwidth_reason=bandwidth.reason,
    )


def probe_cgroup(tree: Tree) -> Cgroup:
    """The tightest limits on the way from this process's control group up to the root."""
    found = Cgroup()
    for line in (tree.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            for mount in _CGROUP_V2:
                found = _tightest(found, _limits_v2(tree, mount, path))
        if "cpu" in controllers.split(","):
            found = _tightest(found, _limits_v1(tree, f"sys/fs/cgroup/{controllers}", path))
            found = _tightest(found, _limits_v1(tree, "sys/fs/cgroup/cpu", path))
        if "memory" in controllers.split(","):
            found = _tightest(found, _limits_v1(tree, "sys/fs/cgroup/memory", path))
    return found


def probe_os(tree: Tree) -> Os:
    """Kernel, distribution and the software that measures."""
    release = dict(
        line.split("=", 1)
        for line in (tree.text("etc/os-release") or "").splitlines()
        if "=" in line
    )
    vendor, product = (
        tree.text(f"sys/class/dmi/id/{fact}") for fact in ("sys_vendor", "product_name")
    )
    return Os(
        kernel=tree.text("proc/sys/kernel/osrelease"),
        distribution=release.get("PRETTY_NAME", "").strip("\"'") or None,
        python_version=platform.python_version(),
        kvbench_version=kvbench.__version__,
        platform=" ".join(word for word in (vendor, product) if word) or None,
        container=tree.exists(".dockerenv") or tree.exists("run/.containerenv"),
    )


def _hypervisor(tree: Tree) -> str | None:
    """Who runs this virtual machine, where the firmware or the kernel says it."""
    xen = tree.text("sys/hypervisor/type")
    if xen:
        return xen
    firmware = " ".join(
        tree.text(f"sys/class/dmi/id/{fact}") or ""
        for fact in ("sys_vendor", "product_name", "bios_vendor")
    )
    for mark, name in (
        ("KVM", "KVM"),
        ("QEMU", "QEMU/KVM"),
        ("Google Compute Engine", "Google Compute Engine"),
        ("VMware", "VMware"),
        ("VirtualBox", "VirtualBox"),
        ("Virtual Machine", "Hyper-V"),  # product_name of Microsoft's
    ):
        if mark in firmware:
            return name
    # EC2's bare-metal instances carry the same vendor and differ in the product alone.
    if "Amazon EC2" in firmware and ".metal" not in firmware:
        return "Amazon EC2"
    return None


def _arm_model(info: dict[str, str]) -> str | None:
    """ARM's cpuinfo has numbers in place of a name; they tell models apart as well."""
    implementer, part = info.get("CPU implementer"), info.get("CPU part")
    return f"ARM implementer {implementer} part {part}" if implementer and part else None


def _locked_limit(tree: Tree) -> tuple[int | None, str | None]:
    capabilities = tree.fields("proc/self/status").get("CapEff", "")
    # In a user namespace (rootless container) the capability is there and lifts nothing.
    own_users = (tree.text("proc/self/uid_map") or "").split() == ["0", "0", "4294967295"]
    if (
        own_users
        and re.fullmatch(r"[0-9a-f]+", capabilities)
        and int(capabilities, 16) >> _CAP_IPC_LOCK & 1
    ):
        return None, "CAP_IPC_LOCK"
    match = re.search(r"^Max locked memory\s+(\S+)", tree.text("proc/self/limits") or "", re.M)
    if not match:
        return None, None
    return (None, "unlimited") if match[1] == "unlimited" else (int(match[1]), "RLIMIT_MEMLOCK")


def _limits_v2(tree: Tree, mount: str, path: str) -> Cgroup:
    found = Cgroup()
    for group in _ancestors(mount, path):
        quota, _, period = (tree.text(f"{group}/cpu.max") or "").partition(" ")
        memory = tree.text(f"{group}/memory.max") or ""
        level = Cgroup(
            version=2 if quota or memory else None,
            cpu_quota_cores=int(quota) / int(period)
            if quota.isdigit() and period.isdigit()
            else None,
            memory_bytes=int(memory) if memory.isdigit() else None,
        )
        found = _tightest(found, level)
    return found


def _limits_v1(tree: Tree, mount: str, path: str) -> Cgroup:
    found = Cgroup()
    for group in _ancestors(mount, path):
        quota = tree.number(f"{group}/cpu.cfs_quota_us")  # -1: no limit
        period = tree.number(f"{group}/cpu.cfs_period_us")
        memory = tree.number(f"{group}/memory.limit_in_bytes")
        level = Cgroup(
            version=1 if quota is not None or memory is not None else None,
            cpu_quota_cores=quota / period if quota and quota > 0 and period else None,
            memory_bytes=memory if memory is not None and memory < _NO_LIMIT_BYTES else None,
        )
        found = _tightest(found, level)
    return found


def _ancestors(mount: str, path: str) -> list[str]:
    """The group's directory and those above it, up to the mount.

    In a container the path may be the host's and not exist here; the mount itself then is the
    container's group.
    """
    parts = [part for part in path.split("/") if part and part != ".."]
    return ["/".join([mount, *parts[:depth]]) for depth in range(len(parts), -1, -1)]


def _tightest(one: Cgroup, other: Cgroup) -> Cgroup:
    quotas = [group.cpu_quota_cores for group in (one, other) if group.cpu_quota_cores is not None]
    sizes = [group.memory_bytes for group in (one, other) if group.memory_bytes is not None]
    return Cgroup(
        version=one.version or other.version,
        cpu_quota_cores=min(quotas, default=None),
        memory_bytes=min(sizes, default=None),
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kvbench.machine.host import probe_cgroup, probe_cpu, probe_memory, probe_numa, probe_os
from kvbench.machine.record import Cgroup
from kvbench.machine.tree import Tree, parse_cpu_list

LayOut = Callable[[Mapping[str, str | bytes]], Path]

CPUS = "sys/devices/system/cpu"
NODES = "sys/devices/system/node"
LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n"
ROOT_NAMESPACE = "         0          0 4294967295\n"


def two_sockets() -> dict[str, str]:
    """Two sockets of two cores with two threads each; one L3 a socket."""
    files = {
        f"{CPUS}/online": "0-7\n",
        "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-3,64-127\n",
        "proc/cpuinfo": "processor : 0\nvendor_id : GenuineIntel\nmodel name : Xeon\nflags : fpu\n"
        "\nprocessor : 1\nvendor_id : Other\n",
        f"{CPUS}/cpu0/cpufreq/scaling_governor": "powersave\n",
    }
    for cpu in range(8):
        socket, core = cpu // 4, cpu % 2
        files[f"{CPUS}/cpu{cpu}/topology/physical_package_id"] = f"{socket}\n"
        files[f"{CPUS}/cpu{cpu}/topology/core_id"] = f"{core}\n"
        files[f"{CPUS}/cpu{cpu}/cache/index3/size"] = "32768K\n"
        files[f"{CPUS}/cpu{cpu}/cache/index3/shared_cpu_list"] = f"{socket * 4}-{socket * 4 + 3}\n"
    for node in range(2):
        files[f"{NODES}/node{node}/cpulist"] = f"{node * 4}-{node * 4 + 3}\n"
        files[f"{NODES}/node{node}/meminfo"] = (
            f"Node {node} MemTotal:  1048576 kB\nNode {node} MemFree:  {1024 * (node + 1)} kB\n"
        )
    files[f"{NODES}/possible"] = "0-1\n"
    return files


def test_threads_cores_and_sockets_are_counted_apart(lay_out: LayOut) -> None:
    cpu = probe_cpu(Tree(lay_out(two_sockets())))

    assert (cpu.logical_cores, cpu.physical_cores, cpu.sockets) == (8, 4, 2)
    assert (cpu.model, cpu.vendor, cpu.governor) == ("Xeon", "GenuineIntel", "powersave")
    assert cpu.virtualised is False


def test_a_cache_that_cores_share_is_counted_once(lay_out: LayOut) -> None:
    assert probe_cpu(Tree(lay_out(two_sockets()))).l3_bytes == 2 * 32 * 2**20


def test_cores_that_are_allowed_but_not_there_do_not_count(lay_out: LayOut) -> None:
    assert probe_cpu(Tree(lay_out(two_sockets()))).affinity_cores == 4


def test_both_numa_nodes_are_listed_with_their_memory(lay_out: LayOut) -> None:
    nodes = probe_numa(Tree(lay_out(two_sockets())))

    assert [node.cpus for node in nodes] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [node.memory_bytes for node in nodes] == [2**30, 2**30]
    assert [node.free_bytes for node in nodes] == [2**20, 2 * 2**20]


def test_a_hypervisor_is_seen_in_the_cpu_flags_and_named_by_the_firmware(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/cpuinfo": "flags : fpu hypervisor sse\n",
            "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
            "sys/class/dmi/id/product_name": "p5.48xlarge\n",
        }
    )

    assert probe_cpu(Tree(root)).virtualised is True
    assert probe_cpu(Tree(root)).hypervisor == "Amazon EC2"
    assert probe_os(Tree(root)).platform == "Amazon EC2 p5.48xlarge"


def test_a_bare_metal_instance_of_a_cloud_is_bare_metal(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/cpuinfo": "flags : fpu sse\n",
            "sys/class/dmi/id/sys_vendor": "Amazon EC2\n",
            "sys/class/dmi/id/product_name": "i4i.metal\n",
        }
    )

    assert probe_cpu(Tree(root)).virtualised is False


def test_an_arm_processor_is_told_apart_by_its_numbers(lay_out: LayOut) -> None:
    root = lay_out({"proc/cpuinfo": "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd4f\n"})

    assert probe_cpu(Tree(root)).model == "ARM implementer 0x41 part 0xd4f"


def test_an_empty_machine_gives_an_empty_record_and_no_error(lay_out: LayOut) -> None:
    tree = Tree(lay_out({}))
    cpu, memory = probe_cpu(tree), probe_memory(tree, Cgroup())

    assert (cpu.model, cpu.logical_cores, cpu.sockets, cpu.virtualised) == (None,) * 4
    assert (memory.total_bytes, memory.locked_limit_source, memory.huge_pages_total) == (None,) * 3
    assert probe_numa(tree) == []
    assert probe_cgroup(tree) == Cgroup()
    assert probe_os(tree).kernel is None


@pytest.mark.parametrize(
    "junk", ["", "\0\0", "garbage", "MemTotal: many kB\n", "Max locked memory"]
)
def test_files_that_make_no_sense_are_missing_facts(lay_out: LayOut, junk: str) -> None:
    names = [
        "proc/meminfo",
        "proc/self/limits",
        "proc/self/status",
        "proc/cpuinfo",
        f"{CPUS}/online",
    ]
    tree = Tree(lay_out({**dict.fromkeys(names, junk), "proc/self/cgroup": junk}))

    assert probe_memory(tree, probe_cgroup(tree)).total_bytes is None
    assert probe_cpu(tree).logical_cores is None


def test_memory_is_in_bytes_and_the_kernels_kb_are_1024(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/meminfo": "MemTotal: 24684092 kB\nMemAvailable: 1000 kB\nHugePages_Total: 512\n"
            "HugePages_Free: 500\nHugepagesize: 2048 kB\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        }
    )
    memory = probe_memory(Tree(root), Cgroup(memory_bytes=7))

    assert memory.total_bytes == 24684092 * 1024
    assert memory.available_bytes == 1024000
    assert (memory.huge_pages_total, memory.huge_pages_free) == (512, 500)
    assert memory.huge_page_bytes == 2 * 2**20
    assert memory.transparent_huge_pages == "madvise"
    assert memory.cgroup_limit_bytes == 7


@pytest.mark.parametrize(
    ("limit", "capabilities", "users", "expected"),
    [
        ("8388608", "0000000000000000", ROOT_NAMESPACE, (8388608, "RLIMIT_MEMLOCK")),
        ("unlimited", "0000000000000000", ROOT_NAMESPACE, (None, "unlimited")),
        ("8388608", "000001fffeffffff", ROOT_NAMESPACE, (None, "CAP_IPC_LOCK")),
        # Root of a rootless container has the capability in name only.
        ("8388608", "000001fffeffffff", "0 1000 1\n", (8388608, "RLIMIT_MEMLOCK")),
    ],
)
def test_the_locked_memory_limit_is_the_one_that_the_kernel_applies(
    lay_out: LayOut, limit: str, capabilities: str, users: str, expected: tuple[int | None, str]
) -> None:
    root = lay_out(
        {
            "proc/self/limits": f"{LIMITS}Max locked memory         {limit}   {limit}   bytes\n",
            "proc/self/status": f"CapEff:\t{capabilities}\n",
            "proc/self/uid_map": users,
        }
    )
    memory = probe_memory(Tree(root), Cgroup())

    assert (memory.locked_limit_bytes, memory.locked_limit_source) == expected


def test_the_tightest_limit_on_the_way_up_a_control_group_counts(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/self/cgroup": "0::/batch.slice/job\n",
            "sys/fs/cgroup/batch.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/batch.slice/memory.max": "max\n",
            "sys/fs/cgroup/batch.slice/job/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/batch.slice/job/memory.max": "1073741824\n",
        }
    )

    assert probe_cgroup(Tree(root)) == Cgroup(
        version=2, cpu_quota_cores=1.5, memory_bytes=1073741824
    )


def test_a_container_that_shows_its_hosts_path_still_finds_its_limit(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/self/cgroup": "0::/../../docker/4f1c\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        }
    )

    assert probe_cgroup(Tree(root)).cpu_quota_cores == 2.0


def test_version_1_control_groups_are_read(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/self/cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "2147483648\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        }
    )

    assert probe_cgroup(Tree(root)) == Cgroup(
        version=1, cpu_quota_cores=0.5, memory_bytes=2147483648
    )


def test_version_1_writes_no_limit_as_a_number_that_is_none(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )

    assert probe_cgroup(Tree(root)).memory_bytes is None


def test_the_operating_system_is_named(lay_out: LayOut) -> None:
    root = lay_out(
        {
            "proc/sys/kernel/osrelease": "6.8.0-45-generic\n",
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04 LTS"\n',
            "run/.containerenv": "",
        }
    )
    found = probe_os(Tree(root))

    assert (found.kernel, found.distribution) == ("6.8.0-45-generic", "Ubuntu 24.04 LTS")
    assert found.container is True


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,8", [0, 1, 2, 3, 8]), ("5", [5]), ("", []), (None, []), ("x-2", []), ("0-", [])],
)
def test_the_kernels_lists_of_cpus_are_read(text: str | None, cpus: list[int]) -> None:
    assert parse_cpu_list(text) == cpus

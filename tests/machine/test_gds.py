from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from kvbench.machine import Cpu, Cuda, Gpu, Machine, Os, Storage
from kvbench.machine.gds import gds_path
from kvbench.machine.tree import Tree

LayOut = Callable[[Mapping[str, str | bytes]], Path]

NVME = Storage(filesystem="ext4", device_kind="nvme", drives=["nvme0n1"], direct_io=True)
READY = Machine(
    gpus=[Gpu(cuda_index=0, name="H100", compute_capability="9.0")],
    cuda=Cuda(driver_version="570.86.15"),
    cpu=Cpu(architecture="x86_64"),
    os=Os(kernel="6.8.0-45-generic"),
    storage=NVME,
)
# What NVIDIA's guide asks for on x86, as a machine shows it.
P2PDMA = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64\n",
    "proc/driver/nvidia/params": 'RegistryDwords: "RMForceStaticBar1=1;RmForceDisableIomapWC=1;"\n',
    "sys/module/nvme_core/parameters/multipath": "N\n",
    "etc/cufile.json": '{\n  // a comment\n  "properties": { "use_pci_p2pdma": true, // yes\n'
    '    "dir": "/var//log" }\n}\n',
}
NVIDIA_FS = {"proc/driver/nvidia-fs/version": "version: 2.25\n"}


def on_storage(**facts: object) -> Machine:
    storage = msgspec.structs.replace(NVME, **facts)
    return msgspec.structs.replace(READY, storage=storage)


def test_a_machine_set_up_for_p2pdma_is_expected_to_use_it(lay_out: LayOut) -> None:
    assert gds_path(READY, Tree(lay_out(P2PDMA)), {})[0] == "p2pdma"


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module", "open"),
        ("proc/driver/nvidia/params", 'RegistryDwords: ""', "RMForceStaticBar1"),
        ("sys/module/nvme_core/parameters/multipath", "Y", "multipath=N"),
        ("etc/cufile.json", '{"properties": {"use_pci_p2pdma": false}}', "use_pci_p2pdma"),
        ("etc/cufile.json", "not json", "use_pci_p2pdma"),
        ("etc/cufile.json", "[]", "use_pci_p2pdma"),
    ],
)
def test_each_thing_that_p2pdma_lacks_is_named(
    lay_out: LayOut, name: str, content: str, named: str
) -> None:
    path, reason = gds_path(READY, Tree(lay_out(P2PDMA | {name: content})), {})

    assert path == "compat"
    assert named in reason


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"os": Os(kernel="5.15.0")}, "Linux 6.2"),
        ({"os": Os()}, "Linux 6.2"),
        ({"cuda": Cuda(driver_version="550.90.07")}, "driver 570"),
        ({"gpus": [Gpu(cuda_index=0, compute_capability="7.5")]}, "8.0"),
    ],
)
def test_old_kernels_drivers_and_gpus_are_named(
    lay_out: LayOut, changed: dict[str, object], named: str
) -> None:
    machine = msgspec.structs.replace(READY, **changed)
    path, reason = gds_path(machine, Tree(lay_out(P2PDMA)), {})

    assert path == "compat"
    assert named in reason


def test_nvidia_fs_is_used_where_p2pdma_is_not_set_up(lay_out: LayOut) -> None:
    assert gds_path(READY, Tree(lay_out(NVIDIA_FS)), {})[0] == "nvidia-fs"


def test_an_array_of_drives_needs_nvidia_fs(lay_out: LayOut) -> None:
    array = on_storage(drives=["nvme0n1", "nvme1n1"])

    assert gds_path(array, Tree(lay_out(P2PDMA | NVIDIA_FS)), {})[0] == "nvidia-fs"


@pytest.mark.parametrize(
    "facts",
    [
        {"filesystem": "btrfs"},
        {"filesystem": "tmpfs", "device_kind": "memory"},
        {"device_kind": "virtio"},
        {"device_kind": "sata"},
    ],
)
def test_what_cufile_cannot_read_directly_is_compat_even_with_nvidia_fs(
    lay_out: LayOut, facts: dict[str, str]
) -> None:
    assert gds_path(on_storage(**facts), Tree(lay_out(P2PDMA | NVIDIA_FS)), {})[0] == "compat"


@pytest.mark.parametrize("name", ["KVIKIO_COMPAT_MODE", "CUFILE_FORCE_COMPAT_MODE"])
def test_compat_mode_that_was_asked_for_is_named(lay_out: LayOut, name: str) -> None:
    path, reason = gds_path(READY, Tree(lay_out(P2PDMA)), {name: "ON"})

    assert (path, reason) == ("compat", f"{name} asks for it")


def test_another_cufile_json_counts_where_the_environment_names_it(lay_out: LayOut) -> None:
    other = '{"properties": {"use_pci_p2pdma": false}}'
    tree = Tree(lay_out(P2PDMA | {"opt/cufile.json": other}))

    assert gds_path(READY, tree, {"CUFILE_ENV_PATH_JSON": "/opt/cufile.json"})[0] == "compat"


def test_without_a_gpu_there_is_nothing_to_be_direct_to(lay_out: LayOut) -> None:
    machine = msgspec.structs.replace(READY, gpus=[], cuda=Cuda(nvml_error="NVML: not found"))
    path, reason = gds_path(machine, Tree(lay_out(P2PDMA)), {})

    assert path == "compat"
    assert "no GPU" in reason

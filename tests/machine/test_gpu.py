import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import pytest

from kvbench.machine import Gpu, Machine
from kvbench.machine.gpu import (
    cuda_version,
    hbm_rate,
    probe_gpus,
    throttle_reasons,
    visible_devices,
)
from kvbench.machine.tree import Tree

LayOut = Callable[[Mapping[str, str | bytes]], Path]
Record = Callable[..., ModuleType]


def one_gpu(nvml: ModuleType, tree: Tree | None = None) -> Gpu:
    gpus, _ = probe_gpus(nvml, tree or Tree(), {})
    assert len(gpus) == 1
    return gpus[0]


@pytest.mark.parametrize(
    ("clock_hz", "bus_bits", "datasheet_bytes_per_s"),
    [
        (2_619_000_000, 5120, 3.35e12),  # H100 SXM
        (1_593_000_000, 5120, 2.039e12),  # A100 80 GB
        (6_251_000_000, 192, 300e9),  # L4
        (10_501_000_000, 384, 1008e9),  # RTX 4090
    ],
)
def test_hbm_bandwidth_is_that_of_the_data_sheet(
    clock_hz: int, bus_bits: int, datasheet_bytes_per_s: float
) -> None:
    assert hbm_rate(clock_hz, bus_bits) == pytest.approx(datasheet_bytes_per_s, rel=0.002)


def test_an_h100_is_described_with_formula_and_figures(recorded: Record) -> None:
    gpu = one_gpu(recorded())

    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.compute_capability == "9.0"
    assert gpu.hbm_source == "NVML: 2619 MHz x 5120 bit x 2 / 8"
    # 32 GT/s x 16 lanes x 128/130 / 8
    assert gpu.pcie_bytes_per_s == pytest.approx(63.015e9, rel=1e-4)
    assert (gpu.nvlinks, gpu.nvlinks_active) == (18, 18)
    assert (gpu.ecc, gpu.mig, gpu.persistence_mode) == (True, False, True)


def test_the_uuid_of_a_gpu_never_reaches_the_record(recorded: Record) -> None:
    gpu = one_gpu(recorded())

    assert gpu.identity_hash is not None
    assert len(gpu.identity_hash) == 8
    assert "8f6a1c22" not in msgspec.json.encode(gpu).decode()


def test_an_idle_gpu_that_lowered_its_link_keeps_the_limit_it_has_under_load(
    recorded: Record,
) -> None:
    gpu = one_gpu(recorded(DeviceGetCurrPcieLinkGeneration=1, DeviceGetPerformanceState=8))

    assert gpu.pcie_generation == 1
    assert gpu.pcie_bytes_per_s == pytest.approx(63.015e9, rel=1e-4)
    assert "generation 1 now" in (gpu.pcie_source or "")


def test_a_slow_link_at_full_speed_is_the_limit(recorded: Record) -> None:
    gpu = one_gpu(recorded(DeviceGetCurrPcieLinkGeneration=3, DeviceGetCurrPcieLinkWidth=8))

    assert gpu.pcie_bytes_per_s == pytest.approx(7.877e9, rel=1e-4)


def test_what_nvml_does_not_answer_is_none_and_the_rest_is_there(
    recorded: Record, refused: Exception
) -> None:
    questions = [
        "DeviceGetMemoryBusWidth",
        "DeviceGetCurrPcieLinkGeneration",
        "DeviceGetEccMode",
        "DeviceGetMigMode",
        "DeviceGetNvLinkState",
        "DeviceGetCurrentClocksEventReasons",
        "DeviceGetComputeRunningProcesses",
        "DeviceGetPciInfo",
        "DeviceGetBAR1MemoryInfo",
    ]
    gpu = one_gpu(recorded(**dict.fromkeys(questions, refused)))

    assert gpu.name == "NVIDIA H100 80GB HBM3"
    assert gpu.hbm_bytes_per_s is None
    assert gpu.hbm_source is None
    assert gpu.pcie_bytes_per_s is None
    assert (gpu.ecc, gpu.mig, gpu.idle, gpu.other_processes) == (None, None, None, None)
    assert gpu.nvlinks == 0


def test_without_nvml_there_are_no_gpus_and_a_reason(recorded: Record, refused: Exception) -> None:
    gpus, cuda = probe_gpus(recorded(Init=refused), Tree(), {})

    assert gpus == []
    assert "Not Supported" in (Machine(cuda=cuda).gpu_reason or "")


def test_nvml_is_closed_again(recorded: Record) -> None:
    nvml = recorded()
    probe_gpus(nvml, Tree(), {})

    assert nvml.open == 0


def test_gpus_on_the_bus_are_counted_without_a_driver(
    lay_out: LayOut, recorded: Record, refused: Exception
) -> None:
    devices = "sys/bus/pci/devices"
    root = lay_out(
        {
            f"{devices}/0000:4e:00.0/vendor": "0x10de\n",
            f"{devices}/0000:4e:00.0/class": "0x030200\n",
            f"{devices}/0000:4f:00.0/vendor": "0x10de\n",  # an NVSwitch is a bridge
            f"{devices}/0000:4f:00.0/class": "0x068000\n",
            f"{devices}/0000:00:1f.0/vendor": "0x8086\n",
            f"{devices}/0000:00:1f.0/class": "0x030000\n",
        }
    )
    _, cuda = probe_gpus(recorded(Init=refused), Tree(root), {})

    assert cuda.pci_gpus == 1


def test_the_numa_node_of_a_gpu_comes_from_its_bus_address(
    lay_out: LayOut, recorded: Record
) -> None:
    root = lay_out({"sys/bus/pci/devices/0000:4e:00.0/numa_node": "1\n"})

    assert one_gpu(recorded(), Tree(root)).numa_node == 1


def test_our_own_process_is_not_among_the_others(recorded: Record) -> None:
    processes = [SimpleNamespace(pid=os.getpid()), SimpleNamespace(pid=os.getpid() + 1)]

    assert one_gpu(recorded(DeviceGetComputeRunningProcesses=processes)).other_processes == 1


def test_throttling_is_told_in_words_and_idleness_is_not_throttling() -> None:
    assert throttle_reasons(0x1) == []
    assert throttle_reasons(0x1 | 0x4 | 0x40) == ["power cap", "hardware thermal slowdown"]


@pytest.mark.parametrize(
    ("setting", "order"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("1,7,0", [1]),  # CUDA stops at the first entry that names no GPU
        ("GPU-bbb", [1]),
        ("GPU-b,GPU-a", [1, 0]),
        ("MIG-GPU-ccc/1/0", [2]),
        ("MIG-77aa", [2]),  # only the third GPU has MIG on
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(
    setting: str | None, order: list[int]
) -> None:
    uuids = ["GPU-aaa", "GPU-bbb", "GPU-ccc"]

    assert visible_devices(setting, uuids, [False, False, True]) == order


def test_gpus_hidden_from_cuda_are_recorded_and_not_used(
    recorded: Record, answers_of_each: Callable[..., object]
) -> None:
    nvml = recorded(DeviceGetCount=2, DeviceGetUUID=answers_of_each("GPU-aaa", "GPU-bbb"))
    gpus, _ = probe_gpus(nvml, Tree(), {"CUDA_VISIBLE_DEVICES": "1"})
    hidden, _ = probe_gpus(nvml, Tree(), {"CUDA_VISIBLE_DEVICES": ""})

    assert [gpu.cuda_index for gpu in gpus] == [None, 0]
    assert [gpu.index for gpu in Machine(gpus=gpus).visible_gpus] == [1]
    swapped, _ = probe_gpus(nvml, Tree(), {"CUDA_VISIBLE_DEVICES": "1,0"})
    assert [gpu.index for gpu in Machine(gpus=swapped).visible_gpus] == [1, 0]
    assert not Machine(gpus=hidden).has_gpu
    assert "CUDA_VISIBLE_DEVICES" in (Machine(gpus=hidden).gpu_reason or "")


def test_a_gpu_that_fell_off_the_bus_does_not_hide_the_others(
    recorded: Record, answers_of_each: Callable[..., object], refused: Exception
) -> None:
    nvml = recorded(DeviceGetCount=2, DeviceGetHandleByIndex=answers_of_each(refused, 1))
    gpus, _ = probe_gpus(nvml, Tree(), {})

    assert [gpu.name for gpu in gpus] == [None, "NVIDIA H100 80GB HBM3"]
    assert [gpu.cuda_index for gpu in gpus] == [None, 0]


def test_cuda_versions_are_written_as_people_write_them() -> None:
    assert cuda_version(12080) == "12.8"
    assert cuda_version(13000) == "13.0"
    assert cuda_version(None) is None

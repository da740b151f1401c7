import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from kvbench.machine import Cuda, Gpu, Machine, Memory, Storage, probe_machine
from kvbench.machine.probe import fingerprint

LayOut = Callable[[Mapping[str, str | bytes]], Path]
Record = Callable[..., ModuleType]

FAST = Storage(device_model="Fast 3.84TB", device_kind="nvme", filesystem="ext4")
BASE = Machine(
    gpus=[Gpu(index=0, cuda_index=0, name="H100")],
    cuda=Cuda(driver_version="570.86.15"),
    memory=Memory(total_bytes=25276510208),
    storage=FAST,
)

LOOK = """
import sys, time, pathlib
from kvbench.machine import probe_machine
start = time.process_time()
probe_machine(pathlib.Path("."))
print(time.process_time() - start)
print(*sorted({"torch", "kvikio", "triton"} & set(sys.modules)))
"""


def test_the_record_of_this_machine_survives_json(tmp_path: Path) -> None:
    machine = probe_machine(tmp_path)

    assert msgspec.json.decode(msgspec.json.encode(machine), type=Machine) == machine
    assert machine.cpu.logical_cores
    assert machine.memory.total_bytes
    assert machine.storage is not None
    assert machine.storage.free_bytes


def test_looking_is_quick_and_loads_no_device_library() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, check=True
    )
    seconds, modules = result.stdout.split("\n")[:2]

    assert float(seconds) < 0.5
    assert modules == ""


def test_a_worker_process_is_handed_the_record_and_does_not_import_what_probes() -> None:
    told = "import sys, kvbench.measure.worker; print(*sorted(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True
    )
    modules = set(result.stdout.split())

    assert {"kvbench.machine", "kvbench.machine.record"} <= modules
    assert not modules & {"kvbench.machine.probe", "socket", "pynvml", "scipy", "torch"}


def test_an_empty_machine_without_nvml_is_a_record_and_no_error(
    lay_out: LayOut, recorded: Record, refused: Exception
) -> None:
    root = lay_out({"data/": ""})
    machine = probe_machine(root / "data", root=root, nvml=recorded(Init=refused), environ={})

    assert machine.gpus == []
    assert machine.numa_nodes == []
    assert machine.storage is not None
    assert machine.storage.gds == "compat"


def test_a_machine_with_a_gpu_is_put_together(lay_out: LayOut, recorded: Record) -> None:
    machine = probe_machine(root=lay_out({}), nvml=recorded(), environ={})

    assert machine.has_gpu
    assert machine.gpu_reason is None
    assert machine.cuda.cuda_driver_version == "12.8"
    assert machine.storage is None


def test_nothing_of_the_environment_is_in_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    directory = tmp_path / "home" / "wilhelmina" / "kv"
    directory.mkdir(parents=True)
    monkeypatch.setenv("USER", "wilhelmina")
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    text = msgspec.json.encode(probe_machine(directory)).decode()

    assert "wilhelmina" not in text
    assert "hf_sesame" not in text
    assert f'"{socket.gethostname()}"' not in text


def test_reports_of_other_versions_decode() -> None:
    assert msgspec.json.decode(b"{}", type=Machine) == Machine()
    newer = b'{"gpus": [{"name": "H300", "tensor_cores": 9}], "quantum": {}}'
    assert msgspec.json.decode(newer, type=Machine).gpus[0].name == "H300"


def changed(**facts: object) -> Machine:
    return msgspec.structs.replace(BASE, **facts)


@pytest.mark.parametrize(
    "machine",
    [
        changed(cuda=Cuda(driver_version="570.124.06")),
        changed(memory=Memory(total_bytes=25276510208 - 2**28, available_bytes=1)),
        changed(gpus=[Gpu(index=0, cuda_index=0, name="H100", sm_clock_hz=345_000_000)]),
        changed(storage=msgspec.structs.replace(FAST, free_bytes=17, directory="/b")),
    ],
    ids=["driver update", "kernel keeps more memory", "clock", "free space"],
)
def test_the_fingerprint_ignores_what_leaves_figures_comparable(machine: Machine) -> None:
    assert fingerprint(machine) == fingerprint(BASE)


@pytest.mark.parametrize(
    "machine",
    [
        changed(cuda=Cuda(driver_version="580.1")),
        changed(memory=Memory(total_bytes=2 * 25276510208)),
        changed(gpus=[Gpu(index=0, cuda_index=0, name="H200")]),
        changed(gpus=BASE.gpus * 2),
        changed(storage=msgspec.structs.replace(FAST, device_model="Slow 1TB")),
        changed(storage=msgspec.structs.replace(FAST, filesystem="xfs")),
        changed(storage=None),
    ],
    ids=["driver", "memory", "gpu", "gpus", "drive", "filesystem", "no drive"],
)
def test_the_fingerprint_changes_with_what_makes_figures_incomparable(machine: Machine) -> None:
    assert fingerprint(machine) != fingerprint(BASE)
    assert len(fingerprint(machine)) == 16

"""Small /proc and /sys trees, laid out as the kernel lays them out, and a recorded NVML."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def lay_out(tmp_path: Path) -> Callable[[Mapping[str, str | bytes]], Path]:
    """Write files below a fake root.

    A value "-> target" makes a symbolic link, a name that ends in "/" a directory.
    """

    def write(files: Mapping[str, str | bytes]) -> Path:
        root = tmp_path / "root"
        root.mkdir(exist_ok=True)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content.startswith("-> "):
                path.symlink_to(content[3:])
            elif name.endswith("/"):
                path.mkdir()
            else:
                path.write_text(content)
        return root

    return write


class RecordedError(Exception):
    """What a recorded NVML raises."""


class Recorded(ModuleType):
    """NVML's answers as an H100 SXM at full speed gives them; a test overrides some.

    An answer that is an exception is raised. A list of GPUs' answers is given as `each(...)`.
    """

    NVMLError = RecordedError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVML_NVLINK_MAX_LINKS = 36

    def __init__(self, **answers: object) -> None:
        super().__init__("recorded_nvml")
        self.open = 0
        self.answers: dict[str, object] = {
            "Init": None,
            "Shutdown": None,
            "SystemGetDriverVersion": "570.86.15",
            "SystemGetCudaDriverVersion": 12080,
            "DeviceGetCount": 1,
            "DeviceGetHandleByIndex": each(0, 1, 2),
            "DeviceGetUUID": "GPU-8f6a1c22-0000-1111-2222-333344445555",
            "DeviceGetName": "NVIDIA H100 80GB HBM3",
            "DeviceGetMemoryInfo": SimpleNamespace(total=85520809984, free=85024112640),
            "DeviceGetBAR1MemoryInfo": SimpleNamespace(bar1Total=137438953472),
            "DeviceGetCudaComputeCapability": (9, 0),
            "DeviceGetMemoryBusWidth": 5120,
            "DeviceGetCurrPcieLinkGeneration": 5,
            "DeviceGetCurrPcieLinkWidth": 16,
            "DeviceGetMaxPcieLinkGeneration": 5,
            "DeviceGetMaxPcieLinkWidth": 16,
            "DeviceGetPerformanceState": 0,
            "DeviceGetCurrentClocksEventReasons": 0,
            "DeviceGetPciInfo": SimpleNamespace(busId=b"00000000:4E:00.0"),
            "DeviceGetEccMode": [1, 1],
            "DeviceGetMigMode": [0, 0],
            "DeviceGetPersistenceMode": 1,
            "DeviceGetComputeRunningProcesses": [],
            "DeviceGetClockInfo": {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619},
            "DeviceGetMaxClockInfo": {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 2619},
            "DeviceGetNvLinkState": dict.fromkeys(range(18), 1),
        } | answers

    def __getattr__(self, name: str) -> Callable[..., object]:
        return lambda *arguments: self.answer(name.removeprefix("nvml"), *arguments)

    def answer(self, question: str, *arguments: object) -> object:
        self.open += (question == "Init") - (question == "Shutdown")
        found = self.answers[question]
        if isinstance(found, each):
            found = found.answers[int(str(arguments[0]))]
        if isinstance(found, dict):  # by clock or by link
            found = found.get(arguments[1], RecordedError("Invalid Argument"))
        if isinstance(found, Exception):
            raise found
        return found


class each:  # noqa: N801 - reads as a word where answers are listed
    """One answer for each GPU."""

    def __init__(self, *answers: object) -> None:
        self.answers = answers


@pytest.fixture
def recorded() -> Callable[..., ModuleType]:
    """Makes a recorded NVML: `recorded(DeviceGetMemoryBusWidth=4096)`."""
    return Recorded


@pytest.fixture
def answers_of_each() -> Callable[..., object]:
    """Answers that differ by GPU: `recorded(DeviceGetUUID=answers_of_each("a", "b"))`."""
    return each


@pytest.fixture
def refused() -> Exception:
    """NVML's way to say that a GPU does not answer a question."""
    return RecordedError("Not Supported")

import subprocess
import sys
from pathlib import Path

import pytest

from kvbench.machine.kvikio import judge, probe_kvikio


def test_kvikio_with_a_driver_of_its_major_or_newer_is_usable() -> None:
    assert judge("kvikio-cu12", "26.10.0", libcuda=True, libcuda_number=12020).usable
    assert judge("kvikio-cu12", "26.10.0", libcuda=True, libcuda_number=13000).usable
    assert judge("kvikio", "26.10.0", libcuda=True, libcuda_number=12020).usable


@pytest.mark.parametrize(
    ("libcuda_number", "extra"), [(13000, "cu13"), (12080, "cu12"), (None, "cu12")]
)
def test_the_extra_that_fits_the_driver_is_named_when_kvikio_is_missing(
    libcuda_number: int | None, extra: str
) -> None:
    found = judge(None, None, libcuda=libcuda_number is not None, libcuda_number=libcuda_number)

    assert found.fix == f"pip install 'kvbench[{extra}]'"


def test_kvikio_without_libcuda_is_unusable_and_says_so() -> None:
    found = judge("kvikio-cu12", "26.10.0", libcuda=False, libcuda_number=None)

    assert not found.usable
    assert "libcuda" in (found.reason or "")
    assert "libcuda1" in (found.fix or "")


def test_a_wheel_for_a_newer_cuda_than_the_drivers_is_unusable() -> None:
    found = judge("kvikio-cu13", "26.10.0", libcuda=True, libcuda_number=12020)

    assert not found.usable
    assert "CUDA 13" in (found.reason or "")
    assert "kvbench[cu12]" in (found.fix or "")


def test_kvikio_that_is_called_usable_opens_a_file_here(tmp_path: Path) -> None:
    found = probe_kvikio()
    if not found.usable:
        assert found.reason
        assert found.fix
        pytest.skip(f"KvikIO is not usable here: {found.reason}")
    # In its own process: KvikIO loads the driver's library for good.
    program = "import sys, kvikio; kvikio.CuFile(sys.argv[1], 'w').close()"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "file")], check=True)

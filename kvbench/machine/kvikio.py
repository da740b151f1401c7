"""Whether KvikIO can be used, found out without importing it.

KvikIO links against libcuda, the driver's library, even to read into host memory; its wheels are
built for one CUDA major and need a libcuda of at least that major.
"""

import ctypes
import importlib.metadata

from kvbench.machine.gpu import cuda_version
from kvbench.machine.record import Kvikio

_PACKAGES = ("kvikio-cu13", "kvikio-cu12", "kvikio")  # the last is conda's
_NO_DRIVER_FIX = (
    "install the NVIDIA driver; without a GPU, on Debian with component non-free: "
    "sudo apt-get install --no-install-recommends libcuda1"
)


def probe_kvikio() -> Kvikio:
    """KvikIO and libcuda on this machine."""
    package, version = _installed()
    loaded, number = _libcuda()
    return judge(package, version, libcuda=loaded, libcuda_number=number)


def judge(
    package: str | None, version: str | None, *, libcuda: bool, libcuda_number: int | None
) -> Kvikio:
    """The record; `libcuda_number` is CUDA's way to write versions, 12020 for 12.2."""
    usable, reason, fix = True, None, None
    major = libcuda_number // 1000 if libcuda_number else None
    built_for = int(package[-2:]) if package and package[-2:].isdigit() else None
    if package is None:
        extra = f"cu{major}" if major in {12, 13} else "cu12"
        usable, reason, fix = False, "not installed", f"pip install 'kvbench[{extra}]'"
    elif not libcuda:
        usable, reason, fix = False, "libcuda.so.1 cannot be loaded", _NO_DRIVER_FIX
    elif built_for and major and built_for > major:
        usable = False
        reason = f"{package} needs a driver for CUDA {built_for}, this one is for CUDA {major}"
        fix = f"pip uninstall -y {package} lib{package} && pip install 'kvbench[cu{major}]'"
    return Kvikio(
        package=package,
        version=version,
        libcuda=libcuda,
        libcuda_version=cuda_version(libcuda_number),
        usable=usable,
        reason=reason,
        fix=fix,
    )


def _installed() -> tuple[str | None, str | None]:
    for package in _PACKAGES:
        try:
            return package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None, None


def _libcuda() -> tuple[bool, int | None]:
    """Whether the driver's library loads, and its version. Makes no CUDA context."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False, None
    number = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return True, None
    return True, number.value or None

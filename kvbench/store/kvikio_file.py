"""Files of equal blocks through KvikIO: GPUDirect Storage where it works, POSIX where not.

`observed` says which of the two it was and from what that is known, since KvikIO falls back in
silence. kvikio is imported when a file is opened, not before.

May import: kvbench.errors, kvbench.store.posix.
"""

import ctypes
import errno
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from kvbench.errors import TierUnavailableError
from kvbench.store.posix import Bytes, ShortTransferError

NVIDIA_FS_STATS = Path("/proc/driver/nvidia-fs/stats")
MOST = 0.9  # share of the operations that nvidia-fs must have counted


def load_kvikio() -> Any:  # noqa: ANN401  kvikio has no type information
    """The kvikio module.

    Raises:
        TierUnavailableError: it is not installed, or there is no libcuda for it to load.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise TierUnavailableError(
            "KvikIO needs libcuda.so.1, which is not here: install an NVIDIA driver, or on Debian "
            "without a GPU `apt-get install --no-install-recommends libcuda1` (non-free)"
        ) from None
    try:
        return importlib.import_module("kvikio")
    except ImportError as error:
        raise TierUnavailableError(
            f"KvikIO cannot be imported ({error}): pip install 'kvbench[cu12]' or 'kvbench[cu13]'"
        ) from None


class KvikioFile:
    """One open file. `queue_depth` sets the size of KvikIO's thread pool, one block a task.

    `device` says that blocks will lie in GPU memory: cuFile is then demanded, and only if it cannot
    be had is the file opened in compat mode. With KvikIO's own default it would choose in silence.
    """

    def __init__(
        self,
        path: Path,
        *,
        write: bool = False,
        device: bool = False,
        queue_depth: int,
        block_bytes: int,
    ) -> None:
        self._kvikio = load_kvikio()
        self._defaults = importlib.import_module("kvikio.defaults")
        self._defaults.set(
            {
                "num_threads": queue_depth,
                "task_size": block_bytes,
                "gds_threshold": 0,  # small blocks too go the way that the row is about
                # O_DIRECT in the POSIX path too: otherwise the page cache would be measured.
                "auto_direct_io_read": True,
                "auto_direct_io_write": True,
            }
        )
        self._block_bytes = block_bytes
        self._device = device
        self._open(path, "r+" if write else "r")
        self._direct = bool(self._file.is_direct_io_supported())
        self._nvidia_fs_before = _nvidia_fs_operations()
        self.path = path

    def _open(self, path: Path, flags: str) -> None:
        modes = self._kvikio.CompatMode
        self._compat = not self._device
        if self._device:
            self._defaults.set("compat_mode", modes.OFF)
            try:
                self._file = self._kvikio.CuFile(str(path), flags)
            except RuntimeError:  # KvikIO's only error; OFF means that it does not fall back
                self._compat = True
            else:
                return
        self._defaults.set("compat_mode", modes.ON)
        self._file = self._kvikio.CuFile(str(path), flags)

    def read(self, block: Any, offset_bytes: int) -> int:  # noqa: ANN401  host or device array
        """Fill a block of uint8 [n], in host or device memory, from the file."""
        return self._whole("read", self._file.pread, block, offset_bytes)

    def write(self, block: Any, offset_bytes: int) -> int:  # noqa: ANN401  host or device array
        """Write a block of uint8 [n], in host or device memory, to the file."""
        return self._whole("write", self._file.pwrite, block, offset_bytes)

    @property
    def direct(self) -> bool:
        """Whether the page cache is bypassed."""
        return self._direct

    def readv(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Fill buffers one after the other; the bytes that came without a gap, maybe fewer."""
        return self._all(self._file.pread, _placed(buffers, offset_bytes))

    def writev(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Write buffers one after the other; the bytes that went, maybe fewer.

        They are one transfer each, and every second one goes first: of a record its payload, and
        when that is there its header.
        """
        placed = _placed(buffers, offset_bytes)
        for some in (placed[1::2], placed[::2]):
            if self._all(self._file.pwrite, some) != sum(each.nbytes for each, _ in some):
                return 0  # nothing that counts
        return sum(each.nbytes for each in buffers)

    def sync(self) -> None:
        """Wait until what was written would survive a loss of power (fdatasync)."""
        fd = os.open(self.path, os.O_RDONLY)  # KvikIO has no sync; any descriptor of the file does
        try:
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def observed(self, operations: int) -> tuple[str | None, dict[str, Any]]:
        """The path that the bytes of so many operations took, and the evidence.

        None where it cannot be known: cuFile can use P2PDMA or bounce buffers of its own, which
        leave no trace that can be read, and nvidia-fs counts only with `rw_stats_enabled`.
        """
        nvidia_fs = _nvidia_fs_operations()
        moved = None
        if nvidia_fs is not None and self._nvidia_fs_before is not None:
            moved = nvidia_fs - self._nvidia_fs_before
        evidence: dict[str, Any] = {
            "kvikio": str(self._kvikio.__version__),
            "compat_mode": self._compat,
            "direct_io": self._direct,
            "device_memory": self._device,
            "operations": operations,
            "nvidia_fs_operations": moved,
        }
        if not self._device:
            return f"kvikio POSIX, host memory{', O_DIRECT' if self._direct else ''}", evidence
        if self._compat:
            return "kvikio POSIX, bounce buffer (compat mode)", evidence
        # A few operations may be another program's; most of ours have to be among them.
        if moved is not None and moved >= MOST * operations:
            return "GDS", evidence
        return None, evidence

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self, call: Any, placed: Sequence[tuple[Bytes, int]]) -> int:  # noqa: ANN401
        """Move buffers at once, each to or from its own offset; bytes up to the first gap."""
        futures = [call(each, each.nbytes, at, each.nbytes) for each, at in placed]
        done, error, gap = 0, None, False
        for (each, _), future in zip(placed, futures, strict=True):
            try:  # of all of them, also after one has failed: they hold the buffers
                moved = int(future.get())
            except RuntimeError as failed:
                moved, error = 0, error or self._refused(failed)
            done += 0 if gap else moved
            gap = gap or moved < each.nbytes
        if error is not None:
            raise error
        return done

    def _refused(self, error: RuntimeError) -> OSError | None:
        """KvikIO's error as one of the system; None at the end of the file."""
        # It has no other kind of error; the text begins with its own source.
        reason = str(error).partition(": ")[2].partition(": ")[2] or str(error)
        if reason.endswith("EOF"):
            return None
        return OSError(errno.EIO, f"KvikIO: {reason}", str(self.path))

    def _whole(self, verb: str, call: Any, block: Any, offset_bytes: int) -> int:  # noqa: ANN401
        try:
            done = int(call(block, self._block_bytes, offset_bytes, self._block_bytes).get())
        except RuntimeError as error:
            refused = self._refused(error)
            if refused is not None:
                raise refused from error
            done = 0  # at the end of the file it does not say how many bytes came before
        if done != self._block_bytes:
            raise ShortTransferError(
                f"short {verb}: {done} of {self._block_bytes} bytes at offset {offset_bytes} "
                f"of {self.path.name}"
            )
        return done


def _placed(buffers: Sequence[Bytes], offset_bytes: int) -> list[tuple[Bytes, int]]:
    """Each buffer with its own offset."""
    placed: list[tuple[Bytes, int]] = []
    for each in buffers:
        placed.append((each, offset_bytes))
        offset_bytes += each.nbytes
    return placed


def _nvidia_fs_operations() -> int | None:
    """Reads and writes that nvidia-fs has completed since it was loaded; None if it counts none.

    It counts only when it was loaded with rw_stats_enabled=1, which is not its default.
    """
    try:
        text = NVIDIA_FS_STATS.read_text(encoding="ascii")
    except OSError:
        return None
    counts = [
        int(word.removeprefix("ok="))
        for line in text.splitlines()  # "Reads : n=12 ok=12 err=0 ...", "Writes : n=3 ok=3 ..."
        if line.startswith(("Reads", "Writes"))
        for word in line.split()
        if word.startswith("ok=")
    ]
    return sum(counts) if counts else None

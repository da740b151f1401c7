"""A hidden directory for data files on the drive under test, gone when the run is over.

It holds a lock while its run lives, so that what a killed run left behind is found and removed by
the next one in the same place, and a living one is left alone.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Self

from kvbench.errors import UsageError

PREFIX = ".kvbench-"
LOCK = "lock"
SIGNATURE = b"kvbench scratch data: removed when its run is over\n"


class Scratch:
    """Context manager around a new directory inside `parent`, which is created when missing."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._made: list[Path] = []
        self._lock_fd = -1
        self._created: Path | None = None

    def __enter__(self) -> Self:
        try:
            self._make_parent()
            with _alone_in(self._parent):
                _remove_stale(self._parent)
                self.path = self._created = Path(tempfile.mkdtemp(prefix=PREFIX, dir=self._parent))
                self._lock_fd = _lock(self.path / LOCK)
        except OSError as error:
            self._undo()
            raise UsageError(
                f"cannot write to {self._parent}: {error.strerror}; "
                "name a directory on the drive under test with --dir"
            ) from None
        except BaseException:  # interrupted half-way
            self._undo()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._undo()

    def _undo(self) -> None:
        if self._created is not None:
            shutil.rmtree(self._created, ignore_errors=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._remove_parent()

    def _make_parent(self) -> None:
        missing = [path for path in (self._parent, *self._parent.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            self._made.append(path)

    def _remove_parent(self) -> None:
        """What this run created and nobody has used is tidied away with it."""
        for path in reversed(self._made):
            try:
                path.rmdir()
            except OSError:
                return


@contextlib.contextmanager
def _alone_in(directory: Path) -> Generator[None]:
    """Between making a directory and locking it, another run must not take it for a stale one."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.pwrite(fd, SIGNATURE, 0)
    return fd


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{PREFIX}*"):
        try:
            if (path / LOCK).read_bytes() != SIGNATURE:
                continue  # not made by a run
            fd = _lock(path / LOCK)
        except OSError:
            continue  # its run lives, or it is not ours to touch
        shutil.rmtree(path, ignore_errors=True)
        os.close(fd)

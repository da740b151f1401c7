"""One opener at a time: a lock on a file, which the kernel gives back whatever ends the process.

What the file says (process and host) is for the message only: a stale, empty or damaged file is
as good as any other, because the lock is not its content. Whoever only looks at a store asks who
holds the lock (`holder`) and never has it himself.

May import: kvbench.errors.
"""

import contextlib
import fcntl
import os
import re
import socket
import time
from pathlib import Path

from kvbench.errors import TierUnavailableError, UsageError

_HOLDER = re.compile(rb"(\d{1,10}) ([\w.-]{1,255})\n", re.ASCII)
# `holder` keeps an opener out for some microseconds: who finds the lock taken looks again.
TRIES, PAUSE_S = 4, 0.01


class StoreInUseError(UsageError):
    """Another process, or another store of this one, has the directory open."""

    code = "store_in_use"


class DirectoryRefusedError(TierUnavailableError):
    """There can be no lock file in the directory: its drive, or its owner, does not allow it."""


def holder(path: Path) -> str | None:
    """Who holds the lock of this file, as "process 7 on host"; None if nobody does.

    Nothing is written, and the directory may be read-only.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # every opener makes one
        return None
    try:
        # Shared, and let go with the descriptor: no other way tells a lock from a stale file.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(fd)
    finally:
        os.close(fd)
    return None


class LockFile:
    """Holds the lock of a directory until it is closed.

    Raises:
        StoreInUseError: somebody else has it; the message names the process.
        DirectoryRefusedError: there can be no lock file here.
        TierUnavailableError: the filesystem has no locks.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise DirectoryRefusedError(
                f"cannot open {path}: {error.strerror}; the store needs a directory that it may "
                "write to"
            ) from None
        try:
            self._take(path)
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self, path: Path) -> None:
        try:
            self._lock()
        except BlockingIOError:
            raise StoreInUseError(
                f"{path.parent} is in use by {_holder(self._fd)}: a store has one opener at a "
                "time; close it there first"
            ) from None
        except OSError as error:
            raise TierUnavailableError(
                f"cannot lock {path}: {error.strerror}; put the store on a local filesystem"
            ) from None
        with contextlib.suppress(OSError):  # a full drive: the lock is held all the same
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)

    def _lock(self) -> None:
        for _ in range(TRIES - 1):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(PAUSE_S)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Let the lock go; the file stays."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        with contextlib.suppress(OSError):  # a forked process has this file open as well
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        os.close(self._fd)


def _holder(fd: int) -> str:
    try:
        said = _HOLDER.fullmatch(os.pread(fd, 300, 0))
    except OSError:
        said = None
    if said is None:
        return "another process (its lock file does not say which)"
    return f"process {int(said[1])} on {said[2].decode()}"

"""A data file through NIXL's POSIX plugin: the engine that inference engines move blocks with.

NIXL's agents are not made for several threads, so each thread has one of its own, for as long as it
lives. NIXL says of a transfer only that it was done or not. nixl is imported when a file is opened.

May import: kvbench.errors, kvbench.store.posix.
"""

import errno
import fcntl
import importlib
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvbench.errors import TierUnavailableError
from kvbench.store.posix import Bytes

PACKAGES = ("nixl_cu12", "nixl_cu13")
BACKEND = "POSIX"
POLL_S = 50e-6  # a transfer moves on only while it is asked about


def load_nixl() -> tuple[Any, tuple[type[Exception], ...]]:
    """NIXL's Python API and its errors, which have no base class.

    Raises:
        TierUnavailableError: it is not installed, or cannot be loaded.
    """
    reason = ""
    for package in PACKAGES:
        try:
            api = importlib.import_module(f"{package}._api")
            bindings = importlib.import_module(f"{package}._bindings")
        except ImportError as error:
            reason = reason or str(error)
            continue
        logging.getLogger("nixl").setLevel(logging.WARNING)  # it talks on standard output
        kinds = (getattr(bindings, name) for name in dir(bindings) if name.endswith("Error"))
        return api, (*kinds, RuntimeError)
    raise TierUnavailableError(f"NIXL cannot be imported ({reason}): pip install 'kvbench[nixl]'")


class NixlFile:
    """One open file, with O_DIRECT where the filesystem has it. Buffers are page-aligned."""

    def __init__(self, path: Path) -> None:
        self._api, self._errors = load_nixl()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, os.O_RDWR)
        self._own = threading.local()
        self.path = path

    @property
    def direct(self) -> bool:
        """Whether the page cache is bypassed."""
        return bool(fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_DIRECT)

    def readv(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Fill all buffers, one after the other in the file; 0 if it ends before they are full."""
        total = sum(each.nbytes for each in buffers)
        if offset_bytes + total > os.fstat(self._fd).st_size:
            return 0  # NIXL would call it an error of the back end
        self._move("READ", [*self._placed(buffers, offset_bytes)])
        return total

    def writev(self, buffers: Sequence[Bytes], offset_bytes: int) -> int:
        """Write all buffers, one after the other in the file.

        Their order is NIXL's affair, so every second one goes first: of a record its payload, and
        when that is there its header.
        """
        placed = self._placed(buffers, offset_bytes)
        for some in (placed[1::2], placed[::2]):
            if some:
                self._move("WRITE", some)
        return sum(each.nbytes for each in buffers)

    def sync(self) -> None:
        """Wait until what was written would survive a loss of power (fdatasync)."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file. Agents of other threads go with their threads."""
        self._own = threading.local()
        os.close(self._fd)

    def _agent(self) -> Any:  # noqa: ANN401  nixl's types come with it
        agent = getattr(self._own, "agent", None)
        if agent is None:
            config = self._api.nixl_agent_config(enable_prog_thread=False, backends=[BACKEND])
            agent = self._api.nixl_agent(f"kvbench-{threading.get_ident()}-{self._fd}", config)
            agent.register_memory([(0, 0, self._fd, "")], "FILE")
            self._own.agent = agent
        return agent

    def _placed(self, buffers: Sequence[Bytes], offset_bytes: int) -> list[tuple[int, int, int]]:
        """Address, bytes and offset of each buffer."""
        placed: list[tuple[int, int, int]] = []
        for each in buffers:
            placed.append((each.__array_interface__["data"][0], each.nbytes, offset_bytes))
            offset_bytes += each.nbytes
        return placed

    def _move(self, operation: str, placed: list[tuple[int, int, int]]) -> None:
        """One transfer, to its end.

        Raises:
            OSError: NIXL reports an error, whichever it is.
        """
        try:
            agent = self._agent()
            memory = [(address, size, 0) for address, size, _ in placed]
            file = [(at, size, self._fd) for _, size, at in placed]
            known = agent.register_memory([(*each, "") for each in memory], "DRAM")
            try:
                self._run(
                    agent,
                    agent.initialize_xfer(
                        operation,
                        agent.get_xfer_descs(memory, "DRAM"),
                        agent.get_xfer_descs(file, "FILE"),
                        agent.name,
                    ),
                )
            finally:
                agent.deregister_memory(known)
        except self._errors as error:
            raise OSError(errno.EIO, f"NIXL {operation}: {error}", str(self.path)) from error

    @staticmethod
    def _run(agent: Any, handle: Any) -> None:  # noqa: ANN401  nixl's types come with it
        try:
            state = agent.transfer(handle)
            while state == "PROC":
                time.sleep(POLL_S)
                state = agent.check_xfer_state(handle)
        finally:
            agent.release_xfer_handle(handle)
        if state != "DONE":
            raise RuntimeError(f"the transfer ended as {state}")

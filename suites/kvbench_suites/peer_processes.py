"""Holders as processes, seen from who started them: started, told what to do, and always ended.

A holder dies with the thread that started it, whatever becomes of that: see `peer_holder`.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from kvbench.errors import TierUnavailableError, UsageError
from kvbench.peer.model import Peer, PeerError, Reason
from kvbench_suites.peer_holder import Command, Order, Ready, Said

MODULE = "kvbench_suites.peer_holder"
START_S = 90.0  # imports and filling, on a machine with other work
ANSWER_S = 30.0


class HolderProcess:
    """One holder. `peer` waits until it is ready."""

    def __init__(self, order: Order) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._ready: Ready | None = None
        self._pending = b""
        self._said(order)

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def ready(self) -> Ready:
        """What it said once it was.

        Raises:
            TierUnavailableError: it cannot be; with its own reason.
        """
        if self._ready is None:
            self._ready = self._answer(START_S).ready
        if self._ready is None:
            raise TierUnavailableError("a holder's first line does not say who it is")
        return self._ready

    @property
    def peer(self) -> Peer:
        """Who it is; see `ready`."""
        return msgspec.msgpack.decode(self.ready.peer, type=Peer)

    @property
    def ended(self) -> int | None:
        """Its exit status as `subprocess` has it, None while it is there."""
        return self._process.poll()

    def does(self, name: str, *, first: int = 0, end: int = 0, mode: str = "") -> dict[str, Any]:
        """Have it do something; what it says.

        Raises:
            PeerError: it cannot, or does not answer.
        """
        self._said(Command(name=name, first=first, end=end, mode=mode))
        try:
            return self._answer(ANSWER_S).facts
        except TierUnavailableError as error:
            raise PeerError(str(error), Reason.UNREACHABLE) from None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, whatever it does; once more is no error."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                cast("IO[bytes]", pipe).close()

    def _said(self, line: msgspec.Struct) -> None:
        stdin = cast("IO[bytes]", self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it died: its answer will say so
            stdin.write(msgspec.json.encode(line) + b"\n")
            stdin.flush()

    def _answer(self, within_s: float) -> Said:
        stdout = cast("IO[bytes]", self._process.stdout)
        until_s = time.monotonic() + within_s
        while b"\n" not in self._pending:
            left_s = max(0.0, until_s - time.monotonic())
            if not select.select([stdout], [], [], left_s)[0]:
                raise TierUnavailableError(f"a holder has not answered within {within_s:.0f} s")
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                raise TierUnavailableError(f"a holder ended, status {self._process.wait()}")
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        said = msgspec.json.decode(line, type=Said)
        if said.error is not None:
            raise TierUnavailableError(f"a holder says: {said.error}")
        return said


def running(path: Path) -> list[Ready]:
    """Holders that somebody else has started: a file with the first line of each.

    Raises:
        UsageError: it cannot be read, holds none, or they do not hold the same.
    """
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        found = [msgspec.json.decode(line, type=Said).ready for line in lines]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise UsageError(f"{path} is not what holders print: {error}") from None
    holders = [each for each in found if each is not None]
    if not holders or len(holders) != len(found):
        raise UsageError(f"{path} names no holder: give the first line that each has printed")
    if len({(each.block_bytes, each.blocks, each.seed) for each in holders}) > 1:
        raise UsageError(f"{path}: the holders differ in seed, blocks or block_bytes")
    return holders


def peers_of(holders: Sequence[Ready]) -> list[Peer]:
    """Who they are."""
    return [msgspec.msgpack.decode(each.peer, type=Peer) for each in holders]

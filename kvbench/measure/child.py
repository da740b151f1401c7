"""A process of kvbench's own: started, given its orders, listened to, and ended whatever happens.

Every wait has a deadline. Knows nothing of cases: what the lines mean is for whoever reads them.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self, cast

from kvbench.measure.side import Side, worker_environ
from kvbench.measure.worker import Failure

KILL_GRACE_S = 10.0
KEPT_STDERR_LINES = 20
READ_BYTES = 1 << 16


class Child:
    """`python -m module` with one line on its standard input, which stays open while it may live.

    `deadline_s`, on the monotonic clock, is how long `lines` waits for the next one.
    """

    def __init__(self, module: str, orders: bytes, scratch: str | None, side: Side | None) -> None:
        self._module = module
        self._orders = orders
        self._scratch = scratch
        self._side = side
        self._ended = False
        self.deadline_s = 0.0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [self._side.python if self._side else sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C goes to the run, which then decides
            env=_environment(self._scratch, self._side),
        )
        self._stderr: deque[str] = deque(maxlen=KEPT_STDERR_LINES)
        self._drain = threading.Thread(target=self._read_stderr, daemon=True)
        self._drain.start()
        with contextlib.suppress(BrokenPipeError):  # it died at once; death() says how
            stdin = cast("IO[bytes]", self._process.stdin)
            stdin.write(self._orders + b"\n")
            stdin.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def end(self) -> None:
        """Kill it and all that it started; its output can be read to the end."""
        if self._ended:  # its number may be another process's by now
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # A process stuck in a driver does not even die; the run goes on without it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_GRACE_S)
        self._ended = True
        self._drain.join(timeout=1.0)

    def lines(self) -> Iterator[bytes | None]:
        """Lines of its standard output; None, and no more, once the deadline has passed."""
        stdout = cast("IO[bytes]", self._process.stdout)
        pending = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, self.deadline_s - time.monotonic())):
                    yield None
                    return
                chunk = os.read(stdout.fileno(), READ_BYTES)
                if not chunk:
                    return
                *lines, pending = (pending + chunk).split(b"\n")
                yield from lines

    def death(self, phase: str) -> Failure:
        """Why it said no more, and in which phase of its work."""
        try:
            code = self._process.wait(KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            return Failure("failed", "stuck", f"worker closed its output in “{phase}” and lives on")
        self._drain.join(timeout=1.0)
        if code < 0:
            name = signal.Signals(-code).name
            hint = ", by a user or for want of memory (dmesg tells)" if name == "SIGKILL" else ""
            return Failure("failed", "worker_killed", f"worker ended by {name} in “{phase}”{hint}")
        said = next((line for line in reversed(self._stderr) if line.strip()), "nothing on stderr")
        return Failure("failed", "worker_crashed", f"worker exited {code} in “{phase}”: {said}")

    def _read_stderr(self) -> None:
        stderr = cast("IO[bytes]", self._process.stderr)
        for line in stderr:
            self._stderr.append(line.decode(errors="replace").rstrip())


def _environment(scratch: str | None, side: Side | None) -> dict[str, str]:
    """CuFile writes its log to the current directory unless it is told another place."""
    log = str(Path(scratch) / "cufile.log") if scratch else os.devnull
    return {"CUFILE_LOGFILE_PATH": log, **worker_environ(side)}

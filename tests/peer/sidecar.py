"""`kvbench peer serve` as a process, services in this one, and drives with blocks for them."""

import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kvbench.peer.config import load_config
from kvbench.peer.service import PeerService
from kvbench.store.config import open_store
from kvbench.store.drives import capacity_for
from tests.store.blocks import LAYOUT, NAMESPACE, OK, put

SLOTS = 64
LEASE_S = 10.0  # nobody is to be lost because this machine is busy
PATIENCE_S = 60.0


def toml(
    folder: Path,
    name: str,
    *,
    join: Sequence[str] = (),
    drive: Path | None = None,
    transports: Sequence[str] = ("shm", "tcp"),
    more: str = "",
) -> Path:
    """A peer.toml. `more` are tables, or keys of [cluster], which comes last of those here."""
    drives = "" if drive is None else f"directories = ['{drive}']\nmin_free = '0'\n"
    file = folder / f"{name}.toml"
    file.write_text(
        f"name = '{name}'\n"
        f"[store]\nblock = {LAYOUT.block_bytes}\nparts = {LAYOUT.parts}\n"
        f"dram = {SLOTS * LAYOUT.block_bytes}\n{drives}"
        f"[[namespace]]\ndigest = '{NAMESPACE.hex()}'\n"
        f"[data]\ntransports = {list(transports)}\n"
        f"[cluster]\nname = 'tests'\njoin = {list(join)}\nlease_s = {LEASE_S}\n{more}\n",
        encoding="utf-8",
    )
    return file


def warm(drive: Path, keys: Sequence[bytes]) -> Path:
    """A drive with these blocks, from before."""
    drive.mkdir()
    config = load_config(toml(drive.parent, f"warm-{drive.name}", drive=drive)).store_config()
    sized = replace(config, nvme_bytes=capacity_for(SLOTS, LAYOUT))
    with open_store(sized) as store:
        assert put(store, keys) == [OK] * len(keys)
    return drive


class Sidecar:
    """A process; `ready` is what its first line said."""

    def __init__(self, config: Path, *, log: Path | None = None) -> None:
        self.log_file = log or config.with_suffix(".log")
        with self.log_file.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kvbench", "peer", "serve", "--config", str(config)],
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self.ready = self._first_line()

    def _first_line(self) -> dict[str, str]:
        assert self.process.stdout is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        stdout = self.process.stdout
        threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
        line = lines.get(timeout=PATIENCE_S)
        assert line.startswith("ready "), self.log()
        return dict(word.split("=", 1) for word in line.split()[1:])

    @property
    def join(self) -> str:
        """Where others join it."""
        return self.ready["join"]

    def log(self) -> str:
        """What it has said on standard error."""
        return self.log_file.read_text(encoding="utf-8")

    def end(self, number: signal.Signals) -> int:
        """Send a signal, and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Whatever became of it."""
        self.process.kill()
        self.process.wait(PATIENCE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextmanager
def sidecar(config: Path) -> Iterator[Sidecar]:
    """A process that is gone afterwards."""
    made = Sidecar(config)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def service(config: Path) -> Iterator[PeerService]:
    """A service in this process."""
    with PeerService(load_config(config)) as made:
        yield made

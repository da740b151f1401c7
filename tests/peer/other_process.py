"""A holder in another process, which does what a test tells it to by a pipe."""

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
import numpy as np

from kvbench.peer.holder import Holder, HolderLimits
from kvbench.peer.listener import Listener, ListenerLimits
from kvbench.peer.model import Outcome, Peer, Pull
from kvbench.peer.shares import Share, tag_of
from kvbench.peer.shm import ShmListener, host_digest
from kvbench.store.block import Bytes, Layout
from kvbench.store.dram import DramTier
from kvbench.store.store import TieredStore
from tests.store.blocks import LAYOUT, NAMESPACE, OK, WAIT_S, drive, keys_of, payload_of, put

if TYPE_CHECKING:
    from kvbench.store.tier import Tier

LONG_S = 20.0


class Other:
    """The holder's own process: a store with blocks, and a listener."""

    def __init__(self, how: str, setup: dict[str, Any]) -> None:
        self.layout = setup.get("layout", LAYOUT)
        self.dram = DramTier(self.layout, setup.get("slots", 16))
        tiers: list[Tier] = [self.dram]
        if "folder" in setup:
            tiers.append(drive(Path(setup["folder"]), 64, self.layout))
        self.store = TieredStore(tiers)
        for key in setup.get("keys", []):
            assert put(self.store, [key]) == [OK]
            if tiers[1:]:
                assert self.store.flush([key]).result(WAIT_S) == [OK]
        self.peer = peer_of(self.layout, self.store.events(limit=0).epoch)
        limits = HolderLimits(loan_s=setup.get("loan_s", 30.0))
        self.holder = Holder(self.store, [Share(NAMESPACE)], self.peer, limits)
        self.listener = self.listen(how, ListenerLimits(**setup.get("limits", {})))

    def listen(self, how: str, limits: ListenerLimits) -> Listener:
        if how == "shm":
            listener = ShmListener(self.holder, self.dram, limits)
            self.endpoints = {how: listener.endpoint}
            return listener
        from kvbench.peer.nixl import NixlListener  # noqa: PLC0415  needs NIXL

        by_nixl = NixlListener(self.holder, self.dram, limits=limits)
        self.endpoints = {how: by_nixl.endpoint}
        return by_nixl

    def flip(self, key: bytes) -> None:
        """A bit of the block where it lies."""
        block = self.store.lend([key]).blocks[0]
        assert block is not None
        assert block.view is not None
        block.view[self.layout.block_bytes // 2] ^= 1

    def replace_all(self, keys: Sequence[bytes]) -> None:
        """Put other blocks until none of these is here; what was lent has to be over first."""
        end_s, round_ = time.monotonic() + LONG_S, 1000
        while True:
            loan = self.store.lend(keys)
            loan.release()
            if not any(loan.blocks):
                return
            assert time.monotonic() < end_s, "blocks are still held"
            put(self.store, keys_of(self.dram.slots, round_))
            round_ += 1

    def cpu_s(self) -> float:
        """What this process has used so far."""
        return time.process_time()

    def close(self) -> None:
        self.listener.close()
        self.store.close(flush=False)


def peer_of(layout: Layout, epoch: int = 0) -> Peer:
    return Peer(
        id=os.urandom(16),
        name="other",
        epoch=epoch,
        block_bytes=layout.block_bytes,
        parts=layout.parts,
        namespaces=(tag_of(NAMESPACE),),
        host=host_digest(),
        endpoints={},
        capacities={},
    )


def _serve(pipe: Connection, how: str, setup: dict[str, Any]) -> None:
    os.environ.update(setup.get("environ", {}))
    other = Other(how, setup)
    pipe.send(
        msgspec.msgpack.encode(msgspec.structs.replace(other.peer, endpoints=other.endpoints))
    )
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            break
        if name == "counts":
            pipe.send(other.holder.counts())
        elif name == "dropped":
            pipe.send(other.listener.counts().dropped)
        else:
            pipe.send(getattr(other, name)(*arguments))
    other.close()


class OtherProcess:
    """Started with `with`; killed at its end."""

    def __init__(self, how: str, **setup: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._theirs, how, setup), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._theirs.close()
        assert self._pipe.poll(60), "the other process did not begin"
        self.peer = msgspec.msgpack.decode(self._pipe.recv(), type=Peer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self._pipe.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def does(self, name: str, *arguments: Any) -> Any:
        """Have a method of `Other` called."""
        self._pipe.send((name, arguments))
        assert self._pipe.poll(LONG_S), f"the other process does not {name}"
        return self._pipe.recv()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.join(WAIT_S)

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)


def pull_of(peer: Peer, keys: Sequence[bytes], rows: Bytes, within_s: float = LONG_S) -> Pull:
    """All of the keys, into the rows."""
    return Pull(
        namespace=NAMESPACE,
        epoch=peer.epoch,
        keys=keys,
        targets=list(rows),
        expires_s=time.monotonic() + within_s,
    )


def check(keys: Sequence[bytes], rows: Bytes, outcomes: Sequence[Outcome], layout: Layout) -> None:
    """Every block that arrived is the key's own."""
    for key, row, outcome in zip(keys, rows, outcomes, strict=True):
        if outcome.reason is None:
            assert np.array_equal(row, payload_of(key, layout)), f"wrong bytes: {key.hex()[:8]}"

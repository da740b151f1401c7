"""Holders on real sockets, ways to reach them, and proxies that spoil what passes."""

import contextlib
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from msgspec import structs

from kvbench.peer.holder import Holder, HolderLimits
from kvbench.peer.listener import ListenerLimits
from kvbench.peer.model import Outcome, Peer, Pull
from kvbench.peer.shares import Share, tag_of
from kvbench.peer.tcp import TcpChannel, TcpListener, TcpTransport
from kvbench.store.block import Bytes, Layout
from kvbench.store.dram import DramTier
from kvbench.store.store import TieredStore
from tests.store.blocks import LAYOUT, NAMESPACE, WAIT_S, payloads_of, put

ROOT = Path(__file__).parents[2]
WHO = itertools.count(1)


def peer_of(store: TieredStore, **changes: object) -> Peer:
    """The peer of a store."""
    layout = store.layout
    peer = Peer(
        id=os.urandom(16),
        name=f"test:{next(WHO)}",
        epoch=store.events().epoch,
        block_bytes=layout.block_bytes,
        parts=layout.parts,
        namespaces=(tag_of(NAMESPACE),),
        host="here",
        endpoints={},
        capacities={},
    )
    return structs.replace(peer, **changes)


def pull_of(peer: Peer, keys: Sequence[bytes], rows: Bytes, within_s: float = WAIT_S) -> Pull:
    """A pull of the tests' namespace."""
    return Pull(
        namespace=NAMESPACE,
        epoch=peer.epoch,
        keys=keys,
        targets=list(rows),
        expires_s=time.monotonic() + within_s,
    )


@dataclass
class Served:
    """A store in memory that is served over TCP."""

    store: TieredStore
    holder: Holder
    listener: TcpListener
    peer: Peer  # with its endpoint
    tls: ssl.SSLContext | None = None  # of those who ask
    channels: list[TcpChannel] = field(default_factory=list[TcpChannel])

    def connect(self, **changes: object) -> TcpChannel:
        """A channel to it, or to where `changes` say it is; closed with it at the latest."""
        transport = TcpTransport(peer_of(self.store), self.tls)
        peer = structs.replace(self.peer, **changes)
        self.channels.append(transport.connect(peer, time.monotonic() + WAIT_S))
        return self.channels[-1]

    def pull(
        self, channel: TcpChannel, keys: Sequence[bytes], rows: Bytes, within_s: float = WAIT_S
    ) -> list[Outcome]:
        """What became of these keys."""
        return channel.pull(pull_of(self.peer, keys, rows, within_s))


@contextlib.contextmanager
def serving(
    *,
    tier: DramTier | None = None,
    share: Share | None = None,
    holder_limits: HolderLimits | None = None,
    limits: ListenerLimits | None = None,
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    files: bool = True,
) -> Iterator[Served]:
    """Serve a store in memory; `tls` are a listener's context and an asker's."""
    tier = tier or DramTier(LAYOUT, 16)
    with TieredStore([tier]) as store:
        me = peer_of(store)
        shares = [share or Share(NAMESPACE)]
        holder = Holder(store, shares, me, holder_limits, [tier] if files else [])
        listener = TcpListener(holder, tls=tls[0] if tls else None, limits=limits)
        peer = structs.replace(me, endpoints={"tcp": listener.endpoint})
        served = Served(store, holder, listener, peer, tls[1] if tls else None)
        try:
            yield served
        finally:
            for channel in served.channels:  # of a test that failed: it is not to fail others too
                channel.close()
            listener.close()


def filled(served: Served, keys: Sequence[bytes], tenant: str = "") -> Bytes:
    """Put the payloads of these keys; uint8 [keys, block_bytes]."""
    payloads = payloads_of(keys, served.store.layout)
    put(served.store, keys, tenant=tenant)
    return payloads


def until(true: Callable[[], bool]) -> bool:
    """Whether it comes true in time."""
    end_s = time.monotonic() + WAIT_S
    wait = threading.Event()
    while not true():
        if time.monotonic() > end_s:
            return False
        wait.wait(0.005)
    return True


class Proxy:
    """Passes connections on to a holder; what the holder says goes through `spoil`.

    `spoil(offset, data)` is what goes on in place of the data that begins at this offset, which
    comes in pieces of up to `at_once` bytes.
    """

    def __init__(
        self, endpoint: str, spoil: Callable[[int, bytes], bytes], at_once: int = 65536
    ) -> None:
        self._at_once = at_once
        host, _, port = endpoint.rpartition(":")
        self._holder = (host, int(port))
        self._spoil = spoil
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.done = threading.Event()  # one direction of one connection is over
        self._socks: list[socket.socket] = [self._listening]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._holder)
            self._socks += [near, far]
            for one, two, spoil in ((near, far, None), (far, near, self._spoil)):
                thread = threading.Thread(target=self._pass, args=(one, two, spoil), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass(
        self, one: socket.socket, two: socket.socket, spoil: Callable[[int, bytes], bytes] | None
    ) -> None:
        at = 0
        with contextlib.suppress(OSError):
            while data := one.recv(self._at_once):
                two.sendall(data if spoil is None else spoil(at, data))
                at += len(data)
        for sock in (one, two):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.done.set()

    def close(self) -> None:
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT_S)
        for sock in self._socks:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Another process, to be killed or stopped. It serves `blocks` blocks of `block_bytes`.
_OTHER = """
import json, sys
import numpy as np
from kvbench.store.block import Layout
from kvbench.store.dram import DramTier
from tests.peer.serving import serving, filled
from tests.store.blocks import keys_of
with serving(tier=DramTier(Layout(int(sys.argv[2])), int(sys.argv[1]))) as served:
    filled(served, keys_of(int(sys.argv[1])))
    peer = served.peer
    print(json.dumps([peer.id.hex(), peer.epoch, peer.endpoints["tcp"]]), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def other_process(blocks: int, layout: Layout) -> Iterator[tuple["subprocess.Popen[str]", Peer]]:
    """A holder in another process, and who it is."""
    command = [sys.executable, "-c", _OTHER, str(blocks), str(layout.block_bytes)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            name, epoch, endpoint = json.loads(process.stdout.readline())
            peer = Peer(
                id=bytes.fromhex(name),
                name="another process",
                epoch=epoch,
                block_bytes=layout.block_bytes,
                parts=layout.parts,
                namespaces=(),
                host="here",
                endpoints={"tcp": endpoint},
                capacities={},
            )
            yield process, peer
        finally:
            process.kill()

"""A peer that holds blocks, in a process of its own: `python -m kvbench_suites.peer_holder`.

Reads an `Order` as a line of JSON, fills a store with blocks that anybody can make who knows the
seed, serves them through kvbench's own listeners, and says who it is. Then it does what further
lines say, and ends when its standard input does, or when the process that started it dies. No
membership: who asks is told of it. See `kvbench_suites.peer_processes` for the other side.
"""

import ctypes
import hashlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import numpy as np
from msgspec import structs

from kvbench.errors import KvbenchError, UsageError
from kvbench.measure.pattern import Pattern
from kvbench.peer import grant
from kvbench.peer.certs import TlsFiles, server_context
from kvbench.peer.holder import Holder
from kvbench.peer.model import PEER_ID_BYTES, PROTOCOL_VERSION, Peer
from kvbench.peer.shares import Share, tag_of
from kvbench.peer.shm import ShmListener, host_digest
from kvbench.peer.tcp import TcpListener
from kvbench.store.block import KEY_BYTES, Layout, Status
from kvbench.store.config import StoreConfig, open_store
from kvbench.store.dram import DramTier
from kvbench.store.drives import capacity_for
from kvbench.store.options import Options
from kvbench.store.posix import mapped_buffer
from kvbench_suites.peer_proxy import Proxy

if TYPE_CHECKING:
    from kvbench.peer.listener import Listener

FILL_BYTES = 64 * 2**20  # put at a time
SPARE_SHARE = 8  # a drive has one slot in so many to spare
MOST_ROUNDS = 1000  # of puts that are to push blocks out
WAIT_S = 0.005  # until the next, if all is lent
PR_SET_PDEATHSIG = 1  # prctl(2)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What a holder is to hold, and how it is to be reached."""

    block_bytes: int
    blocks: int  # numbers 0 to blocks - 1
    seed: int
    tier: str = "dram"
    folder: str | None = None  # of the drive's tier; whoever started it removes it
    how: str = "tcp"  # tcp, shm or nixl
    host: str = "127.0.0.1"  # other hosts need `tls`
    tls: str | None = None  # folder with ca.pem, cert.pem and key.pem
    proxy: bool = False  # a `Proxy` stands before it, which `proxy` lines tell what to do
    version: int = PROTOCOL_VERSION  # that it claims to speak
    salt: str = ""  # of its namespace


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Its first line: who it is, and what it holds."""

    peer: bytes  # a `Peer`, msgpack
    block_bytes: int
    blocks: int
    seed: int


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """A further line."""

    name: str
    first: int = 0  # blocks from this number on
    end: int = 0
    mode: str = ""  # of the proxy


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """Its answer to a line: `error` is why it cannot."""

    error: str | None = None
    ready: Ready | None = None
    facts: dict[str, Any] = {}


def key_of(seed: int, number: int) -> bytes:
    """The key of a block; whoever knows the seed and the number knows it."""
    return hashlib.blake2b(f"{seed} block {number}".encode(), digest_size=KEY_BYTES).digest()


def namespace_of(seed: int, salt: str = "") -> bytes:
    """The digest of the namespace that the keys are said to be of."""
    return hashlib.blake2b(f"{seed} namespace {salt}".encode(), digest_size=KEY_BYTES).digest()


def drive_bytes(blocks: int, layout: Layout) -> int:
    """What a holder takes of a drive."""
    return capacity_for(blocks + max(1, blocks // SPARE_SHARE), layout)


class Holding:
    """A filled store that is served."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.layout = Layout(order.block_bytes)
        self._pattern = Pattern(order.seed)
        self._others = 0
        self._pause = threading.Event()
        self._store = open_store(self._config())
        self._step = max(1, FILL_BYTES // order.block_bytes // 2)
        rows = mapped_buffer(self._step * order.block_bytes, huge_pages=True)
        self._rows = rows.reshape(self._step, order.block_bytes)
        self.fill(0, order.blocks)
        if order.tier == "nvme":  # what is still in memory would be served from there
            self._push(2 * self._step)
        self._listen()

    def do(self, command: Command) -> dict[str, Any]:
        """What a line says.

        Raises:
            UsageError: it says nothing that is known.
        """
        if command.name == "fill":
            self.fill(command.first, command.end)
        elif command.name == "evict":
            self.evict(command.first, command.end)
        elif command.name == "proxy" and self._proxy is not None:
            self._proxy.mode = command.mode
        elif command.name == "counts":
            return self._counts()
        elif command.name == "places":
            return self._places()
        else:
            raise UsageError(f"a holder knows no {command.name!r}")
        return {}

    def fill(self, first: int, end: int) -> None:
        """Put blocks, where they are to lie."""
        size = self.layout.block_bytes
        for start in range(first, end, self._step):
            numbers = range(start, min(start + self._step, end))
            for row, number in zip(self._rows, numbers, strict=False):
                self._pattern.fill(row, number * size)
            keys = [key_of(self.order.seed, number) for number in numbers]
            self._put(keys)
            if self.order.tier == "nvme":
                self._done(self._store.flush(keys).result())

    def evict(self, first: int, end: int) -> None:
        """Put others until none of these is here.

        Raises:
            UsageError: they stay: somebody holds them.
        """
        keys = [key_of(self.order.seed, number) for number in range(first, end)]
        for _ in range(MOST_ROUNDS):
            if not any(self._store.held(keys)):
                return
            self._push(min(self.order.blocks, self._step))
        raise UsageError(f"blocks {first} to {end} are still held")

    def close(self) -> None:
        """Serve no more."""
        self._listener.close()
        self._store.close(flush=False)

    def _config(self) -> StoreConfig:
        order, layout = self.order, self.layout
        options = Options(promotion="never", demotion="never")
        size_bytes = order.blocks * layout.block_bytes
        if order.tier == "hbm":
            return StoreConfig(layout=layout, hbm_bytes=size_bytes, options=options)
        if order.tier == "dram":
            return StoreConfig(layout=layout, dram_bytes=size_bytes, options=options)
        if order.folder is None:
            raise UsageError("a holder on a drive needs a folder there")
        return StoreConfig(
            require_drives=True,
            layout=layout,
            dram_bytes=max(FILL_BYTES, 4 * layout.block_bytes),
            directories=[Path(order.folder)],
            nvme_bytes=drive_bytes(order.blocks, layout),
            min_free_bytes=0,
            options=options,
        )

    def _listen(self) -> None:
        order, store = self.order, self._store
        grant.__dict__["PROTOCOL_VERSION"] = order.version  # as a peer of another kvbench has it
        share = Share(namespace_of(order.seed, order.salt))
        peer = Peer(
            id=os.urandom(PEER_ID_BYTES),
            name=f"holder:{os.getpid()}",
            epoch=store.events(limit=0).epoch,
            block_bytes=self.layout.block_bytes,
            parts=self.layout.parts,
            namespaces=(tag_of(namespace_of(order.seed)),),  # what it claims; the share decides
            host=host_digest(),
            endpoints={},
            capacities={},
        )
        dram = store.tier("dram")
        memory = dram if isinstance(dram, DramTier) else None
        files = [memory] if memory is not None and order.tier == "dram" else []
        self._holder = Holder(store, [share], peer, files=files)
        self._memory = memory
        self._listener, endpoint = self._door(memory)
        self._proxy = Proxy(endpoint) if order.proxy else None
        endpoint = self._proxy.endpoint if self._proxy is not None else endpoint
        self.peer = structs.replace(peer, endpoints={order.how: endpoint})

    def _door(self, memory: DramTier | None) -> "tuple[Listener, str]":
        order = self.order
        tls = None if order.tls is None else server_context(TlsFiles.of(Path(order.tls)))
        if order.how == "tcp":
            by_tcp = TcpListener(self._holder, order.host, tls=tls)
            return by_tcp, by_tcp.endpoint
        if memory is None:
            raise UsageError(f"{order.how} needs blocks in host memory, not in {order.tier}")
        if order.how == "shm":
            by_shm = ShmListener(self._holder, memory)
            return by_shm, by_shm.endpoint
        from kvbench.peer.nixl import NixlListener  # noqa: PLC0415  needs NIXL

        by_nixl = NixlListener(self._holder, memory, (order.host, 0), tls=tls)
        self._nixl_metadata = by_nixl.metadata
        return by_nixl, by_nixl.endpoint

    def _push(self, count: int) -> None:
        """Put blocks that nobody asks for."""
        done = 0
        while done < count:
            some = min(self._step, count - done)
            names = range(self._others, self._others + some)
            keys = [key_of(self.order.seed, -1 - name) for name in names]
            self._put(keys)
            self._others += some
            done += some

    def _put(self, keys: list[bytes]) -> None:
        """Put the first rows; what is lent to somebody is in the way until he has let it go."""
        left, rows = keys, list(self._rows[: len(keys)])
        for _ in range(MOST_ROUNDS):
            statuses = self._store.put(left, rows).result()
            busy = [at for at, status in enumerate(statuses) if status is Status.BUSY]
            self._done([status for status in statuses if status is not Status.BUSY])
            if not busy:
                return
            left, rows = [left[at] for at in busy], [rows[at] for at in busy]
            self._pause.wait(WAIT_S)
        raise UsageError(f"{len(left)} blocks find no room: all that is there is lent")

    def _done(self, statuses: list[Status]) -> None:
        if statuses.count(Status.OK) != len(statuses):
            wrong = sorted({status.value for status in statuses} - {Status.OK.value})
            raise UsageError(f"a holder's own store answers {', '.join(wrong)}")

    def _counts(self) -> dict[str, Any]:
        facts = self._store.stats().tiers[self.order.tier].facts
        counts = self._holder.counts()
        flipped = 0 if self._proxy is None else self._proxy.flipped
        return {
            "sent_blocks": counts.sent_blocks,
            "staged_blocks": counts.staged_blocks,
            "direct_io": bool(facts.get("direct_io", False)),
            "memory": str(facts.get("memory", "")),
            "flipped_bits": flipped,
        }

    def _places(self) -> dict[str, Any]:
        """Where the blocks lie for NIXL: all that a raw READ of them needs."""
        keys = [key_of(self.order.seed, number) for number in range(self.order.blocks)]
        if self._memory is None or self.order.how != "nixl":
            raise UsageError("only a holder in host memory that is reached by NIXL has places")
        loan = self._store.lend(keys, ttl_s=1e6)  # for as long as it lives: nobody puts here
        slots = [lent.slot for lent in loan.blocks if lent is not None]
        if len(slots) != len(keys):
            raise UsageError(f"{len(slots)} of {len(keys)} blocks are here")
        return {
            "metadata": self._nixl_metadata.hex(),
            "address": int(self._memory.view(0).__array_interface__["data"][0]),
            "slot_bytes": self._memory.slot_bytes,
            "slots": np.asarray(slots).tolist(),
        }


def main() -> None:
    """Serve as standard input says, until it ends."""
    _die_with_parent()
    lines = sys.stdin.buffer
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer

    def say(said: Said) -> None:
        out.write(msgspec.json.encode(said) + b"\n")
        out.flush()

    order = msgspec.json.decode(lines.readline(), type=Order)
    try:
        holding = Holding(order)
    except (KvbenchError, OSError) as error:
        say(Said(error=str(error)))
        _leave(1)
    ready = Ready(
        peer=msgspec.msgpack.encode(holding.peer),
        block_bytes=order.block_bytes,
        blocks=order.blocks,
        seed=order.seed,
    )
    say(Said(ready=ready))
    for line in lines:
        try:
            say(Said(facts=holding.do(msgspec.json.decode(line, type=Command))))
        except (KvbenchError, OSError, msgspec.MsgspecError) as error:
            say(Said(error=str(error)))
    threading.Timer(5.0, _leave, (0,)).start()  # what does not close is left
    holding.close()
    _leave(0)


def _die_with_parent() -> None:
    """Be killed when the parent dies, also while this process stands still."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        _leave(3)


def _leave(status: int) -> NoReturn:
    """At once: UCX may crash as a process ends."""
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()

"""A store of this process whose misses come from holders: what is measured of `kvbench.peer`.

Everything is as in a `PeerService` but for the membership: the directory is told who is there and
what they hold. So a lookup, a fetch, its checks, limits and breakers are those of an engine.
"""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from kvbench.peer.certs import TlsFiles, client_context, make_ca, make_certificate
from kvbench.peer.directory import Directory, hint, pack
from kvbench.peer.fetch import Fetcher
from kvbench.peer.limits import FetchOptions
from kvbench.peer.model import PEER_ID_BYTES, Peer, Transport
from kvbench.peer.shm import ShmTransport, host_digest
from kvbench.peer.store import PeerStore
from kvbench.peer.tcp import TcpTransport
from kvbench.peer.traffic import FetchStats
from kvbench.store.block import Layout
from kvbench.store.config import StoreConfig, open_store

TLS = "tcp+tls"
NIXL_PACKAGES = ("nixl_cu12", "nixl_cu13")


def how_of(transport: str) -> str:
    """The transport of `kvbench.peer` that a case's word names."""
    return "tcp" if transport == TLS else transport


def certificates(folder: Path) -> Path:
    """A cluster's certificates for this machine, made in a folder.

    Raises:
        TierUnavailableError: the package `cryptography` is not installed.
    """
    authority, member = folder / "authority", folder / "member"
    for each in (authority, member):
        each.mkdir()
    make_ca(authority)
    make_certificate(member, ca=authority)
    return member


def has_nixl() -> bool:
    """Whether NIXL is installed; whether it works is another question."""
    return any(importlib.util.find_spec(each) is not None for each in NIXL_PACKAGES)


class Reader:
    """`store` is what an engine would have; `local_blocks` is what its own memory holds."""

    def __init__(
        self,
        layout: Layout,
        namespace: bytes,
        transport: str,
        options: FetchOptions,
        *,
        local_blocks: int = 1,
        tls: Path | None = None,
    ) -> None:
        self.directory = Directory()
        me = Peer(
            id=os.urandom(PEER_ID_BYTES),
            name="reader",
            epoch=0,
            block_bytes=layout.block_bytes,
            parts=layout.parts,
            namespaces=(),
            host=host_digest(),
            endpoints={},
            capacities={},
        )
        made = _transport(me, transport, tls)
        self.fetcher = Fetcher([made], self.directory, layout, options)
        try:
            dram_bytes = local_blocks * layout.block_bytes
            local = open_store(StoreConfig(layout=layout, dram_bytes=dram_bytes))
        except BaseException:
            self.fetcher.close()
            raise
        self.store = PeerStore(local, self.fetcher, namespace, keep="never")

    def meet(self, peer: Peer, keys: Sequence[bytes]) -> None:
        """A peer is there, and has these blocks."""
        self.directory.join(peer)
        self.directory.snapshot(peer.id, peer.epoch, 0, pack([hint(key) for key in keys]))

    def part(self, peer: Peer) -> None:
        """It has left."""
        self.directory.leave(peer.id)
        self.fetcher.left(peer.id)

    def stats(self) -> FetchStats:
        """What was fetched, and what was not."""
        return self.fetcher.stats()

    def path(self) -> str:
        """How blocks came, as it was observed; all ways, if there were several."""
        peers = self.stats().peers.values()
        ways = sorted({way for each in peers for way, one in each.paths.items() if one.blocks})
        return " and ".join(ways) or "none"

    def close(self) -> None:
        """End it."""
        self.store.close(flush=False)


def _transport(me: Peer, transport: str, tls: Path | None) -> Transport:
    if transport == "shm":
        return ShmTransport(me)
    context = None if tls is None else client_context(TlsFiles.of(tls))
    if transport == "nixl":
        from kvbench.peer.nixl import NixlTransport  # noqa: PLC0415  needs NIXL

        return NixlTransport(me, context)
    return TcpTransport(me, context)

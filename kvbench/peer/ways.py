"""The transports that a configuration names, both sides of each: who serves and who asks.

May import: kvbench.errors, kvbench.peer, kvbench.store.{dram, tier}. nixl, if it is named.
"""

import contextlib
import logging
from typing import TYPE_CHECKING, TypeAlias

from kvbench.peer.certs import TlsFiles, client_context, server_context
from kvbench.peer.config import PeerConfig
from kvbench.peer.holder import Holder
from kvbench.peer.model import Peer, Transport
from kvbench.peer.shm import HOW as SHM
from kvbench.peer.shm import ShmListener, ShmTransport
from kvbench.peer.tcp import HOW as TCP
from kvbench.peer.tcp import TcpListener, TcpTransport
from kvbench.store.dram import DramTier
from kvbench.store.tier import Tier

if TYPE_CHECKING:
    from kvbench.peer.nixl import NixlListener

_log = logging.getLogger("kvbench.peer")
ServedBy: TypeAlias = "TcpListener | ShmListener | NixlListener"


def listeners_of(
    config: PeerConfig,
    holder: Holder,
    memory: Tier | None,
    tls: TlsFiles | None,
    undo: contextlib.ExitStack,
) -> dict[str, ServedBy]:
    """The serving sides, by transport; `undo` closes each of them.

    `memory` is the host memory of the store, if it has some: what is read in place needs it.

    Raises:
        UsageError: a port cannot be had, or others could reach it without credentials.
        TierUnavailableError: NIXL was named and is not installed.
    """
    doors: dict[str, ServedBy] = {}
    for how in config.data.transports:
        if how != TCP and not isinstance(memory, DramTier):
            _log.info("no host memory in this store that could be shared: no %s", how)
            continue
        doors[how] = _listener(how, config, holder, memory, tls)
        undo.callback(doors[how].close)
    return doors


def transports_of(config: PeerConfig, me: Peer, tls: TlsFiles | None) -> list[Transport]:
    """The asking sides, in order of preference.

    Raises:
        TierUnavailableError: NIXL was named and is not installed.
    """
    context = None if tls is None else client_context(tls)
    made: list[Transport] = []
    for how in config.data.transports:
        if how == TCP:
            made.append(TcpTransport(me, context))
        elif how == SHM:
            made.append(ShmTransport(me))
        else:
            from kvbench.peer.nixl import NixlTransport  # noqa: PLC0415  few have it

            made.append(NixlTransport(me, context))
    return made


def _listener(
    how: str, config: PeerConfig, holder: Holder, memory: Tier | None, tls: TlsFiles | None
) -> ServedBy:
    limits, (host, port) = config.listener_limits(), config.listen()
    context = None if tls is None else server_context(tls)
    insecure = config.cluster.insecure
    if how == TCP:
        return TcpListener(holder, host, port, tls=context, limits=limits, insecure=insecure)
    assert isinstance(memory, DramTier)
    if how == SHM:
        return ShmListener(holder, memory, limits)
    from kvbench.peer.nixl import NixlListener  # noqa: PLC0415  few have it

    where = (host, config.data.nixl_port)
    return NixlListener(holder, memory, where, tls=context, limits=limits, insecure=insecure)

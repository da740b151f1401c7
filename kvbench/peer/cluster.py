"""How a peer finds the others and what it says of itself: configuration, tokens, who fits whom.

Nothing here opens a connection: see `kvbench.peer.membership`.

May import: kvbench.errors, kvbench.peer.certs, kvbench.peer.model, kvbench.store.block. msgspec.
"""

import base64
import binascii
import ipaddress
import logging
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from kvbench.errors import UsageError
from kvbench.peer.model import PEER_ID_BYTES, TAG_BYTES, Peer, PeerError, PeerId, Reason
from kvbench.store.block import Layout

if TYPE_CHECKING:
    from kvbench.peer.certs import TlsFiles

_log = logging.getLogger("kvbench.peer")
CONTROL = "control"  # in Peer.endpoints: where others may join
MOST_MEMBERS = 1024  # ids that are remembered; of a cluster of 128, those that came and went
MOST_TOKEN = 8192
MOST_NAMES = 64  # namespaces, endpoints, capacities of one peer
MOST_NAME = 256
LEAST_LEASE_S = 0.2  # below it a busy machine looks dead
MOST_LEASE_S = 3600.0
OPEN_MS = 8000  # of a connection, both sides: starting together, peers take seconds for it
ZENOH_ID_BYTES = 16
MOST_INTRODUCING_S = 10.0
_NEVER_MS = 24 * 3600 * 1000
_CLUSTER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ENDPOINT = re.compile(r"(?:(tcp|tls)/)?(\[[0-9A-Fa-f:.%]+\]|[^/\[\]:?#]+):(\d{1,5})")


class Endpoint(NamedTuple):
    """Where Zenoh listens or connects to."""

    protocol: str  # tcp, tls
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.protocol}/{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return loopback(self.host.strip("[]"))


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipConfig:
    """How a peer finds the others.

    `listen` and `join` are "host:port", optionally after "tcp/" or "tls/"; port 0 of `listen` is a
    free one. Without `tls`, nothing listens beyond loopback unless `insecure` says so.

    Raises:
        UsageError: something of it cannot be, or would be open to anybody.
    """

    cluster: str = "default"
    listen: Sequence[str] = ("127.0.0.1:0",)
    join: Sequence[str] = ()
    lease_s: float = 2.0  # a peer that is silent for so long is gone
    multicast: bool = False  # find others on the local network, by UDP to 224.0.0.224
    tls: "TlsFiles | None" = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if not _CLUSTER.fullmatch(self.cluster):
            raise UsageError(
                f"the cluster is named {self.cluster!r}: use 1 to 64 of A-Z a-z 0-9 _ . -"
            )
        if not LEAST_LEASE_S <= self.lease_s <= MOST_LEASE_S:
            raise UsageError(
                f"lease_s is {self.lease_s}: give {LEAST_LEASE_S} to {MOST_LEASE_S:.0f} seconds"
            )
        if not self.listen:
            raise UsageError("a peer has to listen somewhere: give `listen`, such as 127.0.0.1:0")
        self.endpoints(self.join)
        open_ = [str(each) for each in self.endpoints(self.listen) if not each.loopback]
        open_ += ["multicast"] if self.multicast else []
        if open_ and self.tls is None:
            if not self.insecure:
                raise UsageError(
                    f"{', '.join(open_)}: beyond loopback without TLS anybody could join. Give the "
                    "cluster's certificates, or say insecure = true"
                )
            _log.warning("insecure: anybody who reaches %s can join", ", ".join(open_))

    def endpoints(self, texts: Sequence[str]) -> list[Endpoint]:
        """Some of `listen` and `join`, with the protocol that this peer speaks.

        Raises:
            UsageError: one is none, or is of the other protocol.
        """
        protocol = "tcp" if self.tls is None else "tls"
        found: list[Endpoint] = []
        for text in texts:
            match = _ENDPOINT.fullmatch(text)
            if match is None or int(match[3]) >= 2**16:
                raise UsageError(f"{text!r} is no endpoint: give host:port, such as 10.0.0.7:7447")
            if match[1] not in {None, protocol}:
                has = "no TLS" if self.tls is None else "TLS"
                raise UsageError(f"{text}: this peer has {has} and speaks {protocol}/ only")
            found.append(Endpoint(protocol, match[2], int(match[3])))
        return found


def check_fits(me: Peer, other: Peer) -> None:
    """Two peers can share blocks.

    Raises:
        PeerError: they cannot, and why.
    """
    if other.version != me.version:
        raise PeerError(
            f"{other.name} speaks version {other.version} of the protocol, this peer {me.version}: "
            "run one version of kvbench",
            Reason.REFUSED,
        )
    if other.layout != me.layout:
        raise PeerError(
            f"{other.name} has blocks of {other.block_bytes} bytes in {other.parts} parts, this "
            f"peer of {me.block_bytes} in {me.parts}: they have to be equal",
            Reason.REFUSED,
        )
    if not set(other.namespaces) & set(me.namespaces):
        raise PeerError(
            f"{other.name} serves no namespace of this peer: model, geometry, tenant's salt and "
            "seed have to be equal",
            Reason.REFUSED,
        )


def token_of(peer: Peer) -> str:
    """What a peer says of itself, as the last part of a key.

    Raises:
        UsageError: it says too much.
    """
    text = base64.urlsafe_b64encode(msgspec.msgpack.encode(peer)).decode().rstrip("=")
    if len(text) > MOST_TOKEN:
        raise UsageError(
            f"what this peer says of itself takes {len(text)} characters, at most {MOST_TOKEN}: "
            "shorten its name, or serve fewer namespaces"
        )
    return text


def peer_of(peer_id: PeerId, token: str) -> Peer:
    """What a token says, checked against limits.

    Raises:
        PeerError: it says what cannot be.
    """
    if len(token) > MOST_TOKEN:
        raise PeerError(f"a token of {len(token)} characters", Reason.REFUSED)
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        peer = msgspec.msgpack.decode(data, type=Peer)
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise PeerError(f"its token cannot be read: {str(error)[:200]}", Reason.REFUSED) from None
    texts = [peer.name, peer.host, *peer.endpoints, *peer.endpoints.values(), *peer.capacities]
    numbers = [peer.epoch, peer.version, *peer.capacities.values()]
    sizes = (len(peer.namespaces), len(peer.endpoints), len(peer.capacities))
    if (
        peer.id != peer_id
        or max(sizes) > MOST_NAMES
        or any(len(tag) != TAG_BYTES for tag in peer.namespaces)
        or any(len(text) > MOST_NAME for text in texts)
        or any(not 0 <= number < 2**63 for number in numbers)
    ):
        raise PeerError("its token claims what cannot be", Reason.REFUSED)
    try:
        Layout(peer.block_bytes, peer.parts)
    except UsageError as error:
        raise PeerError(f"its token: {error}", Reason.REFUSED) from None
    return peer


def id_of(text: str) -> PeerId | None:
    """The id that a key names; None if it is none."""
    try:
        peer_id = bytes.fromhex(text)
    except ValueError:
        return None
    return peer_id if len(peer_id) == PEER_ID_BYTES else None


def loopback(host: str) -> bool:
    """Whether only this machine reaches an address, or all addresses of the name `localhost`."""
    try:
        found = [host]
        if host == "localhost":  # usually; but /etc/hosts may say otherwise
            found = [str(each[4][0]) for each in socket.getaddrinfo(host, None)]
        return all(ipaddress.ip_address(each).is_loopback for each in found)
    except (ValueError, OSError):
        return False


def free_port(endpoint: Endpoint) -> Endpoint:
    """The same with a port that is free now.

    Raises:
        PeerError: there is none, or no such address here.
    """
    host = endpoint.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
            port: int = probe.getsockname()[1]
    except OSError as error:
        raise PeerError(f"cannot listen on {endpoint}: {error}", Reason.UNREACHABLE) from error
    return endpoint._replace(port=port)


def zenoh_settings(config: MembershipConfig, listen: Sequence[Endpoint]) -> dict[str, object]:
    """Zenoh's configuration; its keys are those of `DEFAULT_CONFIG.json5` of Zenoh 1.x."""
    lease_ms = int(config.lease_s * 1000)
    identity = zenoh_id(reached=any(not each.loopback for each in listen))
    join = [str(each) for each in config.endpoints(config.join)]
    settings: dict[str, object] = {
        "id": identity,
        "mode": "peer",
        "listen/endpoints": [str(each) for each in listen],
        "listen/exit_on_failure": True,
        "connect/endpoints": join,
        "connect/timeout_ms": -1,  # for ever, in the background
        "connect/exit_on_failure": False,
        "connect/retry": {
            "period_init_ms": 200,
            "period_max_ms": 500,
            "period_increase_factor": 2,
        },
        "scouting/multicast/enabled": config.multicast,
        "scouting/gossip/enabled": True,
        # Of two that hear of each other one connects (see `zenoh_id`), or many pairs would have two
        # links, and keep both alive.
        "scouting/gossip/autoconnect_strategy": {
            "peer": {"to_router": "always", "to_peer": "greater-zid"}
        },
        "transport/shared_memory/enabled": False,
        "transport/link/protocols": ["tls" if config.tls is not None else "tcp"],
        "transport/link/tx/lease": lease_ms,
        "transport/link/tx/keep_alive": 3,  # of them in a lease; each link has its own
        # Whoever takes nothing for a lease is gone; it holds up the publisher so long.
        "transport/link/tx/queue/congestion_control/block/wait_before_close": lease_ms * 1000,
        "transport/link/rx/max_message_size": 4 * 2**20,
        # After a partition the next packet finds a healed network: Linux sends one a second at
        # first, before 6.5 after 1, 3 and 7 s.
        "transport/unicast/open_timeout": OPEN_MS,
        "transport/unicast/accept_timeout": OPEN_MS,
    }
    if config.tls is not None:
        tls = config.tls
        settings["transport/link/tls"] = {
            "root_ca_certificate": str(tls.ca),
            "listen_certificate": str(tls.cert),
            "listen_private_key": str(tls.key),
            "connect_certificate": str(tls.cert),
            "connect_private_key": str(tls.key),
            "enable_mtls": True,
            "verify_name_on_connect": True,
            "close_link_on_expiration": True,
        }
    return settings


def zenoh_id(*, reached: bool) -> str:
    """A new id for a session, in Zenoh's hexadecimal: of two, the one with the greater id connects.

    So who listens on loopback alone, and cannot be reached from other machines, has a greater one
    than all who can. The last byte written counts most.
    """
    first, *middle, last = os.urandom(ZENOH_ID_BYTES)
    last = last & 0x7F if reached else last | 0x80
    return bytes((first | 0x10, *middle, last)).hex()  # without leading zeros


def introducing_s(config: MembershipConfig) -> float:
    """How long an introduction may take: then it is over, whether the two have met or not."""
    return min(config.lease_s, MOST_INTRODUCING_S) + 1.0


def introducing_settings(config: MembershipConfig, ends: Sequence[Endpoint]) -> dict[str, object]:
    """Of a session that is there for a moment, so that peers hear of each other by its gossip.

    It connects to `ends` and to nobody whom it hears of, and listens nowhere.
    """
    # What is still being tried holds up closing, so one attempt has to do.
    once = {"period_init_ms": _NEVER_MS, "period_max_ms": _NEVER_MS, "period_increase_factor": 1}
    return {
        **zenoh_settings(config, []),
        "connect/endpoints": [str(each) for each in ends],
        "connect/retry": once,
        "scouting/multicast/enabled": False,
        "scouting/gossip/autoconnect": {"router": [], "peer": []},
        "transport/unicast/open_timeout": int(introducing_s(config) * 1000),
    }

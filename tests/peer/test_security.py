"""Who has no credential learns nothing; who has another tenant's salt finds nothing; what listens.

What is secret is searched for in everything that a peer says to a stranger, and in what a Zenoh
session of a stranger sees.
"""

import contextlib
import json
import logging
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from kvbench.peer.certs import TlsFiles, client_context, make_ca, make_certificate
from kvbench.peer.config import load_config
from kvbench.peer.membership import ROOT
from kvbench.peer.messages import Hello
from kvbench.peer.model import PROTOCOL_VERSION
from kvbench.peer.protocol import frame
from kvbench.peer.service import PeerService
from kvbench.peer.shares import tag_of
from kvbench.store.block import Status
from tests.peer.eventful import eventually
from tests.peer.sidecar import PATIENCE_S, service, sidecar, toml
from tests.store.blocks import LAYOUT, NAMESPACE, OK, empty_rows, keys_of, put

pytest.importorskip("zenoh")
KEYS = keys_of(12)
NAME = "peer-whose-name-is-secret"
CLUSTER = "tests"  # of tests.peer.sidecar
SILENCE_S = 0.5  # what a stranger was not told until then it is not told
HELLO = frame(
    Hello(PROTOCOL_VERSION, b"s" * 16, LAYOUT.block_bytes, LAYOUT.parts, b"n" * 32, "tcp")
)


class Secured(NamedTuple):
    """A peer with TLS that holds KEYS, and who tries to look at it."""

    peer: PeerService
    member: TlsFiles
    stranger: TlsFiles  # of another authority

    @property
    def data(self) -> tuple[str, int]:
        """Where it serves blocks."""
        host, _, port = self.peer.me.endpoints["tcp"].rpartition(":")
        return host, int(port)

    @property
    def control(self) -> tuple[str, int]:
        """Where others join it."""
        host, _, port = self.peer.join[0].removeprefix("tls/").rpartition(":")
        return host, int(port)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    make_ca(folder / "ca")
    make_ca(folder / "other-ca")
    member = make_certificate(folder / "me", ca=folder / "ca")
    stranger = make_certificate(folder / "stranger", ca=folder / "other-ca")
    config = toml(folder, NAME, transports=["tcp"], more="[tls]\nfolder = 'me'")
    with service(config) as peer:
        assert put(peer.store.store, KEYS) == [OK] * len(KEYS)
        yield Secured(peer, member, stranger)


def secrets(peer: PeerService) -> list[bytes]:
    """What nobody without the credential may see, as bytes and as text."""
    tag = tag_of(NAMESPACE)
    raw = [NAMESPACE, tag, peer.me.id, *(key[:8] for key in KEYS)]
    texts = [NAME, f"{ROOT}/", *(each.hex() for each in raw)]
    return [*raw, *(text.encode() for text in texts), b"kvbench/", b"alive"]


def said_to(sock: socket.socket, data: bytes) -> bytes:
    """All that comes back, until it is closed or nothing more does."""
    sock.settimeout(SILENCE_S)
    said = b""
    with contextlib.suppress(OSError):
        sock.sendall(data)
        while part := sock.recv(65536):
            said += part
    return said


def leaks(said: bytes, peer: PeerService) -> list[bytes]:
    return [secret for secret in secrets(peer) if secret in said]


def stranger_contexts(secured: Secured) -> dict[str, ssl.SSLContext]:
    """TLS as somebody speaks it who is no member, and does not mind whom he talks to."""
    made: dict[str, ssl.SSLContext] = {}
    for what in ("no certificate", "another authority's", "TLS 1.2"):
        context = made[what] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if what == "another authority's":
            context.load_cert_chain(secured.stranger.cert, secured.stranger.key)
    made["TLS 1.2"].maximum_version = ssl.TLSVersion.TLSv1_2
    made["TLS 1.2"].load_cert_chain(secured.member.cert, secured.member.key)
    return made


@pytest.mark.parametrize("port", ["data", "control"])
def test_plain_tcp_learns_nothing(secured: Secured, port: str) -> None:
    for data in (b"", HELLO, b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 512):
        with socket.create_connection(getattr(secured, port)) as sock:
            said = said_to(sock, data)
        assert len(said) < 64, f"more than an alert: {said!r}"
        assert leaks(said, secured.peer) == []


@pytest.mark.parametrize("port", ["data", "control"])
@pytest.mark.parametrize("who", ["no certificate", "another authority's", "TLS 1.2"])
def test_tls_of_a_stranger_learns_nothing(secured: Secured, port: str, who: str) -> None:
    context = stranger_contexts(secured)[who]
    said = b""
    with socket.create_connection(getattr(secured, port)) as sock:
        sock.settimeout(PATIENCE_S)
        # With TLS 1.3 a client hears only after its handshake that it was not let in.
        with contextlib.suppress(OSError), context.wrap_socket(sock) as secure:
            said = (secure.getpeercert(binary_form=True) or b"") + said_to(secure, HELLO)
    assert leaks(said, secured.peer) == []


def test_a_member_is_answered_where_a_stranger_is_not(secured: Secured) -> None:
    context = client_context(secured.member)
    with (
        socket.create_connection(secured.data) as sock,
        context.wrap_socket(sock, server_hostname=secured.data[0]) as secure,
    ):
        assert secured.peer.me.id in said_to(secure, HELLO), "the probes above ask for nothing"


# What a session of Zenoh sees that asks for everything, in a process of its own: sessions of one
# process would share what they know.
_SPY = """
import json, sys, threading, zenoh
settings, seconds = json.loads(sys.argv[1]), float(sys.argv[2])
zenoh.init_log_from_env_or("off")
config = zenoh.Config()
for key, value in settings.items():
    config.insert_json5(key, json.dumps(value))
seen, more = [], threading.Event()
with zenoh.open(config) as session:
    def came(sample):
        seen.append(str(sample.key_expr))
        more.set()
    spies = [session.declare_subscriber("**", came)]
    spies.append(session.liveliness().declare_subscriber("**", came, history=True))
    print("looking", flush=True)
    more.wait(seconds)
    for selector in ("**", "@/**"):
        for reply in session.get(selector, timeout=0.5):
            if reply.ok is not None:
                seen.append(str(reply.ok.key_expr) + str(reply.ok.payload.to_bytes()))
    seen += [str(each) for each in session.info.peers_zid()]
print(json.dumps(seen))
"""


def spied(secured: Secured, who: str) -> str:
    """What that session saw of others within some seconds; a member's, as soon as it sees one."""
    host, port = secured.control
    member = who == "a member"
    tls = secured.stranger if who == "another authority's" else secured.member
    settings: dict[str, object] = {
        "mode": "peer",
        "connect/endpoints": [f"{'tcp' if who == 'plain TCP' else 'tls'}/{host}:{port}"],
        "connect/timeout_ms": -1,
        "connect/exit_on_failure": False,
        "listen/endpoints": [],
        "scouting/multicast/enabled": False,
        "adminspace/enabled": False,
    }
    if who != "plain TCP":
        files = {"root_ca_certificate": str(tls.ca if member else secured.member.ca)}
        if who != "no certificate":
            files["connect_certificate"] = str(tls.cert)
            files["connect_private_key"] = str(tls.key)
        settings["transport/link/tls"] = {**files, "enable_mtls": who != "no certificate"}
    seconds = PATIENCE_S if member else 3.0
    command = [sys.executable, "-c", _SPY, json.dumps(settings), str(seconds)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=True
    )
    return done.stdout.partition("looking\n")[2].strip()


def test_a_session_of_zenoh_without_the_credential_sees_nobody(secured: Secured) -> None:
    who = ["a member", "another authority's", "no certificate", "plain TCP"]
    with ThreadPoolExecutor(len(who)) as pool:
        found = dict(zip(who, pool.map(partial(spied, secured), who), strict=True))
    assert secured.peer.me.id.hex() in found.pop("a member"), "the spy sees nothing anyhow"
    assert found == {"another authority's": "[]", "no certificate": "[]", "plain TCP": "[]"}


def test_plain_tcp_to_a_tls_port_is_one_clear_line(
    secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    def said() -> bool:
        lines = [record for record in caplog.records if "plain TCP" in record.getMessage()]
        return any(record.levelno == logging.WARNING for record in lines)

    def try_it() -> bool:  # one line a second of a kind: an earlier test may have said it
        with socket.create_connection(secured.data) as sock:
            said_to(sock, HELLO)
        return said()

    assert eventually(try_it, PATIENCE_S)
    (line,) = [r.getMessage() for r in caplog.records if "plain TCP" in r.getMessage()][:1]
    assert "dropped a connection from=127.0.0.1:" in line
    assert "kind=refused" in line
    assert leaks(line.encode(), secured.peer) == []


def test_another_salt_finds_nothing_of_the_same_model(tmp_path: Path) -> None:
    text = "model = 'm'\nrevision = 'r'\ngeometry = 'g'\ncache_dtype = 'bf16'\nlayout = 'l'\n"
    text += "layers = [0, 2]\nheads = [0, 2]\nblock_tokens = 16\nsalt_file = '{}.salt'\n"

    def config_of(name: str, join: list[str]) -> Path:
        (tmp_path / f"{name}.salt").write_bytes(f"the salt of {name}".encode())
        config = toml(tmp_path, name, join=join)
        digest = f"digest = '{NAMESPACE.hex()}'\n"
        config.write_text(config.read_text().replace(digest, text.format(name)))
        return config

    with service(config_of("one", [])) as one:
        assert put(one.store.store, KEYS) == [OK] * len(KEYS)
        with service(config_of("two", one.join)) as two:
            refused = eventually(lambda: two.status().members["refused"] == 1, PATIENCE_S)
            assert refused
            with two.store.lookup(KEYS) as lease:
                assert len(lease) == 0
            statuses = two.store.get_into(KEYS, empty_rows(len(KEYS))).result(PATIENCE_S)
            assert statuses == [Status.MISS] * len(KEYS)
        assert one.status().outgoing.sent_blocks == 0


def listening(pid: int) -> set[str]:
    """Addresses at which a process can be reached by the network: TCP, and UDP that waits."""
    found: set[str] = set()
    for each in psutil.Process(pid).net_connections(kind="inet"):
        if each.status in {psutil.CONN_LISTEN, psutil.CONN_NONE}:
            address, _ = each.laddr
            found.add(address)
    return found


def test_nothing_listens_beyond_loopback_unless_it_is_told_to(tmp_path: Path) -> None:
    metrics = "[metrics]\nlisten = '127.0.0.1:0'"
    with sidecar(toml(tmp_path, "a", more=metrics)) as one:
        found = listening(one.process.pid)
        assert found, "it listens somewhere"
        assert found == {"127.0.0.1"}
    told = toml(tmp_path, "b", more="listen = ['0.0.0.0:0']\ninsecure = true")
    told.write_text(
        told.read_text().replace("[data]", "[data]\nlisten = '0.0.0.0:0'\nadvertise = '127.0.0.1'")
    )
    assert load_config(told).cluster.insecure
    with sidecar(told) as one:
        assert listening(one.process.pid) == {"0.0.0.0"}
        assert "insecure: anybody who reaches" in one.log()

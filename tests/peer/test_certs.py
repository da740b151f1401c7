"""Certificates that are made, checked, and used by both ends of a real TLS connection."""

import datetime as dt
import logging
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kvbench.errors import UsageError
from kvbench.peer.certs import (
    TlsFiles,
    client_context,
    make_ca,
    make_certificate,
    server_context,
)

pytest.importorskip("cryptography")
from cryptography import x509


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    for name in ("ca", "other-ca"):
        make_ca(folder / name)
    make_certificate(folder / "a", ca=folder / "ca", hosts=["node-a", "10.0.0.7", "fd00::7"])
    make_certificate(folder / "b", ca=folder / "ca")
    make_certificate(folder / "stranger", ca=folder / "other-ca")
    return folder


@pytest.fixture
def tls(made: Path, tmp_path: Path) -> TlsFiles:
    """Files of peer a, to be spoiled."""
    shutil.copytree(made / "a", tmp_path / "a")
    return TlsFiles.of(tmp_path / "a")


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def meet(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "127.0.0.1") -> list[str]:
    """What each end says: the version that was agreed on, or why not."""
    ours, theirs = socket.socketpair()
    said = ["", ""]

    def serve() -> None:
        with ours:
            try:
                with server.wrap_socket(ours, server_side=True) as end:
                    end.sendall(b"secret")
                    said[0] = end.version() or ""
                    end.recv(1)
            except OSError as error:
                said[0] = str(error)

    ours.settimeout(5)
    theirs.settimeout(5)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with theirs, client.wrap_socket(theirs, server_hostname=host) as end:
            said[1] = f"{end.version()} {end.recv(6).decode()}"
    except OSError as error:
        said[1] = str(error)
    thread.join()
    return said


def test_two_peers_of_one_authority_talk_by_tls_13(made: Path) -> None:
    server, client = TlsFiles.of(made / "a"), TlsFiles.of(made / "b")
    for host in ("127.0.0.1", "::1", "localhost", "node-a", "10.0.0.7", "fd00::7"):
        assert meet(server_context(server), client_context(client), host) == [
            "TLSv1.3",
            "TLSv1.3 secret",
        ]


def test_without_a_certificate_of_the_authority_nothing_is_said_to_a_client(made: Path) -> None:
    server = server_context(TlsFiles.of(made / "a"))
    bare = ssl.create_default_context(cafile=made / "a" / "ca.pem")
    stranger = TlsFiles.of(made / "stranger")
    foreign = client_context(TlsFiles(made / "a" / "ca.pem", stranger.cert, stranger.key))
    for client in (bare, foreign):
        ours, theirs = meet(server, client)
        assert "secret" not in theirs
        assert "TLSv1.3" not in ours


def test_a_client_trusts_only_its_authority_and_the_host_that_it_wanted(made: Path) -> None:
    client = client_context(TlsFiles.of(made / "b"))
    _, theirs = meet(server_context(TlsFiles.of(made / "stranger")), client)
    assert "certificate verify failed" in theirs
    _, theirs = meet(server_context(TlsFiles.of(made / "a")), client, "10.0.0.8")
    assert "IP address mismatch" in theirs


def test_older_tls_is_not_spoken(made: Path) -> None:
    old = client_context(TlsFiles.of(made / "b"))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    ours, theirs = meet(server_context(TlsFiles.of(made / "a")), old)
    assert "secret" not in theirs
    assert "unsupported protocol" in ours


def test_a_certificate_says_where_its_peer_is_reached_what_it_may_and_how_long(
    made: Path,
) -> None:
    cert = loaded(made / "a" / "cert.pem")
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == [
        "localhost",
        "127.0.0.1",
        "::1",
        "node-a",
        "10.0.0.7",
        "fd00::7",
    ]
    assert not cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert loaded(made / "ca" / "ca.pem").extensions.get_extension_for_class(
        x509.BasicConstraints
    ).value == x509.BasicConstraints(ca=True, path_length=0)
    left = cert.not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert dt.timedelta(days=364) < left <= dt.timedelta(days=365)


def test_a_certificate_ends_no_later_than_its_authority(tmp_path: Path) -> None:
    make_ca(tmp_path / "ca", days=2)
    files = make_certificate(tmp_path / "a", ca=tmp_path / "ca", days=100)
    assert loaded(files.cert).not_valid_after_utc == loaded(files.ca).not_valid_after_utc


def test_what_was_made_is_read_by_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        paths = [*make_ca(tmp_path / "ca")]
        files = make_certificate(tmp_path / "a", ca=tmp_path / "ca")
    finally:
        os.umask(old)
    for path in [*paths, files.ca, files.cert, files.key]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "ca.pem",
        "cert.pem",
        "key.pem",
    ]
    assert not (tmp_path / "a" / "ca-key.pem").exists()


def test_files_that_exist_are_never_overwritten_without_force(tmp_path: Path) -> None:
    make_ca(tmp_path / "ca")
    files = make_certificate(tmp_path / "a", ca=tmp_path / "ca")
    files.cert.unlink()  # half a pair is as good as a pair
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}
    with pytest.raises(UsageError, match=r"ca\.pem, .*ca-key\.pem: exists already"):
        make_ca(tmp_path / "ca")
    with pytest.raises(UsageError, match=r"key\.pem, .*ca\.pem: exists already"):
        make_certificate(tmp_path / "a", ca=tmp_path / "ca")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.pem")} == before
    make_certificate(tmp_path / "a", ca=tmp_path / "ca", force=True).check()
    assert files.key.read_bytes() != before[files.key]


def test_a_link_in_the_place_of_a_key_is_not_followed(tmp_path: Path) -> None:
    make_ca(tmp_path / "ca")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="exists already"):
        make_certificate(tmp_path / "a", ca=tmp_path / "ca")
    make_certificate(tmp_path / "a", ca=tmp_path / "ca", force=True)
    assert not (tmp_path / "elsewhere").exists()


def refused(tls: TlsFiles) -> str:
    with pytest.raises(UsageError) as error:
        tls.check()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_good_files_are_found_good_without_a_word(
    tls: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    tls.check()
    assert not caplog.records


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_a_file_that_is_missing_or_is_none_is_named(tls: TlsFiles, name: str) -> None:
    path: Path = getattr(tls, name)
    path.write_text("not PEM")
    assert re.fullmatch(rf".*{name}\.pem is no .* in PEM.*", refused(tls))
    path.unlink()
    assert f"{path} does not exist: make it with `kvbench peer certs`" in refused(tls)
    with pytest.raises(UsageError, match="does not exist"):
        server_context(tls)
    path.mkdir()
    assert f"{path} cannot be read: Is a directory" in refused(tls)


def test_a_key_of_another_certificate_is_named(tls: TlsFiles, made: Path) -> None:
    shutil.copy(made / "b" / "key.pem", tls.key)
    assert refused(tls) == f"{tls.key} is not the key of {tls.cert}: give the pair"
    with pytest.raises(UsageError, match="cannot be used: KEY_VALUES_MISMATCH"):
        client_context(tls)


def test_a_certificate_of_another_authority_is_named(tls: TlsFiles, made: Path) -> None:
    shutil.copy(made / "other-ca" / "ca.pem", tls.ca)
    assert f"{tls.cert} was not made by the authority {tls.ca}" in refused(tls)


def test_a_certificate_that_is_over_or_not_yet_valid_is_named(
    tls: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dt.datetime.now(dt.UTC)

    class Moved(dt.datetime):
        by = dt.timedelta(days=366)

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Moved":
            return super().fromtimestamp((real + cls.by).timestamp(), tz)

    monkeypatch.setattr("kvbench.peer.certs.dt.datetime", Moved)
    assert f"{tls.cert} was valid until " in refused(tls)
    Moved.by = dt.timedelta(days=-1)
    assert f"{tls.ca} is valid from " in refused(tls)
    Moved.by = dt.timedelta(days=3651)
    assert f"{tls.ca} was valid until " in refused(tls)


def test_a_certificate_that_ends_soon_and_a_key_that_others_read_are_warned_of(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tls = make_certificate(tmp_path / "a", ca=made / "ca", days=3)
    tls.key.chmod(0o640)
    tls.check()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "is valid until " in caplog.messages[0]
    assert f"can be read by others (mode 0640): chmod 600 {tls.key}" in caplog.messages[1]


@pytest.mark.parametrize("host", ["", "a b", "node:7400", "http://node", "a" * 64, "ünd.de", "-/-"])
def test_a_host_that_is_none_is_refused_before_anything_is_written(
    made: Path, tmp_path: Path, host: str
) -> None:
    with pytest.raises(UsageError, match="is no name and no address of a host"):
        make_certificate(tmp_path / "a", ca=made / "ca", hosts=[host])
    assert not (tmp_path / "a").exists()


def test_a_validity_that_cannot_be_and_a_spoiled_authority_are_refused(
    made: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="a certificate for 0 days: give 1 to 36500"):
        make_ca(tmp_path / "ca", days=0)
    shutil.copytree(made / "ca", tmp_path / "mixed")
    shutil.copy(made / "other-ca" / "ca-key.pem", tmp_path / "mixed")
    with pytest.raises(UsageError, match=r"ca-key\.pem is not the key of .*ca\.pem"):
        make_certificate(tmp_path / "a", ca=tmp_path / "mixed")
    assert not (tmp_path / "a").exists()


def test_without_the_package_it_is_said_how_to_install_it() -> None:
    # In a process of its own, where the package cannot be found.
    code = (
        "import sys, pathlib; sys.modules['cryptography'] = None\n"
        "from kvbench.peer import certs\n"
        "try:\n    certs.make_ca(pathlib.Path('/nowhere'))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("TierUnavailableError certificates need the package cryptography")
    assert "kvbench[peer]" in said.stdout

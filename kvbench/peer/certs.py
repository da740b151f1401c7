"""The credential of a cluster: certificates of its own authority, for both ends of a connection.

Whoever has a certificate that the cluster's authority signed is a member; there are no other
rights. TLS 1.3 only. A certificate names the hosts at which its peer may be reached. Private keys
are files that only their owner reads; they are not encrypted.

May import: kvbench.errors. cryptography, where certificates are made or looked into.
"""

import datetime as dt
import importlib.util
import ipaddress
import logging
import os
import re
import ssl
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvbench.errors import TierUnavailableError, UsageError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_log = logging.getLogger("kvbench.peer")
CA_DAYS = 3650
CERTIFICATE_DAYS = 365
LOCAL = ("localhost", "127.0.0.1", "::1")  # of every certificate
CLOCKS_S = 300  # certificates begin so long ago: clocks differ
SOON_DAYS = 14  # before a certificate ends, this is said
MOST_FILE_BYTES = 2**20
MOST_DAYS = 36_500
MOST_NAME = 64  # characters of a common name (RFC 5280)
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one peer: the cluster's authority, its own certificate, its private key."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def of(cls, folder: Path) -> "TlsFiles":
        """ca.pem, cert.pem and key.pem of a folder."""
        return cls(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    def check(self) -> None:
        """They can be read, belong to each other, and are of today.

        Warns of a key that others can read, and of a certificate that ends soon.

        Raises:
            UsageError: what is wrong, with the file.
            TierUnavailableError: the package `cryptography` is not installed.
        """
        ca, cert = _certificate(self.ca), _certificate(self.cert)
        key = _private_key(self.key)
        if _public_of(cert) != _public_of(key):
            raise UsageError(f"{self.key} is not the key of {self.cert}: give the pair")
        _check_issued(ca, cert, self)
        for path, found in ((self.ca, ca), (self.cert, cert)):
            _check_dates(path, found)
        mode = stat.S_IMODE(self.key.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            _log.warning(
                "%s can be read by others (mode %04o): chmod 600 %s", self.key, mode, self.key
            )


def make_ca(
    folder: Path, *, name: str = "kvbench", days: int = CA_DAYS, force: bool = False
) -> tuple[Path, Path]:
    """Make a cluster's authority: ca.pem, which every peer gets, and ca-key.pem, which none does.

    P-256, valid for `days` from now.

    Raises:
        UsageError: a file exists, and not `force`; or cannot be written.
        TierUnavailableError: the package `cryptography` is not installed.
    """
    _need_cryptography()
    from cryptography import x509  # noqa: PLC0415  only where certificates are made

    cert_path, key_path = folder / "ca.pem", folder / "ca-key.pem"
    _check_new([cert_path, key_path], force=force)
    key = _new_key()
    subject = _name(f"{name} authority")
    builder = _builder(subject, subject, key, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs=True), critical=True)
    _write(key_path, _pem_of(key), force=force)
    _write(cert_path, _signed(builder, key, key), force=force)
    return cert_path, key_path


def make_certificate(
    folder: Path,
    *,
    ca: Path,
    hosts: Sequence[str] = (),
    days: int = CERTIFICATE_DAYS,
    force: bool = False,
) -> TlsFiles:
    """Make a peer's ca.pem (a copy), cert.pem and key.pem.

    `ca` is the folder of `make_ca`. The certificate is for localhost, 127.0.0.1, ::1 and `hosts`:
    names and addresses at which others reach the peer. P-256, valid for `days` from now, as server
    and as client, but no longer than its authority.

    Raises:
        UsageError: a file exists, and not `force`; the authority cannot be read, or is over.
        TierUnavailableError: the package `cryptography` is not installed.
    """
    _need_cryptography()
    from cryptography import x509  # noqa: PLC0415  only where certificates are made
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    authority, ca_key = _certificate(ca / "ca.pem"), _authority_key(ca / "ca-key.pem")
    if _public_of(authority) != _public_of(ca_key):
        raise UsageError(f"{ca / 'ca-key.pem'} is not the key of {ca / 'ca.pem'}: give the pair")
    _check_dates(ca / "ca.pem", authority)
    names = [_host(host) for host in dict.fromkeys((*LOCAL, *hosts))]
    files = TlsFiles.of(folder)
    apart = folder.resolve() != ca.resolve()
    _check_new([files.cert, files.key, *([files.ca] if apart else [])], force=force)
    key = _new_key()
    subject = _name(next(iter(hosts), "localhost"))
    builder = _builder(subject, authority.subject, key, days, until=authority.not_valid_after_utc)
    ends = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(ends), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )
    _write(files.key, _pem_of(key), force=force)
    _write(files.cert, _signed(builder, key, ca_key), force=force)
    if apart:
        _write(files.ca, (ca / "ca.pem").read_bytes(), force=force)
    return files


def server_context(tls: TlsFiles) -> ssl.SSLContext:
    """For who accepts connections: both ends show a certificate of the authority. TLS 1.3.

    Raises:
        UsageError: the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0  # nobody resumes; two records less for each connection
    return _loaded(context, tls)


def client_context(tls: TlsFiles) -> ssl.SSLContext:
    """For who connects: the same, and the holder's certificate has to name its host. TLS 1.3.

    Raises:
        UsageError: the files cannot be used.
    """
    return _loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls)


def _loaded(context: ssl.SSLContext, tls: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for path in (tls.ca, tls.cert, tls.key):
        _read(path)
    try:
        context.load_cert_chain(tls.cert, tls.key)
        context.load_verify_locations(tls.ca)
    except ssl.SSLError as error:
        raise UsageError(
            f"{tls.ca}, {tls.cert} and {tls.key} cannot be used: {error.reason or error}"
        ) from error
    return context


# Files.


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE_BYTES)
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} does not exist: make it with `kvbench peer certs`, or name another"
        ) from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return data


def _check_new(paths: Sequence[Path], *, force: bool) -> None:
    """Before anything is made, so that no half of a pair is left."""
    there = [str(path) for path in paths if os.path.lexists(path)]
    if there and not force:
        raise UsageError(
            f"{', '.join(there)}: exists already and is not overwritten; give --force if it may be"
        )


def _write(path: Path, data: bytes, *, force: bool) -> None:
    """A file that only its owner reads, from its first byte on; whole, or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside.unlink(missing_ok=True)
        file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(data)
        if force:
            beside.replace(path)
        else:
            path.hardlink_to(beside)  # unlike a rename it never takes another's place
            beside.unlink()
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


# Certificates.


def _certificate(path: Path) -> "x509.Certificate":
    data = _read(path)
    _need_cryptography()
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise UsageError(f"{path} is no certificate in PEM") from error


def _private_key(path: Path) -> "PrivateKeyTypes":
    data = _read(path)
    _need_cryptography()
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    try:
        return load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no private key in PEM without a password") from error


def _authority_key(path: Path) -> "EllipticCurvePrivateKey":
    key = _private_key(path)
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(f"{path} is no key of an elliptic curve, as `kvbench peer certs` makes")
    return key


def _check_issued(ca: "x509.Certificate", cert: "x509.Certificate", tls: TlsFiles) -> None:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    try:
        cert.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise UsageError(
            f"{tls.cert} was not made by the authority {tls.ca}: peers of one cluster share one"
        ) from error


def _check_dates(path: Path, certificate: "x509.Certificate") -> None:
    now = dt.datetime.now(dt.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        raise UsageError(f"{path} was valid until {ends:%Y-%m-%d}: make a new one")
    if now < begins:
        raise UsageError(f"{path} is valid from {begins:%Y-%m-%d %H:%M} UTC on: check the clock")
    if ends - now < dt.timedelta(days=SOON_DAYS):
        _log.warning("%s is valid until %s only: make a new one", path, f"{ends:%Y-%m-%d}")


def _new_key() -> "EllipticCurvePrivateKey":
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> "x509.Name":
    from cryptography import x509  # noqa: PLC0415
    from cryptography.x509.oid import NameOID  # noqa: PLC0415

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:MOST_NAME])])


def _host(host: str) -> "x509.GeneralName":
    """An address, or a name, of a certificate."""
    from cryptography import x509  # noqa: PLC0415

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise UsageError(f"{host!r} is no name and no address of a host: give it without a port")
    return x509.DNSName(host)


def _builder(
    subject: "x509.Name",
    issuer: "x509.Name",
    key: "EllipticCurvePrivateKey",
    days: int,
    *,
    until: dt.datetime | None = None,
) -> "x509.CertificateBuilder":
    from cryptography import x509  # noqa: PLC0415

    if not 1 <= days <= MOST_DAYS:
        raise UsageError(f"a certificate for {days} days: give 1 to {MOST_DAYS}")
    now = dt.datetime.now(dt.UTC)
    ends = now + dt.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=CLOCKS_S))
        .not_valid_after(ends if until is None else min(ends, until))
    )


def _usage(*, signs: bool) -> "x509.KeyUsage":
    """An authority signs certificates; a peer signs handshakes."""
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: "x509.CertificateBuilder",
    key: "EllipticCurvePrivateKey",
    signer: "EllipticCurvePrivateKey",
) -> bytes:
    """The certificate of a key, in PEM."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    whose = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = builder.add_extension(whose, critical=False).add_extension(by, critical=False)
    return builder.sign(signer, SHA256()).public_bytes(Encoding.PEM)


def _pem_of(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _public_of(of: "x509.Certificate | PrivateKeyTypes") -> bytes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    return of.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _need_cryptography() -> None:
    if importlib.util.find_spec("cryptography") is None:
        raise TierUnavailableError(
            "certificates need the package cryptography: pip install 'kvbench[peer]'"
        )

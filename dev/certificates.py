"""A certificate authority of this machine, and a server certificate for localhost signed by it."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dev.secret_files import private_directory, write

NAMES = ("localhost",)
ADDRESSES = ("127.0.0.1", "::1")
_CA_DAYS = 3650
_SERVER_DAYS = 397  # the longest that browsers accept of a public authority
_RENEW_DAYS = 30


def ensure(directory: Path, now: datetime.datetime | None = None) -> bool:
    """ca.pem, ca.key (0600), server.pem, server.key are there, good for a month; True when one was made."""
    now = now or datetime.datetime.now(datetime.UTC)
    private_directory(directory)
    authority = _load(directory / "ca.pem", directory / "ca.key")
    renewed = authority is None or not _good(authority[0], now)
    if authority is None or renewed:
        authority = _make_authority(now)
        _save(directory, "ca", *authority, key_mode=0o600)
    server = _load(directory / "server.pem", directory / "server.key")
    if not renewed and server and _good(server[0], now) and _signed_by(server[0], authority[0]):
        return False
    # The key is read by nginx in its container, as a user of its own: see secret_files.
    _save(directory, "server", *_make_server(now, *authority), key_mode=0o444)
    return True


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _load(certificate: Path, key: Path) -> Pair | None:
    """None when one of them is missing or damaged: then both are made anew."""
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        public = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != public.public_key():
        return None
    return public, private


def _good(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    return certificate.not_valid_after_utc - now > datetime.timedelta(days=_RENEW_DAYS)


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _make_authority(now: datetime.datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Carillon development CA of this machine")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key, now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        # Whoever trusts this authority trusts it for this machine's own names and for nothing else.
        .add_extension(x509.NameConstraints(_own_names(), None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _own_names() -> list[x509.GeneralName]:
    return [
        *(x509.DNSName(name) for name in NAMES),
        *(x509.IPAddress(ipaddress.ip_network(address)) for address in ADDRESSES),
    ]


def _make_server(
    now: datetime.datetime, authority: x509.Certificate, signer: ec.EllipticCurvePrivateKey
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAMES[0])])
    names = [
        *(x509.DNSName(item) for item in NAMES),
        *(x509.IPAddress(ipaddress.ip_address(item)) for item in ADDRESSES),
    ]
    certificate = (
        _builder(name, authority.subject, key, now, _SERVER_DAYS)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks differ: a virtual machine's may be behind.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _save(
    directory: Path,
    name: str,
    certificate: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    *,
    key_mode: int,
) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    write(directory / f"{name}.key", text, key_mode)
    write(directory / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM).decode(), 0o444)

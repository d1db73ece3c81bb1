"""The certificate that nginx shows in the production containers: the operator's own, or one for localhost."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from dev import certificates, secret_files
from dev.config import Config
from dev.output import Failure
from dev.production import CERTIFICATE, KEY


def chosen(
    environ: Mapping[str, str], allowed_hosts: str, now: datetime.datetime | None = None
) -> tuple[str, str] | None:
    """PEM texts of the certificate and the key that the variables name, or None.

    Raises `Failure`, one line, when it would not do.
    """
    paths = {name: environ.get(name, "") for name in (CERTIFICATE, KEY)}
    if not any(paths.values()):
        return None
    for name, other in ((CERTIFICATE, KEY), (KEY, CERTIFICATE)):
        if not paths[name]:
            raise Failure(f"{other} is set and {name} is not: a certificate needs its key")
    texts = {name: _read(name, Path(path)) for name, path in paths.items()}
    try:
        leaf = x509.load_pem_x509_certificates(texts[CERTIFICATE])[0]
    except ValueError:
        raise Failure(
            f"{CERTIFICATE}={paths[CERTIFICATE]} holds no certificate in PEM (BEGIN CERTIFICATE)"
        ) from None
    try:
        key = serialization.load_pem_private_key(texts[KEY], password=None)
    except TypeError:
        raise Failure(f"{KEY}={paths[KEY]} is encrypted: nginx starts unattended, give it without") from None
    except ValueError:
        raise Failure(f"{KEY}={paths[KEY]} holds no private key in PEM (BEGIN PRIVATE KEY)") from None
    if key.public_key() != leaf.public_key():
        raise Failure(
            f"{KEY}={paths[KEY]} is not the key of {paths[CERTIFICATE]} "
            "(whose first certificate must be the server's, the intermediates after it)"
        )
    now = now or datetime.datetime.now(datetime.UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise Failure(
            f"{CERTIFICATE}={paths[CERTIFICATE]} is valid from {leaf.not_valid_before_utc:%Y-%m-%d} "
            f"to {leaf.not_valid_after_utc:%Y-%m-%d}, not now: renew it, or mend this machine's clock"
        )
    hosts = [host.strip() for host in allowed_hosts.split(",") if host.strip()]
    names = _names(leaf)
    if not any(_covers(name, host) for name in names for host in hosts):
        raise Failure(
            f"{CERTIFICATE}={paths[CERTIFICATE]} is for {', '.join(names) or 'no name'}; "
            f"CARILLON_ALLOWED_HOSTS has none of it ({', '.join(hosts)})"
        )
    return texts[CERTIFICATE].decode(), texts[KEY].decode()


def place(config: Config, pair: tuple[str, str] | None) -> bool:
    """To where compose/production.yml mounts it from; without a `pair` one for localhost.

    True when it is another than before.
    """
    if pair is None:
        certificates.ensure(config.certificates)
        pair = (
            (config.certificates / "server.pem").read_text(),
            (config.certificates / "server.key").read_text(),
        )
    certificate, private = pair
    folder = config.state / "nginx" / "tls"
    folder.mkdir(parents=True, exist_ok=True)
    # A user of nginx's own reads both, see secret_files: what protects the key is the state directory, 0700.
    folder.chmod(0o755)
    key = secret_files.write(folder / "server.key", private, 0o444)
    return secret_files.write(folder / "server.pem", certificate, 0o444) or key


def _read(name: str, path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise Failure(f"{name}={path}: {error.strerror}") from None


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = found.get_values_for_type(x509.IPAddress)
    return [*found.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)]


def _covers(name: str, host: str) -> bool:
    """`host` as Django's list has it: a name, an address, [address], `.example.org` for all below, or `*`."""
    host = host.lower()
    if host == "*":
        return True
    try:
        return str(ipaddress.ip_address(host.strip("[]"))) == name
    except ValueError:
        pass
    name = name.lower()
    if host.startswith("."):
        return name.removeprefix("*") == host or name.endswith(host) or name == host[1:]
    return name == host or (name.startswith("*.") and host.partition(".")[2] == name[2:])

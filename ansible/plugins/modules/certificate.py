#!/usr/bin/python
"""Certificates of Carillon's own authority, made on the control node."""

from __future__ import annotations

import datetime
import fcntl
import ipaddress
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    HAVE_CRYPTOGRAPHY = True
except ImportError:
    HAVE_CRYPTOGRAPHY = False

DOCUMENTATION = r"""
module: certificate
short_description: Make or renew a certificate signed by Carillon's own authority
description:
  - Runs on the control node. Makes the authority where it is missing, and a certificate for I(names) where
    none is, where it names other hosts, or where it ends within I(renew_days). Private keys are 0600, written
    to a temporary file and renamed, so that a run that is cut off leaves no half a key.
options:
  directory: {type: path, required: true, description: "Where authority and certificates lie (made 0700)."}
  name: {type: str, required: true, description: "File name without ending: <name>.crt and <name>.key."}
  names: {type: list, elements: str, required: true, description: "Hosts; the first is the subject."}
  days: {type: int, default: 397, description: "Life of the certificate in days."}
  renew_days: {type: int, default: 30, description: "Renew when fewer days than these are left."}
author: ["Carillon"]
"""

EXAMPLES = r"""
- delegate_to: localhost
  carillon.carillon.certificate:
    directory: /root/secrets/tls
    name: broker1
    names: [broker1, 10.0.0.5]
"""

RETURN = r"""
certificate: {type: str, returned: always, description: "Path of the certificate."}
key: {type: str, returned: always, description: "Path of its private key."}
authority: {type: str, returned: always, description: "Path of the authority's certificate."}
reason: {type: str, returned: changed, description: "Why it was made."}
"""

AUTHORITY_DAYS = 3650


def write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, and never readable by others even for a moment."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        os.fchmod(descriptor, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def pem_key(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def subject(text: str):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def alternative(name: str):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def begin(names: list[str]) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject(names[0]))
        .serial_number(x509.random_serial_number())
        # Clocks differ a little: a certificate made this second must be valid on a host that is behind.
        .not_valid_before(datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1))
    )


def until(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def make_authority(certificate: Path, key_file: Path):
    key = ec.generate_private_key(ec.SECP256R1())
    name = "Carillon internal authority"
    built = (
        begin([name])
        .issuer_name(subject(name))
        .public_key(key.public_key())
        .not_valid_after(until(AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(False, False, False, False, False, True, True, False, False), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write(key_file, pem_key(key), 0o600)
    write(certificate, built.public_bytes(serialization.Encoding.PEM), 0o644)


def make_leaf(names: list[str], days: int, authority, authority_key):
    key = ec.generate_private_key(ec.SECP256R1())
    built = (
        begin(names)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .not_valid_after(min(until(days), authority.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM), pem_key(key)


def why_new(certificate: Path, key: Path, authority, names: list[str], renew_days: int) -> str | None:
    """The reason to make a certificate, or None when the one there will do."""
    if not certificate.exists() or not key.exists():
        return "there is none"
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return "the one there cannot be read"
    if set(held) != {alternative(name) for name in names}:
        return "it names other hosts"
    if found.not_valid_after_utc < until(renew_days):
        return f"it ends on {found.not_valid_after_utc:%Y-%m-%d}"
    try:
        found.verify_directly_issued_by(authority)
    except Exception:  # every failure to verify means the same: it is not ours
        return "another authority signed it"
    return None


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "name": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "required": True},
            "days": {"type": "int", "default": 397},
            "renew_days": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    if not HAVE_CRYPTOGRAPHY:
        module.fail_json(
            msg=missing_required_lib("cryptography") + " on the control node (requirements/tools.txt)"
        )
    parameters = module.params
    directory = Path(parameters["directory"])
    certificate = directory / f"{parameters['name']}.crt"
    key = directory / f"{parameters['name']}.key"
    authority_certificate, authority_key = directory / "authority.crt", directory / "authority.key"
    result = {"certificate": str(certificate), "key": str(key), "authority": str(authority_certificate)}

    if module.check_mode and not authority_certificate.exists():
        module.exit_json(changed=True, reason="there is no authority", **result)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Several hosts are served by tasks that run side by side on the control node.
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not authority_certificate.exists():
            make_authority(authority_certificate, authority_key)
        authority = x509.load_pem_x509_certificate(authority_certificate.read_bytes())
        reason = why_new(certificate, key, authority, parameters["names"], parameters["renew_days"])
        if reason and authority.not_valid_after_utc < until(0):
            module.fail_json(
                msg=f"the authority {authority_certificate} ended on"
                f" {authority.not_valid_after_utc:%Y-%m-%d}, and {parameters['name']} needs a certificate"
                f" ({reason}): docs/how-to/certificates.md says how to replace the authority"
            )
        if reason and not module.check_mode:
            signer = serialization.load_pem_private_key(authority_key.read_bytes(), None)
            body, private = make_leaf(parameters["names"], parameters["days"], authority, signer)
            write(key, private, 0o600)
            write(certificate, body, 0o644)
    if reason:
        module.exit_json(changed=True, reason=reason, **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

"""The server's certificate and key."""

import datetime
import ipaddress
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.infra import wire


def served(stack) -> x509.Certificate:
    with wire.connect(stack.address(), stack.tls()) as connection:
        return x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))


def authority(stack) -> x509.Certificate:
    with open(stack.values["CARILLON_CA_CERT"], "rb") as file:
        return x509.load_pem_x509_certificate(file.read())


def test_names_and_addresses(stack):
    names = served(stack).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "localhost" in names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    assert {ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")} <= set(addresses)


def test_signed_by_the_local_authority_for_a_while(stack):
    certificate = served(stack)
    certificate.verify_directly_issued_by(authority(stack))
    now = datetime.datetime.now(datetime.UTC)
    assert certificate.not_valid_before_utc <= now
    assert certificate.not_valid_after_utc - now > datetime.timedelta(days=7)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= datetime.timedelta(days=398)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert x509.ExtendedKeyUsageOID.SERVER_AUTH in usage
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_unknown_to_who_does_not_trust_the_authority(stack):
    try:
        wire.connect(stack.address(), ssl.create_default_context()).close()
    except ssl.SSLCertVerificationError:
        return
    raise AssertionError("the certificate is trusted without the local authority")


def test_the_key_is_out_of_others_reach(stack):
    directory = stack.state / "certificates"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert stack.state.stat().st_mode & 0o777 == 0o700
    key = serialization.load_pem_private_key((directory / "server.key").read_bytes(), None)
    assert key.public_key() == served(stack).public_key()
    assert (directory / "ca.key").stat().st_mode & 0o777 == 0o600


def test_the_authoritys_key_is_in_no_container(stack):
    for mount in stack.inspect("nginx")["Mounts"]:
        assert not mount["Source"].endswith("ca.key")
        assert not mount["Source"].rstrip("/").endswith("certificates"), (
            "the directory with ca.key is mounted"
        )

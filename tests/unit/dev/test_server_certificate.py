"""A certificate that would not do is one line before anything starts; a good one is where nginx reads it."""

import datetime
import stat

import pytest

from dev import certificates, server_certificate
from dev.output import Failure

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
HOSTS = "localhost,127.0.0.1"


@pytest.fixture
def pair(tmp_path):
    """The variables that name a certificate for localhost and its key."""
    certificates.ensure(tmp_path / "own", NOW)
    return {
        "CARILLON_CERTIFICATE": str(tmp_path / "own/server.pem"),
        "CARILLON_CERTIFICATE_KEY": str(tmp_path / "own/server.key"),
    }


def line_of(environ, hosts=HOSTS, now=NOW):
    with pytest.raises(Failure) as caught:
        server_certificate.chosen(environ, hosts, now)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_none_is_named():
    assert server_certificate.chosen({}, HOSTS) is None


def test_a_good_one_is_placed_once(pair, settings):
    settings.state.mkdir()
    chosen = server_certificate.chosen(pair, HOSTS, NOW)
    assert server_certificate.place(settings, chosen) is True
    assert server_certificate.place(settings, chosen) is False
    folder = settings.state / "nginx/tls"
    assert (folder / "server.key").read_text() == chosen[1]
    # The user of nginx in its container reads them.
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stat.S_IMODE((folder / "server.key").stat().st_mode) == 0o444
    # Named no longer: this machine's own again.
    assert server_certificate.place(settings, None) is True


@pytest.mark.parametrize("name", ["CARILLON_CERTIFICATE", "CARILLON_CERTIFICATE_KEY"])
def test_one_without_the_other(pair, name):
    del pair[name]
    assert f"{name} is not: a certificate needs its key" in line_of(pair)


def test_a_missing_file(pair):
    pair["CARILLON_CERTIFICATE_KEY"] = "/nowhere/key.pem"
    assert line_of(pair) == "CARILLON_CERTIFICATE_KEY=/nowhere/key.pem: No such file or directory"


def test_files_that_are_something_else(pair):
    assert "holds no certificate in PEM" in line_of(
        pair | {"CARILLON_CERTIFICATE": pair["CARILLON_CERTIFICATE_KEY"]}
    )
    assert "holds no private key in PEM" in line_of(
        pair | {"CARILLON_CERTIFICATE_KEY": pair["CARILLON_CERTIFICATE"]}
    )


def test_a_key_of_another_certificate(pair, tmp_path):
    certificates.ensure(tmp_path / "other", NOW)
    line = line_of(pair | {"CARILLON_CERTIFICATE_KEY": str(tmp_path / "other/server.key")})
    assert "is not the key of" in line


def test_an_encrypted_key(pair, tmp_path):
    from cryptography.hazmat.primitives import serialization

    with open(pair["CARILLON_CERTIFICATE_KEY"], "rb") as file:
        key = serialization.load_pem_private_key(file.read(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"word"),
        )
    )
    assert "is encrypted" in line_of(pair | {"CARILLON_CERTIFICATE_KEY": str(locked)})


@pytest.mark.parametrize("days", [-2, 398])
def test_not_valid_now(pair, days):
    line = line_of(pair, now=NOW + datetime.timedelta(days=days))
    assert "is valid from 2029-12-31 to 2031-02-02, not now" in line


def test_another_name(pair):
    assert line_of(pair, "chimes.example.org").endswith(
        "is for localhost, 127.0.0.1, ::1; CARILLON_ALLOWED_HOSTS has none of it (chimes.example.org)"
    )


@pytest.mark.parametrize(
    ("name", "host", "covered"),
    [
        ("chimes.example.org", "Chimes.example.org", True),
        ("chimes.example.org", "bells.example.org", False),
        ("*.example.org", "chimes.example.org", True),
        ("*.example.org", "a.chimes.example.org", False),
        ("chimes.example.org", ".example.org", True),
        ("example.org", ".example.org", True),
        ("::1", "[::1]", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("whatever", "*", True),
    ],
)
def test_which_name_fits_which_host(name, host, covered):
    assert server_certificate._covers(name, host) is covered

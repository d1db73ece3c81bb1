"""The module `certificate`: what happens when the authority ends, and when it is replaced."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.production.test_control_node import ROOT


@pytest.fixture
def sign(play, tmp_path):
    """A function that asks for a certificate of the authority in the folder; exit code and output."""

    def run() -> tuple[int, str]:
        return play(
            {"carillon.carillon.certificate": {"directory": str(tmp_path), "name": "db", "names": ["db"]}}
        )

    return run


def authority(folder, name: str, days: int) -> None:
    """<name>.crt and <name>.key, good for so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3650))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / f"{name}.crt").write_bytes(made.public_bytes(pem))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_an_authority_that_has_ended_is_named_with_what_to_do(sign, tmp_path):
    authority(tmp_path, "authority", days=-1)
    code, said = sign()
    assert code == 2
    assert f"the authority {tmp_path}/authority.crt ended on" in said
    assert "docs/how-to/certificates.md says how to replace the authority" in said
    assert "Traceback" not in said
    assert not (tmp_path / "db.crt").exists()


def trusted(folder, bundle: str) -> bool:
    asked = ["openssl", "verify", "-CAfile", str(folder / bundle), str(folder / "db.crt")]
    return subprocess.run(asked, check=False, capture_output=True).returncode == 0


def test_an_authority_is_replaced_and_hosts_that_are_a_step_behind_trust_what_is_signed(sign, tmp_path):
    page = (ROOT / "docs/how-to/certificates.md").read_text()
    make, have_it_sign = (
        re.sub(r"^ *cd .*$", "", block, flags=re.MULTILINE)
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    )
    authority(tmp_path, "authority", days=300)
    assert sign()[0] == 0
    first = (tmp_path / "db.crt").read_bytes()

    subprocess.run(make, shell=True, check=True, cwd=tmp_path, capture_output=True)
    code, said = sign()
    assert code == 0, said
    assert (tmp_path / "db.crt").read_bytes() == first
    assert trusted(tmp_path, "old.crt")
    assert trusted(tmp_path, "authority.crt")
    shutil.copy(tmp_path / "authority.crt", tmp_path / "before.crt")

    subprocess.run(have_it_sign, shell=True, check=True, cwd=tmp_path)
    code, said = sign()
    assert code == 0, said
    assert (tmp_path / "db.crt").read_bytes() != first
    assert trusted(tmp_path, "before.crt")
    assert trusted(tmp_path, "new.crt")

"""Lays out nginx's files as they lie in the image or on a host, in a directory of a test's own."""

import datetime
import ipaddress
import shutil
import tomllib
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from carillon.process.declared import Declared, site
from dev import site_file

CHECKOUT = Path(__file__).parents[3]
NGINX = CHECKOUT / "nginx"
VALUES = {
    "development": NGINX / "sites" / "development.yml",
    "production": Path(__file__).with_name("production.yml"),
    "container": NGINX / "sites" / "container.yml",
}
DECLARED = " with prefixes"
WORDS = """
websocket_prefixes = ["/ws/", "/live/feed-2/"]
http_prefixes = ["/stream/", "/live/page/"]
upload_mebibytes = 2
"""
NAMES = [*VALUES, *(f"{name}{DECLARED}" for name in VALUES)]


def values(name: str) -> dict:
    """The values of a deployment, and what a project declares: nothing, or `WORDS`."""
    declared = tomllib.loads(WORDS) if name.endswith(DECLARED) else {}
    values = yaml.safe_load(VALUES[name.removesuffix(DECLARED)].read_text())
    return values | site(Declared(**declared))


def lay_out(root: Path, values: dict) -> Path:
    """nginx.conf, snippets, pages, a certificate and the rendered site under `root`; all paths lead there."""
    (root / "carillon").mkdir(parents=True)
    for directory in ("tls", "static", "media", "acme", "run", "carillon/site.d", "carillon/main.d"):
        (root / directory).mkdir()
    shutil.copy(NGINX / "nginx.conf", root)
    shutil.copytree(NGINX / "snippets", root / "carillon" / "snippets")
    shutil.copytree(NGINX / "pages", root / "carillon" / "pages")
    certificate(root / "tls")
    values = values | {
        "https": values["https"] | {"certificate": f"{root}/tls/server.pem", "key": f"{root}/tls/server.key"},
        "temporary": f"{root}/run",
        "access_log": f"{root}/access.log",
    }
    (root / "carillon" / "site.conf").write_text(site_file.render(values, site_file.TEMPLATE.read_text()))
    for file in root.rglob("*.conf"):
        text = file.read_text()
        for there, here in (
            ("/etc/nginx/carillon", root / "carillon"),
            ("/var/lib/carillon/static", root / "static"),
            ("/var/lib/carillon/media", root / "media"),
            ("/var/lib/carillon/acme", root / "acme"),
            ("/run/nginx/nginx.pid", root / "nginx.pid"),
        ):
            text = text.replace(there, str(here))
        file.write_text(text)
    return root / "nginx.conf"


def certificate(directory: Path) -> None:
    """server.pem and server.key, self-signed, for localhost and 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "server.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (directory / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )

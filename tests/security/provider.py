"""An OpenID provider and issuer of access tokens that the stack's containers reach: Authlib's, by TLS on the
gateway of the stack's network, with keys beside its own by which a test signs what it likes."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import oidc_provider_mock
import requests
import werkzeug.serving
from cryptography.hazmat.primitives import serialization

from tests.unit.support.issuer import ALGORITHMS, AUDIENCE, LOGOUT, private_key, public_jwk

CLIENT = "carillon-page"

Answer = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Provider:
    """`answers`: what it does with a path, in place of what it would. `asked`: when, for its keys."""

    def __init__(self, address: str, folder: Path) -> None:
        # Beside an RSA key of the provider's own, which it does not name: another would leave open which.
        self.kinds: dict[str, tuple[str, int]] = {"a": ("EC", 0), "b": ("EC", 1), "c": ("OKP", 0)}
        self.answers: dict[str, Answer] = {}
        self.asked: list[float] = []
        self._mock = oidc_provider_mock.app(require_nonce=True)
        self._address = address
        self.certificate, self._key = folder / "provider.pem", folder / "provider.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-days", "2", "-subj", "/CN=provider of a test", "-addext", f"subjectAltName=IP:{address}",
             "-addext", "keyUsage=critical,digitalSignature,keyCertSign",
             "-out", self.certificate, "-keyout", self._key],
            check=True, capture_output=True,
        )  # fmt: skip
        self.certificate.chmod(0o644)
        self.port = 0
        self.bundle = ""
        """A file with the certificates that a browser of a test trusts."""
        self.start()
        self.url = f"https://{address}:{self.port}"

    def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self._key)
        self._server = werkzeug.serving.make_server(
            self._address, self.port, self._serve, threaded=True, ssl_context=context
        )
        self._server.daemon_threads = True
        self._server.log = lambda *_: None  # who asks gives up in the middle: that is what is tested
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From now on nobody listens there."""
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/jwks":
            self.asked.append(time.time())
        if path in self.answers:
            return self.answers[path](environ, start_response)
        if path != "/jwks":
            return self._mock(environ, start_response)
        with self._mock.test_client() as client:
            theirs = client.get("/jwks").get_json()["keys"]
        return reply({"keys": [*theirs, *self.keys()]})(environ, start_response)

    def keys(self) -> list[dict[str, Any]]:
        return [public_jwk(id, *kind) for id, kind in self.kinds.items()]

    # What a browser does

    def come_back(self, location: str, subject: str, ca: str) -> str:
        """Where the provider sends a browser that was sent to `location`, and logs in as `subject`."""
        with browser(ca) as http:
            answer = http.post(location, data={"sub": subject}, allow_redirects=False, timeout=10)
        assert answer.status_code == 302, answer.text
        return answer.headers["Location"]

    # What it signs

    def claims(self, **more: Any) -> dict[str, Any]:
        """Of a good access token; None leaves a claim out."""
        now = int(time.time())
        subject = "subject-of-tokens"
        claims = {"iss": self.url, "aud": AUDIENCE, "sub": subject, "iat": now, "exp": now + 300, **more}
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, key: str = "a", headers: dict[str, Any] | None = None, **more: Any) -> str:
        """Signed by a key that it has, or had."""
        kind, number = self.kinds.get(key, ("EC", 9))
        headers = {"kid": key, "typ": "at+jwt", **(headers or {})}
        return jwt.encode(self.claims(**more), private_key(kind, number), ALGORITHMS[kind], headers)

    def unsigned(self, **more: Any) -> str:
        head = _encoded({"alg": "none", "typ": "at+jwt"})
        return f"{head}.{_encoded(self.claims(**more))}."

    def confused(self, **more: Any) -> str:
        """The public key, which everybody has, as if it were a shared secret."""
        secret = private_key("EC", 0).public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )  # fmt: skip
        signed = f"{_encoded({'alg': 'HS256', 'kid': 'a', 'typ': 'at+jwt'})}.{_encoded(self.claims(**more))}"
        return f"{signed}.{_base64(hmac.digest(secret, signed.encode(), hashlib.sha256))}"

    def brings_its_key(self, **more: Any) -> str:
        """With another key, which it brings along."""
        more_headers = {"jwk": public_jwk("a", "EC", 7), "jku": "https://evil.test/keys"}
        headers = {"kid": "a", "typ": "at+jwt", **more_headers}
        return jwt.encode(self.claims(**more), private_key("EC", 7), "ES256", headers)

    def logout_token(self, subject: str) -> str:
        return self.token(
            headers={"typ": "logout+jwt"}, aud=CLIENT, sub=subject, events={LOGOUT: {}}, jti="x"
        )


def browser(ca: str) -> requests.Session:
    """A new one, which trusts the stack and the provider."""
    http = requests.Session()
    http.trust_env = False  # a bundle that the environment names would come before ours
    http.verify = ca
    return http


def query_of(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def reply(body: Any, status: str = "200 OK") -> Answer:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    return answer


def never(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Says nothing until who asks has given up for long."""
    time.sleep(8)
    return reply({})(environ, start_response)


def endless(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """More than anybody wants."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return (b" " * 65536 for _ in range(4096))


def _encoded(part: Any) -> str:
    return _base64(json.dumps(part).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")

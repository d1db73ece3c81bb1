"""An issuer of tokens on this machine: keys over real HTTP, tokens really signed, and ways to be wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE = "carillon"
LOGOUT = "http://schemas.openid.net/event/backchannel-logout"


def private_key(kind: str, number: int = 0) -> Any:
    """One of each kind and number for all tests: RSA's take long to make."""
    return _made(kind, number)


@cache
def _made(kind: str, number: int) -> Any:
    if kind == "EC":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "OKP":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, int(kind.removeprefix("RSA") or 2048))


ALGORITHMS = {"RSA": "RS256", "RSA1024": "RS256", "EC": "ES256", "OKP": "EdDSA"}


def public_jwk(id: str | None, kind: str, number: int = 0, **more: Any) -> dict[str, Any]:
    algorithm = jwt.get_algorithm_by_name(ALGORITHMS[kind])
    public = json.loads(algorithm.to_jwk(private_key(kind, number).public_key()))
    return {**public, "use": "sig", **({} if id is None else {"kid": id}), **more}


class Issuer:
    """`answer`: what the server does with a request, in place of what it would."""

    def __init__(self) -> None:
        self.kinds: dict[str, tuple[str, int]] = {"a": ("RSA", 0), "b": ("EC", 0), "c": ("OKP", 0)}
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.answer: Callable[[BaseHTTPRequestHandler], None] | None = None
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                with suppress(OSError):  # who asked has given up
                    issuer.serve(self)

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    # What it serves

    @property
    def keys_url(self) -> str:
        return f"{self.url}/keys"

    def key_set(self) -> dict[str, Any]:
        return {"keys": [public_jwk(id, *kind) for id, kind in self.kinds.items()]}

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        if self.answer is not None:
            self.answer(request)
        else:
            reply(request, self.key_set())

    # What it signs

    def claims(self, **more: Any) -> dict[str, Any]:
        """Of a good access token; None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "subject-1",
            "iat": now,
            "exp": now + 300,
            "preferred_username": "ilse",
            **more,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(
        self, key: str = "a", headers: dict[str, Any] | None = None, algorithm: str | None = None, **more: Any
    ) -> str:
        kind, number = self.kinds[key]
        headers = {"kid": key, "typ": "at+jwt", **(headers or {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        return jwt.encode(
            self.claims(**more), private_key(kind, number), algorithm or ALGORITHMS[kind], headers
        )


class Provider(Issuer):
    """An OpenID provider: whoever asks is let in at once, as `subject`. It holds clients to PKCE."""

    def __init__(self) -> None:
        super().__init__()
        self.says: dict[str, Any] = {}  # in place of what an ID token says
        self.metadata: dict[str, Any] = {}
        self.broken: dict[str, Any] = {}  # path: status
        self._codes: dict[str, dict[str, str]] = {}

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        if self.answer is not None:
            self.answer(request)
        elif parts.path in self.broken:
            reply(request, {"error": "broken"}, self.broken[parts.path])
        elif parts.path == "/.well-known/openid-configuration":
            reply(request, self.configuration())
        elif parts.path == "/token":
            self._exchange(request)
        else:
            reply(request, self.key_set())

    def configuration(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": self.keys_url,
            **self.metadata,
        }

    def authorize(self, location: str) -> dict[str, str]:
        """What a browser that was sent to `location` comes back with."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        assert location.startswith(f"{self.url}/authorize?")
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self._codes)}"
        self._codes[code] = asked
        return {"code": code, "state": asked["state"]}

    def logout_token(self, client: str, headers: dict[str, Any] | None = None, **more: Any) -> str:
        said = {"aud": client, "events": {LOGOUT: {}}, "jti": "x", **more}
        return self.token(headers={"typ": "logout+jwt", **(headers or {})}, **said)

    def _exchange(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers["Content-Length"])
        form = {name: values[0] for name, values in parse_qs(request.rfile.read(length).decode()).items()}
        self.forms.append({**form, "authorization": request.headers.get("Authorization", "")})
        asked = self._codes.pop(form["code"], None)
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if (
            asked is None
            or challenge != asked["code_challenge"]
            or form["redirect_uri"] != asked["redirect_uri"]
        ):
            reply(request, {"error": "invalid_grant"}, 400)
            return
        says = {"aud": asked["client_id"], "nonce": asked["nonce"], **self.says}
        token = self.token(headers={"typ": "JWT"}, **says)
        reply(request, {"access_token": "opaque", "token_type": "Bearer", "id_token": token})


def reply(request: BaseHTTPRequestHandler, body: Any, status: int = 200) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


def never(request: BaseHTTPRequestHandler) -> None:
    """Says nothing, until who asks has left."""
    request.connection.settimeout(30)
    request.connection.recv(1, socket.MSG_PEEK)


def drip(request: BaseHTTPRequestHandler) -> None:
    """A byte now and then: each read is answered soon, the whole never."""
    request.send_response(200)
    request.end_headers()
    for _ in range(600):
        request.wfile.write(b" ")
        time.sleep(0.05)


def endless(request: BaseHTTPRequestHandler) -> None:
    """More than anybody wants."""
    request.send_response(200)
    request.end_headers()
    for _ in range(4096):
        request.wfile.write(b" " * 65536)

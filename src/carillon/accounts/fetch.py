"""JSON from another server, for which nobody waits long and of which nobody keeps much.

Not `urllib`: it follows redirects wherever they lead, and its timeout is that of each read alone.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode, urlsplit

from carillon.conf import conf

SECONDS = 3.0
"""For the whole of it, once the name is resolved: that has the resolver's own deadline."""

BYTES = 256 * 1024
"""Of an answer: a set of keys has some kilobytes."""


LOCAL = ("localhost", "127.0.0.1", "::1")


class Unreachable(Exception):
    """There is no answer that can be used. The text says why, and has no more of the address than its host;
    `status` of HTTP, if there is one."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


def is_safe(url: str) -> bool:
    """Whether nobody on the way could answer in place of who is asked."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (raises)
    except ValueError:
        return False
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOCAL)
    )


def get(url: str) -> dict[str, Any]:
    """What is at `url`. Raises Unreachable."""
    return _ask("GET", url, None, {})


def post(url: str, fields: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
    """The answer to a form. Raises Unreachable."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    return _ask("POST", url, urlencode(fields), {**form, **headers})


def _ask(method: str, url: str, body: str | None, headers: Mapping[str, str]) -> dict[str, Any]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    if not is_safe(url):
        raise Unreachable(f"{host} is not asked over plain HTTP: anybody on the way could answer")
    port = parts.port or (443 if secure else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = http.client.HTTPConnection(host, port)
    opened: list[socket.socket] = []  # the connection forgets its own once an answer begins
    late = threading.Event()

    def give_up() -> None:
        late.set()
        for each in opened:
            # Not of the TLS one: that forgets its state, which the other thread still uses.
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    watch = threading.Timer(SECONDS, give_up)
    watch.daemon = True
    watch.start()
    try:
        # Here, and not by `http.client`: so that a handshake that never ends can be ended.
        connection.sock = socket.create_connection((host, port), SECONDS)
        opened.append(connection.sock)
        if secure:
            trust = ssl.create_default_context(cafile=conf.IDENTITY_TLS_CA)
            tls = trust.wrap_socket(connection.sock, server_hostname=host, do_handshake_on_connect=False)
            connection.sock = tls
            opened[:] = [tls]
            tls.do_handshake()
        always = {"Accept": "application/json", "Connection": "close"}
        connection.request(method, path, body, {**always, **headers})
        answer = connection.getresponse()
        data = answer.read(BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The socket has the same deadline as the watch, and may be the first.
        is_late = late.is_set() or isinstance(error, TimeoutError)
        why = f"does not answer within {SECONDS:g} s" if is_late else f"fails: {type(error).__name__}"
        raise Unreachable(f"{host} {why}") from None
    finally:
        watch.cancel()
        connection.close()
    if late.is_set():
        raise Unreachable(f"{host} does not answer within {SECONDS:g} s")
    if answer.status != 200:
        raise Unreachable(f"{host} answers with {answer.status}", answer.status)
    if len(data) > BYTES:
        raise Unreachable(f"{host} answers with more than {BYTES // 1024} KiB")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unreachable(f"{host} answers with something that is no JSON object")
    return found

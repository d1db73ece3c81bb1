"""A websocket client that writes frames byte by byte, and reads when it likes."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

PING, CONTINUATION = 0x89, 0x00


def frame(first: int, payload: bytes = b"") -> bytes:
    """Masked with zeroes; `first`: FIN and opcode."""
    size = len(payload)
    if size < 126:
        head = bytes((first, 0x80 | size))
    elif size < 2**16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + bytes(4) + payload


class RawSocket:
    """A socket of the stack, over plain HTTP, past its handshake."""

    def __init__(self, stack: Any, *, version: int = 1, token: str | None = None) -> None:
        address = urlsplit(stack.http_url)
        self.raw = socket.create_connection((address.hostname, address.port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        protocol = "Sec-WebSocket-Protocol: carillon.v2\r\n" if version == 2 else ""
        self.raw.sendall(
            f"GET /websocket/ HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer "
            f"{token or stack.token}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{protocol}\r\n".encode()
        )
        self._buffered = b""
        while b"\r\n\r\n" not in self._buffered:
            self._more()
        head, _, self._buffered = self._buffered.partition(b"\r\n\r\n")
        assert b" 101 " in head.splitlines()[0], head

    def _more(self) -> None:
        data = self.raw.recv(2**16)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self._buffered += data

    def _take(self, count: int) -> bytes:
        while len(self._buffered) < count:
            self._more()
        data, self._buffered = self._buffered[:count], self._buffered[count:]
        return data

    def next(self) -> tuple[int, bytes]:
        """The next frame: its first byte, and its payload."""
        first, size = self._take(2)
        if size == 126:
            (size,) = struct.unpack("!H", self._take(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._take(8))
        return first, self._take(size)

    def message(self) -> dict[str, Any]:
        """The next message."""
        while True:
            first, payload = self.next()
            if first == 0x81:
                return json.loads(payload)
            assert first in (0x89, 0x8A), (first, payload)

    def say(self, message: dict[str, Any]) -> None:
        self.raw.sendall(frame(0x81, json.dumps(message).encode()))

    def closed(self, seconds: float = 10) -> tuple[int, str]:
        """Reads to the end, for so long at most: code and reason of the close frame; 0 when none came."""
        end = time.monotonic() + seconds
        self.raw.settimeout(seconds / 2)
        with suppress(OSError):
            while time.monotonic() < end:
                first, payload = self.next()
                if first == 0x88:
                    return int.from_bytes(payload[:2]), payload[2:].decode()
        return 0, ""

    def close(self) -> None:
        self.raw.close()

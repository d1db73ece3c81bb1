"""HTTP as bytes: odd paths, repeated headers and HTTP/1.0, which libraries tidy up, are sent as written."""

import socket
import ssl
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What came back. `headers` has names in lower case, in order, repeated ones too."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for header, value in self.headers if header == name.lower()]

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return values[0] if values else None


def request(method: str, path: str, headers=(), body: bytes = b"", version: str = "1.1") -> bytes:
    """A request's bytes; `headers` is a list of (name, value), sent in that order."""
    lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in headers)]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def connect(
    address: tuple[str, int], tls: ssl.SSLContext | None = None, timeout: float = 10
) -> socket.socket:
    connection = socket.create_connection(address, timeout=timeout)
    return tls.wrap_socket(connection, server_hostname=address[0]) if tls else connection


def exchange(address, data: bytes, tls: ssl.SSLContext | None = None, timeout: float = 10) -> Answer:
    """Sends `data` and reads one answer. After 101 only its head is read."""
    with connect(address, tls, timeout) as connection:
        connection.sendall(data)
        return read_answer(connection, head_only=data.startswith(b"HEAD "))


def read_answer(connection: socket.socket, *, head_only: bool = False) -> Answer:
    file = connection.makefile("rb")
    line = file.readline()
    if not line:
        raise ConnectionError("closed without an answer")
    status = int(line.split()[1])
    headers = []
    while line := file.readline().rstrip(b"\r\n"):
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip().lower(), value.strip()))
    answer = Answer(status, headers, b"")
    if head_only or status in (101, 204, 304):
        return answer
    if answer.get("Transfer-Encoding") == "chunked":
        body = b""
        while size := int(file.readline().split(b";")[0], 16):
            body += file.read(size)
            file.readline()
        file.readline()
    elif answer.get("Content-Length") is not None:
        body = file.read(int(answer.get("Content-Length")))
    else:
        body = file.read()
    return Answer(status, headers, body)


def exchange_http2(
    address, method: str, path: str, headers, tls: ssl.SSLContext, timeout: float = 10, sent: bytes = b""
) -> bytes:
    """One request over HTTP/2, with `sent` as a body of no announced length; the answer's body. Status and
    headers stay compressed: see nginx's log."""

    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return (
            struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload
        )

    def literal(text: str) -> bytes:
        raw = text.encode()
        return (bytes((len(raw),)) if len(raw) < 127 else bytes((127, len(raw) - 127))) + raw

    fields = [
        (":method", method),
        (":scheme", "https"),
        (":authority", f"{address[0]}:{address[1]}"),
        (":path", path),
        *((name.lower(), value) for name, value in headers),
    ]
    block = b"".join(b"\0" + literal(name) + literal(value) for name, value in fields)
    body = b""
    with connect(address, tls, timeout) as connection:
        if connection.selected_alpn_protocol() != "h2":
            raise ConnectionError(f"the server chose {connection.selected_alpn_protocol()!r}, not h2")
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 4 if sent else 5, 1, block)
        )
        pieces = [sent[at : at + 2**14] for at in range(0, len(sent), 2**14)]
        for piece in pieces:
            connection.sendall(frame(0, piece is pieces[-1], 1, piece))
        file = connection.makefile("rb")
        while head := file.read(9):
            kind, flags, payload = head[3], head[4], file.read(int.from_bytes(head[:3], "big"))
            if kind == 4 and not flags & 1:
                connection.sendall(frame(4, 1, 0))
            elif kind == 0:
                body += payload
            elif kind in (3, 7):
                raise ConnectionError(f"HTTP/2 error: frame {kind}, {payload!r}")
            if kind in (0, 1) and flags & 1:
                return body
    raise ConnectionError("closed without an answer")

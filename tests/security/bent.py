"""Websocket frames and HTTP requests that nobody should send, from a seed. Pure."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

ROUTES = (
    "/", "/api/", "/api/v2/", "/api/v2/me/", "/api/v2/jobs/", "/api/v2/jobs/1/events/",
    "/api/v2/notifications/",
    "/api/v2/tokens/", "/api/v2/schema/", "/api/v2/metrics/", "/api/login/", "/api/logout/",
    "/api/login/oidc/",
    "/api/login/oidc/logged_out/", "/websocket", "/websocket/", "/websocket/x/", "/events/", "/static/",
    "/static/tower/app.js", "/favicon.ico", "/robots.txt", "/nginx/pages/", "/nobody",
)  # fmt: skip

VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 2**63, 10**400, "", "\0", "\ud800", "x" * 3000, [], [[]], {}, {"": {}},
    [None] * 300,
    {"jobs": None}, {"jobs": 7}, {"jobs": ["summary"]}, {"jobs": {"summary": 1}}, {"nobody": ["x"]},
    {"jobs": [["x"]]},
    {"job_events": [-1]}, {"job_events": [2**63]}, {"job_events": ["1" * 400]},
    {"control": ["limit_reached_1"]},
    {"!access": [1]}, {f"f{number}": [] for number in range(300)},
]  # fmt: skip
NAMES = (
    "groups", "xrftoken", "since", "token", "refresh", "ping", "type", "ack", "recover", "accept",
    "command", "",
)  # fmt: skip


def frame(
    rng: random.Random,
    payload: bytes = b"",
    *,
    opcode: int = 1,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    said: int | None = None,
) -> bytes:
    """`said`: the length that it claims to have; now and then in a longer form than it needs."""
    size = len(payload) if said is None else said
    form = 126 if size > 125 or rng.random() < 0.02 else size
    form = 127 if size > 0xFFFF or (form == 126 and rng.random() < 0.02) else form
    head = bytes(((fin << 7) | (reserved << 4) | opcode, (masked << 7) | form))
    head += {126: struct.pack("!H", size & 0xFFFF), 127: struct.pack("!Q", size)}.get(form, b"")
    if not masked:
        return head + payload
    mask = rng.randbytes(4)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def message(rng: random.Random) -> bytes:
    """JSON of a wrong shape, or nearly JSON."""
    kind = rng.randrange(8)
    if kind == 0:
        return json.dumps(rng.choice(VALUES)).encode()
    if kind == 1:
        return rng.choice(
            [b"", b"{", b"[" * 2000, b"nul", b"NaN", b'{"a":1,"a":2}', b"\xef\xbb\xbf{}", b'"\\ud800"']
        )
    said = {rng.choice(NAMES): rng.choice(VALUES) for _ in range(rng.randint(1, 3))}
    if kind == 2:
        said["groups"] = {"job_events": [rng.randrange(10**6)]}
    if kind == 3:
        said["since"] = rng.choice(["x", "0:0", f"{'f' * 8}:1", f"x:{2**70}", "1:-1", ":"])
    return json.dumps(said).encode()


def frames(rng: random.Random) -> tuple[list[bytes], bool]:
    """Some that belong together, and whether a server goes on after them."""
    if rng.random() < 0.08:
        return [*_whole(rng), _fatal(rng)], False
    return _whole(rng), True


def _whole(rng: random.Random) -> list[bytes]:
    """Right as frames: a message, in pieces perhaps, or pings and pongs."""
    kind = rng.randrange(8)
    if kind < 3:
        return [frame(rng, message(rng))]
    if kind == 3:
        return [frame(rng, message(rng), opcode=2)]
    if kind == 4:
        return [
            frame(rng, rng.randbytes(rng.randrange(126)), opcode=rng.choice([9, 10]))
            for _ in range(rng.randint(1, 20))
        ]
    text = message(rng)
    places = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(16)))
    pieces = [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]
    return [
        frame(rng, piece, opcode=0 if number else 1, fin=number == len(pieces) - 1)
        for number, piece in enumerate(pieces)
    ]


def _fatal(rng: random.Random) -> bytes:
    kind = rng.randrange(8)
    if kind == 0:
        return frame(rng, rng.randbytes(rng.randrange(1, 40)))  # hardly UTF-8
    if kind == 1:
        return frame(rng, b"x", opcode=rng.choice([3, 4, 5, 6, 7, 11, 12, 13, 14, 15]))
    if kind == 2:
        return frame(rng, message(rng), reserved=rng.randint(1, 7))
    if kind == 3:
        return frame(rng, message(rng), masked=False)
    if kind == 4:
        said = rng.choice([2, 125, 126, 0xFFFF, 0x10000, 2**20 + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
        return frame(rng, b"x", said=said)
    if kind == 5:
        code = rng.choice([0, 1, 999, 1000, 1001, 1004, 1005, 1006, 1015, 2999, 4000, 5000, 65535])
        reason = rng.choice([b"", b"bye", b"\xff\xfe", b"x" * 123, b"x" * 200])
        return frame(rng, rng.choice([struct.pack("!H", code) + reason, b"x", b""]), opcode=8)
    if kind == 6:
        size, fin = rng.choice([(200, True), (9, False)])
        return frame(rng, rng.randbytes(size), opcode=rng.choice([9, 10]), fin=fin)
    # A piece of nothing, or a message within another.
    return rng.choice([frame(rng, b"x", opcode=0), frame(rng, b"x", fin=False) + frame(rng, b"y")])


def request(rng: random.Random, token: str) -> bytes:
    """An HTTP/1 request with up to three things wrong."""
    method, path, version = b"GET", rng.choice(ROUTES).encode(), b"HTTP/1.1"
    headers = [b"Host: localhost", b"Connection: close"]
    if rng.random() < 0.5:
        headers.append(b"Authorization: Bearer " + token.encode())
    body = b""
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(12)
        if kind == 0:
            method = rng.choice(
                [b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PRI", b"get", b"G\0T",
                 b"X" * 9000]
            )  # fmt: skip
        elif kind == 1:
            path += rng.choice(
                [b"%00", b"%", b"%zz", b"%c0%ae%c0%ae/", b"../../etc/passwd", b"//", b"/.", b"\\",
                 b"%2e%2e%2f", b"\xff",
                 b"?" + b"a=b&" * 1500, b"?token=%ff&token=", b"#x", b";x=y", b"%0d%0aX:%20y", b"x" * 9000]
            )  # fmt: skip
        elif kind == 2:
            path = rng.choice(
                [b"http://evil.test" + path, b"*", b"", b"localhost:80", b"?x", b"//evil.test/"]
            )
        elif kind == 3:
            version = rng.choice([b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.9", b"HTTP/2.0", b"HTTP/9", b"HTP", b""])
        elif kind == 4:
            headers[0] = rng.choice(
                [b"Host: evil.test", b"Host:", b"Host: a b", b"Host: [::1", b"Host: \xff", b"X: y"]
            )
        elif kind == 5:
            name = rng.choice(
                [b"Host", b"Content-Length", b"Transfer-Encoding", b"Cookie", b"Authorization",
                 b"X-Forwarded-For",
                 b"X-Request-ID", b"Range", b"If-Modified-Since", b"Accept", b"Accept-Encoding",
                 b"Content-Type",
                 b"Expect", b"Upgrade", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Origin",
                 b"Last-Event-ID",
                 b"traceparent", b"Idempotency-Key"]
            )  # fmt: skip
            value = rng.choice(
                [b"", b"\xff\xfe", b"x" * 7000, b"-1", b"1, 2", b"99999999999999999999",
                 b"bytes=0-,0-,0-,0-,0-",
                 b"chunked, chunked", b"websocket", b"Basic AAAA", b"Bearer \x7f", b"awx_sessionid=\"\\",
                 b"100-continue",
                 b"text/html;q=x", b"\t", b"a\x0bb"]
            )  # fmt: skip
            headers += [name + b": " + value] * rng.choice([1, 1, 2])
        elif kind == 6:
            headers.append(
                rng.choice([b"no colon", b" folded: x", b": no name", b"a\0b: c", b"X: y\nZ: w", b"X : y"])
            )
        elif kind == 7:
            headers += [b"X-%d: y" % number for number in range(rng.choice([50, 950]))]
        elif kind == 8:
            method, body = b"POST", rng.choice([b"x", b"{", b"[" * 3000, b"\0" * 90, rng.randbytes(300)])
            headers.append(b"Content-Length: %d" % (len(body) + rng.choice([0, 0, 0, 5, -1])))
            headers.append(
                b"Content-Type: " + rng.choice([b"application/json", b"text/x", b"multipart/form-data"])
            )
        elif kind == 9:
            method = b"POST"
            headers.append(
                b"Transfer-Encoding: " + rng.choice([b"chunked", b"Chunked", b"gzip", b"identity, chunked"])
            )
            body = rng.choice(
                [b"0\r\n\r\n", b"5\r\nabc\r\n0\r\n\r\n", b"zz\r\n", b"f" * 20 + b"\r\n",
                 b"1;x=y\r\na\r\n0\r\nT: x\r\n\r\n"]
            )  # fmt: skip
        elif kind == 10:
            headers += [b"Upgrade: " + rng.choice([b"websocket", b"h2c", b"x"]), b"Connection: Upgrade"]
        else:
            body += b"GET /api/v2/me/ HTTP/1.1\r\nHost: x\r\n\r\n" * rng.randint(1, 3)
    end = rng.choice([b"\r\n"] * 9 + [b"\n"])
    return end.join([b" ".join([method, path, version]), *headers, b"", b""]) + body

"""nginx with stubs behind it: what reaches which upstream, and what does not."""

import concurrent.futures
import contextlib
import json
import socket
import ssl
import time

import pytest

from tests.infra import wire
from tests.unit.nginx import running, stubs, tree

HANDSHAKE = [
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
]
UPGRADE = [("Upgrade", "websocket"), *HANDSHAKE]
SECURITY = [
    "content-security-policy",
    "x-content-type-options",
    "x-frame-options",
    "referrer-policy",
    "permissions-policy",
    "cross-origin-opener-policy",
    "x-request-id",
]


def handshake(server, path="/websocket/", headers=UPGRADE, method="GET", version="1.1", tls=False):
    """(status, what daphne's stub saw or None)."""
    data = wire.request(method, path, [("Host", "localhost"), *headers], version=version)
    with wire.connect(server.https if tls else server.http, server.tls if tls else None) as connection:
        connection.sendall(data)
        file = connection.makefile("rb")
        status = int(file.readline().split()[1])
        if status != 101:
            return status, None
        while file.readline().rstrip():
            pass
        return status, json.loads(file.readline())


def variables(answer) -> dict:
    assert answer.status == 200, answer
    return json.loads(answer.body)["variables"]


# The rule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    "path",
    [
        "/websocket",
        "/websocket/",
        "/%77ebsocket",
        "/websocket%2f",
        "//websocket",
        "/api/../websocket/",
        "/./websocket?token=a",
        "/websocket/?token=a&token=b",
    ],
)
@pytest.mark.parametrize(
    "upgrade",
    [
        [("Upgrade", "websocket")],
        [("Upgrade", "WebSocket")],
        [("uPGRADE", "WEBSOCKET")],
        [("Upgrade", "websocket, h2c")],
        [("Upgrade", "h2c,websocket")],
        [("Upgrade", "h2c"), ("Upgrade", "websocket")],
    ],
)
def test_websocket_goes_to_daphne(development, path, upgrade, tls):
    status, seen = handshake(development, path, [*upgrade, *HANDSHAKE], tls=tls)
    assert status == 101
    headers = [(name.lower(), value) for name, value in seen["headers"]]
    # One constant each: nothing else of what the client listed, and one spelling of the path.
    assert [value for name, value in headers if name in ("upgrade", "connection")] == ["websocket", "upgrade"]
    sent = seen["request"].split()[1].partition("?")
    assert sent[0] in ("/websocket", "/websocket/")
    assert sent[2] == path.partition("?")[2]
    assert dict(headers)["x-forwarded-proto"] == ("https" if tls else "http")


@pytest.mark.parametrize("path", ["/websocket", "/websocket/", "/%77ebsocket/"])
@pytest.mark.parametrize(
    ("headers", "version", "words"),
    [
        ([], "1.1", "'Upgrade: websocket' is missing. This address is for websockets"),
        (
            [("Connection", "close"), ("Sec-WebSocket-Key", "abc")],
            "1.1",
            "a proxy between it and Carillon ate it",
        ),
        (
            [("Upgrade", "h2c"), ("Connection", "Upgrade, HTTP2-Settings"), ("HTTP2-Settings", "AAMAAABk")],
            "1.1",
            "asks for another protocol",
        ),
        ([("Upgrade", "websocketfoo")], "1.1", "asks for another protocol"),
        ([("Upgrade", "websocket/13")], "1.1", "asks for another protocol"),
        (UPGRADE, "1.0", "speaks 1.0 to it"),
        ([], "1.0", "HTTP/1.0 without an Upgrade"),
    ],
)
def test_426_says_what_is_missing(development, path, headers, version, words):
    answer = development.ask("GET", path, headers, version=version)
    assert answer.status == 426
    assert answer.all("Upgrade") == ["websocket"]
    assert "upgrade" in answer.all("Connection")
    assert answer.get("Content-Type").startswith("application/json")
    body = json.loads(answer.body)
    assert words in body["detail"]
    assert body["required"] == {"Upgrade": "websocket", "Connection": "Upgrade"}


def test_426_over_http2(development):
    development.tls.set_alpn_protocols(["h2"])
    try:
        body = wire.exchange_http2(development.https, "GET", "/websocket/", [], development.tls)
        page = wire.exchange_http2(
            development.https, "GET", "/page", [("user-agent", "two")], development.tls
        )
    finally:
        development.tls.set_alpn_protocols(["http/1.1"])
    assert "HTTP/2 or newer" in json.loads(body)["detail"]
    seen = json.loads(page)["variables"]
    assert seen["SERVER_PROTOCOL"] == "HTTP/2.0"
    assert seen["HTTP_HOST"] == f"127.0.0.1:{development.https[1]}"


def test_a_handshake_is_a_get(development):
    answer = development.ask("POST", "/websocket/", UPGRADE)
    assert answer.status == 405
    assert answer.get("Allow") == "GET"
    assert development.ask("POST", "/websocket/").status == 426


@pytest.mark.parametrize(
    "path",
    [
        "/websocketfoo",
        "/websocket/foo%20bar",
        "/websocket.",
        "/Websocket",
        "/api/v2/ping/",
        "/",
        "/websocket/../api/",
        "/websocket;a",
        "/websocket%00",
        "/xwebsocket",
    ],
)
@pytest.mark.parametrize(
    "headers",
    [
        UPGRADE,
        [
            ("Upgrade", "h2c"),
            ("Connection", "Upgrade, HTTP2-Settings"),
            ("HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"),
        ],
    ],
)
def test_any_other_path_is_an_ordinary_request(development, path, headers):
    answer = development.ask("GET", path, headers)
    if path == "/websocket%00":
        assert answer.status == 400
        return
    seen = variables(answer)
    gone = {"HTTP_UPGRADE", "HTTP_CONNECTION", "HTTP_HTTP2_SETTINGS", "HTTP_TE", "HTTP_TRANSFER_ENCODING"}
    assert not gone & set(seen)
    if path == "/websocket/../api/":
        assert seen["PATH_INFO"] == "/api/"
    # After it the connection speaks HTTP/1.1 still: no tunnel was opened.
    with wire.connect(development.http) as connection:
        data = wire.request("GET", path, [("Host", "localhost"), *headers])
        connection.sendall(data)
        assert wire.read_answer(connection).status == 200
        connection.sendall(wire.request("GET", "/second", [("Host", "localhost")]))
        assert json.loads(wire.read_answer(connection).body)["variables"]["PATH_INFO"] == "/second"


# Who said what ----------------------------------------------------------------------------------------------

FORGED = [
    ("X-Forwarded-For", "1.2.3.4"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "evil"),
    ("Forwarded", "for=1"),
    ("X-Real-IP", "1.2.3.4"),
    ("X-Forwarded-Port", "1"),
    ("Proxy", "http://evil"),
    ("X_Forwarded_For", "6.6.6.6"),
]


def test_forwarded_headers_of_strangers_are_overwritten(development):
    seen = variables(development.ask("GET", "/", FORGED, host="localhost:8013"))
    assert seen["REMOTE_ADDR"] == seen["HTTP_X_FORWARDED_FOR"] == "127.0.0.1"
    assert seen["HTTP_X_FORWARDED_PROTO"] == seen["UWSGI_SCHEME"] == "http"
    assert "HTTPS" not in seen
    assert seen["HTTP_HOST"] == "localhost:8013"
    assert not {
        "HTTP_X_FORWARDED_HOST",
        "HTTP_FORWARDED",
        "HTTP_X_REAL_IP",
        "HTTP_X_FORWARDED_PORT",
        "HTTP_PROXY",
    } & set(seen)
    _, seen = handshake(development, headers=[*UPGRADE, *FORGED])
    headers = [(name.lower(), value) for name, value in seen["headers"]]
    assert [value for name, value in headers if name == "x-forwarded-for"] == ["127.0.0.1"]
    assert [value for name, value in headers if name == "x-forwarded-proto"] == ["http"]
    assert not {"x-forwarded-host", "forwarded", "x-real-ip", "x-forwarded-port", "x_forwarded_for"} & {
        n for n, _ in headers
    }


def test_a_trusted_proxy_is_believed_up_to_the_first_stranger(tmp_path, upstreams):
    site = tree.values("production") | upstreams | {"trusted_proxies": ["127.0.0.1/32", "10.0.0.0/8"]}
    site["http"]["policy"] = "serve"
    with running.nginx(tmp_path / "etc", site) as server:
        forwarded = [("X-Forwarded-For", "6.6.6.6, 203.0.113.9, 10.0.0.7"), ("X-Forwarded-Proto", "https")]
        answer = server.ask("GET", "/", forwarded)
        seen = variables(answer)
        assert seen["REMOTE_ADDR"] == seen["HTTP_X_FORWARDED_FOR"] == "203.0.113.9"
        assert seen["HTTPS"] == "on"
        # The client speaks TLS to the proxy: the policy is HTTPS's.
        assert answer.get("Strict-Transport-Security") == "max-age=31536000"
        assert " ws://" not in answer.get("Content-Security-Policy")
        _, seen = handshake(server, headers=[*UPGRADE, *forwarded])
        assert ["X-Forwarded-For", "203.0.113.9"] in seen["headers"]
        # A health check is one by the connection's own address.
        assert server.ask("GET", "/nginx/health", [("X-Forwarded-For", "203.0.113.9")]).status == 200


# Headers ----------------------------------------------------------------------------------------------------

ANSWERS = [
    ("GET", "/", (), 200),
    ("GET", "/?status=500", (), 500),
    ("GET", "/api/v2/jobs/", (), 200),
    ("GET", "/websocket", (), 426),
    ("POST", "/websocket", UPGRADE, 405),
    ("GET", "/static/none.js", (), 404),
    ("GET", "/favicon.ico", (), 200),
    ("GET", "/robots.txt", (), 200),
    ("GET", "/nginx/health", (), 200),
    ("GET", "/nginx/pages/unavailable.html", (), 404),
    ("GET", "/nginx/unavailable.css", (), 200),
    ("TRACE", "/", (), 405),
    ("GET", "/\x01", (), 400),
    ("POST", "/", [("Content-Length", "99999999")], 413),
    ("GET", "/", [("X-Big", "a" * 9000)], 431),
    ("GET", "/" + "a" * 9000, (), 414),
]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(("method", "path", "headers", "status"), ANSWERS)
def test_security_headers_once_on_every_answer(development, method, path, headers, status, tls):
    answer = development.ask(method, path, headers, tls=tls)
    assert answer.status == status
    assert {name: len(answer.all(name)) for name in SECURITY} == dict.fromkeys(SECURITY, 1)
    assert answer.get("X-Frame-Options") == "DENY"
    assert answer.get("Strict-Transport-Security") is None
    assert answer.get("Server") == "nginx"
    if status in (405, 413, 426, 431) and method != "TRACE":
        assert json.loads(answer.body)["detail"]


@pytest.mark.parametrize(
    "path", ["/", "/api/v2/jobs/", "/websocket", "/static/none.js", "/robots.txt", "/nginx/health"]
)
def test_hsts_in_production_on_tls_alone(production, path):
    assert production.ask("GET", path, tls=True).all("Strict-Transport-Security") == ["max-age=31536000"]
    assert production.ask("GET", path).get("Strict-Transport-Security") is None


@pytest.mark.parametrize(
    ("tls", "host", "expected"),
    [
        (True, "localhost:8043", "connect-src 'self' wss://localhost:8043;"),
        (True, "carillon.example.org", "connect-src 'self' wss://carillon.example.org;"),
        (False, "localhost:8013", "connect-src 'self' ws://localhost:8013 wss://localhost:8013;"),
        (True, "[::1]:8043", "connect-src 'self' wss://[::1]:8043;"),
    ],
)
def test_the_policy_names_the_websocket(development, tls, host, expected):
    assert expected in development.ask(tls=tls, host=host).get("Content-Security-Policy")


def policy(server, path):
    return server.ask(path=path, tls=True).get("Content-Security-Policy")


def test_the_application_may_have_a_policy_of_its_own(development):
    assert policy(development, "/?policy=own") == "default-src *"
    assert policy(development, "/").startswith("default-src 'self';")
    assert policy(development, "/static/none?policy=own").startswith("default-src 'self';")


def test_a_host_cannot_write_the_policy(development):
    policy = development.ask(host="a;script-src:1", tls=True).get("Content-Security-Policy")
    assert "connect-src 'self';" in policy
    assert "script-src" not in policy


# Files, pages, limits ---------------------------------------------------------------------------------------


def test_static_files(development):
    static = development.root / "static"
    (static / "page.0123456789ab.js").write_text("x" * 3000)
    (static / "page.mjs").write_text("x")
    hashed = development.ask("GET", "/static/page.0123456789ab.js", [("Accept-Encoding", "gzip")])
    assert hashed.get("Cache-Control") == "public, max-age=31536000, immutable"
    assert hashed.get("Content-Encoding") == "gzip"
    assert hashed.get("Content-Type").startswith("text/javascript")
    plain = development.ask("GET", "/static/page.mjs")
    assert plain.get("Cache-Control") == "no-cache"
    assert plain.get("Content-Type").startswith("text/javascript")
    assert development.ask("GET", "/static/gone.0123456789ab.js").get("Cache-Control") is None
    assert development.ask("GET", "/static/").status == 403
    assert development.ask("GET", "/static../nginx.conf").status == 200, "an ordinary path: uwsgi's"
    assert development.ask("GET", "/static/../nginx.conf").status == 200, "likewise"
    assert development.ask("GET", "/static/%2e%2e/nginx.conf").status == 200
    assert development.ask("GET", "/static/..%2fnginx.conf").status == 200
    assert development.ask("POST", "/static/page.mjs").status == 405


def test_a_page_of_our_own_while_the_application_is_away(tmp_path):
    dead = {name: [f"127.0.0.1:{running.free_port()}"] for name in ("uwsgi", "daphne")} | {"resolver": None}
    with running.nginx(tmp_path / "etc", tree.values("development") | dead) as server:
        for method in ("GET", "POST"):
            page = server.ask(method, "/some/page?token=s3cret")
            assert page.status == 502
            assert page.get("Content-Type") == "text/html; charset=utf-8"
            assert page.get("Retry-After") == "3"
            assert b'http-equiv="refresh"' in page.body
            assert {name: len(page.all(name)) for name in SECURITY} == dict.fromkeys(SECURITY, 1)
        for path, headers in (
            ("/api/v2/jobs/", ()),
            ("/api/login/", ()),
            ("/websocket/?token=s3cret", UPGRADE),
        ):
            answer = server.ask("GET", path, headers)
            assert answer.status == 502
            assert answer.get("Retry-After") == "3"
            assert "Try again" in json.loads(answer.body)["detail"]
            assert {name: len(answer.all(name)) for name in SECURITY} == dict.fromkeys(SECURITY, 1)
        time.sleep(0.1)
        assert "s3cret" not in server.log()
        assert 'path="/some/page" ' in server.log()


def test_the_applications_own_errors_pass(development):
    answer = development.ask("GET", "/api/v2/health/?status=503")
    assert answer.status == 503
    assert json.loads(answer.body)["variables"]["PATH_INFO"] == "/api/v2/health/"


def test_no_query_in_any_log(development):
    secret = "s3cret-in-a-query"
    for path in (
        f"/websocket?token={secret}",
        f"/websocket/?token={secret}",
        f"/websocket%3Ftoken={secret}",
        f"/?token={secret}",
        f"/websocket#{secret}",
        f"/websocket/&token={secret}",
        f"/websocket/%26token={secret}",
        f"/websocket/;token={secret}",
        f"http://localhost/websocket?token={secret}",
    ):
        development.ask("GET", path)
        development.ask("GET", path, [("X-Big", "a" * 9000), ("Referer", path)])
        development.ask("POST", path, [("Content-Length", "99999999")])
        with wire.connect(development.http) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nbroken\r\n\r\n".encode())
            wire.read_answer(connection)
    handshake(development, f"/websocket/?token={secret}")
    agent = "the-last-one"
    development.ask("GET", "/", [("User-Agent", agent)])
    deadline = time.monotonic() + 5
    while agent not in development.log():
        assert time.monotonic() < deadline
    assert secret not in development.log()


def test_the_log_names_the_upstream(development, upstreams):
    answer = development.ask("GET", "/who")
    handshake(development, "/websocket?token=x", [*UPGRADE, ("User-Agent", "log-test")])
    deadline = time.monotonic() + 5
    while not (lines := [line for line in development.log().splitlines() if 'agent="log-test"' in line]):
        assert time.monotonic() < deadline
    assert f'upstream="{upstreams["daphne"][0]}"' in lines[0]
    assert "status=101" in lines[0]
    ordinary = [line for line in development.log().splitlines() if answer.get("X-Request-ID") in line]
    assert len(ordinary) == 1
    assert f'upstream="{upstreams["uwsgi"][0]}"' in ordinary[0]


def test_bodies_up_to_the_limit_and_slow_senders(development):
    for path, most, words in (
        ("/api/v2/jobs/1/events/", 8 << 20, "8 MiB"),
        ("/api/v2/notifications/", 8 << 20, "8 MiB"),
        ("/api/v2/jobs/", 1 << 20, "1 MiB"),
        ("/yours/", 1 << 20, "1 MiB"),
        ("/api/login/", 16 << 10, "16 KiB"),
        ("/api/logout/", 16 << 10, "16 KiB"),
        ("/api/login/oidc/logged_out/", 16 << 10, "16 KiB"),
    ):
        answer = development.ask("POST", path, body=b"x" * most)
        assert json.loads(answer.body)["body"] == most
        answer = development.ask("POST", path, [("Content-Length", str(most + 1))])
        assert answer.status == 413
        assert f"larger than {words}." in json.loads(answer.body)["detail"]
    # One who dawdles is waited for, and meanwhile others are served.
    with wire.connect(development.http) as slow:
        slow.sendall(b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\na")
        for byte in b"bc":
            assert development.ask("GET", "/quick").status == 200
            time.sleep(0.1)
            slow.sendall(bytes((byte,)))
        assert wire.read_answer(slow).status == 200


def test_a_chunked_body_has_a_length_behind_nginx(development):
    with wire.connect(development.http) as connection:
        connection.sendall(
            b"POST /c HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        assert json.loads(wire.read_answer(connection).body)["body"] == 5
    with wire.connect(development.http) as connection:
        connection.sendall(
            b"POST /c HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert wire.read_answer(connection).status == 400


def statuses(server, count, *arguments, **options):
    """Those of so many requests, eight at a time."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda _: server.ask(*arguments, **options).status, range(count)))


@pytest.mark.parametrize(
    ("request_", "most"),
    [
        (("POST", "/api/login/"), 50),
        (("GET", "/api/v2/me/", [("Authorization", "Basic bmFtZTpwYXNz")]), 50),
        (("GET", "/api/v2/me/", [("Authorization", "bAsIc bmFtZTpwYXNz")]), 50),
        (("GET", "/api/v2/ping/"), 500),
    ],
)
def test_who_says_a_password_or_nothing_is_limited_per_address(tmp_path, upstreams, request_, most):
    with running.nginx(
        tmp_path / "etc", tree.values("development") | upstreams | {"resolver": None}
    ) as server:
        found = statuses(server, most + 200, *request_)
        assert found.count(200) >= most
        assert found.count(429) == most + 200 - found.count(200) > 0
        refused = server.ask(*request_)
        while refused.status == 200:
            refused = server.ask(*request_)
        assert refused.get("Retry-After") == "5"
        assert json.loads(refused.body)["detail"].startswith("Too many")
        # Whoever else comes from this address is served.
        assert server.ask("GET", "/api/v2/me/", [("Authorization", "Bearer x")]).status == 200
        assert server.ask("GET", "/api/v2/me/", [("Cookie", "awx_sessionid=x")]).status == 200
        assert server.ask("GET", "/robots.txt").status == 200


def test_machines_behind_one_address_are_not_limited(development):
    found = statuses(development, 1500, "POST", "/api/v2/jobs/", [("Authorization", "Bearer x")], b"{}")
    assert set(found) == {200}


@pytest.mark.parametrize(
    ("method", "length"),
    [
        ("POST", "Content-Length: 5000000\r\n\r\n"),
        ("POST", "Transfer-Encoding: chunked\r\n\r\n4C4B40\r\n"),
        ("GET", "Transfer-Encoding: chunked\r\n\r\n4C4B40\r\n"),
        ("DELETE", "Content-Length: 5000000\r\n\r\n"),
    ],
)
def test_large_bodies_of_one_address_at_once(development, method, length):
    """Unfinished ones hold their places; who sends small ones is not held up by them."""
    head = (
        f"{method} /api/v2/jobs/1/events/ HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x\r\n{length}"
    ).encode()
    with contextlib.ExitStack() as senders:
        slow = [senders.enter_context(wire.connect(development.http)) for _ in range(20)]
        for connection in slow:
            connection.sendall(head + b"x" * 200_000)
        refused = 0
        for connection in slow:
            connection.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                answer = wire.read_answer(connection)
                assert answer.status == 429, answer
                refused += 1
        assert refused == 4
        assert development.ask("POST", "/api/v2/jobs/1/events/", body=b"x" * 90_000).status == 200
        assert development.ask("GET", "/api/v2/jobs/1/events/").status == 200
    # Done with, they give their places back.
    deadline = time.monotonic() + 5
    while development.ask("POST", "/api/v2/jobs/1/events/", body=b"x" * 5_000_000).status != 200:
        assert time.monotonic() < deadline


def http2(server, method, path, sent=b""):
    """The answer's body."""
    server.tls.set_alpn_protocols(["h2"])
    try:
        return wire.exchange_http2(server.https, method, path, [("user-agent", "x")], server.tls, sent=sent)
    finally:
        server.tls.set_alpn_protocols(["http/1.1"])


@pytest.mark.parametrize("path", ["/", "/api/v2/jobs/", "/api/v2/jobs/1/events/", "/api/login/"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_has_no_body_has_no_large_one_over_http2(development, method, path):
    """Nothing announces it there, so that it could not be counted as one."""
    assert json.loads(http2(development, method, path))["variables"]["PATH_INFO"] == path
    assert json.loads(http2(development, method, path, b"x" * 16_000))["body"] == 16_000
    assert "larger than 16 KiB" in json.loads(http2(development, method, path, b"x" * 20_000))["detail"]
    if path != "/api/login/":
        assert json.loads(http2(development, "POST", path, b"x" * 20_000))["body"] == 20_000


def test_a_stream_of_events_takes_no_body(development):
    assert "larger than 1 KiB" in json.loads(http2(development, "GET", "/events/", b"x" * 2000))["detail"]
    assert development.ask("GET", "/events/", body=b"x" * 2000).status == 413


def test_an_application_that_is_away_over_http2(tmp_path, upstreams):
    site = tree.values("development") | upstreams | {"uwsgi": ["127.0.0.1:9"]}
    with running.nginx(tmp_path / "etc", site) as server:
        assert b"<html" in http2(server, "GET", "/")
        assert "no answer from the application" in json.loads(http2(server, "GET", "/api/v2/me/"))["detail"]


def test_all_sockets_of_an_address_may_come_at_once(tmp_path, upstreams):
    """Thousands behind one address, after a restart; and the pages' requests are not held up by them."""

    def slowly(root):
        limits = root / "carillon" / "snippets" / "limits.conf"
        limits.write_text(limits.read_text().replace("rate=1000r/s", "rate=1r/s"))

    site = tree.values("development") | upstreams
    with running.nginx(tmp_path / "etc", site, slowly) as server:
        # The stub opens no stream: what counts is that it is asked.
        found = statuses(server, 2500, "GET", "/events/", [("Authorization", "Bearer x")])
        assert set(found) == {500}
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: handshake(server)[0], range(2500)))
        assert set(found) == {101}
        assert server.ask("GET", "/api/v2/me/", [("Authorization", "Bearer x")]).status == 200


# A project's own prefixes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tree.VALUES)
def test_declared_prefixes_are_routed_as_websocket_is(tmp_path, upstreams, name):
    site = tree.values(name + tree.DECLARED) | upstreams
    with running.nginx(tmp_path / "etc", site) as server:
        for path in ("/ws/", "/ws/chat/tower.7/~a@b:c+d/", "/%77s/x/", "//ws/x/", "/live/feed-2/x"):
            status, seen = handshake(server, f"{path}?token=a", tls=True)
            assert status == 101, path
            assert seen["request"].startswith(f"GET {path.replace('%77', 'w').replace('//', '/')}?token=a ")
            assert server.ask("GET", path, tls=True).status == 426
            assert server.ask("POST", path, UPGRADE, tls=True).status == 405
        assert handshake(server, "/websocket/", tls=True)[0] == 101
        # Names that only look like it, and what is no plain name.
        others = ("/ws", "/wsx/", "/WS/", "/live/", "/live/feed-2", "/api/ws/", "/ws/a%20b", "/ws/%0d%0aX:1")
        for path in others:
            assert "HTTP_UPGRADE" not in variables(server.ask("GET", path, UPGRADE, tls=True)), path
        assert "token=a" not in server.log()


def test_without_a_word_a_path_is_uwsgi_s(development):
    assert variables(development.ask("GET", "/ws/chat/", UPGRADE))["PATH_INFO"] == "/ws/chat/"


def test_prefixes_below_the_path_that_a_proxy_in_front_shows(tmp_path, upstreams):
    site = tree.values("development with prefixes") | upstreams | {"prefix": "/bells"}
    with running.nginx(tmp_path / "etc", site) as server:
        for path in ("/bells/ws/chat/", "/ws/chat/"):
            assert handshake(server, path)[1]["request"].startswith("GET /ws/chat/ ")


@pytest.fixture(scope="module")
def declared(tmp_path_factory, upstreams):
    site = tree.values("development with prefixes") | upstreams
    with running.nginx(tmp_path_factory.mktemp("nginx") / "etc", site) as server:
        yield server


def by_daphne(answer) -> tuple[str, dict]:
    """The request line that its stub saw, and the headers by their names."""
    assert answer.status == 200, answer
    seen = json.loads(answer.body)
    return seen["request"], {name.lower(): value for name, value in seen["headers"]}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/stream/", "/stream/tower.7/~a@b:c+d/?token=a", "/live/page/x"])
def test_declared_http_goes_to_daphne_with_or_without_upgrade(declared, method, path):
    claims = [("X-Forwarded-For", "1.2.3.4"), ("Daphne-Root-Path", "/x"), ("X-Forwarded-Host", "evil")]
    for headers in ((), UPGRADE):
        answer = declared.ask(
            method, path, [*headers, *claims], b"abc" if method == "POST" else b"", tls=True
        )
        line, seen = by_daphne(answer)
        assert line == f"{method} {path} HTTP/1.1"
        assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "https")
        assert not {"upgrade", "daphne-root-path", "x-forwarded-host"} & seen.keys()
        assert seen.get("content-length") == ("3" if method == "POST" else None)
        assert {name: len(answer.all(name)) for name in SECURITY} == dict.fromkeys(SECURITY, 1)
        assert answer.get("X-Frame-Options") == "DENY"


def test_what_is_beside_declared_http_is_uwsgi_s(declared, development):
    for path in ("/stream", "/streams/", "/live/", "/STREAM/", "/stream/a%20b", "/stream/%0d%0aX:1"):
        variables(declared.ask("GET", path))
    assert variables(development.ask("GET", "/stream/"))["PATH_INFO"] == "/stream/"


def test_declared_http_below_the_path_that_a_proxy_in_front_shows(tmp_path, upstreams):
    site = tree.values("development with prefixes") | upstreams | {"prefix": "/bells"}
    with running.nginx(tmp_path / "etc", site) as server:
        for path in ("/bells/stream/x/", "/stream/x/"):
            line, seen = by_daphne(server.ask("GET", path))
            assert (line, seen["daphne-root-path"]) == ("GET /bells/stream/x/ HTTP/1.1", "/bells")


def test_declared_http_without_a_body_has_no_large_one_over_http2(declared):
    assert json.loads(http2(declared, "GET", "/stream/x/"))["request"].startswith("GET /stream/x/ ")
    assert "larger than 16 KiB" in json.loads(http2(declared, "GET", "/stream/x/", b"x" * 20_000))["detail"]
    assert "POST /stream/x/ " in json.loads(http2(declared, "POST", "/stream/x/", b"x" * 20_000))["request"]


def test_declared_http_while_daphne_is_away(tmp_path, upstreams):
    dead = {"daphne": [f"127.0.0.1:{running.free_port()}"]}
    with running.nginx(
        tmp_path / "etc", tree.values("development with prefixes") | upstreams | dead
    ) as server:
        answer = server.ask("GET", "/stream/x/?token=s3cret")
        assert (answer.status, answer.get("Content-Type")) == (502, "text/html; charset=utf-8")
        assert "s3cret" not in (server.root / "access.log").read_text()


def test_a_reader_of_events_comes_back_while_daphne_is_away(tmp_path, upstreams):
    """A browser's EventSource does after a 200 alone."""
    dead = {"daphne": [f"127.0.0.1:{running.free_port()}"]}
    with running.nginx(tmp_path / "etc", tree.values("development") | upstreams | dead) as server:
        answer = server.ask("GET", "/events/?token=s3cret", [("Accept", "text/event-stream")])
        assert (answer.status, answer.body) == (200, b"retry: 3000\n\n")
        assert answer.get("Content-Type").startswith("text/event-stream")
        answer = server.ask("GET", "/events/?token=s3cret")
        assert (answer.status, answer.get("Retry-After")) == (503, "3")
        assert "No answer from daphne" in json.loads(answer.body)["detail"]
        assert "s3cret" not in (server.root / "access.log").read_text()


def test_a_client_cannot_say_below_which_path_a_socket_lies(development):
    """Routing would fail for it, with a traceback."""
    for path in ("/websocket/", "/websocket/yours/"):
        _, seen = handshake(development, path, [*UPGRADE, ("Daphne-Root-Path", "/x")])
        assert "daphne-root-path" not in {name.lower() for name, _ in seen["headers"]}


def test_uploads_as_large_as_is_declared(declared):
    assert json.loads(declared.ask("POST", "/yours/", body=b"x" * (2 << 20)).body)["body"] == 2 << 20
    answer = declared.ask("POST", "/yours/", [("Content-Length", str((2 << 20) + 1))])
    assert (answer.status, "larger than 2 MiB." in json.loads(answer.body)["detail"]) == (413, True)
    assert declared.ask("POST", "/api/login/", [("Content-Length", "16385")]).status == 413


def test_what_users_have_uploaded_is_shown_and_runs_nothing(development):
    media = development.root / "media"
    (media / "bells").mkdir()
    (media / "bells" / "a page.html").write_text("<script>alert(1)</script>")
    answer = development.ask("GET", "/media/bells/a%20page.html")
    assert (answer.status, answer.body) == (200, b"<script>alert(1)</script>")
    assert answer.get("Cache-Control") == "no-cache"
    assert "default-src 'none'" in answer.get("Content-Security-Policy")
    assert "; sandbox;" in answer.get("Content-Security-Policy")
    assert answer.get("X-Content-Type-Options") == "nosniff"
    for path, status in (("/media/none.png", 404), ("/media/", 403), ("/media/bells/", 403)):
        assert development.ask("GET", path).status == status
    assert development.ask("POST", "/media/bells/a%20page.html").status == 405
    assert development.ask("GET", "/media/../nginx.conf").status == 200, "an ordinary path: uwsgi's"


# Plain HTTP in production -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", ()),
        ("POST", "/api/v2/jobs/?page=2", ()),
        ("GET", "/websocket/?token=a", UPGRADE),
        ("GET", "/static/x.js", ()),
    ],
)
def test_plain_http_moves_to_https(production, method, path, headers):
    answer = production.ask(method, path, headers, host="carillon.example.org:80")
    assert answer.status == 301
    assert answer.get("Location") == f"https://carillon.example.org:{production.https[1]}{path}"
    assert {name: len(answer.all(name)) for name in SECURITY} == dict.fromkeys(SECURITY, 1)


def test_acme_answers_on_plain_http(production):
    (production.root / "acme/.well-known/acme-challenge").mkdir(parents=True)
    (production.root / "acme/.well-known/acme-challenge/abc").write_text("proof")
    assert production.ask("GET", "/.well-known/acme-challenge/abc").body == b"proof"
    assert production.ask("GET", "/.well-known/acme-challenge/none").status == 404


# TLS, addresses, drop-ins -----------------------------------------------------------------------------------


def test_tls_versions_and_alpn(development):
    def negotiated(version, *protocols):
        context = ssl.create_default_context(cafile=str(development.root / "tls/server.pem"))
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(list(protocols))
        context.set_ciphers("ALL:@SECLEVEL=0")
        with wire.connect(("localhost", development.https[1]), context) as connection:
            return connection.version(), connection.selected_alpn_protocol()

    assert negotiated(ssl.TLSVersion.TLSv1_3, "h2", "http/1.1") == ("TLSv1.3", "h2")
    assert negotiated(ssl.TLSVersion.TLSv1_2, "http/1.1") == ("TLSv1.2", "http/1.1")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        negotiated(ssl.TLSVersion.TLSv1_1, "http/1.1")


def test_an_upstream_that_comes_back_elsewhere_is_found(tmp_path):
    """As in development, where a container may get another address: names are looked up again."""
    port = running.free_port()
    with stubs.naming("127.0.0.2") as (dns, move), stubs.serving(stubs.Uwsgi, "127.0.0.2", port):

        def ask_our_dns(root):
            file = root / "carillon/site.conf"
            file.write_text(file.read_text().replace("resolver 127.0.0.11 ", f"resolver 127.0.0.1:{dns} "))

        site = tree.values("development") | {
            "uwsgi": [f"uwsgi.test:{port}"],
            "daphne": [f"daphne.test:{port}"],
        }
        with running.nginx(tmp_path / "etc", site, ask_our_dns) as server:
            assert json.loads(server.ask().body)["address"] == "127.0.0.2"
            with stubs.serving(stubs.Uwsgi, "127.0.0.3", port):
                move("127.0.0.3")
                deadline = time.monotonic() + 5
                while json.loads(server.ask().body)["address"] != "127.0.0.3":
                    assert time.monotonic() < deadline, "still the old address after 5 s"
                    time.sleep(0.1)


def test_one_dead_of_two_upstreams_is_no_outage(tmp_path, upstreams):
    site = tree.values("production") | upstreams
    site["uwsgi"] = [f"127.0.0.1:{running.free_port()}", *site["uwsgi"]]
    with running.nginx(tmp_path / "etc", site) as server:
        assert {server.ask(tls=True).status for _ in range(10)} == {200}


def test_a_drop_in_adds_a_route(tmp_path, upstreams):
    def add(root):
        (root / "carillon/site.d/mine.conf").write_text("location = /mine { return 204; }")

    with running.nginx(tmp_path / "etc", tree.values("development") | upstreams, add) as server:
        answer = server.ask("GET", "/mine")
        assert answer.status == 204
        assert answer.get("X-Frame-Options") == "DENY"


def test_the_address_of_health_checks_is_closed_to_others(development):
    # From another loopback-free address of this machine, if it has one.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        own = probe.getsockname()[0]
    if own.startswith("127."):
        pytest.skip("this machine has loopback addresses only")
    with socket.socket() as connection:
        connection.bind((own, 0))
        connection.settimeout(5)
        try:
            connection.connect(development.http)
        except OSError:
            pytest.skip("no way from that address to loopback")
        connection.sendall(
            wire.request("GET", "/nginx/health", [("Host", "localhost"), ("X-Forwarded-For", "127.0.0.1")])
        )
        assert wire.read_answer(connection).status == 404


# In front of us ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def below(tmp_path_factory, upstreams):
    """Shown at /bells by a proxy in front."""
    site = tree.values("development") | upstreams | {"prefix": "/bells"}
    with running.nginx(tmp_path_factory.mktemp("nginx") / "etc", site) as server:
        yield server


@pytest.mark.parametrize("kept", ["/bells", ""])
def test_a_prefix_that_the_proxy_kept_or_took_off(below, kept):
    seen = variables(below.ask("GET", f"{kept}/api/v2/jobs/?page=2"))
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/bells", "/api/v2/jobs/")
    assert seen["QUERY_STRING"] == "page=2"
    assert seen["REQUEST_URI"] == f"{kept}/api/v2/jobs/?page=2"
    status, seen = handshake(below, f"{kept}/websocket/?token=a")
    assert status == 101
    assert seen["request"].split()[1] == "/websocket/?token=a"
    assert below.ask("GET", f"{kept}/websocket/").status == 426
    assert below.ask("GET", f"{kept}/robots.txt").status == 200


def test_a_prefix_without_its_slash(below):
    answer = below.ask("GET", "/bells?x=1")
    assert answer.status == 301
    assert answer.get("Location") == "/bells/?x=1"
    assert variables(below.ask("GET", "/bellsfoo"))["PATH_INFO"] == "/bellsfoo"


def test_without_a_prefix_there_is_none(development):
    assert variables(development.ask("GET", "/bells/"))["PATH_INFO"] == "/bells/"
    assert variables(development.ask("GET", "/"))["SCRIPT_NAME"] == ""


@pytest.fixture(scope="module")
def balanced(tmp_path_factory, upstreams):
    """Behind a balancer of TCP that speaks the PROXY protocol."""
    trusted = {"trusted_proxies": ["127.0.0.0/8"], "proxy_protocol": True}
    site = tree.values("development") | upstreams | trusted
    with running.nginx(tmp_path_factory.mktemp("nginx") / "etc", site) as server:
        yield server


def through_balancer(server, data: bytes, address="127.0.0.2") -> bytes:
    with socket.create_connection((address, server.http[1]), 5) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_proxy_protocol_names_the_client_and_headers_do_not(balanced):
    request = wire.request(
        "GET",
        "/",
        [
            ("Host", "localhost"),
            ("Connection", "close"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("X-Forwarded-Proto", "https"),
        ],
    )
    answer = through_balancer(balanced, b"PROXY TCP4 192.0.2.9 203.0.113.1 4711 443\r\n" + request)
    seen = json.loads(answer.partition(b"\r\n\r\n")[2])["variables"]
    assert seen["REMOTE_ADDR"] == seen["HTTP_X_FORWARDED_FOR"] == "192.0.2.9"
    assert seen["REQUEST_SCHEME"] == "http"


def test_who_does_not_speak_it_is_not_heard(balanced):
    assert through_balancer(balanced, wire.request("GET", "/", [("Host", "localhost")])) == b""


def test_this_machine_needs_no_proxy_protocol(balanced):
    assert variables(balanced.ask("GET", "/"))["REMOTE_ADDR"] == "127.0.0.1"


# Seen ----------------------------------------------------------------------------------------------------


def test_an_exporter_is_told_how_many_connections_there_are(development):
    def asked(path):
        return wire.exchange(development.status, wire.request("GET", path, [("Host", "127.0.0.1")]), None)

    answer = asked("/nginx/status")
    assert answer.status == 200
    assert answer.body.startswith(b"Active connections: ")
    assert asked("/").status == 404
    assert asked("/api/v2/ping/").status == 404


def test_a_scraper_there_reads_the_application_s_metrics_under_a_name_of_the_site(development):
    headers = [("Host", "10.1.2.3:8113"), ("X-Forwarded-For", "6.6.6.6")]
    answer = wire.exchange(development.status, wire.request("GET", "/api/v2/metrics/", headers), None)
    seen = variables(answer)
    # The application answers to names alone, and knows a scraper by its address.
    assert seen["HTTP_HOST"] == seen["SERVER_NAME"] == "localhost"
    assert seen["REMOTE_ADDR"] == "127.0.0.1"
    assert seen["PATH_INFO"] == "/api/v2/metrics/"


def test_nobody_is_told_where_everybody_comes(production):
    assert b"Active connections" not in production.ask("GET", "/nginx/status", tls=True).body


def test_a_host_s_metrics_come_from_its_own_uwsgi(tmp_path, upstreams):
    with stubs.serving(stubs.Uwsgi) as own:
        site = tree.values("production") | upstreams | {"uwsgi_own": f"127.0.0.1:{own}"}
        with running.nginx(tmp_path / "etc", site) as server:
            for path in ("/api/v2/metrics/", "/api/v2/ping/"):
                assert server.ask("GET", path, tls=True).status == 200
        # It has stopped: every line of its log is written.
        log = server.log().splitlines()
    asked = {line.split('path="')[1].split('"')[0]: line for line in log if 'path="' in line}
    assert f'upstream="127.0.0.1:{own}"' in asked["/api/v2/metrics/"]
    assert f'upstream="{upstreams["uwsgi"][0]}"' in asked["/api/v2/ping/"]

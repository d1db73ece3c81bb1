"""The table of routes, asked of a running deployment over HTTPS and plain HTTP."""

import json
import os
import re
import time
import uuid
from pathlib import Path

import pytest
import yaml

from dev import project
from tests.infra import wire
from tests.infra.stack import wait

TABLE = yaml.safe_load(Path(__file__).with_name("routes.yml").read_text())
ROWS = TABLE["routes"] + [
    {**row, "path": row["path"].replace("{prefix}", prefix)}
    for kind, rows in TABLE["declared"].items()
    for prefix in getattr(project.declared(), kind)
    for row in rows
]
KEY = {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
# What a deployment says of itself: does plain HTTP redirect, and is HSTS sent over HTTPS?
REDIRECTS = os.environ.get("CARILLON_STACK_PLAIN") == "redirect"
HSTS = os.environ.get("CARILLON_STACK_HSTS") == "1"
KNOWN = {
    "path",
    "method",
    "http",
    "upgrade",
    "headers",
    "body",
    "upstream",
    "status",
    "present",
    "absent",
    "redirect",
    "detail",
    "plain",
    "csp",
}


def name(row: dict) -> str:
    parts = [row.get("method", "GET"), row["path"]]
    if "upgrade" in row:
        parts.append("Upgrade" if row["upgrade"] is True else f"Upgrade:{row['upgrade']}")
    if "http" in row:
        parts.append(f"HTTP/{row['http']}")
    return " ".join([*parts, *row.get("headers", {})])


CASES = [
    pytest.param(scheme, row, id=f"{scheme} {name(row)}")
    for row in ROWS
    for scheme in ("https", "http")
    if not (row.get("http") == "2" and scheme == "http")
]


# Health checks are not logged.
UNLOGGED = sum(case.values[1]["path"] == "/nginx/health" for case in CASES)


@pytest.fixture(scope="module")
def module(stack) -> str:
    """The page's first script, as the page names it."""
    host, port = stack.address()
    page = wire.exchange(
        (host, port),
        wire.request("GET", "/", [("Host", f"{host}:{port}"), ("Connection", "close")]),
        stack.tls("http/1.1"),
    )
    found = re.search(rb'<script[^>]* src="(/static/[^"]+\.[0-9a-f]{12}\.js)"', page.body)
    assert found, "the page names no script with a hash"
    return found.group(1).decode()


@pytest.fixture(scope="module")
def asked(stack, module):
    """Every row asked once: {(scheme, row's place): (answer, body, nginx's line in its log)}."""
    asked = {}
    for case in CASES:
        scheme, row = case.values
        agent = f"routes-{uuid.uuid4().hex}"
        answer, body = ask(stack, scheme, row, agent, module)
        # nginx refuses some requests before it has read their headers: then its answer's id is in the line.
        marks = [f'agent="{agent}"', f"id={answer.get('X-Request-ID')} " if answer else None]
        asked[scheme, id(row)] = (answer, body, [mark for mark in marks if mark])

    def lines():
        log = stack.logs("nginx", "--tail", "5000").splitlines()
        found = {
            key: [line for line in log if any(mark in line for mark in marks)]
            for key, (*_, marks) in asked.items()
        }
        return found if sum(map(bool, found.values())) >= len(asked) - UNLOGGED else None

    found = wait("a line in nginx's log for each request", lines, 15, pause=0.3)
    return {key: (answer, body, found[key]) for key, (answer, body, _) in asked.items()}


def ask(stack, scheme: str, row: dict, agent: str, module: str):
    host, port = stack.address(scheme)
    path = row["path"].replace("{module}", module).replace("/long/9000", "/" + "a" * 9000)
    headers = {"Host": f"{host}:{port}", **row.get("headers", {})}
    if "X-Large" in headers:
        headers["X-Large"] = "a" * headers["X-Large"]
    # First, so that the log line of a request that is too large still has it.
    lines = [("User-Agent", agent), *headers.items()]
    if upgrade := row.get("upgrade"):
        values = upgrade if isinstance(upgrade, list) else ["websocket" if upgrade is True else upgrade]
        lines += [*(("Upgrade", value) for value in values), ("Connection", "Upgrade"), *KEY.items()]
    method = row.get("method", "GET")
    if row.get("http") == "2":
        fields = [(key, value) for key, value in lines if key != "Host"]
        body = wire.exchange_http2((host, port), method, path, fields, stack.tls("h2"))
        return None, body
    data = wire.request(method, path, lines, b"x" * row.get("body", 0), row.get("http", "1.1"))
    answer = wire.exchange((host, port), data, stack.tls("http/1.1") if scheme == "https" else None)
    return answer, answer.body


def upstream_of(line: str) -> str:
    address = re.search(r'upstream="([^"]*)"', line).group(1)
    ports = {str(port): service for service, port in TABLE["upstreams"].items()}
    return ports.get(address.rpartition(":")[2], address) if address else "nginx"


def test_the_table_has_no_unknown_words():
    for row in [*TABLE["routes"], *(row for rows in TABLE["declared"].values() for row in rows)]:
        assert set(row) <= KNOWN, row
        assert {"path", "upstream", "status"} <= set(row), row


@pytest.mark.parametrize(("scheme", "row"), CASES)
def test_route(asked, scheme, row):
    answer, body, lines = asked[scheme, id(row)]
    if scheme == "http" and REDIRECTS and row.get("plain") != "same":
        assert answer.status == 301
        assert answer.get("Location").startswith("https://")
        assert answer.get("Strict-Transport-Security") is None
        return
    status = row["status"] if isinstance(row["status"], list) else [row["status"]]
    if row["path"] != "/nginx/health":
        assert len(lines) == 1, f"{len(lines)} lines in nginx's log; the answer: {answer}"
        assert upstream_of(lines[0]) == row["upstream"], lines[0]
        assert int(re.search(r" status=(\d+) ", lines[0]).group(1)) in status, lines[0]
        assert "?" not in re.search(r'path="([^"]*)"', lines[0]).group(1)
    if "detail" in row:
        assert re.search(row["detail"], json.loads(body)["detail"])
    if answer is None:
        return
    assert answer.status in status
    for header, pattern in row.get("present", {}).items():
        assert any(re.search(pattern, value) for value in answer.all(header)), (header, answer.all(header))
    for header in row.get("absent", []):
        assert answer.all(header) == []
    if "redirect" in row:
        assert re.search(row["redirect"], answer.get("Location"))
    if answer.status == 101:
        return
    own = {"Content-Security-Policy": row["csp"]} if "csp" in row else {}
    for header, pattern in {**TABLE["always"], **own}.items():
        values = answer.all(header)
        assert len(values) == 1, f"{header}: {values}"
        assert re.search(pattern, values[0]) or row.get("headers", {}).get("Host"), f"{header}: {values[0]}"
    assert bool(answer.get("Strict-Transport-Security")) == (HSTS and scheme == "https")


def test_http2_and_tls_of_today(stack):
    for protocol in ("h2", "http/1.1"):
        with wire.connect(stack.address(), stack.tls(protocol)) as connection:
            assert connection.selected_alpn_protocol() == protocol
            assert connection.version() == "TLSv1.3"


def test_a_slow_client_is_served_and_holds_nobody_up(stack):
    host, port = stack.address("https")
    with wire.connect((host, port), stack.tls("http/1.1")) as slow:
        for byte in wire.request(
            "GET", "/api/v2/ping/", [("Host", f"{host}:{port}"), ("Connection", "close")]
        ):
            slow.sendall(bytes((byte,)))
            time.sleep(0.005)
        assert stack.api("/api/v2/me/")["count"] == 1
        assert wire.read_answer(slow).status == 200

"""What nginx accepts in silence and should not; each lint is shown to fail on a crafted break."""

import re

import pytest

from dev import site_file
from tests.unit.nginx import nginx_conf, running, tree

LOG_LEAKS = re.compile(
    r"\$\{?(request|request_uri|args|query_string|arg_\w+|http_referer|http_cookie|http_authorization)\b"
)


@pytest.fixture(params=tree.NAMES)
def configuration(request, tmp_path):
    """nginx.conf of a whole configuration that a test may break."""
    return tree.lay_out(tmp_path / "etc", tree.values(request.param))


def directives(configuration):
    return list(nginx_conf.walk(nginx_conf.read(configuration, configuration.parent)))


def security_headers(configuration) -> set[str]:
    return {
        d.words[1]
        for d in nginx_conf.read(
            configuration.parent / "carillon/snippets/headers.conf", configuration.parent
        )
    }


def without_security_headers(configuration) -> list[str]:
    """Servers, and the locations in which an `add_header` cuts off what the server says."""
    needed = security_headers(configuration)
    found = []
    for block in directives(configuration):
        if block.name not in ("server", "location", "if") or block.block is None:
            continue
        own = {d.words[1] for d in block.block if d.name == "add_header"}
        if (own or block.name == "server") and not needed <= own:
            found.append(f"{block} lacks {', '.join(sorted(needed - own))}")
    return found


def localhost_upstreams(configuration) -> list[str]:
    return [
        str(d)
        for d in directives(configuration)
        if d.name in ("server", "proxy_pass", "uwsgi_pass", "default")
        and d.block is None
        and any(re.search(r"\blocalhost\b", word) for word in d.words[1:])
    ]


def logs_with_queries(configuration) -> list[str]:
    """Log formats that name the query string, and error logs of a level that quotes the request."""
    return [
        str(d)
        for d in directives(configuration)
        if (d.name == "log_format" and LOG_LEAKS.search(" ".join(d.words[2:])))
        or (
            d.name == "error_log"
            and d.parent is not None
            and d.words[1:] not in (["stderr", "crit"], ["/dev/null"])
        )
    ]


def variables_in_patterns(configuration) -> list[str]:
    """A variable in a regular expression is not expanded: such a rule never matches."""
    return [
        str(d)
        for d in directives(configuration)
        if (d.name == "rewrite" and re.search(r"\$\w", d.words[1]))
        or (d.name == "location" and d.words[1] in ("~", "~*") and re.search(r"\$\w", d.words[2]))
    ]


def test_the_headers_are_those_that_were_decided(configuration):
    assert security_headers(configuration) == {
        "Content-Security-Policy",
        "X-Content-Type-Options",
        "X-Frame-Options",
        "Referrer-Policy",
        "Permissions-Policy",
        "Cross-Origin-Opener-Policy",
        "Cross-Origin-Resource-Policy",
        "Strict-Transport-Security",
        "X-Request-ID",
    }


def test_security_headers_in_every_location(configuration):
    assert without_security_headers(configuration) == []


def test_no_localhost(configuration):
    assert localhost_upstreams(configuration) == []


def test_no_query_in_a_log(configuration):
    assert logs_with_queries(configuration) == []


def test_no_variable_in_a_pattern(configuration):
    assert variables_in_patterns(configuration) == []


def test_the_websocket_locations(configuration):
    """Alike, of plain names alone, without a message that would quote a token, patient with quiet sockets."""
    locations = [
        d for d in directives(configuration) if d.name == "location" and "websocket" in " ".join(d.words)
    ]
    assert {tuple(d.words[1:]) for d in locations} == {
        ("=", "/websocket"),
        ("=", "/websocket/"),
        ("~", "^/websocket/[A-Za-z0-9._~@:+/-]+$"),
    }
    for location in locations:
        said = {d.name: d.words[1] for d in location.block}
        assert said["error_log"] == "/dev/null"
        assert int(said["proxy_read_timeout"].removesuffix("s")) >= 90
        assert said["proxy_buffering"] == "off"


@pytest.mark.parametrize(
    ("lint", "text"),
    [
        (without_security_headers, "location /x { add_header X-A b; return 200; }"),
        (without_security_headers, "location /x { if ($args) { add_header X-A b; } }"),
        (localhost_upstreams, "location /x { proxy_pass http://localhost:8051; }"),
        (logs_with_queries, "location /x { error_log stderr warn; }"),
        (variables_in_patterns, "location /x { rewrite ^(.*)$http_host(.*[^/])$ $1/ permanent; }"),
    ],
)
def test_a_break_is_seen(lint, text, tmp_path):
    configuration = tree.lay_out(tmp_path / "etc", tree.values("development"))
    assert lint(configuration) == []
    (tmp_path / "etc/carillon/site.d/broken.conf").write_text(text)
    assert lint(configuration) != []


def test_a_log_with_the_request_line_is_seen(tmp_path):
    configuration = tree.lay_out(tmp_path / "etc", tree.values("development"))
    with (tmp_path / "etc/carillon/snippets/log.conf").open("a") as file:
        file.write("log_format usual '$remote_addr \"$request\"';")
    assert len(logs_with_queries(configuration)) == 1


def test_nginx_accepts_it_without_a_warning(configuration):
    result = running.check(configuration)
    assert result.returncode == 0, result.stderr
    assert "[warn]" not in result.stderr


def test_nginx_refuses_a_break(tmp_path):
    configuration = tree.lay_out(tmp_path / "etc", tree.values("development"))
    (tmp_path / "etc/carillon/site.d/broken.conf").write_text("location /x { proxy_pas http://127.0.0.1; }")
    result = running.check(configuration)
    assert result.returncode != 0
    assert 'unknown directive "proxy_pas"' in result.stderr


def test_static_files_know_no_template():
    static = [tree.NGINX / "nginx.conf", *(tree.NGINX / "snippets").glob("*.conf")]
    assert [file.name for file in static if re.search(r"\{\{|\{%|%\(ENV", file.read_text())] == []
    assert len(site_file.TEMPLATE.read_text().splitlines()) < 110

"""No secret where it is read by accident: descriptions of containers, layers, argv, environments, logs."""

import base64
import json
import urllib.error
import urllib.parse
import uuid

import pytest

from tests.infra import wire
from tests.infra.stack import SERVICES, docker, wait

ALL = (*SERVICES, "migrate")


@pytest.fixture(scope="module")
def secrets(stack) -> dict[str, list[str]]:
    """Every secret of this stack in the spellings in which it could be written."""
    found = {
        file.name: file.read_text().strip() for file in (stack.state / "secrets").iterdir() if file.is_file()
    }
    for name in ("server.key", "ca.key"):
        body = (stack.state / "certificates" / name).read_text().splitlines()[1:-1]
        found[name] = body[0]
    found["password"] = stack.values["CARILLON_PASSWORD"]
    found["token"] = stack.values["CARILLON_TOKEN"]
    assert len(found) >= 7
    assert all(len(secret) >= 12 for secret in found.values())
    return {
        name: list(
            {
                secret,
                urllib.parse.quote(secret, safe=""),
                base64.b64encode(secret.encode()).decode().rstrip("="),
            }
        )
        for name, secret in found.items()
    }


def leaks(text: str, secrets) -> list[str]:
    return [name for name, spellings in secrets.items() if any(spelling in text for spelling in spellings)]


def test_the_search_finds_what_is_there(secrets):
    assert leaks(f"amqp://carillon:{secrets['amqp_password'][0]}@rabbitmq", secrets) == ["amqp_password"]


def containers(stack) -> dict[str, str]:
    rows = docker(
        "ps",
        "--all",
        "--filter",
        f"label=com.docker.compose.project={stack.project}",
        "--format",
        '{{.ID}} {{.Label "com.docker.compose.service"}}',
    )
    return {service: identity for identity, service in (line.split() for line in rows.splitlines())}


def test_inspect(stack, secrets):
    for service, container in containers(stack).items():
        assert leaks(docker("inspect", container), secrets) == [], service


def test_images(stack, secrets):
    images = {stack.inspect(service)["Image"] for service in SERVICES}
    for image in images:
        assert leaks(docker("image", "inspect", image), secrets) == []
        assert leaks(docker("image", "history", "--no-trunc", image), secrets) == []


def test_no_key_or_secret_file_in_an_image(stack):
    for service in SERVICES:
        image = stack.inspect(service)["Image"]
        found = docker(
            "run",
            "--rm",
            "--network=none",
            "--user=0",
            "--entrypoint=find",
            image,
            "/etc",
            "/opt",
            "/run",
            "/var/lib",
            "/usr/local",
            "/home",
            "/root",
            "-xdev",
            "(",
            "-name",
            "*.key",
            "-o",
            "-name",
            ".env",
            "-o",
            "-name",
            "*cookie*",
            "-not",
            "-name",
            "*.py*",
            "-o",
            "-path",
            "/run/secrets/*",
            ")",
            "-type",
            "f",
            "-size",
            "+0",
        )
        assert [line for line in found.splitlines() if "site-packages" not in line] == [], service


def test_argv(stack, secrets):
    for service in SERVICES:
        for _, _, command in stack.processes(service):
            assert leaks(command, secrets) == [], service


def test_environments(stack, secrets):
    for service in SERVICES:
        environments = stack.host(service).run("cat /proc/[0-9]*/environ | tr '\\0' '\\n'").stdout
        assert "PATH=" in environments
        assert leaks(environments, secrets) == [], service


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_token_in_a_url_is_in_no_log(stack, secrets, scheme):
    """Used rightly, with a wrong path, without Upgrade, in a Referer, and in requests that end as errors."""
    token = stack.values["CARILLON_TOKEN"]
    with stack.websocket(scheme=scheme) as socket:
        assert json.loads(socket.recv(10))["accept"] is True
        socket.send(f"not JSON {token}")
        socket.recv(10)
    host, port = stack.address(scheme)
    agent = f"secrets-{uuid.uuid4().hex}"
    paths = [
        f"/websocket?token={token}",
        f"/websocket/?token={token}",
        f"/websocketfoo?token={token}",
        f"/?token={token}",
        f"/api/v2/jobs/?token={token}",
        f"/static/none?token={token}",
        f"/websocket%3Ftoken={token}",
    ]
    for path in paths:
        for extra in (
            [],
            [("Referer", f"https://{host}{path}")],
            [("X-Large", "a" * 9000)],
            [("Content-Length", "17000000")],
        ):
            wire.exchange(
                (host, port),
                wire.request("GET", path, [("User-Agent", agent), ("Host", f"{host}:{port}"), *extra]),
                stack.tls("http/1.1") if scheme == "https" else None,
            )
    wait("the last of them in nginx's log", lambda: len(stack.access_log(agent)) == 4 * len(paths), 10)
    for service, container in containers(stack).items():
        assert leaks(docker("logs", container), secrets) == [], service


def test_wrong_passwords_are_in_no_log(stack):
    wrong = f"wrong-{uuid.uuid4().hex}"
    with pytest.raises(urllib.error.HTTPError) as refused:
        stack.api("/api/v2/me/", token=wrong)
    assert refused.value.code == 401
    host, port = stack.address()
    body = f"username=admin&password={wrong}&next=/".encode()
    form = [
        ("Host", f"{host}:{port}"),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Connection", "close"),
    ]
    answer = wire.exchange(
        (host, port), wire.request("POST", "/api/login/", form, body), stack.tls("http/1.1")
    )
    assert answer.status in (401, 403)
    for service, container in containers(stack).items():
        assert wrong not in docker("logs", container), service


def test_the_logs_have_no_secret(stack, secrets):
    for service, container in containers(stack).items():
        text = docker("logs", container)
        assert service in ("runworker", "migrate") or text, (
            f"{service} logged nothing: was anything looked at?"
        )
        assert leaks(text, secrets) == [], service

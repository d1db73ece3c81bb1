"""supervisord in one container, with the files of a host."""

from __future__ import annotations

import hashlib
import json
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dev import production, secret_files
from dev import stack as compose_stack
from dev.output import Failure
from tests.infra.stack import docker, wait
from tests.production.containers import programs
from tests.production.ledger import Ledger
from tests.production.sockets import assert_half_survive
from tests.unit.production.supervisor_lint import processes

ROOT = Path(__file__).resolve().parents[3]
SERVICES = ("app", "nginx", "rabbitmq", "postgresql")
DECLARED = processes(ROOT / "supervisord/conf.d") | programs()
# Of each group the first process: uwsgi:uwsgi_0, daphne:daphne_0, runworker.
FIRST = sorted(name for name in DECLARED - programs() if name != "listener" and name[-2:] in ("er", "_0"))


def inside(stack, *command: str) -> str:
    return docker("exec", stack.container("app"), *command)


def ctl(stack, *command: str) -> str:
    return inside(stack, "supervisorctl", *command)


def programs(stack) -> dict[str, str]:
    return dict(line.split()[:2] for line in ctl(stack, "status").splitlines())


def restart(stack, program: str) -> None:
    """As an operator does; returns when it runs."""
    ctl(stack, "restart", program)
    wait(f"{program} runs", lambda: programs(stack)[program] == "RUNNING", 60)


def environments(stack, service: str) -> str:
    """The environment of every process in the container, as its own user may read it."""
    script = 'for file in /proc/[0-9]*/environ; do tr "\\0" "\\n" <"$file"; done 2>/dev/null; true'
    return docker("exec", stack.container(service), "bash", "-c", script)


def test_the_processes_are_the_declared_ones_and_none_is_young(stack):
    assert set(programs(stack)) == DECLARED

    def settled() -> bool:
        lines = ctl(stack, "status").splitlines()
        ages = [re.search(r" RUNNING .*uptime (\d+):(\d+):(\d+)", line) for line in lines]
        return all(age and int(age[1]) * 3600 + int(age[2]) * 60 + int(age[3]) > 10 for age in ages)

    wait("every program has run for 10 s", settled, 60)


def test_an_event_goes_all_the_way(stack):
    assert stack.deliver()


def test_plain_http_leads_to_the_port_that_is_published(stack):
    import urllib.request

    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=stack.tls())
    )
    with opener.open(f"{stack.values['CARILLON_HTTP_URL']}/api/v2/ping/", timeout=10) as answer:
        assert answer.url == f"{stack.values['CARILLON_URL']}/api/v2/ping/"


def test_started_again_nothing_changes(stack, settings):
    before = {service: stack.inspect(service)["Id"] for service in SERVICES}
    started = {service: stack.inspect(service)["State"]["StartedAt"] for service in SERVICES}
    production.up(settings)
    assert {service: stack.inspect(service)["Id"] for service in SERVICES} == before
    assert {service: stack.inspect(service)["State"]["StartedAt"] for service in SERVICES} == started


def test_it_is_read_only_without_root_and_without_capabilities(stack):
    for service in SERVICES:
        settings = stack.inspect(service)["HostConfig"]
        assert settings["ReadonlyRootfs"] is True
        assert settings["CapDrop"] == ["ALL"]
        assert settings["SecurityOpt"] == ["no-new-privileges:true"]
        assert settings["Privileged"] is False
        assert settings["PidsLimit"] == 1024
        assert 2**29 <= settings["Memory"] <= 2**31
        assert {uid for _, uid, _ in stack.processes(service)} & {0} == set()


def test_nothing_but_nginx_is_published(stack):
    for service in SERVICES:
        published = {port for port, at in stack.inspect(service)["NetworkSettings"]["Ports"].items() if at}
        assert published == ({"80/tcp", "443/tcp"} if service == "nginx" else set())


def test_nginx_reaches_the_application_and_nothing_behind_it(stack):
    networks = {name: set(stack.inspect(name)["NetworkSettings"]["Networks"]) for name in SERVICES}
    assert networks["nginx"] < networks["app"]
    assert not networks["nginx"] & (networks["rabbitmq"] | networks["postgresql"])


def test_secrets_are_files_and_nothing_else(stack, settings):
    words = {path.name: path.read_text().strip() for path in settings.secrets.iterdir()}
    # Of keys there was none before the first.
    assert words.pop(secret_files.FALLBACKS) == ""
    assert len(words) >= 5
    for service in SERVICES:
        image = stack.inspect(service)["Config"]["Image"]
        places = {
            "docker inspect": json.dumps([stack.inspect(service), json.loads(docker("inspect", image))]),
            "the image's history": docker("history", "--no-trunc", image),
            "the log": stack.logs(service),
            "an environment": environments(stack, service),
            "an argv": "".join(command for _, _, command in stack.processes(service)),
        }
        assert "PATH=" in places["an environment"]
        for place, text in places.items():
            for name, word in words.items():
                assert word not in text, f"{name} is in {place} of {service}"


def test_a_missing_secret_is_named(stack, settings):
    """By the engine, where somebody starts Compose by hand. With a short mount it would make a directory."""
    secret = settings.secrets / "secret_key"
    secret.rename(settings.secrets / "elsewhere")
    try:
        with pytest.raises(Failure, match=rf"bind source path does not exist: {secret}"):
            compose_stack.compose(settings, "run", "--rm", "--no-deps", "assets", seconds=60)
        assert not secret.exists()
    finally:
        (settings.secrets / "elsewhere").rename(secret)


def test_the_files_are_the_repositorys(stack):
    for path in [
        ROOT / "supervisord/supervisord.conf",
        ROOT / "supervisord/listener.py",
        *(ROOT / "supervisord/conf.d").glob("*.conf"),
        ROOT / "supervisord/uwsgi.ini",
    ]:
        there = Path("/etc/carillon") / ("uwsgi.ini" if path.name == "uwsgi.ini" else path.relative_to(ROOT))
        assert (
            inside(stack, "sha256sum", str(there)).split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
        )


@pytest.mark.parametrize("program", FIRST)
def test_a_killed_program_comes_back(stack, program):
    pid = ctl(stack, "pid", program).strip()
    inside(stack, "python3", "-c", f"import os; os.kill({pid}, 9)")
    wait(f"a new {program}", lambda: ctl(stack, "pid", program).strip() not in (pid, "0"), 30)
    wait("an event goes all the way", stack.deliver, 60)


def test_sockets_survive_the_restart_of_the_other_process(stack):
    assert_half_survive(stack, lambda: restart(stack, "daphne:daphne_0"))


def test_programs_restarted_one_by_one_under_load_fail_no_request(stack):
    with Ledger(stack) as ledger:
        for program in sorted(DECLARED - {"listener"}):
            restart(stack, program)
        wait("an event goes all the way", stack.deliver, 60)
    ledger.assert_nothing_lost()


def test_a_program_that_is_given_up_is_seen_and_the_engine_brings_the_container_back(stack):
    started = stack.inspect("app")["State"]["StartedAt"]
    # What a broken configuration does: the program ends at once, again and again.
    script = "import os,sys; os.kill(int(sys.argv[1]), 9)"
    deadline = time.monotonic() + 90
    while stack.inspect("app")["State"]["StartedAt"] == started and time.monotonic() < deadline:
        # Between two programs there is none, and at the end no container: which is what we wait for.
        with suppress(AssertionError):
            pid = ctl(stack, "pid", "runworker").strip()
            if pid.isdigit() and pid != "0":
                inside(stack, "python3", "-c", script, pid)
    assert stack.inspect("app")["State"]["StartedAt"] != started, "the container did not end"
    assert "FATAL: runworker keeps failing" in docker("logs", stack.container("app"))
    wait("the container serves again", lambda: stack.healthy("app") and stack.deliver(), 120)


def test_a_program_that_is_missing_is_seen_by_the_health_check(stack):
    ctl(stack, "stop", "runworker")
    try:
        wait("unhealthy", lambda: stack.inspect("app")["State"]["Health"]["Status"] == "unhealthy", 90)
        assert "runworker" in stack.inspect("app")["State"]["Health"]["Log"][-1]["Output"]
    finally:
        ctl(stack, "start", "runworker")
    wait("healthy again", lambda: stack.healthy("app"), 60)


def test_a_new_certificate_is_shown_without_a_socket_being_closed(stack, settings):
    import ssl

    def serial() -> int:
        host, port = stack.address()
        pem = ssl.get_server_certificate((host, port))
        from cryptography import x509

        return x509.load_pem_x509_certificate(pem.encode()).serial_number

    before = serial()
    with stack.websocket() as socket:
        assert json.loads(socket.recv(10))["accept"] is True
        for name in ("server.pem", "server.key"):
            (settings.certificates / name).unlink()
        production.up(settings)
        wait("the new certificate is shown", lambda: serial() != before, 15)
        socket.send(json.dumps({"groups": {}}))
        assert json.loads(socket.recv(10))["groups_current"] == []


@pytest.mark.parametrize("service", SERVICES)
def test_each_ends_by_itself_when_it_is_told_to(stack, settings, service):
    """TERM, and then not KILL: the engine's patience is longer than the service needs."""
    docker("stop", stack.container(service), timeout=120)
    state = stack.inspect(service)["State"]
    assert state["ExitCode"] in (0, 143), state
    assert state["OOMKilled"] is False
    compose_stack.up(settings)
    wait("an event goes all the way", stack.deliver, 60)

"""Each container: who listens where, who runs as whom with which argv, and what it may do."""

import os
import re
import socket

import pytest

from tests.infra.stack import SERVICES

LISTENERS = {
    "nginx": {8013, 8043, 8113},
    "uwsgi": {8050},
    "daphne": {8051},
    "runworker": set(),
    "rabbitmq": {4369, 5672, 15672, 15692, 25672},
    "postgresql": {5432},
}
USERS = {
    "nginx": 10004,
    "uwsgi": 10001,
    "daphne": 10001,
    "runworker": 10001,
    "rabbitmq": 10003,
    "postgresql": 10002,
}
PUBLISHED = {"nginx": {"8013/tcp", "8043/tcp"}, "rabbitmq": {"5672/tcp", "15672/tcp"}}
# Of each, one process at least with this command line.
COMMANDS = {
    "nginx": r"^nginx: master process nginx -e stderr -g daemon off;$",
    "daphne": r"/opt/carillon/\S+/bin/python\S* -m carillon\.server -b 0\.0\.0\.0 -p 8051 "
    r"--websocket_timeout -1 "
    r"--ping-interval 20 --ping-timeout 30 --proxy-headers --access-log /dev/null "
    r"carillon\.asgi:application$",
    "uwsgi": r"uwsgi --ini /etc/carillon/uwsgi\.ini --socket 0\.0\.0\.0:8050 --processes \d+ --threads \d+|"
    r"carillon uWSGI (master|worker \d+)",
    "runworker": r"/bin/python\S* -m django runworker$",
    "rabbitmq": r"beam\.smp",
    "postgresql": r"postgres",
}


@pytest.fixture(params=SERVICES)
def service(request):
    return request.param


def listeners(host) -> dict[int, set[str]]:
    """Port to addresses, from the kernel's tables (there is no ss). Docker's own DNS is not ours."""
    found: dict[int, set[str]] = {}
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in host.run(f"cat /proc/net/{table}").stdout.splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            if state != "0A":
                continue
            raw, port = local.split(":")
            words = [bytes.fromhex(raw[i : i + 8])[::-1] for i in range(0, len(raw), 8)]
            address = socket.inet_ntop(family, b"".join(words))
            if address != "127.0.0.11":
                found.setdefault(int(port, 16), set()).add(address)
    return found


def test_listens_where_it_should_and_nowhere_else(stack, service):
    assert set(listeners(stack.host(service))) == LISTENERS[service]


def test_only_nginx_and_the_brokers_loopback_are_published(stack, service):
    ports = {
        port: bindings
        for port, bindings in stack.inspect(service)["NetworkSettings"]["Ports"].items()
        if bindings
    }
    assert set(ports) == PUBLISHED.get(service, set())
    allowed = (
        {os.environ.get("CARILLON_STACK_LISTEN") or "127.0.0.1"} if service == "nginx" else {"127.0.0.1"}
    )
    assert {binding["HostIp"] for bindings in ports.values() for binding in bindings} <= allowed


def test_no_host_network_or_namespaces(stack, service):
    settings = stack.inspect(service)["HostConfig"]
    assert not settings["NetworkMode"].startswith(("host", "container:"))
    assert (settings["PidMode"], settings["UsernsMode"]) == ("", "")
    assert settings["IpcMode"] in ("private", "")
    assert not settings["Privileged"]
    assert not any("docker.sock" in mount["Source"] for mount in stack.inspect(service)["Mounts"])


def test_every_process_runs_as_the_services_user(stack, service):
    processes = stack.processes(service)
    assert {uid for _, uid, _ in processes} == {USERS[service]}
    assert any(re.search(COMMANDS[service], command) for _, _, command in processes), processes


def test_daphne_and_uwsgi_are_not_started_by_hand_elsewhere(stack):
    for service, other in (
        ("uwsgi", "daphne"),
        ("daphne", "uwsgi"),
        ("runworker", "daphne"),
        ("runworker", "uwsgi"),
    ):
        assert not any(re.search(rf"bin/{other} ", command) for _, _, command in stack.processes(service))


def test_hardened(stack, service):
    inspected = stack.inspect(service)
    settings = inspected["HostConfig"]
    assert settings["ReadonlyRootfs"] is True
    assert settings["CapDrop"] == ["ALL"]
    assert not settings["CapAdd"]
    assert any(option.startswith("no-new-privileges") for option in settings["SecurityOpt"])
    assert inspected["Config"]["User"] not in ("", "0", "root")
    assert settings["RestartPolicy"]["Name"] in ("unless-stopped", "always")
    assert inspected["State"]["Health"]["Status"] == "healthy"


def test_hardened_as_the_kernel_sees_it(stack, service):
    host = stack.host(service)
    status = dict(
        line.split(":\t", 1) for line in host.check_output("cat /proc/1/status").splitlines() if ":\t" in line
    )
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    for place in ("/", "/etc", "/usr/bin", "/opt"):
        attempt = host.run(f"touch {place}/carillon-infra-test")
        assert attempt.rc != 0, place
        assert "Read-only" in attempt.stderr, f"{place}: {attempt.stderr}"


def test_no_program_takes_anothers_rights(stack, service):
    # Also a program that has lost the bit: that it is found shows that the search works.
    found = stack.host(service).run("find / -xdev -type f '(' -perm /6000 -o -path /usr/bin/passwd ')'")
    assert found.stdout.split() == ["/usr/bin/passwd"], "setuid or setgid"


def test_nginx_reaches_the_application_and_nothing_behind_it(stack):
    """A way to the broker or the database would be one for whoever gets into nginx."""
    networks = {
        service: set(stack.inspect(service)["NetworkSettings"]["Networks"])
        for service in ("nginx", "uwsgi", "daphne", "runworker", "rabbitmq", "postgresql")
    }
    assert networks["nginx"] < networks["uwsgi"] == networks["daphne"]
    for behind in ("runworker", "rabbitmq", "postgresql"):
        assert not networks["nginx"] & networks[behind], behind
    nginx = stack.host("nginx")
    assert nginx.run("timeout 3 bash -c '</dev/tcp/uwsgi/8050'").rc == 0
    for service, port in (("rabbitmq", 5672), ("postgresql", 5432)):
        address = next(iter(stack.inspect(service)["NetworkSettings"]["Networks"].values()))["IPAddress"]
        assert nginx.run(f"timeout 3 bash -c '</dev/tcp/{address}/{port}'").rc != 0, service


def test_the_source_and_the_secrets_are_read_only(stack):
    for service in ("uwsgi", "daphne", "runworker"):
        writable = {m["Destination"] for m in stack.inspect(service)["Mounts"] if m["RW"]}
        assert writable <= {"/var/lib/carillon/static", "/var/lib/carillon/media", "/run/carillon/metrics"}
    assert not [m for m in stack.inspect("nginx")["Mounts"] if m["RW"]]


def test_files_in_nginx_belong_to_root_and_are_complete(stack):
    host = stack.host("nginx")
    for path in (
        "/etc/nginx/nginx.conf",
        "/etc/nginx/carillon/snippets/routes.conf",
        "/etc/nginx/carillon/snippets/tls.conf",
        "/etc/nginx/carillon/pages/unavailable.html",
    ):
        file = host.file(path)
        assert file.user == "root"
        assert file.mode & 0o022 == 0
    assert host.run("nginx -t -e stderr").rc == 0, "what is configured is what a restart would accept"
    assert not host.file("/etc/nginx/sites-enabled").exists
    assert not host.file("/etc/nginx/conf.d").exists


def test_no_compiler_or_package_tool_of_python_in_the_application(stack):
    host = stack.host("uwsgi")
    for program in ("gcc", "cc", "make", "pip", "pip3"):
        assert not host.exists(program), program


def test_the_state_is_private_on_this_machine(stack):
    assert (stack.state / "env").stat().st_mode & 0o777 == 0o600
    for directory in (stack.state, stack.state / "secrets"):
        assert directory.stat().st_mode & 0o777 == 0o700

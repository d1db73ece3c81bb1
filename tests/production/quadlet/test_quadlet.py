"""The container production under Podman and systemd: what Compose gives it, it has here."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from itertools import pairwise

import pytest
import yaml

from dev.config import ROOT
from tests.infra.stack import wait
from tests.production.hosts import must, wait_for_systemd
from tests.production.quadlet.conftest import HOST

DOCUMENT = yaml.safe_load((ROOT / "compose/production.yml").read_text())
SERVICES = DOCUMENT["services"]
ONCE = ("migrate", "assets")
STAY = sorted(set(SERVICES) - set(ONCE))
FIRST_TO_LAST = (("postgresql", "rabbitmq"), ONCE, ("app",), ("nginx",))


def unit(service: str) -> str:
    return f"carillon-{service}.service"


def show(machine, service: str, name: str) -> str:
    return machine.run(f"systemctl show --value --property {name} {unit(service)}").strip()


def inspect(machine, service: str) -> dict:
    return json.loads(machine.run(f"podman inspect carillon-{service}"))[0]


def address(machine, service: str) -> str:
    return next(iter(inspect(machine, service)["NetworkSettings"]["Networks"].values()))["IPAddress"]


def reaches(machine, service: str, host: str, port: int) -> bool:
    script = f"exec 3<>/dev/tcp/{host}/{port}"
    return machine.host.run(f"podman exec carillon-{service} timeout 5 bash -c '{script}'").rc == 0


def served(machine, stack) -> None:
    """Everything has started, and in order."""
    wait("an event goes all the way", stack.deliver, 120)
    assert_in_order(machine)


def assert_in_order(machine) -> None:
    began = {each: int(show(machine, each, "InactiveExitTimestampMonotonic")) for each in SERVICES}
    ready = {each: int(show(machine, each, "ActiveEnterTimestampMonotonic")) for each in SERVICES}
    for before, after in pairwise(FIRST_TO_LAST):
        assert max(ready[each] for each in before) <= min(began[each] for each in after), (began, ready)


def test_it_starts_in_order_and_the_page_and_the_api_answer(stack, machine):
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=stack.tls())
    )
    with opener.open(f"{stack.values['CARILLON_HTTP_URL']}/", timeout=10) as answer:
        assert answer.url.startswith(stack.values["CARILLON_URL"])
        page = answer.read().decode()
    files = re.findall(r'(?:src|href)="(/static/[^"]+)"', page)
    assert files
    for file in files:
        with opener.open(stack.values["CARILLON_URL"] + file, timeout=10) as answer:
            assert answer.status == 200
    assert stack.api("/api/v2/me/")
    assert_in_order(machine)


def test_an_event_goes_all_the_way(stack):
    assert stack.deliver()


def test_systemd_and_the_generator_have_nothing_to_say(stack, machine):
    done = machine.host.run("/usr/libexec/podman/quadlet -dryrun")
    assert done.rc == 0
    assert not re.search("warning|error|unsupported", done.stderr, re.IGNORECASE), done.stderr
    names = " ".join(unit(service) for service in SERVICES)
    done = machine.host.run(f"systemd-analyze --generators=true verify {names}")
    assert (done.rc, done.stderr.strip()) == (0, "")


@pytest.mark.parametrize("service", STAY)
def test_it_is_read_only_without_root_and_without_capabilities(stack, machine, service):
    found = inspect(machine, service)
    settings = found["HostConfig"]
    assert settings["ReadonlyRootfs"] is True
    assert settings["Privileged"] is False
    assert settings["PidsLimit"] == SERVICES[service]["pids_limit"]
    number, unit_ = re.search(r":-(\d+)([mg])}", SERVICES[service]["mem_limit"]).groups()
    assert settings["Memory"] == int(number) << {"m": 20, "g": 30}[unit_]
    assert found["EffectiveCaps"] in (None, [])
    assert found["BoundingCaps"] in (None, [])
    status = machine.run(f"podman exec carillon-{service} cat /proc/1/status")
    assert "NoNewPrivs:\t1" in status
    assert re.findall(r"Cap\w+:\t(\w+)", status) == ["0" * 16] * 5
    users = machine.run(f"podman top carillon-{service} huser").split()[1:]
    assert users
    assert not {"root", "0"} & set(users)


@pytest.mark.parametrize("service", STAY)
def test_where_it_may_write_is_what_compose_says(stack, machine, service):
    """And /dev/shm, which is Docker's own gift."""
    script = "for d in / /tmp /var/tmp /run /dev /etc /home /dev/shm; do test -w $d && echo $d; done; true"
    writable = set(machine.run(f"podman exec carillon-{service} sh -c '{script}'").split())
    temporary = {mount.partition(":")[0] for mount in SERVICES[service]["tmpfs"]}
    assert writable == {"/dev/shm"} | (temporary & {"/tmp"})
    mounts = machine.run(f"podman exec carillon-{service} cat /proc/mounts")
    for mount in SERVICES[service]["tmpfs"]:
        path, _, said = mount.partition(":")
        options = re.search(rf"^tmpfs {path} tmpfs (\S+)", mounts, re.MULTILINE)[1].split(",")
        assert {"rw", "nosuid", "nodev", "noexec"} <= set(options)
        for option in said.split(",") if said else []:
            name, value = option.split("=")
            # As the kernel shows it.
            value = value.lstrip("0") if name == "mode" else re.sub(r"^(\d+)m$", _kibibytes, value)
            assert f"{name}={value}" in options, (path, options)


def _kibibytes(match: re.Match[str]) -> str:
    return f"{int(match[1]) << 10}k"


def test_nothing_but_nginx_is_published(stack, machine):
    for service in STAY:
        ports = inspect(machine, service)["NetworkSettings"]["Ports"] or {}
        published = {port for port, at in ports.items() if at}
        assert published == ({"80/tcp", "443/tcp"} if service == "nginx" else set())


def test_nginx_reaches_the_application_and_nothing_behind_it(stack, machine):
    """Neither by name nor by address."""
    assert reaches(machine, "nginx", "app", 8050)
    for service, port in (("rabbitmq", 5672), ("postgresql", 5432)):
        assert reaches(machine, "app", service, port)
        assert reaches(machine, "app", address(machine, service), port)
        assert not reaches(machine, "nginx", service, port)
        assert not reaches(machine, "nginx", address(machine, service), port)


def test_secrets_are_files_and_nothing_else(stack, machine):
    words = {path.name: path.read_text().strip() for path in (stack.state / "secrets").iterdir()}
    assert words.pop("secret_key_fallbacks") == ""
    assert len(words) == 5
    places = {
        "units": machine.run("cat /etc/containers/systemd/carillon-* /run/systemd/generator/carillon-*"),
        "podman inspect": machine.run("podman inspect $(podman ps --quiet)"),
        "the journal": machine.run("journalctl --no-pager"),
        "an argv": machine.run("ps -e -o args"),
    }
    for place, text in places.items():
        for name, word in words.items():
            assert word not in text, f"{name} is in {place}"
    for path in ("/etc/carillon", "/etc/carillon/secrets"):
        assert machine.run(f"stat -c '%a %U' {path}") == "700 root\n"


def test_uploads_are_the_application_s_to_write_and_nginx_s_to_read(stack, machine):
    file = "/var/lib/carillon/media/bells.txt"
    machine.run(f"podman exec carillon-app sh -c 'echo rung > {file}'")
    assert machine.run(f"podman exec carillon-nginx cat {file}") == "rung\n"
    assert machine.host.run(f"podman exec carillon-nginx sh -c 'echo > {file}'").rc != 0
    machine.run(f"podman exec carillon-app rm {file}")


def test_it_is_backed_up_as_the_page_says(stack, machine):
    dump = "podman exec carillon-postgresql pg_dump --host=/run/postgresql --username=postgres"
    machine.run(f"{dump} --format=custom carillon > /tmp/carillon.dump")
    listed = machine.run("podman exec -i carillon-postgresql pg_restore --list < /tmp/carillon.dump")
    assert "TABLE DATA public tower_job " in listed


@pytest.mark.parametrize("service", STAY)
def test_a_killed_container_comes_back(stack, machine, service):
    before = {each: inspect(machine, each)["Id"] for each in STAY}
    machine.run(f"podman kill --signal KILL carillon-{service}")

    def back() -> bool:
        again = inspect(machine, service)["Id"] != before[service]
        return again and show(machine, service, "ActiveState") == "active"

    wait(f"{service} runs again", back, 60)
    wait("an event goes all the way", stack.deliver, 60)
    for other in set(STAY) - {service}:
        assert inspect(machine, other)["Id"] == before[other], "one that ends takes no other with it"


def test_a_program_that_is_missing_makes_the_container_unhealthy(stack, machine):
    def health() -> str:
        return inspect(machine, "app")["State"]["Health"]["Status"]

    machine.run("podman exec carillon-app supervisorctl stop runworker")
    try:
        # It may just have been started again, and a failure in its start period counts for nothing.
        start = int(DOCUMENT["x-health"]["start_period"].rstrip("s"))
        wait("unhealthy", lambda: health() == "unhealthy", start + 90)
    finally:
        machine.run("podman exec carillon-app supervisorctl start runworker")
    wait("healthy again", lambda: health() == "healthy", 60)


@pytest.mark.parametrize("service", STAY)
def test_each_ends_by_itself_when_it_is_told_to(stack, machine, service):
    """TERM, and then not KILL."""
    grace = int(SERVICES[service].get("stop_grace_period", "10s").rstrip("s"))
    since = machine.run("date +%s").strip()
    begun = time.monotonic()
    machine.run(f"systemctl stop {unit(service)}")
    took = time.monotonic() - begun
    print(f"stop {service}: {took:.1f} s of {grace}")
    assert took < grace
    assert show(machine, service, "Result") == "success"
    said = machine.run(f"journalctl --no-pager --since @{since} --unit {unit(service)}")
    assert "SIGKILL" not in said
    assert machine.host.run(f"podman container exists carillon-{service}").rc == 1
    machine.run("systemctl start carillon-nginx carillon-app carillon-rabbitmq carillon-postgresql")
    wait("an event goes all the way", stack.deliver, 60)


def test_all_are_stopped_at_once_and_started_again(stack, machine):
    job = stack.api("/api/v2/jobs/", {"name": "before the night"})
    machine.run("systemctl stop carillon.slice")
    assert machine.run("podman ps --all --quiet") == ""
    machine.run("systemctl start carillon-nginx")
    served(machine, stack)
    assert stack.api(f"/api/v2/jobs/{job['id']}/")["name"] == "before the night"


def test_all_are_restarted_at_once_as_for_an_upgrade(stack, machine):
    before = {service: inspect(machine, service)["Id"] for service in STAY}
    machine.run("systemctl restart carillon.slice")
    served(machine, stack)
    after = {service: inspect(machine, service)["Id"] for service in STAY}
    assert {service for service in STAY if before[service] == after[service]} == set()


def test_what_cannot_migrate_does_not_start(stack, machine):
    override = "/etc/containers/systemd/carillon-migrate.container.d"
    machine.run("systemctl stop carillon.slice")
    machine.run(
        f"mkdir {override} && printf '[Container]\\nExec=manage no_such_command\\n' > {override}/x.conf"
    )
    try:
        machine.run("systemctl daemon-reload")
        done = machine.host.run("systemctl start carillon-app")
        assert done.rc != 0
        assert "dependency" in done.stderr.lower()
        assert show(machine, "migrate", "ActiveState") == "failed"
    finally:
        machine.run(f"rm -r {override} && systemctl daemon-reload && systemctl start carillon-nginx")
    served(machine, stack)


def test_a_missing_secret_is_named_and_no_folder_made(stack, machine):
    secret = "/etc/carillon/secrets/secret_key"
    machine.run(f"mv {secret} {secret}.away")
    try:
        since = machine.run("date +%s").strip()
        assert machine.host.run("systemctl restart carillon-assets").rc != 0
        said = machine.run(f"journalctl --no-pager --since @{since} --unit {unit('assets')}")
        assert secret in said
        assert "no such file or directory" in said
        assert machine.host.run(f"test -e {secret}").rc == 1
    finally:
        machine.run(f"mv {secret}.away {secret}")
        machine.run("systemctl start carillon-nginx carillon-app")
    wait("an event goes all the way", stack.deliver, 60)


def test_after_a_reboot_all_of_it_is_there(stack, machine):
    job = stack.api("/api/v2/jobs/", {"name": "before the reboot"})
    begun = time.monotonic()
    must("restart", "--time", "120", HOST, seconds=180)
    wait_for_systemd(machine)
    served(machine, stack)
    print(f"from the reboot to an event: {time.monotonic() - begun:.0f} s")
    assert stack.api(f"/api/v2/jobs/{job['id']}/")["name"] == "before the reboot"
    assert machine.run("systemctl --failed --no-legend") == ""


def test_it_goes_as_the_page_says(stack, machine):
    machine.run("systemctl stop carillon.slice")
    machine.run("rm /etc/containers/systemd/carillon-* && systemctl daemon-reload")
    assert machine.run("podman ps --all --quiet") == ""
    assert machine.host.run("systemctl cat carillon-nginx").rc != 0
    volumes = sorted(machine.run("podman volume ls --quiet").split())
    assert volumes == ["carillon_media", "carillon_postgresql", "carillon_rabbitmq", "carillon_static"]
    machine.run(f"podman volume rm {' '.join(volumes)} && podman network rm carillon_front carillon_default")

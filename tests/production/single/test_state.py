"""A converged single host, seen from inside and outside by something that is not Ansible."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import socket
import stat
from pathlib import Path

import pytest

from tests.production.conftest import ROOT, wait_for
from tests.production.containers import programs
from tests.production.single.conftest import database_version

DECLARED = {
    *("uwsgi:uwsgi_0", "uwsgi:uwsgi_1", "daphne:daphne_0", "daphne:daphne_1", "runworker", "listener"),
    *programs(),
}
INNER_PORTS = (8050, 8051, 5671, 5672, 15672, 15692, 25672, 4369, 5432)


def test_only_nginx_listens_on_addresses_of_the_network(machine):
    rows = machine.run("ss -Hltnp").splitlines()
    outside = {}
    for row in rows:
        address, _, port = row.split()[3].rpartition(":")
        # 127.0.0.11 is the engine's DNS server.
        if not address.startswith("127.") and address != "[::1]":
            outside[int(port)] = re.search(r'"([^"]+)"', row)[1]
    assert outside == {80: "nginx", 443: "nginx"}


def test_each_inner_port_listens_on_the_loopback_for_the_program_it_belongs_to(machine):
    owners = {}
    for row in machine.run("ss -Hltnp").splitlines():
        if row.split()[3].startswith("127.0.0.1:"):
            owners[int(row.split()[3].rpartition(":")[2])] = set(re.findall(r'"([^"]+)"', row))
    assert owners[8050] >= {"supervisord"}
    assert owners[8051] >= {"supervisord"}
    assert owners[5432] == {"postgres"}
    assert owners[5672] == {"beam.smp"}


def reachable(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("port", INNER_PORTS)
def test_inner_ports_do_not_answer_from_outside(machine, port):
    assert not reachable(machine.address, port)


def test_the_packet_filter_would_stop_them_even_if_they_listened(machine):
    # A listener on every address and a port that no rule names: the filter alone is in the way.
    machine.run("setsid python3 -m http.server 9999 >/dev/null 2>&1 & echo $! > /tmp/listener.pid")
    try:
        wait_for(lambda: machine.host.socket("tcp://0.0.0.0:9999").is_listening, 20, "the listener")
        assert not reachable(machine.address, 9999)
    finally:
        machine.run("kill $(cat /tmp/listener.pid)")


def test_the_programs_of_supervisord_are_the_declared_ones_and_none_is_young(machine):
    assert set(machine.programs()) == DECLARED
    # RUNNING is not enough: a program that ends again and again is RUNNING most of the time.
    wait_for(
        lambda: all(state == "RUNNING" and age > 10 for state, age in machine.programs().values()),
        60,
        "every program has run for 10 s",
        lambda: f"{machine.programs()}\n{machine.logs()}",
    )


@pytest.mark.parametrize("unit", ["nginx", "rabbitmq-server", "postgresql", "carillon", "carillon-firewall"])
def test_units_are_enabled_and_run(machine, unit):
    assert machine.host.service(unit).is_enabled
    # The generator of postgresql.service, which does nothing itself, starts it.
    instance = f"postgresql@{database_version(machine)}-main" if unit == "postgresql" else unit
    assert machine.host.service(instance).is_running


def test_no_unit_failed(machine):
    assert machine.run("systemctl --failed --no-legend") == ""


def test_who_runs_what(machine):
    users = {}
    for process in machine.processes():
        program = Path(process["argv"][0].split(":")[0]).name
        users.setdefault(program, set()).add(process["user"])
        line = " ".join(process["argv"])
        for name in ("bin/uwsgi", "carillon.server", "django runworker", "bin/supervisord"):
            if name in line:
                assert process["user"] == "carillon", line
    assert users["beam.smp"] == {"rabbitmq"}
    assert users["postgres"] == {"postgres"}
    workers = [p for p in machine.processes() if p["argv"][0].startswith("nginx: worker process")]
    assert workers
    assert {p["user"] for p in workers} == {"www-data"}


@pytest.mark.parametrize(
    ("path", "user", "group", "mode"),
    [
        ("/opt/carillon/current/etc/carillon.env", "root", "carillon", 0o640),
        ("/etc/carillon/secrets", "root", "carillon", 0o750),
        ("/etc/carillon/secrets/secret-key", "root", "carillon", 0o640),
        ("/etc/carillon/secrets/database-password", "root", "carillon", 0o640),
        ("/etc/carillon/secrets/amqp-password", "root", "carillon", 0o640),
        ("/etc/carillon/tls/privkey.pem", "root", "root", 0o600),
        ("/etc/carillon/tls/fullchain.pem", "root", "root", 0o644),
        ("/etc/rabbitmq/definitions.json", "root", "rabbitmq", 0o640),
        ("/var/lib/rabbitmq/.erlang.cookie", "rabbitmq", "rabbitmq", 0o400),
        ("/run/carillon/supervisor.sock", "carillon", "carillon", 0o700),
        ("/var/log/carillon/carillon.log", "carillon", "adm", 0o640),
        ("/etc/nginx/carillon/site.conf", "root", "root", 0o644),
    ],
)
def test_owners_and_modes(machine, path, user, group, mode):
    file = machine.host.file(path)
    assert (file.user, file.group, oct(file.mode)) == (user, group, oct(mode))


def test_secrets_on_the_control_node_are_for_their_owner_alone(secrets_dir):
    assert stat.S_IMODE(secrets_dir.stat().st_mode) == 0o700
    for path in secrets_dir.rglob("*"):
        if path.is_file() and path.suffix not in (".crt", ".lock") and not path.name.startswith("."):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def secrets(secrets_dir: Path) -> dict[str, str]:
    names = ("secret-key", "database-password-a", "amqp-password-a", "rabbitmq-cookie", "admin-password")
    return {name: (secrets_dir / name).read_text().strip() for name in names}


def test_no_secret_in_an_argv_an_environment_or_a_log(machine, secrets_dir):
    log = machine.run(
        "cat /var/log/carillon/*.log /var/log/rabbitmq/*.log /var/log/nginx/*.log /var/log/postgresql/*.log"
    )
    log += machine.run("journalctl --no-pager")
    for name, value in secrets(secrets_dir).items():
        assert len(value) >= 24
        for process in machine.processes():
            assert value not in " ".join(process["argv"]), f"{name} in the argv of {process['argv'][0]}"
            assert value not in " ".join(process["environ"]), (
                f"{name} in the environment of {process['argv'][0]}"
            )
        assert value not in log, f"{name} is in a log"


def test_the_broker_has_one_login_for_one_virtual_host_and_no_guest(machine, secrets_dir):
    users = json.loads(machine.run("rabbitmqctl --quiet --formatter json list_users"))
    assert users == [{"user": "carillon_a", "tags": []}]
    permissions = json.loads(
        machine.run("rabbitmqctl --quiet --formatter json list_user_permissions carillon_a")
    )
    assert permissions == [{"vhost": "carillon", "configure": ".*", "write": ".*", "read": ".*"}]
    # The default vhost, which every new user would look into, is not even there.
    assert machine.run("rabbitmqctl --quiet list_vhosts --no-table-headers").split() == ["carillon"]


def test_the_broker_has_limits_and_raises_an_alarm_where_it_is_told_to(machine):
    limits = json.loads(
        machine.run("rabbitmqctl --quiet --formatter json list_vhost_limits --vhost carillon")
    )
    assert json.loads(limits["value"]) == {"max-connections": 2000, "max-queues": 5000}
    status = json.loads(machine.run("rabbitmq-diagnostics --quiet --formatter json status"))
    assert status["vm_memory_high_watermark_setting"] == {"relative": 0.25}
    assert status["disk_free_limit"] == 1024 * 1000**2
    assert status["alarms"] == []
    machine.run("rabbitmqctl --quiet set_disk_free_limit 100000GB")
    try:
        wait_for(
            lambda: machine.host.run("rabbitmq-diagnostics --quiet check_local_alarms").rc != 0,
            30,
            "an alarm of the disk",
        )
    finally:
        machine.run("rabbitmqctl --quiet set_disk_free_limit 1024MB")
    wait_for(
        lambda: machine.host.run("rabbitmq-diagnostics --quiet check_local_alarms").rc == 0,
        30,
        "the end of the alarm",
    )


def test_the_filter_makes_the_hash_that_rabbitmq_checks(secrets_dir):
    from importlib import util

    spec = util.spec_from_file_location("filters", ROOT / "ansible/plugins/filter/carillon.py")
    filters = util.module_from_spec(spec)
    spec.loader.exec_module(filters)
    made = base64.b64decode(filters.rabbitmq_password_hash("pässword", "salt", "user"))
    assert made[:4] == hmac.new(b"salt", b"user", hashlib.sha256).digest()[:4]
    assert made[4:] == hashlib.sha256(made[:4] + "pässword".encode()).digest()


def test_the_node_has_a_name_that_does_not_depend_on_the_host(machine):
    status = json.loads(machine.run("rabbitmqctl --quiet --formatter json cluster_status"))
    assert status["running_nodes"] == ["rabbit@localhost"]
    assert machine.run("hostname").strip() != "localhost"


def test_the_database_lets_in_who_has_the_password_and_nobody_else(machine):
    shown = machine.run(f"cat /etc/postgresql/{database_version(machine)}/main/pg_hba.conf")
    hba = [line.split() for line in shown.splitlines() if line and not line.startswith("#")]
    assert hba == [
        ["local", "all", "postgres", "peer"],
        ["host", "carillon,carillon_restored", "+carillon", "127.0.0.1/32", "scram-sha-256"],
    ]
    denied = machine.host.run("PGPASSWORD=wrong psql -h 127.0.0.1 -U carillon_a carillon -c 'select 1'")
    assert denied.rc != 0
    assert "password authentication failed" in denied.stderr
    owners = machine.run(
        "runuser -u postgres -- psql -Atd carillon -c "
        "\"select distinct tableowner from pg_tables where schemaname = 'public'\""
    ).split()
    assert owners == ["carillon"], "a login that will be rotated away must own nothing"


def test_static_files_are_the_bytes_of_the_repository(machine):
    pairs = [
        (path, f"/etc/nginx/carillon/snippets/{path.name}") for path in (ROOT / "nginx/snippets").iterdir()
    ]
    pairs += [(path, f"/etc/nginx/carillon/pages/{path.name}") for path in (ROOT / "nginx/pages").iterdir()]
    pairs += [
        (path, f"/etc/carillon/supervisord/conf.d/{path.name}")
        for path in (ROOT / "supervisord/conf.d").iterdir()
    ]
    pairs += [
        (ROOT / "nginx/nginx.conf", "/etc/nginx/nginx.conf"),
        (ROOT / "supervisord/supervisord.conf", "/etc/carillon/supervisord/supervisord.conf"),
        (ROOT / "supervisord/listener.py", "/etc/carillon/supervisord/listener.py"),
        (ROOT / "supervisord/uwsgi.ini", "/etc/carillon/uwsgi.ini"),
    ]
    sums = dict(
        reversed(line.split(maxsplit=1))
        for line in machine.run("sha256sum " + " ".join(b for _, b in pairs)).splitlines()
    )
    for here, there in pairs:
        assert sums[there] == hashlib.sha256(here.read_bytes()).hexdigest(), there


def test_the_unit_is_hardened(machine):
    score = machine.run("systemd-analyze security carillon.service --no-pager | tail -n 1")
    assert float(re.search(r"carillon.service: ([0-9.]+)", score)[1]) <= 3.0, score


def test_nginx_accepts_its_configuration(machine):
    machine.run("nginx -t -q")


def test_no_package_index_is_needed_on_the_host(machine):
    assert machine.run("ls /opt/carillon/wheelhouse") == ""
    # As many distributions as the lock names, and the three of this repository.
    lock = (ROOT / "requirements/app.txt").read_text()
    locked = set(re.findall(r"^([a-z0-9.-]+)(?:\[.*\])?==", lock, re.M))
    present = {
        re.sub("[._]", "-", row["name"].lower())
        for row in json.loads(
            machine.run("/opt/carillon/current/bin/pip --disable-pip-version-check list --format json")
        )
    }
    own = {"carillon-project", "channels-asgi-amqp", "django-carillon"}
    assert present - {"pip"} <= locked | own
    assert own <= present


CHECK = "runuser -u carillon -- carillon check --url https://chimes.test --address 127.0.0.1"


def test_the_check_on_the_host_sends_an_event_all_the_way(machine, secrets_dir):
    authority = (secrets_dir / "tls/authority.crt").read_text()
    assert "an event came back in" in machine.host.run(f"echo '{authority}' | {CHECK} --ca -").stderr
    # The check is one of the certificate, too.
    refused = machine.host.run(CHECK)
    assert refused.rc == 75
    assert "cannot be reached" in refused.stderr
    assert "Then name its file: --ca" in refused.stderr


def test_the_check_names_the_hop_that_fails(machine, secrets_dir):
    authority = (secrets_dir / "tls/authority.crt").read_text()
    machine.run("carillon-ctl stop runworker")
    try:
        said = machine.host.run(f"echo '{authority}' | {CHECK} --ca -")
    finally:
        machine.run("carillon-ctl start runworker")
    assert said.rc == 75
    assert "is runworker well?" in said.stderr

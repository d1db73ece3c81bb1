"""What operators do next, under load: upgrade, roll back, rotate; then back up, wipe, restore. Last, because
it changes the host.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time

import pytest

from dev.production_testing import RELEASE_MARKER
from tests.production.conftest import FULL, wait_for
from tests.production.ledger import Ledger

# What takes minutes and changes seldom.
full = pytest.mark.skipif(not FULL, reason="minutes: make test-production-full")


@pytest.fixture
def another_release(machine):
    """A checkout of a release after this one: a new file is enough for it to be another."""
    marker = RELEASE_MARKER
    marker.write_text(
        '"""Made by a test, which takes it away again: a release that differs from the one before."""\n'
    )
    yield marker
    marker.unlink()


def current(machine) -> str:
    return machine.run("readlink /opt/carillon/current").strip()


def supervisord(machine) -> str:
    return machine.run("systemctl show -P MainPID carillon").strip()


def test_upgrade_under_load_fails_no_request(machine, stack, playbook, another_release, healthy):
    before, process = current(machine), supervisord(machine)
    start = time.monotonic()
    with Ledger(stack) as ledger:
        playbook("upgrade.yml")
    print(f"upgrade: {time.monotonic() - start:.0f} s")
    ledger.assert_nothing_lost()
    assert current(machine) != before
    assert supervisord(machine) == process, "supervisord was restarted"
    running = {
        argument.split("/")[4]
        for row in machine.processes()
        for argument in row["argv"][:1]
        if "/releases/" in argument and "bin/supervisord" not in " ".join(row["argv"])
    }
    assert running == {current(machine).removeprefix("releases/")}
    healthy()


def test_rollback_under_load_fails_no_request(machine, stack, playbook, healthy):
    now, before = current(machine), machine.run("readlink /opt/carillon/previous").strip()
    assert before != now
    with Ledger(stack) as ledger:
        playbook("rollback.yml")
    ledger.assert_nothing_lost()
    assert current(machine) == before
    assert machine.run("readlink /opt/carillon/previous").strip() == now
    healthy()


def test_a_rollback_to_what_is_not_there_changes_nothing(machine, playbook):
    before = current(machine)
    output = " ".join(playbook("rollback.yml", "-e", "carillon_rollback_to=0.0.0-none", expect=2).split())
    assert "carillon-prod-single: /opt/carillon/releases/0.0.0-none is not there" in output
    assert current(machine) == before


@full
def test_rotation_under_load_fails_no_request_and_leaves_no_old_login(
    machine, stack, playbook, secrets_dir, healthy
):
    key = (secrets_dir / "secret-key").read_text()
    with Ledger(stack) as ledger:
        playbook("rotate.yml")
    ledger.assert_nothing_lost()
    assert [
        user["user"] for user in json.loads(machine.run("rabbitmqctl --quiet --formatter json list_users"))
    ] == ["carillon_b"]
    roles = machine.run(
        "runuser -u postgres -- psql -Atc"
        " \"select rolname from pg_roles where rolname like 'carillon%' order by 1\""
    )
    assert roles.split() == ["carillon", "carillon_b"]
    assert (secrets_dir / "secret-key").read_text() != key
    assert (secrets_dir / "secret-key-fallbacks").read_text().strip() == key.strip()
    healthy()


@full
def test_backup_wipe_restore_brings_the_rows_back(machine, stack, playbook, secrets_dir, tmp_path, healthy):
    job = stack.api("/api/v2/jobs/", {"name": "kept through the fire"})
    playbook("backup.yml", "-e", f"backup_dir={tmp_path}/backup")
    assert {
        path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "backup").iterdir()
    } == dict.fromkeys(("secrets.tar", "database.dump", "definitions.json", "certificates.tar"), "0o600")
    # The fire: rows, logins and the control node's secrets are gone. (The host itself stays: `single` begins
    # with a bare one.)
    machine.run("carillon-ctl stop all")
    machine.run("runuser -u postgres -- psql -c 'drop database carillon with (force)'")
    (user,) = json.loads(machine.run("rabbitmqctl --quiet --formatter json list_users"))
    machine.run(
        f"rabbitmqctl --quiet delete_vhost carillon && rabbitmqctl --quiet delete_user {user['user']}"
    )
    machine.run("rm -rf /etc/carillon/secrets /etc/carillon/carillon.env")
    kept = tmp_path / "kept"
    shutil.move(secrets_dir, kept)
    start = time.monotonic()
    playbook("restore.yml", "-e", f"restore_from={tmp_path}/backup")
    print(f"restore: {time.monotonic() - start:.0f} s")
    assert (secrets_dir / "secret-key").read_text() == (kept / "secret-key").read_text()
    healthy()
    assert stack.api(f"/api/v2/jobs/{job['id']}/")["name"] == "kept through the fire"


@pytest.fixture
def acme(machine, tmp_path):
    """Pebble, Let's Encrypt's own ACME server for tests, on the host; the variables that have it asked."""
    machine.run("DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends pebble")
    machine.run("mkdir -p /root/pebble && cp /etc/carillon/tls/*.pem /root/pebble")
    settings = {
        "listenAddress": "127.0.0.1:14000",
        "managementListenAddress": "127.0.0.1:15000",
        "certificate": "/root/pebble/fullchain.pem",
        "privateKey": "/root/pebble/privkey.pem",
        "httpPort": 80,
        "tlsPort": 443,
    }
    machine.run(f"echo {shlex.quote(json.dumps({'pebble': settings}))} > /root/pebble/config.json")
    machine.run("cp /etc/hosts /root/pebble/hosts && echo 127.0.0.1 chimes.test >> /etc/hosts")
    machine.run(
        "systemd-run --unit pebble --setenv PEBBLE_VA_NOSLEEP=1 pebble -config /root/pebble/config.json"
    )
    try:
        root = wait_for(
            lambda: machine.host.run("curl -sfk https://localhost:15000/roots/0").stdout,
            30,
            "pebble",
            machine.logs,
        )
        (tmp_path / "root.pem").write_text(root)
        yield {
            "tls_mode": "letsencrypt",
            "tls_acme_email": "operators@chimes.test",
            "tls_acme_directory": "https://localhost:14000/dir",
            "tls_acme_ca_file": f"{os.environ['CARILLON_SECRETS_DIR']}/tls/authority.crt",
            "tls_names": ["chimes.test"],
            "check_ca_file": str(tmp_path / "root.pem"),
        }
    finally:
        machine.run("systemctl stop pebble; cat /root/pebble/hosts > /etc/hosts")


def served(machine) -> str:
    """Issuer and serial number of the certificate that nginx shows."""
    return machine.run(
        "openssl s_client -connect 127.0.0.1:443 -servername chimes.test </dev/null 2>/dev/null"
        " | openssl x509 -noout -issuer -serial"
    )


@full
def test_a_certificate_comes_by_acme_and_its_renewal_needs_nobody(machine, playbook, acme, healthy):
    process = machine.run("systemctl show -P MainPID nginx")
    playbook("site.yml", "-e", json.dumps(acme))
    first = served(machine)
    assert "Pebble" in first
    assert "changed=0" in playbook("site.yml", "-e", json.dumps(acme))
    # As the timer does it, when it is due.
    assert machine.host.service("certbot.timer").is_running
    machine.run("sed -i '1i renew_before_expiry = 5000 days' /etc/letsencrypt/renewal/carillon.conf")
    machine.run("systemctl start certbot.service")
    # A reload returns before the new workers serve.
    wait_for(lambda: served(machine) != first, 30, "the renewed certificate", machine.logs)
    assert "Pebble" in served(machine)
    assert machine.run("systemctl show -P MainPID nginx") == process, "nginx was restarted"
    machine.run(
        "systemctl disable --now certbot.timer && cd /etc/letsencrypt && rm -r live renewal archive accounts"
    )
    playbook("site.yml")
    assert "Carillon" in served(machine)
    healthy()


@full
def test_the_next_run_changes_nothing(playbook):
    start = time.monotonic()
    output = playbook("site.yml")
    print(f"run on a converged host: {time.monotonic() - start:.0f} s")
    assert "changed=0" in output, "\n".join(line for line in output.splitlines() if "changed:" in line)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-e", '{"common_somaxconn": "many"}'], "common_somaxconn"),
        (["-e", "ssl_certificate=/x.pem"], "the variable ssl_certificate is now tls_certificate_file"),
        (["-e", '{"common_distributions": {"Debian": ["12"]}}'], "supported are Debian 12"),
        (
            ["-e", '{"common_releases": ["Debian 13", "Ubuntu 24"]}'],
            "hosts run Debian 13 and Ubuntu 24. All must run the same",
        ),
        (
            [
                "-e",
                "tls_mode=files",
                "-e",
                "tls_certificate_file=/nowhere.pem",
                "-e",
                "tls_key_file=/nowhere.key",
            ],
            "tls_certificate_file (/nowhere.pem) is no file on the control node",
        ),
        (["-e", "carillon_domain=https://chimes.test/"], "carillon_domain must be the public host name"),
        (["-e", '{"nginx_trusted_proxies": ["balancer.test"]}'], "which is no address or network"),
        (["-e", '{"rabbitmq_memory_watermark": 40}'], "is a share of the memory, between 0 and 1"),
    ],
)
def test_a_mistake_stops_before_harm_with_words(machine, playbook, arguments, message):
    output = " ".join(playbook("site.yml", *arguments, expect=2).split())
    assert message in output, output[-3000:]
    assert "carillon-prod-single" in output
    assert "PLAY [Ground for every service]" not in output


def test_a_clock_that_is_an_hour_off_stops_the_run(machine, playbook):
    # A container has its machine's clock: what asks for the time is told another one.
    machine.run(
        "printf '#!/bin/sh\\nexec /bin/date --date=-1hour \"$@\"\\n' > /usr/local/bin/date"
        " && chmod 0755 /usr/local/bin/date"
    )
    try:
        output = " ".join(playbook("site.yml", expect=2).split())
    finally:
        machine.run("rm /usr/local/bin/date")
    assert "carillon-prod-single: its clock says" in output
    assert "Set the clock" in output
    assert "PLAY [Ground for every service]" not in output


def test_a_port_that_is_taken_is_named_with_its_holder(machine, playbook):
    machine.run(
        "systemctl stop nginx &&"
        " (setsid python3 -m http.server 443 --bind 127.0.0.1 >/dev/null 2>&1 & echo $! > /tmp/pid)"
    )
    try:
        wait_for(lambda: machine.host.socket("tcp://127.0.0.1:443").is_listening, 30, "a foreign listener")
        output = " ".join(playbook("site.yml", expect=2).split())
        assert 'port 443 is taken by "python3"' in output
    finally:
        machine.run("kill $(cat /tmp/pid); systemctl start nginx")


def test_a_broker_that_does_not_join_stops_the_run(playbook):
    nodes = ["rabbit@elsewhere", "rabbit@localhost"]
    output = " ".join(playbook("site.yml", "-e", json.dumps({"rabbitmq_nodes": nodes}), expect=2).split())
    assert (
        "carillon-prod-single: rabbit@localhost is no running member of the cluster with rabbit@elsewhere"
        in output
    )
    assert "rabbitmq-cookie" in output
    assert "PLAY [Application]" not in output


def test_a_broken_site_file_leaves_the_running_one(machine, stack, playbook, tmp_path):
    (tmp_path / "broken.conf").write_text("location /mine { nonsense; }\n")
    output = playbook(
        "site.yml", "-e", json.dumps({"nginx_drop_ins": [str(tmp_path / "broken.conf")]}), expect=2
    )
    assert "nonsense" in output
    assert stack.api("/api/v2/me/")["count"] == 1
    machine.run("rm /etc/nginx/carillon/site.d/broken.conf && nginx -t -q")


@full
def test_a_location_of_ones_own_is_served(stack, playbook, machine, tmp_path):
    (tmp_path / "mine.conf").write_text(
        'location = /mine { default_type text/plain; return 200 "mine\\n"; }\n'
    )
    playbook("site.yml", "-e", json.dumps({"nginx_drop_ins": [str(tmp_path / "mine.conf")]}))
    answer = subprocess.check_output(["curl", "-sk", f"https://{machine.address}/mine"], text=True)
    assert answer == "mine\n"

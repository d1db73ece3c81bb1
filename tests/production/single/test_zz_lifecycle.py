"""What operators do next, under load: upgrade, roll back, rotate; then back up, wipe, restore. Last, because
it changes the host.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time

import pytest

from tests.production.conftest import ROOT, wait_for
from tests.production.ledger import Ledger


@pytest.fixture
def another_release(machine):
    """A checkout of a release after this one: a new file is enough for it to be another."""
    marker = ROOT / "src/carillon/_release_marker.py"
    marker.write_text(
        '"""Made by a test, which takes it away again: a release that differs from the one before."""\n'
    )
    yield marker
    marker.unlink()


def current(machine) -> str:
    return machine.run("readlink /opt/carillon/current").strip()


def supervisord(machine) -> str:
    return machine.run("systemctl show -P MainPID carillon").strip()


def assert_nothing_lost(ledger: Ledger) -> None:
    missing = ledger.wait_until_heard()
    print(ledger.report())
    assert ledger.failures == []
    assert ledger.requests > 20
    # Version 1 of the protocol has no resume: what was broadcast while the one client was between two daphnes
    # it cannot hear. What must not happen is that more is missing than fell into those moments.
    assert len(missing) <= 10 * max(ledger.reconnects, 0), sorted(missing)


def test_upgrade_and_rollback_under_load_fail_no_request(machine, stack, playbook, another_release, healthy):
    before, process = current(machine), supervisord(machine)
    start = time.monotonic()
    with Ledger(stack) as ledger:
        playbook("upgrade.yml")
    print(f"upgrade: {time.monotonic() - start:.0f} s")
    assert_nothing_lost(ledger)
    assert current(machine) != before
    assert supervisord(machine) == process, "supervisord was restarted"
    running = {
        argument.split("/")[4]
        for row in machine.processes()
        for argument in row["argv"][1:2]
        if "/releases/" in argument and "supervisord" not in argument
    }
    assert running == {current(machine).removeprefix("releases/")}
    another_release.unlink()
    try:
        with Ledger(stack) as ledger:
            playbook("rollback.yml")
    finally:
        another_release.touch()
    assert_nothing_lost(ledger)
    assert current(machine) == before
    healthy()


def test_rotation_under_load_fails_no_request_and_leaves_no_old_login(
    machine, stack, playbook, secrets_dir, healthy
):
    key = (secrets_dir / "secret-key").read_text()
    with Ledger(stack) as ledger:
        playbook("rotate.yml")
    assert_nothing_lost(ledger)
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
    machine.run("rabbitmqctl --quiet delete_vhost carillon && rabbitmqctl --quiet delete_user carillon_b")
    machine.run("rm -rf /etc/carillon/secrets /etc/carillon/carillon.env")
    kept = tmp_path / "kept"
    shutil.move(secrets_dir, kept)
    start = time.monotonic()
    playbook("restore.yml", "-e", f"restore_from={tmp_path}/backup")
    print(f"restore: {time.monotonic() - start:.0f} s")
    assert (secrets_dir / "secret-key").read_text() == (kept / "secret-key").read_text()
    healthy()
    assert stack.api(f"/api/v2/jobs/{job['id']}/")["name"] == "kept through the fire"


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
        (["-e", '{"common_clock_tolerance": -1}'], "Set the clock"),
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


def test_a_broken_site_file_leaves_the_running_one(machine, stack, playbook, tmp_path):
    (tmp_path / "broken.conf").write_text("location /mine { nonsense; }\n")
    output = playbook(
        "site.yml", "-e", json.dumps({"nginx_drop_ins": [str(tmp_path / "broken.conf")]}), expect=2
    )
    assert "nonsense" in output
    assert stack.api("/api/v2/me/")["count"] == 1
    machine.run("rm /etc/nginx/carillon/site.d/broken.conf && nginx -t -q")


def test_a_location_of_ones_own_is_served(stack, playbook, machine, tmp_path):
    (tmp_path / "mine.conf").write_text(
        'location = /mine { default_type text/plain; return 200 "mine\\n"; }\n'
    )
    playbook("site.yml", "-e", json.dumps({"nginx_drop_ins": [str(tmp_path / "mine.conf")]}))
    answer = subprocess.check_output(["curl", "-sk", f"https://{machine.address}/mine"], text=True)
    assert answer == "mine\n"

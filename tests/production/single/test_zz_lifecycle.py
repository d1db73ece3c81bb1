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
import yaml

from dev.production_testing import MARKERS, PAGE_MARKER, PROGRAM_MARKER, RELEASE_MARKER
from tests.production.conftest import FULL, ROOT, wait_for
from tests.production.hosts import current
from tests.production.ledger import Ledger
from tests.production.single.conftest import database_version

# What takes minutes and changes seldom.
full = pytest.mark.skipif(not FULL, reason="minutes: make test-production-full")


@pytest.fixture
def another_release(machine):
    """A checkout of a release after this one: with a file, a program and a page more, and with other groups.

    supervisord reads its files in the order of their names: to what stands here the groups' own files add.
    """
    RELEASE_MARKER.write_text(
        '"""Made by a test, which takes it away again: a release that differs from the one before."""\n'
    )
    groups = (f"[fcgi-program:{name}]\nenvironment = RELEASE_MARKER=1\n" for name in ("uwsgi", "daphne"))
    PROGRAM_MARKER.write_text(
        "[program:_release_marker]\ncommand = /usr/bin/sleep infinity\n" + "".join(groups)
    )
    PAGE_MARKER.write_text("marked\n")
    yield
    for marker in MARKERS:
        marker.unlink()


def supervisord(machine) -> str:
    return machine.run("systemctl show -P MainPID carillon").strip()


def running(machine) -> set[str]:
    """Releases that programs run from; supervisord may be of an older one."""
    return {
        f"releases/{argument.split('/')[4]}"
        for row in machine.processes()
        for argument in row["argv"][:1]
        if "/releases/" in argument and "bin/supervisord" not in " ".join(row["argv"])
    }


PAGE = "/etc/nginx/carillon/pages/_release_marker.html"


def marked(machine) -> set[str]:
    """Groups that were replaced by those of the release after this one."""
    return {
        group
        for group, command in (("uwsgi", "bin/uwsgi --ini"), ("daphne", "carillon.server --fd"))
        for row in machine.processes()
        if command in " ".join(row["argv"]) and "RELEASE_MARKER=1" in row["environ"]
    }


def pids(machine) -> dict[str, str]:
    return {name: machine.run(f"carillon-ctl pid {name}").strip() for name in machine.programs()}


@pytest.fixture(scope="module")
def first(machine) -> str:
    """The release that ran before all of this."""
    return current(machine)


def test_upgrade_under_load_though_it_was_killed_fails_no_request(
    machine, stack, playbook, first, another_release, healthy
):
    """With the release in use and no program that runs it. One that nobody kills: the drill's."""
    process = supervisord(machine)
    with Ledger(stack) as ledger:
        playbook.kill_at("supervisord : Programs that differ, one group after another", "upgrade.yml")
        start = time.monotonic()
        playbook("upgrade.yml")
    print(f"the second upgrade: {time.monotonic() - start:.0f} s")
    ledger.assert_nothing_lost()
    assert current(machine) != first
    assert supervisord(machine) == process, "supervisord was restarted"
    assert running(machine) == {current(machine)}
    assert "_release_marker" in machine.programs()
    assert marked(machine) == {"uwsgi", "daphne"}
    assert machine.host.file(PAGE).exists
    healthy()


def test_rollback_under_load_fails_no_request(machine, stack, playbook, first, healthy):
    assert current(machine) != first
    with Ledger(stack) as ledger:
        playbook("rollback.yml")
    ledger.assert_nothing_lost()
    assert current(machine) == first
    assert running(machine) == {first}
    assert "_release_marker" not in machine.programs(), "a program of the release that is no more"
    assert marked(machine) == set()
    assert not machine.host.file(PAGE).exists, "a page of the release that is no more"
    healthy()


def test_a_second_rollback_changes_nothing(machine, playbook, first):
    before = pids(machine)
    assert "changed=0" in playbook("rollback.yml")
    assert (current(machine), pids(machine)) == (first, before)


def test_every_playbook_keeps_to_the_release_until_the_next_upgrade(
    machine, playbook, first, another_release
):
    output = playbook("site.yml")
    assert "changed=0" in output, "\n".join(line for line in output.splitlines() if "changed:" in line)
    assert f"went back to {first.removeprefix('releases/')}" in " ".join(output.split())
    assert current(machine) == first


@full
@pytest.mark.parametrize(
    "task",
    [
        "Release",  # nothing is done yet
        "carillon : Are there migrations to apply",  # installed beside the one that runs
        "carillon : The release in use",
        "supervisord : Programs that differ, one group after another",  # in use, and no program runs it
        "carillon : The release in use, and the one before",
    ],
)
def test_an_upgrade_that_was_killed_is_rolled_back_with_no_request_lost(
    machine, stack, playbook, first, another_release, task
):
    with Ledger(stack) as ledger:
        playbook.kill_at(task, "upgrade.yml")
        playbook("rollback.yml")
    ledger.assert_nothing_lost()
    assert (current(machine), running(machine)) == (first, {first})
    assert "_release_marker" not in machine.programs()


@full
@pytest.mark.parametrize(
    "task",
    [
        "carillon : Are there migrations to apply",
        "carillon : Settings of the release in use",
        "supervisord : Programs that differ, one group after another",
        "supervisord : Programs run, none of them older than what it should run with",
        "carillon : Releases that are there",
    ],
)
def test_an_upgrade_that_was_killed_goes_on_when_it_is_run_again(
    machine, stack, playbook, first, another_release, task
):
    with Ledger(stack) as ledger:
        playbook.kill_at(task, "upgrade.yml")
        playbook("upgrade.yml")
        assert running(machine) == {current(machine)} != {first}
        playbook.kill_at("supervisord : Programs that differ, one group after another", "rollback.yml")
        playbook("rollback.yml")
    ledger.assert_nothing_lost()
    assert (current(machine), running(machine)) == (first, {first})


def test_a_rollback_to_what_is_not_there_changes_nothing(machine, playbook, secrets_dir):
    before, held = current(machine), (secrets_dir / "release-held").read_text()
    output = " ".join(playbook("rollback.yml", "-e", "carillon_rollback_to=0.0.0-none", expect=2).split())
    assert "carillon-prod-single: /opt/carillon/releases/0.0.0-none is not there" in output
    assert (current(machine), (secrets_dir / "release-held").read_text()) == (before, held)


@full
@pytest.mark.parametrize(
    "task",
    [
        None,
        "secrets : Move to the free slots",
        "postgresql : Owner, login and database",
        # The file is written, and the broker has not read it.
        "rabbitmq : Ask the broker which logins it knows",
        "supervisord : Programs that differ, one group after another",
        "rabbitmq : Login of the other slot",
    ],
)
def test_a_rotation_under_load_also_one_that_was_killed_fails_no_request_and_leaves_no_old_login(
    machine, stack, playbook, secrets_dir, healthy, task
):
    key, slot = (secrets_dir / "secret-key").read_text().strip(), secrets_dir / "database-slot"
    other = "a" if slot.exists() and slot.read_text() == "b" else "b"
    with Ledger(stack) as ledger:
        if task:
            playbook.kill_at(task, "rotate.yml")
            assert "A rotation of secrets was cut off" in playbook("check.yml")
        playbook("rotate.yml")
    ledger.assert_nothing_lost()
    assert [
        user["user"] for user in json.loads(machine.run("rabbitmqctl --quiet --formatter json list_users"))
    ] == [f"carillon_{other}"]
    roles = machine.run(
        "runuser -u postgres -- psql -Atc"
        " \"select rolname from pg_roles where rolname like 'carillon%' order by 1\""
    )
    assert roles.split() == ["carillon", f"carillon_{other}"]
    assert (secrets_dir / "secret-key").read_text().strip() != key
    assert (secrets_dir / "secret-key-fallbacks").read_text().strip() == key
    assert not (secrets_dir / "rotation").exists()
    healthy()


UPLOAD = "/var/lib/carillon/media/bells.txt"
POSTGRES = "runuser -u postgres -- "
# The release before had no such app: its tables, with foreign keys to others', are not in its backups.
OLDER = ("tower", "zero")


def databases(machine) -> set[str]:
    return set(
        machine.run(f"{POSTGRES} psql -Atc 'select datname from pg_database where not datistemplate'").split()
    )


@pytest.fixture
def backup(machine, stack, playbook, tmp_path):
    """A backup, of a job too, and that job's address."""
    job = stack.api("/api/v2/jobs/", {"name": "kept through the fire"})
    folder = tmp_path / "backup"
    machine.run(f"runuser -u carillon -- sh -c 'echo rung > {UPLOAD}'")
    playbook("backup.yml", "-e", f"backup_dir={folder}")
    machine.run(f"rm {UPLOAD}")
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == dict.fromkeys(
        ("secrets.tar", "database.dump", "media.tar", "definitions.json", "certificates.tar"), "0o600"
    )
    return folder, f"/api/v2/jobs/{job['id']}/"


@pytest.fixture
def older(machine, backup):
    """The same, as the release before would have made it: without a table that has a foreign key."""
    folder, address = backup
    name, dump = "carillon_restored", "/var/tmp/dump"  # a database that the programs' login may come to
    subprocess.run(["docker", "cp", f"{folder}/database.dump", f"{machine.name}:{dump}"], check=True)
    machine.run(f"chmod 0644 {dump} && {POSTGRES} createdb --owner carillon {name}")
    machine.run(f"{POSTGRES} pg_restore --dbname {name} --role carillon -O -x {dump}")
    migrate = f"runuser -u carillon -- carillon manage migrate {' '.join(OLDER)}"
    machine.run(f"CARILLON_DATABASE_NAME={name} {migrate}")
    machine.run(f"{POSTGRES} pg_dump --format=custom -O -x {name} > {dump} && {POSTGRES} dropdb {name}")
    subprocess.run(["docker", "cp", f"{machine.name}:{dump}", f"{folder}/database.dump"], check=True)
    machine.run(f"rm {dump}")
    return folder, address


def test_a_backup_of_the_release_before_is_restored(machine, stack, playbook, older, healthy):
    folder, _ = older
    stack.api("/api/v2/jobs/", {"name": "after the backup"})
    start = time.monotonic()
    playbook("restore.yml", "-e", f"restore_from={folder}")
    print(f"restore: {time.monotonic() - start:.0f} s")
    healthy()
    assert machine.run(f"stat --format %U {UPLOAD} && cat {UPLOAD}").split() == ["carillon", "rung"]
    # The release that is installed has made its tables; the token is the backup's.
    assert stack.api("/api/v2/jobs/")["results"] == []
    assert databases(machine) == {"carillon", "postgres"}


@full
def test_a_backup_that_is_damaged_changes_nothing(machine, stack, playbook, backup):
    folder, address = backup
    dump = folder / "database.dump"
    dump.write_bytes(dump.read_bytes()[:-2000])
    before = pids(machine)
    playbook("restore.yml", "-e", f"restore_from={folder}", expect=2)
    assert pids(machine) == before, "programs were stopped"
    assert stack.api(address)["name"] == "kept through the fire"


@full
@pytest.mark.parametrize(
    "task",
    [
        "postgresql : Fill it",
        "carillon : Its migrations",
        "postgresql : The restored database takes the name, the one of before gets another",
        "Start",
        "Emitted here, heard there",
    ],
)
def test_a_restore_that_was_killed_is_run_again(machine, stack, playbook, older, healthy, task):
    folder, _ = older
    playbook.kill_at(
        task, "restore.yml", "-e", f"restore_from={folder}", times=2 if task.startswith("Emit") else 1
    )
    assert len(databases(machine) - {"postgres", "carillon_restored"}) >= 1
    playbook("restore.yml", "-e", f"restore_from={folder}")
    healthy()
    assert stack.api("/api/v2/jobs/")["results"] == []
    assert databases(machine) == {"carillon", "postgres"}


@full
def test_backup_wipe_restore_brings_the_rows_back(
    machine, stack, playbook, secrets_dir, tmp_path, backup, healthy
):
    folder, address = backup
    # The fire: rows, logins and the control node's secrets are gone. (The host itself stays: the tests have
    # begun with a bare one.)
    machine.run("carillon-ctl stop all")
    machine.run(f"{POSTGRES} psql -c 'drop database carillon with (force)'")
    (user,) = json.loads(machine.run("rabbitmqctl --quiet --formatter json list_users"))
    machine.run(
        f"rabbitmqctl --quiet delete_vhost carillon && rabbitmqctl --quiet delete_user {user['user']}"
    )
    machine.run("rm -rf /etc/carillon/secrets /opt/carillon/current/etc/carillon.env")
    kept = tmp_path / "kept"
    shutil.move(secrets_dir, kept)
    playbook("restore.yml", "-e", f"restore_from={folder}")
    assert (secrets_dir / "secret-key").read_text() == (kept / "secret-key").read_text()
    healthy()
    assert stack.api(address)["name"] == "kept through the fire"


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


def test_a_certificate_that_ends_soon_is_renewed_without_a_restart(machine, playbook, healthy):
    before, process = served(machine), machine.run("systemctl show -P MainPID nginx")
    # Ours last 397 days: what is to last longer is renewed.
    playbook("certificates.yml", "-e", "tls_renew_days=400")
    wait_for(lambda: served(machine) != before, 30, "the renewed certificate", machine.logs)
    assert machine.run("systemctl show -P MainPID nginx") == process, "nginx was restarted"
    assert "changed=0" in playbook("certificates.yml")
    output = " ".join(playbook("check.yml", "-e", "check_certificate_days=400", expect=2).split())
    assert "/etc/carillon/tls/fullchain.pem ends in 396 days, and nothing has renewed it" in output
    assert "127.0.0.1:443 ends in 396 days, and nothing has renewed it" in output
    healthy()


def test_an_authority_in_its_last_year_is_named(playbook, secrets_dir, tmp_path):
    authority = secrets_dir / "tls/authority.crt"
    before = authority.read_bytes()
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 300 -subj /CN=old"
    subprocess.run(
        [*make.split(), "-keyout", tmp_path / "key", "-out", tmp_path / "crt"],
        check=True,
        capture_output=True,
    )
    try:
        authority.write_bytes((tmp_path / "crt").read_bytes())
        output = playbook.kill_at("When they end", "check.yml")
    finally:
        authority.write_bytes(before)
    assert "tls/authority.crt ends in 299 days" in " ".join(output.split())
    assert "certificates.md" in output


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
        pytest.param(
            ["-e", '{"common_releases": ["Debian 13", "Ubuntu 24"]}'],
            "hosts run Debian 13 and Ubuntu 24. All must run the same",
            marks=full,
        ),
        pytest.param(
            [
                "-e",
                "tls_mode=files",
                "-e",
                "tls_certificate_file=/nowhere.pem",
                "-e",
                "tls_key_file=/nowhere.key",
            ],
            "tls_certificate_file (/nowhere.pem) is no file on the control node",
            marks=full,
        ),
        pytest.param(
            ["-e", "carillon_domain=https://chimes.test/"],
            "carillon_domain must be the public host name",
            marks=full,
        ),
        pytest.param(
            ["-e", '{"nginx_trusted_proxies": ["balancer.test"]}'],
            "which is no address or network",
            marks=full,
        ),
        pytest.param(
            ["-e", '{"rabbitmq_memory_watermark": 40}'],
            "is a share of the memory, between 0 and 1",
            marks=full,
        ),
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


@pytest.fixture
def role(playbook, tmp_path):
    """A function that runs one role alone, with variables; the output."""

    def run(name: str, expect: int = 0, **variables) -> str:
        shared = [str(ROOT / f"ansible/roles/{shared}/vars/main.yml") for shared in ("topology", "secrets")]
        play = {"hosts": "carillon", "vars_files": shared, "roles": [name]}
        (tmp_path / "role.yml").write_text(yaml.safe_dump([play]))
        variables = {"topology_source": str(ROOT), **variables}
        return playbook(str(tmp_path / "role.yml"), "-e", json.dumps(variables), expect=expect)

    return run


def test_a_broken_site_file_leaves_the_running_one(machine, stack, role, tmp_path):
    (tmp_path / "broken.conf").write_text("location /mine { nonsense; }\n")
    output = role("nginx", expect=2, nginx_drop_ins=[str(tmp_path / "broken.conf")])
    assert "nonsense" in output
    assert stack.api("/api/v2/me/")["count"] == 1
    # It would have waited there for the next start.
    assert not machine.host.file("/etc/nginx/carillon/site.d/broken.conf").exists
    machine.run("nginx -t -q")


WORKERS = "ps -o pid= --ppid $(systemctl show --property MainPID --value nginx)"


def wait_for_other_workers(machine, before: str) -> None:
    wait_for(
        lambda: not set(before.split()) & set(machine.run(WORKERS).split()), 30, "workers that have read it"
    )


def test_nginx_reads_what_a_run_that_was_cut_off_had_written(machine, role):
    before = machine.run(WORKERS)
    assert "changed=0" in role("nginx")
    assert machine.run(WORKERS) == before
    machine.run("touch /etc/carillon/tls/fullchain.pem")
    role("nginx")
    wait_for_other_workers(machine, before)
    process = "systemctl show -P MainPID nginx"
    started = machine.run(process)
    machine.run("touch /etc/systemd/system/nginx.service.d/carillon.conf")
    role("nginx")
    assert machine.run(process) != started, "its unit has changed, and only a start reads that"


def test_a_certificate_that_was_renewed_and_not_read_is_read_by_the_timer_s_run(machine, playbook):
    before = machine.run(WORKERS)
    machine.run("touch /etc/carillon/tls/fullchain.pem")
    playbook("certificates.yml")
    wait_for_other_workers(machine, before)


def test_a_key_of_another_certificate_comes_to_no_nginx(machine, playbook, secrets_dir):
    pair = {"certificate": f"{secrets_dir}/tls/authority.crt", "key": f"{secrets_dir}/tls/public.key"}
    given = {f"tls_{name}_file": path for name, path in pair.items()}
    before = machine.run("sha256sum /etc/carillon/tls/*.pem")
    output = playbook("certificates.yml", "-e", json.dumps({"tls_mode": "files", **given}), expect=2)
    assert "does not belong to the certificate in" in " ".join(output.split())
    assert machine.run("sha256sum /etc/carillon/tls/*.pem") == before


def test_the_packet_filter_gets_the_rules_that_a_run_that_was_cut_off_had_written(machine, role):
    loaded = "nft list table inet carillon"
    assert "changed=0" in role("firewall")
    machine.run("nft add rule inet carillon input tcp dport 4242 accept")
    machine.run("touch /etc/carillon/firewall.nft")
    role("firewall")
    assert "4242" not in machine.run(loaded)
    assert "changed=0" in role("firewall")


def test_a_rule_that_nft_refuses_does_not_stay_to_break_the_next_start(machine, role):
    assert "nonsense" in role("firewall", expect=2, firewall_extra_rules=["nonsense"])
    machine.run("! grep nonsense /etc/carillon/firewall.nft")


@full
def test_the_broker_starts_anew_with_what_a_run_that_was_cut_off_had_written(machine, role, healthy):
    process = "systemctl show -P MainPID rabbitmq-server"
    before = machine.run(process)
    assert "changed=0" in role("rabbitmq")
    machine.run("touch /etc/rabbitmq/rabbitmq.conf")
    role("rabbitmq")
    assert machine.run(process) != before
    assert "changed=0" in role("rabbitmq")
    healthy()


def test_a_program_that_is_given_up_stops_other_playbooks_and_not_an_upgrade(machine, playbook, secrets_dir):
    held, mark = secrets_dir / "release-held", "/run/carillon/fatal/broken"
    before = held.read_text() if held.exists() else None
    machine.run(f"install -d {mark.rpartition('/')[0]} && touch {mark}")
    try:
        assert "supervisord has given up on broken" in " ".join(playbook("check.yml", expect=2).split())
        output = playbook.kill_at("No release is held any longer", "upgrade.yml")
        assert "given up on broken. The upgrade goes on." in " ".join(output.split())
        machine.run("carillon-roll --update")
        assert not machine.host.file(mark).exists, "no program of this name is there"
    finally:
        machine.run(f"rm -f {mark}")
        if before is not None:
            held.write_text(before)


def test_one_host_does_not_become_several_without_a_word(machine, playbook, tmp_path):
    tree = yaml.safe_load((ROOT / "tests/production/single/hosts.yml").read_text())
    carillon = tree["all"]["children"]["carillon"]
    # The same container by another name: what is refused is refused before it matters.
    carillon["children"]["app"]["hosts"]["another"] = {"ansible_host": machine.name}
    carillon["vars"] |= {"carillon_domain": "chimes.test", "ansible_become": True}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(tree))
    before = pids(machine)
    output = " ".join(playbook("site.yml", inventory=tmp_path / "hosts.yml", expect=2).split())
    # Which of them comes first is up to the order of the hosts.
    assert f"{machine.name}: the broker here is rabbit@localhost by its data" in output or (
        f"{machine.name}: the programs listen on 127.0.0.1" in output
    )
    assert "Nothing is touched" in output
    assert "restore.yml with this one on fresh hosts" in output
    assert "PLAY [Ground for every service]" not in output
    assert pids(machine) == before


def test_settings_of_postgresql_are_reloaded_and_a_restart_is_asked_for(machine, playbook, tmp_path, healthy):
    unit = f"postgresql@{database_version(machine)}-main"
    play = {
        "hosts": "postgresql",
        "vars_files": [str(ROOT / f"ansible/roles/{name}/vars/main.yml") for name in ("topology", "secrets")],
        "roles": ["postgresql"],
    }
    (tmp_path / "postgresql.yml").write_text(yaml.safe_dump([play]))

    def run(settings: dict, *, restart: bool = False, expect: int = 0) -> str:
        variables = {"postgresql_settings": settings, "postgresql_restart": restart}
        output = playbook(str(tmp_path / "postgresql.yml"), "-e", json.dumps(variables), expect=expect)
        return " ".join(output.split())

    def show(name: str) -> str:
        return machine.run(f"{POSTGRES} psql -Atc 'show {name}'").strip()

    process = machine.run(f"systemctl show -P MainPID {unit}")
    assert "will be in force" not in run({"work_mem": "5MB"})
    assert show("work_mem") == "5MB"
    said = run({"work_mem": "nonsense"}, expect=2)
    assert 'invalid value for parameter "work_mem"' in said
    machine.run("! grep -r nonsense /etc/postgresql")
    said = run({"work_mem": "6MB", "max_worker_processes": 9})
    assert f"{machine.name}: max_worker_processes will be in force after a restart" in said
    assert (show("work_mem"), show("max_worker_processes")) == ("6MB", "8")
    # What a run leaves that is cut off between the change and the reload.
    machine.run(f"touch --date=+2seconds /etc/postgresql/{database_version(machine)}/main/pg_hba.conf")
    assert "changed=1 " in run({"work_mem": "6MB", "max_worker_processes": 9})
    assert machine.run(f"systemctl show -P MainPID {unit}") == process, "PostgreSQL was restarted"
    run({"max_worker_processes": 9}, restart=True)
    assert show("max_worker_processes") == "9"
    run({}, restart=True)
    assert show("max_worker_processes") == "8"
    healthy()


@full
def test_a_location_of_ones_own_is_served_until_it_is_no_longer_named(stack, playbook, machine, tmp_path):
    (tmp_path / "mine.conf").write_text(
        'location = /mine { default_type text/plain; return 200 "mine\\n"; }\n'
    )
    playbook("site.yml", "-e", json.dumps({"nginx_drop_ins": [str(tmp_path / "mine.conf")]}))
    answer = subprocess.check_output(["curl", "-sk", f"https://{machine.address}/mine"], text=True)
    assert answer == "mine\n"
    playbook("site.yml")
    assert not machine.host.file("/etc/nginx/carillon/site.d/mine.conf").exists

"""What operators do with a cluster, under load: upgrade, roll back, rotate, one host out and another in.
Last, because it changes the hosts.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml

from dev.production_testing import RELEASE_MARKER
from tests.production import hosts
from tests.production.cluster.conftest import INVENTORY, NAMES, PROXY
from tests.production.cluster.test_cluster import NODES, running
from tests.production.containers import docker
from tests.production.hosts import current
from tests.production.ledger import Ledger

NETWORK = "carillon-prod-cluster"
NEW = "carillon-prod-c4"
GONE = NAMES[0]
APPS = NAMES[:2]


def inventory(path: Path, change) -> Path:
    """The cluster's inventory after `change(groups, variables)`."""
    tree = copy.deepcopy(yaml.safe_load(INVENTORY.read_text()))
    change(tree["all"]["children"]["carillon"]["children"], tree["all"]["vars"])
    path.write_text(yaml.safe_dump(tree))
    return path


def durable(machine) -> dict[str, list[str]]:
    """Every quorum queue and stream with its members, all of which run."""
    rows = json.loads(
        machine.run("rabbitmqctl -q --formatter json list_queues -p carillon name type members online")
    )
    found = [row for row in rows if row["type"] in ("quorum", "stream")]
    assert {row["type"] for row in found} == {"quorum", "stream"}
    for row in found:
        assert sorted(row["members"]) == sorted(row["online"]), row
    return {row["name"]: sorted(row["members"]) for row in found}


def served_by(machines) -> set[str]:
    """Addresses that nginx has as the application's."""
    site = machines[PROXY].run("cat /etc/nginx/carillon/site.conf")
    return {name for name, machine in machines.items() if f"server {machine.address}:8050" in site}


@pytest.fixture
def another_release():
    RELEASE_MARKER.write_text(
        '"""Made by a test, which takes it away again: a release that differs from the one before."""\n'
    )
    yield
    RELEASE_MARKER.unlink()


def test_upgrade_and_rollback_host_by_host_fail_no_request(machines, stack, playbook, another_release):
    before = {name: current(machines[name]) for name in APPS}
    with Ledger(stack) as ledger:
        playbook("upgrade.yml")
    ledger.assert_nothing_lost()
    after = {name: current(machines[name]) for name in APPS}
    assert len(set(after.values())) == 1
    assert set(after.values()) & set(before.values()) == set()
    with Ledger(stack) as ledger:
        playbook("rollback.yml")
    ledger.assert_nothing_lost()
    assert {name: current(machines[name]) for name in APPS} == before


def test_an_upgrade_that_was_killed_between_two_hosts_is_rolled_back_on_both(
    machines, stack, playbook, another_release
):
    before = {name: current(machines[name]) for name in APPS}
    assert len(set(before.values())) == 1
    with Ledger(stack) as ledger:
        playbook.kill_at("carillon : The release in use", "upgrade.yml", times=2)
        halfway = {name: current(machines[name]) for name in APPS}
        assert halfway != before
        assert halfway[APPS[1]] == before[APPS[1]]
        playbook("rollback.yml")
    ledger.assert_nothing_lost()
    assert {name: current(machines[name]) for name in APPS} == before
    assert "changed=0" in playbook("rollback.yml")
    # Whatever is checked out.
    playbook("site.yml")
    assert {name: current(machines[name]) for name in APPS} == before


def test_rotation_fails_no_request_and_leaves_no_old_login(machines, stack, playbook):
    with Ledger(stack) as ledger:
        playbook("rotate.yml")
    ledger.assert_nothing_lost()
    for machine in machines.values():
        users = json.loads(machine.run("rabbitmqctl --quiet --formatter json list_users"))
        assert [user["user"] for user in users] == ["carillon_b"]
    roles = machines[PROXY].run(
        "runuser -u postgres -- psql -Atc"
        " \"select rolname from pg_roles where rolname like 'carillon%' order by 1\""
    )
    assert roles.split() == ["carillon", "carillon_b"]


def test_backup_wipe_restore_brings_the_rows_back(
    machines, stack, playbook, secrets_dir, tmp_path, delivered
):
    job = stack.api("/api/v2/jobs/", {"name": "kept through the fire"})
    playbook("backup.yml", "-e", f"backup_dir={tmp_path}/backup")
    for name in APPS:
        machines[name].run("carillon-ctl stop all")
    machines[PROXY].run("runuser -u postgres -- psql -c 'drop database carillon with (force)'")
    machines[NAMES[0]].run("rabbitmqctl --quiet delete_vhost carillon")
    shutil.move(secrets_dir, tmp_path / "kept")
    playbook("restore.yml", "-e", f"restore_from={tmp_path}/backup")
    delivered()
    assert stack.api(f"/api/v2/jobs/{job['id']}/")["name"] == "kept through the fire"


def test_a_certificate_between_hosts_is_renewed_without_a_restart(machines, stack, playbook, secrets_dir):
    machine = machines[NAMES[1]]
    process = machine.run("systemctl show -P MainPID rabbitmq-server")

    def serial() -> str:
        return machine.run(
            f"openssl s_client -connect {machine.address}:5671 -CAfile /etc/carillon/tls/amqp-authority.crt"
            " -verify_return_error </dev/null 2>/dev/null | openssl x509 -noout -serial"
        )

    before = serial()
    for kind in ("crt", "key"):
        (secrets_dir / f"tls/rabbitmq-{NAMES[1]}.{kind}").unlink()
    with Ledger(stack) as ledger:
        playbook("site.yml")
    ledger.assert_nothing_lost()
    assert serial() != before
    assert machine.run("systemctl show -P MainPID rabbitmq-server") == process


def test_managed_services_stand_in_for_hosts_of_ones_own(machines, playbook, secrets_dir, tmp_path):
    """This cluster's database and brokers as somebody else's: by address, verified, with logins as given."""
    outside = hosts.start(NEW, NETWORK)
    try:
        let_in = {"postgresql_extra_clients": [outside.address], "firewall_inner_sources": [outside.address]}
        playbook("site.yml", "-e", json.dumps(let_in))
        # rotate.yml has moved both to the slot b.
        passwords = {
            name: (secrets_dir / f"{name}-password-b").read_text().strip() for name in ("database", "amqp")
        }
        authority = str(secrets_dir / "tls/authority.crt")

        def change(groups, variables):
            groups.clear()
            groups |= {name: {"hosts": {NEW: {}}} for name in ("nginx", "app")}
            variables |= {
                "carillon_secrets_dir": str(tmp_path / "secrets"),
                "carillon_admin_user": "",
                "carillon_database_host": machines[PROXY].address,
                "carillon_database_user": "carillon_b",
                "carillon_database_password": passwords["database"],
                "carillon_database_tls_ca": authority,
                "carillon_amqp_hosts": [machine.address for machine in machines.values()],
                "carillon_amqp_user": "carillon_b",
                "carillon_amqp_password": passwords["amqp"],
                "carillon_amqp_tls_ca": authority,
                "tls_names": ["chimes.test"],
            }

        # At its end an event goes all the way (check.yml).
        playbook("site.yml", inventory=inventory(tmp_path / "hosts.yml", change))
        assert "changed=0" in playbook("site.yml", inventory=tmp_path / "hosts.yml")
        assert not outside.host.package("postgresql-17").is_installed
        assert not outside.host.package("rabbitmq-server").is_installed
        established = outside.run("ss -Htn state established")
        assert f"{machines[PROXY].address}:5432" in established
        assert ":5671" in established
        # Their data is theirs to keep.
        backup = tmp_path / "backup"
        playbook("backup.yml", "-e", f"backup_dir={backup}", inventory=tmp_path / "hosts.yml")
        assert {path.name for path in backup.iterdir()} == {"secrets.tar", "media.tar", "certificates.tar"}
        shutil.move(tmp_path / "secrets", tmp_path / "kept")
        playbook("restore.yml", "-e", f"restore_from={backup}", inventory=tmp_path / "hosts.yml")
    finally:
        docker("rm", "--force", "--volumes", NEW)


def new_for_gone(groups, _) -> None:
    for group in ("rabbitmq", "app"):
        del groups[group]["hosts"][GONE]
        groups[group]["hosts"][NEW] = {}


class TestOneOutAnotherIn:
    """A host with broker and application is taken out, a new one takes its place and is then lost."""

    def test_one_of_three_brokers_is_not_taken_out_without_a_word(self, machines, playbook):
        output = " ".join(playbook("remove-node.yml", "-e", f"node={GONE}", expect=2).split())
        assert f"{GONE}: 2 brokers would remain" in output
        assert running(machines[NAMES[1]]) == NODES

    def test_the_database_is_not_taken_out(self, playbook):
        output = " ".join(playbook("remove-node.yml", "-e", f"node={PROXY}", expect=2).split())
        assert f"{PROXY}: name a host of the inventory" in output

    def test_a_host_that_is_taken_out_is_missed_by_nobody(self, machines, stack, playbook):
        with Ledger(stack) as ledger:
            playbook("remove-node.yml", "-e", f"node={GONE}", "-e", "remove_anyway=true")
        ledger.assert_nothing_lost()
        rest = NODES[1:]
        assert running(machines[NAMES[1]]) == rest
        assert set(map(tuple, durable(machines[NAMES[1]]).values())) == {tuple(rest)}
        assert served_by(machines) == {NAMES[1]}
        for unit in ("carillon", "rabbitmq-server"):
            assert not machines[GONE].host.service(unit).is_running
            assert not machines[GONE].host.service(unit).is_enabled

    def test_a_new_host_takes_its_share(self, machines, stack, playbook, tmp_path):
        machines[NEW] = hosts.start(NEW, NETWORK)
        with Ledger(stack) as ledger:
            playbook("add-node.yml", inventory=inventory(tmp_path / "hosts.yml", new_for_gone))
        ledger.assert_nothing_lost()
        nodes = sorted(f"rabbit@{name}" for name in (*NAMES[1:], NEW))
        assert running(machines[NAMES[1]]) == nodes
        assert set(map(tuple, durable(machines[NAMES[1]]).values())) == {tuple(nodes)}
        assert served_by(machines) == {NAMES[1], NEW}
        assert "changed=0" in playbook("add-node.yml", inventory=tmp_path / "hosts.yml")

    def test_a_host_that_is_lost_for_good_is_taken_out_too(self, machines, stack, playbook, tmp_path):
        address = machines.pop(NEW).address
        docker("rm", "--force", "--volumes", NEW)

        def lost(groups, variables) -> None:
            new_for_gone(groups, variables)
            # Nobody answers there: Docker's connection would call it a failed task.
            groups["app"]["hosts"][NEW] = {"ansible_connection": "ssh", "ansible_host": address}

        playbook(
            *("remove-node.yml", "-e", f"node={NEW}", "-e", "remove_anyway=true"),
            inventory=inventory(tmp_path / "hosts.yml", lost),
        )
        assert running(machines[NAMES[1]]) == NODES[1:]
        with Ledger(stack) as ledger:
            hosts.wait_for(lambda: len(ledger.accepted) > 20, 60, "events are accepted")
        ledger.assert_nothing_lost()

    def test_a_host_that_was_taken_out_can_come_back(self, machines, stack, playbook):
        with Ledger(stack) as ledger:
            playbook("add-node.yml")
        ledger.assert_nothing_lost()
        assert running(machines[NAMES[1]]) == NODES
        assert set(map(tuple, durable(machines[NAMES[1]]).values())) == {tuple(NODES)}
        assert served_by(machines) == set(APPS)

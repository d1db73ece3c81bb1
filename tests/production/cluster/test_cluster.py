"""Three brokers, two application hosts, one nginx, one database: what holds, and what it survives."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from tests.production.cluster.conftest import NAMES, PROXY
from tests.production.conftest import wait_for
from tests.production.ledger import Ledger


def running(machine) -> list[str]:
    status = json.loads(machine.run("rabbitmqctl --quiet --formatter json cluster_status"))
    return sorted(status["running_nodes"])


NODES = [f"rabbit@{name}" for name in NAMES]


def test_every_broker_is_a_running_member(machines):
    for machine in machines.values():
        assert running(machine) == NODES


def test_an_event_goes_all_the_way(delivered):
    delivered()


def test_everything_durable_has_a_replica_on_each_broker(machines, delivered):
    delivered()
    rows = json.loads(
        machines[NAMES[0]].run("rabbitmqctl -q --formatter json list_queues -p carillon name type members")
    )
    durable = [row for row in rows if row["type"] in ("quorum", "stream")]
    assert {row["type"] for row in durable} == {"quorum", "stream"}
    for row in durable:
        assert sorted(row["members"]) == NODES, row


def test_amqp_and_postgresql_are_tls_that_is_verified(machines):
    for name in NAMES:
        machine = machines[name]
        listeners = machine.run("ss -Hltn")
        assert ":5672 " not in listeners
        assert f"{machine.address}:5671 " in listeners
    app = machines[NAMES[0]]
    # Both say whom they are: the name and the authority fit.
    for target in (f"{NAMES[1]}:5671", f"{NAMES[2]}:5671"):
        said = app.run(
            f"openssl s_client -connect {target} -verify_return_error"
            f" -verify_hostname {target.partition(':')[0]}"
            " -CAfile /etc/carillon/tls/amqp-authority.crt </dev/null 2>&1"
        )
        assert "Verify return code: 0 (ok)" in said
    sessions = machines[PROXY].run(
        "runuser -u postgres -- psql -Atc 'select distinct ssl from pg_stat_ssl s"
        " join pg_stat_activity a using (pid)"
        " where a.client_addr is not null'"
    )
    assert sessions.split() == ["t"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_nginx_answers_from_outside(machines, name):
    open_ports = set()
    for port in (80, 443, 4369, 5432, 5671, 5672, 8050, 8051, 15672, 15692, 25672):
        try:
            with socket.create_connection((machines[name].address, port), timeout=0.5):
                open_ports.add(port)
        except OSError:
            continue
    assert open_ports == ({80, 443} if name == PROXY else set())


def test_the_loss_of_a_host_with_broker_and_application_loses_nothing_and_it_comes_back(
    machines, stack, delivered
):
    """Killed, as by a power failure: what it had in hand may fail, what was accepted arrives."""
    with Ledger(stack) as ledger:
        wait_for(lambda: len(ledger.accepted) > 5, 30, "the load runs")
        subprocess.run(["docker", "kill", NAMES[0]], check=True, capture_output=True)
        try:
            before = len(ledger.accepted)
            wait_for(lambda: len(ledger.accepted) > before + 10, 90, "events are accepted without it")
        finally:
            subprocess.run(["docker", "start", NAMES[0]], check=True, capture_output=True)
        wait_for(lambda: running(machines[NAMES[1]]) == NODES, 180, "the lost host is a member again")
    missing = ledger.wait_until_heard(60)
    print(ledger.report())
    assert missing == set()
    delivered()


def test_the_loss_of_a_broker_loses_nothing_and_it_comes_back(machines, stack, delivered):
    with Ledger(stack) as ledger:
        wait_for(lambda: len(ledger.accepted) > 5, 30, "the load runs")
        machines[NAMES[1]].run("systemctl kill --signal KILL rabbitmq-server; systemctl stop rabbitmq-server")
        before = len(ledger.accepted)
        wait_for(lambda: len(ledger.accepted) > before + 10, 90, "events are accepted without it")
        machines[NAMES[1]].run("systemctl start rabbitmq-server")
        wait_for(lambda: running(machines[NAMES[0]]) == NODES, 120, "three running members")
    missing = ledger.wait_until_heard(60)
    print(ledger.report())
    assert missing == set()
    delivered()

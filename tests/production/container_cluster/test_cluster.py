"""Three brokers and two application containers on one machine: what holds, and what it survives."""

from __future__ import annotations

import json
import re
import time
from contextlib import ExitStack

from tests.infra.stack import docker, wait
from tests.production.ledger import Ledger

BROKERS = {"rabbitmq": "rabbit@broker1", "broker2": "rabbit@broker2", "broker3": "rabbit@broker3"}
NODES = sorted(BROKERS.values())


def ctl(stack, service: str, *command: str) -> str:
    return docker("exec", stack.container(service), "rabbitmqctl", "--quiet", "--formatter", "json", *command)


def members(stack, service: str) -> list[str]:
    text = ctl(stack, service, "cluster_status")
    return sorted(json.loads(text[text.index("{") :])["running_nodes"])


def queues(stack, service: str = "rabbitmq") -> list[dict]:
    text = ctl(stack, service, "list_queues", "-p", "carillon", "name", "type", "leader", "members", "online")
    return json.loads(text[text.index("[") :])


def applications(stack) -> list[str]:
    return docker(
        *("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={stack.project}"),
        *("--filter", "label=com.docker.compose.service=app"),
    ).split()


def health(container: str) -> str:
    return docker("inspect", "--format", "{{.State.Health.Status}}", container).strip()


def sockets_in(container: str) -> int:
    """Connections that daphne has there: port 8051, established, seen from its side."""
    table = docker("exec", container, "cat", "/proc/net/tcp")
    return len(re.findall(r"(?m)^ *\d+: [0-9A-F]{8}:1F73 [0-9A-F:]+ 01 ", table))


def test_three_brokers_and_a_replica_of_everything_durable_on_each(stack):
    assert stack.deliver()
    for service in BROKERS:
        assert members(stack, service) == NODES
    durable = [queue for queue in queues(stack) if queue["type"] in ("quorum", "stream")]
    assert {queue["type"] for queue in durable} == {"quorum", "stream"}
    for queue in durable:
        assert sorted(queue["members"]) == sorted(queue["online"]) == NODES, queue


def test_an_event_reaches_the_sockets_of_both_applications(stack):
    containers = applications(stack)
    assert len(containers) == 2
    with ExitStack() as opened:
        sockets = [opened.enter_context(stack.websocket()) for _ in range(8)]
        for socket in sockets:
            assert json.loads(socket.recv(10))["accept"] is True
            socket.send(json.dumps({"groups": {"schedules": ["changed"]}}))
            assert json.loads(socket.recv(10))["groups_current"] == ["schedules-changed"]
        assert all(sockets_in(container) for container in containers), "one of the two has no socket"
        stack.api("/api/v2/notifications/", {"group": "schedules-changed", "payload": {"mark": "both"}})
        assert [json.loads(socket.recv(10))["mark"] for socket in sockets] == ["both"] * len(sockets)


def test_the_broker_that_leads_is_killed_and_nothing_accepted_is_lost(stack):
    [queue] = [queue for queue in queues(stack) if queue["name"].endswith(".notifications")]
    leader = next(service for service, node in BROKERS.items() if node == queue["leader"])
    other = next(service for service in BROKERS if service != leader)
    with Ledger(stack) as ledger:
        wait("the load runs", lambda: len(ledger.accepted) > 5, 30)
        docker("kill", stack.container(leader))
        before = len(ledger.accepted)
        wait("events are accepted without it", lambda: len(ledger.accepted) > before + 20, 60)
        docker("start", stack.container(leader))
        wait("it is a member again", lambda: members(stack, other) == NODES, 90)
        wait("it is healthy", lambda: stack.healthy(leader), 60)
    missing = ledger.wait_until_heard()
    print(ledger.report())
    assert missing == set()
    assert [failure for failure in ledger.failures if failure.startswith("GET")] == []


def test_an_application_container_is_restarted_and_nothing_accepted_is_lost(stack):
    """nginx asks the other one, but for a POST that this one had taken: nobody knows what became of it.

    What is given to one that starts waits until it serves: on a busy machine longer than a client likes.
    """
    container = applications(stack)[0]
    with Ledger(stack) as ledger:
        wait("the load runs", lambda: len(ledger.accepted) > 5, 30)
        start = time.monotonic()
        docker("restart", container, timeout=120)
        wait("it is healthy", lambda: health(container) == "healthy", 120)
        print(f"restarted and healthy after {time.monotonic() - start:.0f} s")
        wait("an event goes all the way", stack.deliver, 60)
    missing = ledger.wait_until_heard()
    print(ledger.report())
    assert missing == set()
    explained = re.compile(r"POST .* 502|.*TimeoutError")
    assert [failure for failure in ledger.failures if not explained.match(failure)] == []

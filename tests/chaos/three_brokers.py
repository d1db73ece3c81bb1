"""The stack on three brokers, with the cluster's own configuration from compose/, for as long as a test
lasts. It has a copy of the database: the event stream there is another one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.site import Site, docker

CLUSTER = Path(__file__).parents[2] / "compose" / "cluster"
DATABASE = "carillon_three_brokers"
APP = ("uwsgi", "daphne", "runworker")


@dataclass
class Brokers:
    """`containers`: by the node that each is."""

    containers: dict[str, str]

    def ctl(self, *arguments: str) -> str:
        for container in self.containers.values():
            with contextlib.suppress(AssertionError):
                return docker("exec", container, "rabbitmqctl", "--quiet", *arguments)
        raise AssertionError(f"no broker answers rabbitmqctl {arguments[0]}")

    def leader(self, kind: str) -> str:
        """The container that leads the durable queue (`quorum`) or the event stream (`stream`)."""
        lines = self.ctl("list_queues", "-p", "carillon", "name", "type", "leader").splitlines()
        for line in lines:
            name, found, node, *_ = line.split()
            if found == kind and not name.endswith(".dead"):
                return self.containers[node]
        raise AssertionError(f"no {kind} among {lines}")

    def await_members(self, count: int, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):
                if self.ctl("eval", "length(rabbit_nodes:list_running()).").strip() == str(count):
                    return
            assert time.monotonic() < deadline, f"the cluster does not have {count} members"
            time.sleep(0.5)


@contextlib.contextmanager
def three_brokers(site: Site, options: Mapping[str, dict] | None = None) -> Iterator[Brokers]:
    """The application runs on three brokers; with these `options` of Site.beside() for some processes."""
    names = [f"broker{number}" for number in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        containers = {}
        for name in names:
            containers[f"rabbit@{name}"] = stack.enter_context(
                site.beside(
                    "rabbitmq", name,
                    environment={"RABBITMQ_NODENAME": f"rabbit@{name}"},
                    volumes=[
                        f"{CLUSTER}/rabbitmq-env.conf:/etc/rabbitmq/rabbitmq-env.conf:ro,z",
                        f"{CLUSTER}/cluster.conf:/etc/rabbitmq/conf.d/cluster.conf:ro,z",
                    ],
                    options=[f"--hostname={name}"],
                    alias=name,
                )
            )  # fmt: skip
        brokers = Brokers(containers)
        brokers.await_members(3)
        docker("stop", "--time", "20", *(each for service in APP for each in site.own(service)))
        stack.callback(site.await_serving)
        stack.callback(docker, "start", *(each for service in APP for each in site.own(service)))
        psql = ("psql", "-q", "-d", "postgres", "-c")
        site.run_in("postgresql", *psql, f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        site.run_in("postgresql", *psql, f"CREATE DATABASE {DATABASE} TEMPLATE carillon OWNER carillon")
        stack.callback(site.run_in, "postgresql", *psql, f"DROP DATABASE {DATABASE} WITH (FORCE)")
        # Its events are in a stream of its own.
        site.run_in("postgresql", *psql[:3], DATABASE, "-c", "DELETE FROM carillon_head")
        environment = {"CARILLON_AMQP_HOSTS": ",".join(names), "CARILLON_DATABASE_NAME": DATABASE}
        own = {name: (options or {}).get(name, {}) for name in APP}
        every = {
            name: {**each, "environment": {**each.get("environment", {}), **environment}}
            for name, each in own.items()
        }
        stack.enter_context(site.instead(APP, every))
        site.stand_ins["rabbitmq"] = list(containers.values())
        stack.callback(site.stand_ins.pop, "rabbitmq")
        site.await_serving()
        yield brokers

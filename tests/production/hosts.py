"""Hosts that tests start themselves: containers with systemd."""

from __future__ import annotations

import os

from dev import production_testing
from tests.production.conftest import Machine, wait_for
from tests.production.containers import docker


def must(*arguments: str, seconds: float = 60) -> str:
    done = docker(*arguments, seconds=seconds)
    assert done.returncode == 0, f"docker {' '.join(arguments[:3])}: {done.stderr}"
    return done.stdout


def start(name: str, network: str, *options: str, hostname: str = "") -> Machine:
    """A bare host on that network, with more options of `docker run`; returns when its systemd answers. An
    older one of the name goes."""
    docker("rm", "--force", "--volumes", name)
    must(
        *("run", "--detach", "--name", name, "--hostname", hostname or name, "--network", network),
        *("--privileged", "--cgroupns", "private", "--tmpfs", "/run", "--tmpfs", "/run/lock"),
        *options,
        *(
            "--tmpfs",
            "/tmp",
            os.environ.get("CARILLON_HOST_IMAGE", production_testing.HOST_IMAGE),
            "/sbin/init",
        ),
    )
    machine = Machine(name)
    wait_for_systemd(machine)
    return machine


def current(machine: Machine) -> str:
    """The release that it runs."""
    return machine.run("readlink /opt/carillon/current").strip()


def wait_for_systemd(machine: Machine) -> None:
    wait_for(lambda: machine.host.run("systemctl is-system-running").stdout.strip() != "", 60, "systemd")

"""What is killed comes back; so does the host."""

from __future__ import annotations

import subprocess

import pytest

from tests.production.conftest import wait_for


@pytest.fixture(autouse=True)
def whole(healthy):
    healthy()
    yield
    healthy()


@pytest.mark.parametrize(
    ("program", "pattern"),
    [
        ("uwsgi", "bin/uwsgi --ini"),
        ("daphne:daphne_0", "bin/daphne --fd 0"),
        ("runworker", "django runworker"),
    ],
)
def test_a_killed_program_comes_back(machine, program, pattern):
    before = machine.run(f"carillon-ctl pid {program}").strip()
    assert pattern in machine.run(f"tr '\\0' ' ' < /proc/{before}/cmdline")
    machine.run(f"kill -9 {before}")
    wait_for(
        lambda: machine.run(f"carillon-ctl pid {program}").strip() not in (before, "0"),
        60,
        f"a new {program}",
        machine.logs,
    )


@pytest.mark.parametrize("unit", ["nginx", "rabbitmq-server", "postgresql@17-main", "carillon"])
def test_a_killed_service_comes_back(machine, unit):
    before = machine.run(f"systemctl show -P MainPID {unit}").strip()
    machine.run(f"kill -9 {before}")
    wait_for(
        lambda: (
            machine.run(f"systemctl show -P MainPID {unit}").strip() not in (before, "0")
            and machine.host.service(unit).is_running
        ),
        90,
        f"a new {unit}",
        machine.logs,
    )


def test_the_host_comes_back_by_itself_and_with_another_name(machine, healthy):
    machine.run("hostname renamed-host && echo renamed-host > /etc/hostname 2>/dev/null || true")
    subprocess.run(["docker", "restart", "--time", "60", machine.name], check=True, capture_output=True)
    healthy(180)
    assert machine.run("nft list table inet carillon").count("policy drop") == 1

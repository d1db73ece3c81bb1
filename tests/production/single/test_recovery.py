"""What is killed comes back; so does the host."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.production.conftest import FULL, wait_for
from tests.production.ledger import Ledger
from tests.production.single.conftest import database_version
from tests.production.sockets import assert_half_survive


@pytest.fixture(autouse=True)
def whole(healthy):
    healthy()
    yield
    healthy()


@pytest.mark.parametrize(
    ("program", "pattern"),
    [
        ("uwsgi:uwsgi_0", "bin/uwsgi --ini"),
        ("daphne:daphne_0", "carillon.server --fd 0"),
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


@pytest.mark.parametrize("unit", ["nginx", "rabbitmq-server", "postgresql", "carillon"])
def test_a_killed_service_comes_back(machine, unit):
    if unit == "postgresql":
        unit = f"postgresql@{database_version(machine)}-main"
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
    # The engine gives a container its own name again at each start, so the name is put on while the host
    # boots: before any service of ours. It stays for the tests that follow.
    machine.run(
        "printf '[Service]\nExecStartPre=/bin/hostname renamed-host\n'"
        " > /run/renamed && install -D -m 0644 /run/renamed"
        " /etc/systemd/system/carillon-firewall.service.d/renamed.conf && systemctl daemon-reload"
    )
    subprocess.run(["docker", "restart", "--time", "60", machine.name], check=True, capture_output=True)
    healthy(180)
    assert machine.run("hostname").strip() == "renamed-host"
    assert machine.run("nft list table inet carillon").count("policy drop") == 1
    status = json.loads(machine.run("rabbitmqctl --quiet --formatter json cluster_status"))
    assert status["running_nodes"] == ["rabbit@localhost"]


def test_sockets_survive_the_restart_of_the_other_process(machine, stack):
    assert_half_survive(stack, lambda: machine.run("carillon-roll daphne:daphne_0"))


def test_a_program_that_is_older_than_its_settings_is_found_and_restarted(machine):
    """What a run leaves that is cut off between the change and the restart."""
    machine.run("carillon-roll --stale")
    assert machine.run("carillon-roll --stale") == ""
    before = machine.run("carillon-ctl pid runworker")
    machine.run("touch --date=+5seconds /etc/carillon/carillon.env")
    assert machine.run("carillon-roll --stale runworker") == "restarted runworker\n"
    assert machine.run("carillon-ctl pid runworker") != before
    # For the others nothing has changed, after all.
    machine.run("touch --date=@0 /etc/carillon/carillon.env")
    assert machine.run("carillon-roll --stale") == ""


def test_programs_restarted_one_by_one_under_load_fail_no_request(machine, stack):
    before = machine.run("systemctl show -P MainPID carillon")
    # What goes wrong one time in a few is looked for where there is time.
    for _ in range(3 if FULL else 1):
        with Ledger(stack) as ledger:
            rolled = machine.run("carillon-roll")
        ledger.assert_nothing_lost()
        assert rolled.count("restarted") == 6
    assert machine.run("systemctl show -P MainPID carillon") == before, "supervisord was restarted"

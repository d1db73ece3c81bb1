"""supervisord in one container, with the files of a host."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import pytest

from tests.infra.stack import docker, wait
from tests.production.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]
CTL = ("supervisorctl", "-c", "/etc/carillon/supervisord/supervisord.conf")
DECLARED = {"uwsgi:uwsgi_0", "uwsgi:uwsgi_1", "daphne:daphne_0", "daphne:daphne_1", "runworker", "listener"}


def inside(stack, *command: str) -> str:
    return docker("exec", stack.container("app"), *command)


def ctl(stack, *command: str) -> str:
    return inside(stack, *CTL, *command)


def programs(stack) -> dict[str, str]:
    return dict(line.split()[:2] for line in ctl(stack, "status").splitlines())


def test_the_programs_are_the_declared_ones_and_none_is_young(stack):
    assert set(programs(stack)) == DECLARED

    def settled() -> bool:
        lines = ctl(stack, "status").splitlines()
        ages = [re.search(r" RUNNING .*uptime (\d+):(\d+):(\d+)", line) for line in lines]
        return all(age and int(age[1]) * 3600 + int(age[2]) * 60 + int(age[3]) > 10 for age in ages)

    wait("every program has run for 10 s", settled, 60)


def test_an_event_goes_all_the_way(stack):
    assert stack.deliver()


def test_it_is_read_only_without_root_and_without_capabilities(stack):
    for service in ("app", "nginx", "rabbitmq", "postgresql"):
        settings = stack.inspect(service)["HostConfig"]
        assert settings["ReadonlyRootfs"] is True
        assert settings["CapDrop"] == ["ALL"]
        assert settings["SecurityOpt"] == ["no-new-privileges:true"]
        assert settings["Privileged"] is False
        assert {uid for _, uid, _ in stack.processes(service)} & {0} == set()


def test_secrets_are_files_and_nothing_else(stack, config):
    words = {path.name: path.read_text().strip() for path in config.secrets.iterdir()}
    seen = json.dumps([stack.inspect(service) for service in ("app", "nginx", "rabbitmq", "postgresql")])
    seen += docker("logs", stack.container("app")) + docker(
        "history", "--no-trunc", "carillon/app:production"
    )
    seen += "".join(command for _, _, command in stack.processes("app"))
    for name, word in words.items():
        assert word not in seen, name


def test_the_files_are_the_repositorys(stack):
    for path in [
        ROOT / "supervisord/supervisord.conf",
        ROOT / "supervisord/listener.py",
        *(ROOT / "supervisord/conf.d").glob("*.conf"),
        ROOT / "supervisord/uwsgi.ini",
    ]:
        there = Path("/etc/carillon") / ("uwsgi.ini" if path.name == "uwsgi.ini" else path.relative_to(ROOT))
        assert (
            inside(stack, "sha256sum", str(there)).split()[0] == hashlib.sha256(path.read_bytes()).hexdigest()
        )


@pytest.mark.parametrize("program", ["uwsgi:uwsgi_0", "runworker", "daphne:daphne_0"])
def test_a_killed_program_comes_back(stack, program):
    pid = ctl(stack, "pid", program).strip()
    inside(stack, "python3", "-c", f"import os; os.kill({pid}, 9)")
    wait(f"a new {program}", lambda: ctl(stack, "pid", program).strip() not in (pid, "0"), 30)
    wait("an event goes all the way", stack.deliver, 60)


def test_sockets_survive_the_restart_of_the_other_process(stack):
    sockets = [stack.websocket() for _ in range(12)]
    try:
        for socket in sockets:
            assert json.loads(socket.recv(10))["accept"] is True
        ctl(stack, "restart", "daphne:daphne_0")
        wait("daphne_0 runs", lambda: programs(stack)["daphne:daphne_0"] == "RUNNING", 60)
        alive = 0
        for socket in sockets:
            try:
                socket.send(json.dumps({"groups": {}}))
                alive += json.loads(socket.recv(5))["groups_current"] == []
            except Exception:
                continue
        # The kernel gave each process some; those of daphne_1 noticed nothing.
        assert alive > 0, "no socket survived, though one of two processes was not touched"
    finally:
        for socket in sockets:
            socket.close()


def test_programs_restarted_one_by_one_under_load_fail_no_request(stack):
    with Ledger(stack) as ledger:
        for program in ("uwsgi:uwsgi_0", "uwsgi:uwsgi_1", "daphne:daphne_0", "daphne:daphne_1", "runworker"):
            ctl(stack, "restart", program)
            wait(f"{program} runs", lambda program=program: programs(stack)[program] == "RUNNING", 60)
        wait("an event goes all the way", stack.deliver, 60)
    ledger.wait_until_heard(5)
    print(ledger.report())
    assert ledger.failures == []
    assert ledger.requests > 20


def test_a_program_that_is_given_up_ends_the_container_and_the_engine_brings_it_back(stack):
    started = stack.inspect("app")["State"]["StartedAt"]
    # What a broken configuration does: the program ends at once, again and again.
    script = "import os,sys; os.kill(int(sys.argv[1]), 9)"
    deadline = time.monotonic() + 60
    while stack.inspect("app")["State"]["StartedAt"] == started and time.monotonic() < deadline:
        try:
            pid = ctl(stack, "pid", "runworker").strip()
            if pid.isdigit() and pid != "0":
                inside(stack, "python3", "-c", script, pid)
        except AssertionError:
            continue  # between two programs, or the container is going down: which is what we wait for
    assert stack.inspect("app")["State"]["StartedAt"] != started, "the container did not end"
    assert "FATAL: runworker keeps failing" in docker("logs", stack.container("app"))
    wait("the container serves again", lambda: stack.healthy("app") and stack.deliver(), 120)

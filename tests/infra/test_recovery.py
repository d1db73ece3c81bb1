"""What is killed comes back and serves, and what is saved is run."""

import contextlib
import time
from pathlib import Path

import pytest

from tests.infra.stack import SERVICES, docker, wait

SOURCE = Path(__file__).parents[2] / "src" / "carillon"


def kill(stack, service: str) -> None:
    """SIGKILL to the container's first process, from outside as the kernel's memory killer would.

    Not `docker kill`: that counts as a wish, and what a person stopped is not started again. A container in the machine's
    process namespace may do it for everyone who may use Docker.
    """
    pid = stack.inspect(service)["State"]["Pid"]
    image = stack.inspect("nginx")["Image"]
    docker(
        "run",
        "--rm",
        "--pid=host",
        "--network=none",
        "--user=0",
        "--entrypoint=bash",
        image,
        "-c",
        f"kill -KILL {pid}",
    )


def delivers(stack) -> bool:
    with contextlib.suppress(Exception):
        return stack.deliver()
    return False


@pytest.mark.parametrize("service", SERVICES)
def test_killed_comes_back_and_serves(stack, service):
    wait("an event all the way, before", lambda: delivers(stack), 60, pause=0.5)
    before = stack.inspect(service)
    kill(stack, service)
    wait(
        f"{service} runs again",
        lambda: (
            (now := stack.inspect(service))["State"]["Running"]
            and now["State"]["Pid"] != before["State"]["Pid"]
        ),
        20,
    )
    wait(f"an event all the way after {service} was killed", lambda: delivers(stack), 90, pause=0.5)
    wait(f"{service} is healthy", lambda: stack.healthy(service), 60)
    assert stack.inspect(service)["RestartCount"] == before["RestartCount"] + 1, "once, not again and again"
    for other in set(SERVICES) - {service}:
        assert stack.inspect(other)["State"]["Running"], other


MAIN = {
    "uwsgi": ("uwsgi --ini", "carillon uWSGI"),
    "daphne": ("bin/daphne ",),
    "runworker": ("-m django runworker",),
}


def servers(stack, service: str) -> set[int]:
    return {
        pid
        for pid, _, command in stack.processes(service)
        if any(words in command for words in MAIN[service])
    }


@pytest.mark.parametrize("file", ["settings.py", "web/static/carillon/carillon.js"])
def test_a_saved_file_restarts_the_processes_within_two_seconds(stack, file):
    if not SOURCE.samefile(mounted_source(stack) / "carillon"):
        pytest.skip("the stack runs another checkout")
    wait("an event all the way, before", lambda: delivers(stack), 60, pause=0.5)
    before = {service: wait(f"{service} runs", lambda s=service: servers(stack, s), 30) for service in MAIN}
    path = SOURCE / file
    with path.open("r+b") as opened:  # saved with the same contents, and never empty in between
        contents = opened.read()
        opened.seek(0)
        opened.write(contents)
    saved = time.monotonic()
    taken = {}
    while len(taken) < len(MAIN) and time.monotonic() - saved < 10:
        for service in set(MAIN) - set(taken):
            now = servers(stack, service)
            if now and not now & before[service]:
                taken[service] = time.monotonic() - saved
    print(f"restarted after { ({service: round(seconds, 2) for service, seconds in taken.items()}) } s")
    wait("an event all the way, after", lambda: delivers(stack), 60, pause=0.2)
    print(f"an event all the way after {time.monotonic() - saved:.2f} s")
    assert set(taken) == set(MAIN)
    assert max(taken.values()) < 2, taken


def mounted_source(stack) -> Path:
    mounts = {mount["Destination"]: mount["Source"] for mount in stack.inspect("uwsgi")["Mounts"]}
    return Path(mounts["/opt/carillon/src"])


def test_nginx_finds_a_container_with_another_address(stack):
    """Two containers change places in the network, as after a restart of all: no restart of nginx, no outage that stays."""
    network = next(iter(stack.inspect("uwsgi")["NetworkSettings"]["Networks"]))
    container = stack.container("uwsgi")
    old = stack.inspect("uwsgi")["NetworkSettings"]["Networks"][network]["IPAddress"]
    docker("network", "disconnect", network, container)
    holder = docker(
        "run",
        "--rm",
        "--detach",
        f"--network={network}",
        "--entrypoint=sleep",
        stack.inspect("nginx")["Image"],
        "120",
    ).strip()
    try:
        docker("network", "connect", "--alias=uwsgi", network, container)
        new = stack.inspect("uwsgi")["NetworkSettings"]["Networks"][network]["IPAddress"]
        assert new != old
        wait("nginx asks the new address", lambda: stack.api("/api/v2/me/")["count"] == 1, 15)
    finally:
        docker("rm", "--force", holder)
    wait("an event all the way", lambda: delivers(stack), 60, pause=0.5)

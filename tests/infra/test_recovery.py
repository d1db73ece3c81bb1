"""What is killed comes back and serves, and what is saved is run."""

import contextlib
import time
from pathlib import Path

import pytest

from tests.infra.stack import SERVICES, docker, wait

SOURCE = Path(__file__).parents[2] / "src" / "carillon"


def kill(stack, service: str) -> None:
    """SIGKILL to the container's first process, as the kernel would when memory is short.

    Not `docker kill`: that counts as a wish, and what a person stopped is not started again. A container in
    the machine's process namespace may do it for everyone who may use Docker.
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
    "daphne": ("-m carillon.server ",),
    "runworker": ("-m django runworker",),
}


def servers(stack, service: str) -> set[int]:
    return {
        pid
        for pid, _, command in stack.processes(service)
        if any(words in command for words in MAIN[service])
    }


@pytest.mark.parametrize(
    ("file", "concerned"),
    [("settings.py", {"uwsgi", "daphne", "runworker"}), ("static/carillon/carillon.js", {"uwsgi"})],
)
def test_a_saved_file_restarts_whom_it_concerns(stack, file, concerned):
    """How long it takes is printed, not asserted: a machine that tests is busy."""
    if not SOURCE.samefile(mounted_source(stack) / "carillon"):
        pytest.skip("the stack runs another checkout")
    wait("an event all the way, before", lambda: delivers(stack), 60, pause=0.5)
    seconds = save_and_time(stack, SOURCE / file, concerned)
    print(f"{file}: restarted after {seconds:.2f} s")
    wait("an event all the way, after", lambda: delivers(stack), 60, pause=0.2)


def save_and_time(stack, path: Path, concerned: set[str]) -> float:
    """Saves a file as it is; seconds until the services run new processes of their server alone."""
    before = {service: wait(f"{service} runs", lambda s=service: servers(stack, s), 30) for service in MAIN}
    with path.open("r+b") as opened:  # never empty in between
        contents = opened.read()
        opened.seek(0)
        opened.write(contents)
    saved = time.monotonic()

    def restarted():
        now = {service: servers(stack, service) for service in concerned}
        return all(now[service] and not now[service] & before[service] for service in concerned)

    wait(f"{', '.join(sorted(concerned))} restarted after {path.name} was saved", restarted, 60, pause=0.05)
    seconds = time.monotonic() - saved
    for other in set(MAIN) - concerned:
        assert servers(stack, other) == before[other], f"{path.name} is none of {other}'s"
    return seconds


def mounted_source(stack) -> Path:
    mounts = {mount["Destination"]: mount["Source"] for mount in stack.inspect("uwsgi")["Mounts"]}
    return Path(mounts["/opt/carillon/src"])


def test_nginx_finds_a_container_with_another_address(stack):
    """As after a restart of everything, when addresses are dealt anew: nginx needs no restart."""
    (network,) = stack.inspect("nginx")["NetworkSettings"]["Networks"]
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
        # What uwsgi had open from its old address leads nowhere now, and is found to be dead one by one.
        docker("restart", "--time", "12", container)
    wait("uwsgi is healthy", lambda: stack.healthy("uwsgi"), 60)
    wait("an event all the way", lambda: delivers(stack), 60, pause=0.5)

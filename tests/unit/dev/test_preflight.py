"""What is in the way is one line that helps, and nothing has been touched by then."""

import collections
import os
import shutil
import socket
import subprocess
import sys

import pytest

from dev import __main__ as command
from dev import (
    config,
    debian,
    development,
    engine,
    observe,
    preflight,
    process,
    production,
    project,
    secret_files,
)
from dev.output import Failure

ENGINE_26 = 'case "$*" in "version --format"*) echo 26.1.5;; info*) echo /nowhere/docker;; *) exit 0;; esac'


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def line_of(call, *arguments):
    with pytest.raises(Failure) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def with_port(settings, port):
    return settings.moved(ports={**settings.ports, "CARILLON_HTTPS_PORT": port})


def free(settings):
    """Ports that nobody uses: those of a running stack are not ours to want."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = server.getsockname()[1]
    return settings.moved(ports=dict.fromkeys(settings.ports, first))


def test_a_port_in_use_names_who_and_what_to_set(machine, settings, busy_port):
    machine.program("docker", ENGINE_26)
    line = line_of(preflight.ports, with_port(free(settings), busy_port))
    assert line.startswith(f"port {busy_port} is in use by ")
    assert f"(process {os.getpid()})" in line
    assert line.endswith("choose another with CARILLON_HTTPS_PORT=…")


def published(port, project):
    """An engine with one container, which has this port."""
    return f"case $* in *publish={port}\\ *) printf '{project}\\t{project}-nginx-1\\n'; esac"


def test_a_port_of_another_stack_names_its_container(machine, settings, busy_port):
    machine.program("docker", published(busy_port, "other"))
    line = line_of(preflight.ports, with_port(free(settings), busy_port))
    assert f"port {busy_port} is in use by container other-nginx-1" in line


def test_a_port_of_this_very_stack_is_no_obstacle(machine, settings, busy_port):
    machine.program("docker", published(busy_port, settings.project))
    preflight.ports(with_port(free(settings), busy_port))


def test_a_port_of_what_watches_likewise(machine, settings, busy_port):
    machine.program("docker", "exit 1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        alertmanager = str(server.getsockname()[1])
    ports = {"CARILLON_PROMETHEUS_PORT": str(busy_port), "CARILLON_ALERTMANAGER_PORT": alertmanager}
    watched = observe.beside(free(settings), ports)
    assert line_of(preflight.ports, watched).endswith("choose another with CARILLON_PROMETHEUS_PORT=…")
    machine.program("docker", published(busy_port, settings.project))
    preflight.ports(watched)


def test_too_little_disk(machine, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 2**29))
    line = line_of(preflight.disk, preflight.NEEDED_FOR_IMAGES)
    assert "too little disk" in line
    assert "0.5 GiB" in line


def test_what_the_project_declares_or_no_longer_does_makes_no_stack_of_another_kind(machine, settings):
    files = ",".join(map(str, (*settings.compose_files, settings.processes)))
    machine.program("docker", f"echo {files}; echo {settings.compose_files[0]}")
    preflight.neighbour(settings)
    settings.state.mkdir()
    settings.processes.touch()
    preflight.neighbour(settings)


def test_a_stack_that_is_observed_is_the_same_stack(machine, settings):
    """It is started, and taken down, by whoever did not know of it."""
    files = ",".join(map(str, (*settings.compose_files, settings.processes, config.OBSERVABILITY)))
    machine.program("docker", f"echo {files}; echo {settings.compose_files[0]}")
    preflight.neighbour(settings)
    preflight.neighbour(observe.beside(settings, {}))


def test_what_the_project_declares_comes_first(machine, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "FILE", tmp_path / "carillon.toml")
    project.FILE.write_text('websocket_prefixes = ["ws/"]')
    line = line_of(lambda: preflight.check(settings, images_present=True))
    assert (
        line == f"{project.FILE}: websocket_prefixes: 'ws/' must begin and end with one slash: write '/ws/'"
    )


def test_another_checkouts_stack_is_left_alone(machine, settings, tmp_path):
    theirs = tmp_path / "theirs" / "compose" / "dev.yml"
    machine.program("docker", f"echo {theirs}")
    preflight.neighbour(settings)  # that checkout is gone: what it left may be replaced
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert f"belongs to the checkout {tmp_path / 'theirs'}" in line_of(preflight.neighbour, settings)
    machine.program("docker", f"echo {config.COMPOSE_FILE}")
    preflight.neighbour(settings)


def test_no_docker_for_an_ordinary_user(machine):
    machine.user(1000)
    assert line_of(engine.check).startswith("Docker is missing: install Docker Engine")


def test_no_docker_for_root_on_debian_is_ours_to_mend(machine, monkeypatch):
    monkeypatch.setattr(debian, "can_install", lambda: True)
    assert engine.check() is False


def test_a_silent_engine(machine, monkeypatch):
    machine.program("docker", "exec sleep 60")
    monkeypatch.setattr(engine, "_ANSWER_SECONDS", 0.2)
    assert "does not answer within" in line_of(engine.check)


def test_a_user_that_docker_refuses(machine):
    machine.program("docker", "echo 'permission denied while trying to connect' >&2; exit 1")
    assert "usermod -aG docker" in line_of(engine.check)


def test_a_stopped_engine(machine, monkeypatch):
    machine.program("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    machine.user(1000)
    assert "sudo systemctl start docker" in line_of(engine.check)
    machine.user(0)
    assert engine.check() is False
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    assert "DOCKER_HOST=tcp://elsewhere:2375" in line_of(engine.check)


def test_an_old_engine(machine):
    machine.program("docker", "echo 24.0.7")
    assert "24.0.7 is too old: 25.0 or newer" in line_of(engine.check)
    machine.program("docker", ENGINE_26)
    assert engine.check() is True


def test_missing_plugins(machine, settings):
    machine.program("docker", 'case "$1" in version) echo 26.1.5;; *) exit 1;; esac')
    machine.user(1000)
    assert "Compose (v2) and Buildx is missing" in line_of(engine.ensure, settings)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"ID": "debian", "VERSION_ID": "13"}, 13),
        ({"ID": "debian", "VERSION_CODENAME": "forky"}, 999),
        ({"ID": "ubuntu", "VERSION_ID": "24.04"}, None),
        (None, None),
    ],
)
def test_debian_release(monkeypatch, values, found):
    def read():
        if values is None:
            raise FileNotFoundError
        return values

    monkeypatch.setattr(debian.platform, "freedesktop_os_release", read)
    assert debian.release() == found


def test_a_stale_pid_file_goes_and_a_true_one_stays(tmp_path):
    file = tmp_path / "docker.pid"
    assert not engine.remove_stale_pid(file, "dockerd")
    file.write_text("999999999")
    assert engine.remove_stale_pid(file, "dockerd")
    file.write_text(str(os.getpid()))  # somebody else has the number now
    assert engine.remove_stale_pid(file, "dockerd")
    assert not file.exists()
    with open("/proc/self/comm") as comm:
        name = comm.read().strip()
    file.write_text(str(os.getpid()))
    assert not engine.remove_stale_pid(file, name)
    assert file.exists()


def test_an_engine_that_dies_shows_the_end_of_its_log(machine, monkeypatch, tmp_path):
    machine.program("docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    machine.program("dockerd", "echo 'no iptables here'; exit 3")
    monkeypatch.setattr(engine, "_ENGINE_LOG", tmp_path / "dockerd.log")
    monkeypatch.setattr(engine, "_PID_FILES", {})
    monkeypatch.setattr(engine, "_SYSTEMD", tmp_path / "none")
    with pytest.raises(Failure, match=r"did not start \(it ended with 3\)") as caught:
        engine.start()
    assert caught.value.details == ["no iptables here"]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"CARILLON_HTTP_PORT": "http"}, "CARILLON_HTTP_PORT=http is not a port"),
        ({"CARILLON_HTTP_PORT": "70000"}, "CARILLON_HTTP_PORT=70000 is not a port"),
        ({"CARILLON_HTTP_PORT": "8043"}, "are the same port"),
        ({"CA_BUNDLE": "/nowhere.pem"}, "CA_BUNDLE=/nowhere.pem does not exist"),
    ],
)
def test_a_bad_variable_is_one_line(environ, said):
    assert said in line_of(config.load, environ)


def test_python_without_venv_is_one_line(machine):
    machine.program("python3", "exit 1")
    script = (config.ROOT / "bin" / "dev").read_text()
    # Not this machine's own Python, and not its apt: the rest of the script as it stands.
    script = script.replace("/usr/bin/python3", "/nowhere/python3").replace("apt-get", "no-such-apt-get")
    for program in ("dirname", "id"):
        machine.program(program, f'exec /usr/bin/{program} "$@"')
    answer = subprocess.run(
        ["/bin/sh", "-c", script, str(config.ROOT / "bin" / "dev")], capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert answer.stderr.count("\n") == 1
    assert "install python3 and python3-venv" in answer.stderr


def test_an_unknown_command_is_one_line():
    answer = subprocess.run(
        [sys.executable, "-m", "dev", "nonsense"], cwd=config.ROOT, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert answer.stderr.startswith("carillon: usage: ")


def test_a_program_that_does_not_end_is_one_line(machine, monkeypatch, capsys):
    machine.program("docker", "exec sleep 5")
    ask = ["docker", "image", "inspect", "carillon/app:it's"]
    monkeypatch.setitem(command.COMMANDS, "down", lambda _: process.ask(ask, seconds=0.1))
    monkeypatch.setattr(command.os, "chdir", lambda _: None)
    assert command.run(["down"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("carillon: `docker image inspect ")
    assert "did not end within 0.1 s: see whether the engine answers" in said
    assert said.count("\n") == 1


def test_a_checkout_made_with_a_strict_umask(tmp_path):
    for folder in ("src", "nginx", "images", "supervisord"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "nginx" / "nginx.conf"
    file.touch()
    preflight.readable(tmp_path)
    file.chmod(0o600)
    assert "chmod -R o+rX src nginx images supervisord" in line_of(preflight.readable, tmp_path)


def test_a_stack_of_another_kind_is_not_taken_over(machine, settings):
    there = config.ROOT / "compose"
    machine.program("docker", f"echo {there}/production.yml,{there}/cluster.yml")
    line = line_of(preflight.neighbour, settings)
    assert "made from compose/production.yml and compose/cluster.yml" in line
    assert "make cluster-down" in line
    preflight.neighbour(production.load({"CARILLON_PROJECT": settings.project}, cluster=True))


def test_a_lost_password_of_a_database_that_is_there_is_not_made_anew(machine, settings):
    machine.program("docker", "exit 0")  # the volume is there
    secret_files.ensure(settings.secrets)
    development.ensure_secrets(settings, anew="make clean")
    (settings.secrets / "database_password").unlink()
    line = line_of(lambda: development.ensure_secrets(settings, anew="make clean"))
    assert (
        f"{settings.secrets}/database_password) is gone: put it back, or begin anew with `make clean`" in line
    )
    assert not (settings.secrets / "database_password").exists()

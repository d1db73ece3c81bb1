"""Production on this machine: the production container, the cluster of containers, and the tests of both and
of real hosts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dev import base_image, development, environments, images, process, secret_files
from dev.config import ROOT, Config
from dev.output import Failure, progress, say, step

PROJECT = "carillon-production"
STATE = ".dev-production"
LOCK = "requirements/production-test.txt"
PORTS = {"CARILLON_HTTP_PORT": 50080, "CARILLON_HTTPS_PORT": 50443}
HOST_IMAGE = "carillon-prod-host"
_READY_SECONDS = 300

# The application's has the release in it. Tags of their own: development's images follow the checkout that
# `make dev` runs from.
IMAGES = (
    images.Image(
        "app",
        ("images/app", "requirements/app.in", "requirements/app.txt", "pyproject.toml", "src", "supervisord"),
        target="production",
        python_packages=True,
        tag_suffix="production",
    ),
    *(replace(image, tag_suffix="production") for image in images.IMAGES if image.name != "app"),
)


@dataclass(frozen=True)
class Suite:
    """A part of the proof: its command, run in ansible/ with the environment of requirements/production-
    test.txt.
    """

    name: str
    command: tuple[str, ...]
    environ: tuple[tuple[str, str], ...] = ()
    folder: str = "."


LINTS = (
    Suite("ansible-lint", ("ansible-lint", "--offline", "--profile", "production", "-q"), folder="ansible"),
    Suite("yamllint", ("yamllint", "--strict", "ansible", "compose", "nginx/sites")),
    Suite(
        "syntax",
        (
            "ansible-playbook",
            "--syntax-check",
            "-i",
            "inventories/example-cluster",
            "site.yml",
            "upgrade.yml",
            "rollback.yml",
            "rotate.yml",
            "backup.yml",
            "restore.yml",
            "check.yml",
        ),
        folder="ansible",
    ),
)
# Molecule: a dry run on a fresh host, converge, a second one that changes nothing, and then testinfra looks.
SINGLE = (Suite("host", ("molecule", "test", "--scenario-name", "single"), folder="ansible"),)
FULL = (Suite("cluster", ("molecule", "test", "--scenario-name", "cluster"), folder="ansible"),)
CONTAINER = (Suite("container", ("pytest", "-q", "-p", "no:cacheprovider", "tests/production/container")),)


def compose(config: Config, *arguments: str, cluster: bool = False, seconds: float = 300) -> str:
    """What `docker compose …` on the production files wrote. Raises `Failure` when it fails."""
    files = ["compose/production.yml", *(["compose/cluster.yml"] if cluster else [])]
    command = ["docker", "compose", "--project-name", config.project]
    for file in files:
        command += ["--file", str(ROOT / file)]
    answer = process.ask([*command, *arguments], seconds=seconds, env=environment(config, cluster=cluster))
    if answer.returncode:
        raise Failure(f"`docker compose {arguments[0]}` failed", answer.stderr.strip().splitlines()[-25:])
    return answer.stdout


def ports() -> dict[str, int]:
    """Where nginx is published: as the environment says, or beside what `make dev` and other programs use."""
    return {name: int(os.environ.get(name) or port) for name, port in PORTS.items()}


def environment(config: Config, *, cluster: bool) -> dict[str, str]:
    ports = {name: str(port) for name, port in config.ports.items()}
    origins = (
        f"https://localhost:{ports['CARILLON_HTTPS_PORT']},https://127.0.0.1:{ports['CARILLON_HTTPS_PORT']}"
    )
    return {
        "CARILLON_PROJECT": config.project,
        "CARILLON_STATE": str(config.state),
        "CARILLON_LISTEN": config.listen,
        "CARILLON_ALLOWED_HOSTS": os.environ.get("CARILLON_ALLOWED_HOSTS") or "localhost,127.0.0.1,[::1]",
        "CARILLON_TRUSTED_ORIGINS": os.environ.get("CARILLON_TRUSTED_ORIGINS") or origins,
        "CARILLON_AMQP_HOSTS": "broker1,broker2,broker3" if cluster else "rabbitmq",
        **ports,
    }


def build(config: Config) -> None:
    base_image.ensure(config)
    images.ensure(config, IMAGES)


def up(config: Config, *, cluster: bool = False) -> None:
    """The production containers run and are healthy. Run again, it changes nothing."""
    from dev import certificates, site_file

    secret_files.private_directory(config.state)
    build(config)
    secret_files.ensure(config.secrets)
    secret_files.project_settings(config.project_settings)
    certificates.ensure(config.certificates)
    site_file.write(ROOT / "nginx/sites/container.yml", config.state / "nginx" / "site.conf")
    step(f"Starting the containers of {config.project}")
    # One-shots first: compose counts one that has ended as failed when it waits for the rest.
    compose(config, "up", "--detach", "--remove-orphans", cluster=cluster)
    deadline = time.monotonic() + _READY_SECONDS
    while waiting := unhealthy(config, cluster=cluster):
        if time.monotonic() > deadline:
            logs = compose(config, "logs", "--no-color", "--tail", "30", *waiting, cluster=cluster)
            raise Failure(f"{', '.join(waiting)}: not healthy within {_READY_SECONDS} s", logs.splitlines())
        time.sleep(1)
    password = secret_files.read(config.secrets, "admin_password")
    answer = process.ask(
        [
            "docker",
            "compose",
            "--project-name",
            config.project,
            "exec",
            "-T",
            "app",
            "carillon",
            "manage",
            "ensure_admin",
            "--password-file",
            "-",
        ],
        stdin=password,
        seconds=60,
        env=environment(config, cluster=cluster),
    )
    if answer.returncode:
        raise Failure("the administrator could not be made", answer.stderr.strip().splitlines())


def unhealthy(config: Config, *, cluster: bool) -> list[str]:
    """Services with a health check that have not passed it."""
    rows = compose(config, "ps", "--format", "{{.Service}} {{.Health}}", cluster=cluster).splitlines()
    found = [row.split() for row in rows]
    expected = {"nginx", "app", "rabbitmq", "postgresql"} | ({"broker2", "broker3"} if cluster else set())
    healthy = {row[0] for row in found} - {
        row[0] for row in found if row[1:] != ["healthy"] and row[0] in expected
    }
    return sorted(expected - healthy)


def down(config: Config, *, volumes: bool = False) -> None:
    compose(config, "down", "--remove-orphans", *(["--volumes"] if volumes else []), cluster=True)


def report(config: Config) -> None:
    ports = environment(config, cluster=False)
    say(f"""
Production in containers is up.

  page       https://localhost:{ports["CARILLON_HTTPS_PORT"]}   (plain HTTP redirects)
  log in     admin / see {config.secrets}/admin_password
  authority  {config.certificates}/ca.pem
  stop       bin/dev production-down
""")


# --- tests -----------------------------------------------------------------------------------------------


def host_image(config: Config) -> None:
    """A Debian host with systemd, for Ansible."""
    process.work(
        ["docker", "build", "--progress", "plain", "--tag", HOST_IMAGE, str(ROOT / "tests/production/host")],
        what="the image of a host",
        log=config.logs / "build-host.log",
        seconds=900,
        env={"DOCKER_BUILDKIT": "1"},
    )


def enter(config: Config) -> None:
    environments.enter(environments.ensure(config, "venv-production", LOCK))


def test(config: Config, *, full: bool) -> int:
    """Lints, a real host, the production container; with `full` the cluster of hosts. 0 when all passed."""
    base_image.ensure(config)
    host_image(config)
    build(config)
    secrets = config.state / "host-secrets"
    shutil.rmtree(secrets, ignore_errors=True)
    suites: Sequence[Suite] = [*LINTS, *SINGLE, *CONTAINER, *(FULL if full else ())]
    path = f"{Path(sys.prefix, 'bin')}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    results = []
    for suite in suites:
        step(f"{suite.name}: {' '.join(suite.command)}")
        start = time.monotonic()
        answer = subprocess.run(
            suite.command,
            cwd=ROOT / suite.folder,
            check=False,
            env={
                **os.environ,
                **dict(suite.environ),
                "PATH": path,
                "PYTHONPATH": str(ROOT),
                "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"),
                # One for each scenario: they are installations of their own.
                "CARILLON_SECRETS_DIR": str(secrets / suite.name),
            },
        )
        results.append((suite.name, answer.returncode, time.monotonic() - start))
        if answer.returncode and suite in SINGLE:
            break
    say()
    for name, code, seconds in results:
        say(f"  {'passed' if code == 0 else 'FAILED'}  {name:<12} {seconds:6.0f} s")
    return int(any(code for _, code, _ in results))


# --- bundle ----------------------------------------------------------------------------------------------


def bundle(config: Config) -> Path:
    """One archive with the playbooks, the release with all its wheels, and the control node's tools.

    For a network without a package index; Debian's packages come from the hosts' own sources there.
    """
    built = ROOT / "build" / "bundle"
    wheels = built / "tools"
    built.mkdir(parents=True, exist_ok=True)
    process.work(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--require-hashes",
            "--dest",
            str(wheels),
            "--requirement",
            str(ROOT / development.TOOLS_LOCK),
        ],
        what="the control node's tools",
        log=config.logs / "bundle.log",
        seconds=600,
    )
    process.work(
        [
            str(Path(sys.prefix, "bin", "ansible")),
            "localhost",
            "-m",
            "carillon_release",
            "-a",
            f"source={ROOT} cache={ROOT / 'build/releases'} python=3.13 architecture=x86_64",
        ],
        what="the release",
        log=config.logs / "bundle-release.log",
        seconds=900,
        env={"ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg")},
    )
    release = max((ROOT / "build/releases").glob("carillon-*.tar"), key=lambda path: path.stat().st_mtime)
    archive = ROOT / "build" / f"carillon-bundle-{release.stem.removeprefix('carillon-')}.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(release, f"carillon/{release.name}")
        tar.add(wheels, "carillon/tools")
        for name in ("ansible", "nginx", "supervisord", "requirements", "docs/how-to", "LICENSE"):
            if (ROOT / name).exists():
                tar.add(ROOT / name, f"carillon/{name}", filter=_clean)
    progress(f"{archive.relative_to(ROOT)}: {archive.stat().st_size // 2**20} MiB")
    return archive


def _clean(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = Path(member.name).parts
    # No secret of an inventory, whoever makes the bundle.
    skip = {"__pycache__", "secrets", "backups", "inventories"} & set(parts) and "example" not in member.name
    return None if skip and parts[-1] != "inventories" else member

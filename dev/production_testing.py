"""`make test-production`: real hosts by Ansible and the production containers, proved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

from dev import base_image, development, engine, process, production, testing
from dev import config as configuration
from dev.config import ROOT, Config
from dev.output import Failure
from dev.testing import Suite

PROJECT = "carillon-production-test"
STATE = ".dev-production-test"
HOST_IMAGE = "carillon-prod-host"
# For whom Carillon is proved by the same tests as on Debian.
UBUNTU_IMAGE = "carillon-prod-host-ubuntu"
# Of tests/production/{single,bundle,repository,quadlet,pages} and ansible/molecule; the cluster gets c4 anew.
HOSTS = (
    "carillon-prod-single",
    *("carillon-prod-c1", "carillon-prod-c2", "carillon-prod-c3", "carillon-prod-c4"),
    *("carillon-prod-bundle", "carillon-prod-bundle-mirror", "carillon-prod-repository"),
    *("carillon-prod-quadlet", "carillon-prod-pages", "carillon-prod-pages-control"),
)
NETWORKS = tuple(
    f"carillon-prod-{name}" for name in ("single", "cluster", "bundle", "repository", "quadlet", "pages")
)
# What the test of an upgrade makes, so that the checkout is another release: a module, a program, a page.
RELEASE_MARKER = ROOT / "src/carillon/_release_marker.py"
PROGRAM_MARKER = ROOT / "supervisord/conf.d/_release_marker.conf"
PAGE_MARKER = ROOT / "nginx/pages/_release_marker.html"
MARKERS = (RELEASE_MARKER, PROGRAM_MARKER, PAGE_MARKER)
# A clone for the drill, in which releases are checked out one after the other.
DRILL_CLONE = ROOT / ".dev-prod-drill-clone"
# A repository of a team's own that an older release makes there.
DRILL_SITE = ROOT / ".dev-prod-drill-site" / "drill_site"
# A clone of this checkout, in which the pages' commands are typed.
PAGES_CLONE = ROOT / ".dev-prod-pages-clone"
# The stacks of tests/production, beside whatever else runs here: name, and the first of their ports.
STACKS = {
    **{"container": 51180, "container-cluster": 51280, "parity": 51380},
    **{"drill": 51480, "drill-site": 51580, "pages": 51680},
}

LINTS = (
    Suite("ansible-lint", ("ansible-lint", "--offline", "--profile", "production", "-q"), folder="ansible"),
    Suite("yamllint", ("yamllint", "--strict", "ansible", "compose", "nginx/sites")),
    Suite(
        "syntax",
        (
            *("ansible-playbook", "--syntax-check", "-i", "inventories/example-cluster"),
            *sorted(path.name for path in (ROOT / "ansible").glob("[a-z]*.yml") if path.name != "galaxy.yml"),
        ),
        folder="ansible",
    ),
)
# Settings of pyproject.toml are for plugins too that this environment does not have.
_PYTEST = ("pytest", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning")
# A dry run on a fresh host, converge, a second one that changes nothing, and then testinfra looks.
SINGLE = Suite("host", (*_PYTEST, "-v", "--durations=15", "tests/production/single"))
UBUNTU = replace(SINGLE, name="ubuntu", environ=(("CARILLON_HOST_IMAGE", UBUNTU_IMAGE),))
CLUSTER = Suite("hosts", ("molecule", "test", "--scenario-name", "cluster"), folder="ansible")
CONTAINER = Suite("container", (*_PYTEST, "-q", "tests/production/container"))
CONTAINERS = Suite("containers", (*_PYTEST, "-q", "tests/production/container_cluster"))
REPOSITORY = Suite("repository", (*_PYTEST, "-q", "tests/production/repository"))
BUNDLE = Suite("bundle", (*_PYTEST, "-q", "tests/production/bundle"))
# Podman and systemd, and no Docker, on a host.
QUADLET = Suite("quadlet", (*_PYTEST, "-q", "tests/production/quadlet"))
# Every command of the pages of Operate, by somebody who only reads.
PAGES = Suite("pages", (*_PYTEST, "-q", "tests/production/pages"))
# From an older release to this checkout and back: on a host, in containers, and a repository of a team's own.
DRILL = Suite("drill", (*_PYTEST, "-q", "tests/production/drill"))


def load() -> Config:
    config = production.load(configuration.unnamed(), project=PROJECT, state=STATE)
    # The ports that the tests use, and not those of a `make production` that may run meanwhile.
    return replace(config, ports=stack("container").ports)


def stack(name: str) -> Config:
    """The configuration of one of `STACKS`."""
    names = configuration.DEFAULT_PORTS if name == "parity" else production.PORTS
    environ = {variable: str(STACKS[name] + number) for number, variable in enumerate(names)}
    project, state = f"carillon-prod-{name}", f".dev-prod-{name}"
    if name == "parity":
        return configuration.load(environ, project=project, state=state)
    return production.load(environ, cluster=name == "container-cluster", project=project, state=state)


def host_image(config: Config, tag: str = HOST_IMAGE, base: base_image.Base = base_image.DEBIAN) -> None:
    """A host with systemd, for Ansible."""
    base_image.ensure(config, base)
    process.work(
        [
            *("docker", "build", "--progress", "plain", "--build-arg", f"BASE={base.image}"),
            *("--tag", tag, str(ROOT / "tests/production/host")),
        ],
        what=f"the image of a host ({base.image})",
        log=config.logs / f"build-{tag}.log",
        seconds=900,
        env={"DOCKER_BUILDKIT": "1"},
    )


def remove_hosts() -> None:
    """The hosts of these tests, whoever left them: a run that was cut off, or this one."""
    process.ask(["docker", "rm", "--force", "--volumes", *HOSTS], seconds=120)
    process.ask(["docker", "network", "rm", *NETWORKS])


def clean(config: Config) -> None:
    """What a run that was cut off left behind. On a machine without an engine there is little of it."""
    if engine.state()[0] is engine.State.READY:
        remove_hosts()
    clean_drill()
    clean_pages()
    for name in STACKS:
        development.clean(stack(name), everything=True)
    development.clean(config, everything=True)
    # Left in the checkout, they would make every release another one.
    for marker in MARKERS:
        marker.unlink(missing_ok=True)


def clean_drill() -> None:
    """The checkouts go first: a stack belongs to the one that started it, and then to nobody."""
    for folder in (DRILL_CLONE, DRILL_SITE.parent):
        shutil.rmtree(folder, ignore_errors=True)
    for name in ("drill", "drill-site"):
        development.clean(stack(name), everything=True)


def clean_pages() -> None:
    shutil.rmtree(PAGES_CLONE, ignore_errors=True)
    development.clean(stack("pages"), everything=True)


def suites(*, full: bool, only: Sequence[str]) -> list[Suite]:
    """Lints, a real host, the production container; with `full` the rest. Only those of `only`, if any."""
    more = [UBUNTU, CLUSTER, CONTAINERS, BUNDLE, REPOSITORY, QUADLET, PAGES, DRILL]
    found = [*LINTS, SINGLE, CONTAINER, *(more if full else [])]
    names = [suite.name for suite in found]
    if unknown := sorted(set(only) - set(names)):
        raise Failure(f"SUITES: no suite {', '.join(unknown)}; there are {', '.join(names)}")
    return [suite for suite in found if not only or suite.name in only]


def test(config: Config, *, full: bool, only: Sequence[str]) -> int:
    """Run `suites`; 0 when all passed."""
    chosen = suites(full=full, only=only)
    host_image(config)
    if UBUNTU in chosen:
        host_image(config, UBUNTU_IMAGE, base_image.UBUNTU)
    production.build(config)
    with testing.interruptible():
        try:
            return _test(config, chosen, full=full)
        finally:
            remove_hosts()


def _test(config: Config, chosen: list[Suite], *, full: bool) -> int:
    secrets = config.state / "host-secrets"
    shutil.rmtree(secrets, ignore_errors=True)
    # Secrets of their own for each: they are installations of their own.
    chosen = [
        replace(
            suite, environ=(*suite.environ, ("CARILLON_SECRETS_DIR", str(secrets / suite.name / "secrets")))
        )
        for suite in chosen
    ]
    environ = {"PYTHONPATH": str(ROOT), "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg")}
    return testing.run(chosen, environ | ({"CARILLON_PRODUCTION_FULL": "1"} if full else {}))

"""Ports and users that several files must name: each has the number of the place that states it."""

from __future__ import annotations

import re

import pytest

from carillon.process import launcher
from tests.unit.production.test_control_node import ANSIBLE, ROOT

PORTS = {"uwsgi": launcher.UWSGI_PORT, "daphne": launcher.DAPHNE_PORT}
# Where a port of either may stand: supervisord binds it, nginx asks it, the roles let it through.
FILES = sorted(
    path
    for pattern in ("supervisord/conf.d/*.conf", "nginx/sites/*.yml", "ansible/*.yml", "ansible/roles/*/*/*")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix in (".conf", ".yml", ".j2")
)


def users() -> dict[str, str]:
    """The user of each image, by its Dockerfile's own words."""
    found = {}
    for path in ROOT.glob("images/*/Dockerfile"):
        (number,) = set(re.findall(r"(?:useradd --uid|groupadd --gid) (\d+)", path.read_text()))
        found[path.parent.name] = number
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_port_of_the_application_is_the_launchers(path):
    assert set(re.findall(r"\b80[5-9]\d\b", path.read_text())) <= {str(port) for port in PORTS.values()}


def test_each_program_has_its_own_port_everywhere():
    for name, port in PORTS.items():
        assert f":{port}\n" in (ROOT / f"supervisord/conf.d/{name}.conf").read_text()
        for site in ("container", "development"):
            assert re.search(
                rf'^{name}: \[".*:{port}"\]', (ROOT / f"nginx/sites/{site}.yml").read_text(), re.M
            )
        assert (
            f"carillon.carillon.endpoint', {port})"
            in (
                re.search(
                    rf"^nginx_{name}: .*", (ANSIBLE / "roles/nginx/defaults/main.yml").read_text(), re.M
                )[0]
            )
        )


def test_each_image_has_a_user_of_its_own():
    assert len(set(users().values())) == len(users()) == 5


@pytest.mark.parametrize("name", ["dev", "production"])
def test_what_is_mounted_for_a_user_is_the_images(name):
    folders = {"nginx": "nginx", "rabbitmq": "rabbitmq", "postgresql": "postgresql", "carillon": "app"}
    mounted = re.findall(r"/run/([a-z]+):uid=(\d+),gid=(\d+)", (ROOT / f"compose/{name}.yml").read_text())
    assert len(mounted) >= 3
    for folder, uid, gid in mounted:
        assert uid == gid == users()[folders[folder]], folder


def test_the_applications_user_is_the_same_on_a_host():
    text = (ANSIBLE / "roles/common/tasks/main.yml").read_text()
    assert set(re.findall(r"[ug]id: (\d+)", text)) == {users()["app"]}

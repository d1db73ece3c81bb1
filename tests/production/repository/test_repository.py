"""An app that exists, in a repository as `carillon new` makes it, deployed to a bare host as its README says;
then its code, and the version of Carillon beneath it, are changed.
"""

from __future__ import annotations

import http.cookiejar
import json
import re
import shutil
import ssl
import urllib.parse
import urllib.request

import pytest
from websockets.sync.client import connect

from tests.integration.outside_app import takeover
from tests.production.conftest import ROOT, wait_for
from tests.production.repository.conftest import put_host


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = takeover.take_over(tmp_path_factory.mktemp("team"))
    put_host(folder)
    return folder


@pytest.fixture(scope="module")
def tls(site):
    return lambda: ssl.create_default_context(cafile=site / "inventory/secrets/tls/authority.crt")


@pytest.fixture(scope="module")
def get(tls, machine):
    def get(path):
        with urllib.request.urlopen(f"https://{machine.address}{path}", context=tls(), timeout=10) as answer:
            return answer.read().decode()

    return get


@pytest.fixture(scope="module")
def chats(site, tls, machine):
    """Whether somebody who logs in is heard in a room by another, and answered by Celery."""

    def log_in(url):
        jar = http.cookiejar.CookieJar()
        opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(jar), urllib.request.HTTPSHandler(context=tls())
        )
        page = opener.open(f"{url}/accounts/login/", timeout=10).read().decode()
        said = {
            "username": "admin",
            "password": (site / "inventory/secrets/admin-password").read_text().strip(),
            "csrfmiddlewaretoken": re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page)[1],
        }
        form = urllib.parse.urlencode(said).encode()
        opener.open(
            urllib.request.Request(f"{url}/accounts/login/", form, {"Referer": url}), timeout=10
        ).close()
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)

    def chats():
        url = f"https://{machine.address}"
        cookies = {"Cookie": log_in(url)}
        room = f"wss://{machine.address}/ws/chat/tower/"
        with (
            connect(room, ssl=tls(), origin=url, additional_headers=cookies, proxy=None) as ann,
            connect(room, ssl=tls(), origin=url, additional_headers=cookies, proxy=None) as ben,
        ):
            ann.send(json.dumps({"message": "/ring"}))
            heard = [json.loads(ben.recv(10)) for _ in range(2)]
        return heard == [{"message": "/ring", "user": "admin"}, {"message": "you said /ring", "user": "bot"}]

    return lambda: wait_for(chats, 60, "the chat answers", machine.logs)


def test_a_bare_host_runs_the_team_s_code(machine, deploy, get, chats):
    deploy()
    style = re.search(r'href="(/static/chat/chat\.[0-9a-f]+\.css)"', get("/accounts/login/"))
    assert get(style[1])
    assert '"version":"0.1.0"' in get("/api/v2/ping/").replace(" ", "")
    installed = machine.run(
        "/opt/carillon/current/bin/python -c 'import project, tower; print(project.__file__)'"
    )
    assert installed.startswith("/opt/carillon/")
    chats()


def test_a_second_deploy_changes_nothing(deploy):
    output = deploy()
    assert "changed=0" in output, "\n".join(line for line in output.splitlines() if "changed:" in line)


def test_an_edit_and_an_upgrade_are_the_page_of_the_host(site, deploy, get, chats):
    page = site / "src/chat/templates/chat/base.html"
    page.write_text(page.read_text().replace("</title>", ": edited, and deployed</title>"))
    deploy("PLAYBOOK=upgrade.yml")
    assert "edited, and deployed" in get("/accounts/login/")
    chats()


def test_another_version_of_carillon_is_one_line_and_an_upgrade(site, deploy, get, chats, tmp_path):
    newer = shutil.copytree(site / ".carillon", tmp_path / "newer", symlinks=True)
    described = newer / "src" / "carillon" / "pyproject.toml"
    described.write_text(described.read_text().replace('version = "0.1.0"', 'version = "0.1.9"'))
    line = site / "carillon.version"
    line.write_text(line.read_text().replace(str(ROOT), str(newer)))
    assert f"Getting Carillon: {newer}" in deploy("PLAYBOOK=upgrade.yml")
    assert '"version":"0.1.9"' in get("/api/v2/ping/").replace(" ", "")
    assert "edited, and deployed" in get("/accounts/login/")
    chats()


def test_the_release_before_comes_back(deploy, get, chats):
    deploy("PLAYBOOK=rollback.yml")
    assert '"version":"0.1.0"' in get("/api/v2/ping/").replace(" ", "")
    assert "edited, and deployed" in get("/accounts/login/")
    chats()

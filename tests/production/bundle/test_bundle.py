"""A host and its control node on a network that leads to Debian's mirror alone: installed from the bundle."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from dev import base_image, bundle, production, production_testing
from tests.production import hosts
from tests.production.conftest import Machine
from tests.production.containers import docker
from tests.production.hosts import must

NAME = "carillon-prod-bundle"
MIRROR = f"{NAME}-mirror"
# Both in one: what the control node does to the host it does over `local` here, and not over SSH.
INVENTORY = """
all:
  vars:
    ansible_connection: local
    ansible_become: false
    ansible_python_interpreter: /usr/bin/python3
    carillon_domain: chimes.test
    tls_names: [chimes.test, localhost]
    postgresql_shared_buffers_mib: 128
  children:
    carillon:
      children:
        nginx: {hosts: {chimes: {}}}
        app: {hosts: {chimes: {}}}
        rabbitmq: {hosts: {chimes: {}}}
        postgresql: {hosts: {chimes: {}}}
"""
# A proxy for plain HTTP to the names in the host's own list of sources. It knows no other, and no CONNECT.
PROXY = """
pid /run/nginx/proxy.pid;
error_log stderr crit;
events {}
http {
    resolver 127.0.0.11 ipv6=off;
    access_log off;
    proxy_temp_path /run/nginx/proxy;
    client_body_temp_path /run/nginx/body;
    uwsgi_temp_path /run/nginx/uwsgi;
    fastcgi_temp_path /run/nginx/fastcgi;
    scgi_temp_path /run/nginx/scgi;
    map $host $known { NAMES default 0; }
    server {
        listen 3128;
        location / {
            if ($known = 0) { return 403; }
            proxy_pass http://$host$request_uri;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_max_temp_file_size 0;
        }
    }
}
"""


def remove() -> None:
    docker("rm", "--force", "--volumes", NAME, MIRROR)
    docker("network", "rm", NAME)


@pytest.fixture(scope="module")
def archive() -> Path:
    return bundle.make({})


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Machine:
    settings = production_testing.load()
    settings.state.mkdir(mode=0o700, exist_ok=True)
    base_image.ensure(settings)
    production_testing.host_image(settings)
    production.build(settings)
    remove()
    try:
        must("network", "create", "--internal", NAME)
        machine = hosts.start(NAME, NAME, hostname="chimes")
        sources = machine.run("cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null; true")
        names = {word.split("/")[2] for word in sources.split() if word.startswith("http://")}
        assert names, sources
        file = tmp_path_factory.mktemp("proxy") / "nginx.conf"
        file.write_text(PROXY.replace("NAMES", " ".join(f"{name} 1;" for name in sorted(names))))
        file.parent.chmod(0o755)
        must(
            *("run", "--detach", "--name", MIRROR, "--tmpfs", "/run/nginx:uid=10004"),
            *("--volume", f"{file}:/proxy.conf:ro", "--entrypoint", "nginx", "carillon/nginx:dev"),
            *("-e", "stderr", "-c", "/proxy.conf", "-g", "daemon off;"),
        )
        must("network", "connect", "--alias", "mirror", NAME, MIRROR)
        machine.run("""echo 'Acquire::http::Proxy "http://mirror:3128";' > /etc/apt/apt.conf.d/mirror""")
        yield machine
    finally:
        remove()


def test_no_secret_and_no_inventory_of_whoever_made_it_is_in_it(archive):
    with tarfile.open(archive) as tar:
        names = [member.name.partition("/")[2] for member in tar.getmembers()]
    inventories = {name.split("/")[2] for name in names if name.startswith("ansible/inventories/")}
    assert inventories == {"example-single", "example-cluster"}
    assert not [
        name
        for name in names
        # The role of that name has no secret.
        if "secrets/" in name.removeprefix("ansible/roles/secrets/")
        or name.endswith((".key", ".pem", "__pycache__"))
    ]
    assert {"SHA256SUMS", ".bundle", "docs/how-to/production-bundle.md"} <= set(names)


def test_there_is_no_way_to_an_index(machine):
    assert machine.run("ip route show default") == ""


def test_a_host_is_installed_by_the_words_of_the_how_to(machine, archive):
    must("cp", str(archive), f"{NAME}:/root/bundle.tar", seconds=120)
    machine.run("apt-get update -q && apt-get install -q -y --no-install-recommends python3-venv")
    machine.run("mkdir /root/bundle && tar -xf /root/bundle.tar -C /root/bundle --strip-components 1")
    machine.run("cd /root/bundle && sha256sum --check --quiet SHA256SUMS")
    machine.run(
        "cd /root/bundle && python3 -m venv .venv && .venv/bin/pip install --quiet --no-index"
        " --find-links tools --require-hashes --requirement requirements/tools.txt"
    )
    machine.run("mkdir /root/bundle/ansible/inventories/chimes")
    subprocess.run(
        ["docker", "exec", "-i", NAME, "sh", "-c", "cat >/root/bundle/ansible/inventories/chimes/hosts.yml"],
        input=INVENTORY,
        text=True,
        check=True,
    )
    done = docker(
        *("exec", "--workdir", "/root/bundle/ansible", NAME),
        *("../.venv/bin/ansible-playbook", "-i", "inventories/chimes", "site.yml"),
        seconds=1500,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    states = {name: state for name, (state, _) in machine.programs().items()}
    assert set(states.values()) == {"RUNNING"}, states
    answer = machine.run(
        'python3 -c \'import ssl, urllib.request as u; print(u.urlopen("https://localhost/api/v2/ping/",'
        " context=ssl.create_default_context("
        'cafile="/root/bundle/ansible/inventories/chimes/secrets/tls/authority.crt")).read().decode())\''
    )
    assert json.loads(answer)["status"] == "ok"


def test_a_bundle_whose_files_were_changed_says_so_and_asks_no_index(machine):
    """Another release than the archive's: a stale bundle."""
    machine.run("cp -r /root/bundle /root/stale && echo '# changed' >> /root/stale/src/carillon/urls.py")
    done = docker(
        *("exec", "--workdir", "/root/stale/ansible", NAME),
        *("../.venv/bin/ansible", "localhost", "-m", "carillon.carillon.release", "-a"),
        "source=/root/stale cache=/root/stale/build/releases python=3.13 architecture=x86_64",
    )
    assert done.returncode != 0
    assert "this is an unpacked bundle whose archive (carillon-" in done.stdout
    assert "unpack it anew" in done.stdout

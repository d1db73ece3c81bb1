"""Which release there is to go back to, with which settings, and what an archive of one has."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from importlib import util

import pytest

from dev import images
from dev.config import load
from dev.output import Failure
from tests.unit.production.test_control_node import ANSIBLE
from tests.unit.production.test_secrets import filters

MODULE = ANSIBLE / "plugins/modules/release.py"
_SPEC = util.spec_from_file_location("release", MODULE)
release = util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(release)


@pytest.mark.parametrize(
    ("current", "new", "known", "before"),
    [
        (["", ""], "2", "", ""),  # a first installation
        (["1", "1"], "2", "", "1"),
        (["1", "1"], "2", "0", "1"),  # the upgrade before this one is long past
        (["2", "2"], "2", "1", "1"),  # run again when all is done
        (["2", "1"], "2", "1", "1"),  # … and half-way
        (["2", "1"], "2", "", "1"),  # … on another control node
        (["2", "1"], "3", "1", "1"),  # a mended release after half of a bad one
        (["2", "1"], "3", "", ""),
        (["1", ""], "2", "", "1"),  # with a host that is new
        (["1", "1"], "1", "", ""),
    ],
)
def test_the_release_before_is_what_all_hosts_ran_when_the_upgrade_began(current, new, known, before):
    assert filters.release_before(current, new, known) == before


def test_an_older_release_keeps_its_names_and_gets_the_values_of_today():
    held = "# Ansible\nCARILLON_DATABASE_USER=carillon_a\nCARILLON_OLD=1\nPROJECT_GONE=x\nPROJECT_KEPT=1\n"
    today = "# Ansible\nCARILLON_DATABASE_USER=carillon_b\nCARILLON_NEW=1\nPROJECT_KEPT=2\nPROJECT_MORE=a=b\n"
    assert filters.release_environment(held, today) == (
        "# Ansible\nCARILLON_DATABASE_USER=carillon_b\nCARILLON_OLD=1\nPROJECT_KEPT=2\nPROJECT_MORE=a=b\n"
    )
    assert filters.release_environment(today, today) == today


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for name in (*release.INPUTS[:3], "src/carillon/__init__.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('version = "1.0"\n')
    for name in ("uwsgi.ini", "supervisord.conf", "conf.d/daphne.conf"):
        path = tmp_path / "supervisord" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
        path.chmod(0o600)  # a umask of 077
    for name in ("nginx.conf", "snippets/routes.conf", "sites/site.conf.j2", "sites/development.yml"):
        (tmp_path / "nginx" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nginx" / name).write_text(name)
    (tmp_path / release.DECLARED).parent.mkdir()
    (tmp_path / release.DECLARED).write_text("websocket_prefixes = []")
    (tmp_path / release.LOCATIONS).mkdir()
    (tmp_path / release.LOCATIONS / "bells.conf").write_text("location /bells/ { return 204; }")
    (tmp_path / release.LOCATIONS / "notes.txt").write_text("of no use to nginx")
    (tmp_path / "src/carillon/process").mkdir()
    shutil.copy(MODULE.parents[3] / "src/carillon/process/declared.py", tmp_path / "src/carillon/process")
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "django-6.whl").write_text("")
    monkeypatch.setattr(release, "wheelhouse", lambda *_: wheels)
    monkeypatch.setattr(release, "pip", lambda *arguments, **_: (tmp_path / arguments[3]).mkdir())
    return tmp_path


@pytest.mark.parametrize(
    "changed",
    [
        *("supervisord/uwsgi.ini", "nginx/snippets/routes.conf", "src/project/carillon.toml"),
        "src/project/nginx/bells.conf",
    ],
)
def test_settings_of_uwsgi_supervisord_and_nginx_are_the_releases(checkout, changed):
    before, *_ = release.ensure(checkout, checkout / "cache", "3.13", "x86_64", dry=True)
    (checkout / changed).write_text("# another")
    name, archive, _ = release.ensure(checkout, checkout / "cache", "3.13", "x86_64")
    assert name != before
    with tarfile.open(archive) as tar:
        members = {member.name.removeprefix(f"{name}/"): member for member in tar.getmembers()}
        where = {
            "uwsgi.ini": "etc/uwsgi.ini",
            "carillon.toml": "etc/nginx/carillon.toml",
            "bells.conf": "etc/nginx/site.d/bells.conf",
        }.get(changed.rpartition("/")[2], f"etc/{changed}")
        assert tar.extractfile(members[where]).read() == b"# another"
    assert set(members) == {
        *("wheels/django-6.whl", "requirements.txt", "etc/uwsgi.ini"),
        *("etc/supervisord/supervisord.conf", "etc/supervisord/conf.d/daphne.conf"),
        *("etc/nginx/nginx.conf", "etc/nginx/snippets/routes.conf", "etc/nginx/sites/site.conf.j2"),
        *("etc/nginx/carillon.toml", "etc/nginx/site.d/bells.conf"),
    }
    assert {(member.mode, member.uname) for member in members.values()} == {(0o644, "root")}


@pytest.mark.parametrize(
    ("there", "named"),
    [
        (True, {"carillon_held": "0.9"}),
        (True, {"carillon_release_archive": "/x/carillon-0.9-3.13-x86_64.tar", "carillon_held": ""}),
        (False, {"carillon_held": "0.9"}),
    ],
    ids=["held", "an archive", "a release of before"],
)
def test_nginx_of_a_release_that_is_held_is_its_own(play, tmp_path, there, named):
    theirs = tmp_path / "opt/releases/0.9/etc" / ("nginx" if there else "supervisord")
    theirs.mkdir(parents=True)
    (theirs / "nginx.conf").write_text("held")
    code, said = play(
        {"ansible.builtin.include_role": {"name": "carillon", "tasks_from": "nginx"}},
        {"ansible.builtin.debug": {"msg": "from {{ nginx_source | default('the checkout') }}"}},
        carillon_root=str(tmp_path / "opt"),
        **named,
        topology_source=str(tmp_path / "checkout"),
    )
    assert code == 0, said
    unpacked = tmp_path / "checkout/build/releases/0.9/nginx"
    assert f"from {unpacked if there else 'the checkout'}" in said
    assert not there or (unpacked / "nginx.conf").read_text() == "held"


def test_the_control_node_keeps_a_bounded_number_of_archives(checkout):
    cache = checkout / "cache"
    name, first, _ = release.ensure(checkout, cache, "3.13", "x86_64")
    for number in range(30):
        archive, house = (
            cache / f"carillon-0.{number}-1-3.13-x86_64.tar",
            cache / f"wheels-{number}-3.13-x86_64",
        )
        archive.touch()
        house.mkdir()
        for path in (archive, house):
            os.utime(path, (number, number))
    (cache / "tmp-of-a-build-that-was-killed").mkdir()
    os.utime(first, (0, 0))
    assert release.ensure(checkout, cache, "3.13", "x86_64")[0] == name
    (checkout / "supervisord/uwsgi.ini").write_text("# another")
    _, second, _ = release.ensure(checkout, cache, "3.13", "x86_64")
    newest = [f"carillon-0.{number}-1-3.13-x86_64.tar" for number in range(29, 20, -1)]
    assert {path.name for path in cache.glob("*.tar")} == {first.name, second.name, *newest}, "the used stay"
    assert len(list(cache.glob("wheels-*"))) == 10
    assert not list(cache.glob("tmp*"))


def test_processes_that_the_project_declares_are_programs_of_the_release(checkout):
    file = checkout / release.DECLARED
    file.write_text('[processes.worker]\ncommand = ["celery"]\nnumber = 3\n')
    name, archive, _ = release.ensure(checkout, checkout / "cache", "3.13", "x86_64")
    with tarfile.open(archive) as tar:
        member = tar.getmember(f"{name}/etc/supervisord/conf.d/worker.conf")
        assert (member.mode, member.uname) == (0o644, "root")
        assert b"numprocs = 3" in tar.extractfile(member).read()
    file.write_text('[processes.daphne]\ncommand = ["celery"]\n')
    with pytest.raises(
        ValueError, match=r"carillon.toml: processes.daphne: Carillon has something of that name"
    ):
        release.ensure(checkout, checkout / "cache", "3.13", "x86_64")


def test_a_release_that_is_held_is_found_and_not_built(checkout):
    arguments = {
        "source": str(checkout),
        "cache": str(checkout / "cache"),
        "python": "3.13",
        "architecture": "x86_64",
    }

    def run(held: str) -> dict:
        done = subprocess.run(
            [sys.executable, str(MODULE)],
            input=json.dumps(
                {"ANSIBLE_MODULE_ARGS": {**arguments, "held": held, "_ansible_check_mode": True}}
            ),
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(done.stdout)

    own = run("")
    assert own["own"]
    assert run(own["id"]) == own | {"invocation": run(own["id"])["invocation"]}
    held = run("0.9-abc")
    assert (held["id"], held["own"], held["changed"]) == ("0.9-abc", False, False)
    assert held["archive"] == str(checkout / "cache/carillon-0.9-abc-3.13-x86_64.tar")
    assert not (checkout / "cache").exists()


PIP = """WARNING: Discarding https://index.test/a.whl
ERROR: Could not find a version that satisfies the requirement python-bells==1.0 (from versions: none)
ERROR: No matching distribution found for python-bells==1.0
"""


def test_a_package_without_a_wheel_is_named_with_what_to_do(tmp_path, monkeypatch):
    """Also one that has wheels, and none for the hosts' Python."""
    done = subprocess.CompletedProcess([], 1, "", PIP)
    monkeypatch.setattr(release.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError) as error:
        release.download(tmp_path / "lock", tmp_path, "3.9", "aarch64")
    assert str(error.value).startswith(
        "python-bells==1.0 has no wheel for Python 3.9 on Linux aarch64, and nothing is compiled here: name a"
    )
    assert "\n" not in str(error.value)
    done.stderr = "WARNING: Retrying (Retry(total=0)) after connection broken\n" + PIP
    with pytest.raises(RuntimeError, match="pip download failed"):
        release.download(tmp_path / "lock", tmp_path, "3.9", "aarch64")


def test_an_image_says_so_too(tmp_path, monkeypatch):
    config = load({"CARILLON_STATE": str(tmp_path)})

    def work(*_, log, **__):
        log.parent.mkdir()
        log.write_text(f"#12 1.0 {PIP}")
        raise Failure("image app failed", ["the end of it"])

    monkeypatch.setattr(images.process, "work", work)
    said = r"^python-bells==1.0 has no wheel for the Python of the image, .*src/"
    with pytest.raises(Failure, match=said) as error:
        images.build(images.IMAGES[0], "label", config)
    assert error.value.details == ["the end of it"]


def test_wheels_are_fetched_once_and_anew_where_one_is_not_the_locks(tmp_path, monkeypatch):
    lock, fetched = tmp_path / "lock.txt", []
    lock.write_text(f"a==1 --hash=sha256:{hashlib.sha256(b'wheel').hexdigest()}")

    def download(lock, folder, *_):
        folder.mkdir()
        (folder / "a.whl").write_bytes(b"wheel")
        fetched.append(lock)

    monkeypatch.setattr(release, "download", download)
    found = [release.wheelhouse(lock, tmp_path / "cache", "3.13", "x86_64") for _ in range(2)]
    assert (found[0], len(fetched)) == (found[1], 1)
    (found[0] / "a.whl").write_bytes(b"planted")
    assert (release.wheelhouse(lock, tmp_path / "cache", "3.13", "x86_64") / "a.whl").read_bytes() == b"wheel"

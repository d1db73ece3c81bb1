"""What goes into a bundle, and for whom it is."""

import os
import tarfile

import pytest

from dev import bundle
from dev.output import Failure

# The checkout as a collection: without it no module and no filter is found.
LINK = "ansible/collections/ansible_collections/carillon/carillon"


@pytest.fixture
def checkout(tmp_path):
    for name in (
        *("ansible/roles/secrets/vars/main.yml", "ansible/roles/secrets/secrets/x", "ansible/site.yml"),
        *("ansible/inventories/example-single/hosts.yml", "src/carillon/__init__.py"),
        # What must stay at home.
        *("ansible/inventories/chimes/hosts.yml", "ansible/inventories/example-single/secrets/secret-key"),
        *("src/carillon/__pycache__/x.pyc", "src/carillon.egg-info/PKG-INFO", "ansible/backups/one.tar"),
        *bundle._FILES,
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / LINK).parent.mkdir(parents=True)
    (tmp_path / LINK).symlink_to("../../..")
    return tmp_path


def test_no_secret_no_inventory_and_nothing_made_by_running_is_in_it(checkout):
    names = {name for _, name in bundle._checkout(checkout)}
    assert names == {
        *("ansible/site.yml", "ansible/roles/secrets/vars/main.yml", LINK),
        "ansible/inventories/example-single/hosts.yml",
        "src/carillon/__init__.py",
        *bundle._FILES,
    }


def test_the_archive_belongs_to_nobody_and_has_the_sums_of_its_files(checkout, tmp_path):
    archive = tmp_path / "bundle.tar"
    bundle._write(archive, "top", list(bundle._checkout(checkout)), {".bundle": "1.0-aa\n"})
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}
        sums = tar.extractfile("top/SHA256SUMS").read().decode()
        assert tar.extractfile("top/.bundle").read() == b"1.0-aa\n"
    assert {(member.uid, member.uname) for member in members.values()} <= {(0, "root"), (0, "")}
    assert {line.split("  ")[1] for line in sums.splitlines()} == {
        name.removeprefix("top/") for name in members
    } - {".bundle", "SHA256SUMS", LINK}
    assert not archive.with_suffix(".partial").exists()


def test_with_a_time_it_is_the_same_to_the_byte_whatever_clock_and_umask(checkout, tmp_path):
    def written(name):
        members = list(bundle._checkout(checkout))
        bundle._write(tmp_path / name, "top", members, {".bundle": "1.0-aa\n"}, when=1000)
        return (tmp_path / name).read_bytes()

    first = written("first.tar")
    for path, _ in bundle._checkout(checkout):
        if not path.is_symlink():
            os.utime(path, (5, 5))
            path.chmod(0o600)
    assert written("second.tar") == first


def test_for_which_hosts():
    assert bundle.hosts({}) == [("3.13", "x86_64")]
    words = {"CARILLON_BUNDLE_FOR": "3.12-x86_64 3.13-aarch64"}
    assert bundle.hosts(words) == [("3.12", "x86_64"), ("3.13", "aarch64")]


@pytest.mark.parametrize("word", ["noble", "3.x-x86_64", "3.13", "2.7-x86_64"])
def test_a_host_that_is_none_is_one_line(word):
    with pytest.raises(Failure, match=f"CARILLON_BUNDLE_FOR: {word} is not <Python>-<machine>"):
        bundle.hosts({"CARILLON_BUNDLE_FOR": word})

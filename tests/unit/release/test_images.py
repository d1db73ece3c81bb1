"""Images as archives: two builds of one content are one archive, and what differs is named."""

import hashlib
import io
import json
import tarfile

import pytest

from release import images, verify

STATUS = """Package: nginx
Status: install ok installed
Version: 1:1.26+deb13u1

Package: gone
Status: deinstall ok config-files
Version: 1.0
"""
FILES = {
    "usr/bin/nginx": "program",
    "usr/bin/other": ("usr/bin/nginx",),  # a hard link
    "var/lib/dpkg/status": STATUS,
    "opt/lib/Asgi_Ref-3.11.dist-info/METADATA": "",
}


def add(tar, name, content, mtime=500):
    info = tarfile.TarInfo(name)
    info.mtime, info.uname = mtime, "builder"
    if isinstance(content, tuple):
        info.type, (info.linkname,) = tarfile.LNKTYPE, content
        content = ""
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content.encode() if isinstance(content, str) else content))


def saved(path, files, created="2026-01-02", mtime=5000):
    """As `docker save` writes it, with one layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name, content in files.items():
            add(tar, name, content, mtime)
    config = {"created": created, "rootfs": {}, "history": [{"created": created}], "config": {"User": "x"}}
    with tarfile.open(path, "w") as tar:
        add(tar, "c", json.dumps(config))
        add(tar, "l", layer.getvalue())
        add(tar, "manifest.json", json.dumps([{"Config": "c", "Layers": ["l"]}]))
    return path


@pytest.fixture
def archive(tmp_path):
    def archive(name, *arguments, **options):
        images.write(saved(tmp_path / "saved", *arguments, **options), tmp_path / name, "carillon/x:1", 1000)
        return tmp_path / name

    return archive


def test_order_clock_and_logs_of_a_build_leave_no_trace(archive):
    first = archive("first", FILES)
    logs = {"var/log/dpkg.log": "today", "var/cache/ldconfig/aux-cache": "inodes"}
    second = archive("second", dict(reversed((FILES | logs).items())), "2026-02-03", 6000)
    assert first.read_bytes() == second.read_bytes()
    names = [info.name for layer in images.layers(first) for info in layer]
    assert names == [*sorted(FILES.keys() - {"usr/bin/other"}), "usr/bin/other"], "a link comes last"


def test_a_time_before_the_commit_stays_for_bytecode_goes_by_it(archive):
    times = {info.mtime for layer in images.layers(archive("a", FILES, mtime=900)) for info in layer}
    assert times == {900}


def test_every_digest_in_it_is_of_what_it_names(archive):
    path = archive("a", FILES)
    with tarfile.open(path) as tar:
        blobs = {name: tar.extractfile(name).read() for name in tar.getnames()}
    for name, content in blobs.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"

    def blob(described):
        content = blobs[f"blobs/{described['digest'].replace(':', '/')}"]
        assert described["size"] == len(content)
        return content

    (named,) = json.loads(blobs["index.json"])["manifests"]
    manifest = json.loads(blob(named))
    config = json.loads(blob(manifest["config"]))
    plain = images.gzip.decompress(blob(manifest["layers"][0]))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    assert config["config"] == {"User": "x"}
    assert {config["created"], config["history"][0]["created"]} == {"1970-01-01T00:16:40Z"}
    assert verify.members(path).keys() == blobs.keys()


def test_what_differs_is_named_by_layer_and_file(archive):
    first = archive("first", FILES)
    changed = archive("second", FILES | {"usr/bin/nginx": "planted", "etc/new": ""})
    assert images.differences(first, changed) == ["layer 1: etc/new", "layer 1: usr/bin/nginx"]


def test_packages_are_those_that_dpkg_and_python_have_installed(archive):
    found = [(pin.purl, pin.version) for pin in images.packages(archive("a", FILES))]
    assert found == [
        ("pkg:deb/debian/nginx@1%3A1.26%2Bdeb13u1", "1:1.26+deb13u1"), ("pkg:pypi/asgi-ref@3.11", "3.11"),
    ]  # fmt: skip

"""A release is made twice, is the same to the byte, and no change to it goes unnoticed."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from release import images, make, verify
from tests.packages import suites, test_distribution, test_django_carillon

VERSION = tomllib.loads((suites.ROOT / "pyproject.toml").read_text())["project"]["version"]
WHEEL, SDIST = f"channels_asgi_amqp-{VERSION}-py3-none-any.whl", f"channels_asgi_amqp-{VERSION}.tar.gz"
BOM = f"{WHEEL}{verify.SBOM}"
BUNDLE = "carillon-bundle-*.tar"


def git(folder, *arguments):
    return make.run(
        "git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments, cwd=folder
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout of the files as they are now, committed."""
    folder = tmp_path_factory.mktemp("checkout") / "carillon"
    listed = make.run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=suites.ROOT)
    for name in filter(None, listed.split("\0")):
        source, target = suites.ROOT / name, folder / name
        if source.is_file() or source.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "All of it")
    share_wheels(folder)
    return folder


def share_wheels(checkout):
    """Wheels are downloaded once and for all runs."""
    kept = suites.CACHE / "wheels"
    kept.mkdir(parents=True, exist_ok=True)
    (checkout / make.WHEELS).parent.mkdir()
    (checkout / make.WHEELS).symlink_to(kept)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    folder = tmp_path_factory.mktemp("key")
    make.run("minisign", "-G", "-W", "-p", folder / "public", "-s", folder / "secret")
    return folder


@pytest.fixture(scope="module")
def made(checkout, key, tmp_path_factory):
    return make.release(checkout, tmp_path_factory.mktemp("dist"), key / "secret", with_images=False)


@pytest.fixture
def copy(made, tmp_path):
    """The bundle is linked: who changes it puts another in its place."""
    (bundle,) = made.glob(BUNDLE)
    folder = shutil.copytree(made, tmp_path / VERSION, ignore=shutil.ignore_patterns(BUNDLE))
    (folder / bundle.name).hardlink_to(bundle)
    return folder


def prove(folder, key):
    """What `verify` says as its users call it."""
    argv = [folder / "verify", "--key", key / "public"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == bool(done.stderr)
    return done.stderr.splitlines()


def sign(folder, key):
    """As who has stolen the key would."""
    sums = [f"{verify.digest(path)}  {path.name}\n" for path in sorted(folder.iterdir())
            if path.name not in (verify.SUMS, verify.SIGNATURE)]  # fmt: skip
    (folder / verify.SUMS).write_text("".join(sums))
    make.run("minisign", "-S", "-s", key / "secret", "-m", folder / verify.SUMS)


def test_made_again_elsewhere_it_is_the_same_to_the_byte(made, checkout, key, tmp_path):
    elsewhere = tmp_path / "another" / "place"
    make.run("git", "clone", "--quiet", checkout, elsewhere)
    share_wheels(elsewhere)
    again = make.release(elsewhere, tmp_path / "dist", key / "secret", with_images=False)
    assert {path.name: verify.digest(path) for path in again.iterdir()} == {
        path.name: verify.digest(path) for path in made.iterdir()
    }


def test_it_holds_what_it_should_and_verifies(made, key):
    names = {path.name for path in made.iterdir()}
    artifacts = {name.removesuffix(verify.SBOM) for name in names if name.endswith(verify.SBOM)}
    assert names == {*artifacts, *(f"{name}{verify.SBOM}" for name in artifacts), verify.PROVENANCE, "verify",
                     verify.SUMS, verify.SIGNATURE}  # fmt: skip
    page = (suites.ROOT / "docs/reference/release_artifacts.md").read_text()
    for name in names:
        shape = name.replace(VERSION, "<version>").removesuffix(verify.SBOM)
        shape = re.sub("-[0-9a-f]{8}.tar$", "-<digest>.tar", shape)
        assert f"`{shape}`" in page, f"the page Release artifacts does not say what {shape} is"
    assert prove(made, key) == []
    assert json.loads((made / verify.PROVENANCE).read_text())["predicate"]["buildDefinition"][
        "externalParameters"
    ]["images"] is False  # fmt: skip


@pytest.mark.skipif(not os.environ.get("CARILLON_LONG"), reason="takes minutes: CARILLON_LONG=1")
def test_images_are_the_same_when_they_are_built_again_and_can_be_loaded(checkout, key, tmp_path):
    folder = make.release(checkout, tmp_path / "dist", key / "secret", with_images=True)
    found = {path.name for path in folder.glob(f"*{images.SUFFIX}")}
    assert found == {
        f"carillon-{VERSION}-image-{name}{images.SUFFIX}"
        for name in ("app", "nginx", "postgresql", "rabbitmq")
    }
    assert prove(folder, key) == []
    app = folder / f"carillon-{VERSION}-image-app{images.SUFFIX}"
    document = json.loads((folder / f"{app.name}{verify.SBOM}").read_text())
    packages = {each["purl"].partition("@")[0] for each in document["components"]}
    assert {"pkg:deb/debian/libc6", "pkg:pypi/django", "pkg:pypi/django-carillon"} <= packages
    tag = f"carillon/app:{VERSION}"
    make.run("docker", "load", "--input", app)
    try:
        program = (
            "import importlib.util as u, pathlib, carillon.server, django;"
            "p = pathlib.Path(u.cache_from_source(django.__file__)); print(p.read_bytes()[4] & 1)"
        )
        python = "/opt/carillon/current/bin/python"
        run = ("docker", "run", "--rm", "--network", "none", "--entrypoint", python, tag, "-c", program)
        assert make.run(*run).strip() == "1", "bytecode goes by the time of its source, which is another"
    finally:
        make.run("docker", "image", "rm", tag)
    assert make.rebuild(checkout, git(checkout, "rev-parse", "HEAD").strip(), folder) == []


def unpack(archive, folder):
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def test_both_wheels_install_from_the_release_alone_and_their_quickstarts_run(made, broker, tmp_path):
    """With the Python of the hosts that its bundle is for, into an environment that is empty."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    if release.get("VERSION_CODENAME") != "trixie":
        pytest.skip("the bundle is for Debian 13")
    python = tmp_path / "environment/bin/python"
    make.run("/usr/bin/python3", "-m", "venv", "--without-pip", python.parents[1])
    (bundle,) = made.glob(BUNDLE)
    unpacked = tmp_path / "bundle"
    unpack(bundle, unpacked)
    (wheels,) = unpacked.glob("*/build/releases/*-3.13-x86_64.tar")
    unpack(wheels, unpacked)
    options = ["--quiet", "--no-index", "--only-binary", ":all:", "--find-links", made]
    for folder in {path.parent for path in unpacked.rglob("*.whl")}:
        options += ["--find-links", folder]
    make.run(
        sys.executable, "-m", "pip", "--python", python, "install", *options, f"django-carillon=={VERSION}"
    )
    (tmp_path / "layer").mkdir()
    (tmp_path / "site").mkdir()
    test_distribution.run_quickstart(python, broker, tmp_path / "layer")
    test_django_carillon.run_quickstart(python, broker, tmp_path / "site")


def test_an_sbom_names_what_the_layer_needs_and_no_more(made):
    document = json.loads((made / BOM).read_text())
    names = {each["name"] for each in document["components"]}
    assert {"aiormq", "pamqp", "channels", "msgpack", "asgiref", "django"} <= names
    assert not {"psycopg", "djangorestframework", "uwsgi"} & names


def test_the_sbom_of_the_bundle_names_every_wheel_and_each_is_one_of_a_lock(made):
    (path,) = made.glob(f"{BUNDLE}{verify.SBOM}")
    document = json.loads(path.read_text())
    named = {each["name"]: each for each in document["components"]}
    own = {"carillon-project", "channels-asgi-amqp", "django-carillon"}
    pins = {name: make.sbom.parse_lock((suites.ROOT / name).read_text()) for name in make.LOCKS[:2]}
    elsewhere = {"tzdata", "u-msgpack-python"}  # for Windows, and for another Python than CPython
    assert named.keys() == own.union(*pins.values()) - elsewhere
    locks = "".join((suites.ROOT / name).read_text() for name in pins)
    for name, each in named.items():
        for value in each["hashes"]:
            assert name in own or f"--hash=sha256:{value['content']}" in locks, name
    files = {part["name"]: part["hashes"] for part in document["metadata"]["component"]["components"]}
    wheels = [hashes for name, hashes in files.items() if name.endswith(".whl")]
    assert sorted(map(str, wheels)) == sorted(
        str([value]) for each in document["components"] for value in each["hashes"]
    )


def test_the_archives_are_what_the_commit_builds(made, copy, checkout, monkeypatch, tmp_path):
    commit = git(checkout, "rev-parse", "HEAD").strip()
    make.build(checkout, commit, tmp_path / "again", with_images=False)
    # Built once and compared twice: it takes seconds.
    monkeypatch.setattr(make, "build", lambda *given, **_: shutil.copytree(tmp_path / "again", given[2]))
    assert make.rebuild(checkout, commit, made) == []
    wheel = copy / WHEEL
    rewrite_wheel(wheel, "asgi_amqp/py.typed", b"changed")
    planted = copy / "extra.whl"
    shutil.copyfile(wheel, planted)
    make.write(copy / f"{planted.name}{verify.SBOM}", {})
    assert make.rebuild(checkout, commit, copy) == [
        f"{wheel.name}: commit {commit[:12]} builds another",
        f"{planted.name}: commit {commit[:12]} builds no such artifact",
    ]


def rewrite_wheel(path, name, content):
    with zipfile.ZipFile(path) as old:
        parts = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for each, data in {**parts, name: content}.items():
            new.writestr(each, data)


def test_the_npm_package_is_found_by_its_name_and_is_the_client_of_the_wheel(made, tmp_path):
    (package,) = made.glob("carillon-client-*.tgz")
    with tarfile.open(package) as tar:  # as `npm install` does: the machine may have no npm
        tar.extractall(tmp_path / "node_modules", filter="data")
    installed = (tmp_path / "node_modules/package").rename(tmp_path / "node_modules/carillon-client")
    assert json.loads((installed / "package.json").read_text())["version"] == VERSION
    with zipfile.ZipFile(next(made.glob("django_carillon-*.whl"))) as wheel:
        assert (installed / "carillon.js").read_bytes() == wheel.read("carillon/static/carillon/carillon.js")
    program = (
        "import { Carillon, describe } from 'carillon-client'; console.log(describe(new Carillon().link))"
    )
    said = make.run("node", "--input-type=module", "--eval", program, cwd=tmp_path)
    assert said.strip()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add_to_tar(path):
    with tarfile.open(path) as old:
        parts = [(info, old.extractfile(info).read() if info.isfile() else b"") for info in old]
    with tarfile.open(path, "w:gz") as new:
        for info, data in [*parts, (tarfile.TarInfo("planted"), b"")]:
            new.addfile(info, io.BytesIO(data))


def plant_in_the_bundle(path):
    """A file in the archive in it from which hosts are installed."""
    with tarfile.open(path) as old:
        parts = [(info, old.extractfile(info).read() if info.isfile() else b"") for info in old]
    path.unlink()
    with tarfile.open(path, "w") as new:
        for info, data in parts:
            if info.name.endswith(".tar"):
                inner = path.with_name("inner")
                inner.write_bytes(data)
                add_to_tar(inner)
                data = inner.read_bytes()
                inner.unlink()
                info.size = len(data)
            new.addfile(info, io.BytesIO(data))


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    make.write(path, document)


def forget_file(document):
    document["metadata"]["component"]["components"].pop()


def another_digest(document):
    document["subject"][0]["digest"]["sha256"] = "0" * 64


# Name: what is done, whether the sums are signed anew with the stolen key, and the file that is named.
MANIPULATIONS = {
    "a byte of a wheel": (lambda folder: flip(folder / WHEEL), False, WHEEL),
    "a byte of an sdist": (lambda folder: flip(folder / SDIST), False, SDIST),
    "a byte of an SBOM": (lambda folder: flip(folder / BOM), False, BOM),
    "a byte of the sums": (lambda folder: flip(folder / verify.SUMS), False, verify.SIGNATURE),
    "a byte of the signature": (lambda folder: flip(folder / verify.SIGNATURE), False, verify.SIGNATURE),
    "an artifact is gone": (lambda folder: (folder / SDIST).unlink(), False, SDIST),
    "a file is added": (lambda folder: (folder / "extra.whl").write_bytes(b""), False, "extra.whl"),
    "a module in a wheel, signed": (
        lambda folder: rewrite_wheel(folder / WHEEL, "asgi_amqp/planted.py", b""), True, WHEEL,
    ),
    "a file in an sdist, signed": (lambda folder: add_to_tar(folder / SDIST), True, SDIST),
    "a file in the release in the bundle, signed": (
        lambda folder: plant_in_the_bundle(next(folder.glob(BUNDLE))), True, "/planted in carillon-bundle-",
    ),
    "an SBOM that leaves a file out, signed": (
        lambda folder: edit(folder / BOM, forget_file), True, BOM,
    ),
    "a provenance of something else, signed": (
        lambda folder: edit(folder / verify.PROVENANCE, another_digest), True, verify.PROVENANCE,
    ),
    "the verifying program, signed": (
        lambda folder: (folder / "verify").write_text((folder / "verify").read_text() + "\n"), True, "verify",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MANIPULATIONS)
def test_a_manipulation_is_named(name, copy, key):
    change, signed, named = MANIPULATIONS[name]
    change(copy)
    if signed:
        sign(copy, key)
    said = prove(copy, key)
    assert any(named in line for line in said), said


def test_another_key_proves_nothing(copy, key, tmp_path):
    make.run("minisign", "-G", "-W", "-p", tmp_path / "public", "-s", tmp_path / "secret")
    assert [line for line in prove(copy, tmp_path) if verify.SIGNATURE in line]


# What is refused


def test_a_dirty_checkout_a_version_that_exists_and_a_missing_key_are_refused(
    made, checkout, key, tmp_path, monkeypatch
):
    with pytest.raises(make.ReleaseError, match="exists: a version is made once"):
        make.release(checkout, made.parent, key / "secret", with_images=False)
    with pytest.raises(make.ReleaseError, match=r"CARILLON_RELEASE_KEY=.* is not there"):
        make.release(checkout, tmp_path, tmp_path / "none", with_images=False)
    monkeypatch.setattr(make.engine, "state", lambda: (make.engine.State.STOPPED, ""))
    with pytest.raises(make.ReleaseError, match=r"no engine runs: .*CARILLON_RELEASE_IMAGES=no"):
        make.release(checkout, tmp_path, key / "secret", with_images=True)
    changed = tmp_path / "changed"
    make.run("git", "clone", "--quiet", checkout, changed)
    (changed / "README.md").write_text("changed")
    with pytest.raises(make.ReleaseError, match=r"the checkout has changes, such as README\.md"):
        make.release(changed, tmp_path / "dist", key / "secret", with_images=False)
    assert not (tmp_path / "dist").exists()


def test_an_artifact_that_is_too_large_leaves_nothing_behind(checkout, key, tmp_path, monkeypatch):
    monkeypatch.setattr(make, "MOST", 1000)
    with pytest.raises(make.ReleaseError, match="more than 1000"):
        make.release(checkout, tmp_path / "dist", key / "secret", with_images=False)
    monkeypatch.undo()
    monkeypatch.setattr(make, "documentation", lambda *_: None)  # seconds
    monkeypatch.setattr(make, "MOST_OF_THE_BUNDLE", 1000)
    with pytest.raises(make.ReleaseError, match=r"carillon-bundle-.* more than 1000"):
        make.release(checkout, tmp_path / "dist", key / "secret", with_images=False)
    assert list((tmp_path / "dist").iterdir()) == []


@pytest.mark.parametrize("text", ["short  name\n", f"{'a' * 64} name\n", f"{'a' * 64}  ../name\n"])
def test_sums_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="not a line"):
        verify.parse_sums(text)


def test_what_is_no_archive_is_said_to_be_none(tmp_path):
    path = Path(tmp_path / "a.whl")
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        verify.members(path)

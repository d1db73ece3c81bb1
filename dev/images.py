"""The images: built when what goes into them has changed, and only then."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dev import base_image, process
from dev.config import ROOT, Config
from dev.output import Failure, progress, step, timed

LABEL = "carillon.inputs"
BUILT = "-built"  # of production: what it runs has the name alone
# Of what development runs, whichever stack built it last: for tests and benchmarks that have no stack.
LATEST = "dev"
_BUILD_SECONDS = 1500


@dataclass(frozen=True)
class Image:
    """`inputs` are files and folders of the checkout: a change in one of them means a new build. `suffix` of
    its tag, which is the name of the stack: two checkouts that run side by side share none.
    """

    name: str
    inputs: tuple[str, ...]
    target: str | None = None
    python_packages: bool = False
    suffix: str = ""

    def tag(self, config: Config) -> str:
        return f"carillon/{self.name}:{config.project}{self.suffix}"

    def tags(self, config: Config) -> list[str]:
        """All that it is called. But for the application's, production's images are development's."""
        same = not self.suffix or (self.suffix == BUILT and self.target is None)
        return [self.tag(config), *([f"carillon/{self.name}:{LATEST}"] if same else [])]


IMAGES = (
    # Not src/: the development stage has the checkout mounted over the copy that it was built with.
    Image(
        "app",
        (
            "images/app",
            "requirements/app.in",
            "requirements/app.txt",
            "requirements/own.in",
            "requirements/dev.txt",
            "pyproject.toml",
            "src/asgi_amqp/pyproject.toml",
            "src/carillon/pyproject.toml",
            "supervisord/uwsgi.ini",
        ),
        target="development",
        python_packages=True,
    ),
    Image("nginx", ("images/nginx", "nginx/nginx.conf", "nginx/snippets", "nginx/pages")),
    Image("rabbitmq", ("images/rabbitmq", "ansible/roles/rabbitmq/files")),
    Image("postgresql", ("images/postgresql", "ansible/roles/postgresql/files")),
)


def present(config: Config, chosen: tuple[Image, ...] = IMAGES) -> bool:
    """All images are there, of whatever age. False, too, when no engine answers."""
    return bool(process.docker("image", "inspect", *(image.tag(config) for image in chosen)))


def ensure(config: Config, chosen: tuple[Image, ...] = IMAGES, *, fresh: bool = False) -> None:
    """Build what is missing or out of date, two at a time; all, and without a cache, when `fresh`. What
    another stack has built of the same files is taken.

    Raises `Failure` with the end of a build's log.
    """
    base = base_image.inspect(base_image.IMAGE, "{{.Id}}")
    wanted = {image: fingerprint(image.inputs, base) for image in chosen}
    current = _labels(config, chosen)
    stale = [image for image in chosen if fresh or current.get(image.tag(config)) != wanted[image]]
    stale = [image for image in stale if fresh or not _taken(image, wanted[image], config)]
    if not stale:
        return
    step(f"Building the images {', '.join(image.name for image in stale)}")
    with ThreadPoolExecutor(max_workers=2) as pool:
        for built in [pool.submit(build, image, wanted[image], config, fresh=fresh) for image in stale]:
            built.result()


# As of Dockerfile.dockerignore: what a program left that ran here.
_NOT_IN_IT = re.compile(r"(^|/)__pycache__/|\.egg-info/")


def fingerprint(inputs: Iterable[str], base: str, root: Path = ROOT) -> str:
    """A hash of the names, modes and contents of all files in `inputs`, and of the base image."""
    digest = hashlib.sha256(base.encode())
    for name in inputs:
        path = root / name
        files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
        for file in files:
            if _NOT_IN_IT.search(str(file.relative_to(root))):
                continue
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            executable = bool(file.stat().st_mode & 0o100)
            digest.update(f"{file.relative_to(root)}\0{executable}\0{content}\n".encode())
    return digest.hexdigest()


def _taken(image: Image, label: str, config: Config) -> bool:
    filters = ("--filter", f"label={LABEL}={label}", "--filter", f"reference=carillon/{image.name}")
    found = process.docker("image", "ls", "--quiet", *filters).split()
    return bool(found) and all(
        process.ask(["docker", "tag", found[0], tag]).returncode == 0 for tag in image.tags(config)
    )


def forget(config: Config) -> None:
    """The names of a stack's images go, and what no other stack is made from."""
    query = ["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    for suffix in ("", BUILT, "-before"):
        query += ["--filter", f"reference=carillon/*:{config.project}{suffix}"]
    if tags := process.docker(*query).split():
        process.ask(["docker", "image", "rm", *tags])


def prune() -> None:
    """Images of ours that have lost all their names go, but for those that a container is made from. Those
    that a rollback leads to have one."""
    process.ask(["docker", "image", "prune", "--force", "--filter", f"label={LABEL}"], seconds=300)


def _labels(config: Config, chosen: tuple[Image, ...]) -> dict[str, str]:
    """Tag to the fingerprint that it was built with."""
    answer = process.ask(["docker", "image", "inspect", *(image.tag(config) for image in chosen)])
    return {
        tag: (item["Config"].get("Labels") or {}).get(LABEL, "")
        for item in json.loads(answer.stdout or "[]")
        for tag in item["RepoTags"]
    }


def build(
    image: Image,
    label: str,
    config: Config,
    *,
    fresh: bool = False,
    source: Path = ROOT,
    when: int | None = None,
) -> None:
    """Of `source`; with `when`, in seconds since 1970, with nothing that tells the time of the build."""
    command = [
        "docker",
        "build",
        "--progress",
        "plain",
        "--file",
        str(source / f"images/{image.name}/Dockerfile"),
    ]
    for tag in image.tags(config):
        command += ["--tag", tag]
    command += ["--label", f"{LABEL}={label}", "--build-arg", f"VERSION={version(source)}"]
    if fresh:
        command += ["--no-cache"]
    if when is not None:
        command += ["--build-arg", f"SOURCE_DATE_EPOCH={when}"]
    if image.target:
        command += ["--target", image.target]
    if image.python_packages and config.ca_bundle:
        # A secret of the build: it is in no layer, and the image trusts nobody for it.
        command += ["--secret", f"id=ca,src={config.ca_bundle}"]
    # Without a value: Docker takes it from our environment, so that a proxy's password is in no argv.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        if name in os.environ:
            command += ["--build-arg", name]
    log = config.logs / f"build-{image.name}.log"
    with timed() as seconds:
        try:
            process.work(
                [*command, str(source)],
                what=f"image {image.name}",
                log=log,
                seconds=_BUILD_SECONDS,
                env={"DOCKER_BUILDKIT": "1"},
                hint="Does the network need a CA of its own? Then set CA_BUNDLE=…",
            )
        except Failure as failure:
            from dev import bundle  # it is made of images, too

            said = log.read_text(errors="replace") if image.python_packages and log.exists() else ""
            if why := bundle.release_module(source).without_wheel(said, "the Python of the image"):
                raise Failure(why, failure.details) from None
            raise
    progress(f"image {image.name}: built in {seconds[0]:.0f} s")


def version(source: Path = ROOT) -> str:
    return tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]

"""Calls nginx: a check of its configuration, or an nginx of a test's own with stubs behind it."""

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.infra import wire
from tests.unit.nginx import tree

IMAGE_LABEL = "org.opencontainers.image.title=Carillon: nginx"
# Started by root, workers would be nobody, who may not read a directory of the tests.
GLOBAL = "daemon off; user root;" if os.getuid() == 0 else "daemon off;"


def command(root: Path) -> list[str]:
    """How to call nginx here: the machine's own, else the image's, `root` at the same path; else a skip."""
    if binary := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
        return [binary]
    if shutil.which("docker"):
        images = subprocess.run(
            ["docker", "image", "ls", "--quiet", "--filter", f"label={IMAGE_LABEL}"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        if images:
            return [
                "docker",
                "run",
                "--rm",
                "--init",
                "--network=host",
                f"--user={os.getuid()}:{os.getgid()}",
                f"--volume={root}:{root}",
                "--entrypoint=nginx",
                images[0],
            ]
    pytest.skip("needs nginx, or the image carillon/nginx (make dev builds it)")


def check(configuration: Path) -> subprocess.CompletedProcess:
    """`nginx -t`."""
    root = configuration.parent
    return subprocess.run(
        [*command(root), "-t", "-e", "stderr", "-p", str(root), "-c", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass
class Running:
    """nginx with stubs behind it."""

    http: tuple[str, int]
    https: tuple[str, int]
    tls: ssl.SSLContext
    root: Path
    status: tuple[str, int]

    def ask(
        self, method="GET", path="/", headers=(), body=b"", version="1.1", *, tls=False, host="localhost"
    ):
        """One request with a Host; the answer."""
        headers = [("Host", host), *headers] if host else list(headers)
        data = wire.request(method, path, headers, body, version)
        return wire.exchange(self.https if tls else self.http, data, self.tls if tls else None)

    def log(self) -> str:
        return (self.root / "access.log").read_text() + (self.root / "error.log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def nginx(root: Path, site: dict, edit=None):
    """nginx with the values `site`, on free ports, until the block ends; `edit(root)` may change files."""
    http, https, status = free_port(), free_port(), free_port()
    # The PROXY protocol is for who does not come from 127.0.0.1, which has a way in of its own.
    where = "" if site["proxy_protocol"] else "127.0.0.1:"
    site = site | {
        "https": site["https"] | {"listen": [f"{where}{https}"]},
        "http": site["http"] | {"listen": [f"{where}{http}"], "redirect_port": https},
        "status": f"127.0.0.1:{status}",
    }
    configuration = tree.lay_out(root, site)
    if edit:
        edit(root)
    with (root / "error.log").open("w") as errors:
        process = subprocess.Popen(
            [*command(root), "-e", "stderr", "-p", str(root), "-c", str(configuration), "-g", GLOBAL],
            stdout=errors,
            stderr=errors,
        )
        try:
            deadline = time.monotonic() + 15
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", http), 1).close()
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"nginx did not start:\n{(root / 'error.log').read_text()}")
                time.sleep(0.05)
            context = ssl.create_default_context(cafile=str(root / "tls" / "server.pem"))
            yield Running(("127.0.0.1", http), ("127.0.0.1", https), context, root, ("127.0.0.1", status))
        finally:
            process.terminate()
            process.wait(10)

"""Carillon's own nginx with TLS before a server of this machine: the image, the routes and the site template
that a stack runs, and a certificate of the moment."""

import secrets
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import observed
from carillon.process import declared
from dev import certificates, site_file

IMAGE = "carillon/nginx:dev"
INSIDE = "/etc/nginx/carillon"
PATH = "/websocket/"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Front:
    """`with Front(upstream, port)`: TLS on 127.0.0.1:`port`, its websocket path leads to `upstream`."""

    def __init__(self, upstream, port):
        self.port = port
        self.name = f"carillon-bench-front-{secrets.token_hex(4)}"
        self._folder = tempfile.TemporaryDirectory(prefix=self.name)
        folder = Path(self._folder.name)
        certificates.ensure(folder)
        # As `make dev` has it, but for the addresses.
        values = site_file.read(site_file.TEMPLATE.parent / "development.yml")
        values |= {"uwsgi": ["127.0.0.1:9"], "daphne": [f"127.0.0.1:{upstream}"], "resolver": None}
        values |= {"access_log": "/dev/null", **declared.site(declared.Declared())}
        values["client_limits"] = False  # all clients come from one address
        values["https"]["listen"] = [f"127.0.0.1:{port}"]
        values["http"]["listen"] = [f"127.0.0.2:{port}"]
        (folder / "site.conf").write_text(site_file.render(values, site_file.TEMPLATE.read_text()))

    def __enter__(self):
        folder = self._folder.name
        mounts = {
            f"{folder}/site.conf": "site.conf", f"{folder}/server.pem": "tls/server.pem",
            f"{folder}/server.key": "tls/server.key",
            site_file.TEMPLATE.parent.parent / "snippets": "snippets",
        }  # fmt: skip
        volumes = [
            word for here, there in mounts.items() for word in ("--volume", f"{here}:{INSIDE}/{there}:ro,z")
        ]
        subprocess.run(
            ["docker", "run", "--detach", "--rm", "--network", "host", "--name", self.name,
             "--no-healthcheck", "--ulimit", "nofile=20000:20000",
             "--tmpfs", "/run/nginx:uid=10004,gid=10004,mode=0700", *volumes, IMAGE],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if time.monotonic() > deadline:
                    subprocess.run(["docker", "logs", self.name], check=False)
                    self.__exit__()
                    raise SystemExit("nginx does not listen: its log is above") from None
                time.sleep(0.1)

    def cpu(self):
        return sum(observed.cpu(pid) for pid in observed.inside(self.name, "worker process"))

    def memory(self):
        return sum(observed.memory(pid) for pid in observed.inside(self.name, "worker process"))

    def __exit__(self, *_):
        subprocess.run(["docker", "rm", "--force", self.name], check=False, capture_output=True)
        self._folder.cleanup()

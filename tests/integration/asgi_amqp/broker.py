"""RabbitMQ in a container, and the ways to hurt it."""

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from urllib.parse import quote

IMAGE = os.environ.get("CARILLON_TEST_RABBITMQ_IMAGE", "carillon/rabbitmq:dev")
PASSWORD = "p@:/#%?w+ü"  # every character that a careless URL gets wrong
NAME = "carillon-layer-test-"
ROOT = Path(__file__).parents[3]


def docker(*arguments, check=True):
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Broker:
    """`with Broker() as broker`: a running broker. Its port stays the same over restarts."""

    def __init__(self, name=None, options=(), password=PASSWORD):
        self.password = password
        self.name = NAME + (name or secrets.token_hex(4))
        self.port = free_port()
        self.options = options
        self._secrets = tempfile.TemporaryDirectory(prefix=NAME)

    @staticmethod
    def remove_leftovers():
        """Containers of runs that are over: whose process, in their label, no longer lives."""
        shown = docker("ps", "--all", "--filter", f"name=^{NAME}", "--format", '{{.Names}} {{.Label "pid"}}')
        for line in shown.splitlines():
            name, _, pid = line.partition(" ")
            if pid == str(os.getpid()) or not Path("/proc", pid or "gone").exists():
                docker("rm", "--force", "--volumes", name, check=False)

    @property
    def url(self):
        return self.url_for("carillon", self.password, "carillon")

    def url_for(self, user, password, vhost):
        user, password, vhost = (quote(part, safe="") for part in (user, password, vhost))
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{vhost}"

    def __enter__(self):
        if not docker("images", "--quiet", IMAGE):
            dockerfile = ROOT / "images/rabbitmq/Dockerfile"
            docker("build", "--tag", IMAGE, "--file", str(dockerfile), str(ROOT))
        folder = Path(self._secrets.name)
        folder.chmod(0o755)
        for name, text in (("password", self.password), ("cookie", secrets.token_hex(32))):
            (folder / name).write_text(text)
            (folder / name).chmod(0o444)
        docker(
            "run", "--detach", "--label", f"pid={os.getpid()}", "--name", self.name, "--hostname", self.name,
            "--publish", f"127.0.0.1:{self.port}:5672",
            "--tmpfs", "/run/rabbitmq:uid=10003,gid=10003,mode=0700",
            "--volume", f"{folder}:/secrets:ro,z", "--env", "CARILLON_AMQP_PASSWORD_FILE=/secrets/password",
            "--env", "RABBITMQ_COOKIE_FILE=/secrets/cookie", *self.options, IMAGE,
        )  # fmt: skip
        try:
            self.wait()
        except BaseException:
            print(self.logs())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        docker("rm", "--force", "--volumes", self.name, check=False)
        self._secrets.cleanup()

    def logs(self):
        return docker("logs", "--tail", "15", self.name, check=False)

    def wait(self, seconds=90):
        """Until the broker speaks AMQP and its accounts are there."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                    connection.settimeout(2)
                    connection.sendall(b"AMQP\0\0\x09\x01")
                    if connection.recv(1) == b"\x01":
                        return
            except OSError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} does not answer on port {self.port}")

    def ctl(self, *arguments):
        return docker("exec", self.name, "rabbitmqctl", "--quiet", *arguments)

    def close_connections(self):
        """The broker closes the connections of all clients."""
        self.ctl("close_all_connections", "--vhost", "carillon", "because")

    def remember_queues(self):
        """They are on the disk from now on. In a kill, RabbitMQ 4.0 may forget that a quorum queue made
        moments before is its own, and elects no leader for it, ever (rabbitmq-server#15725)."""
        self.ctl("eval", "ok = dets:sync(ra_directory_reverse).")

    def kill(self):
        docker("kill", "--signal", "KILL", self.name)

    def start(self):
        docker("start", self.name)
        self.wait()

    def restart(self):
        docker("restart", "--time", "30", self.name)
        self.wait()

    def pause(self):
        """From now on packets are swallowed: nothing is refused, nothing answers."""
        docker("pause", self.name)

    def unpause(self):
        docker("unpause", self.name)

    async def do(self, method, *arguments):
        """Call one of the above without stopping the event loop."""
        return await asyncio.to_thread(getattr(self, method), *arguments)


async def eventually(condition, seconds=30.0):
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        await asyncio.sleep(0.02)


def script(broker, body, seconds=60, **env):
    """Run the body of a coroutine in a process of its own, where an event loop that stops harms nobody.

    It has `asyncio`, `os`, `asgi_amqp`, and `make_layer(**options)` for layers on this broker.
    """
    program = SCRIPT + textwrap.indent(body, "    ") + "\nasyncio.run(main())\n"
    prefix = f"s{secrets.token_hex(4)}"
    env = dict(os.environ, PYTHONPATH="src", URL=broker.url, PREFIX=prefix) | env
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True, timeout=seconds
    )
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout


SCRIPT = """
import asyncio, os
import asgi_amqp
def make_layer(**options):
    options = {"url": os.environ["URL"], "prefix": os.environ["PREFIX"], "timeout": 20.0} | options
    return asgi_amqp.AMQPChannelLayer(**options)
async def main():
"""

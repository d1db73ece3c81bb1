"""Chromium, the server that plays Carillon, and the stack, for the tests of the page.

Every page is watched: an error on its console, an exception in its code or a violation of its CSP fails the
test, unless the test said that it expects it. Its last picture is kept in tests/browser/artifacts.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ARTIFACTS = HERE / "artifacts"
CHROMIUM = os.environ.get("CARILLON_BROWSER") or "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# How many requests are not yet answered; see `quiet` in test_page.py.
COUNTING = """
  const real = window.fetch;
  window.asking = 0;
  window.fetch = async (...all) => {
    window.asking += 1;
    try {
      return await real(...all);
    } finally {
      window.asking -= 1;
    }
  };
"""
# Deadlines of what is waited for, not bounds: a machine that does much else is slow, and not wrong.
expect.set_options(timeout=15_000)


def missing(what):
    """A developer may go without; the gate may not."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def browser():
    if not Path(CHROMIUM).exists():
        missing(f"{CHROMIUM} is not there: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Watched:
    """A page and what went wrong on it."""

    def __init__(self, context, name):
        self.context = context
        self.page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.name = name
        self.errors = []
        # Chromium drops what it is loading when an interface comes or goes, as when a container starts
        # beside the test; the page loads it again.
        self.expected = [re.compile("ERR_NETWORK_CHANGED")]
        self.page.add_init_script(COUNTING)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))

    def _console(self, message):
        if message.type == "error":
            self.errors.append(f"console: {message.text} ({message.location.get('url', '')})")

    def expect(self, pattern):
        """Errors that match are part of the test."""
        self.expected.append(re.compile(pattern))

    def finish(self):
        ARTIFACTS.mkdir(exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"{self.name}.png")
        self.context.close()
        wrong = [error for error in self.errors if not any(one.search(error) for one in self.expected)]
        assert not wrong, "\n".join(wrong)


@pytest.fixture
def open_page(browser, request):
    """`open_page(width=…, height=…, **context options)` -> Watched."""
    opened = []

    def open_one(width=1280, height=800, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        name = re.sub(r"[^\w-]+", "-", request.node.name).strip("-")
        watched = Watched(context, f"{name}-{len(opened)}" if opened else name)
        opened.append(watched)
        return watched

    yield open_one
    failures = []
    for watched in opened:
        try:
            watched.finish()
        except AssertionError as failure:
            failures.append(str(failure))
    assert not failures, "\n".join(failures)


class Fake:
    def __init__(self, port):
        self.url = f"http://localhost:{port}"

    def do(self, action, **order):
        body = json.dumps({"do": action, **order}).encode()
        request = urllib.request.Request(f"{self.url}/fake/", data=body, method="POST")
        urllib.request.urlopen(request, timeout=10).read()


def start_fake(port, log, orders=None):
    """The process of a fake server that answers; `orders`: a file, see there."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, HERE / "fake.py", str(port), *([orders] if orders else [])],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(Fake(port).url, timeout=5).read()
            return process
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                end(process)
                pytest.fail(f"the fake server does not answer:\n{log.read_text()}")
            time.sleep(0.1)


def end(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def _fake(tmp_path_factory):
    port = free_port()
    process = start_fake(port, tmp_path_factory.mktemp("fake") / "log")
    yield Fake(port)
    end(process)


@pytest.fixture
def fake(_fake):
    _fake.do("reset")
    return _fake


def read_shell_file(path):
    """`NAME=value` lines, as `make dev` writes them."""
    found = {}
    for line in Path(path).read_text().splitlines():
        name, equals, value = line.removeprefix("export ").partition("=")
        if equals and not name.startswith("#"):
            found[name.strip()] = value.strip().strip("'\"")
    return found


@pytest.fixture(scope="session")
def stack():
    """The running stack: CARILLON_URL, …_USERNAME, …_PASSWORD, …_TOKEN, …_CA_CERT."""
    path = os.environ.get("CARILLON_STACK_ENV")
    if not path:
        missing("CARILLON_STACK_ENV names no stack: run `make test`, or set it to .dev/env after `make dev`")
    return read_shell_file(path)


@pytest.fixture(scope="session")
def ansible_playbook():
    found = shutil.which(
        "ansible-playbook", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    )
    if not found:
        missing("ansible-playbook is not in this environment: requirements/test.txt has it")
    return found

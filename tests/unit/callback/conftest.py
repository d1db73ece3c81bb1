"""Real runs of ansible-playbook against the stub API."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.callback.stub_api import TOKEN

ROOT = Path(__file__).parents[3]
PLUGINS = ROOT / "ansible" / "plugins" / "callback"


@pytest.fixture(scope="session")
def plugin():
    spec = importlib.util.spec_from_file_location("carillon_callback", PLUGINS / "carillon.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Run:
    """A started ansible-playbook. Its output goes to files: a pipe that nobody reads would hold it up."""

    def __init__(self, folder, arguments, environ):
        self.folder = folder
        self.started = time.monotonic()
        with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ansible", "playbook", *arguments],
                cwd=folder,
                env=environ,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )

    def end(self, seconds=60):
        self.process.wait(seconds)
        self.seconds = time.monotonic() - self.started
        return self

    @property
    def code(self):
        return self.process.returncode

    @property
    def out(self):
        return (self.folder / "stdout").read_text()

    @property
    def err(self):
        return (self.folder / "stderr").read_text()

    @property
    def warnings(self):
        """The plugin's own words on stderr, each on one line whatever the width of the terminal."""
        said = [" ".join(part.split()) for part in self.err.split("[WARNING]: ")[1:]]
        return [words for words in said if "Carillon" in words]


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """start(url, playbook text, *arguments, **environment) -> Run"""
    running = []

    def start(url, playbook, *arguments, **environ):
        folder = tmp_path_factory.mktemp("run")
        (folder / "play.yml").write_text(playbook)
        keep = {
            key: value for key, value in os.environ.items() if not key.startswith(("CARILLON_", "ANSIBLE_"))
        }
        environment = {
            **keep,
            "ANSIBLE_CALLBACK_PLUGINS": str(PLUGINS),
            "ANSIBLE_CALLBACKS_ENABLED": "carillon",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "ANSIBLE_INVENTORY_UNPARSED_WARNING": "0",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "CARILLON_URL": url,
            "CARILLON_TOKEN": TOKEN,
            **environ,
        }
        run = Run(folder, ["play.yml", "-i", "one,", "-c", "local", *arguments], environment)
        running.append(run)
        return run

    yield start
    for run in running:
        if run.process.poll() is None:
            run.process.kill()
            run.process.wait()

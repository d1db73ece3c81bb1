"""A machine to break: its own PATH with programs that say what a test wants."""

import os
import stat

import pytest

from dev import config


class Machine:
    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.monkeypatch = monkeypatch
        folder.mkdir()
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.delenv("DOCKER_HOST", raising=False)

    def program(self, name, script):
        """A program of that name on PATH, as a shell script."""
        path = self.folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def user(self, number):
        self.monkeypatch.setattr(os, "geteuid", lambda: number)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path / "bin", monkeypatch)


@pytest.fixture
def settings(tmp_path):
    return config.load({"CARILLON_STATE": str(tmp_path / "state"), "CARILLON_PROJECT": "carillon-unit"})

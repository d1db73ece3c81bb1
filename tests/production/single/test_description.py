"""Leaves a description of the host for the test of parity (tests/production/container/test_parity.py)."""

from __future__ import annotations

import json
from pathlib import Path

from tests.production.conftest import ROOT
from tests.production.parity import argv, nginx


def test_describe(machine):
    programs = {"uwsgi": "uwsgi:uwsgi_0", "daphne": "daphne:daphne_0", "runworker": "runworker"}
    rows = {row["pid"]: row for row in machine.processes()}
    found = {
        process: rows[int(machine.run(f"carillon-ctl pid {name}"))] for process, name in programs.items()
    }
    listing = machine.run(
        "find /etc/nginx/nginx.conf /etc/nginx/carillon/snippets /etc/carillon/uwsgi.ini"
        " /etc/carillon/supervisord"
        " -type f -exec sha256sum {} +"
    )
    description = {
        "nginx": nginx(machine.run("nginx -T 2>/dev/null")),
        "argv": {process: argv(row["argv"]) for process, row in found.items()},
        "environment": sorted(
            {line.partition("=")[0] for row in found.values() for line in row["environ"] if "=" in line}
        ),
        "files": {path: digest for digest, path in (line.split(maxsplit=1) for line in listing.splitlines())},
    }
    target = ROOT / "build/parity/host.json"
    Path(target.parent).mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(description, indent=1))
    assert set(description["argv"]) == set(programs)

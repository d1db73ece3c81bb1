"""What the project declares of itself, for whatever is made from it here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from carillon.process import declared as declaration
from dev.config import COMPOSE_FILE, ROOT, YOURS, Config
from dev.output import Failure

# Where a container of development has a team's own `src`, before that of the checkout.
_MOUNTED = "/opt/carillon/yours"
FILE = ROOT / "src" / "project" / declaration.FILE
# Its own locations of nginx, which every deployment includes.
LOCATIONS = FILE.with_name("nginx")


def declared() -> declaration.Declared:
    """Raises `Failure` with what is wrong; of several things the first is its line."""
    found, problems = declaration.read(FILE)
    if problems:
        raise Failure(problems[0], problems[1:])
    return found


def locations(folder: Path) -> bool:
    """They lie in `folder`, and nothing else does; False when it was so already."""
    return place(sorted(LOCATIONS.glob("*.conf")), folder)


def place(files: Iterable[Path], folder: Path) -> bool:
    """As `locations`, of these files."""
    wanted = {path.name: path.read_bytes() for path in files}
    there = {path.name: path.read_bytes() for path in folder.glob("*")}
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # nginx reads it, as another user
    for name in there.keys() - wanted.keys():
        (folder / name).unlink()
    for name, content in wanted.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o644)
    return there != wanted


def compose(config: Config) -> None:
    """Compose's file of what is the project's: each declared process, a container as runworker is one, its
    command apart; and where the code of a team's own repository lies, for every process."""
    services: dict[str, dict[str, Any]] = {
        name: {
            "extends": {"file": str(COMPOSE_FILE), "service": "runworker"},
            "command": ["reload", name],
            "healthcheck": {"test": ["CMD", "carillon", "probe", name]},
            "deploy": {"replicas": process.number},
        }
        for name, process in declared().processes.items()
    }
    if YOURS:
        code = {
            "volumes": [f"{YOURS / 'src'}:{_MOUNTED}:ro,z"],
            "environment": {"PYTHONPATH": f"{_MOUNTED}:/opt/carillon/src"},
            # Another checkout, by the same path: a container that stayed would see the one that is gone.
            "labels": {"carillon.fetched": (ROOT / ".fetched").read_text().strip()},
        }
        for name in ("uwsgi", "daphne", "runworker", "migrate", *services):
            services[name] = {**services.get(name, {}), **code}
    if services:
        config.processes.write_text(json.dumps({"services": services}, indent=2) + "\n")
    else:
        config.processes.unlink(missing_ok=True)

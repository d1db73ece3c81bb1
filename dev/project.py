"""What the project declares of itself, for whatever is made from it here."""

from __future__ import annotations

import json

from carillon.process import declared as declaration
from dev.config import COMPOSE_FILE, ROOT, Config
from dev.output import Failure

FILE = ROOT / "src" / "project" / declaration.FILE


def declared() -> declaration.Declared:
    """Raises `Failure` with what is wrong; of several things the first is its line."""
    found, problems = declaration.read(FILE)
    if problems:
        raise Failure(problems[0], problems[1:])
    return found


def programs() -> set[str]:
    """The declared processes of production, as supervisorctl names them."""
    return {
        f"{name}:{name}_{place}"
        for name, process in declared().processes.items()
        for place in range(process.number)
    }


def compose(config: Config) -> None:
    """Compose's file of the declared processes: each a container as runworker is one, its command apart."""
    services = {
        name: {
            "extends": {"file": str(COMPOSE_FILE), "service": "runworker"},
            "command": ["reload", name],
            "healthcheck": {"test": ["CMD", "carillon", "probe", name]},
            "deploy": {"replicas": process.number},
        }
        for name, process in declared().processes.items()
    }
    if services:
        config.processes.write_text(json.dumps({"services": services}, indent=2) + "\n")
    else:
        config.processes.unlink(missing_ok=True)

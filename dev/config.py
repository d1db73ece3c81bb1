"""Which stack: its name, its ports, where its state lies. All can be set: two can run side by side."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dev.output import Failure

ROOT = Path(__file__).resolve().parent.parent
# A team's own repository, which has this checkout in .carillon/ (`dev.yours`). None: the checkout is deployed
# as it is.
YOURS = Path(os.environ["CARILLON_YOURS"]).resolve() if os.environ.get("CARILLON_YOURS") else None
# Where state and private environments lie: not in a checkout that another version replaces.
HOME = YOURS or ROOT
# What stacks are called, and with them their images: two repositories share neither.
NAME = (re.sub("[^a-z0-9]+", "-", YOURS.name.lower()).strip("-") or "yours") if YOURS else "carillon"
COMPOSE_FILE = ROOT / "compose" / "dev.yml"
OBSERVABILITY = ROOT / "compose" / "observability.yml"
"""Beside a stack, when it is observed."""

DEFAULT_PORTS = {
    "CARILLON_HTTP_PORT": 8013,
    "CARILLON_HTTPS_PORT": 8043,
    "CARILLON_MANAGEMENT_PORT": 15672,
    "CARILLON_AMQP_PORT": 5672,
}
# What a state directory has at most before its secrets are there, and what an empty one may have.
_FIRST = {"secrets", "logs", "backups", "lock", "lost+found", ".gitkeep"}
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
)


@dataclass(frozen=True)
class Config:
    """`ports` by variable name; `listen` is the address of nginx's ports, the other two are on 127.0.0.1.

    `compose_files` make the stack; `settings` are values that they ask for beyond those that every stack has.
    `told`: what production keeps of its environment (`dev.production.KEPT`).
    """

    project: str
    state: Path
    listen: str
    ports: Mapping[str, int]
    ca_bundle: Path | None
    compose_files: tuple[Path, ...] = (COMPOSE_FILE,)
    settings: Mapping[str, str] = field(default_factory=dict)
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def http_port(self) -> int:
        return self.ports["CARILLON_HTTP_PORT"]

    @property
    def https_port(self) -> int:
        return self.ports["CARILLON_HTTPS_PORT"]

    @property
    def environment_file(self) -> Path:
        return self.state / "env"

    @property
    def project_settings(self) -> Path:
        return self.state / "project.env"

    @property
    def processes(self) -> Path:
        """Compose's file of what is the project's; there is none where it declares no process of its own."""
        return self.state / "processes.json"

    @property
    def secrets(self) -> Path:
        return self.state / "secrets"

    @property
    def certificates(self) -> Path:
        return self.state / "certificates"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    def address_of(self, variable: str) -> str:
        """The address that a port is published on."""
        return self.listen if variable in ("CARILLON_HTTP_PORT", "CARILLON_HTTPS_PORT") else "127.0.0.1"

    def compose_environment(self) -> dict[str, str]:
        """What the Compose files are filled with."""
        return {
            "CARILLON_PROJECT": self.project,
            "CARILLON_STATE": str(self.state),
            "CARILLON_LISTEN": self.listen,
            **{name: str(port) for name, port in self.ports.items()},
            **self.settings,
        }

    def moved(self, *, ports: Mapping[str, int]) -> Config:
        return replace(self, ports=dict(ports))


def load(
    environ: Mapping[str, str] = os.environ,
    *,
    project: str = NAME,
    state: str = ".dev",
    names: Iterable[str] = DEFAULT_PORTS,
) -> Config:
    """The configuration that the variables describe, with `project` and `state` where they say nothing;
    of the ports those of `names`.

    Raises `Failure` at the first value that cannot be.
    """
    ports = {name: port(environ, name, DEFAULT_PORTS[name]) for name in names}
    if len(set(ports.values())) < len(ports):
        raise Failure(f"two of {', '.join(ports)} are the same port")
    return Config(
        project=environ.get("CARILLON_PROJECT") or project,
        state=state_of(environ, state),
        listen=environ.get("CARILLON_LISTEN") or "127.0.0.1",
        ports=ports,
        ca_bundle=_ca_bundle(environ),
    )


def state_of(environ: Mapping[str, str], default: str) -> Path:
    """The state directory. Raises `Failure` for a folder of something else: `make clean` would empty it."""
    state = (HOME / (environ.get("CARILLON_STATE") or default)).resolve()
    held = {path.name for path in state.iterdir()} if state.is_dir() else set()
    known = any((state / name).exists() for name in ("make.env", "secrets/amqp_password"))
    ours = known or held <= _FIRST or state.name.startswith(".dev")
    if HOME.is_relative_to(state) or not ours:
        raise Failure(
            f"CARILLON_STATE={state} holds what is not of a stack: name a new folder, or an empty one"
        )
    return state


def unnamed(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Without the name and the state of somebody's own stack: tests remove what they started."""
    return {
        name: value for name, value in environ.items() if name not in ("CARILLON_PROJECT", "CARILLON_STATE")
    }


def shown(path: Path) -> str:
    """As somebody who stands where the Makefile lies would write it."""
    return str(path.relative_to(HOME)) if path.is_relative_to(HOME) else str(path)


def port(environ: Mapping[str, str], name: str, default: int) -> int:
    """The port that a variable says. Raises `Failure`."""
    text = environ.get(name) or str(default)
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 65536):
        raise Failure(f"{name}={text} is not a port (1 to 65535)")
    return int(text)


def _ca_bundle(environ: Mapping[str, str]) -> Path | None:
    """CA_BUNDLE when set (it must exist), else what this machine uses itself, if anything."""
    if given := environ.get("CA_BUNDLE"):
        path = Path(given).expanduser().resolve()
        if not path.is_file():
            raise Failure(f"CA_BUNDLE={given} does not exist")
        return path
    candidates = [environ.get("PIP_CERT"), environ.get("SSL_CERT_FILE"), *_BUNDLES]
    return next((Path(name) for name in candidates if name and Path(name).is_file()), None)

"""`make quadlets`: the units, and all that their containers have mounted, in the state folder.

It asks no container engine: where Podman runs there may be none of Docker's, and where this runs none at all.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from dev import production, secret_files, server_certificate
from dev.config import NAME, ROOT, Config, shown
from dev.output import Failure, say
from quadlets import render

STATE = ".dev-quadlets"
# The usual ones: a host serves nothing else there.
DEFAULTS = {"CARILLON_HTTP_PORT": "80", "CARILLON_HTTPS_PORT": "443", "CARILLON_LISTEN": "0.0.0.0"}  # noqa: S104
# Of the network that nginx is in: it asks its DNS server by address.
_DEFAULT_SUBNET, _NETWORK = "10.89.43.0/24", "front"


def load(environ: Mapping[str, str] = os.environ) -> Config:
    return production.load(environ, project=NAME, state=STATE, defaults=DEFAULTS)


def write(config: Config) -> Path:
    """The folder of the units. Run again, secrets stay, and what is no unit any more goes."""
    subnet = _subnet(config.told)
    certificate = server_certificate.chosen(config.told, config.settings["CARILLON_ALLOWED_HOSTS"])
    secret_files.private_directory(config.state)
    try:
        made = units(config, subnet)
    except render.Refused as refused:
        first, *others = str(refused).splitlines()
        raise Failure(f"compose/production.yml cannot be units: {first}", others) from None
    production.keep(config)
    secret_files.ensure(config.secrets)
    secret_files.project_settings(config.project_settings)
    production.mounted(config, certificate, resolver=str(subnet[1]))
    folder = config.state / "units"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    for old in folder.iterdir():
        if old.name not in made and old.is_file():  # a folder is a drop-in of the operator's
            old.unlink()
    for name, text in made.items():
        secret_files.write(folder / name, text, 0o644)
    return folder


def units(config: Config, subnet: ipaddress.IPv4Network) -> dict[str, str]:
    document = yaml.safe_load(config.compose_files[0].read_text())
    images = {
        name: health
        for name in document["services"]
        if (path := ROOT / "images" / name / "Dockerfile").is_file()
        and (health := render.image_health(path.read_text()))
    }
    # As on the host, and not where they are made.
    variables = {**config.compose_environment(), "CARILLON_STATE": str(mounted_from(config))}
    return render.units(document, variables, images=images, subnets={_NETWORK: str(subnet)})


def mounted_from(config: Config) -> Path:
    """Where a host has what is mounted."""
    return Path("/etc") / config.project


def start() -> None:
    config = load()
    folder = write(config)
    there = mounted_from(config)
    state = shown(config.state)
    say(f"""
{len(list(folder.iterdir()))} units are in {shown(folder)}, and what is mounted beside them.
On the host, as root, with Podman 5.4 or newer and the images as localhost/carillon/<name>:{config.project}:

  install -d -m 0700 {there}
  cp -r --preserve=mode {state}/secrets {state}/nginx {state}/project.env {there}/
  install -d /etc/containers/systemd
  cp {shown(folder)}/* /etc/containers/systemd/
  systemctl daemon-reload
  systemctl start {config.project}-nginx

docs/how-to/production-container.md says how images come to the host, and how to check and to undo.
""")


def _subnet(told: Mapping[str, str]) -> ipaddress.IPv4Network:
    said = told.get(production.SUBNET, _DEFAULT_SUBNET)
    try:
        found = ipaddress.IPv4Network(said)
    except ValueError as error:
        raise Failure(f"{production.SUBNET}={said} is no network of IPv4: {error}") from None
    if found.num_addresses < 8:
        raise Failure(f"{production.SUBNET}={said} is too small: /29 is the smallest")
    return found

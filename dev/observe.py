"""`make observe`: Prometheus and Alertmanager beside the running stack, with Carillon's rules."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from dev import development, environments, images, preflight, secret_files, stack
from dev.config import OBSERVABILITY, Config, port
from dev.output import say, timed

IMAGE = images.Image("observability", ("images/observability",))
PORTS = {"CARILLON_PROMETHEUS_PORT": 9090, "CARILLON_ALERTMANAGER_PORT": 9093}
SERVICES = ("prometheus", "alertmanager", "postgres-exporter", "nginx-exporter")


def beside(config: Config, environ: Mapping[str, str] = os.environ) -> Config:
    """The same stack with these services. Raises `Failure` for a port that is none."""
    ports = {name: port(environ, name, default) for name, default in PORTS.items()}
    files = (*config.compose_files, OBSERVABILITY)
    return replace(config, compose_files=files, ports={**config.ports, **ports})


def up(config: Config) -> None:
    """The stack of `make dev` runs, and these beside it. Run again, it changes nothing."""
    development.up(replace(config, compose_files=config.compose_files[:1]), orphans=True)
    with development.alone(config):
        preflight.ports(config)
        images.ensure(config, (IMAGE,))
        _token(config)
        stack.up(config)


def start(config: Config) -> None:
    """`make observe`."""
    with timed() as seconds:
        development.prepare(config)
        environments.enter(config)
        config = beside(config)
        up(config)
    prometheus, alertmanager = (config.ports[name] for name in PORTS)
    say(f"""
Watched ({seconds[0]:.0f} s).

  Prometheus      http://localhost:{prometheus}   (its alerts: /alerts)
  Alertmanager    http://localhost:{alertmanager}   (whom to tell: observability/alertmanager.yml)
  where to look   docs/how-to/watch-it.md
""")


def _token(config: Config) -> None:
    """The scraper's own: it reads metrics and nothing else."""
    from dev import account

    file = config.secrets / secret_files.METRICS_TOKEN
    if not file.exists():
        token = account.new_token(config, "make observe", scope="metrics", days=0)
        # 0444: see secret_files.ensure.
        secret_files.write(file, token + "\n", 0o444)

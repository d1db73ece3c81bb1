"""Production in containers on this machine, and the cluster: three brokers, two application containers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dev import account, base_image, development, environments, images, project, secret_files, stack
from dev import config as configuration
from dev.config import HOME, NAME, ROOT, Config, shown
from dev.output import progress, say, timed

PORTS = {"CARILLON_HTTP_PORT": "50080", "CARILLON_HTTPS_PORT": "50443"}
CERTIFICATE, KEY = "CARILLON_CERTIFICATE", "CARILLON_CERTIFICATE_KEY"
SUBNET = "CARILLON_SUBNET"  # of quadlets
_MEMORY = tuple(f"CARILLON_{name}_MEMORY" for name in ("NGINX", "APP", "RABBITMQ", "POSTGRESQL"))
# What a state keeps of what it was told, for every command after that: whoever upgrades has not to know it.
KEPT = (
    *("CARILLON_PROJECT", "CARILLON_LISTEN", *PORTS, "CARILLON_ALLOWED_HOSTS", "CARILLON_TRUSTED_ORIGINS"),
    *(CERTIFICATE, KEY, SUBNET, *_MEMORY),
)
_TOLD = "make.env"
# New secrets that are not all in force yet (`operations.rotate`).
ROTATION = "rotation.json"
# Of the files that nginx was last given: the site's, which are another container's, and its certificate.
_COMPOSE = ROOT / "compose"
_SITE = ROOT / "nginx/sites/container.yml"

# The application's has the release in it.
IMAGES = (
    images.Image(
        "app",
        (
            *("images/app", "requirements/app.in", "requirements/app.txt", "requirements/own.in"),
            *("pyproject.toml", "src", "supervisord"),
        ),
        target="production",
        python_packages=True,
        suffix=images.BUILT,
    ),
    *(replace(image, suffix=images.BUILT) for image in images.IMAGES if image.name != "app"),
)


def load(
    environ: Mapping[str, str] = os.environ,
    *,
    cluster: bool = False,
    project: str | None = None,
    state: str | None = None,
    defaults: Mapping[str, str] = PORTS,
) -> Config:
    """The configuration of either. They are stacks of their own: a broker's data belong to its name.

    What the environment does not say is as the state keeps it; an empty value is forgotten.
    """
    kind = "cluster" if cluster else "production"
    state = state or f".dev-{kind}"
    said = {**account.read(configuration.state_of(environ, state) / _TOLD), **environ}
    told = {name: said[name] for name in KEPT if said.get(name)}
    for name in (CERTIFICATE, KEY):
        if name in told:
            told[name] = str(HOME / Path(told[name]).expanduser())
    config = configuration.load(
        {**environ, **defaults, **told}, project=project or f"{NAME}-{kind}", state=state, names=PORTS
    )
    origins = (f"https://{host}:{config.https_port}" for host in ("localhost", "127.0.0.1"))
    return replace(
        config,
        compose_files=(_COMPOSE / "production.yml", *([_COMPOSE / "cluster.yml"] if cluster else [])),
        settings={
            "CARILLON_ALLOWED_HOSTS": told.get("CARILLON_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]"),
            "CARILLON_TRUSTED_ORIGINS": told.get("CARILLON_TRUSTED_ORIGINS", ",".join(origins)),
            **{name: told[name] for name in _MEMORY if name in told},
        },
        told=told,
    )


def keep(config: Config) -> None:
    """What it was told is kept in its state, for the commands after this one."""
    account.write(config.state / _TOLD, dict(config.told))


def build(config: Config) -> None:
    base_image.ensure(config)
    images.ensure(config, IMAGES)


def up(config: Config, *, anew: str = "make production-clean") -> None:
    """The containers run and are healthy. Run again, it changes nothing."""
    # Not at the top: it needs the private environment.
    from dev import operations

    with development.alone(config):
        certificate = taken(config)
        if (config.state / ROTATION).exists():
            progress("a rotation of secrets was cut off: finish it with `make production-rotate`")
        if not operations.held(config):
            build(config)
            operations.use(config, operations.built(config))
        development.ensure_secrets(config, anew=anew)
        serve(config, certificate)
        stack.compose(
            config,
            *("exec", "-T", "app", "carillon", "manage", "ensure_admin", "--password-file", "-"),
            seconds=60,
            stdin=secret_files.read(config.secrets, "admin_password"),
        )


def taken(config: Config) -> tuple[str, str] | None:
    """What it was told is in order, and kept; the certificate that it names. Raises `Failure`."""
    from dev import server_certificate

    if config.told:
        progress(f"{shown(config.state / _TOLD)}: {' '.join(f'{n}={v}' for n, v in config.told.items())}")
    certificate = server_certificate.chosen(config.told, config.settings["CARILLON_ALLOWED_HOSTS"])
    keep(config)
    return certificate


def serve(config: Config, certificate: tuple[str, str] | None, renew: Sequence[str] = ()) -> None:
    """The containers run with what they have mounted, those of `renew` anew, and nginx has read its files."""
    renewed, reload = mounted(config, certificate)
    folder, file = config.state / "nginx", config.state / development.SERVED
    now = [images.fingerprint(names, "", folder) for names in (["site.conf", "site.d"], ["tls"])]
    # What a run that failed has placed is still due.
    served = file.read_text().split() if file.exists() else ["", ""]
    renewed |= now[0] != served[0]
    stack.up(config, renew=[*renew, *(["nginx"] if renewed else [])])
    if (reload or now[1] != served[1]) and not renewed:
        # Open sockets stay with the old workers.
        stack.compose(config, "kill", "--signal", "HUP", "nginx", seconds=30)
    secret_files.write(file, " ".join(now), 0o600)


def mounted(config: Config, certificate: tuple[str, str] | None, **site: str) -> tuple[bool, bool]:
    """What containers have mounted beside the secrets is there. Whether nginx's files are others than before,
    and whether its certificate is."""
    from dev import operations, server_certificate, site_file

    if not (config.secrets / secret_files.FALLBACKS).exists():
        secret_files.write(config.secrets / secret_files.FALLBACKS, "", 0o444)
    file = config.state / "nginx" / "site.conf"
    kept = config.state / operations.SITE_BEFORE
    if operations.held(config) and kept.exists():
        # The checkout's may include what nginx's image of before does not have.
        renewed = secret_files.write(file, (kept / file.name).read_text(), 0o644)
        renewed |= project.place((kept / "site.d").glob("*"), file.with_name("site.d"))
    else:
        renewed = site_file.write(_SITE, file, redirect_port=config.https_port, **site)
        renewed |= project.locations(file.with_name("site.d"))
    return renewed, server_certificate.place(config, certificate)


def start(config: Config, *, target: str) -> None:
    """`make production` and `make cluster`, of which `target` is the name."""
    with timed() as seconds:
        development.prepare(config, IMAGES)
        environments.enter(config)
        up(config, anew=f"make {target}-clean")
    say(f"""
Production in containers is up ({seconds[0]:.0f} s).

  page       https://localhost:{config.https_port}   (http://localhost:{config.http_port} redirects)
  log in     admin / see {shown(config.secrets)}/admin_password
  programs   docker compose -p {config.project} exec app supervisorctl status
  stop       make {target}-down     (data and secrets stay; make {target}-clean: they go)
""")

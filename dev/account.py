"""The way in: the admin, an admin's token, and the environment file that tells scripts of them."""

from __future__ import annotations

import json
import shlex
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from dev import secret_files, stack
from dev.config import Config
from dev.output import Failure, step

USERNAME = "admin"
_SECONDS = 60


def ensure(config: Config) -> dict[str, str]:
    """The environment file's values, proved by a request through nginx; makes admin and token if need be."""
    values = _values(config, token=read(config.environment_file).get("CARILLON_TOKEN", ""))
    if not (values["CARILLON_TOKEN"] and _accepted(values)):
        step("Making the admin and a token")
        stack.compose(
            config,
            *("exec", "-T", "uwsgi", "carillon", "manage", "ensure_admin"),
            *("--username", USERNAME, "--password-file", "-"),
            seconds=_SECONDS,
            stdin=values["CARILLON_PASSWORD"],
        )
        values["CARILLON_TOKEN"] = new_token(config, "make dev")
        if not _accepted(values):
            raise Failure(
                f"{values['CARILLON_URL']} does not accept the token that was just made: see `make logs`"
            )
    write(config.environment_file, values)
    return values


def new_token(config: Config, description: str, *, scope: str = "read write publish", days: int = 365) -> str:
    """A fresh token of the admin, for everything unless told; `days` 0: it does not expire."""
    return stack.compose(
        config,
        *("exec", "-T", "uwsgi", "carillon", "manage", "create_token", "--username", USERNAME),
        *("--scope", scope, "--days", str(days), "--description", description),
        seconds=_SECONDS,
    ).strip()


def read(path: Path) -> dict[str, str]:
    """The values of an environment file; none when there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return {}
    try:
        return {
            name: "".join(shlex.split(value)) for name, _, value in (line.partition("=") for line in lines)
        }
    except ValueError as error:
        raise Failure(f"{path} is not of lines NAME=value: {error}") from None


def write(path: Path, values: dict[str, str]) -> None:
    """An environment file, 0600."""
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    secret_files.write(path, text, 0o600)


def _values(config: Config, *, token: str) -> dict[str, str]:
    amqp_password = secret_files.read(config.secrets, "amqp_password")
    amqp_port = config.ports["CARILLON_AMQP_PORT"]
    return {
        "CARILLON_URL": f"https://localhost:{config.https_port}",
        "CARILLON_HTTP_URL": f"http://localhost:{config.http_port}",
        "CARILLON_CA_CERT": str(config.certificates / "ca.pem"),
        "CARILLON_USERNAME": USERNAME,
        "CARILLON_PASSWORD": secret_files.read(config.secrets, "admin_password"),
        "CARILLON_TOKEN": token,
        "CARILLON_AMQP_URL": f"amqp://carillon:{amqp_password}@127.0.0.1:{amqp_port}/carillon",
    }


def _accepted(values: dict[str, str]) -> bool:
    """Does the token open the API, by TLS that our CA vouches for?

    Asks again for a while when there is no answer: a process may be restarting on a saved file just now.
    """
    deadline = time.monotonic() + _SECONDS
    while True:
        try:
            return _me(values) == values["CARILLON_USERNAME"]
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return False
            problem = f"answered {error.code}"
        except (OSError, ValueError, LookupError) as error:
            problem = f"cannot be reached ({error})"
        if time.monotonic() > deadline:
            raise Failure(f"{values['CARILLON_URL']} {problem}: see `make logs`")
        time.sleep(1)


def _me(values: dict[str, str]) -> str:
    """The name of the user that the token stands for."""
    context = ssl.create_default_context(cafile=values["CARILLON_CA_CERT"])
    # Not through a proxy that the environment names: this is our own machine.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    headers = {"Authorization": f"Bearer {values['CARILLON_TOKEN']}"}
    request = urllib.request.Request(f"{values['CARILLON_URL']}/api/v2/me/", headers=headers)  # noqa: S310
    with opener.open(request, timeout=10) as answer:
        return json.load(answer)["results"][0]["username"]

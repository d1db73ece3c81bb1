"""Filters of Carillon's roles."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import stringprep
import tomllib
import unicodedata
from importlib import util
from pathlib import Path

_ITERATIONS = 4096
_DAY = 86400
_PROHIBITED = (
    *(stringprep.in_table_a1, stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3),
    *(stringprep.in_table_c4, stringprep.in_table_c5, stringprep.in_table_c6, stringprep.in_table_c7),
    *(stringprep.in_table_c8, stringprep.in_table_c9),
)


def rabbitmq_password_hash(password: str, salt_secret: str, user: str) -> str:
    """RabbitMQ's salted SHA-256 of `password`: base64(salt || sha256(salt || password)), salt of 4 bytes.

    The salt comes from a secret of the installation and the user's name, so that the same password gives the
    same hash and a second run finds nothing to change.
    """
    salt = hmac.new(salt_secret.encode(), user.encode(), hashlib.sha256).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + str(password).encode()).digest()).decode()


def _saslprep(password: str) -> str:
    """RFC 4013, and as PostgreSQL and its clients do: what the rules forbid is taken as it is."""
    if password.isascii():
        return password
    spaced = (" " if stringprep.in_table_c12(c) else c for c in password if not stringprep.in_table_b1(c))
    prepared = unicodedata.normalize("NFKC", "".join(spaced))
    if not prepared or any(forbids(c) for c in prepared for forbids in _PROHIBITED):
        return password
    if any(stringprep.in_table_d1(c) for c in prepared) and (
        any(stringprep.in_table_d2(c) for c in prepared)
        or not (stringprep.in_table_d1(prepared[0]) and stringprep.in_table_d1(prepared[-1]))
    ):
        return password
    return prepared


def postgresql_verifier(password: str, salt: bytes = b"", iterations: int = _ITERATIONS) -> str:
    """What PostgreSQL keeps of `password` (RFC 5802): it checks logins with it and cannot log in by it.

    ALTER ROLE takes it in the password's place, so that no statement ever has the password. Base64 and
    digits: it needs no quoting. Without `salt` a new one, and so another verifier each time.
    """
    salt = salt or os.urandom(16)
    # An inventory may have it as a number.
    salted = hashlib.pbkdf2_hmac("sha256", _saslprep(str(password)).encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    parts = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return "SCRAM-SHA-256${}:{}${}:{}".format(iterations, *parts)


def postgresql_verifies(verifier: str, password: str) -> bool:
    """Whether `verifier`, of pg_authid, is that of `password`. Any other kind of verifier is not."""
    try:
        method, round_, _ = verifier.strip().split("$")
        iterations, _, salt = round_.partition(":")
        if method != "SCRAM-SHA-256":
            return False
        made = postgresql_verifier(password, base64.b64decode(salt, validate=True), int(iterations))
    except ValueError:
        return False
    return hmac.compare_digest(made, verifier.strip())


def hsts_seconds(begun: float, now: float) -> int:
    """How long browsers shall keep to HTTPS: a day for the first week after `begun`, then a year.

    Both in seconds since 1970; `begun` is 0 where they were not told yet. What a browser has been told cannot
    be taken back: a wrong name costs a day.
    """
    return 365 * _DAY if begun and now - begun >= 7 * _DAY else _DAY


def release_before(current: list[str], new: str, known: str) -> str:
    """The release to go back to from `new`: the one that all hosts ran when its upgrade began.

    `current` are the releases that the hosts run now, "" where there is none; `known` is what an earlier run
    has found out. A run that was stopped half-way and comes again must not take its own work for the past.
    Empty where it cannot be known.
    """
    running = set(filter(None, current))
    others = running - {new}
    if len(running) == 1 and others:
        return others.pop()
    if known or len(others) != 1:
        return known
    return others.pop()


def release_environment(held: str, rendered: str) -> str:
    """The settings `held` of an older release with the values of today, `rendered`.

    Their names are the older release's: it refuses to start with one that it does not know. Names of the
    project are the operator's own, and come as they are.
    """

    def name(line: str) -> str:
        return "" if line.startswith("#") else line.partition("=")[0].strip()

    today = {name(line): line for line in rendered.splitlines() if name(line)}
    lines = [
        today.get(name(line), line) for line in held.splitlines() if not name(line).startswith("PROJECT_")
    ]
    lines += [line for known, line in today.items() if known.startswith("PROJECT_")]
    return "\n".join(lines) + "\n"


def endpoint(address: str, port: int) -> str:
    """ "address:port", an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def listen_ports(listen: list[str]) -> list[int]:
    """Ports of what nginx listens on: "port", "address:port" or "[address]:port"."""
    return sorted({int(str(where).rpartition(":")[2]) for where in listen})


def first_listener(listen: list[str]) -> dict[str, str | int]:
    """Of what nginx listens on, the lowest `port` with its `address`, "" for any: who checks asks there."""
    port = listen_ports(listen)[0]
    addresses = {
        str(where).rpartition(":")[0].strip("[]") for where in listen if listen_ports([where]) == [port]
    }
    anywhere = addresses & {"", "*", "0.0.0.0", "::"}  # noqa: S104 - read, not bound to
    return {"address": "" if anywhere else min(addresses), "port": port}


def ports_of(listeners: list[str], program: str) -> list[int]:
    """Ports that `program` listens on for the network, of the lines of `ss -Hltnp`."""
    found = set()
    for line in listeners:
        address, _, port = line.split()[3].rpartition(":")
        if f'("{program}",' in line and not address.startswith("127.") and address != "[::1]":
            found.add(int(port))
    return sorted(found)


def _seconds(text: str, form: str) -> int:
    return int(datetime.datetime.strptime(text, form).replace(tzinfo=datetime.UTC).timestamp())


def ends_at(end: str) -> int:
    """Seconds since 1970 of an end as openssl writes it: "Nov 25 03:26:00 2027 GMT"."""
    return _seconds(end.strip(), "%b %d %H:%M:%S %Y GMT")


def days_left(end: str) -> int:
    """Whole days until `end`, as openssl writes it; negative when it is past."""
    return int((ends_at(end) - datetime.datetime.now(datetime.UTC).timestamp()) // _DAY)


def backup_made(name: str) -> int:
    """Seconds since 1970 of a backup's name, "2026-11-25T03-00-00Z" and what follows; 0 for none."""
    return _seconds(name[:20], "%Y-%m-%dT%H-%M-%SZ") if name else 0


def declared(file: str, source: str) -> dict:
    """What the project's `file` declares for nginx, as `site`, and `problems` of all that it declares: lines.

    The module of the checkout `source` reads it. Where there is no checkout, the file is that of a release,
    and was looked at when the release was made.
    """
    path = Path(source) / "src/carillon/process/declared.py"
    if not path.is_file():
        text = Path(file).read_text(encoding="utf-8") if Path(file).is_file() else ""
        said = tomllib.loads(text)
        site = {"websocket_prefixes": [], "http_prefixes": [], "upload_mebibytes": 1}
        return {"site": {key: said.get(key, value) for key, value in site.items()}, "problems": []}
    spec = util.spec_from_file_location("carillon_declared", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found, problems = module.read(Path(file))
    return {"site": module.site(found), "problems": problems}


class FilterModule:
    def filters(self) -> dict:
        return {
            "rabbitmq_password_hash": rabbitmq_password_hash,
            "postgresql_verifier": postgresql_verifier,
            "postgresql_verifies": postgresql_verifies,
            "backup_made": backup_made,
            "days_left": days_left,
            "declared": declared,
            "ends_at": ends_at,
            "endpoint": endpoint,
            "first_listener": first_listener,
            "hsts_seconds": hsts_seconds,
            "listen_ports": listen_ports,
            "ports_of": ports_of,
            "release_before": release_before,
            "release_environment": release_environment,
        }

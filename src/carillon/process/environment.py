"""The configuration of a Carillon process: environment variables, checked whole before anything starts.

Nothing else reads the environment. `load` collects every problem before it gives up, so that an operator
mends a configuration in one go instead of one restart per mistake. Standard library only: the launcher needs
it before Django is imported.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

DEFAULT_FILE = "/etc/carillon/carillon.env"
# Where a team says what is its own: Carillon's settings, and the apps, routes and consumers that it adds.
SETTINGS_MODULE = "project.settings"
FILE_VARIABLE = "CARILLON_ENVIRONMENT_FILE"

# Every name that may stand in the file; a secret may also be given as NAME_FILE.
SECRETS = frozenset(
    {
        "CARILLON_SECRET_KEY",
        "CARILLON_SECRET_KEY_FALLBACKS",
        "CARILLON_DATABASE_PASSWORD",
        "CARILLON_AMQP_PASSWORD",
        "CARILLON_OIDC_CLIENT_SECRET",
    }
)
NAMES = frozenset(
    {
        *SECRETS,
        *(f"{name}_FILE" for name in SECRETS),
        "CARILLON_DEVELOPMENT",
        "CARILLON_DEVELOPMENT_LISTEN",
        "CARILLON_ALLOWED_HOSTS",
        "CARILLON_TRUSTED_ORIGINS",
        "CARILLON_DATABASE_HOST",
        "CARILLON_DATABASE_PORT",
        "CARILLON_DATABASE_NAME",
        "CARILLON_DATABASE_USER",
        "CARILLON_DATABASE_TLS_CA",
        "CARILLON_AMQP_HOSTS",
        "CARILLON_AMQP_USER",
        "CARILLON_AMQP_VHOST",
        "CARILLON_AMQP_TLS_CA",
        "CARILLON_BIND",
        "CARILLON_UWSGI_PROCESSES",
        "CARILLON_UWSGI_THREADS",
        "CARILLON_STATIC_ROOT",
        "CARILLON_WAIT_SECONDS",
        "CARILLON_SESSION_COOKIE_NAME",
        "CARILLON_METRICS_DIRECTORY",
        "CARILLON_METRICS_ADDRESSES",
        "CARILLON_TRACES_ENDPOINT",
        "CARILLON_TRACES_RATIO",
        "CARILLON_LOG_FORMAT",
        "CARILLON_JWT_ISSUER",
        "CARILLON_JWT_AUDIENCE",
        "CARILLON_JWT_KEYS_URL",
        "CARILLON_JWT_KEYS_FILE",
        "CARILLON_JWT_ALGORITHMS",
        "CARILLON_JWT_SCOPE",
        "CARILLON_OIDC_ISSUER",
        "CARILLON_OIDC_CLIENT_ID",
        "CARILLON_OIDC_NAME",
        "CARILLON_OIDC_SCOPE",
        "CARILLON_OIDC_GROUPS_CLAIM",
        "CARILLON_OIDC_ADMIN_GROUP",
        "CARILLON_IDENTITY_USERS",
        "CARILLON_IDENTITY_NAME_CLAIM",
        "CARILLON_IDENTITY_TLS_CA",
    }
)

# What a token may be signed by: with a public key, all of them. The public key could be mistaken for a shared
# secret, if there were such.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")

# Names that begin so are a team's own: `Environment.project` has them.
PROJECT_PREFIX = "PROJECT_"

_NAME = re.compile(r"[A-Z][A-Z0-9_]*\Z")
_COOKIE_NAME = re.compile(r"[A-Za-z0-9_.-]+\Z")
_SHORTEST_SECRET_KEY = 32


class ConfigurationError(Exception):
    """The environment is incomplete or wrong. `problems` has one line each, and so has `str(error)`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class ProjectSettings(dict[str, str]):
    """A team's own settings by name, secrets from files included. `[]` raises ConfigurationError, `get` does
    not."""

    def __missing__(self, name: str) -> str:
        raise ConfigurationError([f"{name} is missing: set it or {name}_FILE"])

    def __repr__(self) -> str:
        return f"ProjectSettings({', '.join(sorted(self))})"


@dataclass(frozen=True)
class Environment:
    """A checked configuration. `repr` shows no secret."""

    secret_key: str = field(repr=False)
    secret_key_fallbacks: list[str] = field(repr=False)
    development: bool
    debug_page: bool  # development, and nobody but this machine can reach it
    allowed_hosts: list[str]
    trusted_origins: list[str]
    database_host: str  # "sqlite" is an in-memory SQLite, for unit tests
    database_port: int
    database_name: str
    database_user: str
    database_password: str = field(repr=False)
    database_tls_ca: str | None  # set: TLS, and the server's name and certificate are verified
    amqp_urls: list[str] = field(repr=False)  # percent-encoded, to be tried in turn
    amqp_tls_ca: str | None
    bind: str
    uwsgi_processes: int
    uwsgi_threads: int
    static_root: Path
    wait_seconds: int
    session_cookie_name: str
    metrics_directory: Path | None
    metrics_addresses: list[str]
    traces_endpoint: str | None
    traces_ratio: float
    log_format: str
    identity: dict[str, Any] = field(repr=False)  # those of CARILLON's settings that are said: JWT_…, OIDC_…
    project: ProjectSettings


def load(environ: Mapping[str, str] | None = None) -> Environment:
    """Read and check the configuration.

    Without `environ`: the process's environment, over the file that `CARILLON_ENVIRONMENT_FILE` names
    (default /etc/carillon/carillon.env, which need not exist).

    Raises `ConfigurationError` with every problem found, one line each.
    """
    problems: list[str] = []
    if environ is None:
        environ = {**_file_values(os.environ, problems), **os.environ}
    environment = _read(_Reader(environ, problems))
    if problems:
        raise ConfigurationError(problems)
    return environment


def parse_file(text: str, path: str) -> tuple[dict[str, str], list[str]]:
    """`NAME=value` lines to (values, problems); `#` starts a comment line, quotes around a value come off.

    The file is data, not shell: nothing in it is expanded. A name that nothing reads is a problem, because a
    misspelt setting would otherwise be a setting that silently does nothing.
    """
    values: dict[str, str] = {}
    problems: list[str] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not _NAME.match(name):
            problems.append(f"{path}:{number}: expected NAME=value")
        elif name not in NAMES and not name.startswith(PROJECT_PREFIX):
            problems.append(
                f"{path}:{number}: {name} is no setting of Carillon: correct or remove it "
                f"(your own begin with {PROJECT_PREFIX})"
            )
        elif name in values:
            problems.append(f"{path}:{number}: {name} is set twice: keep one")
        else:
            if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
                value = value[1:-1]
            values[name] = value
    return values, problems


def _file_values(environ: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    path = environ.get(FILE_VARIABLE, DEFAULT_FILE)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        if FILE_VARIABLE in environ:
            problems.append(f"{FILE_VARIABLE}: {path} does not exist")
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: cannot be read: {_reason(error)}")
        return {}
    values, file_problems = parse_file(text, path)
    problems.extend(file_problems)
    return values


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else "it is not UTF-8"


class _Reader:
    """Typed access to the variables; what is wrong goes to `problems` and reading goes on with a stand-in."""

    def __init__(self, environ: Mapping[str, str], problems: list[str]) -> None:
        self.environ = environ
        self.problems = problems

    def text(self, name: str, default: str | None = None) -> str:
        value = self.environ.get(name, "").strip()
        if value:
            return value
        if default is None:
            self.problems.append(f"{name} is missing")
            return ""
        return default

    def secret(self, name: str, *, required: bool = True) -> str:
        file_name = f"{name}_FILE"
        value, path = self.environ.get(name, ""), self.environ.get(file_name, "")
        if value and path:
            self.problems.append(f"{name} and {file_name} are both set: keep one")
        elif path:
            try:
                # Editors and `echo` end a file with a newline; no secret of ours is white space at its ends.
                value = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                self.problems.append(f"{file_name}: {path} cannot be read: {_reason(error)}")
            else:
                if not value and required:
                    self.problems.append(f"{file_name}: {path} is empty")
        elif not value and required:
            self.problems.append(f"{name} is missing: set it or {file_name}")
        return value

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.text(name, str(default))
        # isdecimal alone would let other scripts' digits pass.
        number = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else lowest - 1
        if not lowest <= number <= highest:
            self.problems.append(f"{name}: {value!r} is not a whole number from {lowest} to {highest}")
            return default
        return number

    def switch(self, name: str) -> bool:
        value = self.text(name, "0")
        if value not in ("0", "1"):
            self.problems.append(f"{name}: {value!r} is neither 0 nor 1")
        return value == "1"

    def items(self, name: str, default: str | None, check: Callable[[str], str | None]) -> list[str]:
        """A comma list; `check` says what is wrong with an item, or None."""
        result = [item.strip() for item in self.text(name, default).split(",") if item.strip()]
        for item in result:
            if why := check(item):
                # Somebody may have put a whole URL here, with its password: that is not for a log.
                self.problems.append(f"{name}: {'an item' if '@' in item else repr(item)} {why}")
        return result


def _read(read: _Reader) -> Environment:
    development = read.switch("CARILLON_DEVELOPMENT")
    secret_key = read.secret("CARILLON_SECRET_KEY")
    if secret_key and not development and len(secret_key) < _SHORTEST_SECRET_KEY:
        read.problems.append(
            f"CARILLON_SECRET_KEY is shorter than {_SHORTEST_SECRET_KEY} characters: make a random one"
        )
    fallbacks = read.secret("CARILLON_SECRET_KEY_FALLBACKS", required=False)
    database_host = read.text("CARILLON_DATABASE_HOST")
    return Environment(
        secret_key=secret_key,
        secret_key_fallbacks=[key.strip() for key in re.split(r"[,\n]", fallbacks) if key.strip()],
        development=development,
        debug_page=_debug_page(read, development),
        allowed_hosts=read.items(
            "CARILLON_ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]" if development else None, _host_problem
        ),
        trusted_origins=read.items("CARILLON_TRUSTED_ORIGINS", "", _origin_problem),
        database_host=database_host,
        database_port=read.integer("CARILLON_DATABASE_PORT", 5432, 1, 65535),
        database_name=read.text("CARILLON_DATABASE_NAME", "carillon"),
        database_user=read.text("CARILLON_DATABASE_USER", "carillon"),
        database_password=read.secret("CARILLON_DATABASE_PASSWORD", required=database_host != "sqlite"),
        database_tls_ca=_existing_file(read, "CARILLON_DATABASE_TLS_CA"),
        amqp_urls=_amqp_urls(read),
        amqp_tls_ca=_existing_file(read, "CARILLON_AMQP_TLS_CA"),
        bind=_address(read, "CARILLON_BIND", "127.0.0.1"),
        uwsgi_processes=read.integer("CARILLON_UWSGI_PROCESSES", 2, 1, 256),
        uwsgi_threads=read.integer("CARILLON_UWSGI_THREADS", 4, 1, 256),
        static_root=_absolute(read, "CARILLON_STATIC_ROOT", "/var/lib/carillon/static"),
        wait_seconds=read.integer("CARILLON_WAIT_SECONDS", 120, 1, 3600),
        session_cookie_name=_cookie_name(read, development),
        metrics_directory=_directory_or_none(read, "CARILLON_METRICS_DIRECTORY", "/run/carillon/metrics"),
        metrics_addresses=read.items("CARILLON_METRICS_ADDRESSES", "", _network_problem),
        traces_endpoint=_http_url(read, "CARILLON_TRACES_ENDPOINT"),
        traces_ratio=_ratio(read, "CARILLON_TRACES_RATIO"),
        log_format=_one_of(read, "CARILLON_LOG_FORMAT", "text" if development else "json", "json", "text"),
        identity=_identity(read),
        project=_project(read),
    )


def _debug_page(read: _Reader, development: bool) -> bool:
    """By the address that the stack's ports are published at: behind them all clients are one gateway."""
    name = "CARILLON_DEVELOPMENT_LISTEN"
    if not read.text(name, ""):
        return False
    if not development:
        read.problems.append(f"{name} is for development alone: remove it")
    try:
        return development and ipaddress.ip_address(_address(read, name, "")).is_loopback
    except ValueError:
        return False


def _identity(read: _Reader) -> dict[str, Any]:
    """Settings of `CARILLON` by name: carillon.conf says what holds where nothing is said."""
    keys, key_set = _server_url(read, "CARILLON_JWT_KEYS_URL"), _key_set(read, "CARILLON_JWT_KEYS_FILE")
    if keys and key_set:
        read.problems.append("CARILLON_JWT_KEYS_URL and CARILLON_JWT_KEYS_FILE are both set: keep one")
    said: dict[str, Any] = {
        "JWT_ISSUER": read.text("CARILLON_JWT_ISSUER", ""),
        "JWT_AUDIENCE": read.text("CARILLON_JWT_AUDIENCE", ""),
        "JWT_KEYS": keys or key_set,
        "JWT_ALGORITHMS": read.items("CARILLON_JWT_ALGORITHMS", "", _algorithm_problem),
        "JWT_SCOPE": read.text("CARILLON_JWT_SCOPE", ""),
        "OIDC_ISSUER": _server_url(read, "CARILLON_OIDC_ISSUER"),
        "OIDC_CLIENT_ID": read.text("CARILLON_OIDC_CLIENT_ID", ""),
        "OIDC_CLIENT_SECRET": read.secret("CARILLON_OIDC_CLIENT_SECRET", required=False),
        "OIDC_NAME": read.text("CARILLON_OIDC_NAME", ""),
        "OIDC_SCOPE": read.text("CARILLON_OIDC_SCOPE", ""),
        "OIDC_GROUPS_CLAIM": read.text("CARILLON_OIDC_GROUPS_CLAIM", ""),
        "OIDC_ADMIN_GROUP": read.text("CARILLON_OIDC_ADMIN_GROUP", ""),
        "IDENTITY_USERS": _one_of(read, "CARILLON_IDENTITY_USERS", "create", "create", "known"),
        "IDENTITY_NAME_CLAIM": read.text("CARILLON_IDENTITY_NAME_CLAIM", ""),
        "IDENTITY_TLS_CA": _existing_file(read, "CARILLON_IDENTITY_TLS_CA"),
    }
    if said["JWT_ISSUER"]:
        if not said["JWT_AUDIENCE"]:
            read.problems.append("CARILLON_JWT_AUDIENCE is missing: CARILLON_JWT_ISSUER needs it")
        if not said["JWT_KEYS"]:
            read.problems.append(
                "CARILLON_JWT_KEYS_URL or CARILLON_JWT_KEYS_FILE is missing: CARILLON_JWT_ISSUER needs one"
            )
    if said["OIDC_ISSUER"] and not said["OIDC_CLIENT_ID"]:
        read.problems.append("CARILLON_OIDC_CLIENT_ID is missing: CARILLON_OIDC_ISSUER needs it")
    return {name: value for name, value in said.items() if value}


def _project(read: _Reader) -> ProjectSettings:
    names = {name.removesuffix("_FILE") for name in read.environ if name.startswith(PROJECT_PREFIX)}
    return ProjectSettings({name: read.secret(name, required=False) for name in sorted(names)})


def _amqp_urls(read: _Reader) -> list[str]:
    tls = bool(read.text("CARILLON_AMQP_TLS_CA", ""))
    user = quote(read.text("CARILLON_AMQP_USER", "carillon"), safe="")
    password = quote(read.secret("CARILLON_AMQP_PASSWORD"), safe="")
    vhost = quote(read.text("CARILLON_AMQP_VHOST", "carillon"), safe="")
    urls = []
    for host in read.items("CARILLON_AMQP_HOSTS", None, _host_port_problem):
        parts = _split_host(host)
        if parts:
            name, port = parts
            port = port or (5671 if tls else 5672)
            urls.append(f"{'amqps' if tls else 'amqp'}://{user}:{password}@{name}:{port}/{vhost}")
    return urls


def _split_host(text: str) -> tuple[str, int | None] | None:
    """`host`, `host:port`, `[::1]` or `[::1]:port` to (host, port or None); None when it is none of them."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", text)
    if not match:
        return None
    port = int(match[2]) if match[2] else None
    if port is not None and not 1 <= port <= 65535:
        return None
    return match[1], port


def _host_port_problem(item: str) -> str | None:
    return None if _split_host(item) else "is not host or host:port"


def _host_problem(item: str) -> str | None:
    parts = _split_host(item)
    return None if item == "*" or (parts and parts[1] is None) else "is not a host name (no scheme, no port)"


def _origin_problem(item: str) -> str | None:
    try:
        parts = urlsplit(item)
        valid = parts.scheme in ("http", "https") and _split_host(parts.netloc) and not parts.path
    except ValueError:
        valid = False
    return None if valid else "is not scheme://host or scheme://host:port"


def _algorithm_problem(item: str) -> str | None:
    return None if item in ALGORITHMS else f"is not one of {', '.join(ALGORITHMS)}"


def _server_url(read: _Reader, name: str) -> str:
    """`https://…`. Over plain HTTP anybody on the way could say who somebody is: on this machine alone."""
    value = read.text(name, "")
    try:
        parts = urlsplit(value)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        good = bool(_split_host(parts.netloc)) and not parts.fragment
        good = good and (parts.scheme == "https" or (parts.scheme == "http" and local))
    except ValueError:
        good = False
    if value and not good:
        shown = "its value" if "@" in value else repr(value)
        read.problems.append(f"{name}: {shown} is not an https:// address")
    return value


def _http_url(read: _Reader, name: str) -> str | None:
    value = read.text(name, "")
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(_split_host(parts.netloc)) and not parts.fragment
    except ValueError:
        good = False
    if value and not good:
        read.problems.append(f"{name}: {'its value' if '@' in value else repr(value)} is not an http address")
    return value or None


def _ratio(read: _Reader, name: str) -> float:
    value = read.text(name, "1.0")
    if not re.fullmatch(r"[01]|[01]?\.[0-9]{1,9}", value) or float(value) > 1:
        read.problems.append(f"{name}: {value!r} is not a number from 0 to 1")
        return 1.0
    return float(value)


def _key_set(read: _Reader, name: str) -> dict[str, Any] | None:
    path = _existing_file(read, name)
    if path is None or not Path(path).is_file():
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        read.problems.append(f"{name}: {path} cannot be read as JSON: {type(error).__name__}")
        return None
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        read.problems.append(f'{name}: {path} is no JSON Web Key Set: it has no list "keys"')
        return None
    return found


def _network_problem(item: str) -> str | None:
    try:
        ipaddress.ip_network(item, strict=False)
    except ValueError:
        return "is not an IP address or network"
    return None


def _address(read: _Reader, name: str, default: str) -> str:
    value = read.text(name, default)
    try:
        ipaddress.ip_address(value)
    except ValueError:
        # No names: `localhost` may be ::1 here and 127.0.0.1 in the proxy, and then nothing answers.
        read.problems.append(f"{name}: {value!r} is not an IP address")
    return value


def _existing_file(read: _Reader, name: str) -> str | None:
    value = read.text(name, "")
    if value and not Path(value).is_file():
        read.problems.append(f"{name}: {value} does not exist")
    return value or None


def _absolute(read: _Reader, name: str, default: str) -> Path:
    value = Path(read.text(name, default))
    if not value.is_absolute():
        read.problems.append(f"{name}: {str(value)!r} is not an absolute path")
    return value


def _one_of(read: _Reader, name: str, default: str, *words: str) -> str:
    value = read.text(name, default)
    if value not in words:
        read.problems.append(f"{name}: {value!r} is not one of {', '.join(words)}")
    return value


def _directory_or_none(read: _Reader, name: str, default: str) -> Path | None:
    return None if read.text(name, default) == "none" else _absolute(read, name, default)


def _cookie_name(read: _Reader, development: bool) -> str:
    """In production browsers take it over HTTPS alone, and of this very host: no neighbour can plant one.
    Development serves plain HTTP, too, where a browser drops a cookie with that prefix."""
    name = "CARILLON_SESSION_COOKIE_NAME"
    value = read.text(name, "awx_sessionid" if development else "__Host-awx_sessionid")
    if not _COOKIE_NAME.match(value):
        read.problems.append(f"{name}: {value!r} is not a cookie name (letters, digits, '_', '-', '.')")
    if development and value.startswith(("__Host-", "__Secure-")):
        read.problems.append(
            f"{name}: browsers keep {value!r} over HTTPS alone, and development serves HTTP, too"
        )
    return value

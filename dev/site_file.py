"""nginx's one rendered file: its values checked, then `nginx/sites/site.conf.j2` filled with them.

Pure but for `read` and `write`. Ansible's template module makes the same bytes of the same template (a test).

    python -m dev.site_file nginx/sites/development.yml .dev/nginx/site.conf

The values, all required (those of `DECLARED` come from src/project/carillon.toml, not from the file):

    server_names     list of host names or addresses ("[::1]")
    https.listen     list of "port" or "address:port"; https.certificate, https.key: absolute paths
    https.hsts       seconds of Strict-Transport-Security; 0: the header is not sent
    https.post_quantum  true: OpenSSL knows X25519MLKEM768, as since 3.5
    http.listen      as above; http.policy: "serve" (every route: development) or "redirect" (to HTTPS)
    http.redirect_port  the port that a redirect names (443: none)
    uwsgi, daphne    lists of "host:port"
    uwsgi_own        "address:port" of the uwsgi whose metrics this nginx shows: that of its own host; "": any
    resolver         address of a DNS server: the upstreams (then one each) are names looked up while serving;
                     null: they are fixed, and there may be several
    prefix           "" or "/name": the path below which an outer proxy shows Carillon
    websocket_prefixes  list of "/name/": paths of the project's websockets, which go to daphne
    http_prefixes    likewise of what it has daphne answer otherwise: async views, HTTP consumers
    upload_mebibytes the largest body that Django is given, where a route has no limit of its own
    trusted_proxies  list of addresses or networks whose X-Forwarded-For and -Proto are believed
    proxy_protocol   true: those proxies balance TCP and speak the PROXY protocol; it names the client, and no
                     header is believed. Where a listener is a bare port, 127.0.0.1 has a way in without it
    http2_directive  true: HTTP/2 is a directive, as since nginx 1.25.1; false: a word of `listen`, as before
    client_limits    true: requests, bodies and sockets are limited per client address, as in limits.conf
    access_log       /dev/stdout in a container; a file where systemd starts nginx (stdout is a socket there)
    status           "port" or "address:port" where an exporter asks for nginx's counters, by plain HTTP and
                     without a password; "": nowhere
    temporary        absolute path of a directory on nginx's machine that its workers may write to
"""

import ipaddress
import re
import sys
from pathlib import Path

import jinja2
import yaml

from carillon.process import declared as declaration
from dev import project, secret_files
from dev.output import Failure

TEMPLATE = Path(__file__).parent.parent / "nginx" / "sites" / "site.conf.j2"
POLICIES = ("serve", "redirect")
DECLARED = tuple(declaration.site(declaration.Declared()))
HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*"
)
PREFIX = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+@-]*")


def check(values) -> list[str]:
    """What is wrong with the values, one line each; empty when they can be rendered."""
    problems: list[str] = []
    tree = {
        "server_names": _each(_server_name),
        "https": {
            "listen": _each(_listen),
            "certificate": _path,
            "key": _path,
            "hsts": _seconds,
            "post_quantum": _flag,
        },
        "http": {"listen": _each(_listen), "policy": _policy, "redirect_port": _port},
        "uwsgi": _each(_upstream),
        "daphne": _each(_upstream),
        "uwsgi_own": _or_empty(_upstream),
        "resolver": _resolver,
        "prefix": _prefix,
        # `site_problems` looks at all of these together.
        **dict.fromkeys(DECLARED, lambda _: []),
        "trusted_proxies": _each(_network, may_be_empty=True),
        "proxy_protocol": _flag,
        "http2_directive": _flag,
        "client_limits": _flag,
        "access_log": _path,
        "temporary": _path,
        "status": _or_empty(_listen),
    }
    _walk(tree, values, "", problems)
    problems += declaration.site_problems(values) if isinstance(values, dict) else []
    if not problems and values["resolver"]:
        problems += [
            f"{name}: with a resolver there is one name, not {len(values[name])} (several: resolver: null)"
            for name in ("uwsgi", "daphne")
            if len(values[name]) != 1
        ]
    if not problems and values["proxy_protocol"] and not values["trusted_proxies"]:
        problems.append("trusted_proxies: name the balancers that speak the PROXY protocol")
    return problems


def render(values: dict, template: str) -> str:
    """The site file's text. Raises `Failure` when the values do not pass `check`."""
    if problems := check(values):
        raise Failure(problems[0], problems[1:])
    # As Ansible's template module has it (blocks trimmed, the last newline kept), so both write the same.
    # The output is nginx's configuration, not HTML, and every value has been checked: nothing to escape.
    environment = jinja2.Environment(  # noqa: S701
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(template).render(site=values)


def read(path: Path) -> dict:
    """The values of a YAML file. Raises `Failure` when it cannot be read."""
    try:
        return yaml.safe_load(path.read_text())
    except OSError as error:
        raise Failure(error.strerror or str(error)) from None
    except yaml.YAMLError as error:
        raise Failure(f"not YAML: {' '.join(str(error).split())}") from None


def write(
    values_file: Path, output: Path, *, redirect_port: int | None = None, resolver: str | None = None
) -> bool:
    """Renders `values_file` into `output` (0644, replaced whole); False when it already said the same.

    `redirect_port`: the one that is published, where only the caller knows it; `resolver`: likewise.
    """
    declared = project.declared()
    try:
        values = read(values_file)
        if said := [name for name in DECLARED if name in values]:
            raise Failure(f"{said[0]}: say it in {project.FILE}, for every deployment at once")
        values |= declaration.site(declared)
        if redirect_port is not None:
            values["http"]["redirect_port"] = redirect_port
        if resolver is not None:
            values["resolver"] = resolver
        text = render(values, TEMPLATE.read_text())
    except Failure as error:
        raise Failure(
            f"{values_file}: {error}", [f"{values_file}: {line}" for line in error.details]
        ) from None
    output.parent.mkdir(parents=True, exist_ok=True)
    return secret_files.write(output, text, 0o644)


def _walk(tree, value, name: str, problems: list[str]) -> None:
    if callable(tree):
        problems += [f"{name}: {problem}" for problem in tree(value)]
        return
    if not isinstance(value, dict):
        problems.append(f"{name or 'the file'}: must be a mapping with {', '.join(tree)}")
        return
    prefix = f"{name}." if name else ""
    problems += [
        f"{prefix}{key}: no such value (there are {', '.join(tree)})" for key in value if key not in tree
    ]
    for key, branch in tree.items():
        if key in value:
            _walk(branch, value[key], prefix + key, problems)
        else:
            problems.append(f"{prefix}{key}: missing")


def _each(rule, *, may_be_empty: bool = False):
    def check_list(value):
        if not isinstance(value, list):
            return ["must be a list"]
        if not value and not may_be_empty:
            return ["must not be empty"]
        return [problem for item in value for problem in rule(item)]

    return check_list


def _address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _host_and_port(value) -> tuple[str, str]:
    host, _, port = str(value).rpartition(":")
    return (host[1:-1] if host.startswith("[") and host.endswith("]") and ":" in host else host), port


def _rule(words: str, holds):
    return lambda value: [] if holds(value) else [f"{value!r} {words}"]


def _or_empty(rule):
    return lambda value: [] if value == "" else rule(value)


_port = _rule(
    "is not a port (1 to 65535)",
    lambda value: not isinstance(value, bool) and str(value).isdecimal() and 0 < int(value) < 65536,
)
_server_name = _rule(
    "is not a host name or address",
    lambda value: (
        value == "_"
        or HOST_NAME.fullmatch(str(value))
        or _address(str(value).removeprefix("[").removesuffix("]"))
    ),
)
_resolver = _rule(
    "is not the address of a DNS server",
    lambda value: value in (None, "") or (isinstance(value, str) and _address(value)),
)
_path = _rule(
    "is not an absolute path (letters, digits and . _ / + @ -)",
    lambda value: isinstance(value, str) and SAFE_PATH.fullmatch(value),
)
_prefix = _rule(
    "is neither empty nor like /name (letters, digits and . _ -, no slash at the end)",
    lambda value: isinstance(value, str) and PREFIX.fullmatch(value),
)
_seconds = _rule(
    "is not seconds", lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0
)
_policy = _rule(f"is not one of {', '.join(POLICIES)}", lambda value: value in POLICIES)
_flag = _rule("is not true or false", lambda value: isinstance(value, bool))


def _listen(value):
    if str(value).isdecimal():
        return _port(value)
    host, port = _host_and_port(value)
    if not _address(host):
        return [f"{value!r} is not a port, address:port or [address]:port"]
    return _port(port)


def _upstream(value):
    host, port = _host_and_port(value)
    if host == "localhost":
        return [f"{value!r}: localhost may be ::1, where nothing listens; write 127.0.0.1"]
    if not (_address(host) or HOST_NAME.fullmatch(host)):
        return [f"{value!r} is not host:port"]
    return _port(port)


def _network(value):
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        return [str(error)]
    if network.prefixlen == 0:
        return [f"{value!r} would let anyone claim any address: name the proxies"]
    return []


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m dev.site_file VALUES.yml OUTPUT.conf", file=sys.stderr)
        return 2
    try:
        write(Path(arguments[0]), Path(arguments[1]))
    except (Failure, OSError) as error:
        print(error, *getattr(error, "details", []), sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""One definition, three deployments: what each really runs, in a form that can be compared.

A description is {"nginx": {file: [directive, …]}, "argv": {process: [argument, …]}, "environment": [name, …],
"files": {path: sha256}, "broker" and "database": [line, …]}.

`describe` makes one of any machine on which it can run a command; `differences`
compares two, leaving out what the ALLOWED tables name. Those tables are the whole documentation of how
development, the production container and a host differ: a difference that is not in them is a mistake.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

Run = Callable[[str], str]
"""A shell command on a machine, to its standard output; raises when it fails. On a host as root."""

# Directives of nginx's rendered site file, by their first words.
ALLOWED_NGINX = {
    "listen": "8013 and 8043 in development, 80 and 443 in production; a host also listens on IPv6",
    "server_name": "localhost in containers, the public name on hosts",
    "ssl_certificate": "where the certificate and its key lie",
    "access_log": "a container's output goes to its engine; a service's is a socket, which none can open",
    "client_body_temp_path": "a tmpfs in containers, nginx's own directory on hosts",
    "proxy_temp_path": "as above",
    "uwsgi_temp_path": "as above",
    "fastcgi_temp_path": "as above",
    "scgi_temp_path": "as above",
    "resolver": "containers change their addresses; hosts do not",
    "map $uri $carillon_uwsgi": "a name that is looked up in containers, fixed addresses on hosts",
    'map "" $carillon_daphne': "as above",
    "upstream carillon_uwsgi": "as above",
    "upstream carillon_daphne": "as above",
    "zone carillon_uwsgi": "as above",
    "zone carillon_daphne": "as above",
    "least_conn": "as above",
    "server 1": "as above: one of those addresses",
    "map $carillon_proto $carillon_hsts": "no HSTS for localhost, nor before a name has proved itself",
    'map "" $carillon_https_port': "the port that a redirect names",
    "include carillon/snippets/acme.conf": "plain HTTP redirects in production; development serves it",
    "include carillon/snippets/redirect.conf": "as above",
    "include carillon/snippets/routes.conf": "as above: it stands once instead of twice",
    "client_max_body_size 1m": "as above",
}
# Files of nginx that one alone reads, and files that one alone has.
ALLOWED_FILES = {
    "/etc/nginx/carillon/main.d/": "a host starts nginx as root, which takes a user and a limit of files",
    "/etc/nginx/carillon/snippets/acme.conf": "nginx reads it where plain HTTP redirects",
    "/etc/nginx/carillon/snippets/redirect.conf": "as above",
    "/etc/carillon/supervisord/": "production only: development has a container for each process",
}
# Names in a process's environment or in the file of settings. Values differ by nature.
ALLOWED_ENVIRONMENT = {
    "CARILLON_DEVELOPMENT": "development only: plain HTTP with cookies, the debug page",
    "CARILLON_DEVELOPMENT_LISTEN": "as above",
    "PYTHONPATH": "development only: the mounted checkout before the installed copy",
    "CARILLON_ON_FATAL": "the production container only: a program that is given up ends it",
    "SUPERVISOR_ENABLED": "supervisord tells its children; development has none",
    "SUPERVISOR_SERVER_URL": "as above",
    "SUPERVISOR_PROCESS_NAME": "as above",
    "SUPERVISOR_GROUP_NAME": "as above",
    "CARILLON_TRUSTED_ORIGINS": "containers: their port is not 443; hosts: where the role is told any",
    "CARILLON_AMQP_USER": "hosts: a login of its own for each rotation; containers keep the default",
    "CARILLON_AMQP_VHOST": "hosts: a variable of the role; containers keep the default",
    "CARILLON_DATABASE_NAME": "as above",
    "CARILLON_DATABASE_PORT": "as above",
    "CARILLON_DATABASE_USER": "as CARILLON_AMQP_USER",
    "CARILLON_SECRET_KEY_FALLBACKS_FILE": "hosts: rotate.yml keeps the key before",
    "CARILLON_UWSGI_PROCESSES": "hosts: as many as they have processors",
    "CARILLON_UWSGI_THREADS": "hosts: a variable of the role; containers keep the default",
    "CARILLON_WAIT_SECONDS": "as above",
}
# Lines of the broker's and the database's description, by their first words.
ALLOWED_SERVICES = {
    "plugin rabbitmq_management": "containers: development shows its pages; hosts have metrics alone",
    "tags": "as above: a login may look at the pages",
    "conf management.tcp.port": "as above",
    "conf prometheus.tcp.ip": "hosts: loopback; containers: their own network",
    "conf listeners.tcp": "containers: every address of their own network",
    "conf definitions.local.path": "containers: what their entrypoint writes",
    "conf definitions.skip_if_unchanged": "as above: it is another at each start",
    "conf vm_memory_high_watermark": "containers: below their limit; hosts: a share of what they have",
    "conf disk_free_limit": "hosts: a variable of the role",
    "conf log.console": "a container's output goes to its engine; a service's to a file",
    "conf log.file": "as above",
    "setting shared_buffers": "containers: fixed; hosts: a share of what they have",
    "setting listen_addresses": "containers: every address of their own network",
}
# Settings of PostgreSQL that say where its files lie, or that Debian's package writes as initdb does.
PLACES = re.compile(
    r"(.*_file|.*_director(y|ies)|cluster_name|port|log_destination|logging_collector|lc_.*)\Z"
)
# What belongs to the machine or the manager and not to Carillon.
FOREIGN = re.compile(
    r"(HOSTNAME|HOME|PWD|OLDPWD|LANG|LC_.*|USER|LOGNAME|SHELL|SHLVL|_|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_.*|"
    r"RUNTIME_DIRECTORY|LOGS_DIRECTORY|NOTIFY_SOCKET|MANAGERPID|MEMORY_PRESSURE_.*|CREDENTIALS_DIRECTORY|TZ|"
    r"DJANGO_SETTINGS_MODULE|UWSGI_.*|PATH)\Z"
)
# What the processes are known by, and where files lie that are the repository's own.
MARKS = {"uwsgi": "/bin/uwsgi", "daphne": "carillon.server", "runworker": "runworker"}
NGINX_FILES = "/etc/nginx/nginx.conf /etc/nginx/carillon/snippets /etc/nginx/carillon/pages"
ASSETS = "/var/lib/carillon/static"
APP_FILES = "/etc/carillon/uwsgi.ini /etc/carillon/supervisord"
SETTINGS_FILE = "/etc/carillon/carillon.env"

# Runs on the machine: of every process its argv, the names in its environment, and the name that it was
# declared by. No other value leaves.
_PROCESSES = r"""
import json, os
rows = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        argv = open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace").split("\0")[:-1]
        names = open(f"/proc/{pid}/environ", "rb").read().decode(errors="replace").split("\0")
    except OSError:
        continue
    if argv:
        declared = dict(name.partition("=")[::2] for name in names).get("CARILLON_PROCESS", "")
        names = sorted({name.partition("=")[0] for name in names if "=" in name})
        rows.append([int(pid), argv, names, declared])
print(json.dumps(sorted(rows)))
"""


def describe(
    nginx_machine: Run, app_machines: Iterable[Run], broker_machine: Run, database_machine: Run
) -> dict:
    """The description of a deployment, of the machines with nginx, with uwsgi, daphne and runworker, ….

    `lambda command: docker("exec", container, "sh", "-c", command)` and testinfra's
    `lambda command: host.check_output(command)` are machines.
    """
    commands: dict[str, list[str]] = {}
    names: set[str] = set()
    files = _sums(nginx_machine, f"{NGINX_FILES} {ASSETS}")
    for run in app_machines:
        rows = json.loads(run(f"python3 - <<'SCRIPT'\n{_PROCESSES}\nSCRIPT"))
        for process, mark in MARKS.items():
            # Workers have the argv of their master, which has the lowest number.
            found = next((row for row in rows if _is(row[1], mark) and not row[3]), None)
            if found:
                commands.setdefault(process, argv(found[1]))
                names |= set(found[2])
        for _, arguments, its_names, declared in rows:
            if declared and declared not in commands:
                commands[declared] = argv(arguments)
                names |= set(its_names)
        text = run(f"if [ -r {SETTINGS_FILE} ]; then sed -n 's/^\\([A-Z_]*\\)=.*/\\1/p' {SETTINGS_FILE}; fi")
        names |= set(text.split())
        files |= _sums(run, APP_FILES)
    missing = set(MARKS) - set(commands)
    if missing:
        raise AssertionError(f"no process of {', '.join(sorted(missing))} was found")
    return {
        "nginx": nginx(nginx_machine("nginx -e stderr -T 2>/dev/null")),
        "argv": commands,
        "environment": sorted(names),
        "files": files,
        "broker": broker(broker_machine),
        "database": database(database_machine),
    }


def broker(run: Run) -> list[str]:
    """What a project's queue meets: rights, limits, kinds, and the settings. No hash and no login's name."""
    definitions = json.loads(run("rabbitmqctl --quiet export_definitions - --format json"))
    lines = [f"vhost {row['name']} {row.get('default_queue_type')}" for row in definitions["vhosts"]]
    for row in definitions["permissions"]:
        lines.append(f"permission {row['vhost']} {row['configure']} {row['write']} {row['read']}")
    for name in ("policies", "parameters"):
        for row in definitions.get(name, []):
            lines.append(f"{name} {row['vhost']} {json.dumps(row.get('value', row), sort_keys=True)}")
    lines += [f"tags {' '.join(row['tags'])}" for row in definitions["users"]]
    lines += [f"plugin {name}" for name in re.findall(r"\w+", run("cat /etc/rabbitmq/enabled_plugins"))]
    text = run("cat /etc/rabbitmq/rabbitmq.conf /etc/rabbitmq/conf.d/*.conf")
    settings = (line.split("#")[0].split("=", 1) for line in text.splitlines() if "=" in line.split("#")[0])
    return sorted([*lines, *(f"conf {key.strip()} = {value.strip()}" for key, value in settings)])


def database(run: Run) -> list[str]:
    """Every setting of PostgreSQL that is not its default, and how its files were made."""
    rows = run(
        "if [ $(id -u) = 0 ]; then as='runuser -u postgres --'; fi;"
        " $as psql -h /run/postgresql -U postgres -AtF ' = ' -c \"select name, setting from pg_settings"
        " where name in ('data_checksums', 'server_encoding') or setting is distinct from boot_val"
        " and source not in ('default', 'override', 'client', 'session')\" postgres"
    )
    return sorted(f"setting {line}" for line in rows.splitlines() if not PLACES.match(line.split(" = ")[0]))


def _is(arguments: list[str], mark: str) -> bool:
    """The server itself: not the launcher before it became one, nor development's restarter."""
    program, *words = arguments[:4]
    return (
        "python" in program
        and any(word.endswith(mark) for word in words)
        and not any(word.endswith("/bin/carillon") for word in words)
    )


def _sums(run: Run, paths: str) -> dict[str, str]:
    listing = run(f"find -L {paths} -type f -exec sha256sum {{}} + 2>/dev/null || true").splitlines()
    return {path: digest for digest, path in (line.split(maxsplit=1) for line in listing)}


def nginx(text: str) -> dict[str, list[str]]:
    """The output of `nginx -T` as directives per file, comments and layout gone."""
    files: dict[str, list[str]] = {}
    name = ""
    for raw in text.splitlines():
        if match := re.match(r"# configuration file (\S+):", raw):
            name = match[1]
            files[name] = []
            continue
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        if name and line and line != "}":
            files[name].append(re.sub(r"\s+", " ", line))
    return files


def argv(arguments: list[str]) -> list[str]:
    """A command line without the release's path and without the address that is listened on."""
    text = " ".join(arguments)
    text = re.sub(r"/opt/carillon/(releases/[^/ ]+|current)", "/opt/carillon/<release>", text)
    text = re.sub(r"/bin/python[0-9.]*", "/bin/python", text)
    # supervisord hands over the open socket; a container of one's own binds it.
    text = re.sub(r"--socket (fd://0|\S+:8050)", "--socket <listen>", text)
    text = re.sub(r"(--fd 0|-b \S+ -p 8051)", "<listen>", text)
    text = re.sub(r"--(processes|threads) \d+", r"--\1 <n>", text)
    return text.split(" ")


def _allowed(table: dict[str, str], text: str, used: set[str]) -> bool:
    for words in table:
        if text.startswith(words):
            used.add(words)
            return True
    return False


def differences(one: dict, other: dict, used: set[str] | None = None) -> list[str]:
    """Every difference that nothing allows, as a line; into `used` go the exceptions that were needed."""
    used = set() if used is None else used
    found = []
    for file in sorted(set(one["nginx"]) | set(other["nginx"])):
        if (file in one["nginx"]) != (file in other["nginx"]):
            if not _allowed(ALLOWED_FILES, file, used):
                found.append(f"nginx reads {file} in one alone")
            continue
        found += _directives(file, one["nginx"][file], other["nginx"][file], used)
    for process in sorted(set(one["argv"]) | set(other["argv"])):
        if one["argv"].get(process) != other["argv"].get(process):
            found.append(f"argv of {process}: {one['argv'].get(process)} / {other['argv'].get(process)}")
    for path in sorted(set(one["files"]) | set(other["files"])):
        left, right = one["files"].get(path), other["files"].get(path)
        if left and right and left != right:
            found.append(f"{path}: other bytes")
        elif left != right and not _allowed(ALLOWED_FILES, path, used):
            found.append(f"{path}: in one alone")
    for service in ("broker", "database"):
        for line in sorted(set(one[service]) ^ set(other[service])):
            if not _allowed(ALLOWED_SERVICES, line, used):
                found.append(f"{service}: {line}, in one alone")
    for name in sorted(set(one["environment"]) ^ set(other["environment"])):
        if name in ALLOWED_ENVIRONMENT:
            used.add(name)
        elif not FOREIGN.match(name):
            found.append(f"environment: {name} is set in one alone")
    return found


def _site(lines: list[str]) -> list[str]:
    """What must be the same of a site file. A project's own prefixes stand beside the included routes: twice
    in development, which serves them over plain HTTP, too.
    """
    return [
        line
        for place, line in enumerate(lines)
        if not _allowed(ALLOWED_NGINX, line, set()) and not (_is_route(line) and line in lines[:place])
    ]


def _is_route(line: str) -> bool:
    return line.startswith("location ") and line.endswith("{ include carillon/snippets/websocket.conf; }")


def _directives(file: str, left: list[str], right: list[str], used: set[str]) -> list[str]:
    if left == right:
        return []
    # In the site file alone: everything else is the same bytes.
    if file.endswith("/site.conf"):
        for line in {*left, *right}:
            if left.count(line) != right.count(line):
                _allowed(ALLOWED_NGINX, line, used)
        left, right = (_site(lines) for lines in (left, right))
    if left == right:
        return []
    return [f"nginx {file}: {line}" for line in sorted(set(left) ^ set(right))] or [f"nginx {file}: order"]

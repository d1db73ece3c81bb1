"""One definition, three deployments: what each really runs, in a form that can be compared.

A description is {"nginx": {file: [directive, …]}, "argv": {process: [argument, …]},
"environment": {name, …}, "files": {path: sha256}}. `differences` leaves out what ALLOWED names. ALLOWED is
the whole documentation of how development, the production container and a host differ: a difference that is
not in it is a mistake.
"""

from __future__ import annotations

import re

# Directives of nginx's rendered site file, by their first words, and why they differ.
ALLOWED = {
    "listen": "8013 and 8043 in development, 80 and 443 in production; a host also listens on IPv6",
    "server_name": "localhost in development, the public name in production",
    "ssl_certificate": "where the certificate lies",
    "ssl_certificate_key": "where its key lies",
    "access_log": "a container's output goes to its engine; a service's is a socket, which none can open",
    "client_body_temp_path": "a tmpfs in containers, nginx's own directory on hosts",
    "proxy_temp_path": "as above",
    "uwsgi_temp_path": "as above",
    "fastcgi_temp_path": "as above",
    "scgi_temp_path": "as above",
    "user": "a host starts nginx as root; a container starts it as its user",
    "resolver": "containers change their addresses; hosts do not",
    "resolver_timeout": "as above",
    'map "" $carillon_uwsgi': "a name that is looked up in containers, a group of fixed addresses on hosts",
    'map "" $carillon_daphne': "as above",
    "upstream carillon_uwsgi": "as above",
    "upstream carillon_daphne": "as above",
    "zone": "as above",
    "least_conn": "as above",
    "server 1": "as above: one of those addresses",
    "map $carillon_proto $carillon_hsts": "no HSTS for localhost, nor before a name has proved itself",
    'map "" $carillon_client_limits': "behind the engine's gateway every client has one address",
    'map "" $carillon_https_port': "the port that a redirect names",
    "include carillon/snippets/acme.conf": "plain HTTP redirects in production; development serves it",
    "include carillon/snippets/redirect.conf": "as above",
    "include carillon/snippets/routes.conf": "as above: it stands once instead of twice",
}
# Names in a process's environment. Values differ by nature; names only for what one alone has.
ALLOWED_ENVIRONMENT = {
    "CARILLON_DEVELOPMENT": "development only: plain HTTP with cookies",
    "PYTHONPATH": "development only: the mounted checkout before the installed copy",
    "CARILLON_ON_FATAL": "the production container only: a program that is given up ends it",
    "CARILLON_BIND": "supervisord binds the sockets, so its unit names it; the rest a host reads from a file",
    "SUPERVISOR_ENABLED": "supervisord tells its children; development has none",
    "SUPERVISOR_SERVER_URL": "as above",
    "SUPERVISOR_PROCESS_NAME": "as above",
    "SUPERVISOR_GROUP_NAME": "as above",
}
# What belongs to the machine or the manager and not to Carillon.
FOREIGN = re.compile(
    r"(HOSTNAME|HOME|PWD|OLDPWD|LANG|LC_.*|USER|LOGNAME|SHELL|SHLVL|_|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_.*|"
    r"RUNTIME_DIRECTORY|NOTIFY_SOCKET|MANAGERPID|DJANGO_SETTINGS_MODULE|UWSGI_.*|PATH)\Z"
)


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
    done = []
    for argument in arguments:
        argument = re.sub(r"/opt/carillon/(releases/[^/]+|current)", "/opt/carillon/<release>", argument)
        done.append(argument)
    text = " ".join(done)
    # supervisord hands over the open socket; development and a container of one's own bind it.
    text = re.sub(r"--socket (fd://0|\S+:8050)", "--socket <listen>", text)
    text = re.sub(r"(--fd 0|-b \S+ -p 8051)", "<listen>", text)
    text = re.sub(r"--(processes|threads) \d+", r"--\1 <n>", text)
    return text.split(" ")


def allowed(directive: str) -> bool:
    return any(directive.startswith(words) for words in ALLOWED)


def differences(one: dict, other: dict) -> list[str]:
    """Every difference that nothing allows, as a line."""
    found = []
    for file in sorted(set(one["nginx"]) | set(other["nginx"])):
        left = [line for line in one["nginx"].get(file, []) if not allowed(line)]
        right = [line for line in other["nginx"].get(file, []) if not allowed(line)]
        # A file of allowed lines alone (main.d/user.conf) may be missing on one side.
        if left != right:
            found += [f"nginx {file}: {line}" for line in sorted(set(left) ^ set(right))] or [
                f"nginx {file}: order"
            ]
    for process in sorted(set(one["argv"]) | set(other["argv"])):
        if one["argv"].get(process) != other["argv"].get(process):
            found.append(f"argv of {process}: {one['argv'].get(process)} / {other['argv'].get(process)}")
    for path in sorted(set(one["files"]) & set(other["files"])):
        if one["files"][path] != other["files"][path]:
            found.append(f"{path}: other bytes")
    settings = {name for side in (one, other) for name in side["environment"]}
    for name in sorted(settings):
        if name in ALLOWED_ENVIRONMENT or FOREIGN.match(name):
            continue
        if (name in one["environment"]) != (name in other["environment"]):
            found.append(f"environment: {name} is set in one alone")
    return found

"""The comparison itself: it must find what it is there to find."""

from __future__ import annotations

import copy
import json

import pytest

from tests.production.parity import argv, describe, differences, nginx

TEXT = """
# configuration file /etc/nginx/nginx.conf:
include carillon/main.d/*.conf;
# configuration file /etc/nginx/carillon/site.conf:
server {
    listen 443   ssl default_server;  # here
    add_header X-Frame-Options DENY;
}
"""
ONE = {
    "nginx": nginx(TEXT),
    "argv": {"daphne": argv(["/opt/carillon/releases/1/bin/daphne", "--fd", "0", "x:y"])},
    "environment": ["CARILLON_AMQP_HOSTS", "HOME"],
    "files": {"/etc/nginx/nginx.conf": "aa"},
    "broker": ["conf heartbeat = 10", "tags monitoring"],
    "database": ["setting data_checksums = on"],
}


def test_what_is_the_same_is_the_same():
    other = copy.deepcopy(ONE)
    other["nginx"] = nginx(TEXT.replace("443 ", "8043"))
    other["argv"] = {"daphne": argv(["/opt/carillon/current/bin/daphne", "-b", "::", "-p", "8051", "x:y"])}
    other["environment"] = ["CARILLON_AMQP_HOSTS", "CARILLON_DEVELOPMENT"]
    other["files"]["/etc/carillon/supervisord/supervisord.conf"] = "cc"
    used: set[str] = set()
    assert differences(ONE, other, used) == []
    assert used == {"listen", "CARILLON_DEVELOPMENT", "/etc/carillon/supervisord/"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(nginx=nginx(TEXT.replace("DENY", "SAMEORIGIN"))), "X-Frame-Options SAMEORIGIN"),
        # What may differ in the site file may not differ elsewhere.
        (lambda d: d["nginx"]["/etc/nginx/nginx.conf"].append("listen 1;"), "nginx.conf: listen 1;"),
        (
            lambda d: d["nginx"].update({"/etc/nginx/carillon/site.d/x.conf": ["deny all;"]}),
            "x.conf in one alone",
        ),
        (lambda d: d["argv"]["daphne"].append("--verbosity"), "argv of daphne"),
        (
            lambda d: d["environment"].append("CARILLON_STATIC_ROOT"),
            "CARILLON_STATIC_ROOT is set in one alone",
        ),
        (lambda d: d["files"].update({"/etc/nginx/nginx.conf": "bb"}), "nginx.conf: other bytes"),
        (lambda d: d["broker"].append("permission carillon ^x .* .*"), "broker: permission carillon ^x"),
        (lambda d: d["database"].clear(), "database: setting data_checksums = on, in one alone"),
        (lambda d: d["files"].update({"/etc/carillon/uwsgi.ini": "bb"}), "uwsgi.ini: in one alone"),
    ],
)
def test_drift_is_found(change, said):
    other = copy.deepcopy(ONE)
    change(other)
    found = "\n".join(differences(ONE, other))
    assert said in found


SERVER = """
server {{
    listen {};
    location ~ ^/ws/[a-z]*$ {{ include carillon/snippets/websocket.conf; }}
    include carillon/snippets/routes.conf;
}}
"""


def test_prefixes_of_a_project_are_compared_however_often_they_stand_there():
    one, other = copy.deepcopy(ONE), copy.deepcopy(ONE)
    one["nginx"] = nginx(TEXT + SERVER.format(8043) + SERVER.format(8013))
    other["nginx"] = nginx(TEXT + SERVER.format(443) + "server {\n    listen 80;\n}\n")
    assert nginx(TEXT + SERVER.format(1))["/etc/nginx/carillon/site.conf"].count("server {") == 2
    # The redirecting server of production has neither.
    assert differences(one, other) == []
    other["nginx"] = nginx(TEXT + SERVER.format(443).replace("/ws/", "/feed/") + "server {\n}\n")
    feed, ws = differences(one, other)
    assert feed.startswith("nginx /etc/nginx/carillon/site.conf: location ~ ^/feed/")
    assert ws.startswith("nginx /etc/nginx/carillon/site.conf: location ~ ^/ws/")


def test_a_machine_is_described_by_what_runs_there():
    release = "/opt/carillon/releases/1/bin"

    def run(command: str) -> str:
        if command.startswith("python3"):
            rows = [
                [1, ["/usr/bin/python3", f"{release}/carillon", "reload", "uwsgi"], [], ""],
                [
                    7,
                    [f"{release}/python3", f"{release}/uwsgi", "--socket", "0.0.0.0:8050"],
                    ["HOME", "B"],
                    "",
                ],
                [9, [f"{release}/python3", "-m", "carillon.server", "--fd", "0"], ["A"], ""],
                [10, [f"{release}/python", "-m", "django", "runworker", "thumbs"], ["C"], "thumbs"],
                [11, [f"{release}/python", "-m", "django", "child"], ["D"], "thumbs"],
                [12, [f"{release}/python", "-m", "django", "runworker"], ["A"], ""],
            ]
            return json.dumps(rows)
        if command.startswith("find"):
            return (
                "aa  /etc/carillon/uwsgi.ini\n" if "uwsgi.ini" in command else "bb  /etc/nginx/nginx.conf\n"
            )
        if command.startswith("rabbitmqctl"):
            rights = {"user": "x", "vhost": "v", "configure": "c", "write": "w", "read": "r"}
            limits = {"vhost": "v", "component": "vhost-limits", "name": "limits", "value": {"max-queues": 5}}
            return json.dumps(
                {
                    "vhosts": [{"name": "v", "default_queue_type": "classic"}],
                    "permissions": [rights],
                    "parameters": [limits],
                    "users": [{"name": "x", "password_hash": "secret", "tags": ["monitoring"]}],
                }
            )
        if command.endswith("enabled_plugins"):
            return "[rabbitmq_prometheus].\n"
        if command.startswith("cat"):
            return "## a = b\nheartbeat = 10\n\n"
        if "psql" in command:
            return "work_mem = 4096\nhba_file = /x\ndata_checksums = on\n"
        return TEXT if command.startswith("nginx") else "CARILLON_WAIT_SECONDS\n"

    found = describe(run, [run], run, run)
    python = "/opt/carillon/<release>/bin/python"
    assert found["argv"] == {
        "uwsgi": [python, "/opt/carillon/<release>/bin/uwsgi", "--socket", "<listen>"],
        "daphne": [python, "-m", "carillon.server", "<listen>"],
        "runworker": [python, "-m", "django", "runworker"],
        "thumbs": [python, "-m", "django", "runworker", "thumbs"],
    }
    assert found["environment"] == ["A", "B", "C", "CARILLON_WAIT_SECONDS", "HOME"]
    assert found["files"] == {"/etc/carillon/uwsgi.ini": "aa", "/etc/nginx/nginx.conf": "bb"}
    assert found["broker"] == [
        "conf heartbeat = 10",
        'parameters v {"max-queues": 5}',
        "permission v c w r",
        "plugin rabbitmq_prometheus",
        "tags monitoring",
        "vhost v classic",
    ]
    assert found["database"] == ["setting data_checksums = on", "setting work_mem = 4096"]

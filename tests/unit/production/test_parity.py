"""The comparison itself: it must find what it is there to find."""

from __future__ import annotations

import copy

from tests.production.parity import argv, differences, nginx

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
}


def test_what_is_the_same_is_the_same():
    other = copy.deepcopy(ONE)
    other["nginx"] = nginx(TEXT.replace("443 ", "8043"))
    other["argv"] = {"daphne": argv(["/opt/carillon/current/bin/daphne", "-b", "::", "-p", "8051", "x:y"])}
    other["environment"] = ["CARILLON_AMQP_HOSTS", "CARILLON_DEVELOPMENT"]
    assert differences(ONE, other) == []


def test_drift_is_found():
    other = copy.deepcopy(ONE)
    other["nginx"] = nginx(TEXT.replace("    add_header X-Frame-Options DENY;\n", ""))
    other["argv"]["daphne"].append("--verbosity")
    other["environment"] = ["CARILLON_WAIT_SECONDS", "CARILLON_AMQP_HOSTS"]
    other["files"] = {"/etc/nginx/nginx.conf": "bb"}
    found = "\n".join(differences(ONE, other))
    for word in ("X-Frame-Options", "argv of daphne", "CARILLON_WAIT_SECONDS", "nginx.conf: other bytes"):
        assert word in found

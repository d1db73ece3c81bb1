"""gixy, which knows nginx's traps, on every configuration; what it says that we mean has its reason here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.nginx import tree

# Its name for a finding, and why it is none. One that is reported no longer must go from here.
ACCEPTED = {
    "host_spoofing": "Django checks Host against the allowed ones, and needs its port",
    "http_splitting": "$uri where the location matched plain letters alone: no line break can be in it",
    "proxy_pass_normalized": "as above: nothing in it that was escaped",
    "proxy_buffering_off": "websockets and server-sent events: each frame at once",
    "worker_rlimit_nofile_vs_connections": "the engine's or the unit's to set (main.d/, see nginx.conf)",
    "ssl_ecdh_curve": "Debian 13 has OpenSSL 3.5",
}
# On hosts the upstreams are groups of fixed addresses, which the variable names.
ACCEPTED_OF_FIXED_UPSTREAMS = {"stale_dns_cache"}


def findings(configuration: Path) -> dict[str, str]:
    """What gixy reports, of any severity: its name to its reason."""
    gixy = Path(sys.executable).with_name("gixy")
    answer = subprocess.run(
        [gixy, "--format", "json", configuration], capture_output=True, text=True, check=False, timeout=60
    )
    assert answer.stdout.startswith("["), answer.stderr
    return {found["plugin"]: found["reason"] for found in json.loads(answer.stdout)}


@pytest.mark.parametrize("name", tree.NAMES)
def test_nothing_but_what_we_mean(name, tmp_path):
    found = findings(tree.lay_out(tmp_path / "etc", tree.values(name)))
    fixed = set() if tree.values(name)["resolver"] else ACCEPTED_OF_FIXED_UPSTREAMS
    unknown = {plugin: reason for plugin, reason in found.items() if plugin not in {*ACCEPTED, *fixed}}
    assert unknown == {}
    assert set(found) == {*ACCEPTED, *fixed}, "an exception that nothing needs any more"


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        ("alias_traversal", "location /files { alias /srv/files/; }"),
        ("add_header_redefinition", "location /x { add_header X-A b; return 200; }"),
    ],
)
def test_a_break_is_seen(plugin, text, tmp_path):
    configuration = tree.lay_out(tmp_path / "etc", tree.values("development"))
    (tmp_path / "etc/carillon/site.d/broken.conf").write_text(text)
    assert plugin in findings(configuration)

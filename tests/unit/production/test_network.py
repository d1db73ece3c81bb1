"""Ports and addresses are derived from what is true of a host, and rendered as their readers take them."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import pytest
import yaml

from tests.unit.production.test_control_node import ANSIBLE
from tests.unit.production.test_secrets import filters

LISTENERS = [
    'LISTEN 0 128 0.0.0.0:2222 0.0.0.0:* users:(("sshd",pid=41,fd=3))',
    'LISTEN 0 128 [::]:2222 [::]:* users:(("sshd",pid=41,fd=4))',
    'LISTEN 0 128 127.0.0.1:6010 0.0.0.0:* users:(("sshd",pid=77,fd=9))',
    'LISTEN 0 4096 *:9100 *:* users:(("not-sshd",pid=5,fd=3))',
    'LISTEN 0 4096 *:22 *:* users:(("sshd",pid=9,fd=3),("systemd",pid=1,fd=60))',
]


def test_the_ports_of_sshd_are_those_that_it_listens_on_for_the_network():
    assert filters.ports_of(LISTENERS, "sshd") == [22, 2222]
    assert filters.ports_of([], "sshd") == []


@pytest.mark.parametrize(
    ("listen", "ports"),
    [
        (["443", "[::]:443"], [443]),
        (["8443"], [8443]),
        ([8443], [8443]),
        (["192.0.2.7:443", "[2001:db8::7]:9443"], [443, 9443]),
    ],
)
def test_ports_of_what_nginx_listens_on(listen, ports):
    assert filters.listen_ports(listen) == ports


@pytest.mark.parametrize(
    ("listen", "address", "port"),
    [
        (["443", "[::]:443"], "", 443),
        ([8443], "", 8443),
        (["203.0.113.7:443"], "203.0.113.7", 443),
        (["[2001:db8::7]:9443", "192.0.2.7:443"], "192.0.2.7", 443),
        (["[2001:db8::7]:443"], "2001:db8::7", 443),
        (["0.0.0.0:443", "203.0.113.7:443"], "", 443),
    ],
)
def test_nginx_is_asked_where_it_listens(listen, address, port):
    assert filters.first_listener(listen) == {"address": address, "port": port}


@pytest.mark.parametrize(
    ("address", "shown"), [("10.0.0.7", "10.0.0.7:8050"), ("2001:db8::7", "[2001:db8::7]:8050")]
)
def test_an_address_of_ipv6_is_in_brackets(address, shown):
    assert filters.endpoint(address, 8050) == shown


def test_browsers_are_told_to_keep_to_https_for_longer_once_it_has_worked_for_a_week(play, tmp_path):
    def told(tls_mode: str, seconds_ago: float | None) -> str:
        stat = {} if seconds_ago is None else {"mtime": time.time() - seconds_ago}
        code, said = play(
            {"ansible.builtin.include_vars": str(ANSIBLE / "roles/nginx/defaults/main.yml")},
            {"ansible.builtin.copy": {"content": "{{ nginx_hsts_seconds }}", "dest": f"{tmp_path}/told"}},
            tls_mode=tls_mode,
            **({} if seconds_ago is None else {"nginx_hsts_begun": {"stat": stat}}),
        )
        assert code == 0, said
        return Path(tmp_path, "told").read_text()

    day, year = "86400", "31536000"
    assert [told("files", ago) for ago in (None, 0, 6 * 86400, 8 * 86400)] == [day, day, day, year]
    assert told("self-signed", 8 * 86400) == "0"


def test_other_names_begin_with_a_day_again(play, tmp_path):
    """The role's own first tasks, in its order, on what the run before has left."""
    stamp, told = tmp_path / "hsts", tmp_path / "told"
    tasks = yaml.safe_load((ANSIBLE / "roles/nginx/tasks/main.yml").read_text())
    first = tasks[: [task["name"] for task in tasks].index("Files")]

    def run(*names: str) -> str:
        code, said = play(
            {"ansible.builtin.include_vars": str(ANSIBLE / "roles/nginx/defaults/main.yml")},
            *first,
            {"ansible.builtin.copy": {"content": "{{ nginx_hsts_seconds }}", "dest": str(told)}},
            **{"tls_mode": "files", "nginx_server_names": names, "nginx_hsts_stamp": str(stamp)},
        )
        assert code == 0, said
        return told.read_text()

    assert run("bells.example") == "86400"
    begun = time.time() - 8 * 86400
    os.utime(stamp, (begun, begun))
    assert run("bells.example") == "31536000"
    assert run("chimes.example") == "86400"


@pytest.fixture
def rules(play, tmp_path):
    """The firewall's rules for the variables given."""

    def render(**variables) -> str:
        role = ANSIBLE / "roles/firewall"
        code, said = play(
            {"ansible.builtin.include_vars": str(role / "defaults/main.yml")},
            {"ansible.builtin.include_vars": str(role / "vars/main.yml")},
            {
                "ansible.builtin.template": {
                    "src": str(role / "templates/firewall.nft.j2"),
                    "dest": str(tmp_path / "rules"),
                }
            },
            **{"topology_single": True, **variables},
        )
        assert code == 0, said
        return Path(tmp_path, "rules").read_text()

    return render


def test_the_firewall_opens_what_nginx_and_sshd_listen_on(rules):
    shown = rules(nginx_https_listen=["8443"], common_listeners={"stdout_lines": LISTENERS})
    assert "tcp dport { 80, 8443 } accept" in shown
    assert "tcp dport { 22, 2222 } accept" in shown
    assert "443 }" not in shown.replace("8443 }", "")


def test_the_firewall_opens_the_usual_ports_where_nothing_else_is_known(rules):
    shown = rules()
    assert "tcp dport { 80, 443 } accept" in shown
    assert "tcp dport { 22 } accept" in shown


def test_who_watches_reaches_the_numbers_of_the_hosts_and_nobody_else_does(rules):
    hosts = {
        "topology_single": False,
        "topology_addresses": {"web": "10.0.0.7", "watch": "10.0.0.9"},
        **{f"topology_{kind}": ["web"] for kind in ("apps", "brokers", "databases", "proxies")},
    }
    watched = rules(**hosts, topology_watchers=["watch"])
    assert "ip saddr { 10.0.0.9 } tcp dport { 8113, 9113, 15692, 9187 } accept" in watched
    assert "8113" not in rules(**hosts, topology_watchers=[])


@pytest.mark.parametrize(("ports", "code"), [([2222], 0), ([22], 2)])
def test_a_firewall_that_would_shut_ansible_out_is_refused(play, ports, code):
    found, said = play(
        {"ansible.builtin.include_vars": str(ANSIBLE / "roles/firewall/vars/main.yml")},
        {"ansible.builtin.include_tasks": str(ANSIBLE / "roles/firewall/tasks/preflight.yml")},
        firewall_enabled=True,
        firewall_open_ports=ports,
        ansible_connection="ssh",
        # The assertion asks nobody: it runs on the control node.
        ansible_port=22,
        common_listeners={"stdout_lines": LISTENERS[:3]},
    )
    assert found == code, said
    assert code == 0 or "web: firewall_open_ports (22) has no port that sshd listens on (2222)" in said


def test_days_until_an_end_as_openssl_writes_it():
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3, hours=1)
    assert filters.days_left(f"{end:%b %e %H:%M:%S %Y} GMT\n") == 3
    assert filters.days_left("Nov  5 03:26:00 2019 GMT") < 0


def test_names_of_other_hosts_outlive_a_boot_with_cloud_init(play, tmp_path):
    """Its `manage_etc_hosts` makes the file of this template, at each boot."""
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "hosts.debian.tmpl").write_text("## template:jinja\n127.0.1.1 {{fqdn}} {{hostname}}\n")
    (templates / "resolv.conf.tmpl").write_text("## template:jinja\n")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    names = {"ansible.builtin.include_role": {"name": "common", "tasks_from": "names"}}
    variables = {
        "common_hosts_file": str(tmp_path / "hosts"),
        "common_cloud_templates": str(templates),
        "topology_addresses": {"web": "10.0.0.7", "lost": "", "other": "10.0.0.8"},
    }
    for changed in (True, False):
        code, said = play(names, **variables)
        assert code == 0, said
        assert ("changed=0" not in said) == changed, said
    block = "# BEGIN carillon (ansible)\n10.0.0.8 other\n10.0.0.7 web\n# END carillon (ansible)\n"
    assert (tmp_path / "hosts").read_text() == f"127.0.0.1 localhost\n{block}"
    assert (templates / "hosts.debian.tmpl").read_text().endswith("{{fqdn}} {{hostname}}\n" + block)
    assert (templates / "resolv.conf.tmpl").read_text() == "## template:jinja\n"
    # A host without cloud-init.
    code, said = play(names, **{**variables, "common_cloud_templates": str(tmp_path / "none")})
    assert code == 0, said

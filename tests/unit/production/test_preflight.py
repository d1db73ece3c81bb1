"""What a run refuses before it touches anything, and in which words."""

from __future__ import annotations

import json

import pytest
import yaml

from carillon.process import declared
from tests.unit.production.test_control_node import ANSIBLE, ROOT
from tests.unit.production.test_secrets import filters

LISTENER = 'LISTEN 0 4096 {}:8050 0.0.0.0:* users:(("uwsgi",pid=9,fd=0),("supervisord",pid=7,fd=5))'
VARIABLES = {
    "topology_single": False,
    "topology_name": "web",
    "topology_hosts": ["web", "other"],
    "topology_addresses": {"web": "10.0.0.7", "other": "10.0.0.8"},
    "topology_brokers": ["web"],
    "topology_databases": ["other"],
    "topology_proxies": ["web"],
    "topology_secrets_dir": "/nowhere",
    "secrets_amqp_slot": "a",
    "secrets_database_slot": "a",
    "carillon_domain": "chimes.test",
    "common_listeners": {"stdout_lines": []},
}


@pytest.fixture
def preflight(play, tmp_path):
    """A function that runs the preflight of a role for each of several sets of variables, in one run.

    It returns for each what was said against it; "" where nothing was.
    """

    def run(role: str, *cases: dict) -> list[str]:
        tasks: list[dict] = [{"ansible.builtin.setup": {"gather_subset": ["!all", "hardware"]}}]
        for number, variables in enumerate(cases):
            include = {
                "ansible.builtin.include_role": {"name": role, "tasks_from": "preflight"},
                "vars": {**VARIABLES, **variables},
            }
            said = {f"said_{number}": "{{ ansible_failed_result | to_json(ensure_ascii=False) }}"}
            tasks.append({"block": [include], "rescue": [{"ansible.builtin.set_fact": said}]})
        answers = ", ".join(f"said_{number} | default('')" for number in range(len(cases)))
        copy = {"content": f"{{{{ [{answers}] | to_json }}}}", "dest": str(tmp_path / "answers")}
        code, output = play(*tasks, {"ansible.builtin.copy": copy})
        assert code == 0, output
        return [" ".join(said.split()) for said in json.loads((tmp_path / "answers").read_text())]

    return run


def test_a_broker_whose_name_would_change_is_refused_with_the_way_that_works(preflight, tmp_path):
    def case(single: bool, *there: str) -> dict:
        folder = tmp_path / "-".join(["single" if single else "several", *there])
        for name in there:
            (folder / name).mkdir(parents=True)
        return {"topology_single": single, "rabbitmq_data": str(folder)}

    said = preflight(
        "rabbitmq",
        case(True, "rabbit@localhost", "rabbit@localhost-plugins-expand"),
        case(True),
        case(False, "rabbit@web", "rabbit@web-feature_flags"),
        case(False, "rabbit@localhost", "rabbit@localhost-plugins-expand"),
        case(True, "rabbit@web"),
    )
    assert said[:3] == ["", "", ""]
    assert "the broker here is rabbit@localhost by its data, and would be rabbit@web" in said[3]
    assert "restore.yml with this one on fresh hosts" in said[3]
    assert "the broker here is rabbit@web by its data, and would be rabbit@localhost" in said[4]


def test_programs_at_another_address_than_nginx_will_ask_are_refused(preflight):
    def case(bound: str, *, single: bool) -> dict:
        return {
            "topology_single": single,
            "common_listeners": {"stdout_lines": [LISTENER.format(bound)]},
        }

    said = preflight(
        "carillon",
        case("127.0.0.1", single=True),
        case("10.0.0.7", single=False),
        case("0.0.0.0", single=False),
        case("127.0.0.1", single=False),
    )
    assert said[:3] == ["", "", ""]
    assert "the programs listen on 127.0.0.1, and carillon_bind is 10.0.0.7" in said[3]


def test_a_password_that_the_programs_would_read_as_another_is_refused(preflight):
    passwords = ['it\'s "fine"', "ends with a space ", "two\nlines"]
    said = preflight("carillon", *({"carillon_database_password": password} for password in passwords))
    assert said[0] == ""
    for answer, password in zip(said[1:], passwords[1:], strict=True):
        assert "carillon_database_password begins or ends with white space" in answer
        assert password not in answer


def test_an_acme_challenge_that_may_reach_another_host_is_refused(preflight):
    said = preflight(
        "tls",
        *(
            {
                "tls_mode": "letsencrypt",
                "tls_acme_email": "operators@chimes.test",
                "topology_proxies": proxies,
            }
            for proxies in (["web"], ["other", "web"])
        ),
    )
    assert said[0] == ""
    assert "the group nginx has other and web" in said[1]


def test_what_the_project_declares_is_looked_at(preflight, tmp_path):
    def case(name: str, text: str | None) -> dict:
        folder = tmp_path / name
        folder.mkdir()
        if text is not None:
            (folder / "carillon.toml").write_text(text)
        return {"nginx_source": str(folder), "topology_source": str(ANSIBLE.parent)}

    said = preflight(
        "nginx",
        case("none", None),
        case("good", 'websocket_prefixes = ["/ws/"]'),
        case("bad", 'websocket_prefixes = ["ws/", "/static/x/"]'),
        case("process", '[processes.uwsgi]\ncommand = ["celery"]'),
    )
    assert said[:2] == ["", ""]
    file = tmp_path / "bad/carillon.toml"
    assert (
        f"web: {file}: websocket_prefixes: 'ws/' must begin and end with one slash: write '/ws/'" in said[2]
    )
    assert "'/static/x/' lies in /static/" in said[2]
    assert "processes.uwsgi: Carillon has something of that name: choose another" in said[3]


def test_without_a_checkout_a_release_says_what_was_declared(preflight, tmp_path):
    """A playbook of one's own, with the collection and an archive."""
    (tmp_path / "carillon.toml").write_text('websocket_prefixes = ["/ws/"]')
    none = {"topology_source": "/nowhere", "nginx_source": "/nowhere/nginx"}
    assert preflight("nginx", none, {**none, "nginx_source": str(tmp_path)}) == ["", ""]
    none = {"websocket_prefixes": [], "http_prefixes": [], "upload_mebibytes": 1}
    assert none == declared.site(declared.Declared())
    assert filters.declared("/nowhere/carillon.toml", "/nowhere") == {"site": none, "problems": []}
    found = filters.declared(str(tmp_path / "carillon.toml"), "/nowhere")
    assert found == {"site": {**none, "websocket_prefixes": ["/ws/"]}, "problems": []}


def test_an_address_of_ipv6_between_hosts_is_refused(play):
    """The one task: the whole preflight asks a host for more than this machine has."""
    tasks = yaml.safe_load((ANSIBLE / "roles/common/tasks/preflight.yml").read_text())
    (task,) = (task for task in tasks if task["name"] == "An address of IPv4")
    code, said = play(task, **VARIABLES)
    assert code == 0, said
    code, said = play(task, **{**VARIABLES, "topology_addresses": {"web": "2001:db8::7"}})
    assert code == 2
    assert "web: carillon_address (2001:db8::7) is one of IPv6" in said


def test_an_application_host_without_nginx_cannot_be_watched(preflight):
    """Only the nginx beside it answers for it alone."""
    watched = {
        "topology_apps": ["web", "other"],
        "topology_watchers": ["web"],
        "topology_shown": "10.0.0.7",
        "topology_source": str(ROOT),
    }
    both = {**watched, "topology_proxies": ["web", "other"]}
    nobody, well, one, missing = preflight(
        "observability",
        watched,
        both,
        {**watched, "topology_apps": ["other"]},
        {**both, "observability_alertmanager": "/nonexistent/alertmanager.yml"},
    )
    assert "other run no nginx" in nobody
    assert (well, one) == ("", "")
    assert "/nonexistent/alertmanager.yml is no file on the control node" in missing

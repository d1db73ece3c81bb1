"""What a run refuses before it touches anything, and in which words."""

from __future__ import annotations

import pytest

from tests.unit.production.test_control_node import ANSIBLE

LISTENER = 'LISTEN 0 4096 {}:8050 0.0.0.0:* users:(("uwsgi",pid=9,fd=0),("supervisord",pid=7,fd=5))'


@pytest.fixture
def preflight(play):
    """A function that runs the preflight of a role with these variables; exit code and output."""

    def run(role: str, **variables) -> tuple[int, str]:
        return play(
            {"ansible.builtin.setup": {"gather_subset": ["!all", "hardware"]}},
            {"ansible.builtin.include_role": {"name": role, "tasks_from": "preflight"}},
            **{
                "topology_single": False,
                "topology_name": "web",
                "topology_hosts": ["web", "other"],
                "topology_addresses": {"web": "10.0.0.7", "other": "10.0.0.8"},
                "topology_brokers": ["web"],
                "topology_proxies": ["web"],
                "secrets_amqp_slot": "a",
                "secrets_database_slot": "a",
                "carillon_domain": "chimes.test",
                "topology_secrets_dir": "/nowhere",
                "topology_databases": ["other"],
                "common_listeners": {"stdout_lines": []},
                **variables,
            },
        )

    return run


@pytest.mark.parametrize(
    ("single", "there", "code"),
    [
        (True, ["rabbit@localhost", "rabbit@localhost-plugins-expand"], 0),
        (True, [], 0),
        (False, ["rabbit@web", "rabbit@web-feature_flags"], 0),
        (False, ["rabbit@localhost", "rabbit@localhost-plugins-expand"], 2),
        (True, ["rabbit@web"], 2),
    ],
)
def test_a_broker_whose_name_would_change_is_refused_with_the_way_that_works(
    preflight, tmp_path, single, there, code
):
    for name in there:
        (tmp_path / "data" / name).mkdir(parents=True)
    found, said = preflight("rabbitmq", topology_single=single, **{"rabbitmq_data": str(tmp_path / "data")})
    assert found == code, said
    if code:
        assert f"the broker here is {there[0]} by its data" in said
        assert "restore.yml with this one on fresh hosts" in said


@pytest.mark.parametrize(
    ("bound", "single", "code"),
    [("127.0.0.1", True, 0), ("10.0.0.7", False, 0), ("0.0.0.0", False, 0), ("127.0.0.1", False, 2)],
)
def test_programs_at_another_address_than_nginx_will_ask_are_refused(preflight, bound, single, code):
    listeners = {"stdout_lines": [LISTENER.format(bound)]}
    found, said = preflight("carillon", topology_single=single, common_listeners=listeners)
    assert found == code, said
    assert code == 0 or "the programs listen on 127.0.0.1, and carillon_bind is 10.0.0.7" in said


@pytest.mark.parametrize(("proxies", "code"), [(["web"], 0), (["other", "web"], 2)])
def test_an_acme_challenge_that_may_reach_another_host_is_refused(preflight, proxies, code):
    found, said = preflight(
        "tls", tls_mode="letsencrypt", tls_acme_email="operators@chimes.test", topology_proxies=proxies
    )
    assert found == code, said
    assert code == 0 or "the group nginx has other and web" in said


@pytest.mark.parametrize(
    ("password", "code"), [('it\'s "fine"', 0), ("ends with a space ", 2), ("two\nlines", 2)]
)
def test_a_password_that_the_programs_would_read_as_another_is_refused(preflight, password, code):
    found, said = preflight("carillon", carillon_database_password=password)
    assert found == code, said
    assert password not in said
    assert code == 0 or "carillon_database_password begins or ends with white space" in said


def test_addresses_between_hosts_are_of_ipv4():
    """The whole preflight asks the host for more than a test has: the condition alone."""
    assert (
        "':' not in topology_addresses[topology_name]"
        in (ANSIBLE / "roles/common/tasks/preflight.yml").read_text()
    )

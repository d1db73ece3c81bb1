"""What `make production` was told is in force for every command after it, until it is told otherwise."""

import re
import stat

import pytest

from dev import __main__ as command
from dev import config, development, environments, operations, production, server_certificate, stack
from dev.output import Failure

TOLD = {
    "CARILLON_PROJECT": "chimes",
    "CARILLON_LISTEN": "192.0.2.7",
    "CARILLON_HTTP_PORT": "80",
    "CARILLON_HTTPS_PORT": "443",
    "CARILLON_ALLOWED_HOSTS": "chimes.example.org, [::1]",
    "CARILLON_TRUSTED_ORIGINS": "https://chimes.example.org",
    "CARILLON_APP_MEMORY": "3g",
}


@pytest.fixture
def load(tmp_path):
    """The configuration of a command whose environment says this."""
    return lambda **said: production.load({"CARILLON_STATE": str(tmp_path / "state"), **said})


@pytest.fixture
def up(load, monkeypatch):
    """`production.up` without containers: what of its environment nginx and the application were given."""
    monkeypatch.setattr(production, "build", lambda config: None)
    monkeypatch.setattr(operations, "built", lambda config: {})
    monkeypatch.setattr(development, "ensure_secrets", lambda config, anew: None)
    monkeypatch.setattr(production.secret_files, "read", lambda folder, name: "")
    monkeypatch.setattr(production, "mounted", lambda config, certificate, **site: (False, False))
    given = []
    monkeypatch.setattr(stack, "up", lambda config, **_: given.append(config.compose_environment()))
    monkeypatch.setattr(stack, "compose", lambda *_, **__: "")

    def up(**said):
        production.up(load(**said))
        return {name: value for name, value in given[-1].items() if name in TOLD}

    return up


def test_the_next_command_uses_what_it_was_told(up, load):
    assert up(**TOLD) == TOLD
    assert up() == TOLD
    assert load().project == "chimes"
    assert stat.S_IMODE((load().state / "make.env").stat().st_mode) == 0o600


def test_the_environment_wins_and_is_kept_in_turn(up):
    up(**TOLD)
    changed = {**TOLD, "CARILLON_LISTEN": "192.0.2.8", "CARILLON_APP_MEMORY": "4g"}
    assert up(CARILLON_LISTEN="192.0.2.8", CARILLON_APP_MEMORY="4g") == changed
    assert up() == changed


def test_an_empty_value_forgets(up):
    up(**TOLD)
    for said in (dict.fromkeys(TOLD, ""), {}):
        assert up(**said) == {
            "CARILLON_PROJECT": f"{config.NAME}-production",
            "CARILLON_LISTEN": "127.0.0.1",
            "CARILLON_HTTP_PORT": "50080",
            "CARILLON_HTTPS_PORT": "50443",
            "CARILLON_ALLOWED_HOSTS": "localhost,127.0.0.1,[::1]",
            "CARILLON_TRUSTED_ORIGINS": "https://localhost:50443,https://127.0.0.1:50443",
        }


def test_a_certificate_is_kept_by_its_absolute_path(up, monkeypatch):
    asked = []
    monkeypatch.setattr(server_certificate, "chosen", lambda environ, hosts: asked.append(environ))
    up(CARILLON_CERTIFICATE="tls/chain.pem", CARILLON_CERTIFICATE_KEY="~/key.pem")
    up()
    assert asked[0] == asked[1]
    assert asked[1]["CARILLON_CERTIFICATE"] == f"{config.HOME}/tls/chain.pem"
    assert re.match("/.*/key.pem", asked[1]["CARILLON_CERTIFICATE_KEY"])


def test_what_would_not_do_is_not_kept(up):
    up(**TOLD)
    with pytest.raises(Failure, match=r"CARILLON_CERTIFICATE=/nowhere/chain\.pem: No such file"):
        up(CARILLON_CERTIFICATE="/nowhere/chain.pem", CARILLON_CERTIFICATE_KEY="/nowhere/key.pem")
    assert up() == TOLD


def test_it_is_said_what_is_in_force(up, load, capsys):
    up(**TOLD)
    capsys.readouterr()
    up()
    assert re.search("make.env: .*CARILLON_LISTEN=192.0.2.7", capsys.readouterr().out)


def test_every_command_of_production_reads_it(up, load, monkeypatch):
    up(**TOLD)
    monkeypatch.setenv("CARILLON_STATE", str(load().state))
    for name in TOLD:
        monkeypatch.delenv(name, raising=False)
    found = []
    monkeypatch.setattr(stack, "down", lambda config, **_: found.append(config.project))
    monkeypatch.setattr(development, "clean", lambda config: found.append(config.project))
    monkeypatch.setattr(development, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(environments, "enter", lambda *_: None)
    verbs = ("backup", "restore", "prune", "upgrade", "rollback", "rotate", "refresh")
    for verb in verbs:
        monkeypatch.setattr(operations, verb, lambda config, *_: found.append(config.project))
    for name in ("down", "clean", *verbs):
        command.COMMANDS[f"production-{name}"](["backups/now"])
    assert found == ["chimes"] * 9


def test_what_it_was_told_by_a_slip_of_an_editor_is_one_line(up, load):
    up(**TOLD)
    file = load().state / "make.env"
    file.write_text(file.read_text() + "CARILLON_LISTEN='0.0.0.0\n")
    with pytest.raises(Failure, match=r"make\.env is not of lines NAME=value: No closing quotation"):
        load()


def test_a_port_that_production_does_not_publish_is_in_nobodys_way(load):
    assert load(CARILLON_HTTPS_PORT="15672").https_port == 15672


def test_no_variable_of_the_compose_files_is_forgotten():
    text = "".join((config.ROOT / "compose" / name).read_text() for name in ("production.yml", "cluster.yml"))
    assert set(re.findall(r"\$\{(\w+)", text)) == {
        *(name for name in production.KEPT if "CERTIFICATE" not in name and "SUBNET" not in name),
        "CARILLON_STATE",  # where it is kept
    }

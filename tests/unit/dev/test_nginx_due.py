"""What nginx is to be given by a run that fails, it is given by the next one."""

import pytest

from dev import development, operations, production, project, secret_files, stack
from dev.config import load
from dev.output import Failure


class Nginx:
    """The runs of `make production`, and what each of them did to nginx."""

    def __init__(self, monkeypatch):
        self.did = []
        self.fails = ()
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(production, "build", lambda config: None)
        monkeypatch.setattr(operations, "built", lambda config: {})
        monkeypatch.setattr(stack, "up", self.up)
        monkeypatch.setattr(stack, "compose", self.compose)

    def up(self, config, renew):
        self.step("up")
        self.did += ["renew"] if renew else []

    def compose(self, config, *arguments, **_):
        if "HUP" in arguments:
            self.step("HUP")
            self.did.append("reload")
        return ""

    def step(self, name):
        if name in self.fails:
            raise Failure(f"{name} failed")

    def run(self, settings, *, fails=()):
        self.fails, self.did = fails, []
        if fails:
            with pytest.raises(Failure, match="failed"):
                production.up(settings)
        else:
            production.up(settings)
        return self.did


@pytest.fixture
def state(tmp_path):
    return production.load({"CARILLON_STATE": str(tmp_path / "state")})


@pytest.fixture
def nginx(state, monkeypatch):
    secret_files.ensure(state.secrets)
    monkeypatch.setattr(development, "ensure_secrets", lambda config, anew: None)
    nginx = Nginx(monkeypatch)
    nginx.run(state)
    assert nginx.run(state) == []
    return nginx


def another_certificate(state):
    for name in ("server.pem", "server.key"):
        (state.certificates / name).unlink()


@pytest.mark.parametrize("fails", [["up"], ["HUP"]])
def test_a_certificate_is_shown_by_the_next_run(nginx, state, fails):
    another_certificate(state)
    assert nginx.run(state, fails=fails) == []
    assert nginx.run(state) == ["reload"]
    assert nginx.run(state) == []


def test_a_site_file_is_read_by_the_next_run(nginx, state, tmp_path):
    (tmp_path / "bells.conf").write_text("location /bells/ {}\n")
    nginx.monkeypatch.setattr(project, "LOCATIONS", tmp_path)
    assert nginx.run(state, fails=["up"]) == []
    assert nginx.run(state) == ["renew"]
    assert nginx.run(state) == []


def test_a_run_that_failed_for_another_reason_does_nothing_to_nginx(nginx, state):
    assert nginx.run(state, fails=["up"]) == []
    assert nginx.run(state) == []
    another_certificate(state)
    assert nginx.run(state) == ["reload"]


def test_so_it_is_in_development(tmp_path, monkeypatch):
    config = load({"CARILLON_STATE": str(tmp_path / "state")})
    renewed = []

    def up(config, renew, orphans):
        if fails:
            raise Failure("up failed")
        renewed.append(renew)

    monkeypatch.setattr(stack, "up", up)
    monkeypatch.setattr("dev.base_image.ensure", lambda config: None)
    monkeypatch.setattr("dev.images.ensure", lambda config: None)
    monkeypatch.setattr("dev.account.ensure", lambda config: {})
    monkeypatch.setattr(development, "ensure_secrets", lambda config, anew: None)
    fails = False
    development.up(config)
    development.up(config)
    assert renewed.pop() == []
    another_certificate(config)
    fails = True
    with pytest.raises(Failure, match="up failed"):
        development.up(config)
    fails = False
    development.up(config)
    assert renewed.pop() == ["nginx"]
    development.up(config)
    assert renewed.pop() == []


def test_a_rollback_has_the_site_file_of_before(nginx, state, monkeypatch):
    """The image that it goes back to lacks the snippets that the checkout's site file includes."""
    site, running = state.state / "nginx" / "site.conf", iter([{"nginx": "old"}, {"nginx": "old"}])
    monkeypatch.setattr(operations, "_running", lambda config: next(running))
    monkeypatch.setattr(operations, "built", lambda config: {"nginx": "new"})
    monkeypatch.setattr(operations, "use", lambda config, chosen, tag="": None)
    site.write_text("# of before\n")
    (site.parent / "site.d" / "mine.conf").write_text("# of before, too\n")
    operations.upgrade(state)
    assert "include carillon/snippets/routes.conf" in site.read_text()
    operations.rollback(state)
    assert site.read_text() == "# of before\n"
    assert [path.read_text() for path in (site.parent / "site.d").iterdir()] == ["# of before, too\n"]
    assert nginx.run(state) == []
    operations.upgrade(state)
    assert "include carillon/snippets/routes.conf" in site.read_text()
    assert not list((site.parent / "site.d").iterdir())

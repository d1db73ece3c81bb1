"""`make clean` and its like: backups stay, and with no engine what the volumes need stays with them."""

import pytest

from dev import __main__ as command
from dev import config, development, engine, images, production_testing, secret_files, stack, testing
from dev.output import Failure


@pytest.fixture
def ready(monkeypatch):
    monkeypatch.setattr(engine, "state", lambda: (engine.State.READY, "28"))
    monkeypatch.setattr(stack, "down", lambda config, *, volumes: None)
    monkeypatch.setattr(images, "forget", lambda config: None)


@pytest.fixture
def used(settings):
    """A state as an installation has it."""
    secret_files.ensure(settings.secrets)
    secret_files.project_settings(settings.project_settings)
    (settings.state / "backups" / "2030-01-01T02-17-00Z").mkdir(parents=True)
    (settings.state / "backups" / "2030-01-01T02-17-00Z" / "database.dump").write_text("bells")
    return settings


def files(settings):
    found = (path for path in settings.state.rglob("*") if path.is_file())
    return {str(path.relative_to(settings.state)) for path in found}


def test_backups_stay_and_it_is_said_where(ready, used, capsys):
    for _ in range(2):  # the second time there is nothing else by which it is known as ours
        development.clean(used)
        assert files(used) == {"backups/2030-01-01T02-17-00Z/database.dump"}
        assert f"the backups stay: {used.state}/backups" in capsys.readouterr().out


def test_without_backups_nothing_stays(ready, settings):
    secret_files.ensure(settings.secrets)
    development.clean(settings)
    assert not settings.state.exists()


@pytest.mark.parametrize("found", [each for each in engine.State if each is not engine.State.READY])
def test_what_volumes_need_stays_with_them_when_no_engine_answers(used, monkeypatch, found):
    monkeypatch.setattr(engine, "state", lambda: (found, ""))
    before = files(used)
    with pytest.raises(Failure, match=found.value) as caught:
        development.clean(used)
    for word in (used.project, str(used.state), "secrets", "once an engine answers"):
        assert word in str(caught.value)
    assert files(used) == before


@pytest.mark.parametrize("found", [engine.State.READY, engine.State.STOPPED])
def test_the_tests_remove_all_of_their_own(ready, used, monkeypatch, found):
    monkeypatch.setattr(engine, "state", lambda: (found, ""))
    monkeypatch.setattr(command, "_test_config", lambda: used)
    assert not command.COMMANDS["test-clean"]([])
    assert not used.state.exists()


def test_so_do_the_tests_of_production(monkeypatch):
    cleaned = {}
    monkeypatch.setattr(engine, "state", lambda: (engine.State.STOPPED, ""))
    monkeypatch.setattr(
        development, "clean", lambda config, **how: cleaned.setdefault(config.project, []).append(how)
    )
    monkeypatch.setattr(production_testing.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(production_testing, "MARKERS", ())
    production_testing.clean(production_testing.load())
    assert len(cleaned) == len(production_testing.STACKS) + 1
    assert all(how == {"everything": True} for each in cleaned.values() for how in each)


def test_a_folder_that_is_not_ours_is_left_alone(ready, settings):
    (settings.state / "backups").mkdir(parents=True)
    (settings.state / "letters.txt").write_text("dear")
    with pytest.raises(Failure, match="does not look like a state directory"):
        development.clean(settings)
    assert files(settings) == {"letters.txt"}


@pytest.mark.parametrize("state", [".", "..", "letters"])
def test_a_folder_that_is_not_ours_is_no_state(state, tmp_path, monkeypatch):
    """`make dev` would put secrets there, and `make clean` would then take the folder for its own."""
    monkeypatch.setattr(config, "HOME", tmp_path / "work" / "checkout")
    letters = config.HOME / "letters" / "dear.txt"
    letters.parent.mkdir(parents=True)
    config.load({"CARILLON_STATE": state if state == "letters" else "new"})
    letters.touch()
    (letters.parent / "logs").mkdir()
    with pytest.raises(Failure, match="holds what is not of a stack"):
        config.load({"CARILLON_STATE": state})


def test_a_state_that_was_hardly_begun_is_one(tmp_path):
    for name in ("lost+found", "logs", "lock", "secrets"):
        (tmp_path / name).mkdir()
        assert config.load({"CARILLON_STATE": str(tmp_path)}).state == tmp_path
    (tmp_path / "nginx").mkdir()
    with pytest.raises(Failure, match="holds what is not of a stack"):
        config.load({"CARILLON_STATE": str(tmp_path)})
    (tmp_path / "secrets" / "amqp_password").touch()
    assert config.load({"CARILLON_STATE": str(tmp_path)}).state == tmp_path


def test_the_tests_stack_is_never_somebodys_own(monkeypatch):
    """`make test` removes its volumes, `make test-clean` its secrets."""
    monkeypatch.setenv("CARILLON_PROJECT", "mine")
    monkeypatch.setenv("CARILLON_STATE", ".dev-mine")
    for found in (command._test_config(), production_testing.load()):
        assert found.project != "mine"
        assert found.state.name != ".dev-mine"


def test_with_the_volumes_goes_the_token_of_who_lived_there(settings, monkeypatch):
    secret_files.private_directory(settings.secrets)
    token = settings.secrets / secret_files.METRICS_TOKEN
    secret_files.write(token, "of a database that was\n", 0o444)
    monkeypatch.setattr(stack, "compose", lambda *_, **__: "")
    monkeypatch.setattr(stack.preflight, "neighbour", lambda _: None)
    stack.down(settings, volumes=False)
    assert token.exists()
    stack.down(settings, volumes=True)
    assert not token.exists()


def test_a_machine_of_unit_tests_alone_needs_no_engine(settings, monkeypatch):
    """There are private environments, and nothing that a volume could need."""
    monkeypatch.setattr(engine, "state", lambda: (engine.State.MISSING, ""))
    state = settings.state.with_name(testing.STATE)
    (state / "venv").mkdir(parents=True)
    development.clean(config.load({"CARILLON_STATE": str(state)}))
    assert not state.exists()

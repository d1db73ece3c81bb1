"""The launcher: one argv for each process, bounded waiting, one line for each error."""

import configparser
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.util import spec_from_file_location
from pathlib import Path

import pytest
from django.db import OperationalError

from carillon.process import launcher, probe
from carillon.process.environment import ConfigurationError, load
from carillon.process.launcher import Check, NotReady

ROOT = Path(__file__).parents[3]
ENVIRON = {
    "CARILLON_DEVELOPMENT": "1",
    "CARILLON_SECRET_KEY": "key",
    "CARILLON_DATABASE_HOST": "db",
    "CARILLON_DATABASE_PASSWORD": "db-secret",
    "CARILLON_AMQP_HOSTS": "mq,mq2:5673",
    "CARILLON_AMQP_PASSWORD": "mq-secret",
    "CARILLON_WAIT_SECONDS": "10",
}
PRODUCTION = {"CARILLON_SECRET_KEY": "k" * 40, "CARILLON_ALLOWED_HOSTS": "carillon.test"}


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def failing(times):
    """A probe that is not ready so many times."""
    left = iter(range(times))

    def probe(_environment):
        if next(left, None) is not None:
            raise NotReady("connection refused")

    return probe


def carillon(*arguments, **environ):
    """Run the command as an operator would, with nothing in the environment but `environ`."""
    return subprocess.run(
        [sys.executable, "-m", "carillon", *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), **environ},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_argv_has_addresses_and_no_secret():
    environment = load({**ENVIRON, "CARILLON_BIND": "::1", "CARILLON_UWSGI_THREADS": "7"})
    uwsgi = launcher.argv("uwsgi", environment)
    assert uwsgi[uwsgi.index("--socket") + 1] == "[::1]:8050"
    assert uwsgi[uwsgi.index("--threads") + 1] == "7"
    daphne = launcher.argv("daphne", environment)
    assert daphne[daphne.index("-b") + 1] == "::1"
    assert daphne[daphne.index("-p") + 1] == "8051"
    assert daphne[daphne.index("--websocket_timeout") + 1] == "-1"
    for process in launcher.PROCESSES:
        assert "secret" not in " ".join(launcher.argv(process, environment))


def test_daphne_takes_a_socket_from_supervisord():
    daphne = launcher.argv("daphne", load(ENVIRON), socket_on_stdin=True)
    assert daphne[1:5] == ["-m", "carillon.server", "--fd", "0"]
    assert not {"-b", "-p", "-u"} & set(daphne)


def test_an_unknown_process_is_named():
    with pytest.raises(ValueError, match="'nginx' is none of uwsgi, daphne, runworker"):
        launcher.argv("nginx", load(ENVIRON))


@pytest.fixture
def declares(monkeypatch, tmp_path):
    """A function that has a project declare something; what it is read from is given to processes, too."""
    package = tmp_path / "project"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(
        launcher,
        "find_spec",
        lambda _: spec_from_file_location(
            "project", package / "__init__.py", submodule_search_locations=[str(package)]
        ),
    )

    def say(text: str) -> Path:
        (package / "carillon.toml").write_text(text)
        return tmp_path

    return say


def test_a_declared_process_is_known_with_its_words(declares):
    assert launcher.processes() == launcher.PROCESSES
    declares(
        '[processes.worker]\ncommand = ["pytest", "a b", "$HOME"]\n'
        '[processes.thumbs]\ncommand = ["python", "-m", "django", "runworker", "thumbs"]\n'
        '[processes.own]\ncommand = ["/bin/sh"]\n'
    )
    assert launcher.processes() == (*launcher.PROCESSES, "worker", "thumbs", "own")
    programs = Path(sys.executable).parent
    assert launcher.argv("worker", load(ENVIRON)) == [str(programs / "pytest"), "a b", "$HOME"]
    assert launcher.argv("thumbs", load(ENVIRON))[:3] == [sys.executable, "-m", "django"]
    assert launcher.argv("own", load(ENVIRON)) == ["/bin/sh"]


def test_what_is_declared_wrong_is_a_line_of_every_command(declares):
    declares('[processes.worker]\ncommand = ["no-such-program"]')
    with pytest.raises(ConfigurationError, match=r"worker: there is no program .*/no-such-program: correct"):
        launcher.argv("worker", load(ENVIRON))
    path = declares("[processes.daphne]\ncommand = ['x']\n[processes.x]")
    answer = carillon("probe", "daphne", **ENVIRON, PYTHONPATH=f"{path}:{ROOT / 'src'}")
    assert answer.returncode == launcher.EXIT_CONFIGURATION
    one, two = answer.stderr.splitlines()
    assert one.startswith(f"carillon: {path}/project/carillon.toml: processes.daphne: Carillon has something")
    assert two.startswith(f"carillon: {path}/project/carillon.toml: processes.x: has no command")


def test_a_declared_process_runs_with_its_name_is_probed_and_ends_on_term(declares, monkeypatch):
    path = declares(
        "[processes.worker]\n"
        'command = ["python", "-c", "import os, time; print(os.environ, flush=True); time.sleep(60)"]\n'
    )
    environ = {**ENVIRON, "PYTHONPATH": f"{path}:{ROOT / 'src'}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "carillon", "run", "worker", "--no-wait"],
        env={"PATH": os.environ["PATH"], **environ}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        line = process.stdout.readline().decode()
        assert "'CARILLON_PROCESS': 'worker'" in line
        assert "'SPT_NOENV': '1'" in line  # setproctitle leaves the environment alone
        assert "'DJANGO_SETTINGS_MODULE': 'project.settings'" in line
        answer = carillon("probe", "worker", **environ)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert "worker: runs for " in answer.stderr
        monkeypatch.setattr(probe, "SETTLED_SECONDS", 0)
        assert probe.probe("worker", load(ENVIRON)) == "worker: 1 run"
        process.terminate()
        assert process.wait(5) == -15
        answer = carillon("probe", "worker", **environ)
        assert (answer.returncode, answer.stderr) == (
            1,
            "carillon: worker: no such process of 1: its log says why\n",
        )
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("ages", "development", "said"),
    [
        ([600, 600], False, "worker: 2 run"),
        ([600, 1], False, "worker: runs for 1 s, which says nothing before 5"),  # one comes again and again
        ([600], False, "worker: 1 such process of 2: its log says why"),
        ([600], True, "worker: 1 run"),  # a container of its own
        ([], True, "worker: no such process of 1: its log says why"),
    ],
)
def test_all_of_a_declared_process_are_looked_at(declares, monkeypatch, ages, development, said):
    declares('[processes.worker]\ncommand = ["x"]\nnumber = 2')
    now = time.monotonic()
    each = [{"CARILLON_PROCESS": "worker", "CARILLON_PROCESS_SINCE": f"{now - age - n / 1e6:.6f}"}
            for n, age in enumerate(ages)]  # fmt: skip
    everything = iter([*each, *each, {"CARILLON_PROCESS": "other"}])  # twice: their forks
    monkeypatch.setattr(probe, "_environ", lambda _: next(everything, {}))
    environment = load(ENVIRON if development else {**ENVIRON, "CARILLON_DEVELOPMENT": "0", **PRODUCTION})
    if said.endswith(" run"):
        assert probe.probe("worker", environment) == said
    else:
        with pytest.raises(probe.NotServing, match=f"^{said}"):
            probe.probe("worker", environment)


SETTINGS = "from carillon.settings import *\nfrom carillon.settings import CARILLON, INSTALLED_APPS\n"


@pytest.mark.parametrize(
    ("file", "text", "place", "words"),
    [
        ("settings.py", "import no_such_thing", "settings.py:1", "No module named 'no_such_thing'"),
        ("settings.py", "x = (", "settings.py:1", "SyntaxError: '(' was never closed"),
        ("settings.py", SETTINGS + "INSTALLED_APPS += ['no_such_app']", "", "No module named 'no_such_app'"),
        (
            "settings.py",
            SETTINGS + "CARILLON = {**CARILLON, 'WINDOW_BYTES': 'many'}",
            "",
            "CARILLON: WINDOW_BYTES must be a whole number, as 67108864 is, and not 'many'",
        ),
        ("urls.py", "urlpatterns = [\n    path()]", "urls.py:2", "NameError: name 'path' is not defined"),
        ("routing.py", "from yours import consumers", "routing.py:1", "No module named 'yours'"),
        (
            "families.py",
            "from carillon.events import Family, register\n"
            "register(Family('bells', ('<id>',), permitted=lambda user, keys: keys))\n" * 2,
            "families.py:4",
            "ValueError: family 'bells' is registered twice: choose another name",
        ),
    ],
)
@pytest.mark.parametrize("command", ["check", "migrate", "run"])
def test_a_project_that_cannot_be_loaded_is_one_line(declares, command, file, text, place, words):
    path = declares("")
    apps = "INSTALLED_APPS = [*INSTALLED_APPS, 'project']\n"
    (path / "project/settings.py").write_text(SETTINGS + apps)
    (path / "project/urls.py").write_text("urlpatterns = []")
    (path / "project/routing.py").write_text("websocket_urlpatterns = []")
    (path / "project" / file).write_text(text)
    environ = {**ENVIRON, "CARILLON_DATABASE_HOST": "sqlite", "PYTHONPATH": f"{path}:{ROOT / 'src'}"}
    answer = carillon(command, *(["daphne"] if command == "run" else []), **environ)
    assert answer.returncode == launcher.EXIT_CONFIGURATION, answer.stderr
    (line,) = answer.stderr.splitlines()
    assert line.startswith(
        f"carillon: the project cannot be loaded: {f'{path}/project/{place}: ' if place else ''}"
    )
    assert words in line
    assert ". To do: " in line


def test_a_project_that_asks_the_database_while_it_is_loaded_waits_for_it():
    words = "asks the database while it is loaded: no route to it$"
    with pytest.raises(NotReady, match=words), launcher._loading():
        raise OperationalError("no route to it\nIs it running?")


def test_channels_own_worker_is_not_taken_for_runworker(tmp_path):
    for number, more in ((1, []), (2, ["thumbs"])):
        (tmp_path / str(number)).mkdir()
        words = ["/x/python", "-m", "django", "runworker", *more, ""]
        (tmp_path / str(number) / "cmdline").write_bytes("\0".join(words).encode())
    assert [probe._is_runworker(tmp_path / number) for number in "12"] == [True, False]


def test_runworker_with_channels_is_channels_own(monkeypatch):
    from channels.management.commands import runworker as channels_own
    from django.core.management import call_command

    heard = []
    monkeypatch.setattr(
        channels_own.Worker, "run", lambda self: heard.append((self.channels, self.application))
    )
    call_command("runworker", "thumbs", "mails")
    ((channels, application),) = heard
    assert channels == ["thumbs", "mails"]
    assert application is channels_own.get_default_application()


def test_waiting_reports_and_goes_on(capsys):
    clock = Clock()
    checks = [Check("the database", failing(13), ""), Check("the broker", failing(0), "")]
    launcher.await_ready(checks, load(ENVIRON), "daphne", clock=clock, sleep=clock.sleep)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "carillon: daphne: waiting for the database (connection refused), 1 s of 10 s",
        "carillon: daphne: waiting for the database (connection refused), 6 s of 10 s",
    ]


def test_waiting_is_bounded_over_all_checks(capsys):
    clock = Clock()
    checks = [Check("the database", failing(12), ""), Check("the broker", failing(10**6), "Look there.")]
    with pytest.raises(SystemExit) as ended:
        launcher.await_ready(checks, load(ENVIRON), "daphne", clock=clock, sleep=clock.sleep)
    assert ended.value.code == launcher.EXIT_NOT_READY
    assert clock.now == 10
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "carillon: daphne: gave up after 10 s: the broker: connection refused. Look there."


def test_reasons_hold_no_secret():
    environment = load(ENVIRON)
    error = RuntimeError(f"cannot reach {environment.amqp_urls[0]} or\nlog in with db-secret or mq-secret")
    assert launcher.reason(error, environment) == "log in with *** or ***"
    assert "mq-secret" not in launcher.reason(RuntimeError(environment.amqp_urls[1]), environment)


def test_every_problem_of_the_configuration_is_a_line():
    answer = carillon("run", "daphne", CARILLON_BIND="localhost")
    assert answer.returncode == launcher.EXIT_CONFIGURATION
    lines = answer.stderr.splitlines()
    assert all(line.startswith("carillon: CARILLON_") for line in lines)
    assert any("CARILLON_SECRET_KEY is missing" in line for line in lines)
    assert any("CARILLON_BIND: 'localhost' is not an IP address" in line for line in lines)


def test_unreachable_services_are_one_line_without_a_secret():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = str(closed.getsockname()[1])  # bound and not listening: refused
        answer = carillon(
            "check",
            **{**ENVIRON, "CARILLON_DATABASE_HOST": "127.0.0.1", "CARILLON_DATABASE_PORT": port},
        )
    assert answer.returncode == launcher.EXIT_NOT_READY
    good, line = answer.stderr.splitlines()
    assert good == "carillon: the project: good"
    assert line.startswith("carillon: the database: ")
    assert "CARILLON_DATABASE_HOST" in line
    assert "secret" not in line


def test_probe_of_a_process_that_is_away():
    answer = carillon("probe", "daphne", **ENVIRON, CARILLON_BIND="127.9.9.9")
    assert answer.returncode == 1
    assert answer.stderr == "carillon: daphne: [Errno 111] Connection refused\n"


def test_uwsgi_request_is_what_the_protocol_says():
    packet = probe.uwsgi_request("/x/", "h")
    assert packet[0] == packet[3] == 0
    assert int.from_bytes(packet[1:3], "little") == len(packet) - 4
    assert b"\x0b\x00REQUEST_URI\x03\x00/x/" in packet


def test_established_connections_to_the_broker():
    head = "  sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode\n"
    row = "   0: 0100007F:A000 0100007F:{port:04X} {state} 0:0 00:0 0 0 0 {inode} 1\n"
    table = head + "".join(
        row.format(port=port, state=state, inode=inode)
        for port, state, inode in ((5672, "01", 11), (5672, "06", 22), (5432, "01", 33))
    )
    assert probe.established([table], {5672}) == {"11"}


def test_uwsgi_ini_stops_on_term_and_lets_no_misspelling_pass():
    ini = configparser.ConfigParser(strict=True)
    ini.read(ROOT / "supervisord" / "uwsgi.ini")
    assert ini["uwsgi"]["strict"] == ini["uwsgi"]["die-on-term"] == ini["uwsgi"]["need-app"] == "true"


def test_a_reader_that_leaves_is_no_error():
    script = """
from types import SimpleNamespace
from carillon import __main__ as command

def show(options, settings):
    for number in range(100_000):
        print(number)

command.environment.load = lambda: None
command._parser = lambda: SimpleNamespace(parse_args=lambda _: SimpleNamespace(function=show))
raise SystemExit(command.main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": "src"},
    )
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(20) == 128 + signal.SIGPIPE

"""What a project declares: read from one file, and refused in one line that helps."""

import json
import re
from pathlib import Path

import pytest
import yaml

from carillon import __main__ as command_line
from carillon.process import declared, launcher
from carillon.process.declared import Declared, Process
from dev import config as configuration
from dev import project, stack
from tests.production.containers import programs
from tests.unit.production import supervisor_lint

ROOT = Path(__file__).parents[3]
WORKER = '[processes.worker]\ncommand = ["celery", "worker"]\n'


def read(tmp_path, text):
    file = tmp_path / declared.FILE
    file.write_text(text)
    found, problems = declared.read(file)
    assert all(problem.startswith(f"{file}: ") and "\n" not in problem for problem in problems)
    return found, [problem.removeprefix(f"{file}: ") for problem in problems]


def test_no_file_and_an_empty_one_declare_nothing(tmp_path):
    assert declared.read(tmp_path / "none.toml") == (Declared(), [])
    assert read(tmp_path, "") == (Declared(), [])


def test_prefixes(tmp_path):
    text = 'websocket_prefixes = ["/ws/", "/live/feed-2/"]'
    assert read(tmp_path, text) == (Declared(("/ws/", "/live/feed-2/")), [])


def test_http_prefixes_and_uploads(tmp_path):
    found, problems = read(tmp_path, 'http_prefixes = ["/live/"]\nupload_mebibytes = 8')
    assert problems == []
    assert declared.site(found) == {
        "websocket_prefixes": [],
        "http_prefixes": ["/live/"],
        "upload_mebibytes": 8,
    }


def test_processes(tmp_path):
    found, problems = read(
        tmp_path, WORKER + '[processes.beat]\ncommand = ["python", "-m", "x"]\nnumber = 2\n'
    )
    assert problems == []
    assert found.processes == {
        "worker": Process(("celery", "worker"), 1, 30),
        "beat": Process(("python", "-m", "x"), 2, 30),
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("processes = 1", "processes: must be tables, such as [processes.worker]"),
        ("[processes]\nworker = 1", "processes: must be tables"),
        ("[processes.worker]", 'processes.worker: has no command: say command = ["celery"'),
        ("[processes.worker]\ncommand = []", "processes.worker: has no command"),
        ('[processes.worker]\ncommand = "celery worker"', "command must be a list of words"),
        ("[processes.worker]\ncommand = [1]", "command must be a list of words"),
        ('[processes.worker]\ncommand = ["a", "b\\nc"]', "command has an empty program, a line break"),
        ('[processes.worker]\ncommand = [""]', "command has an empty program"),
        (WORKER + "number = 0", "processes.worker: number must be a whole number from 1 to 64, not 0"),
        (WORKER + "number = true", "number must be a whole number from 1 to 64, not True"),
        (WORKER + "stop_seconds = 61", "stop_seconds must be a whole number from 1 to 60, not 61"),
        (
            WORKER + "numbr = 2",
            "processes.worker: numbr: no such entry (there are command, number, stop_seconds)",
        ),
        (
            WORKER.replace("worker]", "daphne]"),
            "processes.daphne: Carillon has something of that name: choose",
        ),
        (WORKER.replace("worker]", "all]"), "processes.all: Carillon has something of that name"),
        (WORKER.replace("worker]", "Worker]"), "processes.Worker: the name must be of small letters"),
        (WORKER.replace("worker]", '"a b"]'), "processes.a b: the name must be of small letters"),
        (WORKER.replace("worker]", '"a%(x)s"]'), "the name must be of small letters"),
        (WORKER.replace("worker]", '"../a"]'), "the name must be of small letters"),
        (WORKER.replace("worker]", '"ä"]'), "the name must be of small letters"),
        ("websocket_prefixes = ", "is not TOML: "),
        ('websocket_prefix = ["/ws/"]', "websocket_prefix: no such entry (there are websocket_prefixes"),
        ('websocket_prefixes = "/ws/"', 'websocket_prefixes: must be a list of paths, such as ["/ws/"]'),
        ("websocket_prefixes = [1]", "must be a list of paths"),
        ('websocket_prefixes = ["ws/"]', "'ws/' must begin and end with one slash: write '/ws/'"),
        ('websocket_prefixes = ["/ws"]', "'/ws' must begin and end with one slash: write '/ws/'"),
        ('websocket_prefixes = ["//ws/"]', "'//ws/' must begin and end with one slash: write '/ws/'"),
        ('websocket_prefixes = ["/"]', "'/' would take every page away from uwsgi: name a path"),
        ('websocket_prefixes = [""]', "'' would take every page away"),
        ('websocket_prefixes = ["/ws/.*/"]', "'/ws/.*/' is a path and no pattern: between its slashes"),
        ("websocket_prefixes = ['^ws/(?P<x>\\d+)/$']", "is a path and no pattern"),
        ('websocket_prefixes = ["/ws/ {return 200;}/"]', "is a path and no pattern"),
        ('websocket_prefixes = ["/ws/<int:pk>/"]', "is a path and no pattern"),
        ('websocket_prefixes = ["/ws/../api/"]', "is a path and no pattern"),
        ('websocket_prefixes = ["/ws/\\n"]', "is a path and no pattern"),
        ('websocket_prefixes = ["/wß/"]', "is a path and no pattern"),
        ('websocket_prefixes = ["/api/"]', "'/api/' lies in /api/, which leads to uwsgi: choose another"),
        ('websocket_prefixes = ["/api/ws/"]', "'/api/ws/' lies in /api/"),
        (
            'websocket_prefixes = ["/static/ws/"]',
            "lies in /static/, which leads to the files that nginx serves",
        ),
        ('websocket_prefixes = ["/websocket/chat/"]', "leads to daphne already, with all of /websocket/"),
        ('websocket_prefixes = ["/media/ws/"]', "lies in /media/, which leads to the files that users"),
        ('http_prefixes = "/live/"', 'http_prefixes: must be a list of paths, such as ["/live/"]'),
        ('http_prefixes = ["/live"]', "http_prefixes: '/live' must begin and end with one slash"),
        ('http_prefixes = ["/"]', "name a path for these alone, such as '/live/'"),
        ('http_prefixes = ["/websocket/x/"]', "lies in /websocket/, where websockets are: choose another"),
        (
            'websocket_prefixes = ["/live/"]\nhttp_prefixes = ["/live/feed/"]',
            "http_prefixes: '/live/feed/' overlaps with '/live/' of websocket_prefixes: a path is for one",
        ),
        ("upload_mebibytes = 9", "upload_mebibytes: must be a whole number from 1 to 8, not 9"),
        ("upload_mebibytes = true", "must be a whole number from 1 to 8, not True"),
        ('upload_mebibytes = "8"', "must be a whole number from 1 to 8, not '8'"),
        ('websocket_prefixes = ["/ws/", "/ws/"]', "'/ws/' overlaps with '/ws/': keep the shorter one"),
        ('websocket_prefixes = ["/ws/a/", "/ws/"]', "'/ws/' overlaps with '/ws/a/'"),
    ],
)
def test_what_cannot_be_is_one_line_that_says_what_to_do(tmp_path, text, words):
    found, problems = read(tmp_path, text)
    assert found == Declared()
    assert len(problems) == 1
    assert words in problems[0]


def test_a_file_that_cannot_be_read(tmp_path):
    assert declared.read(tmp_path)[1] == [f"{tmp_path}: cannot be read: Is a directory"]


def test_every_name_that_carillon_uses_is_reserved():
    files = [*(ROOT / "compose").glob("*.yml")]
    services = {name for file in files for name in yaml.safe_load(file.read_text())["services"]}
    used = services | supervisor_lint.programs(ROOT / "supervisord/conf.d") | set(launcher.PROCESSES)
    assert used <= declared.RESERVED


def test_programs_of_supervisord(tmp_path):
    found, _ = read(tmp_path, WORKER + "number = 2\nstop_seconds = 9\n")
    ((name, text),) = declared.programs(found).items()
    assert name == "worker.conf"
    assert supervisor_lint.lint(text, name) == []
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "carillon.toml").write_text(WORKER + "number = 2\nstop_seconds = 9\n")
    assert declared.main(str(tmp_path / "carillon.toml"), str(tmp_path / "conf.d")) == 0
    assert (tmp_path / "conf.d/worker.conf").read_text() == text
    assert supervisor_lint.processes(tmp_path / "conf.d") == {"worker:worker_0", "worker:worker_1"}
    # What else it says is what Carillon's own programs say.
    own = (ROOT / "supervisord/conf.d/runworker.conf").read_text()
    said = {line for line in text.splitlines() if "=" in line}
    assert said - set(own.splitlines()) == {
        "command = /opt/carillon/current/bin/carillon run worker",
        "process_name = %(program_name)s_%(process_num)d",
        "numprocs = 2",
        "stopwaitsecs = 9",
    }


def test_supervisord_reads_them(tmp_path):
    from supervisor.options import ServerOptions

    main = (ROOT / "supervisord/supervisord.conf").read_text()
    main = main.replace("/etc/carillon/supervisord", str(tmp_path)).replace("/run/carillon", str(tmp_path))
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "supervisord.conf").write_text(main)
    found = Declared(processes={"worker": Process(("celery",), 2, 9)})
    for name, text in declared.programs(found).items():
        (tmp_path / "conf.d" / name).write_text(text)
    options = ServerOptions()
    options.realize(["-c", str(tmp_path / "supervisord.conf")])
    (group,) = options.process_group_configs
    assert [process.name for process in group.process_configs] == ["worker_0", "worker_1"]
    assert {(process.stopwaitsecs, process.stopsignal) for process in group.process_configs} == {(9, 15)}
    assert all(process.redirect_stderr and process.killasgroup for process in group.process_configs)


def test_what_the_image_cannot_have_stops_its_build(tmp_path, capsys):
    (tmp_path / "carillon.toml").write_text("[processes.worker]")
    assert declared.main(str(tmp_path / "carillon.toml"), str(tmp_path)) == 1
    assert "processes.worker: has no command" in capsys.readouterr().err


def test_development_has_a_container_of_each(tmp_path, monkeypatch):
    monkeypatch.setattr(project, "FILE", tmp_path / "carillon.toml")
    config = configuration.load({"CARILLON_STATE": str(tmp_path)})
    project.compose(config)
    assert str(config.processes) not in stack.command(config, "up")
    project.FILE.write_text(WORKER + "number = 2\n")
    project.compose(config)
    assert stack.command(config, "up")[4:] == [
        *("--file", str(configuration.COMPOSE_FILE), "--file", str(config.processes)),
        "up",
    ]
    services = json.loads(config.processes.read_text())["services"]
    assert services == {
        "worker": {
            "extends": {"file": str(configuration.COMPOSE_FILE), "service": "runworker"},
            "command": ["reload", "worker"],
            "healthcheck": {"test": ["CMD", "carillon", "probe", "worker"]},
            "deploy": {"replicas": 2},
        }
    }
    assert programs() == {"worker:worker_0", "worker:worker_1"}
    project.FILE.write_text("")
    project.compose(config)
    assert not config.processes.exists()


def test_processes_may_take_only_so_long_to_stop_together(tmp_path):
    """supervisord stops one after another, and is killed itself when that takes too long."""
    slow = "".join(f'[processes.p{n}]\ncommand = ["x"]\nstop_seconds = 41\n' for n in range(3))
    _, problems = read(tmp_path, slow)
    assert problems == [
        "processes: one after another they may take 123 s to stop, and 120 s is the most: lower stop_seconds"
    ]
    assert not read(tmp_path, slow.replace("41", "40"))[1]


def test_who_stops_supervisord_waits_for_all_that_it_may_stop():
    own = sum(
        int(found)
        for path in (ROOT / "supervisord/conf.d").glob("*.conf")
        for found in re.findall(r"^stopwaitsecs = (\d+)", path.read_text(), re.MULTILINE)
    )
    unit = (ROOT / "ansible/roles/supervisord/templates/carillon.service.j2").read_text()
    compose = (ROOT / "compose/production.yml").read_text()
    assert own + declared.STOP_TOGETHER < int(re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)[1])
    assert own + declared.STOP_TOGETHER < max(map(int, re.findall(r"stop_grace_period: (\d+)s", compose)))


@pytest.mark.parametrize("text", ["nan", "inf", "0", "-1", "many"])
@pytest.mark.parametrize("option", ["--check", "--seconds", "--rows"])
def test_numbers_that_count_nothing_are_refused(option, text, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["prune", f"{option}={text}"])
    assert option in capsys.readouterr().err

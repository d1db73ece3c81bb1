from __future__ import annotations

import io
import sys
from importlib import util
from pathlib import Path

import pytest

from tests.unit.production.supervisor_lint import lint, processes, programs

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "supervisord"
FILES = [FOLDER / "supervisord.conf", *sorted((FOLDER / "conf.d").glob("*.conf"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_have_nothing_that_supervisord_would_ignore(path):
    assert lint(path.read_text(), path.name) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[program:x]\ntopwaitsecs = 30\n", "topwaitsecs is no key"),
        ("[program:x]\nautorestart = true\nautorestart = true\n", "autorestart is set in line 2"),
        ("[progam:x]\ncommand = y\n", "[progam:x] is no section"),
        ("[program]\ncommand = y\n", "[program] is no section"),
        ("[program:x]\nsocket = tcp://127.0.0.1:1\n", "socket is no key of [program:x]"),
        ("[program:x]\ncommand = run %(ENV_HOME)s\n", "from supervisord's environment"),
        ("[program:x]\ncommand = y\n[program:x]\nuser = z\n", "is there twice"),
        ("command = y\n", "expected key = value in a section"),
    ],
)
def test_the_lint_finds(text, what):
    problems = lint(text, "file")
    assert any(what in problem for problem in problems), problems


def test_one_program_one_file_of_its_name():
    assert programs(FOLDER / "conf.d") == {path.stem for path in (FOLDER / "conf.d").glob("*.conf")}


def test_supervisord_itself_reads_them(tmp_path, monkeypatch):
    from supervisor.options import ServerOptions

    monkeypatch.setenv("CARILLON_BIND", "127.0.0.1")
    main = (FOLDER / "supervisord.conf").read_text()
    main = main.replace("/etc/carillon/supervisord", str(FOLDER)).replace("/run/carillon", str(tmp_path))
    (tmp_path / "supervisord.conf").write_text(main)
    options = ServerOptions()
    # The program of a command is looked for when it is started, not when the file is read.
    options.realize(["-c", str(tmp_path / "supervisord.conf")])
    assert {group.name for group in options.process_group_configs} == programs(FOLDER / "conf.d")
    read = {
        f"{group.name}:{process.name}" if len(group.process_configs) > 1 else process.name
        for group in options.process_group_configs
        for process in group.process_configs
    }
    assert read == processes(FOLDER / "conf.d")
    daphne = next(group for group in options.process_group_configs if group.name == "daphne")
    assert [process.name for process in daphne.process_configs] == ["daphne_0", "daphne_1"]
    assert daphne.socket_config.url == "tcp://127.0.0.1:8051"


@pytest.fixture
def listener():
    spec = util.spec_from_file_location("carillon_listener", FOLDER / "listener.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def event(name: str, payload: str) -> str:
    header = (
        f"ver:3.0 server:carillon serial:1 pool:listener poolserial:1 eventname:{name} len:{len(payload)}"
    )
    return f"{header}\n{payload}"


def test_the_listener_marks_a_program_that_is_given_up_and_unmarks_it_when_it_runs(
    listener, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(listener.handle, "__defaults__", (tmp_path / "fatal",))
    incoming = io.StringIO(
        event("PROCESS_STATE_FATAL", "processname:daphne_0 groupname:daphne from_state:BACKOFF")
    )
    outgoing = io.StringIO()
    listener.main(incoming, outgoing)
    assert outgoing.getvalue() == "READY\nRESULT 2\nOKREADY\n"
    assert [path.name for path in (tmp_path / "fatal").iterdir()] == ["daphne:daphne_0"]
    assert "FATAL: daphne:daphne_0" in capfd.readouterr().err
    listener.main(
        io.StringIO(
            event("PROCESS_STATE_RUNNING", "processname:daphne_0 groupname:daphne from_state:STARTING pid:7")
        ),
        io.StringIO(),
    )
    assert list((tmp_path / "fatal").iterdir()) == []


def test_in_a_container_the_listener_ends_supervisord(listener, tmp_path, monkeypatch):
    killed = []
    monkeypatch.setenv("CARILLON_ON_FATAL", "exit")
    monkeypatch.setattr(listener.os, "kill", lambda pid, number: killed.append((pid, number)))
    listener.handle("PROCESS_STATE_FATAL", {"processname": "uwsgi", "groupname": "uwsgi"}, tmp_path / "fatal")
    assert killed == [(listener.os.getppid(), listener.signal.SIGTERM)]


def test_the_listener_needs_nothing_but_the_standard_library():
    import ast

    tree = ast.parse((FOLDER / "listener.py").read_text())
    names = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= set(sys.stdlib_module_names)

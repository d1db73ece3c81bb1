"""What a project declares: read from one file, and refused in one line that helps."""

import pytest

from carillon.process import declared
from carillon.process.declared import Declared


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("websocket_prefixes = ", "is not TOML: "),
        ('websocket_prefix = ["/ws/"]', "websocket_prefix: no such entry (there is websocket_prefixes"),
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

"""The AsyncAPI document in front of the official parser, from npm by its lock."""

import json
import shutil
import subprocess

import pytest

from carillon.events.families import registry
from carillon.sockets import asyncapi
from tests.packages import suites

HERE = suites.HERE / "asyncapi"
SECONDS = 240


@pytest.fixture(scope="module")
def validator(tmp_path_factory):
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    folder = tmp_path_factory.mktemp("asyncapi")
    for path in HERE.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=SECONDS
    )
    return folder


def validate(folder, document):
    done = subprocess.run(
        ["node", "validate.js"], cwd=folder, input=json.dumps(document), capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_the_official_parser_has_no_complaint(validator):
    document = asyncapi.document(registry.all(), "0.1.0", "carillon.example.org", "/websocket/", tls=True)
    assert validate(validator, document) == (0, "")
    del document["channels"]["websocket"]["messages"]["subscribed"]
    code, said = validate(validator, document)
    assert code == 1
    assert "subscribed" in said

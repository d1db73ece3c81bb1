from __future__ import annotations

import ssl
import urllib.request
from pathlib import Path

import pytest

from tests.production.conftest import Machine, wait_for

NAME = "carillon-prod-single"


@pytest.fixture(scope="session")
def machine() -> Machine:
    return Machine(NAME)


@pytest.fixture(scope="session")
def secrets_dir() -> Path:
    import os

    return Path(os.environ["CARILLON_SECRETS_DIR"])


def get(machine: Machine, path: str, timeout: float = 5) -> int:
    """Status of an HTTPS request from outside; OSError when there is no answer."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(f"https://{machine.address}{path}", headers={"Host": "chimes.test"})
    try:
        return urllib.request.urlopen(request, timeout=timeout, context=context).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def healthy(machine: Machine):
    """A function that waits until the whole of it answers: nginx, uwsgi, database, broker, and each program."""

    def wait(seconds: float = 90) -> None:
        wait_for(lambda: get(machine, "/api/v2/health/") == 200, seconds, "/api/v2/health/ answers 200", machine.logs)
        for process in ("uwsgi", "daphne", "runworker"):
            wait_for(
                lambda process=process: machine.host.run(f"runuser -u carillon -- carillon probe {process}").rc == 0,
                seconds, f"carillon probe {process}", machine.logs,
            )

    return wait

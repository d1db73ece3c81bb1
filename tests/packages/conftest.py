"""A broker for these tests, and the layer's package alone, as an installed one would be."""

import subprocess

import pytest

from tests.integration.asgi_amqp.broker import Broker
from tests.packages.distribution import PACKAGE

collect_ignore = ["beside"]  # belongs into the packages that it is put beside


@pytest.fixture(scope="session")
def broker():
    if subprocess.run(["docker", "version"], capture_output=True).returncode:
        pytest.skip("needs Docker")
    Broker.remove_leftovers()
    with Broker() as broker:
        yield broker
    Broker.remove_leftovers()


@pytest.fixture(scope="session")
def layer(tmp_path_factory):
    """A folder with asgi_amqp and nothing else of this checkout, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("layer")
    (folder / "asgi_amqp").symlink_to(PACKAGE)
    return folder

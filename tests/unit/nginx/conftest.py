import pytest

from tests.unit.nginx import running, stubs, tree


@pytest.fixture(scope="module")
def upstreams():
    """The addresses of a stub for uwsgi and one for daphne."""
    with stubs.serving(stubs.Uwsgi) as uwsgi, stubs.serving(stubs.Daphne) as daphne:
        yield {"uwsgi": [f"127.0.0.1:{uwsgi}"], "daphne": [f"127.0.0.1:{daphne}"], "resolver": None}


@pytest.fixture(scope="module")
def development(tmp_path_factory, upstreams):
    with running.nginx(
        tmp_path_factory.mktemp("nginx") / "etc", tree.values("development") | upstreams
    ) as server:
        yield server


@pytest.fixture(scope="module")
def production(tmp_path_factory, upstreams):
    with running.nginx(
        tmp_path_factory.mktemp("nginx") / "etc", tree.values("production") | upstreams
    ) as server:
        yield server

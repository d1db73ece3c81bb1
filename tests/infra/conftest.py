import pytest

from tests.infra.stack import SERVICES, Stack, wait


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "infra":
            item.add_marker(pytest.mark.stack)


@pytest.fixture(scope="session")
def stack():
    found = Stack.from_environment()
    if found is None:
        pytest.skip(
            "no running stack is named (CARILLON_STACK_ENV, CARILLON_STACK_PROJECT): `make test` starts one"
        )
    for service in SERVICES:
        wait(f"{service} is healthy", lambda service=service: found.healthy(service), 90)
    return found

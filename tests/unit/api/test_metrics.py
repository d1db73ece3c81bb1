"""Who may read the metrics, what the answer is, and what a request counts."""

from __future__ import annotations

import pytest
from django.db import OperationalError
from prometheus_client import CollectorRegistry, Counter
from rest_framework.test import APIClient

from carillon.accounts.models import ApiToken
from carillon.metrics import names
from carillon.metrics.shared import Writer

URL = "/api/v2/metrics/"


@pytest.fixture
def written(tmp_path, settings):
    """A directory in which a runworker has counted to three."""
    registry = CollectorRegistry()
    Counter("carillon_calls", "Calls", registry=registry).inc(3)
    writer = Writer(tmp_path, "runworker", registry)
    writer.once()
    settings.CARILLON = {**settings.CARILLON, "METRICS_DIRECTORY": tmp_path}
    yield tmp_path
    writer._leave()


def test_a_token_with_the_scope_reads_what_another_process_counted(people, written):
    answer = people.client(people.ann, scope="metrics").get(URL, HTTP_ACCEPT="text/plain;version=0.0.4")
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain")
    assert 'carillon_calls_total{process="runworker",slot="0"} 3.0' in answer.content.decode()


def test_openmetrics(people, written):
    accept = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"
    answer = people.client(people.ann, scope="metrics").get(URL, HTTP_ACCEPT=accept)
    assert answer["Content-Type"].startswith("application/openmetrics-text")
    assert answer.content.endswith(b"# EOF\n")


@pytest.mark.parametrize("scope", ["read", "read write publish"])
def test_another_token_does_not(people, written, scope):
    answer = people.client(people.root, scope=scope).get(URL)
    assert answer.status_code == 403
    assert "scope metrics" in answer.json()["detail"]


def test_nor_does_anybody(people, written):
    assert APIClient().get(URL).status_code == 401
    user = APIClient()
    user.force_login(people.ann)
    assert user.get(URL).status_code == 403


def test_an_admin_s_session_does(people, written):
    admin = APIClient()
    admin.force_login(people.root)
    assert admin.get(URL).status_code == 200


@pytest.mark.parametrize(
    ("address", "status"), [("10.1.2.3", 200), ("fd00::5", 200), ("10.2.0.1", 401), ("", 401)]
)
def test_an_address_of_the_list_needs_no_token(people, written, settings, address, status):
    settings.CARILLON = {**settings.CARILLON, "METRICS_ADDRESSES": ["10.1.0.0/16", "fd00::/8"]}
    assert APIClient().get(URL, REMOTE_ADDR=address).status_code == status
    # What the client claims is not asked.
    assert APIClient().get(URL, REMOTE_ADDR="192.0.2.1", HTTP_X_FORWARDED_FOR="10.1.2.3").status_code == 401


def test_such_a_scraper_needs_no_database(people, written, settings, monkeypatch):
    settings.CARILLON = {**settings.CARILLON, "METRICS_ADDRESSES": ["10.1.0.0/16"]}

    def away(*_):
        raise OperationalError("away")

    monkeypatch.setattr(ApiToken, "find", away)
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION="Bearer of-another-time")
    assert client.get(URL, REMOTE_ADDR="10.1.2.3").status_code == 200


def test_what_cannot_be_read_is_said(people, settings, tmp_path, caplog):
    client = people.client(people.ann, scope="metrics")
    assert "none" in client.get(URL).json()["detail"]
    settings.CARILLON = {**settings.CARILLON, "METRICS_DIRECTORY": tmp_path / "gone"}
    answer = client.get(URL)
    assert (answer.status_code, "log of uwsgi" in answer.json()["detail"]) == (503, True)
    assert f"The metrics in {tmp_path / 'gone'} cannot be read" in caplog.text


def test_the_scope_is_an_admin_s_to_give(people):
    for user, status in ((people.ann, 400), (people.root, 201)):
        client = APIClient()
        client.force_login(user)
        answer = client.post("/api/v2/tokens/", {"scope": "metrics"}, format="json")
        assert answer.status_code == status, answer.content


def test_who_is_no_admin_any_more_gives_it_no_further(people):
    client = people.client(people.root, scope="read write metrics")
    type(people.root).objects.update(is_superuser=False)
    assert client.post("/api/v2/tokens/", {"scope": "metrics"}, format="json").status_code == 400


def test_requests_are_counted_by_route_and_never_by_path(people):
    def counted(*labels) -> float:
        return names.HTTP_REQUESTS.labels(*labels)._value.get()

    before = counted("token-detail", "GET", "404"), counted("none", "GET", "404")
    series = len(names.HTTP_REQUESTS._metrics)
    client = people.client(people.ann)
    for number in range(5):
        client.get(f"/api/v2/tokens/{10_000 + number}/")
        client.get(f"/nonsense/{number}")
        client.generic(f"X{number}", "/api/v2/ping/")
    assert counted("token-detail", "GET", "404") == before[0] + 5
    assert counted("none", "GET", "404") == before[1] + 5
    assert len(names.HTTP_REQUESTS._metrics) <= series + 1  # the unheard-of methods, together

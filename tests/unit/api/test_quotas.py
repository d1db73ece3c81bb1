"""What a user may make, and what he is told beyond it."""

import pytest
from django.db import IntegrityError, OperationalError

from carillon.api import quotas
from carillon.budgets import Meter
from carillon.metrics import names
from tower import changes
from tower.models import Job, Schedule

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def small(settings, monkeypatch):
    monkeypatch.setattr(quotas, "_meter", Meter())
    settings.CARILLON = {
        **settings.CARILLON,
        "QUOTAS": {"jobs": (2, 86_400), "events": (5, 0), "notifications": (3, 86_400), "schedules": (2, 0)},
        "TEAM_QUOTAS": {"jobs": (3, 86_400), "events": (7, 0), "schedules": (3, 0)},
        "TOKENS_PER_USER": 3,
        "SOCKETS_PER_USER": 2,
    }


def test_jobs(people):
    client = people.client(people.ann)
    answers = [client.post("/api/v2/jobs/", {"name": "x"}, format="json") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]
    assert answers[2]["Retry-After"] == "1"
    assert answers[2].json()["detail"] == (
        "Too many jobs: 2 at once and 86,400 a day are allowed. Try again in 1 seconds."
    )
    assert Job.objects.count() == 2
    assert people.client(people.ben).post("/api/v2/jobs/", {"name": "x"}, format="json").status_code == 201


def test_events(people):
    client = people.client(people.ann)
    job = client.post("/api/v2/jobs/", {"name": "x"}, format="json").json()["id"]

    def post(*counters):
        body = [{"counter": counter, "event": "x"} for counter in counters]
        return client.post(f"/api/v2/jobs/{job}/events/", body, format="json")

    assert post(1, 2, 3).status_code == 201
    refused = post(4, 5, 6)
    assert (refused.status_code, refused["Retry-After"]) == (429, "86400")
    assert post(4, 5).status_code == 201
    end = [{"event": "EOF", "final_counter": 5}]
    assert client.post(f"/api/v2/jobs/{job}/events/", end, format="json").status_code == 201


def test_schedules(people):
    client = people.client(people.ann)
    answers = [client.post("/api/v2/schedules/", {"name": "x"}, format="json") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 201, 429]


@pytest.mark.parametrize("what", ["jobs", "schedules"])
def test_a_team(people, what):
    """Two of its members make what one of them could not; what is refused costs its maker nothing."""
    body = {"name": "x", "team": people.team.pk}
    before = names.OVER_BUDGET.labels(f"quota_team_{what}")._value.get()

    def post(user, body=body):
        return people.client(user).post(f"/api/v2/{what}/", body, format="json")

    codes = [post(user).status_code for user in (people.ann, people.ann, people.ben)]
    assert codes == [201, 201, 201]
    refused = post(people.ben)
    assert refused.status_code == 429
    assert f"Too many {what} of team {people.team.pk}: 3 at once and" in refused.json()["detail"]
    assert names.OVER_BUDGET.labels(f"quota_team_{what}")._value.get() == before + 1
    assert post(people.ben, {"name": "x"}).status_code == 201, "his own, and no team's"


def test_events_of_a_team(people):
    clients = [people.client(user) for user in (people.ann, people.ben)]
    body = {"name": "x", "team": people.team.pk}
    job = clients[0].post("/api/v2/jobs/", body, format="json").json()["id"]

    def post(client, *counters):
        body = [{"counter": counter, "event": "x"} for counter in counters]
        return client.post(f"/api/v2/jobs/{job}/events/", body, format="json").status_code

    assert post(clients[0], 1, 2, 3, 4, 5) == 201
    assert post(clients[1], 6, 7, 8) == 429
    assert post(clients[1], 6, 7) == 201


def test_notifications(people, sent):
    client = people.client(people.root, scope="publish")
    body = [{"group": "jobs-summary", "payload": {}}] * 2
    codes = [client.post("/api/v2/notifications/", body, format="json").status_code for _ in range(2)]
    assert codes == [202, 429]
    assert len(sent.messages) == 2


def test_what_could_not_be_made_is_given_back(people, sent):
    client = people.client(people.root, scope="publish")
    body = [{"group": "jobs-summary", "payload": {}}] * 2
    sent.publisher.away = True
    codes = [client.post("/api/v2/notifications/", body, format="json").status_code for _ in range(3)]
    sent.publisher.away = False
    codes += [client.post("/api/v2/notifications/", body, format="json").status_code for _ in range(2)]
    assert codes == [503, 503, 503, 202, 429]


@pytest.mark.parametrize("what", ["jobs", "events"])
def test_so_is_what_the_database_did_not_take(people, monkeypatch, what):
    client = people.client(people.ann)
    client.raise_request_exception = False
    job = client.post("/api/v2/jobs/", {"name": "x"}, format="json").json()["id"]
    place, body = ("", {"name": "x"}) if what == "jobs" else (f"{job}/events/", {"counter": 1, "event": "x"})

    def post():
        return client.post(f"/api/v2/jobs/{place}", body, format="json").status_code

    def away(*arguments, **fields):
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(changes, {"jobs": "create_job", "events": "add_events"}[what], away)
        assert [post() for _ in range(6)] == [500] * 6
    assert post() == 201


def test_a_cancel_and_a_schedule_that_goes_count_as_changes(people, settings):
    settings.CARILLON = {**settings.CARILLON, "QUOTAS": {"events": (0, 0)}}
    client = people.client(people.ann)
    job = Job.objects.create(name="x", owner=people.ann)
    schedule = Schedule.objects.create(name="x", owner=people.ann)
    assert client.post(f"/api/v2/jobs/{job.pk}/cancel/").status_code == 429
    assert client.delete(f"/api/v2/schedules/{schedule.pk}/").status_code == 429


class Violation(Exception):
    sqlstate = "23503"


def test_what_refers_to_something_that_has_gone_meanwhile_is_a_conflict(people, monkeypatch):
    def create_job(**fields):
        raise IntegrityError("violates foreign key constraint") from Violation()

    monkeypatch.setattr(changes, "create_job", create_job)
    assert people.client(people.ann).post("/api/v2/jobs/", {"name": "x"}, format="json").status_code == 409


def test_tokens(people):
    client = people.client(people.ann)
    made = [client.post("/api/v2/tokens/", {}, format="json") for _ in range(3)]
    assert [answer.status_code for answer in made] == [201, 201, 429]
    assert made[2]["Retry-After"] == "1"
    assert "You have 3 tokens, and 3 are allowed" in made[2].json()["detail"]
    assert client.delete(f"/api/v2/tokens/{made[0].json()['id']}/").status_code == 204
    assert client.post("/api/v2/tokens/", {}, format="json").status_code == 201


def test_who_is_deleted_between_the_check_and_the_work_is_nobody(people):
    client = people.client(people.ann)
    client.force_authenticate(people.ann)
    type(people.ann).objects.filter(pk=people.ann.pk).delete()
    answer = client.post("/api/v2/tokens/", {}, format="json")
    assert (answer.status_code, answer.json()) == (401, {"detail": "Your account has ended meanwhile."})


def test_who_was_not_heard_of_for_longest_is_forgotten():
    meter = Meter(most=2)
    for actor in "ab":
        assert meter.of(actor, 1, 0).spend(0)
    assert not meter.of("a", 1, 0).spend(0)
    assert meter.of("c", 1, 0).spend(0)  # b is forgotten
    assert not meter.of("a", 1, 0).spend(0)
    assert meter.of("b", 1, 0).spend(0)

"""Jobs in the REST API: who sees what, what may follow what, and what is told of it."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest
from django.db import OperationalError

from carillon.accounts.models import Team
from carillon.api import pagination
from carillon.events import emit, outbox
from carillon.events.families import registry
from carillon.events.models import Outbox
from tower import changes, models, payloads, views
from tower.models import Job, JobEvent, Kind, Schedule, Status

pytestmark = pytest.mark.django_db


def told(sent) -> list[tuple[str, dict, dict | None]]:
    """What was emitted: (group, payload, audience)."""
    return [
        (message["group"], json.loads(message["text"]), message["audience"] and tuple(message["audience"]))
        for message in sent.messages
    ]


def make(people, owner="ann", **fields) -> Job:
    return Job.objects.create(owner=getattr(people, owner), name=fields.pop("name", "a job"), **fields)


class TestAccess:
    def test_one_s_own_and_one_s_team_s(self, people):
        own = make(people)
        team = make(people, "ben", team=people.team)
        make(people, "ben")
        other = make(people, "carl")
        client = people.client(people.ann)
        assert [row["id"] for row in client.get("/api/v2/jobs/").json()["results"]] == [team.pk, own.pk]
        assert client.get(f"/api/v2/jobs/{team.pk}/").status_code == 200
        for path in ("", "events/", "cancel/"):
            method = client.post if path == "cancel/" else client.get
            assert method(f"/api/v2/jobs/{other.pk}/{path}").status_code == 404
        assert (
            client.patch(f"/api/v2/jobs/{other.pk}/", {"status": "running"}, format="json").status_code == 404
        )
        assert client.post(f"/api/v2/jobs/{other.pk}/events/", [], format="json").status_code == 404
        assert people.client(people.root).get("/api/v2/jobs/").json()["count"] == 4

    def test_an_event_s_own_address(self, people):
        row = JobEvent.objects.create(job=make(people), counter=1, event="x")
        path = payloads.event_url("job", row.pk)
        assert people.client(people.ann).get(path).json()["counter"] == 1
        assert people.client(people.carl).get(path).status_code == 404
        assert people.client(people.ann).get(f"/api/v2/ad_hoc_command_events/{row.pk}/").status_code == 404

    def test_a_job_for_a_team_that_is_not_one_s_own(self, people):
        body = {"name": "x", "team": people.team.pk}
        assert people.client(people.carl).post("/api/v2/jobs/", body, format="json").status_code == 400
        assert people.client(people.ann).post("/api/v2/jobs/", body, format="json").status_code == 201

    def test_a_workflow_that_is_not_one_s_own(self, people):
        workflow = make(people, kind=Kind.WORKFLOW_JOB)
        plain = make(people)
        client = people.client(people.ann)
        assert (
            client.post(
                "/api/v2/jobs/", {"name": "x", "workflow_job": workflow.pk}, format="json"
            ).status_code
            == 201
        )
        assert (
            client.post("/api/v2/jobs/", {"name": "x", "workflow_job": plain.pk}, format="json").status_code
            == 400
        )
        other = people.client(people.carl).post(
            "/api/v2/jobs/", {"name": "x", "workflow_job": workflow.pk}, format="json"
        )
        assert other.status_code == 400
        assert "does not exist" in other.content.decode()


class TestJobs:
    def test_fields(self, people):
        client = people.client(people.ann)
        made = client.post("/api/v2/jobs/", {"name": "x", "team": people.team.pk}, format="json").json()
        assert made["type"] == made["kind"] == "job"
        assert made["status"] == "new"
        assert made["elapsed"] == 0
        assert made["event_family"] == "job_events"
        assert made["related"]["events"] == f"/api/v2/jobs/{made['id']}/events/"
        assert made["summary_fields"] == {
            "owner": {"id": people.ann.pk, "username": "ann"},
            "team": {"id": people.team.pk, "name": "ringers"},
        }
        client.patch(made["url"], {"status": "running"}, format="json")
        done = client.patch(made["url"], {"status": "failed"}, format="json").json()
        assert done["started"] <= done["finished"]
        assert done["failed"] is True

    def test_filters(self, people):
        for name, kind, status in (
            ("one", "job", "new"),
            ("two", "system_job", "failed"),
            ("Three", "job", "failed"),
        ):
            make(people, name=name, kind=kind, status=status)
        client = people.client(people.ann)

        def names(query):
            return [row["name"] for row in client.get(f"/api/v2/jobs/?{query}").json()["results"]]

        assert names("") == ["Three", "two", "one"]
        assert names("order_by=name") == ["Three", "one", "two"]
        assert names("status=failed,new&kind=job") == ["Three", "one"]
        assert names("search=THR") == ["Three"]
        assert names(f"owner={people.ben.pk}") == []
        assert names("page_size=1&page=2") == ["two"]
        make(people, "ben", name="four", team=people.team)
        make(people, name="old", created=datetime(2026, 10, 31, 23, 59, tzinfo=UTC))
        assert names("owner__username=ben") == names("team__name=ringers") == ["four"]
        assert names(f"team={people.team.pk}&owner__username=ben") == ["four"]
        assert names("owner__username=an") == names("team=0") == names("team__name=%00") == []
        assert "old" not in names("created__gte=2026-11-01")
        assert names("created__lt=2026-11-01") == names("created__lt=2026-10-31T23:59:01Z") == ["old"]
        for wrong in ("team=x", "created__gte=", "created__lt=soon", "created__gte=2026-11-31"):
            assert client.get(f"/api/v2/jobs/?{wrong}").status_code == 400, wrong
        for wrong in ("status=x", "kind=x", "owner=x", "order_by=owner__password", "page=9"):
            assert client.get(f"/api/v2/jobs/?{wrong}").status_code in (400, 404), wrong

    def test_the_list_is_a_fixed_number_of_queries(self, people, django_assert_num_queries):
        for _ in range(5):
            make(people, team=people.team)
        client = people.client(people.ann)
        client.get("/api/v2/jobs/")
        with django_assert_num_queries(5):  # the position, the token, its user, the count, the page
            client.get("/api/v2/jobs/")


class TestStatus:
    def test_a_whole_life_is_told(self, people, sent, commits):
        client = people.client(people.ann)
        with commits():
            job = client.post(
                "/api/v2/jobs/", {"name": "x", "status": "pending", "team": people.team.pk}, format="json"
            ).json()
        for status in ("waiting", "running", "running", "successful"):
            with commits():
                assert client.patch(job["url"], {"status": status}, format="json").status_code == 200
        base = {"group_name": "jobs", "unified_job_id": job["id"], "type": "job"}
        audience = (f"t{people.team.pk}", f"u{people.ann.pk}")
        finished = Job.objects.get().finished.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        assert told(sent) == [
            ("jobs-status_changed", {**base, **more}, audience)
            for more in (
                {"status": "pending"},
                {"status": "waiting", "instance_group_name": None},
                {"status": "running"},  # once: the second changed nothing
                {"status": "successful", "finished": finished},
            )
        ]

    def test_an_illegal_change(self, people, sent, commits):
        job = make(people, status="successful")
        client = people.client(people.ann)
        with commits():
            answer = client.patch(f"/api/v2/jobs/{job.pk}/", {"status": "running"}, format="json")
        assert answer.status_code == 409
        assert answer.json()["detail"] == "A job that is successful cannot become running: it has ended."
        assert client.post(f"/api/v2/jobs/{job.pk}/cancel/").status_code == 409
        assert (
            client.patch(f"/api/v2/jobs/{job.pk}/", {"status": "nonsense"}, format="json").status_code == 400
        )
        assert sent.messages == []

    def test_cancel(self, people, sent, commits):
        job = make(people, status="running")
        with commits():
            answer = people.client(people.ben).post(f"/api/v2/jobs/{job.pk}/cancel/")
            assert answer.status_code == 404
            answer = people.client(people.ann).post(f"/api/v2/jobs/{job.pk}/cancel/")
        assert (answer.status_code, answer.json()["status"]) == (202, "canceled")
        assert [payload["status"] for _, payload, _ in told(sent)] == ["canceled"]

    def test_part_of_a_workflow(self, people, sent, commits):
        workflow = make(people, kind=Kind.WORKFLOW_JOB)
        job = make(people, workflow_job=workflow)
        with commits():
            people.client(people.ann).patch(f"/api/v2/jobs/{job.pk}/", {"status": "running"}, format="json")
        (first, payload, _), (second, copy, audience) = told(sent)
        assert (first, second) == ("jobs-status_changed", f"workflow_events-{workflow.pk}")
        assert payload["workflow_job_id"] == workflow.pk
        assert payload["workflow_node_id"] == job.pk
        assert copy == {**payload, "group_name": "workflow_events", "workflow_job_template_id": None}
        assert audience is None

    def test_project_and_inventory(self, people, sent, commits):
        project = make(people, kind=Kind.PROJECT_UPDATE, resource=5)
        inventory = make(people, kind=Kind.INVENTORY_UPDATE, resource=6)
        with commits():
            for job in (project, inventory):
                people.client(people.ann).patch(
                    f"/api/v2/jobs/{job.pk}/", {"status": "running"}, format="json"
                )
        (_, about_project, _), (_, about_inventory, _), (group, payload, _) = told(sent)
        assert about_project["project_id"] == 5
        assert {key: about_inventory[key] for key in ("inventory_source_id", "inventory_id", "group_id")} == {
            "inventory_source_id": 6,
            "inventory_id": 6,
            "group_id": None,
        }
        assert group == "inventories-status_changed"
        assert payload == {"group_name": "inventories", "inventory_id": 6, "status": "running"}

    def test_who_has_committed_and_not_told_yet_is_told_of_first(self, people, sent, commits):
        """A process that is held up, or dies, between its commit and its word: another changes the job
        meanwhile. No lock may be in the way, for behind a pool of connections none outlives its transaction.
        """
        job = make(people)
        changes.set_status(job.pk, "running")
        with commits():
            changes.set_status(job.pk, "successful")
        assert [payload["status"] for _, payload, _ in told(sent)] == ["running", "successful"]

    def test_a_new_job_that_is_not_told_of_yet(self, people, sent, commits):
        job = changes.create_job(owner=people.ann, name="x", status="pending")
        with commits():
            changes.set_status(job.pk, "running")
        assert [payload["status"] for _, payload, _ in told(sent)] == ["pending", "running"]

    def test_the_broker_is_away(self, people, sent, commits, caplog):
        job = make(people)
        sent.publisher.away = True
        lost = emit.LOST._value.get()
        with commits():
            answer = people.client(people.ann).patch(
                f"/api/v2/jobs/{job.pk}/", {"status": "running"}, format="json"
            )
        assert answer.status_code == 200
        assert Job.objects.get().status == "running"
        assert emit.LOST._value.get() == lost
        assert "The outbox waits for runworker: NotificationsUnavailable" in caplog.text
        sent.publisher.away = False
        assert outbox.send_some() == 1
        assert [group for group, _, _ in told(sent)] == ["jobs-status_changed"]
        assert outbox.send_some() == 0


EVENT = {
    "counter": 1,
    "event": "runner_on_ok",
    "uuid": "u",
    "parent_uuid": "p",
    "stdout": "\x1b[32mok\x1b[0m\n",
    "start_line": 3,
    "end_line": 4,
    "event_data": {"task": "ping", "res": {"changed": True}},
    "failed": False,
    "changed": True,
    "event_level": 3,
    "play": "all",
    "role": "r",
    "task": "ping",
    "created": "2026-01-02T03:04:05.000006Z",
}


class TestEvents:
    @pytest.fixture
    def job(self, people):
        return make(people, status="running")

    @pytest.fixture
    def post(self, people, job, commits):
        client = people.client(people.ann)

        def post(body, job=job):
            with commits():
                return client.post(f"/api/v2/jobs/{job.pk}/events/", body, format="json")

        return post

    @pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.WORKFLOW_JOB])
    def test_the_payload(self, people, post, sent, kind):
        job = make(people, kind=kind)
        assert post(EVENT, job).json() == {"created": 1, "duplicates": 0}
        row = JobEvent.objects.get()
        url = f"/api/v2/{kind}_events/{row.pk}/" if kind in ("job", "ad_hoc_command") else ""
        ((group, payload, audience),) = told(sent)
        assert group == f"{kind}_events-{job.pk}"
        assert audience is None
        created = "2026-01-02T03:04:05.000006+00:00"
        assert payload == {
            **EVENT,
            "id": row.pk,
            kind.value: job.pk,
            "group_name": f"{kind}_events",
            "url": url,
            "created": created,
            "modified": created,
        }
        assert list(payload)[:6] == ["id", kind.value, "created", "modified", "group_name", "url"]

    def test_hundreds_in_one_batch_and_few_queries(
        self, people, job, sent, commits, django_assert_max_num_queries
    ):
        client = people.client(people.ann)
        body = [{"counter": number, "event": "verbose"} for number in range(1, 501)]
        with django_assert_max_num_queries(20), commits():
            answer = client.post(f"/api/v2/jobs/{job.pk}/events/", body, format="json")
        assert (answer.status_code, answer.json()) == (201, {"created": 500, "duplicates": 0})
        (batch,) = sent.publisher.batches
        assert [json.loads(message["text"])["counter"] for _, message in batch] == list(range(1, 501))

    def test_a_retry_is_safe(self, post, sent, job):
        post([{"counter": 1, "event": "a"}, {"counter": 2, "event": "b"}])
        answer = post(
            [{"counter": 2, "event": "changed"}, {"counter": 3, "event": "c"}, {"counter": 3, "event": "d"}]
        )
        assert answer.json() == {"created": 1, "duplicates": 2}
        assert [(row.counter, row.event) for row in job.events.order_by("counter")] == [
            (1, "a"),
            (2, "b"),
            (3, "c"),
        ]
        assert [payload["counter"] for _, payload, _ in told(sent)] == [1, 2, 3]

    def test_the_end(self, people, post, sent, job):
        assert post([{"counter": 1, "event": "a"}, {"event": "EOF", "final_counter": 1}]).status_code == 201
        assert post({"event": "EOF", "final_counter": 1}).json() == {"created": 0, "duplicates": 0}
        end = (
            "jobs-summary",
            {"group_name": "jobs", "unified_job_id": job.pk, "final_counter": 1},
            (f"u{people.ann.pk}",),
        )
        assert told(sent)[1:] == [end, end]
        assert job.events.count() == 1

    def test_reading(self, people, post, job):
        post([{"counter": number, "event": "even" if number % 2 == 0 else "odd"} for number in range(1, 8)])
        client = people.client(people.ann)

        def counters(query):
            return [
                row["counter"]
                for row in client.get(f"/api/v2/jobs/{job.pk}/events/?{query}").json()["results"]
            ]

        assert counters("") == [1, 2, 3, 4, 5, 6, 7]
        assert counters("counter__gt=2&counter__lte=5") == [3, 4, 5]
        assert counters("counter__gte=2&counter__lt=4") == [2, 3]
        assert counters("event=even,other") == [2, 4, 6]
        assert counters("counter__gt=2&page_size=2") == [3, 4]
        assert counters("order_by=-counter&page_size=2&counter__lt=7") == [6, 5]
        for wrong in ("counter__gt=x", "order_by=id"):
            assert client.get(f"/api/v2/jobs/{job.pk}/events/?{wrong}").status_code == 400

    def test_uncounted_pages_have_no_numbers(self, people):
        answer = people.client(people.ann).get(f"/api/v2/jobs/{make(people).pk}/events/?count=no&page=2")
        assert (answer.status_code, "`next`" in answer.json()["page"][0]) == (400, True)

    def test_a_page_that_is_not_counted(self, people, post, job, django_assert_num_queries):
        post([{"counter": number, "event": "x"} for number in range(1, 8)])
        client = people.client(people.ann)
        client.get(f"/api/v2/jobs/{job.pk}/")
        url, pages = f"/api/v2/jobs/{job.pk}/events/?count=no&page_size=3&order_by=-counter", []
        while url:
            with django_assert_num_queries(6):  # the position, the token, its user, the job, its events twice
                answer = client.get(url).json()
            assert (answer["count"], answer["previous"]) == (None, None)
            pages.append([row["counter"] for row in answer["results"]])
            url = answer["next"]
        assert pages == [[7, 6, 5], [4, 3, 2], [1]]

    def test_from_a_line_on(self, people, post, job):
        post([{"counter": n, "event": "x", "start_line": 2 * n - 2, "end_line": 2 * n} for n in range(1, 8)])
        answer = people.client(people.ann).get(f"/api/v2/jobs/{job.pk}/events/?end_line__gte=9&page_size=1")
        assert [row["counter"] for row in answer.json()["results"]] == [5]

    def test_by_host_result_and_text(self, people, post, job, monkeypatch):
        stories = [
            {"event": "playbook_on_task_start", "stdout": "TASK [Copy] 100%"},
            {
                "event": "runner_on_ok",
                "event_data": {"host": "web1"},
                "stdout": "\x1b[0;32mok: [web1]\x1b[0m",
            },
            {"event": "runner_on_ok", "event_data": {"host": "web2"}, "changed": True, "stdout": "CHANGED"},
            {"event": "runner_item_on_failed", "event_data": {"host": "web1"}, "stdout": "copy\nfailed"},
            {"event": "runner_on_ok", "failed": True},  # what the flag says
            {"event": "runner_on_unreachable", "event_data": {"host": "web2"}},
            {"event": "runner_on_skipped"},
            {"event": "verbose", "stdout": "1000"},
        ]
        post([{"counter": number, **story} for number, story in enumerate(stories, 1)])
        client = people.client(people.ann)

        def hits(query):
            return client.get(f"/api/v2/jobs/{job.pk}/hits/?{query}").json()

        def counters(query):
            return hits(query)["counters"]

        expected = {
            "heading": [1],
            "ok": [2],
            "changed": [3],
            "failed": [4, 5, 6],
            "skipped": [7],
            "other": [8],
        }
        assert {result: counters(f"result={result}") for result in expected} == expected
        assert counters("result=ok,skipped") == [2, 7]
        assert counters("host=web1") == [1, 2, 4]
        assert counters("host=web1&result=failed") == [4]
        assert counters("search=COPY") == [1, 4]
        assert counters("search=0%25") == [1]
        assert counters("search=copy&host=web2") == [1]
        assert hits("search=nowhere") == {"count": 0, "offset": 0, "counters": []}
        monkeypatch.setattr("tower.views.MOST_HITS", 3)
        assert hits("") == {"count": 8, "offset": 0, "counters": [1, 2, 3]}
        assert hits("offset=6") == {"count": 8, "offset": 6, "counters": [7, 8]}
        assert hits("offset=9") == {"count": 8, "offset": 9, "counters": []}
        assert client.get(f"/api/v2/jobs/{job.pk}/hits/?result=fine").status_code == 400
        assert client.get(f"/api/v2/jobs/{job.pk}/events/?search=copy").json()["count"] == 2
        assert people.client(people.carl).get(f"/api/v2/jobs/{job.pk}/hits/").status_code == 404

    def test_the_summary(self, people, post, job, django_assert_num_queries):
        stories = [
            {"event": "playbook_on_task_start", "stdout": "\r\nTASK [x]", "start_line": 0, "end_line": 2},
            {"event": "runner_on_ok", "stdout": "ok", "changed": True},  # without numbers: as its text
            {"event": "runner_on_ok", "stdout": "ok\n"},
            {"event": "runner_on_failed", "event_data": {"ignore_errors": True}, "stdout": "a\nb"},
            {"event": "runner_on_failed", "event_data": {"ignore_errors": False}},
            {"event": "runner_on_async_failed"},
            {"event": "runner_item_on_failed"},
            {"event": "runner_on_unreachable", "start_line": 6, "end_line": 7},
            {"event": "runner_on_skipped"},
        ]
        post([{"counter": number, **story} for number, story in enumerate(stories, 1)])
        client = people.client(people.ann)
        client.get(f"/api/v2/jobs/{job.pk}/")
        with django_assert_num_queries(5):  # the position, the token, its user, the job, the summary
            whole = client.get(f"/api/v2/jobs/{job.pk}/summary/").json()
        assert whole == {
            "events": 9,
            "lines": 7,
            "tasks": 1,
            "ok": 3,
            "changed": 1,
            "failed": 2,
            "unreachable": 1,
            "skipped": 1,
            "ignored": 1,
        }
        start = client.get(f"/api/v2/jobs/{job.pk}/summary/?counter__lt=3").json()
        assert (start["events"], start["lines"], start["ok"], start["failed"]) == (2, 3, 1, 0)
        nothing = client.get(f"/api/v2/jobs/{job.pk}/summary/?counter__lt=1").json()
        assert set(nothing.values()) == {0}
        assert people.client(people.carl).get(f"/api/v2/jobs/{job.pk}/summary/").status_code == 404

    @pytest.mark.parametrize(
        "body",
        [
            {},
            "text",
            ["text"],
            [[]],
            {"counter": 0, "event": "x"},
            {"counter": 2**31, "event": "x"},
            {"counter": "x", "event": "x"},
            {"counter": 1, "event": ""},
            {"counter": 1, "event": "x" * 101},
            {"counter": 1, "event": "x", "event_data": [1]},
            {"counter": 1, "event": "x", "created": "yesterday"},
            {"event": "EOF"},
            {"event": "EOF", "final_counter": -1},
            [{"counter": number, "event": "x"} for number in range(1, 1002)],
        ],
    )
    def test_what_is_no_event_changes_nothing(self, post, sent, body):
        assert post(body).status_code == 400
        assert JobEvent.objects.count() == 0
        assert sent.messages == []

    def test_characters_that_cannot_be_stored(self, people, job, commits):
        client = people.client(people.ann)
        body = (
            '{"counter": 1, "event": "x", "stdout": "a\\u0000b\\ud800",'
            ' "event_data": {"\\u0000": ["\\udfff"]}}'
        )
        with commits():
            answer = client.post(f"/api/v2/jobs/{job.pk}/events/", body, content_type="application/json")
        assert answer.status_code == 201, answer.content
        row = JobEvent.objects.get()
        assert row.stdout == "a\ufffdb\ufffd"
        assert row.event_data == {"\ufffd": ["\ufffd"]}

    def test_a_frame_is_bounded(self, people, post, sent, job):
        post({"counter": 1, "event": "x", "stdout": "x" * 200_000, "event_data": {"big": "y" * 200_000}})
        ((_, payload, _),) = told(sent)
        assert payload["stdout"] == "x" * payloads.STDOUT_LIMIT + "…"
        assert payload["event_data"] == {"truncated": True}
        row = people.client(people.ann).get(f"/api/v2/jobs/{job.pk}/events/").json()["results"][0]
        assert len(row["stdout"]) == len(row["event_data"]["big"]) == 200_000

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("patch", "", {"status": "running"}),
            ("post", "cancel/", None),
            ("post", "events/", [EVENT]),
        ],
    )
    def test_a_job_that_is_pruned_meanwhile_is_not_found(
        self, people, job, sent, commits, monkeypatch, method, path, body
    ):
        read = views.JobViewSet.get_object

        def read_and_then(view):
            found = read(view)
            Job.objects.filter(pk=found.pk).delete()
            return found

        monkeypatch.setattr(views.JobViewSet, "get_object", read_and_then)
        client = people.client(people.ann)
        with commits():
            answer = getattr(client, method)(f"/api/v2/jobs/{job.pk}/{path}", body, format="json")
        assert answer.status_code == 404
        assert [group for group, _, _ in told(sent) if group != "!access"] == []

    def test_a_workflow_has_none(self, people, post):
        assert post(EVENT, make(people, kind=Kind.WORKFLOW_JOB)).status_code == 400


class TestSchedules:
    def test_life(self, people, sent, commits):
        client = people.client(people.ann)
        with commits():
            made = client.post(
                "/api/v2/schedules/",
                {"name": "nightly", "rrule": "FREQ=DAILY", "team": people.team.pk},
                format="json",
            ).json()
        with commits():
            client.patch(made["url"], {"enabled": False, "next_run": "2026-12-24T18:00:00Z"}, format="json")
        seen = people.client(people.ben).get(made["url"]).json()
        assert seen["enabled"] is False
        assert seen["summary_fields"] == {
            "owner": {"id": people.ann.pk, "username": people.ann.username},
            "team": {"id": people.team.pk, "name": people.team.name},
        }
        assert people.client(people.carl).get(made["url"]).status_code == 404
        with commits():
            assert client.delete(made["url"]).status_code == 204
        audience = (f"t{people.team.pk}", f"u{people.ann.pk}")
        assert (
            told(sent) == [("schedules-changed", {"id": made["id"], "group_name": "schedules"}, audience)] * 3
        )

    def test_one_that_goes_with_its_owner_is_told_of(self, people, sent, commits):
        schedule = Schedule.objects.create(owner=people.ann, name="nightly", team=people.team)
        ids = schedule.pk, people.ann.pk
        with commits():
            people.ann.delete()
        told_of = [each for each in told(sent) if each[0] == "schedules-changed"]
        body = {"id": ids[0], "group_name": "schedules"}
        assert told_of == [("schedules-changed", body, (f"t{people.team.pk}", f"u{ids[1]}"))]

    def test_one_that_moves_is_told_of_to_those_who_see_it_no_more(self, people, sent, commits):
        other = Team.objects.create(name="tellers")
        other.members.add(people.ann)
        schedule = Schedule.objects.create(owner=people.ann, name="nightly", team=people.team)
        client, url = people.client(people.ann), f"/api/v2/schedules/{schedule.pk}/"
        Outbox.objects.all().delete()
        for team in (other.pk, None):
            with commits():
                assert client.patch(url, {"team": team}, format="json").status_code == 200
        assert people.client(people.ben).get(url).status_code == 404
        ann, here, there = f"u{people.ann.pk}", f"t{people.team.pk}", f"t{other.pk}"
        assert [set(audience) for _, _, audience in told(sent)] == [{ann, here, there}, {ann, there}]

    def test_a_process_that_ends_right_after_the_commit_costs_no_word(self, people, monkeypatch):
        monkeypatch.setattr(outbox, "send_now", lambda: None)
        client = people.client(people.ann)
        made = client.post("/api/v2/schedules/", {"name": "x", "rrule": "FREQ=DAILY"}, format="json").json()
        client.patch(made["url"], {"enabled": False}, format="json")
        client.delete(made["url"])
        assert outbox.waiting()[0] == 3

    @pytest.fixture
    def meanwhile(self, monkeypatch):
        """Something that another process does to a schedule while this one has just read it."""

        def do(change) -> None:
            read = views.ScheduleViewSet.get_object

            def read_and_then(view):
                found = read(view)
                change(Schedule.objects.filter(pk=found.pk))
                return found

            monkeypatch.setattr(views.ScheduleViewSet, "get_object", read_and_then)

        return do

    def test_one_that_is_deleted_while_it_is_changed_stays_deleted(self, people, sent, commits, meanwhile):
        schedule = Schedule.objects.create(owner=people.ann, name="nightly", rrule="FREQ=DAILY")
        meanwhile(lambda row: row.delete())
        with commits():
            answer = people.client(people.ann).patch(
                f"/api/v2/schedules/{schedule.pk}/", {"enabled": False}, format="json"
            )
        assert answer.status_code == 404
        assert not Schedule.objects.exists()
        assert len(told(sent)) == 1, "its end, and no change"

    def test_two_who_delete_one_at_once_tell_of_it_once(self, people, sent, commits, meanwhile):
        schedule = Schedule.objects.create(owner=people.ann, name="nightly", rrule="FREQ=DAILY")
        meanwhile(lambda row: changes.delete_schedule(schedule.pk))
        with commits():
            assert people.client(people.ann).delete(f"/api/v2/schedules/{schedule.pk}/").status_code == 404
        assert len(told(sent)) == 1

    def test_two_who_change_different_things_of_one_at_once(self, people, meanwhile):
        schedule = Schedule.objects.create(owner=people.ann, name="nightly", rrule="FREQ=DAILY")
        meanwhile(lambda row: row.update(name="weekly"))
        answer = people.client(people.ann).patch(
            f"/api/v2/schedules/{schedule.pk}/", {"enabled": False}, format="json"
        )
        assert (answer.json()["name"], answer.json()["enabled"]) == ("weekly", False)
        schedule.refresh_from_db()
        assert (schedule.name, schedule.enabled) == ("weekly", False)


def test_what_each_of_many_may_see_is_what_each_alone_may_see(people, django_assert_num_queries):
    everybody = [people.ann, people.ben, people.carl, people.root]
    for owner in (people.ann, people.carl):
        for team in (people.team, None):
            Job.objects.create(name="x", owner=owner, team=team)
    alone = {user.pk: set(Job.objects.visible_to(user).values_list("pk", flat=True)) for user in everybody}
    assert sorted(len(seen) for seen in alone.values()) == [2, 2, 3, 4]
    with django_assert_num_queries(2):
        assert Job.objects.all().visible_to_each(everybody) == alone


class TestLargePages:
    """A page is cut at PAGE_BYTES, and `next` goes on behind it."""

    @pytest.fixture(autouse=True)
    def small(self, settings):
        settings.CARILLON = {**settings.CARILLON, "PAGE_BYTES": 1000, "PAGE_BYTES_AT_ONCE": 1500}

    @pytest.fixture
    def job(self, people):
        job = make(people)
        JobEvent.objects.bulk_create(
            JobEvent(job=job, counter=counter, event="x" if counter % 2 else "y", stdout="x" * 300)
            for counter in range(1, 11)
        )
        return job

    @staticmethod
    def pages(client, path):
        while path:
            answer = client.get(path)
            assert answer.status_code == 200
            yield [row["counter"] for row in answer.json()["results"]]
            path = answer.json()["next"]

    def test_by_bytes(self, people, job):
        client = people.client(people.ann)
        path = f"/api/v2/jobs/{job.pk}/events/?page_size=200"
        assert list(self.pages(client, path)) == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10]]

    def test_from_the_end(self, people, job):
        path = f"/api/v2/jobs/{job.pk}/events/?page_size=200&order_by=-counter"
        assert list(self.pages(people.client(people.ann), path)) == [[10, 9, 8], [7, 6, 5], [4, 3, 2], [1]]

    def test_filters_stay_and_pages_end(self, people, job):
        client = people.client(people.ann)
        path = f"/api/v2/jobs/{job.pk}/events/?page_size=2&page=2&event=x&counter__gt=1"
        assert list(self.pages(client, path)) == [[7, 9]]
        path = f"/api/v2/jobs/{job.pk}/events/?event=x&page_size=4&page=1"
        assert list(self.pages(client, path)) == [[1, 3, 5], [7, 9]]

    def test_data_counts_too_and_one_alone_may_be_larger(self, people, job):
        JobEvent.objects.filter(counter=2).update(event_data={"x": "y" * 2000})
        client = people.client(people.ann)
        path = f"/api/v2/jobs/{job.pk}/events/"
        assert list(self.pages(client, path)) == [[1], [2], [3, 4, 5], [6, 7, 8], [9, 10]]

    def test_what_is_made_for_one_user_at_a_time(self, people, job):
        client, path = people.client(people.ann), f"/api/v2/jobs/{job.pk}/events/"
        ticket = pagination._in_hand.take(people.ann.pk, 1000, time.monotonic())
        refused = client.get(path)
        assert (refused.status_code, refused["Retry-After"]) == (429, "1")
        assert "1500 bytes of pages" in refused.json()["detail"]
        assert people.client(people.root).get(path).status_code == 200
        pagination._in_hand.give(people.ann.pk, ticket)
        for _ in range(3):  # each gives back what it took
            assert client.get(path).status_code == 200

    def test_an_error_gives_back_too(self, people, job, monkeypatch):
        def away(self, ids):
            raise OperationalError("away")

        monkeypatch.setattr("django.db.models.query.QuerySet.in_bulk", away)
        client = people.client(people.ann)
        client.raise_request_exception = False
        assert client.get(f"/api/v2/jobs/{job.pk}/events/").status_code == 500
        assert not pagination._in_hand._held

    def test_data_that_is_too_long(self, people, job, settings):
        settings.CARILLON = {**settings.CARILLON, "EVENT_DATA_CHARACTERS": 20}
        for size, status in ((11, 201), (12, 400)):
            body = {"counter": 20 + size, "event": "x", "event_data": {"x": "y" * size}}
            answer = people.client(people.ann).post(f"/api/v2/jobs/{job.pk}/events/", body, format="json")
            assert answer.status_code == status, answer.json()

    @pytest.mark.parametrize("number", ["1e308", "-1e308", "1e-308", "5e-324"])
    def test_numbers_count_as_the_database_writes_them(self, people, job, settings, number):
        """With all their zeros: of 196 KB it made 10 MB in every answer."""
        settings.CARILLON = {**settings.CARILLON, "EVENT_DATA_CHARACTERS": 1000}
        for count, status in ((2, 201), (4, 400)):
            data = ",".join([f'{{"a": "1e308", "b": [0.5, 7, {number}]}}'] * count)
            body = f'{{"counter": {count}, "event": "x", "event_data": {{"x": [{data}]}}}}'
            answer = people.client(people.ann).post(
                f"/api/v2/jobs/{job.pk}/events/", body, content_type="application/json"
            )
            assert answer.status_code == status, answer.json()


def test_what_is_told_is_as_its_family_says(people):
    schedule = Schedule.objects.create(owner=people.ann, name="nightly", rrule="FREQ=DAILY")
    told_of = [payloads.schedule_changed(schedule)]
    for kind in Kind:
        workflow = make(people, kind=Kind.WORKFLOW_JOB)
        for status in Status.values:
            job = make(people, kind=kind, status=status, resource=7, workflow_job=workflow)
            told_of += payloads.status_changed(job)
        told_of.append(payloads.summary(job, 3))
        if kind != Kind.WORKFLOW_JOB:
            row = JobEvent.objects.create(job=job, counter=1, event="runner_on_ok", stdout="ok")
            told_of.append(payloads.event(job, row))
    families = set()
    for each in told_of:
        family, _ = registry.parse_group(each.group)
        families.add(family.name)
        jsonschema.validate(each.payload, family.payload)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**each.payload, "group_name": "another"}, family.payload)
    assert families >= {"jobs", "schedules", "inventories", *(kind.event_family for kind in Kind)}


def test_the_page_lets_live_events_through_as_the_api_finds_them():
    """What either side says of an event's result, and of how many hits an answer has."""
    scripts = Path(views.__file__).parent / "static/tower"
    (tones,) = re.findall(r"const TONES = \{(.*?)\n\};", (scripts / "output.js").read_text(), re.DOTALL)
    found = {name: re.findall(r'"(\w+)"', names) for name, names in re.findall(r"(\w+): \[(.*?)\]", tones)}
    assert found == models.EVENTS_OF
    (most,) = re.findall(r"const HITS = ([0-9_]+);", (scripts / "views/job.js").read_text())
    assert int(most) == views.MOST_HITS

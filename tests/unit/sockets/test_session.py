"""The websocket: who gets in, what is subscribed, what is heard, and how it ends."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import DatabaseError, InterfaceError
from django.test import Client as HttpClient
from django.utils import timezone

from carillon import logs
from carillon.accounts.models import ApiToken
from carillon.events import Family, aemit_channel_notification
from carillon.fanout.station import Station, StreamUnavailable, station
from carillon.sockets import authentication, protocol, questions, session
from carillon.sockets.asgi_outlet import AsgiOutlet
from carillon.sockets.consumers import ProjectConsumer
from carillon.sockets.models import Connection
from carillon.sockets.presence import Presence
from carillon.sockets.sockets import Sockets, sockets
from tests.unit.support.sockets import Client, pump
from tower import changes
from tower.models import Job

# Sockets use the database from a thread of their own: what a test makes must be committed for them to see it.
pytestmark = pytest.mark.django_db(transaction=True)

STATUS = {"group_name": "jobs", "unified_job_id": 1, "status": "running"}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """No announcement of who is connected between the frames of a test that is not about it.

    And no long goodbye to clients that a test has left open.
    """
    monkeypatch.setattr("carillon.sockets.presence.Presence._announce", lambda self: None)
    monkeypatch.setattr("carillon.sockets.presence.GATHER", 0)
    monkeypatch.setattr("carillon.sockets.session.GOODBYE_TIMEOUT", 0.1)


async def test_a_client_that_leaves_before_its_turn_is_not_looked_at(people, monkeypatch):
    made, asked = [], []

    class Kept(AsgiOutlet):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    class Logins:
        async def ask(self, handshake):
            asked.append(handshake)

    monkeypatch.setattr(session, "AsgiOutlet", Kept)
    here = sockets()
    monkeypatch.setattr(here, "_logins", Logins())
    monkeypatch.setattr(here, "_turns", asyncio.Semaphore(1))
    await here._turns.acquire()
    client = Client(token="any")
    await client.raw.connect()
    made[0].end()  # as the server does when the connection is gone
    here._turns.release()
    await asyncio.wait_for(client.raw.future, 5)
    assert asked == []


def session_of(user) -> tuple[str, str]:
    """Log in as a browser does: (session id, csrftoken)."""
    browser = HttpClient(enforce_csrf_checks=True)
    browser.get("/api/")
    token = browser.cookies["csrftoken"].value
    answer = browser.post(
        "/api/login/",
        {"username": user.username, "password": f"{user.username}-password"},
        headers={"X-CSRFToken": token},
    )
    assert answer.status_code == 302
    return browser.cookies["__Host-awx_sessionid"].value, browser.cookies["csrftoken"].value


class TestWhoGetsIn:
    async def accepted(self, user, **options):
        client = Client(**options)
        assert await client.open() == {"accept": True, "user": user.pk}
        await client.leave()

    async def refused(self, code, reason, **options):
        client = Client(**options)
        frame = await client.open()
        assert frame.pop("error").startswith(reason)
        assert frame == {"accept": False, "user": None, "close": True}
        assert await client.close_code() == code

    @pytest.mark.parametrize("path", ["/websocket", "/websocket/"])
    async def test_token_in_the_url(self, people, path):
        token = await database_sync_to_async(people.token)(people.ann)
        await self.accepted(people.ann, path=f"{path}?token={token}")

    async def test_the_last_token_in_the_url_wins(self, people):
        ann, ben = [await database_sync_to_async(people.token)(user) for user in (people.ann, people.ben)]
        await self.accepted(people.ben, path=f"/websocket/?token={ann}&x=1&token={ben}")
        await self.refused(4401, "invalid auth token", path=f"/websocket/?token={ann}&token=nonsense")

    async def test_authorization_header(self, people):
        token = await database_sync_to_async(people.token)(people.ann)
        await self.accepted(people.ann, authorization=f"Bearer {token}")
        await self.refused(4401, "invalid auth token", authorization="Bearer nonsense")

    @pytest.mark.parametrize("form", ['token="{}";', "token={}", "token=%22{}%22", 'a=b;token="{}"'])
    async def test_token_in_a_cookie(self, people, form):
        token = await database_sync_to_async(people.token)(people.ann)
        await self.accepted(people.ann, cookie=form.format(token), origin="http://localhost:8043")

    async def test_session_as_awxkit_sends_it(self, people):
        session, csrf = await database_sync_to_async(session_of)(people.ann)
        cookie = f'__Host-awx_sessionid="{session}";csrftoken={csrf}'
        await self.accepted(people.ann, cookie=cookie, origin="http://localhost:8043")

    async def test_the_first_credential_present_decides(self, people):
        token = await database_sync_to_async(people.token)(people.ann)
        session, _ = await database_sync_to_async(session_of)(people.ben)
        good = {
            "authorization": f"Bearer {token}",
            "cookie": f"token={token}; __Host-awx_sessionid={session}",
        }
        await self.refused(4401, "invalid auth token", path="/websocket/?token=nonsense", **good)
        await self.accepted(people.ann, **good)
        await self.accepted(people.ann, cookie=good["cookie"])
        await self.accepted(people.ben, cookie=f"__Host-awx_sessionid={session}")
        await self.refused(
            4401, "invalid auth token", cookie=f"token=nonsense; __Host-awx_sessionid={session}"
        )

    async def test_nobody(self, people):
        await self.refused(4401, "no credentials")
        await self.refused(4401, "no credentials", path="/websocket/?token=", authorization="Basic YTpi")
        await self.refused(4401, "the session has ended", cookie="__Host-awx_sessionid=nonsense")
        await self.refused(4401, "too many fields", path="/websocket/?" + "a=b&" * 60)

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"expires": timezone.now() - timedelta(seconds=1)}, "invalid auth token"),
            ({"scope": "write publish"}, "the token's scope does not include read"),
        ],
    )
    async def test_a_token_that_is_not_good(self, people, fields, reason):
        token = await database_sync_to_async(people.token)(people.ann, **fields)
        await self.refused(4401, reason, token=token)

    async def test_a_user_who_is_switched_off(self, people):
        token = await database_sync_to_async(people.token)(people.ann)
        session, _ = await database_sync_to_async(session_of)(people.ann)
        people.ann.is_active = False
        await people.ann.asave()
        await self.refused(4401, "invalid auth token", token=token)
        await self.refused(4401, "the session has ended", cookie=f"__Host-awx_sessionid={session}")

    async def test_a_changed_password_ends_sessions(self, people):
        session, _ = await database_sync_to_async(session_of)(people.ann)
        people.ann.set_password("another")
        await people.ann.asave()
        await self.refused(4401, "the session has ended", cookie=f"__Host-awx_sessionid={session}")

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            ("http://localhost", True),
            ("https://LOCALHOST:8043", True),
            ("https://carillon.test", True),
            ("https://trusted.test:8443", True),
            ("https://trusted.test", False),
            ("https://evil.test", False),
            ("https://localhost.evil.test", False),
            ("null", False),
            ("file://", False),
            ("http://[", False),
        ],
    )
    async def test_origin_counts_for_cookies_alone(self, people, origin, allowed):
        token = await database_sync_to_async(people.token)(people.ann)
        await self.accepted(people.ann, token=token, origin=origin)
        if allowed:
            await self.accepted(people.ann, cookie=f"token={token}", origin=origin)
        else:
            await self.refused(4403, "forbidden Origin", cookie=f"token={token}", origin=origin)

    @pytest.mark.parametrize("error", [DatabaseError, InterfaceError])
    async def test_the_database_is_away(self, people, monkeypatch, error, caplog):
        def fail(handshake):
            raise error

        monkeypatch.setattr("carillon.sockets.authentication.authenticate", fail)
        await self.refused(1013, "the server cannot reach", token="any")
        assert "A socket fails" not in caplog.text

    async def test_the_broker_is_away(self, people, monkeypatch):
        token = await database_sync_to_async(people.token)(people.ann)

        async def ready(self, timeout):
            raise StreamUnavailable

        monkeypatch.setattr(Station, "ready", ready)
        await self.refused(1013, "the server cannot reach", token=token)

    async def test_another_path(self, db):
        client = Client("/websocketfoo")
        accepted, code = await client.raw.connect()
        assert not accepted
        assert code == 1000  # before an accept: daphne says 403


async def client_of(people, user) -> Client:
    client = Client(token=await database_sync_to_async(people.token)(user))
    await client.open()
    return client


async def test_sockets_of_a_user_have_a_number(people, settings):
    settings.CARILLON = {**settings.CARILLON, "SOCKETS_PER_USER": 2}
    token = await database_sync_to_async(people.token)(people.ann)
    mine = [Client(token=token) for _ in range(3)]
    assert [(await client.open())["accept"] for client in mine[:2]] == [True, True]
    refused = await mine[2].open()
    assert refused["error"] == "too many sockets of this user: 2 at a time are allowed"
    assert await mine[2].close_code() == 1013, "there may be room in a moment"
    await client_of(people, people.ben)
    await mine[0].leave()
    assert (await Client(token=token).open())["accept"]


async def job_of(user, **fields) -> Job:
    return await Job.objects.acreate(owner=user, name="a job", **fields)


class TestSubscribing:
    async def test_nothing_is_subscribed_at_first(self, people):
        client = await client_of(people, people.ann)
        await aemit_channel_notification("jobs-status_changed", STATUS)
        await pump()
        assert await client.is_silent()

    async def test_the_reply_and_the_frame(self, people):
        client = await client_of(people, people.ann)
        reply = await client.subscribe(
            {"jobs": ["summary", "status_changed"], "schedules": ["changed"]}, xrftoken=None
        )
        groups = ["jobs-status_changed", "jobs-summary", "schedules-changed"]
        assert reply == {"groups_current": groups, "groups_left": [], "groups_joined": groups}
        await aemit_channel_notification("jobs-status_changed", STATUS)
        await pump()
        assert await client.frame() == STATUS  # the payload and nothing around it

    async def test_a_new_subscription_replaces_the_old(self, people):
        client = await client_of(people, people.ann)
        await client.subscribe({"jobs": ["status_changed"], "schedules": ["changed"]})
        assert await client.subscribe({"jobs": ["status_changed", "summary"]}) == {
            "groups_current": ["jobs-status_changed", "jobs-summary"],
            "groups_left": ["schedules-changed"],
            "groups_joined": ["jobs-summary"],
        }
        await aemit_channel_notification("schedules-changed", {"id": 1})
        await aemit_channel_notification("jobs-summary", {"id": 2})
        await pump()
        assert await client.frame() == {"id": 2}
        assert (await client.subscribe({}))["groups_current"] == []
        await aemit_channel_notification("jobs-summary", {"id": 3})
        await pump()
        assert await client.is_silent()

    async def test_a_group_in_both_is_never_left(self, people, monkeypatch):
        client = await client_of(people, people.ann)
        await client.subscribe({"jobs": ["status_changed"]})
        permitted = Sockets.permitted

        async def slow(self, user, wanted):
            # In the middle of the change of groups something happens in the one that stays.
            await aemit_channel_notification("jobs-status_changed", STATUS)
            await pump()
            return await permitted(self, user, wanted)

        monkeypatch.setattr(Sockets, "permitted", slow)
        assert await client.subscribe({"jobs": ["status_changed", "summary"]}) == STATUS
        assert (await client.frame())["groups_joined"] == ["jobs-summary"]

    async def test_ids_as_numbers_and_as_texts(self, people):
        one, two = await job_of(people.ann), await job_of(people.ann)
        client = await client_of(people, people.ann)
        reply = await client.subscribe({"job_events": [one.pk, str(two.pk)]})
        assert reply["groups_current"] == sorted([f"job_events-{one.pk}", f"job_events-{two.pk}"])

    async def test_keys_have_an_allowance(self, people):
        client = await client_of(people, people.ann)
        keys = {"job_events": list(range(10**6, 10**6 + 250))}
        for _ in range(4):
            await client.say({"groups": keys})
            assert (await client.frame())["error"].endswith(", and 230 more"), "one frame for all of them"
            assert "groups_current" in await client.frame()
        await client.say({"groups": keys})
        error = (await client.frame())["error"]
        assert error.startswith("invalid message: too many groups: 1000 at once and 50 a second are allowed")
        # What was left of the allowance is still there.
        await client.say({"groups": {"nope": [], "jobs": ["bogus"]}})
        assert (await client.frame())["error"].startswith(("unknown channel", "invalid message: too many"))

    async def test_a_subscription_that_may_be_held_may_be_asked_for(self, people, settings):
        settings.CARILLON = {**settings.CARILLON, "GROUPS_PER_SOCKET": 1200, "KEY_RATE": 0}
        client = await client_of(people, people.ann)
        keys = {"job_events": list(range(10**6, 10**6 + 1200))}
        await client.say({"groups": keys})
        assert (await client.frame())["error"].endswith(", and 1180 more")
        assert "groups_current" in await client.frame()
        await client.say({"groups": keys})
        error = (await client.frame())["error"]
        assert "too many groups: 1200 at once and 0 a second are allowed" in error

    async def test_families_without_keys_count_as_keys(self, people):
        client = await client_of(people, people.ann)
        await client.say({"groups": {f"nope{number}": [] for number in range(251)}})
        assert await client.frame() == {"error": "invalid message: more than 250 groups"}
        await client.say({"groups": {f"nope{number}": [] for number in range(250)}})
        assert (await client.frame())["error"].endswith(", and 230 more")
        assert "groups_current" in await client.frame()

    async def test_each_id_that_is_denied_is_named_and_the_rest_goes_on(self, people):
        own, other = await job_of(people.ann), await job_of(people.carl)
        client = await client_of(people, people.ann)
        await client.say(
            {"groups": {"job_events": [other.pk, own.pk, 999, "x"], "nope": [1], "jobs": ["bogus"]}}
        )
        assert [await client.frame() for _ in range(3)] == [
            {"error": "unknown channel nope"},
            {
                "error": f"access denied to channel job_events for resource id {other.pk}, 999, x; "
                "jobs for resource id bogus"
            },
            {
                "groups_current": [f"job_events-{own.pk}"],
                "groups_left": [],
                "groups_joined": [f"job_events-{own.pk}"],
            },
        ]

    @pytest.mark.parametrize(
        ("kind", "family"),
        [
            ("job", "job_events"),
            ("ad_hoc_command", "ad_hoc_command_events"),
            ("project_update", "project_update_events"),
            ("inventory_update", "inventory_update_events"),
            ("system_job", "system_job_events"),
            ("workflow_job", "workflow_events"),
        ],
    )
    async def test_access_to_every_family_of_events(self, people, kind, family):
        job = await job_of(people.ann, kind=kind, team=people.team)
        other_kind = await job_of(people.ann, kind="job" if kind != "job" else "system_job")
        expected = {people.ann: True, people.ben: True, people.carl: False, people.root: True}
        for user, allowed in expected.items():
            client = await client_of(people, user)
            reply = await client.subscribe({family: [job.pk]})
            assert ("error" in reply) is not allowed, user
            # A job of another kind is no business of this family, even one's own.
            await client.subscribe({}) if allowed else await client.frame()
            assert "error" in await client.subscribe({family: [other_kind.pk]})
            await client.leave()

    async def test_control_is_one_s_own(self, people):
        client = await client_of(people, people.ann)
        own, foreign = f"limit_reached_{people.ann.pk}", f"limit_reached_{people.carl.pk}"
        reply = await client.subscribe({"control": [foreign, own]})
        assert reply == {"error": f"access denied to channel control for resource id {foreign}"}
        assert (await client.frame())["groups_current"] == [f"control-{own}"]

    async def test_a_session_needs_its_xrftoken(self, people):
        session, csrf = await database_sync_to_async(session_of)(people.ann)
        client = Client(
            cookie=f'__Host-awx_sessionid="{session}";csrftoken={csrf}', origin="http://localhost"
        )
        await client.open()
        assert (await client.subscribe({"jobs": ["summary"]}, xrftoken=csrf))["groups_current"] == [
            "jobs-summary"
        ]
        for wrong in ({}, {"xrftoken": None}, {"xrftoken": "wrong"}):
            assert await client.subscribe({}, **wrong) == {"error": "access denied to channel"}
        await aemit_channel_notification("jobs-summary", {"still": "there"})
        await pump()
        assert await client.frame() == {"still": "there"}

    @pytest.mark.parametrize(
        "text", ["nonsense", "[]", '{"groups": {"jobs": "summary"}}', '{"groups": {"jobs": [{}]}}']
    )
    async def test_nonsense_leaves_the_old_subscription(self, people, text):
        client = await client_of(people, people.ann)
        await client.subscribe({"jobs": ["summary"]})
        await client.say(text)
        assert list(await client.frame()) == ["error"]
        await client.raw.send_to(bytes_data=b"\0")
        assert (await client.frame())["error"].startswith("invalid message: a binary frame")
        await aemit_channel_notification("jobs-summary", {"still": "there"})
        await pump()
        assert await client.frame() == {"still": "there"}

    async def test_repeated_nonsense_ends_it(self, people):
        client = await client_of(people, people.ann)
        burst = int(protocol.Limits().nonsense_burst)
        for _ in range(burst + 1):
            await client.say("nonsense")
        frames = [await client.frame() for _ in range(burst + 1)]
        assert frames[-1] == {"error": "too many invalid messages"}
        assert await client.close_code() == 1008

    async def test_too_many_messages_end_it(self, people):
        client = await client_of(people, people.ann)
        burst = int(protocol.Limits().message_burst)
        for _ in range(burst + 1):
            await client.say({"groups": {}})
        frames = [await client.frame() for _ in range(burst + 1)]
        assert frames[-1] == {"error": "too many messages: 100 at once and 10 a second are allowed"}
        assert await client.close_code() == 1008

    async def test_what_is_closing_is_closed_once(self, people, monkeypatch):
        """While the client is told why, somebody else wants to end it, too: the code is sent all the same."""
        client = await client_of(people, people.ann)
        (socket,) = sockets()._by_outlet.values()
        flush = AsgiOutlet.flush

        async def slowly(outlet):
            socket.end(session.Close(4401))
            await asyncio.sleep(0)
            await flush(outlet)

        monkeypatch.setattr(AsgiOutlet, "flush", slowly)
        burst = int(protocol.Limits().message_burst)
        for _ in range(burst + 1):
            await client.say({"groups": {}})
        for _ in range(burst + 1):
            await client.frame()
        assert await client.close_code() == 1008
        await client.raw.wait()

    async def test_subscribing_asks_no_broker(self, people):
        client = await client_of(people, people.ann)
        get_channel_layer().publisher.away = True
        assert (await client.subscribe({"jobs": ["summary"]}))["groups_current"] == ["jobs-summary"]


class TestHearing:
    @pytest.mark.parametrize("who", ["ann", "ben", "carl", "root"])
    async def test_the_audience(self, people, who):
        client = await client_of(people, getattr(people, who))
        await client.subscribe({"jobs": ["status_changed"]})
        for number, audience in enumerate(
            [
                {"users": [people.ann.pk]},
                {"users": [people.carl.pk]},
                {"teams": [people.team.pk]},
                {"users": [], "teams": []},
                None,
            ]
        ):
            await aemit_channel_notification("jobs-status_changed", {"n": number}, audience=audience)
        await pump()
        expected = {"ann": [0, 2, 4], "ben": [2, 4], "carl": [1, 4], "root": [0, 1, 2, 3, 4]}[who]
        assert [(await client.frame())["n"] for _ in expected] == expected
        assert await client.is_silent()

    async def test_a_job_from_its_post_to_the_frame(self, people):
        client = await client_of(people, people.ben)
        await client.subscribe({"jobs": ["status_changed"]})
        await database_sync_to_async(changes.create_job)(
            owner=people.ann, team=people.team, name="x", status="pending"
        )
        await database_sync_to_async(changes.create_job)(owner=people.ann, name="private", status="new")
        await pump()
        assert (await client.frame())["status"] == "pending"
        assert await client.is_silent()


class TestPermissionsThatChange:
    async def test_leaving_a_team(self, people):
        job = await job_of(people.ann, team=people.team)
        client = await client_of(people, people.ben)
        await client.subscribe({"job_events": [job.pk], "jobs": ["status_changed"]})
        await database_sync_to_async(people.team.members.remove)(people.ben)
        await pump()
        assert await client.frame() == {
            "error": f"access denied to channel job_events for resource id {job.pk}"
        }
        assert await client.frame() == {
            "groups_current": ["jobs-status_changed"],
            "groups_left": [f"job_events-{job.pk}"],
            "groups_joined": [],
            "asked": False,
        }
        await aemit_channel_notification("jobs-status_changed", STATUS, audience={"teams": [people.team.pk]})
        await pump()
        assert await client.is_silent()

    async def test_joining_a_team(self, people):
        client = await client_of(people, people.carl)
        await client.subscribe({"jobs": ["status_changed"]})
        await database_sync_to_async(people.team.members.add)(people.carl)
        await aemit_channel_notification("jobs-status_changed", STATUS, audience={"teams": [people.team.pk]})
        await pump()
        assert await client.frame() == STATUS

    async def test_revoking_a_token(self, people):
        client, other = await client_of(people, people.ann), await client_of(people, people.ann)
        first = await ApiToken.objects.filter(user=people.ann).order_by("id").afirst()
        await database_sync_to_async(first.delete)()
        await pump()
        assert "error" in await client.frame()
        assert await client.close_code() == 4401
        assert await other.is_silent()

    @pytest.mark.parametrize("change", [{"expires": timezone.now()}, {"scope": "publish"}])
    async def test_a_token_that_is_saved_with_less(self, people, change):
        client, other = await client_of(people, people.ann), await client_of(people, people.ann)
        first = await ApiToken.objects.filter(user=people.ann).order_by("id").afirst()
        for name, value in change.items():
            setattr(first, name, value)
        await first.asave()
        await pump()
        assert "error" in await client.frame()
        assert await client.close_code() == 4401
        assert await other.is_silent()

    async def test_logging_out(self, people):
        session, csrf = await database_sync_to_async(session_of)(people.ann)
        client = Client(cookie=f"__Host-awx_sessionid={session};csrftoken={csrf}")
        await client.open()

        def log_out():
            browser = HttpClient()
            browser.cookies["__Host-awx_sessionid"] = session
            browser.post("/api/logout/")

        await database_sync_to_async(log_out)()
        await pump()
        assert "error" in await client.frame()
        assert await client.close_code() == 4401

    async def test_switching_a_user_off(self, people):
        client = await client_of(people, people.ann)
        people.ann.is_active = False
        await people.ann.asave()
        await pump()
        await client.frame()
        assert await client.close_code() == 4401

    async def test_a_token_that_expires(self, people):
        soon = timezone.now() + timedelta(seconds=0.5)
        client = Client(token=await database_sync_to_async(people.token)(people.ann, expires=soon))
        await client.open()
        assert "error" in await client.frame()
        assert await client.close_code() == 4401
        assert timezone.now() >= soon

    async def test_somebody_else_s_change_is_no_work(self, people, monkeypatch):
        client = await client_of(people, people.ann)

        def fail(identities):
            raise AssertionError("looked at")

        monkeypatch.setattr("carillon.sockets.authentication.revalidate_each", fail)
        people.carl.is_superuser = True
        await people.carl.asave()
        await pump()
        assert await client.is_silent()

    async def test_a_token_revoked_while_its_socket_comes_in(self, people, monkeypatch):
        """Between the question who it is and the moment from which the socket hears of changes."""
        token = await database_sync_to_async(people.token)(people.ann)
        authenticate = Sockets.authenticate

        async def and_then_it_is_revoked(self, *asked):
            identity = await authenticate(self, *asked)
            await database_sync_to_async(ApiToken.objects.all().delete)()
            await pump()
            return identity

        monkeypatch.setattr(Sockets, "authenticate", and_then_it_is_revoked)
        client = Client(token=token)
        await client.open()
        assert "ended" in (await client.frame())["error"]
        assert await client.close_code() == 4401

    async def test_a_job_that_moves_while_it_is_subscribed_to(self, people, monkeypatch):
        job = await Job.objects.acreate(name="x", owner=people.carl, team=people.team)
        client = await client_of(people, people.ann)
        permitted = Sockets.permitted

        async def and_then_it_moves(self, user, wanted):
            monkeypatch.undo()
            found = await permitted(self, user, wanted)
            job.team = None
            await job.asave()
            await pump()
            return found

        monkeypatch.setattr(Sockets, "permitted", and_then_it_moves)
        assert (await client.subscribe({"job_events": [job.pk]}))["groups_joined"] == [f"job_events-{job.pk}"]
        assert "access denied" in (await client.frame())["error"]
        assert (await client.frame())["groups_left"] == [f"job_events-{job.pk}"]

    async def test_a_second_change_during_the_first_check(self, people, monkeypatch):
        """What the first check was told is not good enough to hear anything by."""
        client = await client_of(people, people.ann)
        await client.subscribe({"jobs": ["summary"]})
        again = questions.again

        def and_then_it_is_revoked(asked):
            monkeypatch.undo()
            answers = again(asked)
            ApiToken.objects.filter(user=people.ann).delete()
            async_to_sync(aemit_channel_notification)("jobs-summary", {"n": 1})
            asyncio.run_coroutine_threadsafe(pump(), loop).result(5)
            return answers

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(questions, "again", and_then_it_is_revoked)
        people.ann.first_name = "Ann"
        await people.ann.asave()
        await pump()
        assert "ended" in (await client.frame())["error"]
        assert await client.close_code() == 4401

    @pytest.mark.parametrize("error", [DatabaseError, InterfaceError])
    async def test_the_database_is_away_when_a_change_comes(self, people, monkeypatch, error):
        """While something else about the socket is being changed: the change is not forgotten."""
        client = await client_of(people, people.ann)
        permitted = Sockets.permitted

        async def and_then_a_change(self, user, wanted):
            found = await permitted(self, user, wanted)
            monkeypatch.setattr(Sockets, "permitted", permitted)
            monkeypatch.setattr("carillon.sockets.authentication.revalidate_each", broken)
            people.ann.first_name = "Ann"
            await people.ann.asave()
            await pump()
            return found

        def broken(identities):
            raise error

        monkeypatch.setattr(Sockets, "permitted", and_then_a_change)
        assert (await client.subscribe({"jobs": ["summary"]}))["groups_joined"] == ["jobs-summary"]
        assert "cannot reach" in (await client.frame())["error"]
        assert await client.close_code() == 1013

    async def test_many_changes_are_few_questions_for_all_who_wait(self, people, monkeypatch):
        clients = [await client_of(people, people.ann) for _ in range(3)]
        for client in clients:
            await client.subscribe({"jobs": ["summary"]})
        asked, again = [], questions.again
        monkeypatch.setattr(
            questions, "again", lambda question: asked.append(len(question)) or again(question)
        )
        for number in range(50):
            people.ann.first_name = f"Ann {number}"
            await people.ann.asave()
        await aemit_channel_notification("jobs-summary", {"n": 1})
        await pump()
        for client in clients:
            assert await client.frame() == {"n": 1}
        assert asked in ([3], [3, 3]), "a question a change, or a socket"

    async def test_what_the_database_does_not_answer_ends_it(self, people, monkeypatch, caplog):
        """Nobody is held for ever."""
        client = await client_of(people, people.ann)
        monkeypatch.setattr("carillon.sockets.rights.PATIENCE", 0.5)
        monkeypatch.setattr(questions, "again", lambda question: time.sleep(3))
        people.ann.first_name = "Ann"
        await people.ann.asave()
        await pump()
        assert "cannot reach" in (await client.frame())["error"]
        assert await client.close_code() == 1013
        assert "rights cannot be checked" in caplog.text

    @pytest.mark.parametrize("when", ["subscribing", "a change"])
    async def test_a_rule_that_fails_leaves_no_deaf_socket(self, people, monkeypatch, caplog, when):
        job = await job_of(people.ann)
        client = await client_of(people, people.ann)
        if when == "a change":
            await client.subscribe({"job_events": [job.pk]})

        def fails(self, questions):
            raise KeyError("a mistake of the project's")

        monkeypatch.setattr(Family, "allowed_each", fails)
        if when == "a change":
            people.ann.first_name = "Ann"
            await people.ann.asave()
            await pump()
        else:
            await client.say({"groups": {"job_events": [job.pk]}})
        assert "try again later" in (await client.frame())["error"]
        assert await client.close_code() == 1013
        assert "a mistake of the project's" in caplog.text

    async def test_a_session_engine_that_fails_ends_a_project_s_consumer_too(self, people, monkeypatch):
        consumer = ProjectConsumer({}, None, None)
        ended = []
        monkeypatch.setattr(consumer, "_end", ended.append)
        consumer.unanswered(ConnectionError("the session engine"), held=False)
        assert [close.code for close in ended] == [1013]


async def test_what_works_for_all_names_no_request(people, monkeypatch):
    """Not that of the client who happened to come first."""
    seen = []

    def noted(where, name):
        real = getattr(where, name)

        def note(*arguments):
            seen.append((name, logs.request_id.get()))
            return real(*arguments)

        monkeypatch.setattr(where, name, note)

    noted(authentication, "authenticate")
    noted(questions, "again")
    noted(Presence, "_write")
    token = await database_sync_to_async(people.token)(people.ann)
    client = Client(token=token, x_request_id="the-first")
    await client.open()
    (socket,) = sockets()._by_outlet.values()
    sockets().look(socket)
    await sockets()._asking
    await client.leave()
    assert {name for name, _ in seen} == {"authenticate", "again", "_write"}
    assert {request for _, request in seen} == {""}


class TestEnding:
    async def test_something_was_missed(self, people):
        client = await client_of(people, people.ann)
        for heard in station().gaps:
            heard("retention")
        assert "missing" in (await client.frame())["error"]
        assert await client.close_code() == 1013

    async def test_what_follows_a_gap_in_one_step_is_not_heard(self, people):
        """A client of version 1 is told by the end of its socket: before anything that came later."""
        client = await client_of(people, people.ann)
        await client.subscribe({"jobs": ["status_changed"]})
        await aemit_channel_notification("jobs-status_changed", STATUS)
        for heard in station().gaps:
            heard("retention")
        await pump()  # it does not wait for anything
        assert "missing" in (await client.frame())["error"]
        assert await client.close_code() == 1013

    async def test_the_server_stops(self, people):
        client = await client_of(people, people.ann)
        client.raw.future.cancel()
        assert await client.close_code() == 1012
        await client.leave()
        assert not await Connection.objects.aexists()

    async def test_nothing_is_left_behind(self, people):
        client = await client_of(people, people.ann)
        await client.subscribe({"jobs": ["summary"]})
        (listener,) = station().hub.listeners()
        assert listener.groups == {b"jobs-summary"}
        await client.leave()
        assert not station().hub.listeners()


def test_frames_are_json_objects():
    # awxkit takes `.get` of every frame.
    assert isinstance(json.loads(protocol.error("x")), dict)

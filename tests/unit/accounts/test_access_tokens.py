"""The API by an issuer's access token: what it may, whose it is, and what nobody is told."""

from __future__ import annotations

import json
import logging
from io import StringIO

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from rest_framework.test import APIClient

from carillon import logs
from carillon.accounts import identities
from carillon.accounts.models import ApiToken, AuditEntry, ExternalIdentity
from tests.unit.support.issuer import reply

pytestmark = pytest.mark.django_db


def client_with(token: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    return client


def me(token: str):
    return client_with(token).get("/api/v2/me/")


def test_who_is_new_gets_a_user_without_rights(trusted, people):
    answer = me(trusted.token())
    assert answer.status_code == 200
    (user,) = answer.json()["results"]
    assert {**user, "id": 0} == {"id": 0, "username": "ilse", "is_superuser": False, "teams": []}
    made = get_user_model().objects.get(username="ilse")
    assert not made.has_usable_password()
    assert not made.is_staff
    assert not made.get_all_permissions()
    assert me(trusted.token(preferred_username="another")).json()["results"] == [user], "the subject counts"


@pytest.mark.parametrize("name", ["ann", "ANN", "root"])
def test_a_name_is_nobody_s_account(trusted, people, name):
    """Who may call himself anything elsewhere is not who is called so here."""
    (user,) = me(trusted.token(preferred_username=name, email="ann@carillon.test")).json()["results"]
    assert user["id"] not in {one.pk for one in (people.ann, people.root)}
    assert user["username"].startswith(f"{name}-")
    assert not user["is_superuser"]


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"preferred_username": None}, "subject-1"),
        ({"preferred_username": ["list"]}, "subject-1"),
        ({"preferred_username": "Ilse Ö. <x>"}, "Ilse-Ö.-x"),
        ({"preferred_username": "///", "sub": "|||"}, "user"),
        ({"preferred_username": "x" * 400}, "x" * 150),
        ({"preferred_username": "nul\0nul"}, "nul-nul"),
    ],
)
def test_what_a_new_user_is_called(trusted, claims, name):
    assert me(trusted.token(**claims)).json()["results"][0]["username"] == name


def test_the_same_subject_of_another_issuer_is_another(trusted, people):
    identities.link(people.ann, "https://elsewhere.test", "subject-1")
    assert me(trusted.token()).json()["results"][0]["id"] != people.ann.pk


def test_known_alone(trusted, people, settings):
    settings.CARILLON = {**settings.CARILLON, "IDENTITY_USERS": "known"}
    answer = me(trusted.token())
    assert (answer.status_code, answer.json()) == (
        401,
        {"detail": "Nobody here is linked to this account: ask an administrator."},
    )
    assert not get_user_model().objects.filter(username="ilse").exists()
    identities.link(people.ann, trusted.url, "subject-1")
    assert me(trusted.token()).json()["results"][0]["username"] == "ann"


def test_who_is_not_active(trusted):
    me(trusted.token())
    get_user_model().objects.filter(username="ilse").update(is_active=False)
    answer = me(trusted.token())
    assert (answer.status_code, answer.json()) == (401, {"detail": "The user is not active."})


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"aud": "another"}, "The token is for another audience."),
        ({"iss": "https://evil.test"}, "The token is of another issuer."),
        ({"exp": 1}, "The token has expired."),
        ({"exp": None}, "The token does not say exp."),
        ({"headers": {"kid": "nope"}}, "The token is refused: it is signed with a key that its issuer does"),
        ({"filler": "x" * 9000}, "The token is longer than 8192 bytes."),
    ],
)
def test_a_refusal_says_why(trusted, more, why):
    answer = me(trusted.token(**more))
    assert answer.status_code == 401
    assert answer.json()["detail"].startswith(why)
    assert answer["WWW-Authenticate"] == 'Bearer realm="carillon"'
    assert not ExternalIdentity.objects.exists()


def test_an_issuer_that_is_away_is_no_wrong_token(trusted):
    trusted.answer = lambda request: reply(request, {}, 500)
    answer = me(trusted.token())
    assert answer.status_code == 503
    assert answer["Retry-After"] == "5"
    assert "127.0.0.1 answers with 500" in answer.json()["detail"]


def test_nobody_is_trusted_unless_it_is_said(issuer, db):
    answer = me(issuer.token())
    assert answer.status_code == 401
    assert "unknown, expired or revoked" in answer.json()["detail"]
    assert issuer.asked == []


def test_our_own_tokens_are_as_good_as_before(trusted, people):
    assert people.client(people.ann).get("/api/v2/me/").status_code == 200
    assert me("car_unknown").status_code == 401
    assert trusted.asked == []


class TestWhatItMay:
    @pytest.fixture
    def scope(self, trusted, settings):
        def scope(words: str) -> APIClient:
            settings.CARILLON = {**settings.CARILLON, "JWT_SCOPE": words}
            return client_with(trusted.token())

        return scope

    def test_read_alone(self, scope):
        client = scope("read")
        assert client.get("/api/v2/jobs/").status_code == 200
        assert client.post("/api/v2/jobs/", {"name": "a job"}, format="json").status_code == 403

    def test_write(self, scope):
        assert scope("read write").post("/api/v2/jobs/", {"name": "x"}, format="json").status_code == 201

    @pytest.mark.parametrize(("words", "status"), [("read write", 403), ("read write publish", 202)])
    def test_publish_needs_the_scope_and_the_right(self, scope, people, words, status):
        client = scope(words)
        said = {"group": "schedules-changed", "payload": {"id": 1}}
        assert client.post("/api/v2/notifications/", said, format="json").status_code == 403
        people.may_publish(get_user_model().objects.get(username="ilse"))
        assert client.post("/api/v2/notifications/", said, format="json").status_code == status

    def test_metrics_need_the_scope_and_an_admin(self, scope):
        client = scope("read metrics")
        assert client.get("/api/v2/metrics/").status_code == 403
        get_user_model().objects.filter(username="ilse").update(is_superuser=True)
        assert client.get("/api/v2/metrics/").status_code != 403
        assert scope("read").get("/api/v2/metrics/").status_code == 403

    def test_it_makes_no_token_that_outlives_it(self, scope):
        answer = scope("read write publish metrics").post("/api/v2/tokens/", {}, format="json")
        assert answer.status_code == 403
        assert "makes none of ours" in answer.json()["detail"]
        assert not ApiToken.objects.exists()


def test_nothing_secret_is_logged(trusted, caplog):
    caplog.set_level(logging.DEBUG)
    secret = [trusted.token(), trusted.token(aud="another"), trusted.token(headers={"kid": "nope"})]
    for token in secret:
        me(token)
    lines = [logs.JsonFormatter().format(record) for record in caplog.records]
    made = [json.loads(line).get("audit") for line in lines if "Identity made" in line]
    assert made == [{"what": "identity made", "name": "ilse", "issuer": trusted.url, "subject": "subject-1"}]
    for token in secret:
        for part in token.split("."):
            assert not any(part in line for line in lines)


def test_two_first_requests_at_once_are_one_user(trusted):
    """Both find nobody, and both make somebody: one of them has to look again."""
    claims = identities.Claims(trusted.url, "subject-1", None, "a", {"preferred_username": "ilse"})
    first = identities._make(claims)
    assert identities._make(claims) == first
    assert get_user_model().objects.filter(username__startswith="ilse").count() == 1


class TestLinking:
    def link(self, *more: str, username: str = "ann", subject: str = "subject-1") -> str:
        out = StringIO()
        said = ["--username", username, "--issuer", "https://issuer.test", "--subject", subject]
        call_command("link_identity", *said, *more, stdout=out)
        return out.getvalue()

    def test_there_and_back(self, people):
        assert self.link() == "ann is 'subject-1' of https://issuer.test\n"
        assert ExternalIdentity.objects.get().user == people.ann
        with pytest.raises(CommandError, match="linked already: --remove that first"):
            self.link(username="ben")
        with pytest.raises(CommandError, match="ben is not linked"):
            self.link("--remove", username="ben")
        self.link("--remove")
        assert not ExternalIdentity.objects.exists()

    @pytest.mark.django_db(transaction=True)
    def test_a_link_and_its_entry_are_made_together(self, people, trusted, monkeypatch):
        """Of a process that dies between the two, or a database that goes away."""

        def dies(*arguments, **named):
            raise SystemExit("killed here")

        self.link()
        entries = set(AuditEntry.objects.all())
        with monkeypatch.context() as patched:
            patched.setattr(ExternalIdentity, "delete", dies)
            with pytest.raises(SystemExit):
                self.link("--remove")
        assert set(AuditEntry.objects.all()) == entries
        monkeypatch.setattr(identities.audit, "note", dies)
        with pytest.raises(SystemExit):
            self.link(username="ben", subject="subject-2")
        with pytest.raises(SystemExit):
            me(trusted.token())
        assert ExternalIdentity.objects.count() == 1

    def test_what_cannot_be(self, people):
        with pytest.raises(CommandError, match="no user 'nobody'"):
            self.link(username="nobody")
        with pytest.raises(CommandError, match="at most 255 characters"):
            self.link(subject="x" * 256)

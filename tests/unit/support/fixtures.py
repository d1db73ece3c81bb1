"""Users, teams, jobs, clients and sockets for the unit tests of Carillon."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async
from channels.layers import channel_layers
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.cache import cache
from rest_framework.test import APIClient

from carillon.accounts.models import ApiToken, Team
from carillon.api import quotas
from carillon.budgets import Meter
from carillon.events import heads, outbox
from carillon.events.models import Outbox
from tests.unit.support.fakes import Sent
from tests.unit.support.issuer import AUDIENCE, Issuer
from tests.unit.support.sockets import Client


@pytest.fixture(autouse=True)
def fresh():
    channel_layers.backends.clear()
    cache.clear()
    heads.forget()
    outbox._failed = float("-inf")
    quotas._meter = Meter()
    yield
    channel_layers.backends.clear()


@pytest.fixture(autouse=True)
async def ended():
    yield
    await Client.end_all()


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture
def commits(django_capture_on_commit_callbacks):
    """`with commits():` what would follow a commit is done at the end of the block."""
    return lambda: django_capture_on_commit_callbacks(execute=True)


def make_user(name: str, **fields):
    return get_user_model().objects.create_user(name, password=f"{name}-password", **fields)


class People:
    """ann and ben share a team, carl is in none, and root is an admin."""

    def __init__(self) -> None:
        self.ann, self.ben, self.carl = (make_user(name) for name in ("ann", "ben", "carl"))
        self.root = make_user("root", is_superuser=True)
        self.team = Team.objects.create(name="ringers")
        self.team.members.add(self.ann, self.ben)

    def may_publish(self, user):
        """The user, who may from now on."""
        user.user_permissions.add(
            Permission.objects.get(codename="publish", content_type__app_label="carillon")
        )
        return type(user).objects.get(pk=user.pk)

    def token(self, user, **fields) -> str:
        return ApiToken.issue(user, **fields)[1]

    def client(self, user, **fields) -> APIClient:
        client = APIClient()
        client.credentials(HTTP_AUTHORIZATION=f"Bearer {self.token(user, **fields)}")
        return client


@pytest.fixture
def people(db, sent) -> People:
    people = People()
    Outbox.objects.all().delete()  # what sockets are told of a new team
    sent.clear()
    return people


@pytest.fixture
def in_thread():
    """Run a function that uses the database from an asynchronous test."""
    return lambda function, *args, **kwargs: sync_to_async(function)(*args, **kwargs)


@pytest.fixture
def issuer():
    """An issuer of access tokens, over real HTTP."""
    issuer = Issuer()
    yield issuer
    issuer.stop()


@pytest.fixture
def trusted(issuer, settings):
    """It, as one whose tokens are good here."""
    settings.CARILLON = {
        **settings.CARILLON,
        "JWT_ISSUER": issuer.url,
        "JWT_AUDIENCE": AUDIENCE,
        "JWT_KEYS": issuer.keys_url,
    }
    return issuer

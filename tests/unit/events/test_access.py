"""The word of a change of rights, as it goes on to the log."""

from __future__ import annotations

import json

import pytest
from django.db import transaction

from asgi_amqp import codec
from carillon.events import access_changed
from carillon.relay.judge import judge


def words(messages) -> list[dict[str, list]]:
    """What the relay makes of them."""
    body = codec.encode_batch([codec.encode_target("") + codec.encode(message) for message in messages])
    events, letters = judge(body)
    assert letters == []
    return [json.loads(event.text) for event in events]


@pytest.mark.django_db(transaction=True)
def test_the_word_that_a_very_large_team_has_changed_is_no_dead_letter(sent):
    """No socket would hear of it before its five-minute look."""
    users = range(10**6, 10**6 + 120_000)
    groups = {f"{'x' * 190}-{number}" for number in range(6_000)}
    with transaction.atomic():
        access_changed(users, groups)
    said = words(sent.messages)
    assert [user for word in said for user in word["users"]] == list(users)
    assert {group for word in said for group in word["groups"]} == groups


@pytest.mark.django_db(transaction=True)
def test_the_word_of_a_change_names_each_once_and_nobody_has_none(sent):
    access_changed([7, 5, 7], ["jobs-2", "jobs-1"])
    access_changed()
    assert words(sent.messages) == [{"users": [5, 7], "groups": ["jobs-1", "jobs-2"]}]

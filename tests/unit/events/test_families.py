"""Families: what may be the name of a group."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carillon.events.families import Family, Key, Registry

WORDS = Family("jobs", ("status_changed", "summary"))
IDS = Family("job_events", ("<id>",))
MIXED = Family("control", ("limit_reached_<id>",))
SLUGS = Family("rooms", ("<slug>",))
UUIDS = Family("orders", ("paid_<uuid>", "all"))
UUID = "0b7e1f6a-9c1d-4f5e-8a2b-3c4d5e6f7a8b"


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        (WORDS, "summary", Key("summary")),
        (WORDS, "summary ", None),
        (WORDS, "", None),
        (WORDS, "1", None),
        (IDS, "42", Key("42", 42)),
        (IDS, "999999999999999999", Key("999999999999999999", 999999999999999999)),
        *(
            (IDS, text, None)
            for text in ("0", "042", "-1", "+1", "1.0", " 1", "1\n", "٣", "", "x", "9" * 19, "1-2")
        ),
        *((SLUGS, text, Key(text)) for text in ("the-belfry", "Tower_2", "7", "x" * 50)),
        *((SLUGS, text, None) for text in ("", "a b", "a.b", "ä", "x\n", "x" * 51)),
        (UUIDS, f"paid_{UUID}", Key(f"paid_{UUID}")),
        (UUIDS, "all", Key("all")),
        *((UUIDS, text, None) for text in (UUID, f"paid_{UUID.upper()}", f"paid_{UUID.replace('-', '')}")),
        (MIXED, "limit_reached_7", Key("limit_reached_7", 7)),
        *(
            (MIXED, text, None)
            for text in ("limit_reached", "limit_reached_", "limit_reached_x", "7", "limit_reached_07")
        ),
    ],
)
def test_keys(family, text, expected):
    assert family.parse_key(text) == expected


@pytest.mark.parametrize("name", ["", "Jobs", "job-events", "job.events", "1jobs", "x" * 51])
def test_a_name_that_could_forge_a_group_is_no_family(name):
    with pytest.raises(ValueError, match="a name is lower-case"):
        Family(name, ("changed",))


def test_a_group_is_parted_at_its_first_hyphen():
    registry = Registry()
    registry.register(SLUGS)
    assert registry.parse_group("rooms-the-belfry") == (SLUGS, Key("the-belfry"))


@pytest.mark.parametrize("key", ["", "a-b", "<id><id>", "<slug><uuid>", "a.b", "<ID>", "<int>"])
def test_a_key_that_could_forge_a_group_is_no_key(key):
    with pytest.raises(ValueError, match="is not lower-case words"):
        Family("jobs", (key,))


def test_without_a_rule_everybody_may():
    assert WORDS.allowed(object(), [Key("summary")]) == {Key("summary")}


def test_rules():
    one = Family("one", ("<id>",), may_subscribe=lambda user, key: key.id == user)
    many = Family(
        "many",
        ("<id>",),
        permitted=lambda user, keys: {key for key in keys if key.id > user} | {Key("99", 99)},
    )
    keys = [Key(str(number), number) for number in (1, 2, 3)]
    assert one.allowed(2, keys) == {Key("2", 2)}
    # A rule cannot add what was not asked for.
    assert many.allowed(2, keys) == {Key("3", 3)}


def test_a_rule_for_many_users_is_asked_once():
    asked = []

    def permitted_many(questions):
        asked.append(questions)
        return [{key for key in keys if key.id > user} | {Key("99", 99)} for user, keys in questions]

    many = Family("many", ("<id>",), permitted_many=permitted_many)
    keys = {Key(str(number), number) for number in (1, 2, 3)}
    assert many.asks
    assert many.allowed_each([(2, keys), (1, keys)]) == [{Key("3", 3)}, {Key("2", 2), Key("3", 3)}]
    assert len(asked) == 1
    assert many.allowed(2, keys) == {Key("3", 3)}


def test_a_registry_knows_a_name_once():
    registry = Registry()
    registry.register(WORDS)
    registry.register(WORDS)
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(Family("jobs", ("other",)))


@pytest.mark.parametrize(
    ("group", "known"),
    [
        ("jobs-summary", True),
        ("job_events-1", True),
        ("jobs", False),
        ("jobs-", False),
        ("-summary", False),
        ("broadcast-group_send", False),
        ("internal.sockets", False),
        ("job_events-1-2", False),
    ],
)
def test_groups(group, known):
    registry = Registry()
    registry.register(WORDS)
    registry.register(IDS)
    assert bool(registry.parse_group(group)) is known


@given(st.text())
def test_only_checked_text_becomes_a_key(text):
    for family in (WORDS, IDS, MIXED):
        key = family.parse_key(text)
        if key is not None:
            assert key.text == text
            assert text.isascii()
            assert text.replace("_", "").isalnum()


def test_all_families_of_tower_are_there():
    from carillon.events.families import registry

    assert set(registry.names()) == {
        "ad_hoc_command_events",
        "connections",
        "control",
        "inventories",
        "inventory_update_events",
        "job_events",
        "jobs",
        "project_update_events",
        "schedules",
        "system_job_events",
        "workflow_events",
    }

"""The AsyncAPI document: each frame that the server makes is as it says, and so is what a client may send."""

import json

import jsonschema
import pytest

from asgi_amqp import Position
from carillon.events.families import registry
from carillon.sockets import asyncapi, protocol
from carillon.sockets.presence import PAYLOAD

AT = Position("e1", 7)
DOCUMENT = asyncapi.document(registry.all(), "0.1.0", "carillon.example.org", "/websocket/", tls=True)
MESSAGES = DOCUMENT["components"]["messages"]

FRAMES = [
    ("accepted", protocol.accepted(1)),
    ("accepted", protocol.accepted(1, AT)),
    ("refused", protocol.refused("no")),
    ("error", protocol.error("no")),
    ("error", protocol.unknown_families(["x"])),
    ("error", protocol.denied([("job_events", "42")])),
    ("subscribed", protocol.groups_reply(["a-1"], ["b-2"])),
    ("recovered", protocol.recovered(AT)),
    ("unrecoverable", protocol.unrecoverable(AT, "retention")),
    ("progress", protocol.progress(AT)),
    ("refreshed", protocol.refreshed(None)),
    ("refreshed", protocol.refreshed("2026-01-02T03:04:05+00:00")),
    ("restart", '{"reconnect_after": 100}'),
    (
        "connections_event",
        json.dumps({"position": str(AT), "group": "connections-changed", "event": PAYLOAD}),
    ),
    ("subscribe", '{"groups": {"jobs": ["status_changed"], "job_events": [42, "43"]}, "since": "e1:7"}'),
    ("subscribe", '{"groups": {}}'),
    ("refresh", '{"refresh": "secret"}'),
]


def problem(name, frame):
    schema = MESSAGES[name]["payload"] | {"components": DOCUMENT["components"]}
    return jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(frame))


@pytest.mark.parametrize(("name", "text"), FRAMES)
def test_a_frame_is_as_the_document_says(name, text):
    assert problem(name, json.loads(text)) is None


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("subscribe", {"groups": {"nonsense": ["x"]}}),
        ("subscribe", {"groups": {"jobs": ["42"]}}),
        ("subscribe", {"groups": {"job_events": [0]}}),
        ("subscribe", {"groups": {"job_events": ["042"]}}),
        ("subscribe", {"groups": {}, "since": "7"}),
        ("subscribe", {}),
        ("progress", {"position": "e1:7", "recovered": True}),
        ("unrecoverable", {"recovered": False, "position": "e1:7", "reason": "weather"}),
        ("connections_event", {"position": "e1:7", "group": "jobs-summary", "event": PAYLOAD}),
        ("connections_event", {"position": "e1:7", "group": "connections-changed", "event": {}}),
    ],
)
def test_another_frame_is_not(name, frame):
    assert problem(name, frame) is not None


def test_a_server_s_frame_is_only_one_kind():
    names = [
        name for name in MESSAGES if not name.endswith("_event") and name not in ("subscribe", "refresh")
    ]
    for told, text in FRAMES:
        if told in names:
            assert [name for name in names if problem(name, json.loads(text)) is None] == [told], text


def test_every_frame_of_the_protocol_is_an_example_here():
    made = {name for name, value in vars(protocol).items()
            if callable(value) and getattr(value, "__annotations__", {}).get("return") == "str"
            and not name.startswith("_")}  # fmt: skip
    tried = {"accepted", "refused", "error", "unknown_families", "denied", "groups_reply", "recovered",
             "unrecoverable", "progress", "refreshed"}  # fmt: skip
    assert made == tried
    assert {name for name, _ in FRAMES} >= {name for name in MESSAGES if not name.endswith("_event")}


def test_every_family_is_there_and_every_reference_leads_somewhere():
    assert {f"{name}_event" for name in registry.names()} <= MESSAGES.keys()
    operations = DOCUMENT["operations"]
    listed = [each["$ref"] for operation in operations.values() for each in operation["messages"]]
    assert sorted(listed) == sorted(f"#/channels/websocket/messages/{name}" for name in MESSAGES)

    def references(value):
        if isinstance(value, dict):
            yield from [value["$ref"]] if "$ref" in value else []
            value = value.values()
        if isinstance(value, list | type({}.values())):
            for each in value:
                yield from references(each)

    for reference in set(references(DOCUMENT)):
        place = DOCUMENT
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_it_is_served(client):
    answer = client.get("/api/v2/asyncapi/", secure=True)
    assert answer.status_code == 200
    assert answer.json()["servers"]["here"]["protocol"] == "wss"
    assert answer.json()["channels"]["websocket"]["address"] == "/websocket/"
    assert json.loads(json.dumps(DOCUMENT["components"])) == answer.json()["components"]

"""The wire protocol, message by message, and whatever else a client may think of sending."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from carillon.sockets import protocol
from carillon.sockets.protocol import Limits, Refusal, Subscribe, parse

LIMITS = Limits(message_bytes=200, groups=4, name_length=20)

# What a client sends -> what it asks for, or the error it is told. Identity by token: no xrftoken is needed.
GOLDEN = [
    ('{"groups": {}}', {}),
    ('{"groups": {}, "xrftoken": null}', {}),
    ('{"groups": {"jobs": ["status_changed", "summary"]}}', {"jobs": ("status_changed", "summary")}),
    ('{"groups": {"job_events": [42, "43"]}, "xrftoken": "x"}', {"job_events": ("42", "43")}),
    ('{"groups": {"job_events": [42, "42", 42]}}', {"job_events": ("42",)}),
    ('{"groups": {"jobs": []}}', {"jobs": ()}),
    ('{"groups": {"control": ["limit_reached_1"]}, "more": [1]}', {"control": ("limit_reached_1",)}),
    ('{"groups": {"nonsense": ["x"]}}', {"nonsense": ("x",)}),  # unknown: the registry's to say
    ('{"groups": {"job_events": [-1, 0]}}', {"job_events": ("-1", "0")}),  # likewise
    ('{"groups": {"jobs": "status_changed"}}', "access denied to channel"),
    ('{"groups": {"job_events-42": 1}}', "access denied to channel"),
    ('{"groups": {"jobs": {"status_changed": true}}}', "access denied to channel"),
    ('{"groups": {"jobs": null}}', "access denied to channel"),
    (None, "invalid message: a binary frame: send text"),
    ("", "invalid message: not JSON"),
    ("{", "invalid message: not JSON"),
    ("{'groups': {}}", "invalid message: not JSON"),
    ("[" * 150, "invalid message: not JSON"),
    ("1" * 150, "invalid message: not a JSON object"),
    ("[]", "invalid message: not a JSON object"),
    ('"groups"', "invalid message: not a JSON object"),
    ("null", "invalid message: not a JSON object"),
    ("{}", 'invalid message: there is no "groups" in it'),
    ('{"xrftoken": "x"}', 'invalid message: there is no "groups" in it'),
    ('{"groups": []}', 'invalid message: "groups" is not an object'),
    ('{"groups": null}', 'invalid message: "groups" is not an object'),
    (
        '{"groups": {"job_events": [1.0]}}',
        'invalid message: "job_events" has a key that is neither a text nor a',
    ),
    (
        '{"groups": {"job_events": [true]}}',
        'invalid message: "job_events" has a key that is neither a text nor a',
    ),
    (
        '{"groups": {"job_events": [null]}}',
        'invalid message: "job_events" has a key that is neither a text nor a',
    ),
    (
        '{"groups": {"job_events": [[1]]}}',
        'invalid message: "job_events" has a key that is neither a text nor a',
    ),
    (
        '{"groups": {"job_events": [NaN]}}',
        'invalid message: "job_events" has a key that is neither a text nor a',
    ),
    ('{"groups": {"j": ["' + "x" * 21 + '"]}}', 'invalid message: "j" has a key longer than 20 characters'),
    ('{"groups": {"j": [' + "1" * 21 + "]}}", 'invalid message: "j" has a key longer than 20 characters'),
    (
        '{"groups": {"' + "x" * 21 + '": []}}',
        "invalid message: a channel's name is longer than 20 characters",
    ),
    ('{"groups": {"job_events": [1, 2, 3], "jobs": ["a", "b"]}}', "invalid message: more than 4 groups"),
    ('{"groups": {}, "x": "' + "x" * 200 + '"}', "invalid message: longer than 200 bytes"),
    ('{"groups": {}, "x": "' + "é" * 100 + '"}', "invalid message: longer than 200 bytes"),
]


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
def test_golden(text, expected):
    if isinstance(expected, dict):
        assert parse(text, LIMITS, None) == Subscribe(expected)
    else:
        with pytest.raises(Refusal) as refusal:
            parse(text, LIMITS, None)
        assert refusal.value.error.startswith(expected)


@pytest.mark.parametrize(
    "sent", ["", ', "xrftoken": null', ', "xrftoken": "wrong"', ', "xrftoken": 1', ', "xrftoken": ""']
)
@pytest.mark.parametrize("cookie", ["right", ""])
def test_a_session_needs_its_xrftoken(sent, cookie):
    # Also when the handshake had no cookie: "" does not equal "".
    with pytest.raises(Refusal, match=r"^access denied to channel$"):
        parse('{"groups": {"jobs": ["summary"]}' + sent + "}", LIMITS, cookie)


def test_a_session_with_its_xrftoken():
    text = '{"groups": {"jobs": ["summary"]}, "xrftoken": "right"}'
    assert parse(text, LIMITS, "right") == Subscribe({"jobs": ("summary",)})


def test_deep_nesting_is_no_json_of_ours():
    with pytest.raises(Refusal, match="not JSON"):
        parse("[" * 60_000, Limits(), None)


SAID = [
    (protocol.accepted(7), {"accept": True, "user": 7}),
    (protocol.refused("why"), {"accept": False, "user": None, "close": True, "error": "why"}),
    (protocol.error("what"), {"error": "what"}),
    (protocol.unknown_families(["nope"]), {"error": "unknown channel nope"}),
    (
        protocol.unknown_families([str(number) for number in range(22)]),
        {"error": f"unknown channel {', '.join(map(str, range(20)))}, and 2 more"},
    ),
    (
        protocol.denied([("job_events", "9")]),
        {"error": "access denied to channel job_events for resource id 9"},
    ),
    (
        protocol.denied([("a", "1"), ("b", "x"), ("a", "2"), *[("c", "3")] * 18]),
        {
            "error": "access denied to channel a for resource id 1, 2; b for resource id x; "
            f"c for resource id {', '.join('3' * 17)}, and 1 more"
        },
    ),
    (
        protocol.groups_reply({"c", "a"}, {"d", "c", "b"}),
        {"groups_current": ["b", "c", "d"], "groups_left": ["a"], "groups_joined": ["b", "d"]},
    ),
    (protocol.groups_reply({"a"}, ()), {"groups_current": [], "groups_left": ["a"], "groups_joined": []}),
]


@pytest.mark.parametrize(("frame", "expected"), SAID)
def test_what_the_server_says(frame, expected):
    assert json.loads(frame) == expected


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5),
    max_leaves=12,
)
nearly_right = st.fixed_dictionaries(
    {
        "groups": st.dictionaries(st.text(max_size=25), st.lists(anything, max_size=4) | anything, max_size=4)
        | anything
    },
    optional={"xrftoken": anything},
)


@given(
    st.text(max_size=250) | (anything | nearly_right).map(json.dumps) | st.none(),
    st.none() | st.text(max_size=3),
)
@example('{"groups": {"\\ud800": ["\\udfff"]}}', None)
@example('{"groups": {"a": [' + "9" * 5000 + "]}}", None)
def test_any_text_is_a_subscription_or_a_refusal(text, xrftoken):
    try:
        wanted = parse(text, LIMITS, xrftoken)
    except Refusal as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert json.loads(protocol.error(refusal.error))["error"]
        return
    keys = [(family, key) for family, keys in wanted.groups.items() for key in keys]
    assert len(keys) == len(set(keys)) <= LIMITS.groups
    for family, key in keys:
        assert max(len(family), len(key)) <= LIMITS.name_length
        # What is echoed must be a frame again.
        assert json.loads(protocol.denied([(family, key)]))
        assert json.loads(protocol.unknown_families([family]))


def test_close_codes_are_never_a_goodbye():
    codes = {
        value
        for name, value in vars(protocol).items()
        if name.isupper() and name[0] != "_" and isinstance(value, int)
    }
    assert codes == {1008, 1012, 1013, 4401, 4403, 4408}

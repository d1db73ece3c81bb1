"""The websocket as an AsyncAPI document: its frames, and the families of this application. Pure.

Generators of clients and pages read it. docs/reference/protocol.md has the same in words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from carillon.events.families import ID, Family
from carillon.sockets.protocol import VERSION_2

Schema = dict[str, Any]

_POSITION = {"$ref": "#/components/schemas/position"}
_TEXT: Schema = {"type": "string"}
_NAMES: Schema = {"type": "array", "items": _TEXT}


def _frame(required: Schema, optional: Schema | None = None) -> Schema:
    """An object that has these members, and maybe those."""
    members = required | (optional or {})
    return {"type": "object", "required": list(required), "properties": members}


_RECEIVED: dict[str, tuple[str, Schema]] = {
    "accepted": (
        "The handshake is accepted: the first frame. Version 2 says where the log is.",
        _frame({"accept": {"const": True}, "user": {"type": "integer"}}, {"position": _POSITION}),
    ),
    "refused": (
        "The handshake is refused; the socket closes with 4401, 4403 or 1013.",
        _frame({
            "accept": {"const": False}, "user": {"type": "null"}, "close": {"const": True}, "error": _TEXT,
        }),
    ),
    "error": (
        "A frame that changes nothing, or not all that it asks for.",
        _frame({"error": _TEXT}) | {"additionalProperties": False},
    ),
    "subscribed": (
        "What is subscribed now. It answers `groups`, and comes unasked when a right is lost.",
        _frame(
            {"groups_current": _NAMES, "groups_left": _NAMES, "groups_joined": _NAMES},
            {"asked": {"const": False}},
        ),
    ),
    "recovered": (
        "Version 2: nothing was missed; from here on it is live.",
        _frame({"recovered": {"const": True}, "position": _POSITION}),
    ),
    "unrecoverable": (
        "Version 2: something was missed: fetch the state anew.",
        _frame({
            "recovered": {"const": False},
            "position": _POSITION,
            "reason": {"enum": ["epoch", "retention", "ahead", "timeout", "unavailable"]},
        }),
    ),
    "progress": (
        "Version 2: nothing of this client's has happened up to here.",
        _frame({"position": _POSITION}) | {"additionalProperties": False},
    ),
    "refreshed": (
        "Version 2: the new token has taken the place of the old.",
        _frame({"refreshed": {"const": True}, "expires": {"type": ["string", "null"]}}),
    ),
    "restart": (
        "Version 2: come back after so many milliseconds; a close with 1012 follows.",
        _frame({"reconnect_after": {"type": "integer", "minimum": 0}}),
    ),
}  # fmt: skip


def _keys(family: Family) -> Schema:
    """What a client may write for this family in `groups`."""
    forms: list[Schema] = [{"type": "string", "pattern": f"^({family.pattern})$"}]
    if ID in family.keys:
        forms.append({"type": "integer", "minimum": 1})
    return {"type": "array", "items": {"anyOf": forms}}


def _event(family: Family) -> Schema:
    """An event as version 2 frames it; version 1 sends the payload alone."""
    trace = {"type": "string", "description": "the request's traceparent"}
    group = {"type": "string", "pattern": f"^{family.name}-({family.pattern})$"}
    return _frame(
        {"position": _POSITION, "group": group, "event": dict(family.payload or {"type": "object"})},
        {"trace": trace},
    )


def document(families: Iterable[Family], version: str, host: str, path: str, *, tls: bool) -> Schema:
    """The document of a server whose websocket is at `path` of `host`."""
    families = sorted(families, key=lambda family: family.name)
    events = {
        f"{family.name}_event": (f"Version 2: an event of {family.name}.", _event(family))
        for family in families
    }
    groups: Schema = {
        "type": "object",
        "properties": {family.name: _keys(family) for family in families},
        "additionalProperties": False,
    }
    sent = {
        "subscribe": (
            "The whole subscription; it replaces the one before.",
            _frame({"groups": groups}, {"since": _POSITION, "xrftoken": _TEXT}),
        ),
        "refresh": (
            "Version 2: another token of the same user.",
            _frame({"refresh": {**_TEXT, "maxLength": 500}}),
        ),
    }
    messages = {
        name: {"name": name, "summary": summary, "contentType": "application/json", "payload": payload}
        for name, (summary, payload) in {**sent, **_RECEIVED, **events}.items()
    }
    channel = {"$ref": "#/channels/websocket"}

    def operation(action: str, names: Iterable[str]) -> Schema:
        listed = [{"$ref": f"#/channels/websocket/messages/{name}"} for name in names]
        return {"action": action, "channel": channel, "messages": listed}

    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Carillon's websocket",
            "version": version,
            "description": f"Version 2 is the subprotocol `{VERSION_2}`. Without it frames have no "
            "positions, and an event is its payload alone.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "here": {
                "host": host,
                "protocol": "wss" if tls else "ws",
                "security": [{"type": "http", "scheme": "bearer"}],
            }
        },
        "channels": {
            "websocket": {
                "address": path,
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
            }
        },
        # As the client sees them.
        "operations": {
            "send": operation("send", sent),
            "receive": operation("receive", [*_RECEIVED, *events]),
        },
        "components": {
            "messages": messages,
            "schemas": {
                "position": {
                    "type": "string",
                    "pattern": "^[0-9a-z]{1,32}:(0|[1-9][0-9]{0,15})$",
                    "description": "Where in the log. Hand it back as it came.",
                }
            },
        },
    }

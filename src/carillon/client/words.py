"""An event as one line for people. Pure."""

from __future__ import annotations

from typing import Any

from carillon.client.protocol import RELATIONS, Event
from carillon.client.terminal import plain_text

_CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36", "dim": "2", "bold": "1"}
_STATUS_COLOURS = {
    "successful": "green",
    "failed": "red",
    "error": "red",
    "canceled": "yellow",
    "running": "cyan",
}
MAX_LINE = 500


def paint(text: str, colour: str | None) -> str:
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m" if colour else text


def plain(value: object) -> str:
    """One line of printable text: what came over the wire must not steer the terminal."""
    text = plain_text(str(value))
    text = "".join(character if character.isprintable() else " " for character in text)
    return text if len(text) <= MAX_LINE else text[: MAX_LINE - 1] + "…"


def describe(event: Event) -> tuple[str, str | None]:
    """(what happened, the name of a colour or None)"""
    payload = event.payload
    if event.family in RELATIONS:
        text, colour = _job_event(payload)
        return plain(f"{_job(event)} #{payload.get('counter', '?')} {text}"), colour
    match event.family:
        case "jobs" | "workflow_events" if "status" in payload:
            status = str(payload["status"])
            text = f"{_job(event)} is {status}"
            if event.family == "workflow_events":
                text = f"workflow {payload.get('workflow_job_id', '?')}: {text}"
            return plain(text), _STATUS_COLOURS.get(status)
        case "jobs":
            return plain(f"{_job(event)} has all its {payload.get('final_counter', '?')} events"), "dim"
        case "schedules":
            return plain(f"schedule {payload.get('id', '?')} changed"), None
        case "inventories":
            return plain(
                f"inventory {payload.get('inventory_id', '?')} is {payload.get('status', '?')}"
            ), None
        case "control":
            return plain(f"the server says: {payload.get('reason', '?')}"), "yellow"
        case "connections":
            return "who is connected changed", "dim"
    rest = {key: value for key, value in payload.items() if key != "group_name"}
    return plain(f"{event.family}: {rest}"), None


def _job(event: Event) -> str:
    kind = RELATIONS.get(event.family, "job").replace("_", " ")
    return f"{kind} {event.job_id if event.job_id is not None else '?'}"


def _job_event(payload: dict[str, Any]) -> tuple[str, str | None]:
    name = str(payload.get("event", "?"))
    data = payload.get("event_data")
    data = data if isinstance(data, dict) else {}
    host, task = data.get("host", "?"), payload.get("task") or "?"
    if name.startswith("runner_"):
        return _result(name, payload, data, f"{host}: ", f": {task}")
    match name:
        case "playbook_on_start":
            return f"playbook {data.get('playbook', '')} starts", "bold"
        case "playbook_on_play_start":
            return f"play: {payload.get('play') or '?'}", "bold"
        case "playbook_on_task_start":
            role = payload.get("role")
            return f"task: {role + ': ' if role else ''}{task}", None
        case "playbook_on_include":
            return f"included {data.get('included_file', '?')}", "cyan"
        case "playbook_on_notify":
            return f"{host}: notified {data.get('handler', '?')}", "dim"
        case "playbook_on_stats":
            return f"recap: {_recap(data)}", "red" if payload.get("failed") else "green"
        case "verbose":
            return f"output: {payload.get('stdout', '')}", "dim"
    return name.replace("_", " "), None


def _result(
    name: str, payload: dict[str, Any], data: dict[str, Any], before: str, after: str
) -> tuple[str, str | None]:
    item = f" (item {data['item']})" if "item" in data else ""
    word = name.removeprefix("runner_item_on_").removeprefix("runner_on_").removeprefix("runner_")
    words = word.replace("_", " ")
    colour: str | None = None
    if word in ("ok", "async_ok"):
        words, colour = ("changed", "yellow") if payload.get("changed") else (words, "green")
    elif word == "failed":
        colour = "red"
        if data.get("ignore_errors"):
            words, colour = "failed, ignored", "cyan"
        elif data.get("rescued"):
            words = "failed, will be rescued"
    elif word in ("unreachable", "async_failed"):
        colour = "red"
    elif word in ("skipped", "file_diff"):
        words, colour = {"skipped": "skipped", "file_diff": "a file changed"}[word], "cyan"
    elif word == "retry":
        words, colour = "not yet, tries again", "yellow"
    elif word == "start":
        words, colour = "starts", "dim"
    return f"{before}{words}{after}{item}", colour


def _recap(data: dict[str, Any]) -> str:
    parts = []
    for key in ("ok", "changed", "dark", "failures", "skipped", "rescued", "ignored"):
        counts = data.get(key)
        total = (
            sum(count for count in counts.values() if isinstance(count, int))
            if isinstance(counts, dict)
            else 0
        )
        if total:
            parts.append(f"{ {'dark': 'unreachable', 'failures': 'failed'}.get(key, key) } {total}")
    return ", ".join(parts) or "nothing ran"

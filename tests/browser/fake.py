"""A server that plays Carillon for the page: what the stack cannot be made to do on cue, this does.

An ASGI application for daphne. It serves the page with hashed static files under nginx's CSP, the answers of
the REST API that the page reads, and `/websocket/`. Tests steer it by `POST /fake/` with `{"do": …}`:

    {"do": "events", "job": 1, "events": […], "live": true}   store events; live: also send them
    {"do": "job", "fields": {…}}                              a new job: the arguments of `job`
                                                              "quiet": true: and nobody is told
    {"do": "long", "job": 1, "count": 9, "broken": [3]}       so many events of a line exist, some failures
    {"do": "status", "job": 1, "status": "successful"}        or "jobs": […]
    {"do": "frame", "frame": {…}}                             send a frame to every socket
    {"do": "close", "code": 4408}                             close every socket
    {"do": "refuse", "code": 4403, "error": "…"}              refuse handshakes; code null: accept again
    {"do": "mute", "mute": true}                              answer no subscription
    {"do": "session", "valid": false}                         end the login
    {"do": "become", "fields": {"id": 2}}                     somebody else is logged in
    {"do": "admin", "is": false}                              who is logged in is an admin, or not
    {"do": "watch", "job": 1, "names": ["ada"]}               who has a job open besides this browser
    {"do": "sessions", "unlisted": "why"}                     sessions are kept so that nobody can list them
    {"do": "operations", "fields": {…}}                       other words of /operations/ from now on
    {"do": "fail", "path": "/api/v2/jobs/", "times": 1}       answer 502 to the next requests of a path
    {"do": "hold", "path": "…", "seconds": 2}                 keep the next answer of a path back for so long
                                                              both with "of": to a query that has this name
    {"do": "log"}                                             speak version 2 from now on: a client can resume
    {"do": "forget"}                                          the log begins here: what was before is lost
    {"do": "reset"}                                           all as at the start

`fake.py PORT ORDERS`: it carries out the orders in that file first, as a server that was started again.
"""

import asyncio
import contextlib
import json
import re
import sys
import tempfile
from bisect import bisect_right
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import django
from autobahn.exception import Disconnected
from django.conf import settings

SOURCE = Path(__file__).parents[2] / "src"
ROOT = tempfile.mkdtemp(prefix="carillon-fake-")
settings.configure(
    SECRET_KEY="fake",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="tower.urls",
    INSTALLED_APPS=["django.contrib.staticfiles"],
    STATICFILES_DIRS=[SOURCE / "carillon" / "static", SOURCE / "tower" / "static"],
    STATIC_URL="/static/",
    STATIC_ROOT=ROOT,
    STORAGES={"staticfiles": {"BACKEND": "carillon.api.static_storage.HashedStorage"}},
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "DIRS": [SOURCE / "tower" / "templates"],
        }
    ],
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.template.loader import render_to_string  # noqa: E402

call_command("collectstatic", verbosity=0, interactive=False)

CSP = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}
USER = {"id": 1, "username": "ringer", "is_superuser": True, "teams": []}


def now():
    return datetime.now(UTC)


def job(number, name, status, kind="job", ago=0, took=None, team=None, owner="ringer"):
    started = now() - timedelta(seconds=ago)
    done = status not in ("new", "pending", "waiting", "running")
    return {
        "id": number,
        "type": kind,
        "kind": kind,
        "url": f"/api/v2/jobs/{number}/",
        "name": name,
        "status": status,
        "created": started.isoformat(),
        "modified": started.isoformat(),
        "started": None if status in ("new", "pending", "waiting") else started.isoformat(),
        "finished": (started + timedelta(seconds=took or 1)).isoformat() if done else None,
        "elapsed": took or 0.0,
        "failed": status in ("failed", "error"),
        "owner": 1,
        "team": None,
        "workflow_job": None,
        "event_family": f"{kind}_events",
        "related": {},
        "summary_fields": {
            "owner": {"id": 1, "username": owner},
            "team": team and {"id": 1, "name": team},
        },
    }


def token(number, description, **fields):
    about = {"scope": "read write", "expires": (now() + timedelta(days=30)).isoformat(), "last_used": None}
    made = (now() - timedelta(days=2)).isoformat()
    return {"id": number, "description": description, "created": made, **about, **fields}


def session(number, client, address, hours, current=False):
    since, expires = now() - timedelta(hours=hours), now() + timedelta(hours=8 - hours)
    return {
        "id": number, "since": since.isoformat(), "expires": expires.isoformat(),
        "address": address, "client": client, "current": current,
    }  # fmt: skip


class State:
    def __init__(self):
        self.logged_in = True
        self.admin = True
        self.user = USER
        self.operations = {}
        self.operations_asked = 0
        self.refusal = None
        self.muted = False
        self.failing = {}
        self.holding = {}
        self.watching = {}
        self.unlisted = ""
        self.tokens = [
            token(2, "Backup", last_used=(now() - timedelta(hours=3)).isoformat()),
            token(1, "", scope="read", expires=None),
        ]
        self.sessions = [
            session(7, "Mozilla/5.0 Chrome/140.0", "192.0.2.7", 1, current=True),
            session(6, "Mozilla/5.0 Firefox/140.0", "192.0.2.9", 2),
            session(5, "awxkit", "192.0.2.10", 5),
        ]
        self.log = None  # [group, event], in order: positions are its lengths
        self.oldest = 0
        self.sockets = {}
        self.jobs = {
            one["id"]: one
            for one in [
                job(1, "Roll out the web tier", "running", ago=42, team="Platform"),
                job(2, "Nightly inventory", "successful", "inventory_update", ago=4000, took=31.4),
                job(3, "Fetch site playbooks", "failed", "project_update", ago=9000, took=4.2),
                job(4, "Rotate certificates", "pending", ago=8),
                job(5, "Ping all hosts", "canceled", "ad_hoc_command", ago=90000, took=2.0),
            ]
        }
        self.events = {number: [] for number in self.jobs}
        self.schedules = {
            1: {
                "id": 1,
                "name": "Nightly inventory",
                "rrule": "DTSTART:20250101T020000Z RRULE:FREQ=DAILY",
                "enabled": True,
                "next_run": (now() + timedelta(hours=5)).isoformat(),
                "owner": 1,
                "team": None,
                "summary_fields": {
                    "owner": {"id": 1, "username": "ringer"},
                    "team": {"id": 1, "name": "Platform"},
                },
            },
        }


STATE = State()


def page_of(rows, query):
    size = min(int(query.get("page_size", ["25"])[0]), 200)
    page = int(query.get("page", ["1"])[0])
    follows = urlencode({**{name: values[0] for name, values in query.items()}, "page": page + 1})
    return {
        "count": None if query.get("count") == ["no"] else len(rows),
        "next": f"http://fake/api/next/?{follows}" if len(rows) > page * size else None,
        "previous": None,
        "results": rows[(page - 1) * size : page * size],
    }


def listing(query):
    states = [state for state in query.get("status", [""])[0].split(",") if state]
    search = query.get("search", [""])[0].lower()
    rows = sorted(STATE.jobs.values(), key=lambda one: -one["id"])
    rows = [one for one in rows if (not states or one["status"] in states) and search in one["name"].lower()]
    for name, [value] in query.items():
        if name in JOB_FILTERS:
            rows = [one for one in rows if JOB_FILTERS[name](one, value)]
    return rows


JOB_FILTERS = {
    "kind": lambda one, value: one["kind"] in value.split(","),
    "owner__username": lambda one, value: one["summary_fields"]["owner"]["username"] == value,
    "team__name": lambda one, value: (one["summary_fields"]["team"] or {}).get("name") == value,
    "created__gte": lambda one, value: (
        datetime.fromisoformat(one["created"]) >= datetime.fromisoformat(value)
    ),
}


def connections(query):
    """Of this user's sockets, and of who watches besides."""
    group = query.get("group", [None])[0]
    mine = [socket for socket in STATE.sockets.values() if group is None or group in socket.groups]
    people = [(1, "ringer")] * len(mine)
    people += list(enumerate(STATE.watching.get(group, []), 2))
    about = {"since": now().isoformat(), "address": "192.0.2.7", "client": "Mozilla/5.0 Chrome/140.0"}
    return [{"user": {"id": number, "username": name}, **about} for number, name in people]


FILTERS = {
    "counter__gte": lambda event, value: event["counter"] >= int(value),
    "counter__lt": lambda event, value: event["counter"] < int(value),
    "end_line__gte": lambda event, value: event.get("end_line", 0) >= int(value),
    "event": lambda event, value: event["event"] in value.split(","),
    "result": lambda event, value: result(event) in value.split(","),
    "host": lambda event, value: event["event_data"].get("host") == value or result(event) == "heading",
    "search": lambda event, value: value.lower() in re.sub("\x1b\\[[0-9;]*m", "", event["stdout"]).lower(),
}


def result(event):
    """As `EventQuerySet.with_result`, for the events that tests make."""
    if event["event"].startswith("playbook_on_"):
        return "heading"
    if not event["event"].startswith("runner_on_"):
        return "other"
    return (
        "failed"
        if event["failed"]
        else "changed"
        if event["changed"]
        else event["event"].removeprefix("runner_on_")
    )


def events_of(number, query):
    rows = STATE.events[number]  # in order, and many: what lies before the asked ones is skipped at once
    if "counter__gt" in query:
        rows = rows[bisect_right(rows, int(query["counter__gt"][0]), key=lambda event: event["counter"]) :]
    for name, [value] in query.items():
        if name in FILTERS:
            rows = [event for event in rows if FILTERS[name](event, value)]
    return rows[::-1] if query.get("order_by") == ["-counter"] else rows


def summary(rows):
    """As `EventQuerySet.summary`, for the events that tests make."""
    counted = {
        name: sum(event["event"] == f"runner_on_{name}" for event in rows)
        for name in ("ok", "failed", "unreachable", "skipped")
    }
    return {
        **counted,
        "events": len(rows),
        "lines": sum(
            event.get("end_line", 0) - event.get("start_line", 0) or len(event["stdout"].splitlines())
            for event in rows
        ),
        "tasks": sum(event["event"] == "playbook_on_task_start" for event in rows),
        "changed": sum(event["event"] == "runner_on_ok" and event["changed"] for event in rows),
        "ignored": 0,
    }


def operations(times):
    """As /api/v2/operations/ answers where all is well; what is counted grows by 40 a second."""
    idle = dict.fromkeys(("position", "behind", "sockets", "slow", "held", "waiting_bytes"))
    process = {"up": True, "late": False, "heard": 0.4, "memory_bytes": 9e7, **idle}
    return {
        "host": "web1",
        "seconds": 2.0 * times,
        "state": "flowing",
        "words": "Events flow.",
        "totals": dict.fromkeys(("emitted", "relayed", "delivered", "requests"), 80.0 * times),
        "waiting": {"outbox": 0, "queue": 3, "dead_letters": 0, "runworkers": 1},
        "processes": [
            {"name": "daphne 0", **process, "position": 1048701.0, "behind": 0.0, "sockets": 1204.0},
            {"name": "runworker 0", **process, "position": 1048701.0},
            {"name": "uwsgi 0", **process},
        ],
        "conditions": [],
        "counted": [
            {"alert": "CarillonEventsLost", "total": 2.0, "critical": True,
             "summary": "{value} events were lost.", "action": "The log of uwsgi names their groups."},
        ],
    }  # fmt: skip


def position():
    return f"fake:{len(STATE.log)}"


async def tell(frame, group=None):
    if STATE.log is not None and group:
        STATE.log.append((group, frame))
        frame = {"position": position(), "group": group, "event": frame}
    for socket in list(STATE.sockets.values()):
        if group is None or group in socket.groups:
            await socket(frame)


class Socket:
    def __init__(self, send):
        self.send = send
        self.groups = set()

    async def __call__(self, frame):
        with contextlib.suppress(Disconnected):  # it has gone, and is not taken off yet
            await self.send({"type": "websocket.send", "text": json.dumps(frame)})

    async def subscribe(self, groups, since):
        left, joined = self.groups - groups, groups - self.groups
        self.groups -= left
        await self(
            {
                "groups_current": sorted(groups),
                "groups_left": sorted(left),
                "groups_joined": sorted(joined),
            }
        )
        if since and STATE.log is not None:
            await self.resume(joined, int(since.partition(":")[2]))
        self.groups = groups

    async def resume(self, joined, at):
        """Those that are joined hear what they missed, and are live when that is done."""
        if at < STATE.oldest:
            await self({"recovered": False, "reason": "retention", "position": position()})
            return
        while at < len(STATE.log):
            group, frame = STATE.log[at]
            at += 1
            if group in joined:
                await self({"position": f"fake:{at}", "group": group, "event": frame})
        await self({"recovered": True, "position": f"fake:{at}"})


async def set_status(number, status):
    one = STATE.jobs[number]
    one["status"] = status
    if status == "running":
        one["started"] = now().isoformat()
    elif status in ("successful", "failed", "canceled", "error"):
        one["finished"] = now().isoformat()
    frame = {"group_name": "jobs", "unified_job_id": number, "status": status, "type": one["kind"]}
    await tell(frame, "jobs-status_changed")


def complete(number, **event):
    return {
        "job": number,
        "group_name": "job_events",
        "event": "verbose",
        "event_data": {},
        "failed": False,
        "changed": False,
        "play": "",
        "task": "",
        "stdout": "",
        **event,
    }


async def steer(order):
    do = order["do"]
    if do == "events":
        number = order["job"]
        for event in order["events"]:
            event = complete(number, **event)
            STATE.events[number].append(event)
            if order.get("live", True):
                await tell(event, f"job_events-{number}")
        STATE.events[number].sort(key=lambda event: event["counter"])
    elif do == "long":
        for number in range(1, order["count"] + 1):
            broken = number in order["broken"]
            STATE.events[order["job"]].append(
                complete(
                    order["job"],
                    counter=number,
                    stdout=f"line {number}",
                    start_line=number - 1,
                    end_line=number,
                    event="runner_on_failed" if broken else "runner_on_ok",
                    failed=broken,
                )
            )
    elif do == "job":
        one = job(**order["fields"])
        STATE.jobs[one["id"]] = one
        STATE.events.setdefault(one["id"], [])
        if not order.get("quiet"):
            await tell(
                {"group_name": "jobs", "unified_job_id": one["id"], "status": one["status"]},
                "jobs-status_changed",
            )
    elif do == "frame":
        await tell(order["frame"])
    elif do == "status":
        for number in order.get("jobs") or [order["job"]]:
            await set_status(number, order["status"])
    elif do == "close":
        for socket in list(STATE.sockets.values()):
            await socket.send({"type": "websocket.close", "code": order["code"]})
    elif do == "refuse":
        STATE.refusal = order if order["code"] else None
    elif do == "mute":
        STATE.muted = order["mute"]
    elif do == "fail":
        STATE.failing[order["path"], order.get("of")] = order["times"]
    elif do == "watch":
        STATE.watching[f"job_events-{order['job']}"] = order["names"]
    elif do == "sessions":
        STATE.unlisted = order["unlisted"]
    elif do == "become":
        STATE.user = USER | order["fields"]
    elif do == "admin":
        STATE.admin = order["is"]
    elif do == "operations":
        STATE.operations.update(order["fields"])
    elif do == "hold":
        STATE.holding[order["path"], order.get("of")] = order["seconds"]
    elif do == "log":
        STATE.log = []
    elif do == "forget":
        STATE.oldest = len(STATE.log)
    elif do == "session":
        STATE.logged_in = order["valid"]
    elif do == "reset":
        for socket in list(STATE.sockets.values()):
            await socket.send({"type": "websocket.close", "code": 4408})
        STATE.__init__()


def make_token(asked):
    if "publish" in asked["scope"]:
        return 400, {"scope": ["only who may publish may make a token with the scope publish"]}
    made = token(
        max((one["id"] for one in STATE.tokens), default=0) + 1, **asked | {"created": now().isoformat()}
    )
    STATE.tokens.insert(0, made)
    return 201, made | {"token": "car_" + "x" * 43}


async def answer(method, path, query, body):
    """Status and JSON of the API's answer."""
    if path == "/fake/":
        await steer(json.loads(body))
        return 200, {}
    for of in (None, *query):
        if STATE.failing.get((path, of), 0) > 0:
            STATE.failing[path, of] -= 1
            return 502, None
    if path == "/api/login/":
        form = parse_qs(body.decode())
        if form.get("password") != ["bells"]:
            return 401, {"detail": "Wrong username or password."}
        STATE.logged_in = True
        return 200, USER
    if not STATE.logged_in:
        return 401, {"detail": "Authentication credentials were not provided."}
    parts = path.removeprefix("/api/v2/").strip("/").split("/")
    match parts:
        case ["api", "logout"]:
            STATE.logged_in = False
            return 200, {}
        case ["me"]:
            return 200, {
                "count": 1,
                "next": None,
                "previous": None,
                "results": [{**STATE.user, "is_superuser": STATE.admin}],
            }
        case ["jobs"]:
            return 200, page_of(listing(query), query)
        case ["jobs", number, *rest] if int(number) in STATE.jobs:
            if rest == ["events"]:
                return 200, page_of(events_of(int(number), query), query)
            if rest == ["summary"]:
                return 200, summary(events_of(int(number), query))
            if rest == ["hits"]:
                counters = [event["counter"] for event in events_of(int(number), query)]
                offset = int(query.get("offset", ["0"])[0])
                return 200, {
                    "count": len(counters),
                    "offset": offset,
                    "counters": counters[offset : offset + 10_000],
                }
            if rest == ["cancel"]:
                await set_status(int(number), "canceled")
            return (202 if rest else 200), STATE.jobs[int(number)]
        case ["schedules"]:
            return 200, page_of(list(STATE.schedules.values()), query)
        case ["schedules", number]:
            STATE.schedules[int(number)].update(json.loads(body))
            await tell({"group_name": "schedules", "id": int(number)}, "schedules-changed")
            return 200, STATE.schedules[int(number)]
        case ["operations" | "dead_letters" | "explain"] if not STATE.admin:
            return 403, {"detail": "Operations are for admins."}
        case ["operations"]:
            STATE.operations_asked += 1
            return 200, operations(STATE.operations_asked) | STATE.operations
        case ["dead_letters"]:
            messages = [{"group": "jobs-summary", "id": "7d" * 16}]
            letter = {"name": "5f0c", "reason": "no group", "time": now().isoformat(), "bytes": 212}
            return 200, {"results": [{**letter, "count": 1, "messages": messages}], "most": 50}
        case ["explain"]:
            if query["event"] != ["19a8:105"]:
                return 404, {"detail": "no event of the log has that number: too old for the log"}
            hops = [("position", "19a8:105"), ("the queue", "taken off: the row has 19a8:110")]
            return 200, {"hops": [{"name": name, "text": text} for name, text in hops]}
        case ["me", "password"]:
            said = json.loads(body)
            if said["current"] != "bells":
                return 400, {"current": ["This is not your password."]}
            STATE.sessions = [one for one in STATE.sessions if one["current"]]
            return 200, {"ended": 2}
        case ["connections"]:
            return 200, page_of(connections(query), query)
        case ["tokens"] if method == "POST":
            return make_token(json.loads(body))
        case ["tokens"]:
            return 200, page_of(STATE.tokens, query)
        case ["tokens", number]:
            STATE.tokens = [one for one in STATE.tokens if one["id"] != int(number)]
            return 204, None
        case ["sessions", *_] if STATE.unlisted:
            return 404, {"detail": STATE.unlisted}
        case ["sessions"]:
            return 200, page_of(STATE.sessions, query)
        case ["sessions", "end_others"]:
            kept = [one for one in STATE.sessions if one["current"]]
            ended = len(STATE.sessions) - len(kept)
            STATE.sessions = kept
            return 200, {"ended": ended}
        case ["sessions", number]:
            STATE.sessions = [one for one in STATE.sessions if one["id"] != int(number)]
            return 204, None
    return 404, {"detail": "Not found."}


async def http(scope, receive, send):
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    path, query = scope["path"], parse_qs(scope["query_string"].decode())
    headers = [(b"content-security-policy", CSP.encode())]
    if path == "/":
        status, kind, content = (
            200,
            "text/html; charset=utf-8",
            render_to_string("tower/page.html", {"sign_on": "Example ID"}).encode(),
        )
        headers.append((b"set-cookie", b"csrftoken=fake; Path=/; SameSite=Lax"))
    elif path.startswith("/static/"):
        file = Path(ROOT, path.removeprefix("/static/"))
        status, content = (200, file.read_bytes()) if file.is_file() else (404, b"")
        kind = TYPES.get(file.suffix, "application/octet-stream")
    else:
        if STATE.log is not None:
            headers.append((b"x-carillon-position", position().encode()))
        status, data = await answer(scope["method"], path, query, body)
        kind, content = "application/json", b"" if status == 204 else json.dumps(data).encode()
    headers.append((b"content-type", kind.encode()))
    await asyncio.sleep(max(STATE.holding.pop((path, of), 0) for of in (None, *query)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def websocket(receive, send):
    await receive()
    # Browsers give up when what they offer is not taken. Without positions in its frames it is version 1.
    await send({"type": "websocket.accept", "subprotocol": "carillon.v2"})
    socket = Socket(send)
    if STATE.refusal or not STATE.logged_in:
        refusal = STATE.refusal or {"code": 4401, "error": "not logged in"}
        await socket({"accept": False, "user": None, "close": True, "error": refusal.get("error", "")})
        await send({"type": "websocket.close", "code": refusal["code"]})
        return
    STATE.sockets[id(socket)] = socket
    await socket(
        {"accept": True, "user": STATE.user["id"], **({} if STATE.log is None else {"position": position()})}
    )
    try:
        while (message := await receive())["type"] == "websocket.receive":
            if STATE.muted:
                continue
            asked = json.loads(message["text"])
            groups = {f"{family}-{key}" for family, keys in asked["groups"].items() for key in keys}
            await socket.subscribe(groups, asked.get("since"))
    finally:
        del STATE.sockets[id(socket)]


async def application(scope, receive, send):
    if scope["type"] == "http":
        await http(scope, receive, send)
    elif scope["type"] == "websocket":
        await websocket(receive, send)


if __name__ == "__main__":
    from daphne.server import Server

    for order in json.loads(Path(sys.argv[2]).read_text()) if sys.argv[2:] else ():
        asyncio.run(steer(order))
    Server(application, endpoints=[f"tcp:port={sys.argv[1]}:interface=127.0.0.1"], signal_handlers=True).run()

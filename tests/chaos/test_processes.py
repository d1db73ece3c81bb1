"""Two processes of daphne: what holds in each of them, when rights change and when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from http.cookiejar import CookieJar
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.chaos.report import write_down
from tests.chaos.site import Site, docker

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(Site.from_environment() is None, reason="no stack: `make test` starts one"),
]

WAIT = 60  # seconds: machines that test are slow
# By its own name: daphne asks for that, too. `host` says which process.
WHERE = "ws://localhost:8051/websocket/"
PYTHON = "/opt/carillon/current/bin/python"

# Runs in the uwsgi container: changes what the API does not, by Django's models, and says when it was done.
SHELL = """
import os, sys, time
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
import django
django.setup()
from django.contrib.auth import get_user_model
from carillon.accounts.models import ApiToken, Team
from tower.models import Job
User = get_user_model()
names = dict(globals())
for line in sys.stdin:
    value = eval(line, names) if line[0] != "!" else exec(line[1:], names)
    print(time.time(), value, flush=True)
"""


class Shell:
    """`shell("…")` evaluates there: (when it was done, the value as text); `shell.do("…")` executes."""

    def __init__(self, container: str) -> None:
        self.process = subprocess.Popen(
            ["docker", "exec", "-i", container, PYTHON, "-c", SHELL],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, line: str) -> tuple[float, str]:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        done, _, value = self.process.stdout.readline().strip().partition(" ")
        assert done, f"{line!r} failed: see the error above"
        return float(done), value

    def do(self, line: str) -> float:
        return self("!" + line)[0]


@pytest.fixture(scope="module")
def site() -> Site:
    return Site.from_environment()


@pytest.fixture(scope="module")
def shell(site) -> Iterator[Shell]:
    shell = Shell(site.own("uwsgi")[0])
    yield shell
    shell.process.stdin.close()
    shell.process.wait(30)


@pytest.fixture(scope="module")
def daphnes(site) -> Iterator[list[str]]:
    """The addresses of two processes: the stack's own, and one like it."""
    with site.beside("daphne", "second-daphne", ["run", "daphne"]) as second:
        addresses = [site.ip(site.own("daphne")[0]), site.ip(second)]
        deadline = time.monotonic() + WAIT
        for address in addresses:
            while True:
                try:
                    urllib.request.urlopen(f"http://{address}:8051/", timeout=2)
                except urllib.error.HTTPError:
                    break
                except OSError:
                    assert time.monotonic() < deadline, f"no daphne at {address}"
                    time.sleep(0.2)
        yield addresses


class Person:
    """A user of this test's own, with a token and, if asked for, a session."""

    def __init__(self, shell: Shell, site: Site) -> None:
        self.shell = shell
        self.site = site
        self.name = f"test-{uuid.uuid4()}"
        self.id = int(shell(f"User.objects.create_user({self.name!r}, password={self.name!r}).pk")[1])
        self.token = shell(f"ApiToken.issue(User.objects.get(pk={self.id}))[1]")[1]

    def session(self) -> str:
        """A `Cookie` header."""
        jar = CookieJar()
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=self.site.tls), urllib.request.HTTPCookieProcessor(jar)
        )
        url = self.site.values["CARILLON_URL"]
        opener.open(f"{url}/api/", timeout=WAIT).read()
        token = next(cookie.value for cookie in jar if cookie.name == "csrftoken")
        request = urllib.request.Request(
            f"{url}/api/login/",
            urllib.parse.urlencode({"username": self.name, "password": self.name}).encode(),
            {"X-CSRFToken": token, "Referer": url, "Accept": "application/json"},
        )
        opener.open(request, timeout=WAIT).read()
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in jar)


class Client:
    """A socket at one process."""

    def __init__(self, raw: ClientConnection) -> None:
        self.raw = raw

    async def frame(self) -> dict[str, Any]:
        return json.loads(await asyncio.wait_for(self.raw.recv(), WAIT))

    async def subscribe(self, groups: dict[str, list], **more: str) -> dict[str, Any]:
        await self.raw.send(json.dumps({"groups": groups, **more}))
        return await self.frame()

    async def closed(self) -> tuple[float, int]:
        """When it was closed, and with what."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.frame()
        return time.time(), self.raw.close_code

    async def left(self) -> tuple[float, list[str]]:
        """When groups were taken away, and which."""
        while not (frame := await self.frame()).get("groups_left"):
            pass
        return time.time(), frame["groups_left"]


@contextlib.asynccontextmanager
async def at_each(daphnes: list[str], **headers: str):
    """A socket at every process, subscribed to nothing yet."""
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for address in daphnes:
            raw = await stack.enter_async_context(
                connect(WHERE, host=address, additional_headers=headers, proxy=None)
            )
            clients.append(Client(raw))
            assert (await clients[-1].frame())["accept"] is True
        yield clients


def bearer(person: Person) -> dict[str, str]:
    return {"Authorization": f"Bearer {person.token}"}


def report(what: str, done: float, seen: list[float]) -> None:
    write_down({"rights": what, "processes": len(seen), "seconds": round(max(seen) - done, 3)})


REVOKED = [
    ("token revoked", "ApiToken.objects.filter(user=User.objects.get(pk={id})).delete()"),
    ("user deactivated", "user = User.objects.get(pk={id}); user.is_active = False; user.save()"),
    ("user deleted", "User.objects.get(pk={id}).delete()"),
]


@pytest.mark.parametrize(("what", "change"), REVOKED)
async def test_the_end_of_a_login_closes_its_sockets_everywhere(site, shell, daphnes, what, change):
    person, other = Person(shell, site), Person(shell, site)
    async with at_each(daphnes, **bearer(person)) as clients, at_each(daphnes, **bearer(other)) as others:
        done = await asyncio.to_thread(shell.do, change.format(id=person.id))
        closed = await asyncio.gather(*(client.closed() for client in clients))
        assert [code for _, code in closed] == [4401, 4401]
        for client in others:
            assert (await client.subscribe({"jobs": ["summary"]}))["groups_joined"] == ["jobs-summary"]
    report(what, done, [when for when, _ in closed])


AT_THE_COMMIT = """
import os
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
import django
django.setup()
from django.db import transaction
from carillon.accounts.models import ApiToken
with transaction.atomic():
    transaction.on_commit(lambda: os._exit(137))  # before anything else that follows the commit
    ApiToken.objects.filter(user_id={id}).delete()
"""


async def test_a_process_that_dies_at_the_commit_loses_no_revocation(site, shell, daphnes):
    person = Person(shell, site)
    async with at_each(daphnes, **bearer(person)) as clients:
        died = await asyncio.to_thread(
            subprocess.run,
            ["docker", "exec", site.own("uwsgi")[0], PYTHON, "-c", AT_THE_COMMIT.format(id=person.id)],
        )
        done = time.time()
        assert died.returncode == 137, "it was to die there"
        closed = await asyncio.gather(*(client.closed() for client in clients))
        assert [code for _, code in closed] == [4401, 4401]
    report("token revoked by a process that dies at the commit", done, [when for when, _ in closed])


async def test_the_end_of_a_session(site, shell, daphnes):
    person = Person(shell, site)
    cookies = await asyncio.to_thread(person.session)
    async with at_each(daphnes, Cookie=cookies) as clients:
        done = await asyncio.to_thread(
            shell.do,
            "from carillon.accounts.models import UserSession; "
            f"[each.session.delete() for each in UserSession.objects.filter(user={person.id})]",
        )
        closed = await asyncio.gather(*(client.closed() for client in clients))
        assert [code for _, code in closed] == [4401, 4401]
    report("session ended", done, [when for when, _ in closed])


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("job moved to another team", "job = Job.objects.get(pk={job}); job.team = None; job.save()"),
        ("team lost a member", "Team.objects.get(pk={team}).members.remove({person})"),
        ("team deleted", "Team.objects.get(pk={team}).delete()"),
    ],
)
async def test_a_group_that_may_no_longer_be_heard(site, shell, daphnes, what, change):
    owner, person = Person(shell, site), Person(shell, site)
    team = int(shell(f"Team.objects.create(name={uuid.uuid4().hex!r}).pk")[1])
    shell.do(f"Team.objects.get(pk={team}).members.add({person.id})")
    job = int(shell(f"Job.objects.create(name='x', owner_id={owner.id}, team_id={team}).pk")[1])
    group = f"job_events-{job}"
    async with at_each(daphnes, **bearer(person)) as clients:
        for client in clients:
            assert (await client.subscribe({"job_events": [job]}))["groups_joined"] == [group]
        done = await asyncio.to_thread(shell.do, change.format(job=job, team=team, person=person.id))
        # Told after the change: nobody here may hear it.
        await asyncio.to_thread(site.publish, [{"group": group, "payload": {"secret": 1}}])
        left = await asyncio.gather(*(client.left() for client in clients))
        assert [groups for _, groups in left] == [[group], [group]]
        for client in clients:
            frame = await client.subscribe({"jobs": ["summary"]})
            assert frame.get("groups_joined") == ["jobs-summary"], frame
    report(what, done, [when for when, _ in left])


async def test_the_sockets_of_a_killed_process_are_gone(site, shell, daphnes):
    """kill -9, with nobody coming back: the list is right within the bound, and whoever looks is told."""
    job = int(shell(f"Job.objects.create(name='x', owner_id={Person(shell, site).id}).pk")[1])
    watched = f"job_events-{job}"
    admin = {"Authorization": f"Bearer {site.token}"}
    async with contextlib.AsyncExitStack() as stack:
        onlooker = Client(
            await stack.enter_async_context(
                connect(WHERE, host=daphnes[0], additional_headers=admin, proxy=None)
            )
        )
        await onlooker.frame()
        await onlooker.subscribe({"connections": ["changed"], "job_events": [job]})
        with site.beside("daphne", "third-daphne", ["run", "daphne"]) as third:
            address = site.ip(third)
            crowd = []
            for _ in range(200):
                crowd.append(await stack.enter_async_context(patient(address, admin)))
                await crowd[-1].send(json.dumps({"groups": {"job_events": [job]}}))
            await asyncio.to_thread(site.await_connections, 201, watched)
            killed = time.monotonic()
            await asyncio.to_thread(docker, "kill", "--signal", "KILL", third)
            for raw in crowd:
                raw.transport.abort()
        # Asked by other processes: by their clocks and the database's, not by the dead one's.
        await asyncio.to_thread(site.await_connections, 1, watched)
        gone = time.monotonic() - killed
        told = 0.0
        while told < gone - 5:  # coming and going before the kill was told of, too
            await onlooker.frame()
            told = time.monotonic() - killed
    write_down({"presence": "200 sockets killed", "unlisted, s": round(gone, 1), "told, s": round(told, 1)})


@contextlib.asynccontextmanager
async def patient(address: str, headers: dict[str, str]):
    """A socket at a process that may still be starting."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            raw = await connect(
                WHERE, host=address, additional_headers=headers, proxy=None, close_timeout=1,
                ping_interval=None,
            )  # fmt: skip
            break
        except OSError:
            assert time.monotonic() < deadline, f"no daphne at {address}"
            await asyncio.sleep(0.2)
    try:
        yield raw
    finally:
        await raw.close()


@pytest.mark.skipif(not os.environ.get("CARILLON_CHAOS_WHOLE"), reason="one of the long cells: `make chaos`")
async def test_presence_after_the_database_was_away(site, shell, daphnes):
    """Sockets come and go while it is away; afterwards the list has just those who are there."""
    job = int(shell(f"Job.objects.create(name='x', owner_id={Person(shell, site).id}).pk")[1])
    admin = {"Authorization": f"Bearer {site.token}"}
    async with contextlib.AsyncExitStack() as stack:
        sockets = []
        for number in range(20):
            raw = await stack.enter_async_context(patient(daphnes[number % 2], admin))
            await raw.send(json.dumps({"groups": {"job_events": [job]}}))
            sockets.append(raw)
        await asyncio.to_thread(site.await_connections, 20, f"job_events-{job}")
        await asyncio.to_thread(docker, "stop", "--time", "30", *site.own("postgresql"))
        try:
            await asyncio.gather(*(raw.close() for raw in sockets[:7]))
            await asyncio.sleep(12)  # longer than a heartbeat may be old: everybody seems dead
        finally:
            await asyncio.to_thread(site.start, "postgresql")
        await asyncio.to_thread(site.await_serving)
        await asyncio.to_thread(site.await_connections, 13, f"job_events-{job}")

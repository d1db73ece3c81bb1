"""The demo, sent by the callback through the real stack and heard by the client: all, once, in order."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

import carillon.client
from carillon.client import rest
from carillon.client.endpoint import endpoint

pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif("CARILLON_STACK_ENV" not in os.environ, reason="CARILLON_STACK_ENV names no stack"),
]
ROOT = Path(__file__).parents[3]
RUN_SECONDS = 300


@pytest.fixture(scope="module")
def stack():
    """The shell file that the stack wrote, as a dict."""
    text = Path(os.environ["CARILLON_STACK_ENV"]).read_text()
    pairs = (word.partition("=") for word in shlex.split(text, comments=True) if "=" in word)
    return {name: value for name, _, value in pairs}


@pytest.fixture
def where(stack):
    return endpoint(stack["CARILLON_URL"], stack["CARILLON_TOKEN"], stack["CARILLON_CA_CERT"])


@pytest.fixture
def environ(stack):
    keep = {
        name: value for name, value in os.environ.items() if not name.startswith(("CARILLON_", "ANSIBLE_"))
    }
    return {**keep, "PYTHONPATH": str(ROOT / "src"), **stack}


@pytest.fixture
async def execute():
    """execute(module, *arguments, env=…, cwd=…) starts a Python module; what is left running is killed."""
    started = []

    async def start(*words, env, cwd=ROOT):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *words,
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def finish(process, seconds=60):
    async with asyncio.timeout(seconds):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def all_events(where, job):
    found = []
    while True:
        answer = await rest.get(
            where,
            f"/api/v2/jobs/{job}/events/",
            counter__gt=found[-1]["counter"] if found else 0,
            page_size=200,
        )
        found += answer["results"]
        if answer["next"] is None:
            return found


def compared(event):
    """What REST and the socket must say alike."""
    names = (
        "counter",
        "event",
        "uuid",
        "parent_uuid",
        "stdout",
        "start_line",
        "end_line",
        "task",
        "event_data",
    )
    return {name: event[name] for name in names}


async def test_the_demo_is_seen_by_everybody_in_the_same_order(where, environ, execute):
    name, link_said = f"demo {os.getpid()}", []
    async with (
        carillon.client.Socket(where, give_up=30, on_link=link_said.append) as socket,
        asyncio.timeout(RUN_SECONDS),
    ):
        await socket.subscribe({"jobs": ["status_changed", "summary"]})
        run = asyncio.ensure_future(
            finish(
                await execute(
                    "ansible",
                    "playbook",
                    "site.yml",
                    "-e",
                    "demo_pace=0",
                    env={**environ, "CARILLON_JOB_NAME": name},
                    cwd=ROOT / "demo",
                ),
                RUN_SECONDS,
            )
        )
        job = await the_job_called(where, socket, name)
        await socket.subscribe({"jobs": ["status_changed", "summary"], "job_events": [job]})
        follower = asyncio.ensure_future(
            finish(await execute("carillon.client", "output", str(job), env=environ), RUN_SECONDS)
        )
        live, statuses, final_counter = [], [], None
        async for event in socket:
            if event.job_id != job:
                continue
            if event.family == "job_events":
                live.append(event.payload)
            elif "status" in event.payload:
                statuses.append(event.payload["status"])
            else:
                final_counter = event.payload["final_counter"]
            heard_all = bool(live) and live[-1]["counter"] == final_counter
            if heard_all and statuses and statuses[-1] in ("successful", "failed", "error"):
                break
        code, printed, said = await run
        output_code, output, link = await follower

    assert code == 0, said
    assert statuses[-1] == "successful"
    stored = await all_events(where, job)
    assert [event["counter"] for event in stored] == list(range(1, final_counter + 1))
    assert len([event for event in stored if event["event"] == "playbook_on_task_start"]) >= 50
    # The watcher learned the job's number from its first status: from there on it heard everything, in order.
    first = live[0]["counter"]
    assert first < 50
    assert [event["counter"] for event in live] == list(range(first, final_counter + 1)), link_said
    assert [compared(event) for event in live] == [compared(event) for event in stored[first - 1 :]]
    assert output_code == 0, link
    assert output.strip() == printed.strip()
    assert not re.search(
        r"copper 78", "".join(event["stdout"] + str(event["event_data"]) for event in stored)
    )


async def the_job_called(where, socket, name):
    async for event in socket:
        if event.job_id and (await rest.get(where, f"/api/v2/jobs/{event.job_id}/"))["name"] == name:
            return event.job_id
    raise AssertionError("the socket ended")


async def test_a_wrong_token_is_refused_in_words(environ, execute):
    code, out, err = await finish(
        await execute("carillon.client", "watch", env={**environ, "CARILLON_TOKEN": "wrong"})
    )
    assert (code, out) == (4, "")
    assert "refuses the token" in err


async def test_a_certificate_that_is_not_trusted_is_refused(environ, execute):
    untrusting = {**environ, "CARILLON_CA_CERT": ""}
    code, _, err = await finish(await execute("carillon.client", "watch", env=untrusting))
    assert code == 5
    assert "CARILLON_CA_CERT" in err


async def test_an_unknown_family_is_told_by_the_server(environ, execute):
    code, _, err = await finish(await execute("carillon.client", "watch", "bells:all", env=environ))
    assert code == 2
    assert "unknown channel bells" in err


async def test_a_job_that_is_not_there(environ, execute):
    code, _, err = await finish(await execute("carillon.client", "output", "999999999", env=environ))
    assert code == 2
    assert "has no job 999999999" in err

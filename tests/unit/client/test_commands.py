"""The commands as people run them: a process, its two streams, its exit code."""

import asyncio
import json
import os
import signal
import sys

import pytest

from tests.unit.client.stub_server import (
    TOKEN,
    StubCarillon,
    job_event,
    say,
    say_and_break,
    say_and_close,
    status,
)


@pytest.fixture
async def stub():
    async with StubCarillon() as server:
        yield server


class Command:
    def __init__(self, process):
        self.process = process

    @classmethod
    async def start(cls, *arguments, **environ):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CARILLON_")}
        environment.update(PYTHONPATH="src", **environ)
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "carillon.client",
                *arguments,
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        )

    async def line(self):
        return (await asyncio.wait_for(self.process.stdout.readline(), 15)).decode()

    async def error_line(self, words):
        async with asyncio.timeout(15):
            while words not in (line := (await self.process.stderr.readline()).decode()):
                assert line, f"the command ended without saying '{words}'"
        return line

    async def end(self):
        out, err = await asyncio.wait_for(self.process.communicate(), 20)
        return self.process.returncode, out.decode(), err.decode()


@pytest.fixture
async def run(stub):
    started = []

    async def start(*arguments, **environ):
        command = await Command.start(
            *arguments, **{"CARILLON_URL": stub.url, "CARILLON_TOKEN": TOKEN, **environ}
        )
        started.append(command.process)
        return command

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_watch_says_in_words_what_happens_and_what_the_link_does(stub, run):
    stub.scripts.extend([say_and_close(1012, status(4, "running")), say_and_close(1000, status(4, "failed"))])
    command = await run("watch", "jobs:status_changed")
    code, out, err = await command.end()
    assert code == 0
    assert [line.split("  ", 1)[1] for line in out.splitlines()] == ["job 4 is running", "job 4 is failed"]
    assert [line.partition(";")[0] for line in err.splitlines()] == [
        f"carillon: connected to {stub.url} as user 7",
        "carillon: listening to jobs-status_changed",
        "carillon: the server restarts",
        "carillon: connected again",
        "carillon: the server said goodbye",
    ]
    assert "\x1b" not in out + err  # no terminal, no colours


async def test_json_is_one_object_per_line_and_nothing_else(stub, run):
    payloads = [status(4, "running"), {"group_name": "schedules", "id": 2, "name": "é\n"}]
    stub.scripts.append(say_and_close(1000, *payloads))
    code, out, _ = await (await run("--json", "jobs:summary", "schedules:changed", "--quiet")).end()
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == payloads


async def test_colours_are_for_terminals_or_on_demand(stub, run):
    stub.scripts.extend([say_and_close(1000, status(4, "failed"))] * 2)
    _, out, _ = await (await run("watch", "--color", "always")).end()
    assert "\x1b[31mjob 4 is failed\x1b[0m" in out
    _, out, _ = await (await run("watch", NO_COLOR="1")).end()
    assert "\x1b" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("away", [False, True])
async def test_a_signal_stops_at_once(stub, run, number, away):
    command = await run("watch")
    await command.error_line("listening to")
    if away:
        await stub.stop()
        await command.error_line("trying again")
    command.process.send_signal(number)
    started = asyncio.get_running_loop().time()
    code, _, err = await command.end()
    assert code == 128 + number
    assert "Traceback" not in err
    assert asyncio.get_running_loop().time() - started < 2


async def test_a_signal_stops_a_command_whose_pipe_nobody_reads(stub, run):
    command = await run("watch", "--json")
    await command.error_line("listening to")
    for _ in range(40):
        await stub.send({"group_name": "schedules", "id": 1, "name": "x" * 10_000})
    await command.line()
    await asyncio.sleep(0.3)  # nothing to wait for: it is stuck in a write
    command.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        while command.process.returncode is None:  # wait() would wait for the pipe's end too
            await asyncio.sleep(0.02)
    assert command.process.returncode == 143
    await command.end()


async def test_a_reader_that_leaves_is_no_error(stub, run):
    command = await run("watch", "--json")
    await command.error_line("listening to")
    command.process._transport.get_pipe_transport(1).close()
    async with asyncio.timeout(10):
        while command.process.returncode is None:
            await stub.send(status(4, "running"))
            await asyncio.sleep(0.02)
    code, _, err = await command.end()
    assert code == 141
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "words"),
    [
        (["watch"], {"CARILLON_URL": ""}, 2, "CARILLON_URL is not set"),
        (["watch"], {"CARILLON_TOKEN": ""}, 2, "CARILLON_TOKEN is not set"),
        (["watch", "jobs"], {}, 2, "'jobs' is no group"),
        (["watch", "bells:all"], {}, 2, "unknown channel bells"),
        (["watch"], {"CARILLON_URL": "http://127.0.0.1:9"}, 3, "nothing listens at http://127.0.0.1:9"),
        (["output", "42"], {"CARILLON_URL": "http://127.0.0.1:9"}, 3, "nothing listens"),
        (["output", "9"], {}, 2, "has no job 9, or does not show it to this token"),
    ],
)
async def test_what_goes_wrong_is_one_line_and_an_exit_code(run, arguments, environ, code, words):
    result, out, err = await (await run(*arguments, **environ)).end()
    assert (result, out) == (code, "")
    lines = [line for line in err.splitlines() if "connected to" not in line]
    assert len(lines) == 1
    assert words in lines[0]


async def test_a_refused_token_is_exit_code_4_and_appears_nowhere(stub, run):
    stub.first_frames.append('{"accept": false, "user": null, "close": true, "error": "invalid auth token"}')
    code, out, err = await (await run("watch")).end()
    assert code == 4
    assert "invalid auth token" in err
    assert TOKEN not in out + err


async def test_the_first_connection_can_be_waited_for(stub, run):
    port = stub.port
    await stub.stop()
    command = await run("watch", "--wait", "30")
    await command.error_line("trying again")
    await stub.start(port)
    stub.scripts.append(say_and_close(1000, status(4, "running")))
    code, out, _ = await command.end()
    assert code == 0
    assert "job 4 is running" in out


def finished(stub, word="successful", events=()):
    stub.job = {"id": 42, "status": word, "event_family": "job_events"}
    stub.events = list(events)


async def test_output_of_a_job_that_is_over_is_its_text_and_its_state(stub, run):
    finished(
        stub,
        "failed",
        [job_event(1, "\x1b[31mone\x1b[0m"), job_event(2), job_event(3, "", 1), job_event(4, "two")],
    )
    code, out, err = await (await run("output", "42")).end()
    assert (code, out) == (1, "\x1b[31mone\x1b[0m\n\ntwo\n")
    assert err == "carillon: loaded: 3 lines\ncarillon: job 42 is failed\n"
    _, out, _ = await (await run("output", "42", NO_COLOR="1")).end()
    assert out == "one\n\ntwo\n"


async def test_output_waits_for_a_server_that_is_not_there_yet(stub, run):
    finished(stub, events=[job_event(1, "one")])
    port = stub.port
    await stub.stop()
    command = await run("output", "42", "--wait", "30")
    await command.error_line("trying again")
    await stub.start(port)
    assert (await command.end())[:2] == (0, "one\n")
    await stub.stop()
    code, _, err = await (await run("output", "42", "--wait", "0.2")).end()
    assert code == 3
    assert "nothing listens" in err


async def test_output_of_characters_that_the_locale_has_not_is_no_failure(stub, run):
    finished(stub, events=[job_event(1, "one \u2713")])
    code, out, err = await (await run("output", "42", PYTHONIOENCODING="latin-1")).end()
    assert (code, out) == (0, "one ?\n"), err
    stub.scripts.append(say_and_close(1000, {"group_name": "jobs", "name": "\u2713 \U0001f514 \x85"}))
    code, out, err = await (await run("watch", "--json", PYTHONIOENCODING="latin-1")).end()
    assert (code, json.loads(out)["name"]) == (0, "\u2713 \U0001f514 \x85"), err


async def test_output_pages_through_what_there_is(stub, run):
    finished(stub, events=[job_event(number, str(number)) for number in range(1, 1001)])
    code, out, _ = await (await run("output", "42")).end()
    assert code == 0
    assert out.split() == [str(number) for number in range(1, 1001)]


async def test_output_fills_gaps_from_the_api_and_follows_to_the_end(stub, run):
    """Stored before: 1-3. Live: 5 (4 is lost), the connection breaks, 6 is missed, 8 comes before 7."""
    every = [job_event(number, f"line {number}") for number in range(1, 10)]
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    stub.events = every[:3]

    async def lose_four(server, connection):
        server.events = every[:5]
        await say_and_break(every[4])(server, connection)

    async def come_back(server, connection):
        server.events = every[:6]
        await say(every[7], every[6], every[7])(server, connection)
        server.events = every
        server.job["status"] = "successful"
        await say(status(42, "successful"), status(41, "failed"))(server, connection)
        await say({"group_name": "jobs", "unified_job_id": 42, "final_counter": 9})(server, connection)

    stub.scripts.extend([lose_four, come_back])
    code, out, err = await (await run("output", "42")).end()
    assert out.splitlines() == [f"line {number}" for number in range(1, 10)]
    assert code == 0
    assert "job 42 is successful" in err


async def test_output_takes_what_comes_after_the_last_status(stub, run):
    every = [job_event(number, f"line {number}") for number in range(1, 4)]
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    stub.events = every[:1]
    command = await run("output", "42")
    await command.error_line("live: 1 line so far")
    stub.job["status"] = "successful"
    await stub.send(status(42, "successful"))
    asked = len(stub.requests)
    await stub.until(lambda: len(stub.requests) > asked)  # it has heard that, and looks for the rest
    await stub.send(every[1])
    stub.events = every
    await stub.send({"group_name": "jobs", "unified_job_id": 42, "final_counter": 3})
    code, out, err = await command.end()
    assert (code, out.splitlines()) == (0, ["line 1", "line 2", "line 3"])
    assert "never came" not in err


async def test_output_of_which_the_end_is_not_told_is_not_waited_for_for_ever(stub, run):
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    command = await run("output", "42")
    await command.error_line("live")
    stub.job["status"] = "canceled"
    stub.events = [job_event(1, "one")]
    await stub.send(status(42, "canceled"))
    await stub.until(lambda: not stub.connections, 20)
    code, out, err = await command.end()
    assert (code, out) == (1, "one\n")
    assert "never came" not in err


async def test_output_searches_what_there_is_by_the_api_and_what_comes_by_itself(stub, run):
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    words = {250: "\x1b[31ma bell\x1b[0m", 251: "nothing\nbelling", 700: "bells"}
    stub.events = [job_event(number, words.get(number, "x")) for number in range(1, 701)]
    command = await run("output", "42", "--search", "Bell", "--color", "never")
    assert [await command.line() for _ in range(3)] == [
        "25001: a bell\n",
        "25102: belling\n",
        "70001: bells\n",
    ]
    assert await command.error_line("live") == "carillon: live: 3 lines with 'Bell' so far\n"
    asked = [path for path in stub.requests if "/events/" in path]
    assert len(asked) == 3, (
        asked
    )  # how far it goes, what has the word, and what came meanwhile: no more of 700
    await stub.send(job_event(701, "no"))
    await stub.send(job_event(702, "one more bell\nand no"))
    assert await command.line() == "70201: one more bell\n"
    stub.events += [job_event(701, "no"), job_event(702, "one more bell\nand no")]
    stub.job["status"] = "successful"
    await stub.send(status(42, "successful"))
    code, out, _ = await command.end()
    assert (code, out) == (0, "")


@pytest.mark.parametrize("status_code", [429, 503])
async def test_output_searches_on_behind_a_page_that_was_not_answered(stub, run, status_code):
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    stub.events = [job_event(number, f"bell {number}") for number in range(1, 701)]
    stub.page_statuses.extend([200, 200, 200, status_code])  # how far it goes, two pages, and no third one
    command = await run("output", "42", "--search", "bell")
    assert "behind: " in await command.error_line(f"answers {status_code}")
    await stub.send(job_event(1, "bell 1"))  # as late as that
    assert await command.error_line("live") == "carillon: live: 700 lines with 'bell' so far\n"
    stub.job["status"] = "successful"
    await stub.send(status(42, "successful"))
    await stub.send({"group_name": "jobs", "unified_job_id": 42, "final_counter": 700})
    code, out, _ = await command.end()
    assert (code, out.splitlines()) == (0, [f"{number}01: bell {number}" for number in range(1, 701)])


async def test_output_says_when_it_has_missed_something_and_is_live_again(stub, run):
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    stub.scripts.append(say_and_break())
    command = await run("output", "42")
    await command.error_line("live: 0 lines so far")
    stub.events = [job_event(1, "missed")]
    await command.error_line("connected again")
    assert await command.error_line("live") == "carillon: live: 1 line so far\n"
    assert await command.line() == "missed\n"


async def test_output_goes_on_while_the_api_is_away(stub, run):
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    command = await run("output", "42")
    await stub.until(lambda: stub.subscriptions)
    await stub.send(job_event(1, "one"))
    assert await command.line() == "one\n"
    assert await command.error_line("live") == "carillon: live: 0 lines so far\n"
    stub.api_status = 503
    await stub.send(job_event(3, "three"))
    assert "behind: " in await command.error_line("answers 503")
    stub.api_status = 200
    stub.events = [job_event(number, word) for number, word in enumerate(["one", "two", "three"], 1)]
    assert await command.line() == "two\n"
    assert await command.error_line("live") == "carillon: live: 3 lines so far\n"
    stub.job["status"] = "canceled"
    await stub.send(status(42, "canceled"))
    code, out, err = await command.end()
    assert (code, out) == (1, "three\n")
    assert "job 42 is canceled" in err


async def test_output_ends_when_its_job_is_gone(stub, run):
    stub.job = {"id": 42, "status": "running", "event_family": "job_events"}
    command = await run("output", "42")
    await stub.until(lambda: stub.subscriptions)
    stub.job = {}
    await stub.send(job_event(2, "two"))  # one is missing: the API is asked
    code, _, err = await command.end()
    assert code == 2
    assert "has no job 42" in err


async def test_the_client_needs_no_django():
    program = (
        "import sys, carillon.client.__main__; print([m for m in sys.modules if m.startswith('django')])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env={**os.environ, "PYTHONPATH": "src"}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert out.decode().strip() == "[]"

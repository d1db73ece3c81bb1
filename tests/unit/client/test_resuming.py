"""The socket and a server of version 2 with a log: where to go on, and what a refusal leaves as it was."""

import asyncio
import json
from contextlib import suppress

import pytest
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from carillon.client.endpoint import endpoint
from carillon.client.errors import Away, SubscriptionError
from carillon.client.link import Socket
from carillon.client.protocol import Backoff

SUMMARY = {"jobs": ["summary"]}


def names_of(groups):
    return sorted(f"{family}-{key}" for family, keys in groups.items() for key in keys)


class Log:
    """A server whose log begins with so many events of `jobs-summary`. Replays are in its order."""

    def __init__(self, count):
        self.events = [("jobs-summary", number) for number in range(1, count + 1)]
        self.limit = 250
        self.reasons = []  # of resumes that cannot be had, one each
        self.answers = asyncio.Event()  # cleared: what is asked waits for its answer
        self.answers.set()
        self.asked = []  # (the connection's number, the message)
        self.connections = []

    @property
    def position(self):
        return f"ep:{len(self.events)}"

    async def emit(self, group):
        self.events.append((group, len(self.events) + 1))
        await self.connections[-1].send(self._frame(*self.events[-1]))

    def _frame(self, group, number):
        payload = {"group_name": group.partition("-")[0], "unified_job_id": number}
        return json.dumps({"position": f"ep:{number}", "group": group, "event": payload})

    async def serve(self, connection):
        with suppress(ConnectionClosed):
            await self._serve(connection)

    async def _serve(self, connection):
        self.connections.append(connection)
        here = len(self.connections)
        held = set()
        await connection.send(json.dumps({"accept": True, "user": 7, "position": self.position}))
        async for text in connection:
            message = json.loads(text)
            self.asked.append((here, message))
            await self.answers.wait()
            names = names_of(message["groups"])
            if len(names) > self.limit:
                error = f"invalid message: more than {self.limit} groups"
                await connection.send(json.dumps({"error": error}))
                continue
            new, held = set(names) - held, set(names)
            answer = {"groups_current": names, "groups_left": [], "groups_joined": sorted(new)}
            await connection.send(json.dumps(answer))
            if since := message.get("since"):
                outcome = {"recovered": True, "position": self.position}
                if self.reasons:
                    outcome = {**outcome, "recovered": False, "reason": self.reasons.pop(0)}
                else:
                    for group, number in self.events[int(since.partition(":")[2]) :]:
                        if group in new:
                            await connection.send(self._frame(group, number))
                await connection.send(json.dumps(outcome))

    def breaks(self):
        self.connections[-1].transport.abort()


@pytest.fixture
async def log():
    log = Log(100)
    async with serve(log.serve, "127.0.0.1", 0, subprotocols=["carillon.v2"], close_timeout=0.1) as server:
        log.url = f"http://localhost:{next(iter(server.sockets)).getsockname()[1]}"
        yield log
        log.answers.set()


@pytest.fixture
def said():
    return []


@pytest.fixture
def link(log, said):
    def make(**options):
        return Socket(endpoint(log.url, "token"), on_link=said.append, backoff=Backoff(0.01, 0.05), **options)

    return make


async def until(predicate):
    async with asyncio.timeout(10):
        while not predicate():
            await asyncio.sleep(0.01)


async def take(socket, count):
    """The numbers of the next events."""
    found = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found.append((await anext(socket)).job_id)
    return found


async def test_another_process_goes_on_behind_what_was_handed_out(link, log):
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        log.events += [("jobs-summary", number) for number in range(101, 151)]
        for number in range(101, 151):
            await log.connections[-1].send(log._frame("jobs-summary", number))
        assert await take(socket, 1) == [101]
        await until(lambda: socket._events.qsize() == 49)  # it has received what it has not handed out
        assert await take(socket, 4) == [102, 103, 104, 105]
        assert socket.position == "ep:105"
    assert socket.position == "ep:105"  # closed, and nobody hears the rest
    async with link() as socket:
        await socket.subscribe(SUMMARY, since="ep:105")
        assert await take(socket, 45) == list(range(106, 151))
        await until(lambda: socket.position == "ep:150")


async def test_a_resume_that_is_whole_is_none_before_it_was_handed_out(link, log):
    async with link() as socket:
        await socket.subscribe(SUMMARY, since="ep:0")
        await until(lambda: socket._memory.since == "ep:100")
        assert socket.position == "ep:0"
        await take(socket, 5)
        assert socket.position == "ep:0"  # the events of a replay are none of where to go on
        await take(socket, 95)
        assert socket.position == "ep:100"


async def test_a_reconnect_goes_on_from_what_was_received(link, log):
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        await log.emit("jobs-summary")
        await log.emit("jobs-summary")
        await until(lambda: socket._memory.since == "ep:102")
        assert socket.position == "ep:100"
        log.breaks()
        await until(lambda: len(log.asked) == 2)
        assert log.asked[-1] == (2, {"groups": SUMMARY, "since": "ep:102"})
        assert await take(socket, 1) == [101]
        assert socket.position == "ep:101"


async def test_a_subscription_that_begins_earlier_takes_the_position_with_it(link, log):
    """What is in the queue is later than what the new group will bring."""
    log.events[60] = ("schedules-changed", 61)
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        await log.emit("jobs-summary")
        await log.emit("jobs-summary")
        await until(lambda: socket._memory.since == "ep:102")
        await socket.subscribe({**SUMMARY, "schedules": ["changed"]}, since="ep:50")
        await until(lambda: socket._memory.since == "ep:102")
        assert await take(socket, 2) == [101, 102]
        assert socket.position == "ep:50"
        assert await take(socket, 1) == [61]
        assert socket.position == "ep:102"


async def test_each_call_has_the_answer_to_its_own_message(link, log):
    log.answers.clear()
    async with link() as socket:
        calls = [
            asyncio.create_task(socket.subscribe(groups))
            for groups in (SUMMARY, {"schedules": ["changed"]}, {"job_events": [42]})
        ]
        await until(lambda: log.asked)
        calls[1].cancel()  # its answer comes all the same
        log.answers.set()
        assert (await calls[0]).current == ("jobs-summary",)
        assert (await calls[2]).current == ("job_events-42",)
        await asyncio.wait([calls[1]])
        assert calls[1].cancelled()


async def test_the_word_of_a_right_that_is_lost_is_no_answer(link, log, said):
    async with link() as socket:
        await socket.subscribe({"jobs": ["summary"], "job_events": [42]})
        log.answers.clear()
        call = asyncio.create_task(socket.subscribe(SUMMARY))
        await until(lambda: len(log.asked) == 2)
        await log.connections[-1].send(json.dumps({
            "groups_current": ["jobs-summary"], "groups_left": ["job_events-42"], "groups_joined": [],
            "asked": False,
        }))  # fmt: skip
        await until(lambda: socket.current == ("jobs-summary",))
        assert not call.done()
        assert "no longer subscribed to job_events-42" in said
        log.answers.set()
        assert (await call).current == ("jobs-summary",)
        assert (await socket.subscribe({})).current == ()  # each call still has its own answer


async def test_the_answer_to_what_a_connection_begins_with_is_no_other_s(link, log):
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        log.answers.clear()
        log.breaks()
        await until(lambda: len(log.asked) == 2)
        call = asyncio.create_task(socket.subscribe({"job_events": [42]}))
        await asyncio.sleep(0)  # it is sent
        log.answers.set()
        assert (await call).current == ("job_events-42",)
        assert log.asked[-1] == (2, {"groups": {"job_events": [42]}})


async def test_what_has_no_answer_when_the_connection_breaks_is_what_the_next_begins_with(link, log):
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        log.answers.clear()
        calls = [
            asyncio.create_task(socket.subscribe({"schedules": ["changed"]})),
            asyncio.create_task(socket.subscribe({"job_events": [42]}, since="ep:40")),
        ]
        await until(lambda: len(log.asked) == 2)
        assert socket.position == "ep:40"
        log.breaks()
        log.answers.set()
        assert (await calls[1]).current == ("job_events-42",)
        assert (2, {"groups": {"job_events": [42]}, "since": "ep:40"}) in log.asked
        with pytest.raises(SubscriptionError, match="another subscription"):
            await calls[0]


async def test_who_gave_up_while_the_server_was_away_is_not_subscribed_at_the_next_connection(
    link, log, said, monkeypatch
):
    monkeypatch.setattr("carillon.client.link.REPLY_TIMEOUT", 0.1)
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        where, socket._where = socket._where, endpoint("http://127.0.0.1:9", "token")
        log.breaks()
        await until(lambda: any("nothing listens" in words for words in said))
        cancelled = asyncio.create_task(socket.subscribe({"job_events": [42]}, since="ep:40"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(SubscriptionError, match="no answer"):
            await socket.subscribe({"schedules": ["changed"]}, since="ep:50")
        assert socket.position == "ep:100"
        socket._where = where
        await until(lambda: len(log.asked) == 2)
        assert log.asked[-1] == (2, {"groups": SUMMARY, "since": "ep:100"})
        await log.emit("jobs-summary")
        assert await take(socket, 1) == [101]


@pytest.mark.parametrize("connections", [1, 2])
async def test_who_gave_up_on_a_connection_is_not_subscribed_at_the_next_one(link, log, connections):
    """1: sent on the one that breaks. 2: the one after it had begun with that, and breaks, too."""
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        log.answers.clear()
        call = asyncio.create_task(socket.subscribe({"job_events": [42]}, since="ep:40"))
        await until(lambda: len(log.asked) == 2)
        if connections == 2:
            log.breaks()
            await until(lambda: len(log.asked) == 3)
            assert log.asked[-1] == (2, {"groups": {"job_events": [42]}, "since": "ep:40"})
        call.cancel()
        await asyncio.wait([call])
        log.breaks()
        log.answers.set()
        await until(lambda: log.asked[-1] == (connections + 1, {"groups": SUMMARY, "since": "ep:100"}))
        await until(lambda: socket.current == ("jobs-summary",) and socket.position == "ep:100")


async def test_what_is_refused_leaves_what_was_subscribed(link, log):
    log.limit = 2
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        with pytest.raises(SubscriptionError, match="more than 2 groups"):
            await socket.subscribe({"job_events": [1, 2, 3]}, since="ep:10")
        await log.emit("jobs-summary")
        assert await take(socket, 1) == [101]
        assert socket.position == "ep:101"
        log.breaks()
        await until(lambda: len(log.asked) == 3)
        assert log.asked[-1] == (2, {"groups": SUMMARY, "since": "ep:101"})
        await log.emit("jobs-summary")
        assert await take(socket, 1) == [102]


async def test_what_a_new_connection_refuses_leaves_what_was_subscribed_before(link, log, said):
    log.limit = 2
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        await log.emit("jobs-summary")
        assert await take(socket, 1) == [101]
        log.answers.clear()
        call = asyncio.create_task(socket.subscribe({"job_events": [1, 2, 3]}, since="ep:10"))
        await until(lambda: len(log.asked) == 2)
        log.breaks()
        log.events.append(("jobs-summary", 102))
        await until(lambda: len(log.asked) == 3)
        log.answers.set()
        with pytest.raises(SubscriptionError, match="more than 2 groups"):
            await call
        assert await take(socket, 1) == [102]
        assert log.asked[-1] == (3, {"groups": SUMMARY, "since": "ep:101"})
        assert socket.reconnects == 2
        assert any(words.startswith("the server says: invalid message") for words in said)


async def test_what_stood_and_is_refused_after_a_break_is_asked_for_again(link, log, said):
    async with link() as socket:
        await socket.subscribe(SUMMARY)
        await log.emit("jobs-summary")
        assert await take(socket, 1) == [101]
        log.limit = 0
        log.breaks()
        log.events.append(("jobs-summary", 102))
        await until(lambda: len(log.asked) == 3)
        log.limit = 2
        assert await take(socket, 1) == [102]
        assert log.asked[2][1] == {"groups": SUMMARY, "since": "ep:101"}
        assert "the server says: invalid message: more than 0 groups" in said


async def test_a_call_that_waits_hears_that_the_link_has_ended(link, log):
    log.answers.clear()
    async with link() as socket:
        call = asyncio.create_task(socket.subscribe(SUMMARY))
        await until(lambda: log.asked)
        await log.connections[-1].close(1000)
        with pytest.raises(Away, match="has ended"):
            await call
        with pytest.raises(Away, match="has ended"):
            await socket.subscribe(SUMMARY)
    async with link() as socket:
        call = asyncio.create_task(socket.subscribe(SUMMARY))
        await until(lambda: len(log.asked) == 2)
        await socket.close()
        with pytest.raises(Away, match="has ended"):
            await call


async def test_what_cannot_be_sent_yet_is_asked_for_again(link, log, said):
    log.reasons = ["unavailable", "timeout"]
    lost = []
    async with link(on_reconnect=lambda: lost.append(1)) as socket:
        await socket.subscribe(SUMMARY, since="ep:98")
        assert await take(socket, 2) == [99, 100]
        await until(lambda: socket.position == "ep:100")
        assert log.asked == [(number, {"groups": SUMMARY, "since": "ep:98"}) for number in (1, 2, 3)]
        assert lost == []
        assert sum("cannot be sent yet" in words for words in said) == 2
        log.reasons = ["retention"]
        log.breaks()
        await until(lambda: lost)
        assert len(log.connections) == 4


async def test_what_is_no_message_waits_for_no_answer(link, log):
    async with link() as socket:
        with pytest.raises(TypeError):
            await socket.subscribe({"jobs": 5})
        assert (await socket.subscribe(SUMMARY)).current == ("jobs-summary",)
        log.breaks()
        await until(lambda: len(log.asked) == 2)
        assert log.asked[-1] == (2, {"groups": SUMMARY, "since": "ep:100"})

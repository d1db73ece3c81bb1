"""The project's own HTTP that daphne serves: async views, HTTP consumers, and nobody else's paths."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.db import database_sync_to_async
from channels.generic.http import AsyncHttpConsumer
from channels.routing import URLRouter
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path, reverse

from carillon import urls as carillon_urls
from carillon.process import declared
from carillon.sockets import asgi_outlet, consumers, http
from carillon.sockets.application import application
from tests.unit.sockets.test_session import session_of

pytestmark = pytest.mark.django_db(transaction=True)


class Whose(AsyncHttpConsumer):
    async def handle(self, body):
        said = {
            "user": self.scope["user"].username,
            "session": self.scope["session"].session_key,
            "body": body.decode(),
            **self.scope["url_route"]["kwargs"],
        }
        await self.send_response(200, json.dumps(said).encode(), headers=[(b"Content-Type", b"text/json")])


class Thread(AsyncHttpConsumer):
    async def handle(self, body):
        await self.send_response(200, str(await sync_to_async(threading.get_ident)()).encode())


class Pause(AsyncHttpConsumer):
    async def handle(self, body):
        await asyncio.sleep(float(self.scope["url_route"]["kwargs"]["seconds"]))
        await self.send_response(200, b"")


class Block(AsyncHttpConsumer):
    async def handle(self, body):
        await sync_to_async(time.sleep)(float(self.scope["url_route"]["kwargs"]["seconds"]))
        await self.send_response(200, b"")


async def ask(request):
    loop = asyncio.get_running_loop()
    return JsonResponse({"loop": id(loop), "user": (await request.auser()).pk, "here": reverse("ask")})


async def count(request):
    async def numbers():
        for number in range(3):
            yield f"{number}\n"
            await asyncio.sleep(0)

    return StreamingHttpResponse(numbers())


async def wait(request):
    await asyncio.sleep(60)


async def fail(request):
    raise RuntimeError("the clapper is off")


handler500 = carillon_urls.handler500
urlpatterns = [
    path("live/ask/", ask, name="ask"),
    path("live/fail/", fail),
    path("live/count/", count),
    path("live/wait/", wait),
    path("other/ask/", ask),
    *carillon_urls.urlpatterns,
]
http_urlpatterns = [
    path("live/whose/<slug:bell>/", Whose.as_asgi()),
    path("live/thread/", Thread.as_asgi()),
    path("live/pause/<seconds>/", Pause.as_asgi()),
    path("live/block/<seconds>/", Block.as_asgi()),
    path("live/more/", URLRouter([path("<int:bell>/", Whose.as_asgi())])),
]
websocket_urlpatterns = []


@pytest.fixture(autouse=True)
def _routes(settings, monkeypatch):
    settings.ROOT_URLCONF, settings.LOGIN_REDIRECT_URL = __name__, "/"
    settings.CARILLON = {**settings.CARILLON, "WEBSOCKET_URLCONF": __name__}
    found = declared.Declared(http_prefixes=("/live/",))
    monkeypatch.setattr(http.launcher, "declared", lambda: found)
    http.prefixes.cache_clear()
    http._routes.cache_clear()
    yield
    http.prefixes.cache_clear()


def request(where, *, method="GET", body=b"", root="", **headers):
    lines = [(b"host", b"localhost"), *((key.encode(), value.encode()) for key, value in headers.items())]
    scope = {
        "type": "http", "method": method, "path": where, "root_path": root, "headers": lines,
        "query_string": b"", "http_version": "1.1", "scheme": "https", "client": ["10.0.0.1", 1],
    }  # fmt: skip
    return ApplicationCommunicator(application, scope), {"type": "http.request", "body": body}


async def http_(where, **given):
    """(status, body) of a whole answer."""
    communicator, message = request(where, **given)
    await communicator.send_input(message)
    start = await communicator.receive_output(5)
    data, more = b"", True
    while more:
        part = await communicator.receive_output(5)
        data, more = data + part.get("body", b""), part.get("more_body", False)
    return start["status"], data.decode()


@pytest.mark.parametrize("said", [["a/b; charset=hex"], ["a/b; charset=punycode; c=d", "text/plain"]])
async def test_a_charset_that_is_none(said):
    """Django joins two lines of a header to one."""
    communicator, message = request("/live/ask/")
    communicator.scope["headers"] += [(b"content-type", each.encode()) for each in said]
    await communicator.send_input(message)
    assert (await communicator.receive_output(5))["status"] == 415


async def test_an_async_view_runs_in_the_loop_and_has_its_middleware(people):
    cookie, _ = await database_sync_to_async(session_of)(people.ann)
    status, body = await http_("/live/ask/", cookie=f"__Host-awx_sessionid={cookie}")
    loop = id(asyncio.get_running_loop())
    assert (status, json.loads(body)) == (200, {"loop": loop, "user": people.ann.pk, "here": "/live/ask/"})
    assert (await http_("/live/nobody/"))[0] == 404


async def test_a_stream_of_an_async_view_comes_in_its_parts():
    communicator, message = request("/live/count/")
    await communicator.send_input(message)
    assert (await communicator.receive_output(5))["status"] == 200
    assert [(await communicator.receive_output(5))["body"] for _ in range(3)] == [b"0\n", b"1\n", b"2\n"]


async def test_a_stream_holds_no_connection_to_the_database(monkeypatch):
    let_go = []

    class Connections:
        def close_all(self):
            let_go.append(threading.get_ident())

    monkeypatch.setattr(http, "connections", Connections())
    communicator, message = request("/live/count/")
    await communicator.send_input(message)
    assert (await communicator.receive_output(5))["type"] == "http.response.start"
    assert len(let_go) == 1
    await communicator.wait(5)
    assert len(let_go) == 2
    assert threading.get_ident() not in let_go


async def test_a_view_waits_for_a_slow_reader(settings):
    unread = 0
    communicator, message = request("/live/count/")
    communicator.scope["carillon.buffered"] = lambda: unread
    settings.CARILLON = {**settings.CARILLON, "SOCKET_BUFFER_BYTES": 1000}
    unread = 1001
    await communicator.send_input(message)
    assert await communicator.receive_nothing(0.3, 0.01) is False  # the start
    assert (await communicator.receive_output(5))["status"] == 200
    assert await communicator.receive_nothing(0.3, 0.01)
    unread = 1000
    assert [(await communicator.receive_output(5))["body"] for _ in range(3)] == [b"0\n", b"1\n", b"2\n"]


async def test_a_reader_who_takes_nothing_is_given_up(settings, monkeypatch):
    monkeypatch.setattr(asgi_outlet, "STUCK", 0.2)
    communicator, message = request("/live/count/")
    communicator.scope["carillon.buffered"] = lambda: 2**20
    await communicator.send_input(message)
    await communicator.wait(5)
    assert [sent["type"] for sent in _sent(communicator)] == ["http.response.start"], "it is not called whole"


def _sent(communicator):
    while not communicator.output_queue.empty():
        yield communicator.output_queue.get_nowait()


async def test_below_the_path_that_a_proxy_shows():
    status, body = await http_("/bells/live/ask/", root="/bells")
    assert (status, json.loads(body)["here"]) == (200, "/bells/live/ask/")
    assert (await http_("/bells/live/whose/tower/", root="/bells"))[0] == 200


async def test_an_async_view_that_fails_has_the_debug_page_too(settings):
    assert (await http_("/live/fail/", accept="text/html"))[0] == 500
    settings.CARILLON = {**settings.CARILLON, "DEBUG_PAGE": True}
    status, body = await http_("/live/fail/", accept="text/html")
    assert (status, "RuntimeError at /live/fail/" in body) == (500, True)


@pytest.mark.parametrize("where", ["/other/ask/", "/", "/live", "/livefoo/", "/websocket/live/"])
async def test_what_is_not_declared_is_nobody_s(where):
    assert (await http_(where))[0] in (404, 426)


async def test_a_consumer_gets_its_user_its_session_and_its_route(people):
    token = await database_sync_to_async(people.token)(people.ann)
    status, body = await http_(
        "/live/whose/tower/", method="POST", body=b"ring", authorization=f"Bearer {token}"
    )
    assert status == 200
    assert json.loads(body) == {"user": "ann", "session": None, "body": "ring", "bell": "tower"}
    cookie, _ = await database_sync_to_async(session_of)(people.ann)
    _, body = await http_("/live/more/7/", cookie=f"__Host-awx_sessionid={cookie}")
    assert json.loads(body) == {"user": "ann", "session": cookie, "body": "", "bell": 7}
    assert json.loads((await http_("/live/more/7/"))[1])["user"] == ""


async def test_consumers_share_the_threads_of_websockets(settings):
    settings.CARILLON = {**settings.CARILLON, "CONSUMER_THREADS": 2}
    consumers._threads.cache_clear()
    answers = await asyncio.gather(*(http_("/live/thread/") for _ in range(8)))
    assert len({body for _, body in answers}) == 2


async def test_a_consumer_that_ends_leaves_its_thread_to_the_others(settings):
    settings.CARILLON = {**settings.CARILLON, "CONSUMER_THREADS": 1}
    consumers._threads.cache_clear()

    async def to_its_end(where):
        communicator, message = request(where)
        await communicator.send_input(message)
        await communicator.wait(5)

    first = asyncio.create_task(to_its_end("/live/pause/0.3/"))
    await asyncio.sleep(0.1)
    await asyncio.gather(first, to_its_end("/live/block/0.5/"))


async def test_what_is_presented_must_be_good(people):
    assert (await http_("/live/more/7/", authorization="Bearer wrong"))[0] == 401
    cookie, _ = await database_sync_to_async(session_of)(people.ann)
    foreign = {"cookie": f"__Host-awx_sessionid={cookie}", "origin": "https://evil.example"}
    status, body = await http_("/live/more/7/", method="POST", **foreign)
    assert (status, "forbidden Origin" in body) == (403, True)


async def test_django_s_requests_have_a_number(settings):
    settings.CARILLON = {**settings.CARILLON, "HTTP_REQUESTS": 1}
    first, message = request("/live/wait/")
    await first.send_input(message)
    for _ in range(100):
        status, _ = await http_("/live/ask/")
        if status == 503:
            break
        await asyncio.sleep(0.01)
    assert status == 503
    assert (await http_("/live/more/7/"))[0] == 200
    await first.send_input({"type": "http.disconnect"})
    await first.wait(5)
    assert (await http_("/live/ask/"))[0] == 200

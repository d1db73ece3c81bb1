"""An app that knows nothing of Carillon, taken over by the documented steps, in a browser.

Minutes, but for the count: `CARILLON_LONG=1`, or `make test-long`.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from playwright.sync_api import Error, expect
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.browser.conftest import browser, open_page
from tests.infra.stack import Stack, wait
from tests.integration.outside_app import takeover
from tests.integration.your_app.conftest import ports_of_a_stack
from tests.tls import for_threads

__all__ = ["browser", "open_page"]
NAME = "carillon-test-outside"
SECONDS = 1200
long = pytest.mark.skipif(not os.environ.get("CARILLON_LONG"), reason="takes minutes: CARILLON_LONG=1")


def test_it_takes_few_lines():
    assert 20 < takeover.changed() <= takeover.MOST
    assert 10 < takeover.changed(takeover.RESUMABLE) <= 30


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return takeover.take_over(tmp_path_factory.mktemp("team"))


@pytest.fixture(scope="module")
def make(site):
    """make("dev"): a command of the repository that must do."""
    ports = ports_of_a_stack()
    foreign = ("CARILLON_", "MAKE", "PYTHONPATH")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}

    def make(target):
        done = subprocess.run(
            ["make", target],
            cwd=site, env={**keep, **ports, "CARILLON_PROJECT": NAME},
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    return make


@pytest.fixture(scope="module")
def stack(site, make):
    """The stack of the repository, made by its `make dev`."""
    try:
        make("dev")
        yield Stack.of(site / ".dev", NAME)
    finally:
        make("clean")


def go(page, url):
    """Chromium gives up what it is loading when a container beside the test starts or ends."""
    for _ in range(10):
        try:
            page.goto(url)
            break
        except Error as error:
            if not any(words in str(error) for words in ("ERR_NETWORK_CHANGED", "interrupted by another")):
                raise


def log_in(page, stack, url):
    """Until no login page is shown there."""
    go(page, url)
    for _ in range(10):
        if not page.get_by_label("Password").count():
            break
        page.get_by_label("Username").fill(stack.values["CARILLON_USERNAME"])
        page.get_by_label("Password").fill(stack.values["CARILLON_PASSWORD"])
        page.get_by_role("button", name="Log in").click()
        go(page, url)


@pytest.fixture
def enter(stack, open_page):
    """enter(path) is a page of somebody who has logged in there, once its own script's socket is open."""

    def enter(path):
        page = open_page(ignore_https_errors=True).page
        log_in(page, stack, stack.values["CARILLON_URL"] + path)
        expect(page.locator("body[data-open]")).to_be_attached()
        return page

    return enter


@long
def test_a_chat_of_two_browsers_a_bot_of_celery_s_and_the_history(enter):
    ann, ben = enter("/chat/tower/"), enter("/chat/tower/")
    assert ann.locator("#log").evaluate("e => getComputedStyle(e).borderTopColor") == "rgb(1, 2, 3)"
    ann.locator("#chat-message-input").fill("/ring")
    ann.get_by_role("button", name="Send").click()
    for page in (ann, ben):
        expect(page.locator("#log")).to_contain_text("admin: /ring")
        expect(page.locator("#log")).to_contain_text("bot: you said /ring")
    ben.reload()
    expect(ben.locator("#log")).to_contain_text("admin: /ring")


@long
def test_what_synchronous_code_sends_and_the_session_that_a_socket_wrote(stack, enter):
    enter("/chat/belfry/")
    page = enter("/")
    expect(page.locator("#last")).to_have_text("")
    room = page.context.new_page()
    go(room, f"{stack.values['CARILLON_URL']}/chat/belfry/")
    expect(room.locator("body[data-open]")).to_be_attached()
    page.reload()
    expect(page.locator("#last")).to_have_text("belfry")
    expect(page.locator("body[data-open]")).to_be_attached()
    page.evaluate(
        """async () => {
            const token = document.cookie.match(/csrftoken=([^;]+)/)?.[1];
            const body = new URLSearchParams({text: "the bells are up", csrfmiddlewaretoken: token});
            await fetch("/notify/", {method: "POST", body});
        }"""
    )
    expect(page.locator("#notifications")).to_contain_text("the bells are up")


@long
def test_the_admin(stack, open_page):
    page = open_page(ignore_https_errors=True).page
    log_in(page, stack, f"{stack.values['CARILLON_URL']}/admin/chat/message/")
    expect(page.get_by_role("heading", name="Select message to change")).to_be_visible()
    assert page.locator("#header").evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"


class Line:
    """A TCP connection to nginx for whoever connects to `port`, which can be cut for a while."""

    def __init__(self, stack):
        self._to = stack.address()
        self._ends: set[socket.socket] = set()
        self._cut = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                end, _ = self._server.accept()
                if self._cut:
                    end.close()
                    continue
                other = socket.create_connection(self._to)
                self._ends |= {end, other}
                for one, two in ((end, other), (other, end)):
                    threading.Thread(target=self._carry, args=(one, two), daemon=True).start()

    def _carry(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not self._cut:  # what is under way then is lost
                    target.sendall(data)

    def cut(self, seconds):
        """Nothing gets through, and nobody is told so before it is over."""
        self._cut = True
        time.sleep(seconds)
        for end in list(self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()
        self._cut = False

    def close(self):
        self._server.close()
        self.cut(0)


@pytest.fixture
def line(stack):
    line = Line(stack)
    yield line
    line.close()


@pytest.fixture
def poster(stack):
    """post(text), as the page of somebody who has logged in does."""
    jar = http.cookiejar.CookieJar()
    handlers = (
        urllib.request.HTTPCookieProcessor(jar),
        urllib.request.HTTPSHandler(context=stack.tls()),
        urllib.request.ProxyHandler({}),
    )
    opener = urllib.request.build_opener(*handlers)
    url = stack.values["CARILLON_URL"]

    def post(path, **fields):
        token = next((cookie.value for cookie in jar if cookie.name == "csrftoken"), "")
        data = urllib.parse.urlencode({**fields, "csrfmiddlewaretoken": token}).encode()
        request = urllib.request.Request(url + path, data, {"Referer": url + path})
        with opener.open(request, timeout=20) as answer:
            return answer.status

    opener.open(f"{url}/accounts/login/", timeout=20).close()
    name, password = stack.values["CARILLON_USERNAME"], stack.values["CARILLON_PASSWORD"]
    assert post("/accounts/login/", username=name, password=password) == 200
    return lambda text: post("/notify/", text=text)


EVENTS = 200


def hear(stack, line, poster):
    """What a client hears of a stream of events that it is cut off from for two seconds. It comes back, with
    its position where it has one."""
    host, port = stack.address()
    tls, over = for_threads(stack.tls()), threading.Event()
    heard, breaks, since, written = [], 0, "", None

    def write():
        for number in range(EVENTS):
            poster(str(number))
            if number == EVENTS // 4:
                threading.Thread(target=line.cut, args=(2,)).start()
        over.set()

    deadline = time.monotonic() + 120
    while len(heard) < EVENTS and time.monotonic() < deadline:
        try:
            way = socket.create_connection(("127.0.0.1", line.port), 5)
            url = f"wss://{host}:{port}/ws/notifications/?since={since}"
            with connect(url, sock=way, ssl=tls, proxy=None, open_timeout=5, close_timeout=1) as reader:
                if written is None:
                    since = first_position(reader)
                    written = threading.Thread(target=write)
                    written.start()
                while len(heard) < EVENTS:
                    frame = json.loads(reader.recv(5 if over.is_set() else 30))
                    since = frame.get("position", since)
                    assert frame.get("recovered", True), frame
                    if "text" in frame:
                        heard.append(int(frame["text"]))
        except TimeoutError:
            break  # nothing more comes
        except (WebSocketException, OSError, EOFError):
            breaks += 1
            time.sleep(0.2)
    written.join(60)
    return heard, breaks


def first_position(reader):
    """Where it stands before the first event; an ordinary consumer of Channels has none."""
    try:
        return json.loads(reader.recv(2)).get("position", "")
    except TimeoutError:
        return ""


@long
def test_a_cut_of_two_seconds_loses_events_of_an_ordinary_consumer(stack, line, poster):
    heard, breaks = hear(stack, line, poster)
    assert breaks
    assert 0 < len(heard) < EVENTS
    print(f"an ordinary consumer: {len(heard)} of {EVENTS} after a cut of 2 s")


@long
def test_after_a_cut_of_two_seconds_all_of_a_resumable_consumer_s_are_delivered(site, stack, line, poster):
    takeover.apply(site, takeover.RESUMABLE)

    def resumable():
        """Daphne and uwsgi run what was saved."""
        host, port = stack.address()
        url = f"wss://{host}:{port}/ws/notifications/?since="
        tls = for_threads(stack.tls())
        try:
            with connect(url, ssl=tls, proxy=None, open_timeout=5, close_timeout=1) as reader:
                return first_position(reader) and poster("0") and "position" in json.loads(reader.recv(5))
        except WebSocketException:
            return False

    wait("the consumer is a resumable one", resumable, 60)
    heard, breaks = hear(stack, line, poster)
    assert breaks
    assert heard == list(range(EVENTS)), f"{len(set(heard))} of {EVENTS}"


LIVE = """
import asyncio

from django.core.files.storage import default_storage
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt


async def ticks(request):
    async def parts():
        yield f"{type(request).__name__}\\n"
        await asyncio.sleep(2)
        yield "and on\\n"

    return StreamingHttpResponse(parts(), headers={"X-Accel-Buffering": "no"})


@csrf_exempt
def keep(request):
    name = default_storage.save("bells/ring.png", request.FILES["picture"])
    return HttpResponse(default_storage.url(name))


def fail(request):
    raise RuntimeError("the clapper is off")


urlpatterns = [path("live/ticks/", ticks), path("keep/", keep), path("fail/", fail)]
"""


@long
def test_an_async_view_a_location_an_upload_and_the_debug_page(site, make, stack):
    toml, urls = site / "src/project/carillon.toml", site / "src/project/urls.py"
    toml.write_text(f'http_prefixes = ["/live/"]\nupload_mebibytes = 3\n{toml.read_text()}')
    (site / "src/chat/live.py").write_text(LIVE)
    urls.write_text(
        urls.read_text().replace("urlpatterns = [", 'urlpatterns = [path("", include("chat.live")),', 1)
    )
    (site / "src/project/nginx").mkdir()
    (site / "src/project/nginx/old.conf").write_text('location = /old/ { return 200 "moved\\n"; }')
    make("dev")
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=stack.tls()), urllib.request.ProxyHandler({})
    )
    url = stack.values["CARILLON_URL"]

    def streams():
        with opener.open(f"{url}/live/ticks/", timeout=20) as answer:
            begun = time.monotonic()
            assert answer.readline() == b"ASGIRequest\n"  # by daphne
            assert time.monotonic() - begun < 1.5
            return answer.readline() == b"and on\n"

    with opener.open(f"{url}/old/", timeout=20) as answer:
        assert answer.read() == b"moved\n"
    wait("daphne answers, part by part", streams, 60)

    def upload(size):
        head = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        body = head + b"p" * size + b"\r\n--x--\r\n"
        with opener.open(urllib.request.Request(f"{url}/keep/", body, headers), timeout=20) as answer:
            return answer.read().decode()

    where = wait("uwsgi takes an upload", lambda: upload(2 << 20), 60)
    assert where.startswith("/media/bells/ring")
    with opener.open(url + where, timeout=20) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (b"p" * (2 << 20), "image/png")
    with pytest.raises(urllib.error.HTTPError, match="413"):
        upload(4 << 20)
    for accept, words in (("text/html", "RuntimeError at /fail/"), ("*/*", "the server&#x27;s log")):
        with pytest.raises(urllib.error.HTTPError, match="500") as error:
            opener.open(urllib.request.Request(f"{url}/fail/", headers={"Accept": accept}), timeout=20)
        assert words.replace("&#x27;", "'") in error.value.read().decode()

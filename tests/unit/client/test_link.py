"""The socket against a real server on loopback: what it hears, what it survives, what it gives up on."""

import asyncio
import ssl

import pytest
from websockets.asyncio.server import serve

import carillon.client
from carillon.client.endpoint import endpoint
from carillon.client.errors import Away, CertificateError, Refused, SubscriptionError
from carillon.client.link import Socket
from carillon.client.protocol import Backoff
from tests.unit.client.stub_server import (
    TOKEN,
    StubCarillon,
    say,
    say_and_break,
    say_and_close,
    status,
)

GROUPS = {"jobs": ["status_changed"]}


@pytest.fixture
async def stub():
    async with StubCarillon() as server:
        yield server


@pytest.fixture
def said():
    return []


@pytest.fixture
def link(stub, said):
    def make(**options):
        return Socket(endpoint(stub.url, TOKEN), on_link=said.append, backoff=Backoff(0.01, 0.05), **options)

    return make


async def take(socket, count):
    found = []
    async with asyncio.timeout(10):
        async for event in socket:
            found.append(event)
            if len(found) == count:
                return found
    return found


async def test_events_come_in_order(stub):
    stub.scripts.append(say(*[status(number, "running") for number in range(50)]))
    async with carillon.client.connect(stub.url, token=TOKEN) as socket:
        assert socket.user == 7
        subscription = await socket.subscribe(GROUPS)
        assert subscription.current == ("jobs-status_changed",)
        assert [event.job_id for event in await take(socket, 50)] == list(range(50))
    assert stub.subscriptions == [GROUPS]
    assert stub.requests == []  # none without the token


async def test_garbage_is_skipped_and_told(stub, link, said):
    stub.scripts.append(
        say("{", b"\x00\xff", "[]", "{}", '{"accept": true, "user": 1}', status(1, "running"))
    )
    async with link() as socket:
        await socket.subscribe(GROUPS)
        assert [event.job_id for event in await take(socket, 1)] == [1]
    assert [words for words in said if words.startswith("ignored")] == [
        "ignored a frame that is no JSON",
        "ignored a binary frame",
        "ignored a frame that is no JSON object",
        "ignored an object of no known kind",
        "ignored a second welcome",
    ]


@pytest.mark.parametrize("lose", [lambda *p: say_and_close(1012, *p), lambda *p: say_and_break(*p)])
async def test_a_lost_connection_comes_back_with_its_subscription(stub, link, said, lose):
    stub.scripts.extend([lose(status(1, "running")), lose(status(2, "running")), say(status(3, "running"))])
    again = []
    async with link(on_reconnect=lambda: again.append(1)) as socket:
        await socket.subscribe(GROUPS)
        assert [event.job_id for event in await take(socket, 3)] == [1, 2, 3]
        assert socket.reconnects == 2
    assert stub.subscriptions == [GROUPS] * 3
    assert len(again) == 2
    assert sum("trying again in" in words for words in said) == 2
    assert said.count("connected again") == 2


async def test_a_server_that_is_away_for_a_while_is_waited_for(stub, link, said):
    async with link() as socket:
        await socket.subscribe(GROUPS)
        port = stub.port
        await stub.stop()
        reading = asyncio.create_task(take(socket, 1))
        while sum("nothing listens" in words for words in said) < 3:
            await asyncio.sleep(0.01)
        stub.scripts.append(say(status(5, "running")))
        await stub.start(port)
        assert [event.job_id for event in await reading] == [5]


async def test_a_busy_server_is_asked_again(stub, link, said):
    stub.scripts.extend([say_and_close(1013), say(status(5, "running"))])
    async with link() as socket:
        await socket.subscribe(GROUPS)
        stub.statuses.extend([503, 502, 429])
        assert [event.job_id for event in await take(socket, 1)] == [5]
    assert any("answers 503: as told" in words for words in said)


@pytest.mark.parametrize("code", [1013, 1006])
async def test_who_is_turned_away_for_now_comes_back(stub, link, said, code):
    stub.first_frames.append('{"accept": false, "user": null, "close": true, "error": "too many sockets"}')
    stub.first_closes.append(code)
    stub.scripts.append(say(status(5, "running")))
    async with link(wait=5) as socket:
        await socket.subscribe(GROUPS)
        assert [event.job_id for event in await take(socket, 1)] == [5]
    assert any("too many sockets" in words for words in said)


async def test_patience_after_a_loss_has_an_end(stub, link):
    async with link(give_up=0.2) as socket:
        await socket.subscribe(GROUPS)
        await stub.stop()
        with pytest.raises(Away, match="nothing listens"):
            await take(socket, 1)
        with pytest.raises(Away):
            await socket.subscribe(GROUPS)


async def test_nobody_there_is_an_error_at_once():
    with pytest.raises(Away, match=r"nothing listens at http://127\.0\.0\.1:9"):
        async with carillon.client.connect("http://127.0.0.1:9", token=TOKEN):
            pass


@pytest.mark.parametrize(
    ("frame", "error", "words"),
    [
        (
            '{"accept": false, "user": null, "close": true, "error": "no valid user"}',
            Refused,
            "no valid user",
        ),
        ('{"close": true}', Refused, "no reason"),
        ('{"hello": "world"}', Away, "no Carillon"),
        (b"\x00", Away, "binary"),
    ],
)
async def test_a_refusal_is_final_and_in_words(stub, link, frame, error, words):
    stub.first_frames.extend([frame] * 2)
    with pytest.raises(error, match=words):
        async with link(wait=5):
            pass
    assert len(stub.first_frames) == 1


@pytest.mark.parametrize(
    ("http", "error", "words"),
    [(403, Refused, "refuses the token"), (426, Away, "Upgrade"), (404, Away, "not there")],
)
async def test_a_refused_handshake_is_in_words(stub, link, http, error, words):
    stub.statuses.append(http)
    with pytest.raises(error, match=words):
        async with link():
            pass


@pytest.fixture
async def redirecting():
    """Answers each request with a redirect to HTTPS, as nginx does by its policy."""

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 301 M\r\nLocation: https://localhost/websocket/\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_a_redirect_is_an_error_in_words(redirecting):
    with pytest.raises(Away, match="redirects to another address: name that one"):
        async with Socket(endpoint(f"http://127.0.0.1:{redirecting}", TOKEN)):
            pass


async def test_a_redirect_of_a_reconnect_ends_nothing_as_if_all_were_well(stub, link, redirecting):
    stub.scripts.append(say_and_break(status(1, "running")))
    async with link(give_up=0.3) as socket:
        await socket.subscribe(GROUPS)
        socket._where = endpoint(f"http://127.0.0.1:{redirecting}", TOKEN)
        with pytest.raises(Away, match="redirects"):
            await take(socket, 9)


async def test_what_nobody_foresaw_is_an_error_and_no_end(stub, link, monkeypatch):
    async def broken(self, connection):
        raise ZeroDivisionError("of the client")

    monkeypatch.setattr(Socket, "_read", broken)
    async with link() as socket:
        with pytest.raises(Away, match="ZeroDivisionError: of the client"):
            await take(socket, 1)


async def test_a_goodbye_instead_of_a_welcome_is_an_error():
    async with serve(lambda connection: connection.close(1000), "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        with pytest.raises(Away, match="has ended"):
            async with carillon.client.connect(f"http://127.0.0.1:{port}", token=TOKEN):
                pass


@pytest.mark.parametrize("code", [4401, 4403, 1008])
async def test_being_shown_the_door_is_final(stub, link, code):
    stub.scripts.append(say_and_close(code, status(1, "running")))
    async with link() as socket:
        await socket.subscribe(GROUPS)
        assert len(await take(socket, 1)) == 1
        with pytest.raises(Refused):
            await take(socket, 1)
    assert len(stub.subscriptions) == 1


async def test_a_goodbye_ends_the_iteration(stub, link):
    stub.scripts.append(say_and_close(1000, status(1, "running")))
    async with link() as socket:
        await socket.subscribe(GROUPS)
        assert len(await take(socket, 9)) == 1
        assert await take(socket, 9) == []


async def test_nothing_is_lost_before_the_end_when_the_reader_is_slow(stub, link):
    stub.scripts.append(say_and_close(4401, *[status(number, "running") for number in range(40)]))
    async with link(buffer=3) as socket:
        await socket.subscribe(GROUPS)
        found = []
        with pytest.raises(Refused):  # noqa: PT012
            async for event in socket:
                await asyncio.sleep(0)
                found.append(event.job_id)
        assert found == list(range(40))


async def test_what_waits_for_a_slow_reader_is_bounded_in_bytes(stub, link):
    stub.scripts.append(say(*[{**status(number, "running"), "pad": "x" * 200_000} for number in range(50)]))
    async with link() as socket:
        await socket.subscribe(GROUPS)
        waiting = -1
        while waiting != socket._events.qsize():
            waiting = socket._events.qsize()
            await asyncio.sleep(0.2)
        assert waiting == 6, "one more than there is room for"
        assert [event.job_id for event in await take(socket, 50)] == list(range(50))


async def test_a_wait_for_the_next_event_that_ends_too_early_ends_nothing(stub, link):
    async with link() as socket:
        await socket.subscribe(GROUPS)
        events = aiter(socket)
        for number in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(events), 0.02)
            await stub.send(status(number, "running"))
            assert (await asyncio.wait_for(anext(events), 10)).job_id == number


async def test_no_event_is_lost_to_who_waits_shortly(stub, link):
    """Cancelled at every moment: before it came, while it comes, when it is there."""
    stub.scripts.append(say(*[status(number, "running") for number in range(200)]))
    async with link() as socket, asyncio.timeout(30):
        await socket.subscribe(GROUPS)
        found, turns = [], 0
        while len(found) < 200:
            turns += 1
            waiting = asyncio.ensure_future(anext(aiter(socket)))
            for _ in range(turns % 4):
                await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                found.append(waiting.result().job_id)
        assert found == list(range(200))


async def test_who_iterates_subscribes_in_the_loop_with_a_full_buffer_behind(stub, link, monkeypatch):
    monkeypatch.setattr("carillon.client.link.REPLY_TIMEOUT", 3.0)
    stub.scripts.append(say(*[status(number, "running") for number in range(500)]))
    async with link(buffer=10) as socket, asyncio.timeout(10):
        await socket.subscribe(GROUPS)
        while not socket._events.qsize():
            await asyncio.sleep(0.01)
        found = []
        async for event in socket:
            found.append(event.job_id)
            if len(found) == 1:
                both = {**GROUPS, "job_events": [event.job_id]}
                assert (await socket.subscribe(both)).current == ("job_events-0", "jobs-status_changed")
            if len(found) == 500:
                break
        assert found == list(range(500))
        for number in range(50):
            await stub.send(status(number, "running"))
        await asyncio.sleep(0.2)
        assert socket._events.qsize() == 1, "what has its answer is bounded again"


async def test_what_is_not_given_is_said_and_the_rest_proceeds(stub, link):
    async with link() as socket:
        subscription = await socket.subscribe(
            {"jobs": ["summary"], "bells": ["all"], "job_events": ["forbidden", 3]}
        )
        assert subscription.current == ("job_events-3", "jobs-summary")
        assert subscription.errors == (
            "unknown channel bells",
            "access denied to channel job_events for resource id forbidden",
        )
        with pytest.raises(SubscriptionError, match="unknown channel bells"):
            await socket.subscribe({"bells": ["all"]})
        assert (await socket.subscribe({})).current == ()


async def test_a_subscription_that_the_server_rejects_whole(stub, link):
    stub.rejected = "access denied to channel"
    async with link() as socket:
        with pytest.raises(SubscriptionError, match=r"^access denied to channel$"):
            await socket.subscribe(GROUPS)


async def test_a_certificate_that_is_not_trusted_is_final(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    server = StubCarillon()
    await server.start(context=context)
    try:
        with pytest.raises(CertificateError, match="CARILLON_CA_CERT"):
            async with carillon.client.connect(server.url, token=TOKEN, wait=5):
                pass
        certificate = tmp_path / "certificate.pem"
        async with carillon.client.connect(server.url, token=TOKEN, ca=certificate) as socket:
            assert socket.user == 7
    finally:
        await server.stop()


def self_signed(folder):
    """Paths of a certificate for localhost and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths

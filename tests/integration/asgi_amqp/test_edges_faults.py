"""A broker that refuses, answers late or never: recovery, or one clear error in time for all who wait."""

import asyncio
import contextlib
import os
import ssl
import subprocess
import sys
import time

import aiormq
import pytest

from asgi_amqp import BrokerUnavailable, ConfigurationError, LayerError
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import ROOT, eventually
from tests.integration.asgi_amqp.stub import Stub, commands

TIMEOUT = 3.0


async def receive(layer, channel, seconds=20):
    return await asyncio.wait_for(layer.receive(channel), seconds)


async def nothing(message):
    pass


def calls(layer):
    """Everything that has a deadline, by name."""
    return {
        "send durable": layer.send("durable", {"type": "a"}),
        "send normal": layer.send("normal", {"type": "a"}),
        "send many": layer.send_many([("durable", {"type": "a"})]),
        "group_send": layer.group_send("g", {"type": "a"}),
        "new_channel": layer.new_channel(),
        "group_add": layer.group_add("g", "normal"),
        "receive": layer.receive("normal"),
        "worker": Worker(layer, nothing, "durable", handle_signals=False).run(),
        "publisher": asyncio.to_thread(layer.publisher.send, "durable", {"type": "a"}, TIMEOUT),
        "publisher of groups": asyncio.to_thread(layer.publisher.group_send, "g", {"type": "a"}, TIMEOUT),
    }


async def ends(layer, caplog, *, only=None, secret="SECRET"):
    """Each call, all at once, ends with a clear error within its deadline, which holds nothing secret."""
    began = time.monotonic()
    tasks = {}
    for name, call in calls(layer).items():
        if only is None or name in only:
            tasks[name] = asyncio.create_task(call)
        elif asyncio.iscoroutine(call):
            call.close()
    await asyncio.wait(tasks.values(), timeout=TIMEOUT + 7)
    for name, task in tasks.items():
        assert task.done(), f"{name} still waits after {time.monotonic() - began:.0f} s"
        error = task.exception()
        assert isinstance(error, LayerError), (name, error)
        assert str(error), name
        assert secret not in str(error) + repr(error) + caplog.text, name


@pytest.mark.parametrize("rights", [("", "", ""), (".*", "", ".*"), ("", ".*", ".*")], ids=str)
async def test_a_user_without_permission(make_layer, broker, caplog, rights):
    """None at all; none to write; none to configure."""
    with contextlib.suppress(RuntimeError):
        await broker.do("ctl", "add_user", "poor", "SECRET")
    await broker.do("ctl", "set_permissions", "-p", "carillon", "poor", *rights)
    layer = make_layer(url=broker.url_for("poor", "SECRET", "carillon"), durable=["durable"], timeout=TIMEOUT)
    only = ("send durable", "send normal", "send many", "publisher") if rights[0] else None
    await ends(layer, caplog, only=only)
    shown = await broker.do("ctl", "list_connections", "user")
    assert shown.split().count("poor") <= 4
    await layer.close()


async def test_a_user_with_the_least_permissions_that_do(make_layer, broker):
    """Those that the page for channels_redis names."""
    with contextlib.suppress(RuntimeError):
        await broker.do("ctl", "add_user", "least", "SECRET")
    rights = ("^mysite", r"^(mysite.*|amq\.default)$", "^mysite")
    await broker.do("ctl", "set_permissions", "-p", "carillon", "least", *rights)
    url = broker.url_for("least", "SECRET", "carillon")
    layer = make_layer(url=url, prefix="mysite", durable=["jobs"])
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.group_send("g", {"n": 1})
    assert await asyncio.wait_for(layer.receive(channel), 5) == {"n": 1}
    for name in ("jobs", "normal"):
        await layer.send(name, {"n": 2})
        assert await asyncio.wait_for(layer.receive(name), 5) == {"n": 2}
    await layer.close()


async def test_a_certificate_for_another_name(make_layer, broker, caplog, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "1", "-subj", "/CN=elsewhere.test", "-addext", "subjectAltName=DNS:elsewhere.test",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    layer = make_layer(url=f"amqps://u:SECRET@127.0.0.1:{port}/", ssl_ca=str(certificate), timeout=TIMEOUT)
    try:
        with pytest.raises(ConfigurationError, match="certificate") as caught:
            await asyncio.wait_for(layer.new_channel(), 10)
        assert "SECRET" not in str(caught.value) + caplog.text
    finally:
        server.close()


async def test_a_normal_channel_that_is_there_with_another_capacity(make_layer, caplog):
    small, large = make_layer(capacity=3), make_layer(capacity=5)
    await small.send("normal", {"type": "a"})
    await large.send("normal", {"type": "b"})
    assert [(await receive(large, "normal"))["type"] for _ in range(2)] == ["a", "b"]
    assert "normal" in caplog.text  # it is said


SILENT = [
    commands.Connection.StartOk, commands.Connection.Open, commands.Channel.Open, commands.Exchange.Declare,
]  # fmt: skip


@pytest.mark.parametrize("method", SILENT, ids=lambda method: method.name)
async def test_a_broker_that_never_answers(make_layer, caplog, method):
    async with Stub(heartbeat=2) as stub:
        stub.silent.add(method)
        layer = make_layer(url=stub.url, durable=["durable"], timeout=TIMEOUT, connect_timeout=1.0)
        await ends(layer, caplog)
        stub.silent.clear()
        channel = await asyncio.wait_for(new_channel(layer), 30)  # and it recovers
        await layer.send(channel, {"type": "a"})
        assert await receive(layer, channel) == {"type": "a"}
        await layer.close()


async def new_channel(layer):
    while True:
        with contextlib.suppress(BrokerUnavailable):
            return await layer.new_channel()


@pytest.mark.parametrize(("method", "only"), [
    (commands.Queue.Bind, ("group_add",)),
    (commands.Queue.Declare, ("send durable", "send normal", "send many", "receive", "worker", "publisher")),
    (commands.Basic.Consume, ("receive", "worker")),
    (None, ("send durable", "send normal", "send many", "publisher", "publisher of groups")),
], ids=["bind", "declare", "consume", "confirm"])  # fmt: skip
async def test_a_broker_that_no_longer_answers(make_layer, caplog, method, only):
    """It answers while the layer connects, then never again, and its heart goes on beating."""
    async with Stub() as stub:
        layer = make_layer(url=stub.url, durable=["durable"], timeout=TIMEOUT)
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "a"})
        assert await receive(layer, channel) == {"type": "a"}
        await asyncio.to_thread(layer.publisher.group_send, "nobody", {"type": "a"})
        stub.silent = {method}
        stub.withheld = method is None
        await ends(layer, caplog, only=only)
        await layer.send(channel, {"type": "b"})  # what needs no answer goes on
        assert await receive(layer, channel) == {"type": "b"}
        await layer.close()


async def test_a_broker_that_answers_late(make_layer):
    async with Stub() as stub:
        stub.late = 0.1
        layer = make_layer(url=stub.url, durable=["durable"], timeout=30.0, connect_timeout=5.0)
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.group_send("g", {"type": "a"})
        assert await receive(layer, channel) == {"type": "a"}
        for where in ("durable", "normal"):
            await layer.send(where, {"type": "a"})
            assert await receive(layer, where) == {"type": "a"}
        await layer.close()


@pytest.mark.parametrize("where", ["local", "normal", "durable", "worker"])
async def test_a_login_that_is_refused_while_reconnecting_fails_nobody(make_layer, where):
    """Its node was just starting, or its password was just being changed: they wait, and are served."""
    async with Stub() as stub:
        layer, got = make_layer(url=stub.url, durable=["durable"]), []

        async def handle(message):
            got.append(message)

        async def read():
            got.append(await layer.receive(channel))

        channel = await layer.new_channel() if where == "local" else where
        if where == "worker":
            channel = "durable"
            reading = asyncio.create_task(Worker(layer, handle, channel, handle_signals=False).run())
        else:
            reading = asyncio.create_task(read())
        try:
            await layer.send("durable" if where != "durable" else "normal", {"type": "first"})
            await asyncio.wait({reading}, timeout=0.5)
            stub.refused = True
            logins = stub.count(commands.Connection.StartOk)
            stub.cut()
            await eventually(lambda: stub.count(commands.Connection.StartOk) >= logins + 2)
            await asyncio.wait({reading}, timeout=1)
            assert not reading.done()
            stub.refused = False
            sender = make_layer(url=stub.url, durable=["durable"])
            async with asyncio.timeout(30):
                while not got:
                    await sender.send(channel, {"type": "a"})
                    await asyncio.wait({reading}, timeout=0.5)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_a_gap_is_said_before_what_comes_after_it(make_layer):
    """A broker that takes its time with the last declarations: the queue is there and fills already."""
    async with Stub() as stub:
        layer, sender = make_layer(url=stub.url, gap_type="gap"), make_layer(url=stub.url)
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await sender.group_send("g", {"type": "a"})
        assert await receive(layer, channel) == {"type": "a"}
        stub.late = 0.2
        consumed = stub.count(commands.Basic.Consume)
        for connection in {each[1] for each in stub.consumers.values()}:
            connection.writer.transport.abort()
        await eventually(lambda: stub.count(commands.Basic.Consume) > consumed)
        await sender.group_send("g", {"type": "after"})
        assert (await receive(layer, channel))["type"] == "gap"
        assert (await receive(layer, channel))["type"] == "after"


OLD_CHANNELS = """
import importlib.metadata
import sys
import channels, channels.layers
true = importlib.metadata.version
importlib.metadata.version = lambda name: sys.argv[1] if name.lower() == "channels" else true(name)
channels.__version__ = sys.argv[1]
del channels.layers.BaseChannelLayer.require_valid_channel_name
del channels.layers.BaseChannelLayer.require_valid_group_name
try:
    from asgi_amqp import AMQPChannelLayer
    layer = AMQPChannelLayer("amqp://127.0.0.1:1/")
except Exception as error:
    assert "4.2.1" in str(error), repr(error)
else:
    raise AssertionError("nothing is said of it")
"""


@pytest.mark.parametrize("version", ["4.1.0", "4.2.0"])
def test_a_channels_that_is_too_old_is_said_at_once(version):
    done = subprocess.run(
        [sys.executable, "-c", OLD_CHANNELS, version],
        env=dict(os.environ, PYTHONPATH="src"), cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert not done.returncode, done.stderr


async def test_a_queue_that_others_hold_alone_costs_no_other_channel(broker, make_layer):
    layer = make_layer(timeout=TIMEOUT)
    await layer.send("jobs", {"type": "a"})
    queue = layer.destination("jobs").queue.name
    connection = await aiormq.connect(broker.url)
    holder = await connection.channel()
    held = asyncio.Queue()
    await holder.basic_consume(queue, held.put, exclusive=True)
    await asyncio.wait_for(held.get(), 10)  # it consumes
    channel = await layer.new_channel()
    supervisor = layer.session().receiver.supervisor
    link = supervisor.current
    with pytest.raises(BrokerUnavailable, match="not consumed within"):
        await layer.receive("jobs")
    assert supervisor.current is link
    await layer.send(channel, {"type": "b"})
    assert await receive(layer, channel) == {"type": "b"}
    await connection.close()
    assert await receive(layer, "jobs") == {"type": "a"}  # it was given back

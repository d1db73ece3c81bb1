"""Every fault ends in recovery or in a clear error, and the counts add up."""

import asyncio
import contextlib
import threading
import time

import pytest

from asgi_amqp import BrokerUnavailable, ConfigurationError
from asgi_amqp.worker import Worker
from tests.integration.asgi_amqp.broker import PASSWORD, eventually, free_port

EMITTERS = 25  # so many events of each kind are under way when a fault strikes


class Traffic:
    """Confirmed and unconfirmed events that flow through a fault, counted at both ends, and reported."""

    def __init__(self, make_layer, report, **options):
        self.sender = make_layer(durable=["jobs"], heartbeat=4, **options)
        self.receiver = make_layer(durable=["jobs"], heartbeat=4, **options)
        self.number = self.deliveries = 0
        self.confirmed, self.handled, self.accepted, self.heard = set(), set(), set(), set()
        self.condemned = set()  # confirmed events that somebody threw away with their queue
        self.losses = []
        self.report = report
        for layer in (self.sender, self.receiver):
            layer.on_loss.append(self.losses.append)

    async def __aenter__(self):
        async def handle(message):
            if message["number"]:  # 0: a test's own, again and again
                self.deliveries += 1
                self.handled.add(message["number"])

        self.worker = Worker(self.receiver, handle, "jobs", handle_signals=False)
        self.channel = await self.receiver.new_channel()
        await self.receiver.group_add("g", self.channel)
        self.tasks = [asyncio.create_task(each) for each in (self.worker.run(), self.listen())]
        self.emitters = [asyncio.create_task(self.emit()) for _ in range(EMITTERS)]
        await eventually(lambda: len(self.handled) > 20 and len(self.heard) > 20)
        return self

    async def listen(self):
        while True:
            self.heard.add((await self.receiver.receive(self.channel))["number"])

    async def emit(self):
        while True:
            self.number = number = self.number + 1
            with contextlib.suppress(BrokerUnavailable):
                await self.sender.group_send("g", {"type": "a", "number": number})
                self.accepted.add(number)
            with contextlib.suppress(BrokerUnavailable):
                await self.sender.send("jobs", {"type": "a", "number": number})
                self.confirmed.add(number)
            await asyncio.sleep(0.01)

    async def recovered(self, seconds=100):
        """Both kinds flow again, sent after now."""
        before = self.number

        def flow() -> bool:
            for task in (*self.tasks, *self.emitters):
                assert not task.done(), f"{task.get_coro().__name__}() ended: {task.exception()!r}"
            return max(self.handled) > before and max(self.heard) > before

        await eventually(flow, seconds)

    async def __aexit__(self, error, *_):
        for emitter in self.emitters:
            emitter.cancel()
        await asyncio.gather(*self.emitters, return_exceptions=True)
        with contextlib.suppress(AssertionError):
            await eventually(lambda: self.confirmed <= self.handled | self.condemned, 20)
        with contextlib.suppress(AssertionError):  # sent after all else, to the same place
            await eventually(lambda: max(self.accepted) in self.heard, 5)
        self.worker.stop()
        self.tasks[1].cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        lost, missing = self.confirmed - self.handled, self.accepted - self.heard
        counted = {
            reason: sum(loss.count or 0 for loss in self.losses if loss.reason == reason)
            for reason in sorted({loss.reason for loss in self.losses})
        }
        gaps = sum(loss.count is None for loss in self.losses)
        self.report(
            sent=self.number, confirmed=len(self.confirmed), handled=len(self.handled),
            confirmed_and_lost=len(lost - self.condemned), thrown_away=len(lost & self.condemned),
            repeated=self.deliveries - len(self.handled), unconfirmed=len(self.accepted),
            heard=len(self.heard), missing=len(missing), reported=counted, gaps=gaps,
        )  # fmt: skip
        if error is not None:
            return
        assert lost <= self.condemned, "confirmed events were lost"
        assert gaps or len(missing) <= sum(counted.values()), "unconfirmed events vanished in silence"


async def test_broker_restarted(make_layer, broker, report):
    async with Traffic(make_layer, report) as traffic:
        await broker.do("restart")
        await traffic.recovered()
        assert traffic.receiver.stats.lost["reconnect"] >= 1


async def test_broker_killed(make_layer, broker, report):
    async with Traffic(make_layer, report) as traffic:
        await broker.do("remember_queues")
        await broker.do("kill")
        await broker.do("start")
        await traffic.recovered()


async def test_a_send_on_a_connection_that_is_going_is_counted_and_raises_nothing(make_layer):
    """For a moment after the broker's goodbye the connection takes nothing more, and is not yet known to be
    lost."""
    layer = make_layer()
    channel = await layer.new_channel()
    await layer.group_add("g", channel)
    await layer.group_send("g", {"type": "a", "number": 1})
    assert (await layer.receive(channel))["number"] == 1
    sender = layer.session().sender
    await eventually(lambda: not sender.outbox.under_way)
    sender.supervisor.current._transport.socket.write_eof()
    await layer.group_send("g", {"type": "a", "number": 2})
    await eventually(lambda: layer.stats.lost["in_flight"] == 1)
    await layer.group_send("g", {"type": "a", "number": 3})
    assert (await layer.receive(channel))["number"] == 3


async def test_connections_closed_by_the_broker(make_layer, broker, report, caplog):
    async with Traffic(make_layer, report) as traffic:
        queues = {traffic.receiver.session().receiver.queue_name}
        for cuts in (1, 2):
            await broker.do("close_connections")
            await eventually(lambda: traffic.sender.stats.reconnects >= cuts)  # noqa: B023
            await eventually(lambda: traffic.receiver.stats.reconnects >= cuts)  # noqa: B023
            await traffic.recovered()
            queues.add(traffic.receiver.session().receiver.queue_name)
    assert len(queues) == 3  # the old exclusive queue may still be there: 405 RESOURCE_LOCKED
    assert "RESOURCE_LOCKED" not in caplog.text


async def test_network_blackholed(make_layer, broker, report):
    """Packets vanish and nothing is refused: noticed by the heartbeat, 4 s here, and not after the minutes
    that TCP would take.
    """
    async with Traffic(make_layer, report) as traffic:
        await broker.do("pause")
        try:
            await eventually(lambda: traffic.receiver.gauges()["connected_consuming"] == 0, 20)
        finally:
            await broker.do("unpause")
        await traffic.recovered()


@pytest.mark.parametrize("alarm", ["memory", "disk"])
async def test_publishers_blocked_by_an_alarm(make_layer, broker, report, alarm):
    layer = make_layer(durable=["jobs"], timeout=2.0)
    async with Traffic(make_layer, report) as traffic:
        await layer.send("jobs", {"type": "a", "number": 0})
        if alarm == "memory":
            await broker.do("ctl", "set_vm_memory_high_watermark", "absolute", "1MB")
        else:
            await broker.do("ctl", "set_disk_free_limit", "mem_relative", "1000.0")
        try:
            problems = []
            deadline = time.monotonic() + 40
            while not any("blocked" in problem for problem in problems) and time.monotonic() < deadline:
                try:
                    await layer.send("jobs", {"type": "a", "number": 0})
                except BrokerUnavailable as error:
                    problems.append(str(error))
            assert "blocked its publishers" in problems[-1]
            assert layer.gauges()["blocked"] == 1
            # reading goes on meanwhile: the two have connections of their own
            assert traffic.receiver.gauges()["connected_consuming"] == 1
        finally:
            if alarm == "memory":
                await broker.do("ctl", "set_vm_memory_high_watermark", "absolute", "768MB")
            else:
                await broker.do("ctl", "set_disk_free_limit", "100MB")
        await traffic.recovered()


async def test_process_queue_deleted_underneath(make_layer, broker, report):
    async with Traffic(make_layer, report) as traffic:
        session = traffic.receiver.session()
        for _ in range(2):
            before = session.receiver.queue_name
            await broker.do("ctl", "delete_queue", "--vhost", "carillon", before)
            await eventually(lambda: session.receiver.queue_name != before)  # noqa: B023
            await traffic.recovered()
        assert traffic.receiver.stats.lost["reconnect"] == 2


async def test_durable_queue_deleted_under_traffic(make_layer, broker, report):
    """The broker cancels its consumer and returns what is sent to it. What was in it is gone, and nobody can
    help that; what is sent from then on arrives.
    """
    async with Traffic(make_layer, report) as traffic:
        await broker.do("ctl", "delete_queue", "--vhost", "carillon", f"{traffic.sender.prefix}.d.jobs")
        traffic.condemned = set(range(traffic.number + 1))
        await traffic.recovered()


async def test_durable_queue_deleted_underneath(make_layer, broker):
    """Its messages are gone with it: nobody can help that. What is sent after is not."""
    layer = make_layer(durable=["jobs"])
    await layer.send("jobs", {"type": "a", "number": 1})
    await broker.do("ctl", "delete_queue", "--vhost", "carillon", f"{layer.prefix}.d.jobs")
    await layer.send("jobs", {"type": "a", "number": 2})
    assert (await asyncio.wait_for(layer.receive("jobs"), 20))["number"] == 2


async def test_consumer_of_a_durable_queue_cancelled(make_layer, broker):
    layer = make_layer(durable=["jobs"])
    got = []

    async def handle(message):
        got.append(message["number"])

    worker = Worker(layer, handle, "jobs", handle_signals=False)
    task = asyncio.create_task(worker.run())
    await layer.send("jobs", {"type": "a", "number": 1})
    await eventually(lambda: got == [1])
    await broker.do("ctl", "delete_queue", "--vhost", "carillon", f"{layer.prefix}.d.jobs")
    await layer.send("jobs", {"type": "a", "number": 2})
    await eventually(lambda: got == [1, 2])
    worker.stop()
    await asyncio.wait_for(task, 30)


@pytest.mark.parametrize(("user", "password", "vhost"), [
    ("carillon", "SECRETWRONG", "carillon"), ("nobody", "SECRETWRONG", "carillon"),
    ("carillon", PASSWORD, "nowhere"),
])  # fmt: skip
async def test_credentials_and_vhosts_that_are_wrong_end_at_once(
    make_layer, broker, caplog, user, password, vhost
):
    layer = make_layer(url=broker.url_for(user, password, vhost), durable=["d"])
    for call in (
        lambda: layer.group_send("g", {"type": "a"}),
        lambda: layer.new_channel(),
        lambda: layer.receive("normal"),
        lambda: asyncio.to_thread(layer.publisher.group_send, "g", {"type": "a"}),
    ):
        with pytest.raises((ConfigurationError, BrokerUnavailable)) as caught:
            await asyncio.wait_for(call(), 15)
        assert repr(vhost if vhost == "nowhere" else user) in str(caught.value)
        for secret in ("SECRETWRONG", PASSWORD):
            assert secret not in str(caught.value) + repr(caught.value) + caplog.text
    attempts = [record for record in caplog.records if "Giving up" in record.getMessage()]
    assert 1 <= len(attempts) <= 4  # one for each connection that was wanted, and no loop


async def test_hosts_are_tried_in_turn(make_layer, broker):
    layer = make_layer(url=[f"amqp://carillon:x@127.0.0.1:{free_port()}/", broker.url])
    for _ in range(2):
        channel = await layer.new_channel()
        await layer.send(channel, {"type": "a"})
        assert await asyncio.wait_for(layer.receive(channel), 20) == {"type": "a"}
        await layer.close()


async def test_a_broker_that_comes_late_is_waited_for(make_layer, broker):
    await broker.do("kill")
    layer = make_layer(timeout=100.0)
    sending = asyncio.create_task(layer.send("normal", {"type": "a"}))
    await eventually(lambda: "Connect call failed" in str(layer.session().sender.supervisor.problem))
    await broker.do("start")
    await sending
    assert await asyncio.wait_for(layer.receive("normal"), 30) == {"type": "a"}


async def test_confirmed_events_in_flight_leave_again(make_layer, broker, report):
    """The broker is frozen while they leave, and the connection cut: nobody who waits hears of it."""
    layer = make_layer(durable=["jobs"], timeout=60.0)
    await layer.send("jobs", {"type": "a", "number": -1})
    sender = layer.session().sender
    await broker.do("pause")
    try:
        sending = [asyncio.create_task(layer.send("jobs", {"type": "a", "number": n})) for n in range(300)]
        await eventually(lambda: sender.outbox.under_way and not sender.outbox.size)
        sender.supervisor.current.abort()
        await eventually(lambda: not layer.gauges()["connected_publishing"])
    finally:
        await broker.do("unpause")
    await asyncio.wait_for(asyncio.gather(*sending), 60)
    await layer.send("jobs", {"type": "a", "number": 300})
    got = []
    while not got or got[-1] != 300:
        got.append((await asyncio.wait_for(layer.receive("jobs"), 20))["number"])
    report(confirmed=302, handled=len(set(got)), repeated=len(got) - len(set(got)))
    # The frozen broker may have taken them before: then they are there twice, and in order twice.
    assert [number for index, number in enumerate(got) if number not in got[:index]] == list(range(-1, 301))


async def test_in_flight_unconfirmed_events_are_reported(make_layer, broker, report):
    """The broker is frozen while events leave, then dies: each was confirmed or is reported."""
    losses = []
    layer = make_layer(timeout=5.0)
    layer.on_loss.append(losses.append)
    await layer.group_send("g", {"type": "a"})
    await layer.session().sender.flush(10)
    await broker.do("pause")
    for _ in range(25):
        await layer.group_send("g", {"type": "a"})
    await eventually(lambda: not layer.session().sender.outbox.size)
    try:
        # Killing thaws it: it may confirm some in its last moment.
        await broker.do("kill")
        await eventually(lambda: not layer.gauges()["connected_publishing"])
        report(sent=26, confirmed=layer.stats.confirmed, reported=layer.stats.lost)
        assert layer.stats.confirmed + layer.stats.lost["in_flight"] == 26
        assert sum(loss.count for loss in losses if loss.reason == "in_flight") == 26 - layer.stats.confirmed
    finally:
        await broker.do("start")


async def test_threads_publish_through_a_restart(make_layer, broker, report):
    """Views know nothing of event loops: what the publisher has confirmed to a thread is there."""
    layer = make_layer(durable=["jobs"])
    confirmed, handled = set(), set()
    over = threading.Event()

    def emit(thread):
        number = thread
        while not over.is_set():
            with contextlib.suppress(BrokerUnavailable):
                layer.publisher.send("jobs", {"type": "a", "number": number}, 20.0)
                confirmed.add(number)
            number += 4

    async def handle(message):
        handled.add(message["number"])

    worker = Worker(layer, handle, "jobs", handle_signals=False)
    tasks = [asyncio.create_task(worker.run()), *(asyncio.to_thread(emit, each) for each in range(4))]
    running = asyncio.gather(*tasks)
    try:
        await eventually(lambda: len(handled) > 50)
        await broker.do("restart")
        before = max(confirmed)
        await eventually(lambda: max(handled) > before + 50, 100)
    finally:
        over.set()
    with contextlib.suppress(AssertionError):
        await eventually(lambda: confirmed <= handled)
    report(confirmed=len(confirmed), handled=len(handled), confirmed_and_lost=len(confirmed - handled))
    assert confirmed <= handled
    worker.stop()
    await asyncio.wait_for(running, 60)
    await asyncio.to_thread(layer.publisher.close)


async def test_one_process_that_does_not_read_stops_nobody(make_layer):
    """Its queue fills on the broker and drops the oldest, which is counted and announced; publishers and the
    other members of the group notice nothing.
    """
    stuck = make_layer(queue_bytes=500_000, gap_type="gap", capacity=100_000)
    other, sender = make_layer(capacity=100_000), make_layer()
    channels = [await layer.new_channel() for layer in (stuck, other)]
    for layer, channel in zip((stuck, other), channels, strict=True):
        await layer.group_add("g", channel)
    transport = stuck.session().receiver.supervisor.current._transport.socket
    transport.pause_reading()
    total = 600  # of 100 kB: more than sockets and queue hold
    for number in range(total):
        await sender.group_send("g", {"type": "a", "number": number, "text": "x" * 100_000})
        assert (await asyncio.wait_for(other.receive(channels[1]), 20))["number"] == number
    assert await sender.session().sender.flush(20)
    assert sender.stats.confirmed == total
    assert not sender.stats.lost
    transport.resume_reading()
    numbers, gaps = [], []
    while not numbers or numbers[-1] != total - 1:
        message = await asyncio.wait_for(stuck.receive(channels[0]), 20)
        if message["type"] == "gap":
            gaps.append((message["reason"], message["count"]))
        else:
            numbers.append(message["number"])
    await eventually(lambda: stuck.stats.lost["broker_overflow"])
    assert set(gaps) <= {("broker_overflow", None)}  # they have a queue of their own, and may come last
    assert len(gaps) <= 3  # and are not one for each message
    assert numbers == sorted(numbers)
    assert len(numbers) < total


async def test_tls_is_verified(make_layer, broker, tmp_path):
    """A TLS server that speaks nothing else is enough: the certificate comes before AMQP."""
    import ssl
    import subprocess

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def forward(reader, writer):
        """Decrypts and hands on to the real broker."""
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", broker.port)

        async def pump(source, sink):
            with contextlib.suppress(OSError, asyncio.CancelledError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    url = broker.url.replace("amqp://", "amqps://").replace(f":{broker.port}", f":{port}")
    try:
        with pytest.raises(ConfigurationError, match="certificate"):
            await make_layer(url=url).new_channel()
        trusting = make_layer(url=url, ssl_ca=str(certificate))
        channel = await trusting.new_channel()
        await trusting.send(channel, {"type": "a"})
        assert await asyncio.wait_for(trusting.receive(channel), 20) == {"type": "a"}
        await trusting.close()
    finally:
        server.close()

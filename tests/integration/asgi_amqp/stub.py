"""A broker of a page: what RabbitMQ cannot be made to do, and what goes over the wire.

It knows direct exchanges by routing key alone, queues without limits, consumers, confirms and returns. Tests
read `seen` and change how it behaves.
"""

import asyncio
import itertools
from collections import defaultdict, deque

from pamqp import body, commands, header, heartbeat
from pamqp import frame as frames

CAPABILITIES = {
    "publisher_confirms": True, "basic.nack": True, "consumer_cancel_notify": True,
    "connection.blocked": True, "authentication_failure_close": True,
}  # fmt: skip


class Stub:
    """`async with Stub() as stub`: listens at `stub.url`.

    seen: (connection, method) of every method that clients sent. silent: classes of methods that are never
    answered; late: seconds before any other is. refused: logins are. withheld: publishes get no confirm.
    """

    def __init__(self, *, channel_max=2047, frame_max=131072, heartbeat=0):
        self.tune = {"channel_max": channel_max, "frame_max": frame_max, "heartbeat": heartbeat}
        self.seen = []
        self.silent = set()
        self.late = 0.0
        self.refused = self.withheld = False
        self.queues = {}
        self.bindings = defaultdict(set)
        self.consumers = {}  # tag: (queue, connection, channel)
        self.connections = set()
        self.numbers = itertools.count(1)

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"amqp://u:SECRET@127.0.0.1:{self.server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()

    def cut(self):
        for connection in list(self.connections):
            connection.writer.transport.abort()

    def count(self, method):
        """How often clients have sent this method."""
        return sum(isinstance(each, method) for _, each in self.seen)

    async def _serve(self, reader, writer):
        connection = Connection(self, reader, writer)
        self.connections.add(connection)
        try:
            await connection.run()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections.discard(connection)
            for tag, consumer in list(self.consumers.items()):
                if consumer[1] is connection:
                    del self.consumers[tag]
            for queue, message in connection.unacknowledged.values():
                if queue in self.queues:
                    self.queues[queue].appendleft(message)
            writer.close()

    def publish(self, key, properties, data):
        """To every queue bound to `key` or to one of its carbon copies; whether there is one."""
        keys = {key, *((properties.headers or {}).get("CC") or ())}
        queues = {queue for each in keys for queue in self.bindings[each] if queue in self.queues}
        queues |= keys & set(self.queues)  # the default exchange
        for queue in queues:
            self.queues[queue].append((key, properties, data, False))
        self.feed()
        return bool(queues)

    def feed(self):
        for tag, (queue, connection, channel, _) in list(self.consumers.items()):
            waiting = self.queues.get(queue, ())
            while waiting and connection.may_take(tag):
                connection.deliver(channel, tag, queue, waiting.popleft())


class Connection:
    def __init__(self, stub, reader, writer):
        self.stub, self.reader, self.writer = stub, reader, writer
        self.confirms = {}  # channel: number of the last publish
        self.contents = {}  # channel: [publish, header, pieces]
        self.unacknowledged = {}  # (channel, tag): (queue, message)
        self.prefetch = defaultdict(int)
        self.tags = defaultdict(int)
        self.exclusive = set()

    def send(self, channel, *values):
        self.writer.write(b"".join(frames.marshal(each, channel) for each in values))

    async def run(self):
        await self.reader.readexactly(8)
        self.send(0, commands.Connection.Start(server_properties={"capabilities": CAPABILITIES}))
        while True:
            head = await self.reader.readexactly(7)
            rest = await self.reader.readexactly(int.from_bytes(head[3:7], "big") + 1)
            _, channel, value = frames.unmarshal(head + rest)
            if isinstance(value, heartbeat.Heartbeat):
                self.send(0, heartbeat.Heartbeat())
            elif isinstance(value, header.ContentHeader):
                self.contents[channel][1] = value
                self.complete(channel)
            elif isinstance(value, body.ContentBody):
                self.contents[channel][2].append(value.value)
                self.complete(channel)
            else:
                self.stub.seen.append((self, value))
                if isinstance(value, commands.Basic.Publish):
                    self.contents[channel] = [value, None, []]
                    continue
                if self.stub.late:
                    await asyncio.sleep(self.stub.late)
                if type(value) not in self.stub.silent and self.answer(channel, value):
                    return

    def answer(self, channel, value):
        """Whether the connection is over."""
        stub, known = self.stub, commands
        if isinstance(value, known.Connection.StartOk):
            if stub.refused:
                self.send(0, known.Connection.Close(403, "ACCESS_REFUSED - login was refused", 0, 0))
            else:
                self.send(0, known.Connection.Tune(**stub.tune))
        elif isinstance(value, known.Connection.Open):
            self.send(0, known.Connection.OpenOk())
        elif isinstance(value, known.Connection.Close):
            self.send(0, known.Connection.CloseOk())
            return True
        elif isinstance(value, known.Connection.CloseOk):
            return True
        elif isinstance(value, known.Channel.Open):
            self.send(channel, known.Channel.OpenOk())
        elif isinstance(value, known.Channel.Close):
            self.forget(channel)
            self.send(channel, known.Channel.CloseOk())
        elif isinstance(value, known.Confirm.Select):
            self.confirms[channel] = 0
            self.send(channel, known.Confirm.SelectOk())
        elif isinstance(value, known.Exchange.Declare):
            self.send(channel, known.Exchange.DeclareOk())
        elif isinstance(value, known.Queue.Declare):
            waiting = stub.queues.setdefault(value.queue, deque())
            self.send(channel, known.Queue.DeclareOk(value.queue, len(waiting), 0))
        elif isinstance(value, known.Queue.Bind):
            stub.bindings[value.routing_key].add(value.queue)
            if not value.nowait:
                self.send(channel, known.Queue.BindOk())
        elif isinstance(value, known.Queue.Unbind):
            stub.bindings[value.routing_key].discard(value.queue)
            self.send(channel, known.Queue.UnbindOk())
        elif isinstance(value, known.Basic.Qos):
            self.prefetch[channel] = value.prefetch_count
            self.send(channel, known.Basic.QosOk())
        elif isinstance(value, known.Basic.Consume):
            tag = value.consumer_tag or f"c{next(stub.numbers)}"
            stub.consumers[tag] = (value.queue, self, channel, value.no_ack)
            self.send(channel, known.Basic.ConsumeOk(tag))
            stub.feed()
        elif isinstance(value, known.Basic.Cancel):
            stub.consumers.pop(value.consumer_tag, None)
            self.send(channel, known.Basic.CancelOk(value.consumer_tag))
        elif isinstance(value, (known.Basic.Ack, known.Basic.Nack, known.Basic.Reject)):
            every = getattr(value, "multiple", False)
            for key in sorted(self.unacknowledged):
                if key[0] == channel and (
                    key[1] == value.delivery_tag or (every and key[1] < value.delivery_tag)
                ):
                    queue, (to, properties, data, _) = self.unacknowledged.pop(key)
                    if getattr(value, "requeue", False):
                        if isinstance(value, known.Basic.Reject):  # as RabbitMQ 4.3 counts
                            properties.headers = dict(properties.headers or {})
                            properties.headers["x-delivery-count"] = (
                                properties.headers.get("x-delivery-count", 0) + 1
                            )
                        stub.queues[queue].append((to, properties, data, True))
            stub.feed()
        return False

    def forget(self, channel):
        for tag, consumer in list(self.stub.consumers.items()):
            if consumer[1:3] == (self, channel):
                del self.stub.consumers[tag]
        for key in [key for key in self.unacknowledged if key[0] == channel]:
            queue, message = self.unacknowledged.pop(key)
            self.stub.queues[queue].appendleft(message)

    def complete(self, channel):
        """A publish whose content is whole: route, return, confirm."""
        method, head, pieces = self.contents[channel]
        data = b"".join(pieces)
        if head is None or len(data) < head.body_size:
            return
        if not self.stub.publish(method.routing_key, head.properties, data) and method.mandatory:
            self.send(channel, commands.Basic.Return(312, "NO_ROUTE", method.exchange, method.routing_key))
            self.content(channel, head.properties, data)
        if channel in self.confirms:
            self.confirms[channel] += 1
            if not self.stub.withheld:
                self.send(channel, commands.Basic.Ack(self.confirms[channel]))

    def may_take(self, tag):
        _, _, channel, no_ack = self.stub.consumers[tag]
        taken = sum(key[0] == channel for key in self.unacknowledged)
        return no_ack or not self.prefetch[channel] or taken < self.prefetch[channel]

    def deliver(self, channel, tag, queue, message):
        key, properties, data, redelivered = message
        self.tags[channel] += 1
        if not self.stub.consumers[tag][3]:
            self.unacknowledged[channel, self.tags[channel]] = queue, message
        self.send(channel, commands.Basic.Deliver(tag, self.tags[channel], redelivered, "", key))
        self.content(channel, properties, data)

    def content(self, channel, properties, data):
        self.send(channel, header.ContentHeader(0, len(data), properties))
        room = (self.stub.tune["frame_max"] or 1 << 20) - 8
        for start in range(0, len(data), room):
            self.send(channel, body.ContentBody(data[start : start + room]))

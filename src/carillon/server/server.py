"""Daphne's server with what a crowd of long-lived sockets needs. `python -m carillon.server` takes
Daphne's own arguments.

- The scope of a websocket carries `carillon.outlet`: events go from the hub to the file descriptor without
passing
  through the ASGI application. What the application itself sends waits while its reader does not take it.
- Nothing walks all sockets: pings come from a timer wheel, an application that ends tidies up after itself.
- What a client sends is bounded in number and bytes: when its application does not read, nothing more is read
from the socket. Every frame, pings and empty ones too, counts against an allowance: beyond it 1008.
- TERM drains: no new connections, then 1012 to everyone, spread over `drain_seconds`.
"""

import asyncio
import gc
import json
import logging
import random
import time
from collections import deque
from functools import partial

from daphne.cli import CommandLineInterface

from daphne.server import Server  # isort:skip  (daphne.server installs the asyncio reactor)
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet import defer

from asgi_amqp import Position
from carillon.budgets import Allowance
from carillon.fanout.forms import PING, Frames2, frame
from carillon.metrics import names
from carillon.server.outlet import TOO_SLOW, Outlet
from carillon.server.wheel import Wheel

logger = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between two ticks of the wheel that pings."""

ANSWER_SECONDS = 4.0
"""That TERM leaves to a request whose answer has not begun."""

HEARING_SECONDS = 1.0
"""That TERM leaves to the applications of sockets that have ended."""

POLICY, RESTART, TRY_LATER = 1008, 1012, 1013

UNREAD_PONGS = 64 * 1024
"""Bytes of pongs that may wait for a reader who has not taken what waits before them."""


class Inbound:
    """The ASGI receive queue of one socket: bounded to `most` messages and `most_bytes` (one message may be
    larger), by no longer reading from the socket."""

    __slots__ = ("_bytes", "_items", "_most", "_most_bytes", "_transport", "_waiter", "paused")

    def __init__(self, transport, most: int, most_bytes: int):
        self._bytes = 0
        self._items = deque()
        self._most = most
        self._most_bytes = most_bytes
        self.paused = False
        """Nothing is read from the socket until the application has taken all that came."""
        self._transport = transport
        self._waiter = None

    def put_nowait(self, item) -> None:
        self._items.append(item)
        self._bytes += _size(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        full = len(self._items) >= self._most or self._bytes >= self._most_bytes
        if full and not self.paused:
            self.paused = True
            self._transport.pauseProducing()

    async def get(self):
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._items.popleft()
        self._bytes -= _size(item)
        if self.paused and not self._items:
            self.paused = False
            if self._transport.connected:
                self._transport.resumeProducing()
        return item


def _size(item) -> int:
    return len(item.get("text") or item.get("bytes") or item.get("body") or b"")


class SocketProtocol(WebSocketProtocol):
    """Daphne's websocket protocol, writing through an Outlet."""

    # Identity, at C speed: the hub's sets are full of these.
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    # Autobahn would drop a connection that breaks a rule (a message over the limit) where it can say why:
    # 1009.
    failByDrop = False

    outlet = None
    slot = None
    heard = 0.0
    refused = False
    unread_pongs = 0
    dead = False

    def onConnect(self, request):
        server = self.factory.server_class
        self.frames = Allowance(server.frame_burst, server.frame_rate)
        self.bytes = Allowance(server.inbound_burst, server.inbound_rate)
        transport = self.transport
        # The HTTP channel that served the upgrade is still registered: let it go, and its request with it.
        transport.unregisterProducer()
        self.outlet = Outlet(self, transport, server.write_budget)
        return super().onConnect(request)

    def onOpen(self):
        super().onOpen()
        self.server.opened(self)
        # Autobahn keeps the whole handshake for as long as the socket lives.
        self.http_request_data = self.http_response_data = b""
        self.http_headers = {}
        self.request = Upgrade(self.request.path)

    def _dataReceived(self, data):
        if not self.refused:
            super()._dataReceived(data)

    def onFrameBegin(self):
        super().onFrameBegin()
        now = self.server.now
        if not self.frames.spend(now):
            self.refuse("frames", f"{self.frames.burst:g} at once and {self.frames.rate:g} a second")
        elif not self.bytes.spend(now, self.current_frame.length):
            self.refuse("bytes", f"{self.bytes.burst} at once and {self.bytes.rate} a second")

    def is_unread(self) -> bool:
        """Whether nothing is read of it for its application's sake, and not for what it has done."""
        inbound = getattr(self, "application_queue", None)
        return inbound is not None and inbound.paused and not self.refused

    def refuse(self, what: str, limit: str) -> None:
        """The client has used up a budget: 1008, and nothing more is read of it. Autobahn's timer for the
        closing handshake drops it."""
        if not self.refused:
            names.OVER_BUDGET.labels(f"socket_{what}").inc()
            self.serverClose(POLICY, f"too many {what}: {limit} are allowed")
            self.refused = True
            self.data = b""
            self.transport.pauseProducing()

    def onMessage(self, payload, isBinary):
        self.heard = self.server.now
        if not self.refused:
            super().onMessage(payload, isBinary)

    def onPing(self, payload):
        """The pong waits behind all that the client has not read; one who reads none of them is refused."""
        self.heard = self.server.now
        if self.state != self.STATE_OPEN:
            return
        self.unread_pongs = self.unread_pongs + len(payload) + 2 if self.outlet.waiting else 0
        if self.unread_pongs > UNREAD_PONGS:
            self.refuse("pings", f"{UNREAD_PONGS} bytes of unread pongs")
        else:
            self.outlet.put(frame(payload, 0x8A))

    def onPong(self, payload):
        self.heard = self.server.now

    def onClose(self, wasClean, code, reason):
        if self.slot is not None:
            names.closed(self.localCloseCode if self.closedByMe else "dead" if self.dead else "client")
        self.outlet.stop()
        self.server.closed(self)
        super().onClose(wasClean, code, reason)

    def handle_reply(self, message):
        """As Daphne's, and an empty message is one too; a close has its reason."""
        kind = message.get("type")
        if self.state == self.STATE_OPEN and kind == "websocket.send":
            text, data = message.get("text"), message.get("bytes")
            if not text and not data and (text is not None or data is not None):
                self.serverSend(data if text is None else text, binary=text is None)
                return
        if self.state == self.STATE_OPEN and kind == "websocket.close":
            self.serverClose(message.get("code"), message.get("reason") or "")
            return
        super().handle_reply(message)

    def serverSend(self, content, binary=False):
        if self.state != self.STATE_OPEN:
            return  # nothing follows a close frame, and nobody waits for its reader any more
        if binary:
            self.outlet.put(frame(content, 0x82))
        else:
            self.outlet.text(content)

    def serverClose(self, code=None, reason=""):
        """Close with any code: Autobahn's own sendClose() refuses 1008, 1012 and 1013."""
        if self.state == self.STATE_OPEN:
            self.outlet.stop()
            # As much as a frame takes: half a character makes it invalid.
            reason = reason.encode()[:123].decode(errors="ignore")
            self.sendCloseFrame(code=1000 if code is None else code, reasonUtf8=reason.encode())

    def too_slow(self, at: Position) -> None:
        """The reader is given up: 4408, and where to go on from."""
        self.server.slow += 1
        self.serverClose(TOO_SLOW, str(at))

    def failed(self) -> None:
        self.serverClose(TRY_LATER, "the server has failed: try again later")

    def taken(self) -> None:
        """The reader has taken what waited."""
        self.heard = self.server.now


class Upgrade:
    """What is kept of the upgrade request: the path, for the log."""

    __slots__ = ("path",)

    def __init__(self, path):
        self.path = path


def _buffered(request) -> int:
    """Bytes of an HTTP answer that wait for its reader."""
    channel = request.channel
    transport = getattr(channel, "transport", None)
    return len(transport.dataBuffer) + transport._tempDataLen if hasattr(transport, "dataBuffer") else 0


def _is_unanswered(connection) -> bool:
    """Whether an HTTP request has begun and its answer has not: something may be half done."""
    protocol, details = connection
    task = details.get("application_instance")
    return task is not None and not task.done() and not getattr(protocol, "_response_started", True)


class DeliveryServer(Server):
    """See the module. `write_budget` is in bytes per socket, `inbound_messages` and `inbound_bytes` how much
    of one client waits for its application before its socket is read no further, `frame_…` and `inbound_…`
    what it may send at once and a second: frames and their bytes. `drain_seconds` how long TERM may spread
    the closes, `reconnect_within` the milliseconds within which clients of version 2 are asked to come
    back."""

    write_budget = 256 * 1024
    inbound_messages = 32
    inbound_bytes = 256 * 1024
    frame_burst, frame_rate = 1000, 100.0
    inbound_burst, inbound_rate = 8 * 2**20, 2**20
    drain_seconds = 5.0
    reconnect_within = 2000

    def __init__(self, *args, **kwargs):
        super().__init__(*args, ready_callable=self._ready, **kwargs)
        self.sockets: set[SocketProtocol] = set()
        self.draining = False
        self.slow = 0
        self.now = time.monotonic()
        self._wheel = Wheel(max(1, round(self.ping_interval / TICK)))
        self._ports = []

    def _ready(self):
        self.ws_factory.setProtocolOptions(closeHandshakeTimeout=5)
        # Autobahn copies some forty options into every protocol, and prints them for a log that nobody keeps.
        # On the class they are there once: a fifth of a handshake's time, and 6 KiB of each socket.
        options = {name: getattr(self.ws_factory, name) for name in WebSocketProtocol.CONFIG_ATTRS}
        options = {
            name: staticmethod(value) if callable(value) else value  # a class would make methods of them
            for name, value in options.items()
            if name not in vars(SocketProtocol)
        }
        self.ws_factory.protocol = type("SocketProtocol", (SocketProtocol,), {**options, "CONFIG_ATTRS": ()})
        asyncio.get_event_loop().call_soon(self.begin)

    def begin(self) -> None:
        """The loop has begun to run."""
        # What has been loaded stays: the collector need not walk it again and again while thousands of
        # clients come. Nor need it look after every 700 objects: ten of them make as many.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self._tick()

    def listen_success(self, port):
        self._ports.append(port)
        super().listen_success(port)

    def hub_position(self) -> Position:
        """Where this process is in the stream that it reads; the epoch is "" while it reads none."""
        return Position("", 0)

    # Connections

    def create_application(self, protocol, scope):
        inbound = Inbound(protocol.transport, self.inbound_messages, self.inbound_bytes)
        scope.setdefault("asgi", {"version": "3.0"})
        if isinstance(protocol, SocketProtocol):
            scope["carillon.outlet"] = protocol.outlet
        else:
            scope["carillon.buffered"] = partial(_buffered, protocol)
        details = self.connections.get(protocol)
        if details is None:
            return None
        task = asyncio.ensure_future(
            self.application(scope=scope, receive=inbound.get, send=partial(self.handle_reply, protocol))
        )
        details["application_instance"] = task
        task.add_done_callback(partial(self._finished, protocol))
        return inbound

    async def handle_reply(self, protocol, message):
        """As Daphne's; what an application sends to a slow reader waits for him."""
        await super().handle_reply(protocol, message)
        if message["type"] == "websocket.send" and protocol.outlet is not None:
            await protocol.outlet.drained()

    def protocol_disconnected(self, protocol):
        details = self.connections.get(protocol)
        if details is None or "disconnected" in details:
            return
        details["disconnected"] = time.time()
        task = details.get("application_instance")
        if task is None or task.done():
            del self.connections[protocol]
        else:
            asyncio.get_event_loop().call_later(self.application_close_timeout, self._overdue, protocol, task)

    def _overdue(self, protocol, task):
        if not task.done():
            logger.warning(
                "An application did not end %s s after its client had gone: cancelled",
                self.application_close_timeout,
            )
            task.cancel()

    def _finished(self, protocol, task):
        details = self.connections.get(protocol)
        if details is None:
            return
        gone = "disconnected" in details
        if gone:
            del self.connections[protocol]
        if task.cancelled():
            return  # its client is gone, or this process ends, and nginx asks another
        is_socket, error = isinstance(protocol, SocketProtocol), task.exception()
        if error is not None:
            logger.error("The application of a connection failed", exc_info=error)
        if gone:
            return
        if not is_socket and protocol._response_started:
            # An end would say that this is all of it; without one its reader waits for the rest.
            transport = protocol.channel.transport
            transport.loseConnection()
            asyncio.get_event_loop().call_later(self.application_close_timeout, transport.abortConnection)
        elif is_socket and error is None and not hasattr(protocol, "handshake_deferred"):
            protocol.serverClose()
        else:
            protocol.handle_exception(error)

    def log_action(self, protocol, action, details):
        """Not needed: nginx writes the access log."""

    def application_checker(self):
        """Not needed: see _finished() and _overdue()."""

    def timeout_checker(self):
        """Not needed: pings come from the wheel, the handshake has Autobahn's own timer, and sockets live as
        long as they like."""

    def opened(self, socket: SocketProtocol) -> None:
        socket.heard = self.now
        socket.slot = self._wheel.add(socket)
        self.sockets.add(socket)

    def closed(self, socket: SocketProtocol) -> None:
        self.sockets.discard(socket)
        if socket.slot is not None:
            self._wheel.discard(socket, socket.slot)

    def _tick(self):
        self.now = time.monotonic()
        epoch, number = self.hub_position()
        dead = self.now - self.ping_interval - self.ping_timeout
        for socket in self._wheel.tick():
            outlet = socket.outlet
            if socket.heard < self.now - self.ping_interval:
                if outlet.moved():
                    socket.heard = self.now  # slow, not dead: a ping waits behind all that it has not read
                elif socket.is_unread() and outlet.taken:
                    socket.heard = self.now  # its pongs wait for us, and our pings have arrived
            if socket.heard < dead:
                socket.dead = True
                socket.dropConnection(abort=True)
                continue
            if socket.state != socket.STATE_OPEN:
                continue  # nothing follows a close frame
            outlet.put(PING)
            if outlet.form is Frames2 and outlet.groups and outlet.live and outlet.sent != number:
                # A quiet client's position does not grow old: it moves on with the stream.
                outlet.text(f'{{"position": "{epoch}:{number}"}}')
                outlet.sent = number
        asyncio.get_event_loop().call_later(TICK, self._tick)

    # Going down

    def kill_all_applications(self):
        return defer.Deferred.fromFuture(asyncio.ensure_future(self._drain()))

    async def _drain(self):
        """Runs before the reactor stops: no new connections, everyone told to come back, applications
        ended."""
        self.draining = True
        for port in self._ports:
            port.stopListening()
        sockets = list(self.sockets)
        random.shuffle(sockets)
        if sockets:
            logger.info("Closing %d sockets within %g s", len(sockets), self.drain_seconds)
        begun = time.monotonic()
        for number, socket in enumerate(sockets):
            await asyncio.sleep(max(0, begun + self.drain_seconds * number / len(sockets) - time.monotonic()))
            self.say_goodbye(socket)
        for _ in range(20):
            if self.sockets:
                await asyncio.sleep(TICK)
        for _ in range(round(ANSWER_SECONDS / TICK)):
            if any(map(_is_unanswered, self.connections.items())):
                await asyncio.sleep(TICK)
        for socket in tuple(self.sockets):
            socket.dropConnection(abort=True)  # it does not answer; its application is to hear of its end
        tasks = {
            task: isinstance(protocol, SocketProtocol)
            for protocol, details in self.connections.items()
            if (task := details.get("application_instance")) is not None and not task.done()
        }
        if hearing := [task for task, is_socket in tasks.items() if is_socket]:
            await asyncio.wait(hearing, timeout=HEARING_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def say_goodbye(self, socket: SocketProtocol) -> None:
        """Tell one client to come back, after a time of its own."""
        if socket.outlet.form is Frames2:
            wait = random.randrange(max(1, self.reconnect_within))  # noqa: S311
            socket.outlet.text(json.dumps({"reconnect_after": wait}))
        socket.serverClose(RESTART, "restart")


class CarillonServer(DeliveryServer):
    """The server with the station of Carillon's application behind it, and its settings."""

    def _ready(self):
        from carillon.conf import conf

        most = conf.SOCKET_MESSAGE_BYTES
        self.ws_factory.setProtocolOptions(maxMessagePayloadSize=most, maxFramePayloadSize=most)
        super()._ready()

    def begin(self) -> None:
        # Only now: they need Django's settings.
        from django.core.checks import run_checks

        from carillon import tracing
        from carillon.conf import conf
        from carillon.fanout.station import station
        from carillon.metrics import shared

        # Routes may have been edited since the last check.
        for problem in run_checks(tags=["carillon"]):
            logger.warning("%s. %s", problem.msg, problem.hint)
        self.write_budget = conf.SOCKET_BUFFER_BYTES
        self.inbound_messages = conf.SOCKET_INBOUND_MESSAGES
        self.inbound_bytes = conf.SOCKET_INBOUND_BYTES
        self.frame_burst, self.frame_rate = conf.SOCKET_FRAME_BURST, conf.SOCKET_FRAME_RATE
        # A message that is allowed must be one that can be sent.
        self.inbound_burst = max(conf.SOCKET_BYTES_BURST, conf.SOCKET_MESSAGE_BYTES, conf.MESSAGE_BYTES)
        self.inbound_rate = conf.SOCKET_BYTES_RATE
        self.drain_seconds = conf.DRAIN_SECONDS
        self.reconnect_within = conf.RECONNECT_WITHIN_MS
        shared.start(conf.METRICS_DIRECTORY, names.DAPHNE)
        tracing.start(names.DAPHNE)
        # Before the first client: those who come back after a restart find the window filled.
        station().start()
        super().begin()

    def hub_position(self) -> Position:
        from carillon.fanout.station import station  # only now: it needs Django's settings

        return station().position


class Launcher(CommandLineInterface):
    """Daphne's command line with our server."""

    server_class = CarillonServer

"""The synchronous side: one background thread with one event loop per process, for threads that have none.

Views, uwsgi workers, Celery tasks and shells put events into a deque and wait, if they want to; the thread
publishes all that has gathered. After a fork the child starts with nothing and opens a connection of its own
when it first sends.
"""

import asyncio
import atexit
import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from .codec import Message
from .exceptions import BrokerUnavailable
from .lanes import Ticket
from .sender import Sender
from .session import Session
from .tickets import ThreadTicket, Unwatched
from .topology import Destination

if TYPE_CHECKING:
    from .layer import AMQPChannelLayer

T = TypeVar("T")


class Background:
    """The thread, its loop and its session. Made on first use, once per process."""

    def __init__(self, make: Callable[[], Session]) -> None:
        self._lock = threading.Lock()
        self._inbox: list[tuple[Destination, bytes, Ticket | None]] = []
        self._woken = False
        self.waiting_bytes = 0
        started = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.session: Session
        self._sender: Sender

        def run() -> None:
            asyncio.set_event_loop(self.loop)

            async def begin() -> None:
                self.session = make()
                self._sender = self.session.sender
                started.set()

            self.loop.run_until_complete(begin())
            self.loop.run_forever()
            self.loop.close()
            self._take()  # what came too late hears it

        self.thread = threading.Thread(target=run, name="asgi_amqp", daemon=True)
        self.thread.start()
        started.wait()

    def put(self, destination: Destination, data: bytes, ticket: Ticket | None) -> None:
        """From any thread."""
        with self._lock:
            self._inbox.append((destination, data, ticket))
            self.waiting_bytes += len(data)
            woken, self._woken = self._woken, True
        if not woken:
            try:
                self.loop.call_soon_threadsafe(self._take)
            except RuntimeError:  # it has ended
                self._take()

    def _take(self) -> None:
        with self._lock:
            events, self._inbox = self._inbox, []
            self.waiting_bytes, self._woken = 0, False
        for event in events:
            self._sender.submit(*event)

    def full(self, destination: Destination) -> bool:
        """Whether there is no room, roughly: threads may be putting more just now."""
        return self._sender.outbox.full(destination, self.waiting_bytes)

    def begin(self) -> None:
        """Connect, from any thread; the error where that is hopeless."""
        supervisor = self._sender.supervisor
        if not supervisor.trying:
            if (hopeless := supervisor.hopeless) is not None:
                raise hopeless
            with contextlib.suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(supervisor.start)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run a coroutine in the background loop and wait for it from a thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def stop(self, timeout: float) -> None:
        """Send what has gathered, disconnect, end the thread."""
        if not self.thread.is_alive():
            return

        async def end() -> None:
            self._take()
            await self.session.close(timeout)

        try:
            self.run(end(), timeout + 3.0)
        except TimeoutError:
            pass  # the deadline is the promise; what is left is lost with the process
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(timeout + 1.0)


class SyncPublisher:
    """`layer.publisher`: publish from any thread, with or without an event loop in it.

    Deadlines are seconds; None: the layer's `timeout`. BrokerUnavailable: not sent, or not confirmed, before
    the deadline. ChannelFull: the broker refused a message for a normal channel. In a thread that runs an
    event loop use the layer's own coroutines.
    """

    def __init__(self, layer: "AMQPChannelLayer") -> None:
        self._layer = weakref.proxy(layer)
        self._lock = threading.Lock()
        self.running: Background | None = None
        me = weakref.ref(self)
        atexit.register(lambda: _stop(me))

    def forget(self) -> None:
        """In the child of a fork: the thread is not here, and the connection is the parent's."""
        self._lock = threading.Lock()
        self.running = None

    @property
    def background(self) -> Background:
        """The process's background loop, started when first asked for."""
        background = self.running
        if background is None:
            with self._lock:
                background = self.running
                if background is None:
                    background = self.running = Background(self._layer.make_session)
        return background

    def send(
        self, channel: str, message: Message, timeout: float | None = None, *, wait: bool = True
    ) -> None:
        """Send to a channel; back when the broker has confirmed it.

        With `wait=False` it only waits for room in the buffer; what is lost later shows in `layer.on_loss`.
        """
        self.send_many([(channel, message)], timeout, wait=wait)

    def send_many(
        self, events: Iterable[tuple[str, Message]], timeout: float | None = None, *, wait: bool = True
    ) -> None:
        """Send (channel, message) pairs, all under way at once, in order for each channel; one deadline for
        all.

        When some fail, the first error is raised after all are settled.
        """
        destination, encode = self._layer.destination, self._layer.encode
        self._publish([(destination(channel), encode(message)) for channel, message in events], timeout, wait)

    def group_send(
        self, group: str, message: Message, timeout: float | None = None, *, wait: bool = True
    ) -> None:
        """Send to all channels of a group; back when the broker has confirmed it."""
        self.group_send_many([(group, message)], timeout, wait=wait)

    def group_send_many(
        self, events: Iterable[tuple[str, Message]], timeout: float | None = None, *, wait: bool = True
    ) -> None:
        """Send (group, message) pairs, all under way at once, in order."""
        destination, encode = self._layer.group_destination, self._layer.encode
        self._publish([(destination(group), encode(message)) for group, message in events], timeout, wait)

    def _publish(self, events: list[tuple[Destination, bytes]], timeout: float | None, wait: bool) -> None:
        if not events:
            return
        if timeout is None:
            timeout = self._layer.timeout
        background = self.background
        deadline = time.monotonic() + timeout
        neediest = max((destination for destination, _ in events), key=attrgetter("confirmed"))
        while background.full(neediest):
            background.begin()
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    "as many bytes wait to be sent as buffer_bytes allows, and the broker takes none"
                )
            time.sleep(0.002)
        ticket = ThreadTicket(len(events), deadline) if wait else None
        for destination, data in events:
            unwatched = Unwatched(timeout, self._layer.stats) if destination.confirmed else None
            background.put(destination, data, ticket or unwatched)
        if ticket is not None:
            ticket.wait()

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until nothing is left to be sent or confirmed; whether that is so in `timeout` seconds, and
        nothing was lost meanwhile."""
        background = self.running
        if background is None:
            return True

        async def flush() -> bool:
            background._take()
            return await background.session.sender.flush(timeout)

        return background.run(flush(), timeout + 1)

    def close(self, timeout: float = 5.0) -> None:
        """Send what has gathered and end the background thread; the next send starts another. Normal
        channels are in no group of this process any more.
        """
        with self._lock:
            background, self.running = self.running, None
        if background is not None:
            background.stop(timeout)


def _stop(publisher: "weakref.ref[SyncPublisher]") -> None:
    target = publisher()
    if target is not None:
        target.close()

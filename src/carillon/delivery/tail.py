"""The tail: one reader of the event stream in each daphne process, over one connection.

It begins some messages before the end, so that a process that has just started can serve those who were on
the one before; it goes on at its own offset after every reconnect; and it knows a gap when it meets one.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from asgi_amqp import stream
from asgi_amqp.connection import Link, Options, Supervisor
from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.position import first_of
from carillon.delivery.event import Malformed, unpack
from carillon.delivery.hub import Hub

logger = logging.getLogger(__name__)

NEAREST, BACKLOG = 16, 1024
"""Stream messages before the end that a fresh process reads for its window: the fewest, and the most."""

PREFETCH = 512


def stream_name(epoch: str) -> str:
    """The name of the stream that holds the events of an epoch."""
    return f"carillon.events.{epoch}"


async def known(asked: Awaitable):
    """What `asked` answers; where it fails, for whatever reason, the supervisor is to try again later."""
    try:
        return await asked
    except BrokerUnavailable:
        raise
    except Exception as error:
        raise BrokerUnavailable(f"the current epoch is not known: {type(error).__name__}") from error


class Tail:
    """Feeds `hub` from the stream of the current epoch.

    `current_epoch()` tells which that is (None: there is none yet). `on_gap(reason)` is called, after the hub
    has begun anew, when this process cannot know what its listeners have missed: `epoch` or `retention`.
    """

    def __init__(
        self,
        options: Options,
        hub: Hub,
        current_epoch: Callable[[], Awaitable[str | None]],
        on_gap: Callable[[str], None],
    ):
        self.hub = hub
        self.level = asyncio.Event()
        """Set while this process has caught up with what was in the stream when it began."""
        self.malformed = 0
        self._current_epoch = current_epoch
        self._on_gap = on_gap
        self._reader: stream.Reader | None = None
        self._goal = 0
        self._number = 0
        self.supervisor = Supervisor(options, self._attach, self._lost)

    def start(self) -> None:
        self.supervisor.start()

    async def close(self) -> None:
        await self.supervisor.close()

    @property
    def connected(self) -> bool:
        return self.supervisor.current is not None

    async def _attach(self, link: Link) -> None:
        epoch = await known(self._current_epoch())
        if epoch is None or not await stream.exists(link, stream_name(epoch)):
            raise BrokerUnavailable("there is no event stream yet: runworker makes it")
        if self._reader is not None and epoch == self.hub.epoch:
            start = self._reader.next
            fresh = False
        else:
            start, fresh = await self._beginning(link, epoch), True
        reader = stream.Reader(stream_name(epoch), start, self._arrived, prefetch=PREFETCH)
        if fresh:
            before, self._reader = self.hub.epoch, reader
            self._number = 0
            self.hub.begin(epoch, max(0, first_of(start) - 1))
            if before:
                self._on_gap("epoch")
            self._check_level()
        else:
            self._reader = reader
        await reader.attach(link)

    async def _beginning(self, link: Link, epoch: str) -> int:
        """Where a process that knows nothing of this stream begins: up to `BACKLOG` messages before its end.

        A message may hold one event or, after a burst, a thousand: clients wait while this is read, so it
        ends where half the window would be full. What lies before, a replay fetches for who asks for it.
        """
        name = stream_name(epoch)
        # runworker's first message is in a stream before anyone can know its epoch.
        end = start = await stream.end_of(link, name)
        self._goal = end
        self.level.clear()
        size, back = 0, NEAREST
        while start > 0 and back <= BACKLOG:
            first, one = await stream.first_from(link, name, max(0, end - back))
            size += one * (start - first)  # a guess: as large as the oldest of them
            if size > self.hub.window.limit // 2 and back > NEAREST:
                break
            start = first
            if first > end - back:  # there is nothing older
                break
            back *= 2
        return max(0, start)

    def _lost(self, link: Link, reason: str) -> None:
        if self._reader is not None:
            self._reader.detach()

    def _arrived(self, messages) -> None:
        events = []
        for message, body in messages:
            try:
                number, found = unpack(body, message)
            except Malformed:
                self.malformed += 1
                logger.error("Stream message %d is no batch of events: skipped", message)
                continue
            if number > self._number + 1 and self._number:
                logger.error("%d messages of the stream are gone", number - self._number - 1)
                self.hub.deliver(events)
                events = []
                self.hub.begin(self.hub.epoch, max(0, first_of(message) - 1))
                self._on_gap("retention")
            # Two relays that overlapped may have given a number twice.
            self._number = max(number, self._number)
            events += found
        self.hub.deliver(events)
        self.hub.advance(first_of(messages[-1][0]))
        if not self.level.is_set():
            self._check_level()

    def _check_level(self):
        if self._reader is not None and (self._reader.next or 0) > self._goal:
            self.level.set()

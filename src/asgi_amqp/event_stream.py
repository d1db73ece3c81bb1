"""A log of events for an application: many processes write it, and read it from any position."""

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from types import NoneType
from typing import Any, NamedTuple, TypeVar

from aiormq import ChannelNotFoundEntity, ChannelPreconditionFailed

from .codec import NOTHING, Message, decode, encode, encode_target
from .connection import Link
from .exceptions import GONE, BrokerUnavailable, LayerError, Unroutable, describe, is_gone
from .layer import AMQPChannelLayer
from .loops import run_in
from .position import BATCH, Position, first_of, message_of
from .stream import FIRST, Messages, Stream, StreamReader, declare, last_chunk, peek
from .topology import Destination

log = logging.getLogger("asgi_amqp")

T = TypeVar("T")
PREFETCH = 16  # AMQP messages that a reader has in hand: each a batch of at most BATCH_BYTES, or one event


class PositionGone(LayerError):
    """What followed this position can no longer be replayed whole: fetch the state anew."""


class Event(NamedTuple):
    position: Position
    message: Message


def records_of(body: bytes) -> list[tuple[str, Message | None]]:
    """Of a message of the log: epochs and events, None in a founding record. Nothing: not ours."""
    try:
        pairs = list(decode(body))
    except ValueError:
        return []
    sound = all(type(epoch) is str and type(event) in (dict, NoneType) for epoch, event in pairs)
    return [*pairs] if sound else []


class EventStream:
    """A log of events that belongs to a layer and that many processes write and read, each from any position.

    Every event carries the log's epoch. Whoever finds an empty log proposes one in a founding record; the
    first such record counts, so all processes agree. A log that is deleted begins anew under another epoch.
    Use an object in one event loop.
    """

    def __init__(self, layer: AMQPChannelLayer, name: str, **limits: int) -> None:
        """`limits` are those of `Stream`."""
        self.epoch = ""
        self._layer = layer
        self._stream = Stream(f"{layer.prefix}.s.{name}", **limits)
        self._opening = asyncio.Lock()

    async def open(self) -> str:
        """Agree on the epoch with all other processes, making the log if there is none; the epoch."""
        return await self._there(self._agree)

    async def _there(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """In the loop of the session: of async_to_sync, that is another one."""
        return await run_in(self._layer.session().loop, call)

    async def _agree(self) -> str:
        async with self._opening:
            if not self.epoch:
                link = await self._layer.session().receiver.supervisor.link(self._layer.timeout)
                try:
                    async with asyncio.timeout(self._layer.timeout * 2):
                        self.epoch = await self._open(link)
                except GONE as error:
                    raise BrokerUnavailable(
                        f"{self._stream.name} cannot be opened: {describe(error)}"
                    ) from error
        return self.epoch

    async def _open(self, link: Link) -> str:
        name, exchange = self._stream.name, self._layer.prefix
        await declare(link, self._stream)
        await link.attempt(lambda channel: channel.exchange_declare(exchange, durable=True))
        await link.attempt(lambda channel: channel.queue_bind(name, exchange, self._key("")))
        while not (epoch := await self._found(link)):
            founding = encode_target(secrets.token_hex(6)) + NOTHING
            await self._append("", [founding], self._layer.timeout)
        await link.attempt(lambda channel: channel.queue_bind(name, exchange, self._key(epoch)))
        return epoch

    async def _found(self, link: Link) -> str:
        """The epoch of the log; "" before anybody has founded it. Several may have, the last of them after
        its first event: the first one counts.
        """
        name, timeout = self._stream.name, self._layer.timeout
        newest = await last_chunk(link, name, timeout)
        events = [record for _, body in newest for record in records_of(body) if record[1] is not None]
        if events:
            return events[-1][0]
        due, end = 0, newest[-1][0] if newest else -1  # 0 is clamped to the first that is left
        while due <= end:
            found = await peek(link, name, due, timeout, PREFETCH)
            if not found:
                raise BrokerUnavailable(f"{name} does not give its first message")
            for _, body in found:
                for epoch, _ in records_of(body):
                    return epoch
            due = found[-1][0] + 1
        return ""

    def _key(self, epoch: str) -> str:
        """A log is bound by its epoch: who has not noticed that it began anew reaches nothing."""
        return f"s.{self._stream.name}.{epoch}"

    async def _append(self, epoch: str, events: list[bytes], timeout: float) -> None:
        key = self._key(epoch)
        destination = Destination(key, b"", key, confirmed=True, most=BATCH)
        await self._layer.session().sender.send_many([(destination, event) for event in events], timeout)

    async def publish(self, message: Message, timeout: float | None = None) -> None:
        """Append an event; back when the broker has it. BrokerUnavailable: it may or may not be there."""
        await self.publish_many([message], timeout)

    async def publish_many(self, messages: list[Message], timeout: float | None = None) -> None:
        """Append events in this order, under way together; back when the broker has them all."""
        timeout = self._layer.timeout if timeout is None else timeout
        deadline = time.monotonic() + timeout
        data = [encode(message) for message in messages]
        try:
            await self._there(lambda: self._publish(data, deadline))
        except TimeoutError:
            problem = self._layer.session().receiver.supervisor.problem or "the broker does not answer"
            raise BrokerUnavailable(
                f"{self._stream.name} was not opened within {timeout:g} s: {problem}"
            ) from None

    async def _publish(self, data: list[bytes], deadline: float) -> None:
        while data:
            async with asyncio.timeout(deadline - time.monotonic()):
                epoch = await self._agree()
            target = encode_target(epoch)
            try:
                await self._append(epoch, [target + each for each in data], deadline - time.monotonic())
            except Unroutable:  # the log was deleted underneath: it begins anew
                self.epoch = ""
            else:
                return

    async def last(self) -> Position:
        """The position of the newest event, or of what somebody else wrote behind it; before the first one,
        that of the founding record.
        """
        return await self._there(self._last)

    async def _last(self) -> Position:
        while True:
            epoch = await self._agree()
            link = await self._layer.session().receiver.supervisor.link(self._layer.timeout)
            try:
                offset, body = (await last_chunk(link, self._stream.name, self._layer.timeout))[-1]
            except (ChannelNotFoundEntity, IndexError) as error:  # deleted underneath
                if isinstance(error, ChannelNotFoundEntity) and not is_gone(error):
                    raise BrokerUnavailable(f"{self._stream.name}: {describe(error)}") from None
                self.epoch = ""
            except ChannelPreconditionFailed as error:
                raise self._no_copy(error) from None
            else:
                return Position(epoch, first_of(offset) + max(1, len(records_of(body))) - 1)

    def _no_copy(self, error: ChannelPreconditionFailed) -> BrokerUnavailable:
        """This broker cannot give what it has no copy of, and will not get one by itself."""
        return BrokerUnavailable(f"{self._stream.name} cannot be read: {describe(error)}")

    async def _look_for(self, due: int, link: Link, reached: Position) -> None:
        """Offset `due` has not come. It may be a record of the broker's own, at the beginning of a segment;
        but a slow reader is moved on without a word where retention has dropped what it has not read.
        """
        first = await peek(link, self._stream.name, FIRST, self._layer.timeout)
        if not first:
            raise BrokerUnavailable(f"{self._stream.name} does not give its first message")
        if first[0][0] > due:
            raise PositionGone(
                f"position {reached}: what follows has left the log, which begins at "
                f"{reached.epoch}:{first_of(first[0][0])}"
            )

    async def read(self, since: Position | None = None) -> AsyncIterator[Event]:
        """Events for ever, in order, none twice: from now on, or all that follow `since` and then on.

        A lost connection is made again and the reading goes on where it was. What somebody else wrote into
        the log is passed over and counted as `undecodable`. PositionGone, at once or later: events that
        follow were dropped by retention, or the log is not the one of the position.
        BrokerUnavailable: this broker has no copy of the log, or the layer was closed.
        """
        session = self._layer.lasting_session()
        at = since if since is not None else await self.last()
        if at.epoch != self.epoch:
            self.epoch = ""  # it may have begun anew
        epoch = await self.open()
        if at.epoch != epoch:
            raise PositionGone(f"position {at}: the log began anew, its epoch is {epoch}")
        reached = at.number
        while not session.closed:
            arrived: asyncio.Queue[Messages | None] = asyncio.Queue()  # the prefetch bounds it
            reader = StreamReader(
                self._stream.name,
                message_of(reached),
                arrived.put_nowait,
                prefetch=PREFETCH,
                manual=True,
                passing=True,
                on_end=functools.partial(arrived.put_nowait, None),
            )
            try:
                link = await session.receiver.supervisor.link(3600)
                await reader.attach(link)
                # The message that holds the last event read comes first, if it is still there.
                async with asyncio.timeout(self._layer.timeout):
                    messages = await arrived.get()
                if messages and messages[0][0] != message_of(reached):
                    raise PositionGone(
                        f"position {epoch}:{reached} has left the log, which begins at "
                        f"{epoch}:{first_of(messages[0][0])}"
                    )
                due = messages[0][0] if messages else 0
                while messages is not None:
                    for offset, body in messages:
                        if offset != due:
                            await self._look_for(due, link, Position(epoch, reached))
                        due = offset + 1
                        records = records_of(body)
                        if not records and first_of(offset) > reached:
                            reached = first_of(offset)
                            log.warning("%s: message %d is no event of a layer", self._stream.name, offset)
                            self._layer.stats.lose("undecodable", None)
                        for place, (its_epoch, message) in enumerate(records, first_of(offset)):
                            if message is None or place <= reached:
                                continue
                            if its_epoch != epoch:
                                raise PositionGone(f"the log began anew, its epoch is {its_epoch}")
                            reached = place
                            yield Event(Position(epoch, place), message)
                    if arrived.empty():  # it acknowledges all that was handed over
                        reader.acknowledge()
                    messages = await arrived.get()
            except TimeoutError:
                with contextlib.suppress(*GONE):  # the broker has fallen silent: again with the next link
                    if not session.closed and reached > (await self.last()).number:
                        raise PositionGone(
                            f"position {epoch}:{reached} is beyond the end of the log"
                        ) from None
            except ChannelNotFoundEntity as error:
                if is_gone(error):
                    raise PositionGone(f"the log of epoch {epoch} is gone") from None
                await asyncio.sleep(0.5)  # its broker is down
            except ChannelPreconditionFailed as error:
                raise self._no_copy(error) from None
            except (BrokerUnavailable, *GONE):
                await asyncio.sleep(0.05)  # the link is lost: again with the next
            finally:
                await reader.close()
        raise BrokerUnavailable("the layer was closed")

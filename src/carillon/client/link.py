"""The socket: connects, subscribes, reads, and comes back by itself when it is lost."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from carillon.client.endpoint import Endpoint, endpoint
from carillon.client.errors import Away, CertificateError, ClientError, Refused, SubscriptionError
from carillon.client.failures import connection_failure
from carillon.client.protocol import (
    TRY_LATER,
    VERSION_2,
    Backoff,
    Event,
    Garbage,
    Groups,
    Memory,
    Progress,
    ReconnectAfter,
    Recovery,
    Refusal,
    ServerError,
    Subscription,
    Welcome,
    classify,
    earlier,
    goodbye,
    refresh_message,
    subscribe_message,
)

OPEN_TIMEOUT = 10.0
REPLY_TIMEOUT = 10.0
CLOSE_TIMEOUT = 1.0
PING_INTERVAL, PING_TIMEOUT = 20.0, 30.0
MAX_FRAME = 4 * 1024 * 1024
STABLE = (
    5.0  # seconds after which a connection counts as good, and the next loss starts with short delays again
)

Tell = Callable[[str], None]


@dataclasses.dataclass(eq=False, slots=True)
class _Asked:
    """A message that was sent, or is to be, and has no answer yet."""

    groups: Groups
    since: str | None
    answer: asyncio.Future[Subscription] | None = None  # None: nobody called for it
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def is_awaited(self) -> bool:
        return self.answer is not None and not self.answer.done()

    def answered(self, reply: Subscription) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(dataclasses.replace(reply, errors=tuple(self.errors)))

    def failed(self, error: ClientError) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)


class _ComeBack(Exception):
    """This connection is of no use; another may be."""


class Socket:
    """
    A subscription that survives its connections. Iterate it for events. After a reconnect the same groups are
    subscribed again from the position that was reached: what happened meanwhile comes as events, each once.
    `on_reconnect` is called when that cannot be (too long ago, or a server of version 1), so that one can
    fetch it. `reconnects` counts them all; `position` is where to go on in another process.

    Of what was received, `buffer` bytes of JSON wait for the iteration, and one event more: who does not
    iterate holds up the wire, and the server may end that (close 4408). While `subscribe` waits for its
    answer, all that the server sends before that waits, too: the answer lies behind it.
    """

    def __init__(
        self,
        where: Endpoint,
        *,
        on_link: Tell | None = None,
        on_reconnect: Callable[[], None] | None = None,
        wait: float = 0.0,
        give_up: float | None = None,
        backoff: Backoff | None = None,
        buffer: int = 1024 * 1024,
    ) -> None:
        self.user: int | None = None
        self.current: tuple[str, ...] = ()
        self.reconnects = 0
        self._where = where
        self._tell = on_link or (lambda words: None)
        self._on_reconnect = on_reconnect or (lambda: None)
        self._wait = wait
        self._give_up = give_up
        self._backoff = backoff or Backoff()
        self._memory = Memory()
        self._version = 1
        self._asked_to_wait: float | None = None
        self._groups: Groups | None = None  # as the server knows them, or is to hear first
        self._connection: ClientConnection | None = None
        self._ready: asyncio.Future[None] | None = None
        self._waiting: deque[_Asked] = deque()  # in the order in which the server answers
        self._greeting: _Asked | None = None  # what this connection began with, until it is answered
        self._before: tuple[Groups | None, Memory] | None = None  # what holds if that is refused
        # Each event with the position that it brings its reader to, the turn of that, and its size.
        self._events: asyncio.Queue[tuple[Event, str | None, int, int] | None] = asyncio.Queue()
        self._unheard = 0  # events that were received and not handed out
        self._unheard_bytes = 0
        self._buffer = buffer
        self._room = asyncio.Event()
        self._handed: str | None = None  # while there are any: how far those reach that were
        self._turn = 0
        self._failure: ClientError | None = None
        self._over: ClientError | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name="carillon-socket")
        try:
            await asyncio.shield(self._ready)
        except BaseException:
            self._ready.cancel()
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Says goodbye. Takes CLOSE_TIMEOUT at most."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    @property
    def position(self) -> str | None:
        """
        Everything up to here has been handed out: when an event has been dealt with, it is the place to save.
        While a resume runs it stays where that began. None with a server of version 1.
        """
        if self._version != 2:
            return None
        at = self._handed if self._unheard else self._memory.since
        for asked in self._waiting:
            at = earlier(at, asked.since) if asked.since is not None else at
        return at

    async def refresh(self, token: str) -> None:
        """
        Go on with another token of the same user: this connection, if there is one, and those to come.

        :raises ConnectionClosed: the connection broke; the next one uses the new token
        """
        self._where = dataclasses.replace(self._where, token=token)
        if self._connection is not None and self._version == 2:
            await self._connection.send(refresh_message(token))

    async def subscribe(self, groups: Groups, *, since: str | None = None) -> Subscription:
        """
        Replaces the whole subscription, now and after every reconnect.

        :param groups: such as `{"jobs": ["status_changed"], "job_events": [42]}`
        :param since: a position, such as the header `X-Carillon-Position` of the answer that showed the
        state: groups
            that are new begin there, and nothing falls between (version 2)
        :return: what is subscribed now, with the server's words on what it would not give
        :raises SubscriptionError: the server took nothing of it, or did not answer in time. What it refused
            as a whole leaves the subscription as it was. What was not answered in time, or was cancelled, is
            asked of no other connection; an answer of this one counts when it comes late
        :raises ClientError: the link has ended
        """
        if self._over is not None:
            raise self._over
        message = subscribe_message(groups, since if self._version == 2 else None)
        answer: asyncio.Future[Subscription] = asyncio.get_running_loop().create_future()
        asked = _Asked(groups, since, answer)
        self._waiting.append(asked)
        self._room.set()  # who iterates may be the one who asks, and take nothing until the answer is here
        try:
            if self._connection is not None:
                # A connection that breaks right now is made anew, and begins with what was asked last.
                try:
                    await self._connection.send(message)
                except ConnectionClosed:
                    self._tell("the connection broke while subscribing")
            reply = await asyncio.wait_for(answer, REPLY_TIMEOUT)
        except TimeoutError:
            words = "; ".join(asked.errors) or f"no answer to the subscription in {REPLY_TIMEOUT:g} s"
            raise SubscriptionError(words) from None
        finally:
            answer.cancel()  # where this call was cancelled: nobody awaits it
            if self._connection is None:
                self._forget()
        if groups and not reply.current:
            raise SubscriptionError("; ".join(reply.errors) or "the server subscribed to nothing of it")
        return reply

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """A wait that is cancelled, as by a timeout, loses no event and does not end the iteration."""
        item = await self._events.get()
        if item is None:
            self._events.put_nowait(None)  # whoever asks again gets the same answer
            if self._failure is not None:
                raise self._failure
            raise StopAsyncIteration
        event, position, turn, size = item
        self._unheard -= 1
        self._unheard_bytes -= size
        self._room.set()
        if turn == self._turn:
            self._handed = position
        return event

    # The task

    async def _run(self) -> None:
        try:
            await self._keep_connected()
        except ClientError as error:
            self._failure = error
        except Exception as error:  # whoever iterates is to hear that it has not ended well
            self._failure = Away(f"the link to {self._where.url} failed: {type(error).__name__}: {error}")
            self._failure.__cause__ = error
        except asyncio.CancelledError:  # closed: nobody is to hear the rest
            while not self._events.empty():
                self._events.get_nowait()
            raise
        finally:
            self._over = self._failure or Away(f"the link to {self._where.url} has ended")
            if self._ready is not None and not self._ready.done():
                self._ready.set_exception(self._over)
            for asked in self._waiting:
                asked.failed(self._over)
            self._events.put_nowait(None)

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        lost_at = loop.time()
        while True:
            opened = None
            try:
                async with open_websocket(
                    self._where.websocket_url,
                    ssl=self._where.ssl_context,
                    additional_headers={"Authorization": f"Bearer {self._where.token}"},
                    user_agent_header="carillon-client",
                    subprotocols=[Subprotocol(VERSION_2)],
                    proxy=None,
                    open_timeout=OPEN_TIMEOUT,
                    close_timeout=CLOSE_TIMEOUT,
                    ping_interval=PING_INTERVAL,
                    ping_timeout=PING_TIMEOUT,
                    max_size=MAX_FRAME,
                ) as connection:
                    await self._greet(connection)
                    opened = loop.time()
                    await self._read(connection)
            except ConnectionClosed as closed:
                farewell = goodbye(closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else goodbye(None)
                if farewell.refused:
                    raise Refused(f"{self._where.url}: {farewell.words}") from None
                if not farewell.come_back:
                    self._tell(farewell.words)
                    return
                why = farewell.words
            except _ComeBack as words:
                why = str(words)
            except (OSError, WebSocketException, TimeoutError) as error:
                failure = connection_failure(error, self._where.url)
                if isinstance(failure, (CertificateError, Refused)):
                    raise failure from None
                why = str(failure)
            finally:
                self._connection = None
                self._forget()
            now = loop.time()
            if opened is not None:
                lost_at = now
                if now - opened >= STABLE:
                    self._backoff.reset()
            delay = self._backoff.next()
            if self._asked_to_wait is not None:
                delay, self._asked_to_wait = self._asked_to_wait, None
            patience = self._wait if self.user is None else self._give_up
            if patience is not None and now + delay - lost_at > patience:
                away = f", for {now - lost_at:.0f} s now" if patience else ""
                raise Away(why + away)
            self._tell(f"{why}; trying again in {delay:.1f} s")
            await asyncio.sleep(delay)

    async def _greet(self, connection: ClientConnection) -> None:
        """
        :raises Refused: the server says so, and why
        :raises ConnectionError: it says so, and to come back later
        """
        first = classify(await asyncio.wait_for(connection.recv(), OPEN_TIMEOUT))
        if isinstance(first, Refusal):
            with suppress(TimeoutError):
                await asyncio.wait_for(connection.wait_closed(), CLOSE_TIMEOUT)
            if connection.close_code in (TRY_LATER, 1006):  # 1006: broken, so nobody said that it is for good
                raise ConnectionError(first.reason)
            raise Refused(f"{self._where.url} refuses the token: {first.reason}")
        if not isinstance(first, Welcome):
            raise Away(f"what answers at {self._where.url} is no Carillon: it begins with {_kind(first)}")
        again = self.user is not None
        self.user = first.user
        self._connection = connection
        self._version = 2 if connection.subprotocol == VERSION_2 and first.position is not None else 1
        if first.position is not None:
            self._memory.welcome(first.position)
        self._take_over()
        if self._groups is not None:
            since = self._memory.since if self._version == 2 else None
            if since is not None:
                self._memory.asked(since)
            await connection.send(subscribe_message(self._groups, since))
        if again:
            self.reconnects += 1
            self._tell("connected again")
            if self._version == 1:
                self._on_reconnect()
        else:
            self._tell(f"connected to {self._where.url} as user {self.user}")
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    async def _read(self, connection: ClientConnection) -> None:
        while True:
            data = await connection.recv()
            frame = classify(data)
            match frame:
                case Event():
                    before = self._memory.since
                    if frame.position is None or self._memory.is_new(frame):
                        if not self._unheard:
                            self._handed = before
                        self._unheard += 1
                        self._unheard_bytes += len(data)
                        self._events.put_nowait((frame, self._memory.since, self._turn, len(data)))
                        while self._unheard_bytes > self._buffer and not self._is_asked:
                            self._room.clear()
                            await self._room.wait()
                case Recovery(whole=False, reason=("timeout" | "unavailable") as reason):
                    # Not lost, only not to be had now: the same position is asked for again.
                    raise _ComeBack(f"what happened meanwhile cannot be sent yet ({reason})")
                case Recovery(whole=whole, position=position, reason=reason):
                    self._memory.settled(position)
                    if not whole:
                        self._tell(f"what happened meanwhile cannot be sent ({reason})")
                        self._on_reconnect()
                case Progress(position=position):
                    self._memory.progress(position)
                case ReconnectAfter(seconds=seconds):
                    self._asked_to_wait = seconds
                case Subscription():
                    self._subscribed(frame)
                case ServerError():
                    self._refused(frame)
                case Refusal(reason=reason):
                    raise Refused(f"{self._where.url}: {reason}")
                case Garbage(why=why):
                    self._tell(f"ignored {why}")
                case Welcome():
                    self._tell("ignored a second welcome")

    @property
    def _is_asked(self) -> bool:
        return any(asked.is_awaited for asked in self._waiting)

    def _forget(self) -> None:
        """Without a connection nothing is answered: the next one is asked for what is still awaited alone."""
        self._step_back()
        self._waiting = deque(asked for asked in self._waiting if asked.is_awaited)

    def _step_back(self) -> None:
        if self._before is not None:
            (self._groups, self._memory), self._before = self._before, None

    def _take_over(self) -> None:
        """A connection begins with what has no answer from the one before: one message for all of it."""
        unanswered = list(self._waiting)
        for asked in unanswered:
            self._before = self._before or (self._groups, copy.copy(self._memory))
            self._take(asked)
        for asked in unanswered[:-1]:
            asked.failed(SubscriptionError("another subscription has taken its place"))
        self._greeting = None
        if self._groups is not None:
            self._greeting = unanswered[-1] if unanswered else _Asked(self._groups, None)
        self._waiting = deque([self._greeting] if self._greeting else [])

    def _take(self, asked: _Asked) -> None:
        self._groups = asked.groups
        self._memory.subscribed(asked.groups, asked.since)
        if asked.since is not None:
            # What is new from `since` on comes behind what is in the queue, whose positions are later.
            self._handed = earlier(self._handed, asked.since)
            self._turn += 1

    def _subscribed(self, reply: Subscription) -> None:
        self.current = reply.current
        if not reply.asked or not self._waiting:
            if reply.left:
                self._tell(f"no longer subscribed to {', '.join(reply.left)}")
            return
        asked = self._waiting.popleft()
        if asked is self._greeting:
            self._greeting = self._before = None
        else:
            self._take(asked)
        asked.answered(reply)

    def _refused(self, error: ServerError) -> None:
        """
        :raises _ComeBack: this connection has nothing subscribed, and what stood before is to be heard
        """
        asked = self._waiting[0] if self._waiting else None
        if asked is None or not asked.is_awaited:
            self._tell(f"the server says: {error.text}")
        if asked is None:
            return
        if not error.rejects:
            asked.errors.append(error.text)
            return
        self._waiting.popleft()
        asked.failed(SubscriptionError(error.text))
        if asked is self._greeting:
            self._step_back()
            if self._groups:
                raise _ComeBack(f"the server says: {error.text}")


def _kind(frame: object) -> str:
    return frame.why if isinstance(frame, Garbage) else f"a frame of the kind {type(frame).__name__}"


def connect(
    url: str,
    *,
    token: str,
    ca: str | Path | None = None,
    on_link: Tell | None = None,
    wait: float = 0.0,
    give_up: float | None = None,
) -> Socket:
    """
    A socket to Carillon, as an async context manager that is entered when the server has said welcome::

        async with carillon.client.connect(url, token=token, ca="ca.crt") as socket:
            await socket.subscribe({"jobs": ["status_changed"]})
            async for event in socket:
                print(event.payload)

    :param url: such as `https://carillon.example.org`
    :param ca: file of the CA certificates to trust, instead of the machine's own
    :param on_link: called with words whenever the link does something
    :param wait: seconds to keep trying until the first connection
    :param give_up: seconds to keep trying after a loss; None: for ever
    :raises ConfigurationError: at once
    :raises Away, Refused, CertificateError: on entering, and while iterating
    """
    return Socket(endpoint(url, token, ca), on_link=on_link, wait=wait, give_up=give_up)

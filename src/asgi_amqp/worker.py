"""A worker for a normal channel: at least once, acknowledged after the handler has finished.

An AMQP message holds one event or, under load, a batch. Events run on `concurrency` slots in the order in
which they came (strictly, with one slot). A message is acknowledged when all its events are done. An event
whose handler raised is tried again: as it came, alone, after a pause that doubles, until it has come back as
often as the queue's delivery limit says and becomes a dead letter; the others of its batch are not repeated
for it. What is sent again out of a batch is a new message, whose count begins anew. While it waits it
holds no slot, but on a `single` channel, which keeps the order: there it is tried again before those that
follow it. A worker that dies leaves its messages to others.
"""

import asyncio
import contextlib
import logging
import signal
import threading
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterator

from .codec import Message, encode
from .consumer import Consumer, Received
from .dead_letters import bury
from .exceptions import LayerError, describe
from .layer import AMQPChannelLayer

log = logging.getLogger("asgi_amqp.worker")

Handler = Callable[[Message], Awaitable[None]]
GOODBYE = 1.0  # seconds for a handler that was cancelled, and for the broker to answer, when a worker ends
RESTING = 64  # failed messages that wait for their next attempt; more wait on their slots
SIGNALS = signal.SIGTERM, signal.SIGINT
# A loop has one handler for a signal: it stops all that run there.
_running: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, "set[Worker]"] = weakref.WeakKeyDictionary()


class Worker:
    """`await Worker(layer, handler, "channel").run()`; ends after `stop()` or SIGTERM, which is for all
    workers of the loop, or with an error of the layer.

    concurrency: handlers at a time, and AMQP messages fetched ahead. drain_timeout: seconds that running
    handlers get to finish after stop(); then they are cancelled and their messages go back. retry: first and
    longest pause, seconds.
    """

    def __init__(
        self,
        layer: AMQPChannelLayer,
        handler: Handler,
        channel: str,
        concurrency: int = 1,
        *,
        drain_timeout: float = 10.0,
        retry: tuple[float, float] = (0.1, 30.0),
        handle_signals: bool = True,
    ) -> None:
        if concurrency < 1:
            raise ValueError("concurrency: at least 1")
        self.handled = 0
        self.failed = 0
        self._layer = layer
        self._handler = handler
        self._channel = channel
        self._concurrency = concurrency
        self._drain_timeout = drain_timeout
        self._retry = retry
        self._handle_signals = handle_signals
        self._events: deque[tuple[Received, int]] = deque()  # and the place in its batch
        self._unfinished = 0  # messages whose events are not all done
        self._idle: deque[asyncio.Future[None]] = deque()  # slots without work
        self._roused = False  # one of them has been woken and has not run yet
        self._resting: dict[Received, asyncio.Task[None]] = {}
        self._held: set[Received] = set()  # what the consumer was given and has not seen the end of
        self._renewing: asyncio.Task[None] | None = None
        self._consumer: Consumer
        self._keeps_order = self._ended = False
        self._done: asyncio.Event | None = None  # while it drains: all are finished
        self._stopping = asyncio.Event()  # from now on nothing begins,
        self._paused = asyncio.Event()  # and from now on nothing comes: what goes back is for others
        self._error: LayerError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """Take nothing new, finish what runs, return from run(). From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
        else:
            self._stopping.set()

    async def run(self) -> None:
        """Work until stopped. BrokerUnavailable when the broker cannot be reached at the start; later it is
        waited for.
        """
        self._loop = asyncio.get_running_loop()
        self._destination = self._layer.destination(self._channel)
        queue = self._destination.queue
        if queue is None:
            raise ValueError(f"{self._channel} is a process-local channel: a worker needs a normal one")
        self._keeps_order = bool(queue.arguments.get("x-single-active-consumer"))
        if self._keeps_order:
            self._concurrency = 1
        self._session = self._layer.lasting_session()
        self._consumer = consumer = Consumer(
            self._session.receiver, queue, self._concurrency, self._on_message, self._on_lost
        )
        with contextlib.ExitStack() as stack:
            if self._handle_signals and threading.current_thread() is threading.main_thread():
                stack.enter_context(_stopped_by_signals(self, self._loop))
            try:
                await consumer.started(self._layer.timeout)
                slots = [asyncio.create_task(self._slot()) for _ in range(self._concurrency)]
                try:
                    await self._stopping.wait()
                finally:
                    self._stopping.set()  # run() may have been cancelled
                    await self._drain(slots)
            finally:
                with contextlib.suppress(TimeoutError):  # it goes on by itself
                    async with asyncio.timeout(GOODBYE):
                        await consumer.stop()
        if self._error is not None:
            raise self._error

    def _on_message(self, received: Received) -> None:
        received.left = len(received.messages)
        self._unfinished += 1
        self._held.add(received)
        if self._resting:
            self._make_room()
        for place in range(received.left):
            self._events.append((received, place))
        self._rouse()

    def _rouse(self) -> None:
        """Wake one slot, which wakes the next before it begins: where handlers do not wait for anything, one
        does all the work, and sixteen need not be woken to find none.
        """
        if self._idle and not self._roused:
            idle = self._idle.popleft()
            if not idle.done():  # else its slot has been cancelled
                self._roused = True
                idle.set_result(None)

    def _on_lost(self, error: LayerError | None) -> None:
        """What has not begun will come again, to us or to another worker."""
        for received, _ in self._events:
            received.left -= 1
            if not received.left:
                self._finish()
        self._events.clear()
        for task in self._resting.values():
            task.cancel()
            self._finish()
        self._resting.clear()
        self._held.clear()
        if error is not None:
            self._error = error
            self._stopping.set()

    async def _slot(self) -> None:
        while not self._ended:  # a handler may have swallowed its cancellation
            while not self._events or (self._stopping.is_set() and not self._events[0][0].begun):
                idle = asyncio.get_running_loop().create_future()
                self._idle.append(idle)
                await idle
                self._roused = False
            received, place = self._events.popleft()
            received.begun = True
            if self._events and not self._roused:
                self._rouse()
            done = await self._handle(received.messages[place])
            if not done and self._keeps_order and len(received.messages) > 1:
                done = await self._insist(received, place)
            if not done:
                received.failed = (*received.failed, place)
            received.left -= 1
            if received.left:
                continue
            if not received.failed:
                self._end(received, received.ack)
            elif self._keeps_order or len(self._resting) >= RESTING:
                await self._rest(received)
            else:
                self._resting[received] = asyncio.create_task(self._rest(received))
                self._make_room()

    async def _handle(self, message: Message) -> bool:
        """Whether the handler has done it."""
        try:
            await self._handler(message)
        except (SystemExit, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                task = asyncio.current_task()
                if self._ended or task is None:
                    raise  # the worker stops; else it is the handler's own
                while task.cancelling():
                    task.uncancel()
            self.failed += 1
            log.exception(
                "Channel %s: the handler failed on a message of type %r", self._channel, message.get("type")
            )
            return False
        self.handled += 1
        return True

    def _end(self, received: Received, how: Callable[[], None]) -> None:
        """Done with, one way or the other."""
        self._resting.pop(received, None)
        self._held.discard(received)
        how()
        self._finish()

    def _finish(self) -> None:
        self._unfinished -= 1
        if self._done is not None and not self._unfinished:
            self._done.set()

    async def _pause(self, attempt: int) -> None:
        """Before the next attempt, so that a broken database does not spin the queue; until a worker that
        stops is given nothing more.
        """
        first, longest = self._retry
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(longest, first * 2 ** min(attempt, 30))):
                await self._paused.wait()

    async def _rest(self, received: Received) -> None:
        """Events have failed: after a pause those of a batch are sent again, alone. Where they cannot be,
        that is tried again: the others of the batch are done. Only a worker that stops, or the order, has it
        repeated whole.
        """
        attempt, alone = received.attempts, len(received.messages) == 1
        if alone or not self._keeps_order:
            await self._pause(attempt)
        if alone or self._keeps_order:
            return self._end(received, received.fail)
        sender = self._session.sender
        while received.failed and not received.wire.closed:  # else the batch comes again
            try:
                data = encode(received.again(received.failed[0]))
                await sender.send(self._destination, data, self._layer.timeout)
            except Exception as error:
                log.warning(
                    "Channel %s: an event cannot be put back alone: %s", self._channel, describe(error)
                )
                if self._stopping.is_set():
                    return self._end(received, received.fail)
                attempt += 1
                await self._pause(attempt)
            else:
                received.failed = received.failed[1:]
        self._end(received, received.ack)

    async def _insist(self, received: Received, place: int) -> bool:
        """Try an event of a batch again before those that follow it, until it is done or a dead letter. Else
        the worker stops or the batch comes again: what follows is not begun.
        """
        tries, queue = 0, self._destination.queue
        assert queue is not None
        while True:
            await self._pause(received.attempts + tries)
            if self._stopping.is_set() or received.wire.closed:
                rest = deque(each for each in self._events if each[0] is not received)
                received.left -= len(self._events) - len(rest)
                self._events = rest
                return False
            tries += 1
            if await self._handle(received.again(place)):
                return True
            if tries >= queue.arguments["x-delivery-limit"]:
                try:
                    event = encode(received.again(place))
                    await bury(self._session, queue, "delivery_limit", event, self._layer.timeout)
                except Exception as error:
                    log.warning(
                        "Channel %s: no dead letter can be written: %s", self._channel, describe(error)
                    )
                else:
                    return True

    def _make_room(self) -> None:
        """Where what rests takes up what may be fetched ahead, begin to consume anew: the broker counts what
        is not acknowledged for each consumer. Nothing is on its way then, which would count an attempt.
        """
        full = len(self._held) >= self._concurrency and not self._stopping.is_set()
        if full and self._renewing is None and not self._held.isdisjoint(self._resting):
            self._held = set()
            self._renewing = asyncio.create_task(self._consumer.renew())
            self._renewing.add_done_callback(self._renewed)

    def _renewed(self, _: "asyncio.Task[None]") -> None:
        self._renewing = None
        self._make_room()

    async def _drain(self, slots: list[asyncio.Task[None]]) -> None:
        """Be given nothing more, let what has begun finish, give back the rest."""
        try:
            async with asyncio.timeout(self._drain_timeout):
                if self._renewing is not None:  # it would consume again behind the pause
                    await asyncio.wait([self._renewing])
                await self._consumer.pause()
                self._give_back()
                if self._unfinished:
                    self._done = asyncio.Event()
                    await self._done.wait()
        except TimeoutError:
            pass  # what is left goes back with its channel
        finally:
            self._ended = True
            tasks = [*slots, *self._resting.values()]
            for task in tasks:
                task.cancel()
            done, _ = await asyncio.wait(tasks, timeout=GOODBYE)
            for task in done:
                if not task.cancelled() and (error := task.exception()) is not None:
                    log.error("Channel %s: %s", self._channel, describe(error))

    def _give_back(self) -> None:
        """What has not begun: nothing else comes, so that it does not come here again."""
        for received in {received: None for received, _ in self._events if not received.begun}:
            self._end(received, received.give_back)
        self._events = deque(each for each in self._events if each[0].begun)
        self._paused.set()


@contextlib.contextmanager
def _stopped_by_signals(worker: Worker, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """SIGTERM and SIGINT stop it, with all others of its loop, until the last of them has ended."""
    workers = _running.setdefault(loop, set())
    first = not workers
    workers.add(worker)
    try:
        if first:
            for number in SIGNALS:
                loop.add_signal_handler(number, _stop_all, workers)
        yield
    finally:
        workers.discard(worker)
        if not workers:
            for number in SIGNALS:
                loop.remove_signal_handler(number)


def _stop_all(workers: set[Worker]) -> None:
    for worker in workers:
        worker.stop()

"""What one event loop has done in another."""

import asyncio
import contextlib
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .codec import Message
from .exceptions import BrokerUnavailable
from .mailboxes import Mailbox

T = TypeVar("T")
ENDED = "the event loop that was to do this has ended"


async def run_in(loop: AbstractEventLoop, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine in a loop; BrokerUnavailable when that has ended."""
    if loop is get_running_loop():
        return await call()
    coroutine = call()
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        raise BrokerUnavailable(ENDED) from None
    return await _unless_ended(loop, asyncio.wrap_future(future))


async def _unless_ended(loop: AbstractEventLoop, future: "asyncio.Future[T]") -> T:
    try:
        while not (await asyncio.wait([future], timeout=0.5))[0]:
            if not loop.is_running():
                raise BrokerUnavailable(ENDED)
        if future.cancelled():  # in that loop, and not who waits here
            raise BrokerUnavailable(ENDED)
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def fetch(
    loop: AbstractEventLoop, box: Mailbox, call: Callable[[], Coroutine[Any, Any, Message]]
) -> Message:
    """A message that `call` takes from a mailbox in a loop. What the receiver no longer wants goes back."""
    here = get_running_loop()
    if loop is here:
        return await call()
    future: asyncio.Future[Message] = here.create_future()

    def hand_over(done: asyncio.Task[Message]) -> None:  # in our loop
        if done.cancelled():
            future.cancel()
        elif not future.done():
            error = done.exception()
            future.set_exception(error) if error is not None else future.set_result(done.result())
        elif done.exception() is None:
            loop.call_soon_threadsafe(box.put_first, done.result())

    def ended(done: asyncio.Task[Message]) -> None:  # in its loop
        try:
            here.call_soon_threadsafe(hand_over, done)
        except RuntimeError:  # ours has ended
            if not done.cancelled() and done.exception() is None:
                box.put_first(done.result())

    def begin() -> None:
        if not future.done():
            tasks.append(loop.create_task(call()))
            tasks[0].add_done_callback(ended)

    tasks: list[asyncio.Task[Message]] = []
    try:
        loop.call_soon_threadsafe(begin)
    except RuntimeError:
        raise BrokerUnavailable(ENDED) from None
    try:
        return await _unless_ended(loop, future)
    except BaseException:
        with contextlib.suppress(RuntimeError):  # that loop has ended
            if not future.cancelled() and future.exception() is None:
                loop.call_soon_threadsafe(box.put_first, future.result())
            loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        raise

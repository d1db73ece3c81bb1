"""What one loop has done in another that has ended."""

import asyncio
import time

import pytest

from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.loops import fetch, run_in
from asgi_amqp.mailboxes import Mailbox

pytestmark = pytest.mark.filterwarnings("error")  # a coroutine that nobody awaited


async def nothing():
    return {}


async def test_a_loop_that_is_closed_is_said_to_have_ended():
    ended = asyncio.new_event_loop()
    ended.close()
    with pytest.raises(BrokerUnavailable, match="has ended"):
        await run_in(ended, nothing)
    box = Mailbox("c", 1, None, time.monotonic())
    with pytest.raises(BrokerUnavailable, match="has ended"):
        await fetch(ended, box, nothing)

"""A connection to a server that is none: whatever ends the attempt, the socket is closed."""

import asyncio

import pytest

from asgi_amqp.connection import connect
from asgi_amqp.exceptions import BrokerUnavailable
from asgi_amqp.options import Options, Target


class Silent:
    """Takes connections and says nothing."""

    async def __aenter__(self):
        self.taken, self.gone = asyncio.Event(), asyncio.Event()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.options = Options((Target.parse(f"amqp://127.0.0.1:{port}"),), "test", connect_timeout=0.1)
        return self

    async def serve(self, reader, writer):
        self.taken.set()
        while await reader.read(1000):
            pass
        self.gone.set()
        writer.close()

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()


async def test_an_attempt_that_has_no_answer_in_time_closes_its_socket():
    async with Silent() as silent:
        with pytest.raises(BrokerUnavailable, match="no answer in time"):
            await connect(silent.options.targets[0], silent.options, 1)
        await asyncio.wait_for(silent.gone.wait(), 5)


async def test_an_attempt_that_is_cancelled_closes_its_socket():
    async with Silent() as silent:
        attempt = asyncio.create_task(connect(silent.options.targets[0], silent.options, 1, 100))
        await silent.taken.wait()
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        assert attempt.cancelled()
        await asyncio.wait_for(silent.gone.wait(), 5)

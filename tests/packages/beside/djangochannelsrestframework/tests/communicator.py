"""A client whose waiting may end without an answer: that of Channels cancels the consumer then."""

import asyncio
from contextlib import asynccontextmanager

from channels.testing import WebsocketCommunicator


class Communicator(WebsocketCommunicator):
    async def receive_output(self, timeout=1):
        try:
            return await asyncio.wait_for(self.output_queue.get(), timeout)
        except TimeoutError:
            if self.future.done():
                self.future.result()
            raise

    async def receive_many_json_from(self, timeout=1):
        """All that come until `timeout` seconds bring none."""
        found = []
        while True:
            try:
                found.append(await self.receive_json_from(timeout))
            except TimeoutError:
                return found


@asynccontextmanager
async def connected_communicator(consumer, path="/testws/"):
    client = Communicator(consumer, path)
    connected, _ = await client.connect()
    assert connected
    try:
        yield client
    finally:
        await client.disconnect()

"""A TCP proxy before a broker that tells publishing connections from consuming ones, and can hurt each."""

import asyncio
import contextlib

PUBLISH, CONSUME = b"\x00\x3c\x00\x28", b"\x00\x3c\x00\x14"  # class and method of a method frame


class Proxy:
    """`async with Proxy(broker) as proxy`: `proxy.url` leads to the broker.

    A connection is a publishing one once it has published, a consuming one once it has consumed. held: what
    clients of this kind send is kept back ("publishing", "consuming"). closed: nobody is let in.
    """

    def __init__(self, broker):
        self.broker = broker
        self.links = set()
        self.held = set()
        self.closed = False
        self.free = asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = self.broker.url.replace(f":{self.broker.port}/", f":{port}/")
        return self

    async def __aexit__(self, *_):
        self.server.close()
        self.cut()

    def cut(self, *kinds):
        """Cut the connections of these kinds, or all."""
        for link in list(self.links):
            if not kinds or link.kind in kinds:
                link.cut()

    def hold(self, kind):
        """From the next byte on, nothing of these clients reaches the broker."""
        self.held.add(kind)
        self.free.clear()

    def let_go(self):
        self.held.clear()
        self.free.set()

    async def _serve(self, reader, writer):
        if self.closed:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.broker.port)
        link = _Link(writer, up_writer)
        self.links.add(link)
        try:
            await asyncio.gather(self._up(link, reader), self._down(link, up_reader))
        finally:
            self.links.discard(link)

    async def _up(self, link, reader):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if link.kind != "publishing" and PUBLISH in data:
                    link.kind = "publishing"
                elif not link.kind and CONSUME in data:
                    link.kind = "consuming"
                while link.kind in self.held:
                    await self.free.wait()
                link.up.write(data)
                await link.up.drain()
        link.cut()

    async def _down(self, link, reader):
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                link.down.write(data)
                await link.down.drain()
        link.cut()


class _Link:
    def __init__(self, down, up):
        self.down, self.up = down, up
        self.kind = ""

    def cut(self):
        for writer in (self.down, self.up):
            writer.transport.abort()

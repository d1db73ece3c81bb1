"""The writing side of one socket of our server: straight to the file descriptor while the reader keeps up.
What the network does not take waits in the transport, up to a budget; what comes then is left to the window
and the log, and the feeder brings the reader level again at his own pace. Nobody else waits for a slow
reader.

What is handed over are whole frames, so the stream of frames is intact wherever a reader falls behind.
"""

import asyncio
from contextlib import suppress
from fcntl import ioctl
from struct import unpack
from termios import TIOCOUTQ

from carillon.fanout.cursor import PIECE
from carillon.fanout.forms import Frames1, frame
from carillon.fanout.hub import Listener

TOO_SLOW = 4408


class Outlet(Listener):
    """What a consumer finds in its scope as `carillon.outlet`. `budget`: bytes that may wait in this process
    for its reader; an event that is larger waits alone."""

    __slots__ = ("_left", "_producing", "_protocol", "_send", "_transport", "_waiters", "budget")

    def __init__(self, protocol, transport, budget: int):
        super().__init__(Frames1)
        self.budget = budget
        self._left = 0
        self._producing = False
        self._protocol = protocol
        self._transport = transport
        self._waiters: list[asyncio.Future] | None = None
        # A TLS wrapper has no socket of its own: then the transport does the writing.
        self._send = transport.socket.send if hasattr(transport, "socket") else None

    def write(self, data: bytes, number: int) -> None:
        if not self.live:
            self.later(len(data))
            return
        transport = self._transport
        if transport._tempDataBuffer or transport.dataBuffer:  # Twisted is still busy with an earlier rest
            if self.waiting + len(data) > self.budget:
                self.later(len(data))
            else:
                transport.write(data)
                self.sent = number
            return
        self.sent = number
        if self._send is None:
            transport.write(data)
            return
        try:
            written = self._send(data)
        except OSError:
            # No room; or Twisted meets the same error and takes the connection down in its own time.
            written = 0
        if written != len(data):
            transport.write(data[written:])

    def give(self, data: bytes, number: int) -> None:
        self.put(data)

    def put(self, data: bytes) -> None:
        """Write whole frames behind everything written before, whoever waits."""
        written = 0
        if self._send is not None and not self.waiting:
            with suppress(OSError):
                written = self._send(data)
        if written != len(data):
            self._transport.write(data[written:])

    def text(self, text: str) -> None:
        """Write one text frame, behind everything written before it."""
        self.put(frame(text.encode()))

    @property
    def waiting(self) -> int:
        """Bytes that wait in this process for the reader."""
        return len(self._transport.dataBuffer) + self._transport._tempDataLen

    def accept_messages(self, most: int) -> None:
        """Of at most so many bytes: a larger one is closed with 1009."""
        self._protocol.maxMessagePayloadSize = self._protocol.maxFramePayloadSize = most

    def room(self) -> bool:
        if not self.waiting:
            return True
        if not self._producing:
            self._producing = True
            self._transport.registerProducer(self, False)
        return False

    async def drained(self) -> None:
        """Until no more than a piece waits, so that whoever writes waits for the reader."""
        while self.waiting > PIECE and not self.ended:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters = [*(self._waiters or ()), waiter]
            self.room()
            await waiter

    def moved(self) -> bool:
        """Whether the network has taken anything since this was last asked: a slow reader is no dead one."""
        try:
            left = self.waiting + unpack("i", ioctl(self._transport.fileno(), TIOCOUTQ, b"1234"))[0]
        except (OSError, ValueError):
            return False
        before, self._left = self._left, left
        return left < before

    @property
    def taken(self) -> bool:
        """Whether the other side had taken all of it when moved() was last asked."""
        return not self._left

    def stop(self) -> None:
        """Take nothing more from the hub."""
        self.end()
        self._let_go()
        if self.owner is not None:
            self.owner.wake()

    def too_slow(self, at) -> None:
        self.stop()
        self._protocol.too_slow(at)

    def failed(self) -> None:
        self.stop()
        self._protocol.failed()

    # Twisted's pull producer: called whenever the transport's own buffer has run empty.

    def resumeProducing(self):
        if self.waiting:
            return
        self._let_go()
        self._protocol.taken()
        if not self.live:
            self.feeder.ready(self)

    def stopProducing(self):
        self._producing = False  # the transport forgets it by itself
        self.stop()

    def _let_go(self):
        if self._producing:
            self._producing = False
            self._transport.unregisterProducer()
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

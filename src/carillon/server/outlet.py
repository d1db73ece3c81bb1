"""The writing side of one socket of our server: straight to the file descriptor while the reader keeps up,
then a backlog bounded in bytes, then the end: nobody else waits for a slow reader.

Whole chunks go in and chunks are whole frames, so the stream of frames is intact wherever a socket is cut
off.
"""

from collections import deque

from asgi_amqp.position import Position
from carillon.fanout.forms import Frames1, frame
from carillon.fanout.hub import Listener

FEED = 128 * 1024
"""Bytes handed to the transport at once when a reader that had fallen behind catches up."""

TOO_SLOW = 4408


class Outlet(Listener):
    """What a consumer finds in its scope as `carillon.outlet`.

    `budget` bounds the backlog in bytes; when it is exceeded the backlog is dropped and `slow` is called with
    the number of the last event that the reader will get.
    """

    __slots__ = ("_backlog", "_protocol", "_send", "_transport", "backlog_size", "budget", "sent", "taking")

    def __init__(self, protocol, transport, budget: int):
        super().__init__(Frames1)
        self.budget = budget
        self.backlog_size = 0
        self.sent = 0
        self.taking = True
        self._backlog: deque | None = None
        self._protocol = protocol
        self._transport = transport
        # A TLS wrapper has no socket of its own: then the transport does the writing.
        self._send = transport.socket.send if hasattr(transport, "socket") else None

    def write(self, data: bytes, number: int) -> None:
        """Write whole frames. Never blocks; a reader who is too slow is cut off."""
        if not self.taking:
            return
        if self._backlog is not None:
            self._queue(data, number)
            return
        transport = self._transport
        if transport._tempDataBuffer or transport.dataBuffer:  # Twisted is still busy with an earlier rest
            self._queue(data, number)
            return
        self.sent = number or self.sent
        if self._send is None:
            transport.write(data)
            return
        try:
            written = self._send(data)
        except BlockingIOError:
            written = 0
        except OSError:
            # Twisted meets the same error and takes the connection down in its own time.
            written = 0
        if written != len(data):
            transport.write(data[written:])

    def text(self, text: str, number: int = 0) -> None:
        """Write one text frame, behind everything written before it."""
        self.write(frame(text.encode()), number)

    @property
    def held(self) -> int:
        """Bytes that wait in this process for the reader."""
        transport = self._transport
        return self.backlog_size + len(transport.dataBuffer) + transport._tempDataLen

    def flush(self) -> None:
        """Hand everything that waits to the transport, which writes it before the connection ends."""
        if self._backlog is not None:
            chunks = [data for data, _ in self._backlog]
            self._transport.write(b"".join(chunks))

    def stop(self) -> None:
        """Take nothing more, and forget what waits."""
        self.taking = False
        if self._backlog is not None:
            self._backlog = None
            self.backlog_size = 0
            self._transport.unregisterProducer()

    def _queue(self, data, number):
        if self._backlog is None:
            self._backlog = deque()
            self._backlog.append((data, number))
            self.backlog_size = len(data)
            self._transport.registerProducer(self, False)  # calls resumeProducing at once: see there
            return
        self._backlog.append((data, number))
        self.backlog_size += len(data)
        if self.backlog_size > self.budget:
            self.stop()
            self._protocol.too_slow(self.sent)

    # Twisted's pull producer: called whenever the transport's own buffer has run empty.

    def resumeProducing(self):
        transport = self._transport
        backlog = self._backlog
        if backlog is None or transport._tempDataBuffer or transport.dataBuffer:
            return
        chunks = []
        size = 0
        while backlog and size < FEED:
            data, number = backlog.popleft()
            chunks.append(data)
            size += len(data)
            self.sent = number or self.sent
        self.backlog_size -= size
        if not backlog:
            self._backlog = None
            transport.unregisterProducer()
        transport.write(b"".join(chunks))

    def stopProducing(self):
        self._backlog = None
        self.backlog_size = 0
        self.taking = False

    def position(self, epoch: str) -> Position:
        """Behind the last event that was handed to the network."""
        return Position(epoch, self.sent)

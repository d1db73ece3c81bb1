"""How an event looks on the wire, for each kind of listener. A form has two functions: `piece` makes the
bytes of one event, `join` makes what is written at once from the pieces of a batch. Both are called once per
batch, however many listeners share the result.

Frames are made here and not by Autobahn: a server frame has no mask, so it is a header of two to ten bytes
before the text, and joined frames go out in one system call.
"""

from struct import pack


def frame(text: bytes, first: int = 0x81) -> bytes:
    """An unmasked, final frame; `first` is the byte with FIN and opcode (0x81: text)."""
    size = len(text)
    if size < 126:
        return bytes((first, size)) + text
    if size < 65536:
        return pack("!BBH", first, 126, size) + text
    return pack("!BBQ", first, 127, size) + text


PING = frame(b"", 0x89)


class Frames1:
    """Version 1 on a socket of our server: the payload is the frame."""

    @staticmethod
    def piece(event, epoch):
        return frame(event.text)

    join = b"".join


def envelope(event, epoch: str) -> bytes:
    """Version 2's text of an event; with `trace`, where the request that emitted it brought one."""
    return b'{"position": "%s:%d", "group": "%s", %s"event": %s}' % (
        epoch.encode(),
        event.number,
        event.group,
        b'"trace": "%s", ' % event.trace.encode() if event.trace else b"",
        event.text,
    )


class Frames2:
    """Version 2 on a socket of our server."""

    @staticmethod
    def piece(event, epoch):
        return frame(envelope(event, epoch))

    join = b"".join


class Sse:
    """Server-Sent Events: the id is the position; JSON text holds no line break."""

    @staticmethod
    def piece(event, epoch):
        return b"id: %s:%d\nevent: %s\ndata: %s\n\n" % (
            epoch.encode(),
            event.number,
            event.group,
            event.text,
        )

    join = b"".join


class Texts1:
    """Version 1 through an ASGI server that is not ours: texts, one `websocket.send` each."""

    @staticmethod
    def piece(event, epoch):
        return event.text.decode()

    join = tuple


class Texts2:
    """Version 2 through an ASGI server that is not ours."""

    @staticmethod
    def piece(event, epoch):
        return envelope(event, epoch).decode()

    join = tuple

"""A project whose one consumer says what it hears; its clients may send what Autobahn's cases send."""

from tests.settings import *  # noqa: F403

CARILLON = {
    "STREAM": None,
    "WEBSOCKET_URLCONF": "tests.integration.sockets.echo.routing",
    "SOCKET_MESSAGE_BYTES": 32 * 2**20,
    # The cases send messages of megabytes in fragments of 64 bytes, as fast as they can.
    "SOCKET_FRAME_BURST": 2**20,
    "SOCKET_BYTES_BURST": 2**30,
}

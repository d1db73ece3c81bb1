"""Where daphne keeps the protocol's close codes from clients: mended when it serves this process.

- It closes by Autobahn's `sendClose`, which raises for any code but 1000 and 3000 to 4999: 1008, 1012 and
  1013 would end a socket without a close frame (1006 at the client).
- Autobahn drops a connection that breaks a rule (a message over the size limit) where it could say 1009.
- On stopping it looks up the application of every connection, and fails if one has none, as can be
  for a second around a handshake: then no application hears of the stop, and no client gets 1012.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


def install() -> None:
    """Does nothing in a process that daphne does not serve."""
    server, protocol = sys.modules.get("daphne.server"), sys.modules.get("daphne.ws_protocol")
    if server is None or protocol is None:
        return
    server.Server.kill_all_applications = kill_all_applications
    protocol.WebSocketProtocol.serverClose = server_close
    # A class attribute wins over the factory's option, which daphne does not offer.
    protocol.WebSocketProtocol.failByDrop = False


def server_close(protocol: Any, code: int | None = None) -> None:
    """The same close frame, for every code."""
    protocol.sendCloseFrame(code=1000 if code is None else code, isReply=False)


def kill_all_applications(server: Any) -> Any:
    """Cancel every application; a Deferred that fires when all have ended, each with its goodbye said."""
    from twisted.internet.defer import Deferred

    applications = [details.get("application_instance") for details in server.connections.values()]
    running = [application for application in applications if application and not application.done()]
    for application in running:
        application.cancel()
    return Deferred.fromFuture(asyncio.gather(*running, return_exceptions=True))

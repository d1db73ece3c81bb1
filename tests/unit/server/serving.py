"""An ASGI application for the tests of the server: it says what it is told to say. Run in a process of its
own."""

import asyncio
import json

from carillon.fanout.forms import Frames1, Frames2
from carillon.server.server import DeliveryServer, Launcher, WebSocketProtocol

received = 0


async def application(scope, receive, send):
    global received
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(received).encode()})
        return
    outlet = scope["carillon.outlet"]
    await receive()
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
    outlet.form = Frames2 if scope["subprotocols"] else Frames1
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        received += 1
        order = json.loads(message["text"])
        if order["do"] == "flood":
            piece = Frames1.piece(type("E", (), {"text": b"x" * order["size"]}), "")
            for number in range(order["count"]):
                outlet.write(piece, number + 1)
                if number % 50 == 0:
                    await asyncio.sleep(0)
        elif order["do"] == "mixed":
            for number in range(order["count"]):
                outlet.text(f"direct {number}")
                await send({"type": "websocket.send", "text": f"asgi {number}"})
        elif order["do"] == "close":
            await send({"type": "websocket.close", "code": order["code"], "reason": "because"})
        elif order["do"] == "empty":
            await send({"type": "websocket.send", "text": ""})
            await send({"type": "websocket.send", "bytes": b""})
        elif order["do"] == "sleep":
            await asyncio.sleep(order["seconds"])
        elif order["do"] == "own":
            own = set(WebSocketProtocol.CONFIG_ATTRS) & vars(outlet._protocol).keys()
            outlet.text(json.dumps(sorted(own)))
        elif order["do"] == "fail":
            raise ZeroDivisionError


class Server(DeliveryServer):
    drain_seconds = 0.5

    def hub_position(self):
        return super().hub_position()._replace(epoch="ep")


class Run(Launcher):
    server_class = Server


if __name__ == "__main__":
    Run.entrypoint()

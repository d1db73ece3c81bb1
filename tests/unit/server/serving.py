"""An ASGI application for the tests of the server: it says what it is told to say. Run in a process of its
own."""

import asyncio
import json

from carillon.events.event import Event
from carillon.fanout.forms import Frames1, Frames2
from carillon.fanout.hub import Hub
from carillon.fanout.window import Window
from carillon.metrics import names
from carillon.server.server import DeliveryServer, Launcher, WebSocketProtocol

received = 0
hub = Hub(Window(2**26))
hub.begin("ep", 0)
opened: list = []


async def application(scope, receive, send):
    global received
    if scope["type"] == "http":
        if scope["path"] != "/":
            await unfinished(scope["path"], send)
            return
        await asyncio.sleep(float(scope["query_string"] or 0))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(received).encode()})
        return
    if scope["path"] == "/nothing":
        return
    outlet = scope["carillon.outlet"]
    opened.append(outlet)
    await receive()
    await send({"type": "websocket.accept", "subprotocol": (scope["subprotocols"] or [None])[0]})
    outlet.form = Frames2 if scope["subprotocols"] else Frames1
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            print("heard", message["code"], flush=True)
            return
        received += 1
        order = json.loads(message["text"])
        if order["do"] == "flood":
            outlet.most = order.get("most")
            hub.subscribe(outlet, frozenset([b"a-1"]))
            for number in range(order["count"]):
                text = b'{"n": %d, "pad": "%s"}' % (number, b"x" * order["size"])
                hub.deliver([Event(b"a-1", text, number=hub.number + 1)])
                if number % 50 == 0:
                    await asyncio.sleep(0)
        elif order["do"] == "talk":
            for number in range(order["count"]):
                await send({"type": "websocket.send", "text": str(number) + "x" * order["size"]})
        elif order["do"] == "waiting":
            outlet.text(json.dumps(max(each.waiting for each in opened)))
        elif order["do"] == "mixed":
            for number in range(order["count"]):
                outlet.text(f"direct {number}")
                await send({"type": "websocket.send", "text": f"asgi {number}"})
        elif order["do"] == "close":
            reason = order.get("reason", "because")
            await send({"type": "websocket.close", "code": order["code"], "reason": reason})
        elif order["do"] == "empty":
            await send({"type": "websocket.send", "text": ""})
            await send({"type": "websocket.send", "bytes": b""})
        elif order["do"] == "within":
            DeliveryServer.reconnect_within = order["milliseconds"]
            outlet.text("noted")
        elif order["do"] == "sleep":
            await asyncio.sleep(order["seconds"])
        elif order["do"] == "own":
            own = set(WebSocketProtocol.CONFIG_ATTRS) & vars(outlet._protocol).keys()
            outlet.text(json.dumps(sorted(own)))
        elif order["do"] == "closed":
            counted = {code: int(child._value.get()) for (code,), child in names.CLOSED._metrics.items()}
            outlet.text(json.dumps({code: count for code, count in counted.items() if count}))
        elif order["do"] == "fail":
            raise ZeroDivisionError
        elif order["do"] == "return":
            return


async def unfinished(path, send):
    """An answer that is not all there."""
    if path != "/nothing":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a part", "more_body": True})
    if path == "/failed":
        raise ZeroDivisionError


class Server(DeliveryServer):
    drain_seconds = 0.5

    def hub_position(self):
        from tests.unit.server import serving  # the application's: this module runs under another name

        return serving.hub.position


class Run(Launcher):
    server_class = Server


if __name__ == "__main__":
    Run.entrypoint()

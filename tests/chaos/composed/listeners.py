"""Publishers and clients of a schedule. Each does what the protocol's pages ask of it and writes down what
happens to it, a line of JSON each, for the judge."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import random
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.chaos.site import GROUP, Site

GONE = (ConnectionClosed, OSError, InvalidHandshake, TimeoutError, EOFError)
"""How a connection fails: none of it is an error of the client's."""
AGAIN = ("timeout", "unavailable")
"""Reasons after which the same position may be asked for again later."""
MOST_SECONDS = 120
"""For one batch to be confirmed: after that the stack is taken for dead."""


class Record:
    """The file that one schedule's publishers and clients write to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = path.open("w")

    def write(self, **values: Any) -> None:
        self._lines.write(json.dumps(values) + "\n")

    def read(self) -> list[dict]:
        """All of it, parsed."""
        self._lines.flush()
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        self._lines.close()


class Publisher:
    """Numbers its events and posts them in batches over a connection of its own, each until it is confirmed:
    the same events under the same ids. Slowly, once it has had `enough` confirmed."""

    def __init__(self, site: Site, record: Record, name: str, tag: str, enough: int) -> None:
        self.site, self.record, self.name, self.tag, self.enough = site, record, name, tag, enough
        self.confirmed = 0
        self.longest = 0.0
        self.task: asyncio.Task | None = None
        self._stop = False
        self._connection: http.client.HTTPSConnection | None = None

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """After the batch in hand."""
        self._stop = True
        await self.task

    async def _run(self) -> None:
        while not self._stop:
            count = 200 if self.confirmed < self.enough else 20
            await self._publish(range(self.confirmed, self.confirmed + count))
            await asyncio.sleep(0.2)

    async def _publish(self, numbers: range) -> None:
        body = json.dumps(
            [
                {
                    "group": GROUP,
                    "payload": {"tag": self.tag, "publisher": self.name, "n": n, "pad": "x" * 200},
                    "id": str(uuid.uuid4()),
                }
                for n in numbers
            ]
        ).encode()
        begun = time.monotonic()
        while not await asyncio.to_thread(self._post, body):
            if time.monotonic() - begun > MOST_SECONDS:
                raise AssertionError(f"{self.name}: nothing is confirmed for {MOST_SECONDS} s")
            await asyncio.sleep(0.2)
        self.longest = max(self.longest, time.monotonic() - begun)
        self.confirmed = numbers[-1] + 1
        self.record.write(publisher=self.name, confirmed=[numbers[0], numbers[-1]])

    def _post(self, body: bytes) -> bool:
        headers = {"Authorization": f"Bearer {self.site.token}", "Content-Type": "application/json"}
        try:
            if self._connection is None:
                host, port = self.site.address
                self._connection = http.client.HTTPSConnection(host, port, timeout=10, context=self.site.tls)
            self._connection.request("POST", "/api/v2/notifications/", body, headers)
            answer = self._connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            answer = None
        if answer is None or answer.status != 202:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
        if answer is not None and 400 <= answer.status < 500:
            raise AssertionError(f"{self.name}: the batch is refused: {answer.status} {answer.reason}")
        return answer is not None and answer.status == 202


class Client:
    """One listener; `port` is that of the line it comes by. `level` says whether it has heard everything."""

    def __init__(self, site: Site, record: Record, name: str, tag: str, port: int) -> None:
        self.site, self.record, self.name, self.tag, self.port = site, record, name, tag, port
        self.ready = asyncio.Event()
        self.newest: dict[str, int] = {}
        self.since: str | None = None
        self._stopping = False
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Also where a deadline inside the connection takes a cancellation for its own."""
        self._stopping = True
        while not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)

    def level(self, confirmed: dict[str, int]) -> bool:
        """Whether the newest that it heard of each publisher is the last that was confirmed."""
        return all(self.newest.get(name, -1) >= count - 1 for name, count in confirmed.items())

    async def _run(self) -> None:
        wait = 0.1
        while not self._stopping:
            self.ready.clear()
            with contextlib.suppress(*GONE):
                await self._connection()
            if self.ready.is_set():
                wait = 0.1
            self._ended()
            await asyncio.sleep(random.uniform(wait / 2, wait))
            wait = min(1.0, wait * 2)

    async def _connection(self) -> None:
        raise NotImplementedError

    def _ended(self) -> None:
        """What the end of a connection says to this client."""

    def _connected(self) -> None:
        self.record.write(client=self.name, connected=True)

    def _told(self, reason: str) -> None:
        self.record.write(client=self.name, told=reason)

    def _heard(self, payload: dict) -> None:
        if payload.get("tag") != self.tag:
            return  # of the schedule before
        self.newest[payload["publisher"]] = max(payload["n"], self.newest.get(payload["publisher"], -1))
        self.record.write(client=self.name, saw=[payload["publisher"], payload["n"]])


class Version1(Client):
    """Knows by the end of its connection that it may have missed something."""

    async def _connection(self) -> None:
        async with connect(
            f"wss://{self.site.address[0]}:{self.port}/websocket/?{urlencode({'token': self.site.token})}",
            ssl=self.site.tls, open_timeout=5, ping_interval=3, ping_timeout=5, close_timeout=1, proxy=None,
        ) as socket:  # fmt: skip
            self._connected()
            await socket.send(json.dumps({"groups": {"jobs": ["summary"]}}))
            async for text in socket:
                frame = json.loads(text)
                if "publisher" in frame:
                    self._heard(frame)
                elif "groups_current" in frame:
                    self.ready.set()

    def _ended(self) -> None:
        self._told("its connection ended")


class Version2(Client):
    """Remembers one position and asks for what came after it."""

    pings = True

    async def _connection(self) -> None:
        async with connect(
            f"wss://{self.site.address[0]}:{self.port}/websocket/",
            ssl=self.site.tls, subprotocols=["carillon.v2"], proxy=None, max_size=None,
            additional_headers={"Authorization": f"Bearer {self.site.token}"}, open_timeout=5,
            ping_interval=3 if self.pings else None, ping_timeout=5, close_timeout=1,
        ) as socket:  # fmt: skip
            async for text in socket:
                frame = json.loads(text)
                if "event" in frame:
                    self._heard(frame["event"])
                elif "recovered" in frame:
                    if not frame["recovered"]:
                        if frame["reason"] in AGAIN:
                            return  # and with the same position again
                        self._told(frame["reason"])
                    self.ready.set()
                elif frame.get("accept") is True:
                    self._connected()
                    self.since = self.since or frame["position"]
                    await socket.send(json.dumps({"groups": {"jobs": ["summary"]}, "since": self.since}))
                    continue
                elif frame.get("accept") is False:
                    return
                self.since = frame.get("position", self.since)


class SlowReader(Version2):
    """Its line is slow, so that no answer to a ping may come in time."""

    pings = False


class EventStream(Client):
    """Server-Sent Events, as an EventSource hears them: the last id is what it asks for again."""

    async def _connection(self) -> None:
        reader, writer = await asyncio.wait_for(
            asyncio.open_connection(self.site.address[0], self.port, ssl=self.site.tls), 5
        )
        try:
            head = {
                "Host": f"{self.site.address[0]}:{self.site.address[1]}",
                "Authorization": f"Bearer {self.site.token}",
                **({"Last-Event-ID": self.since} if self.since else {}),
            }
            # HTTP/1.0: the body is what comes until the end, in no chunks.
            lines = ["GET /events/?groups=jobs:summary HTTP/1.0", *(": ".join(pair) for pair in head.items())]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            status = await self._line(reader)
            while await self._line(reader):
                pass
            if " 200 " not in f"{status} ":
                return
            self._connected()
            await self._events(reader)
        finally:
            writer.transport.abort()

    async def _line(self, reader: asyncio.StreamReader) -> str:
        line = await asyncio.wait_for(reader.readline(), 45)
        if not line:
            raise EOFError
        return line.decode().rstrip("\r\n")

    async def _events(self, reader: asyncio.StreamReader) -> None:
        at, kind, data = None, "", ""
        while True:
            field, _, value = (await self._line(reader)).partition(": ")
            if field == "id":
                at = value
            elif field == "event":
                kind = value
            elif field == "data":
                data = value
            elif not field:
                if not self._event(kind, json.loads(data) if data else {}):
                    return
                self.since = at or self.since
                at, kind, data = None, "", ""

    def _event(self, kind: str, data: dict) -> bool:
        """Whether to go on with this connection."""
        if kind == GROUP:
            self._heard(data)
        elif kind == "accept":
            self.since = self.since or data["position"]
        elif kind == "unrecovered":
            if data["reason"] in AGAIN:
                return False
            self._told(data["reason"])
        elif kind == "groups":
            self.ready.set()
        return True

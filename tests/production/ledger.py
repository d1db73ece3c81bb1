"""Load with a ledger: requests and events through a deployment while something happens to it.

Every request is on a connection of its own, so that a port that refuses for a moment is seen. Every event is
numbered and posted once its predecessor was accepted. A websocket client of version 2 notes what it hears;
when its connection breaks it comes back and asks for what it missed, as a client does.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field

from websockets.exceptions import ConnectionClosed, InvalidStatus


@dataclass
class Ledger:
    """`stack` is a tests.infra.stack.Stack or the like: api(), websocket(), and a group to use."""

    stack: object
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    heard: list[int] = field(default_factory=list)
    reconnects: int = 0
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self._stop = threading.Event()  # of the load; the listener goes on until it has heard all
        self._heard_all = threading.Event()
        self._position: str | None = None
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._first = time.monotonic_ns()

    def __enter__(self) -> Ledger:
        ready = threading.Event()
        for target in (lambda: self._listen(ready), self._get, self._get, self._post):
            thread = threading.Thread(target=target, daemon=True)
            thread.start()
            self._threads.append(thread)
            if len(self._threads) == 1:
                assert ready.wait(30), "no websocket before the load begins"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads[1:]:
            thread.join(30)

    def wait_until_heard(self, seconds: float = 30) -> set[int]:
        """Accepted events that were not heard, after waiting for them."""
        deadline = time.monotonic() + seconds
        while (missing := set(self.accepted) - set(self.heard)) and time.monotonic() < deadline:
            time.sleep(0.2)
        self._heard_all.set()
        self._threads[0].join(30)
        return missing

    def assert_nothing_lost(self) -> None:
        """No request failed, each accepted event was heard, once."""
        missing = self.wait_until_heard()
        print(self.report())
        assert self.failures == []
        assert self.requests > 20
        assert missing == set()
        assert len(self.heard) == len(set(self.heard)), "an event came twice"

    def _get(self) -> None:
        while not self._stop.is_set():
            self._once(lambda: self.stack.api("/api/v2/me/")["count"] == 1, "GET /api/v2/me/")

    def _post(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            body = {"group": self.stack.group, "payload": {"ledger": self._first, "number": number}}
            if self._once(
                lambda body=body: self.stack.api("/api/v2/notifications/", body),
                "POST /api/v2/notifications/",
            ):
                self.accepted.append(number)

    def _once(self, request, what: str) -> bool:
        start = time.monotonic()
        try:
            request()
            good = True
        except Exception as error:  # every way to fail is a failed request
            good = False
            with self._lock:
                self.failures.append(f"{what}: {error!r}")
        with self._lock:
            self.requests += 1
            self.slowest = max(self.slowest, time.monotonic() - start)
        return good

    def _listen(self, ready: threading.Event) -> None:
        while not self._heard_all.is_set():
            try:
                with self.stack.websocket(subprotocols=["carillon.v2"]) as socket:
                    self._follow(socket, ready)
            except (ConnectionClosed, InvalidStatus, OSError, TimeoutError, EOFError):
                self.reconnects += 1
                time.sleep(0.2)

    def _follow(self, socket, ready: threading.Event) -> None:
        """Reads frames until all was heard; the next connection resumes at the last one's position."""
        first = json.loads(socket.recv(10))
        message = {"groups": self.stack.subscription, "since": self._position or first["position"]}
        socket.send(json.dumps(message))
        while not self._heard_all.is_set():
            try:
                frame = json.loads(socket.recv(0.5))
            except TimeoutError:
                continue
            if frame.get("recovered") is False:
                if frame["reason"] in ("timeout", "unavailable"):
                    raise EOFError(frame["reason"])  # to be asked again, on another connection
                self.failures.append(f"not recovered: {frame}")
            if "recovered" in frame:
                ready.set()
            self._position = frame.get("position", self._position)
            if frame.get("event", {}).get("ledger") == self._first:
                self.heard.append(frame["event"]["number"])

    def report(self) -> str:
        return (
            f"{self.requests} requests, {len(self.failures)} failed, slowest {self.slowest:.2f} s; "
            f"{len(self.accepted)} events accepted, {len(set(self.heard))} heard, "
            f"{len(self.heard) - len(set(self.heard))} twice, "
            f"{self.reconnects} reconnects"
        )

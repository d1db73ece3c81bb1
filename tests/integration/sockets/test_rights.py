"""Rights that are withdrawn while their socket is busy with something else."""

from __future__ import annotations

import json
import time
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.stack


def publish(stack, n: int) -> None:
    stack.post("/notifications/", {"group": "jobs-summary", "payload": {"n": n}})


def test_a_token_that_is_revoked_while_its_socket_resumes(stack):
    """The resume waits for a position that its process has not reached; other groups go on meanwhile."""
    token = stack.post("/tokens/", {"description": "to be revoked", "scope": "read"})
    path = f"/websocket/?token={token['token']}"
    with stack.socket(path, version=2) as socket:
        epoch, number = socket.frame()["position"].split(":")
        socket.subscribe({"jobs": ["summary"]})
        ahead = f"{epoch}:{int(number) + 10**9}"
        socket.subscribe({"jobs": ["summary", "status_changed"]}, since=ahead)
        publish(stack, 0)
        assert socket.frame()["event"] == {"n": 0}
        assert stack.api("DELETE", f"/tokens/{token['id']}/").status_code == 204
        revoked = time.monotonic()
        late = []
        with suppress(ConnectionClosed, TimeoutError):
            n = 0
            while time.monotonic() - revoked < 4:
                publish(stack, n := n + 1)
                frame = json.loads(socket.raw.recv(0.2))
                if "event" in frame and time.monotonic() - revoked > 1:
                    late.append(frame)
        assert late == []
        assert socket.closed() == 4401
        assert time.monotonic() - revoked < 2

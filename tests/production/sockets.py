"""Websockets that are open while something happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack

from websockets.exceptions import ConnectionClosed

from tests.infra.stack import Stack


def assert_half_survive(stack: Stack, restart: Callable[[], object]) -> None:
    """`restart` is of one of two daphnes: its sockets are told to come back, the others notice nothing."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(stack.websocket()) for _ in range(24)]
        for socket in sockets:
            assert json.loads(socket.recv(10))["accept"] is True
        restart()
        codes = []
        for socket in sockets:
            try:
                socket.send(json.dumps({"groups": {}}))
                assert json.loads(socket.recv(10))["groups_current"] == []
            except ConnectionClosed as closed:
                codes.append(closed.rcvd.code if closed.rcvd else None)
        # The kernel gave each process some.
        assert 0 < len(codes) < len(sockets)
        assert set(codes) == {1012}

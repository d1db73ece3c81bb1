"""The page's operations view, for admins: do events flow, what waits, and where is one event? It shows what
`carillon top`, `carillon dead-letters` and `carillon explain` read."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

from asgiref.sync import async_to_sync
from django.db import Error
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework.exceptions import APIException, NotFound, Throttled
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from asgi_amqp import LayerError
from asgi_amqp.dead_letters import Depth, Letter
from carillon import conditions, explain, top
from carillon.accounts.permissions import IsAdmin
from carillon.api import metrics
from carillon.events import broker, outbox
from carillon.relay import dead_letters

logger = logging.getLogger(__name__)

LETTERS = 50
"""Dead letters that are listed, the oldest first; and messages of each."""
MESSAGES = 5

EXPLAIN_SECONDS = 15.0
"""Less than the page waits for an answer."""

_one = threading.Lock()
"""Held while this process looks through the log: that takes a thread of uwsgi's, and reads for seconds."""


class BrokerAway(APIException):
    status_code = 503
    default_detail = "The broker does not answer: what waits there is not known."


class AdminView(APIView):
    permission_classes = (*APIView.permission_classes, IsAdmin)


class OperationsView(AdminView):
    """What the processes of this host, the broker and the database say now. What they do not say is null."""

    @extend_schema(responses={200: dict, 503: dict})
    def get(self, request: Request) -> Response:
        together = metrics.read()
        now, heard = top.add_up(together.collect()), together.heard()
        depth, waiting = _depth(), _outbox()
        rows = top.rows(now)
        facts = conditions.Facts(
            rows,
            heard,
            ", ".join(f"{one.host}:{one.port}" for one in broker.options("").targets),
            *(depth or (None, None, None)),
            waiting and waiting[1],
        )
        holds = list(conditions.holding(facts))
        state, words = conditions.verdict(facts, holds)
        return Response(
            {
                "host": socket.gethostname(),
                "seconds": together.now,
                "state": state,
                "words": words,
                "totals": {title: now.get((name, ""), 0.0) for title, name in top.RATES},
                "waiting": {
                    "outbox": waiting and waiting[0],
                    "queue": facts.queue,
                    "dead_letters": facts.dead,
                    "runworkers": facts.readers,
                },
                "processes": [
                    {**row._asdict(), "heard": heard[row.name], "late": heard[row.name] > conditions.LATE}
                    for row in rows
                ],
                "conditions": [one._asdict() for one in holds],
                "counted": list(conditions.counted(now)),
            }
        )


def _depth() -> Depth | None:
    try:
        return async_to_sync(dead_letters.depth)()
    except (LayerError, TimeoutError) as error:
        logger.warning("The broker does not say what waits: %s", str(error).strip() or type(error).__name__)
        return None


def _outbox() -> tuple[int, float] | None:
    try:
        return outbox.waiting()
    except Error as error:
        logger.warning("The outbox cannot be read: %s", type(error).__name__)
        return None


class DeadLettersView(AdminView):
    """The oldest dead letters: see `carillon dead-letters`."""

    @extend_schema(responses={200: dict, 503: dict})
    def get(self, request: Request) -> Response:
        found: list[dict[str, Any]] = []
        try:
            async_to_sync(dead_letters.look)(LETTERS, lambda letter: found.append(shown(letter)))
        except (LayerError, TimeoutError):
            raise BrokerAway from None
        return Response({"results": found, "most": LETTERS})


def shown(letter: Letter) -> dict[str, Any]:
    """What is told of a letter; its messages' own words are for `carillon dead-letters show`."""
    messages = [
        {
            "group": str(message.get("group", ""))[:100],
            "id": one.hex() if isinstance(one := message.get("id"), bytes) else None,
        }
        for message in letter.messages[:MESSAGES]
    ]
    return {
        "name": letter.name,
        "reason": letter.reason,
        "time": letter.time and letter.time.isoformat(),
        "bytes": letter.size,
        "count": len(letter.messages),
        "messages": messages,
    }


class ExplainView(AdminView):
    """One event, hop by hop. 404: nothing is known of it, and why. 429: this process explains another."""

    @extend_schema(
        parameters=[OpenApiParameter("event", str, required=True, description="its position or its id")],
        responses={200: dict, 404: OpenApiResponse(dict, "Nothing is known of it, and why."), 503: dict},
    )
    def get(self, request: Request) -> Response:
        if not _one.acquire(blocking=False):
            raise Throttled(wait=1, detail="Another event is looked for: try again.")
        try:
            text = request.query_params.get("event", "").strip()
            facts = async_to_sync(explain.find)(text, EXPLAIN_SECONDS)
        except explain.Unclear as problem:
            raise NotFound(str(problem)) from None
        except (Error, LayerError, TimeoutError) as error:
            reason = str(error).strip() or "it took too long"
            raise BrokerAway(f"The log cannot be asked: {reason}") from None
        finally:
            _one.release()
        return Response({"hops": [{"name": name, "text": text} for name, text in explain.story(facts)]})

"""GET requests to the REST API, by the standard library, for asyncio."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from carillon.client.endpoint import Endpoint
from carillon.client.errors import Away
from carillon.client.failures import connection_failure, http_failure

TIMEOUT = 15.0
MAX_ANSWER = 64 * 1024 * 1024

T = TypeVar("T")


async def get(where: Endpoint, path: str, **query: str | int) -> Any:
    """
    The JSON that the API answers.

    :param path: such as `/api/v2/jobs/42/`
    :raises ClientError: no answer, or one other than 2xx
    """
    target = f"{path}?{urlencode(query)}" if query else path
    return await _in_thread(lambda: _get(where, target))


def _get(where: Endpoint, target: str) -> Any:
    parts = urlsplit(where.url)
    connection: http.client.HTTPConnection
    if where.ssl_context is not None:
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=TIMEOUT, context=where.ssl_context
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)
    try:
        headers = {"Authorization": f"Bearer {where.token}", "Accept": "application/json"}
        connection.request("GET", parts.path + target, headers=headers)
        response = connection.getresponse()
        body = response.read(MAX_ANSWER)
    except (OSError, http.client.HTTPException) as error:
        raise connection_failure(error, where.url) from None
    finally:
        connection.close()
    if not 200 <= response.status < 300:
        raise http_failure(response.status, body, where.url + target.partition("?")[0])
    try:
        return json.loads(body)
    except ValueError:
        raise Away(f"what answers at {where.url} is no Carillon: no JSON at {target}") from None


async def _in_thread(function: Callable[[], T]) -> T:
    """
    Runs a blocking function in a daemon thread. asyncio's own executor would make the end of the program wait
    for a request that nobody waits for any more.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = (function(), None)
        except BaseException as error:
            outcome = (None, error)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, name="carillon-rest", daemon=True).start()
    return await future

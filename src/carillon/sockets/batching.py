"""Questions to the database that many sockets have at once, asked together.

When a process has restarted, thousands of clients come in a few seconds, and there is one thread for the
database: what has gathered while it was busy goes to it as one list.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from channels.db import database_sync_to_async

from carillon import logs

Question = TypeVar("Question")
Answer = TypeVar("Answer")

MOST = 100
"""Questions in one list: others want the database's thread, too."""


class Batched(Generic[Question, Answer]):
    """`answer(questions)` runs in the database's thread and gives an answer, or an exception, for each."""

    def __init__(self, answer: Callable[[Sequence[Question]], Sequence[Answer | Exception]]) -> None:
        self._answer = answer
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        """The answer to this question. Raises what was answered, or what ended the whole list."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())
        return await future

    async def _work(self) -> None:
        logs.forget()  # it works for many
        while self._waiting:
            asked = []
            while self._waiting and len(asked) < MOST:
                question, future = self._waiting.popleft()
                if not future.done():  # who asked has not left meanwhile
                    asked.append((question, future))
            if not asked:
                return
            try:
                answers = await database_sync_to_async(self._answer)([question for question, _ in asked])
            except Exception as error:
                answers = [error] * len(asked)
            except asyncio.CancelledError:
                for _, future in (*asked, *self._waiting):
                    future.cancel()
                raise
            for (_, future), answer in zip(asked, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

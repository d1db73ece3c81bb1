"""Pages of a list: `page`, and `page_size` up to 200."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from rest_framework.exceptions import Throttled, ValidationError
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.utils.urls import remove_query_param, replace_query_param

from carillon.budgets import InHand, fitting
from carillon.conf import conf
from carillon.metrics import names


class Pagination(PageNumberPagination):
    page_size = 25
    page_size_query_param = "page_size"
    max_page_size = 200


class TooMuchAtOnce(Throttled):
    """429: the user's other answers have to be made first."""

    def __init__(self) -> None:
        super().__init__(wait=1)
        self.detail = (
            f"More than {conf.PAGE_BYTES_AT_ONCE} bytes of pages are being made for you at this moment. "
            "Try again in a second, one page after another."
        )


_in_hand = InHand(0, seconds=60)
_lock = Lock()  # of a process's threads


class BoundedPagination(Pagination):
    """A page is cut at `PAGE_BYTES`. `next` of one that was cut goes on behind its last row, by the filter
    `after`; all that a page is made of is counted as the user's until the answer is out. With `count=no` it
    is the first page, and the rows are not counted: of a million that takes longer than the page itself."""

    after = "counter__gt"
    key = "counter"

    def paginate_queryset(
        self, queryset: Any, request: Request, view: Any = None, *, size: Any = None
    ) -> list[Any] | None:
        """`size`: the expression for a row's bytes. Raises TooMuchAtOnce."""
        self.cut_at: Any = None
        self.counted = request.query_params.get("count") != "no"
        found = queryset.annotate(_bytes=size).values_list("pk", self.key, "_bytes")
        if self.counted:
            rows = super().paginate_queryset(found, request, view)
            if rows is None:
                return None
        else:
            self.request = request
            if request.query_params.get(self.page_query_param, "1") != "1":
                raise ValidationError(
                    {"page": ["With count=no there is the first page alone: go on by `next`."]}
                )
            most = self.get_page_size(request) or self.page_size
            rows = list(found[: most + 1])
            if len(rows) > most:
                del rows[most:]
                self.cut_at = rows[-1][1]
        kept = rows[: fitting((row[2] for row in rows), conf.PAGE_BYTES)]
        if len(kept) < len(rows):
            self.cut_at = kept[-1][1]
        self._hold(request, sum(row[2] for row in kept))
        try:
            whole = queryset.model.objects.in_bulk([row[0] for row in kept])
        except BaseException:
            self.release()
            raise
        return [whole[row[0]] for row in kept if row[0] in whole]

    def get_next_link(self) -> str | None:
        if self.cut_at is None:
            return super().get_next_link() if self.counted else None
        url = remove_query_param(self.request.build_absolute_uri(), self.page_query_param)
        return replace_query_param(url, self.after, self.cut_at)

    def get_paginated_response(self, data: Any) -> Response:
        if self.counted:
            response = super().get_paginated_response(data)
        else:
            whole = {"count": None, "next": self.get_next_link(), "previous": None, "results": data}
            response = Response(whole)
        # Django closes these when the server has taken the answer.
        response._resource_closers.append(self.release)
        return response

    def _hold(self, request: Request, amount: int) -> None:
        actor = request.user.pk
        with _lock:
            _in_hand.most = conf.PAGE_BYTES_AT_ONCE
            ticket = _in_hand.take(actor, amount, time.monotonic())
        if ticket is None:
            names.OVER_BUDGET.labels("pages").inc()
            raise TooMuchAtOnce

        def release() -> None:
            with _lock:
                _in_hand.give(actor, ticket)

        self.release: Callable[[], None] = release

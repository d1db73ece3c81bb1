"""JSON that a request brings."""

from __future__ import annotations

from math import isfinite
from typing import Any

from rest_framework import parsers
from rest_framework.exceptions import ParseError

DEEPEST = 100
"""Lists and objects within one another: what is deeper is no state of anything, and costs the stack."""


class JSONParser(parsers.JSONParser):
    """The REST framework's; what is nested too deep is a 400, and so is a number that is none (1e999)."""

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            value = super().parse(*args, **kwargs)
        except RecursionError:
            raise ParseError(f"JSON error - nested deeper than {DEEPEST}") from None
        _check(value)
        return value


def _check(value: Any) -> None:
    """Breadth first: no depth is a problem here. Raises ParseError."""
    level = [value]
    for _ in range(DEEPEST + 1):
        if any(isinstance(each, float) and not isfinite(each) for each in level):
            raise ParseError("JSON error - a number is too large")
        around = [each for each in level if isinstance(each, dict | list)]
        if not around:
            return
        level = [child for each in around for child in (each.values() if isinstance(each, dict) else each)]
    raise ParseError(f"JSON error - nested deeper than {DEEPEST}")

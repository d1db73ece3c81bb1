"""JSON that a request brings."""

from __future__ import annotations

from typing import Any

from rest_framework import parsers
from rest_framework.exceptions import ParseError

DEEPEST = 100
"""Lists and objects within one another: what is deeper is no state of anything, and costs the stack."""


class JSONParser(parsers.JSONParser):
    """The REST framework's; what is nested too deep is a 400."""

    def parse(self, *args: Any, **kwargs: Any) -> Any:
        try:
            value = super().parse(*args, **kwargs)
        except RecursionError:
            raise ParseError(f"JSON error - nested deeper than {DEEPEST}") from None
        if _deeper_than(value, DEEPEST):
            raise ParseError(f"JSON error - nested deeper than {DEEPEST}")
        return value


def _deeper_than(value: Any, most: int) -> bool:
    """Breadth first: no depth is a problem here."""
    level = [value]
    for _ in range(most):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True

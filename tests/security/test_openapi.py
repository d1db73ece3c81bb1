"""No request that the OpenAPI document describes, however its values are bent, is an error of the server's.

As schemathesis asks, with what the tests have already. More of it: CARILLON_OPENAPI_EXAMPLES=5000.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.security.conftest import report

pytestmark = pytest.mark.stack

EXAMPLES = int(os.environ.get("CARILLON_OPENAPI_EXAMPLES", "400"))

BENT = [
    None, True, False, 0, -1, 1.5, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1e308,
    "", " ", "\0", "a\0b", "\ud800", "\ufffe", "\u0661", "1", "-1", "null", "NaN", "\r\n", "a" * 20_000,
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-13-45T99:99:99Z",
    [], [None], [[]], ["a"], [2**63], {}, {"a": None}, {"": {"": []}}, {"users": [2**63]}, {"teams": [None]},
]  # fmt: skip
"""In place of a value."""

WORDS = [
    "0", "-1", "1", "9" * 18, "9" * 19, "9" * 400, "1e309", "NaN", "\0", "a\0b", "\u0661", "\xb2", "%ff",
    "\ud800", " ", "'", '"', "a" * 2000, "last", "1,2", "..", "\n", "-id", "__", "status", "jobs-summary",
]  # fmt: skip
"""In a path or a query."""


class Document:
    """The operations, and what a value of a schema may look like."""

    def __init__(self, document: dict[str, Any], ids: dict[str, int]) -> None:
        self.ids = ids
        self.schemas = document["components"]["schemas"]
        self.operations = [
            (method, path, operation)
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            # They would end or hold up the test's own login: tests/unit/api/test_hostile.py has them.
            if path not in ("/api/login/", "/api/logout/")
        ]

    def known(self, path: str) -> str:
        """The id of something that is there."""
        return str(self.ids.get(path.split("/")[3], 1))

    def bodies(self, operation: dict[str, Any]) -> st.SearchStrategy[bytes | None]:
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            return st.none()
        value = self.values(content["schema"])
        shaped = st.one_of(value, st.lists(value, max_size=3), st.sampled_from(BENT)).map(json.dumps)
        broken = st.sampled_from(
            ["", "{", "[NaN]", '{"a":1,"a":2}', "\ufeff{}", "[" * 50_000, "9" * 5000, "\0"]
        )
        return st.one_of(shaped, shaped, shaped, broken).map(str.encode)

    def values(self, schema: dict[str, Any], depth: int = 0) -> st.SearchStrategy[Any]:
        """Mostly what the schema says, and now and then what it does not."""
        schema = self.schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        parts = [part for name in ("allOf", "oneOf", "anyOf") for part in schema.get(name, [])]
        if parts:
            return st.one_of([self.values(part, depth) for part in parts])
        if "enum" in schema:
            right = st.sampled_from(schema["enum"])
        elif schema.get("type") == "object" and depth < 4:
            right = st.fixed_dictionaries(
                {},
                optional={
                    name: self.values(part, depth + 1)
                    for name, part in schema.get("properties", {}).items()
                    if not part.get("readOnly")
                },
            )
        elif schema.get("type") == "array":
            right = st.lists(self.values(schema["items"], depth + 1), max_size=3)
        else:
            right = {
                "integer": st.integers(-(2**70), 2**70),
                "number": st.floats(),
                "boolean": st.booleans(),
                "string": st.text(max_size=30),
            }.get(schema.get("type", ""), st.just({}))
        return st.one_of(right, right, right, st.sampled_from(BENT))

    def requests(self) -> st.SearchStrategy[tuple[str, str, bytes | None, str]]:
        """Method, path with its query, body and content type."""
        return _requests(self)


@st.composite
def _requests(draw: st.DrawFn, document: Document) -> tuple[str, str, bytes | None, str]:
    method, path, operation = draw(st.sampled_from(document.operations))
    query = []
    for parameter in operation.get("parameters", []):
        known = st.just(document.known(path))
        word = draw(st.one_of(known, known, st.sampled_from(WORDS), st.text(min_size=1, max_size=20)))
        if "/tokens/{" in path and len(word) < 10:
            word = "0"  # and no token that somebody uses
        text = quote(word.encode("utf-8", "surrogatepass"), safe="")
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", text)
        elif parameter["in"] == "query" and draw(st.booleans()):
            query.append(f"{parameter['name']}={text}")
    kind = draw(st.sampled_from([*["application/json"] * 9, "text/plain; charset=x", ""]))
    return method, f"{path}?{'&'.join(query)}", draw(document.bodies(operation)), kind


@pytest.fixture(params=["admin", "user"])
def token(request, stack) -> str:
    """Of who asks."""
    return stack.token if request.param == "admin" else request.getfixturevalue("a_user")


@pytest.fixture
def document(stack, token) -> Iterator[Document]:
    """With a job that has an event, and a schedule; the tokens that requests make go again."""

    def get(path: str) -> Any:
        return stack.api("GET", path, token=token).json()

    def tokens() -> set[int]:
        return {row["id"] for row in get("/tokens/?page_size=200")["results"]}

    before = tokens()
    job = stack.post("/jobs/", {"name": "bent"}, token=token)["id"]
    stack.post(f"/jobs/{job}/events/", [{"counter": 1, "event": "x"}], token=token)
    (event,) = get(f"/jobs/{job}/events/")["results"]
    schedule = stack.post("/schedules/", {"name": "bent"}, token=token)["id"]
    yield Document(get("/schema/"), {"jobs": job, "job_events": event["id"], "schedules": schedule})
    for made in tokens() - before:
        stack.api("DELETE", f"/tokens/{made}/", token=token)


def test_bent_requests(stack, document, token):
    http = requests.Session()
    http.trust_env = False  # a bundle that the environment names would come before ours
    http.verify = stack.ca
    seen: Counter[int] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(document.requests())
    def ask(request):
        method, path, body, kind = request
        answer = http.request(
            method.upper(),
            stack.url + path,
            data=body,
            headers={"Authorization": f"Bearer {token}", "Content-Type": kind},
            timeout=30,
        )
        seen[answer.status_code] += 1
        assert answer.status_code < 500, answer.text

    ask()
    report("bent requests", answers=dict(seen))
    # They come through to what the requests are for.
    assert seen[200] + seen[201] + seen[202] > EXAMPLES // 10
    assert stack.api("GET", "/me/", token=token).status_code == 200

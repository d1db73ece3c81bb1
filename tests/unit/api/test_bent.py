"""What the fuzzing of the OpenAPI document found: each was a 500."""

import json

import pytest

from tests.unit.accounts.test_accounts import Browser

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("field", ["status", "kind"])
def test_half_a_surrogate_that_is_told_of(people, field):
    body = f'{{"name": "x", "{field}": "\\ud800"}}'
    answer = people.client(people.ann).post("/api/v2/jobs/", body, content_type="application/json")
    assert answer.status_code == 400
    assert answer.content.isascii()
    assert answer.json() == {field: ['"\ud800" is not a valid choice.']}


def test_what_is_no_such_thing_is_told_of_in_utf_8(people):
    body = json.dumps({"name": "x", "kind": "\xe9"})
    answer = people.client(people.ann).post("/api/v2/jobs/", body, content_type="application/json")
    assert "\xe9".encode() in answer.content


@pytest.mark.parametrize("path", ["/api/login/", "/api/logout/"])
@pytest.mark.parametrize("charset", ["utf-7", "idna"])
def test_a_form_in_another_charset(people, path, charset):
    browser = Browser()
    browser.http.raise_request_exception = False
    answer = browser.http.post(
        path,
        "username=x",
        f"application/x-www-form-urlencoded; charset={charset}",
        headers={"X-CSRFToken": browser.csrf},
    )
    assert answer.status_code == 400
    assert answer.json() == {"detail": "Bad request: it cannot be read."}


def test_half_a_surrogate_to_go_on_to(people):
    browser = Browser()
    body = '{"next": "/\\ud800"}'
    answer = browser.http.post(
        "/api/logout/", body, "application/json", headers={"X-CSRFToken": browser.csrf}
    )
    assert (answer.status_code, answer["Location"]) == (302, "/")

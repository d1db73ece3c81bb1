"""What a token, or a right, is good for once it is over; and what one user may have at a time."""

from __future__ import annotations

import pytest
import requests

from tests.integration.conftest import Stack
from tests.security.conftest import manage

pytestmark = pytest.mark.stack

TOKENS = 200  # TOKENS_PER_USER
PUBLISH = {"group": "jobs-summary", "payload": {}}


def make(stack: Stack, token: str, **fields: str) -> dict:
    return stack.post("/tokens/", fields, token=token)


def test_a_token_s_children_end_with_it(stack, a_user):
    """Row 8: a token makes one that never ends, and is revoked."""
    parent = make(stack, a_user)
    assert stack.api("POST", "/tokens/", {"scope": "publish"}, token=parent["token"]).status_code == 400
    child = make(stack, parent["token"])
    grandchild = make(stack, child["token"])
    with stack.socket(f"/websocket/?token={grandchild['token']}") as socket:
        assert socket.frame()["accept"]
        assert stack.api("DELETE", f"/tokens/{parent['id']}/", token=a_user).status_code == 204
        assert socket.closed() == 4401
    for token in (parent, child, grandchild):
        assert stack.api("GET", "/me/", token=token["token"]).status_code == 401


def owner(token: str) -> str:
    """Code for whose token it is."""
    return (
        "from carillon.accounts import tokens; from carillon.accounts.models import ApiToken as T\n"
        f"user = T.objects.get(digest=tokens.digest({token!r})).user\n"
        "users = type(user).objects.filter(pk=user.pk)\n"
    )


def test_a_demoted_admin_publishes_no_more(stack, inside, a_user):
    """Row 8: a token with the scope `publish` outlives the right to it. No signal of Django's tells of the
    change: what is stored counts."""
    token = manage(
        inside, f"{owner(a_user)}users.update(is_superuser=True); print(T.issue(user, scope='publish')[1])"
    )
    assert stack.api("POST", "/notifications/", PUBLISH, token=token).status_code == 202
    manage(inside, f"{owner(a_user)}users.update(is_superuser=False)")
    assert stack.api("POST", "/notifications/", PUBLISH, token=token).status_code == 403


def test_tokens_have_an_end(stack, inside, a_user):
    """Row 12: a thousand tokens in five seconds."""
    there = stack.api("GET", "/tokens/", token=a_user).json()["count"]
    manage(inside, f"{owner(a_user)}for _ in range({TOKENS - there - 1}): T.issue(user)")
    answers = [stack.api("POST", "/tokens/", {}, token=a_user) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 429, 429]
    assert f"You have {TOKENS} tokens, and {TOKENS} are allowed" in answers[1].json()["detail"]
    assert answers[1].headers["Retry-After"]


@pytest.mark.parametrize(
    ("method", "path", "more"),
    [
        ("GET", "/api/v2/me/", {"auth": ("a\0b", "x")}),
        ("POST", "/api/logout/", {"json": []}),
        ("POST", "/api/v2/jobs/", {"data": b"[" * 50_000}),
        ("GET", "/api/v2/me/", {"headers": {"Host": "evil.test"}}),
        ("GET", "/api/v2/ping/?a=1", {"headers": {"Content-Type": "text/plain; charset=hex"}}),
        ("GET", "/api/v2/me/", {"headers": {"Cookie": '__Host-awx_sessionid="aaaaaaaa\\000b"'}}),
        ("GET", "/api/v2/me/", {"headers": {"Cookie": 'awx_sessionid="aaaaaaaa\\000b"'}}),
        ("GET", "/websocket/&token=car_x", {}),
    ],
)
def test_what_was_an_error_of_the_server_s(stack, method, path, more):
    """Row 13."""
    answer = requests.request(method, f"{stack.url}{path}", verify=stack.ca, timeout=30, **more)
    assert 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text

"""Logins by an OpenID provider and access tokens of an issuer, on the stack: in, out, and what is tried."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import requests

from dev import config as configuration
from dev import stack as containers
from tests.security.conftest import manage, report, together
from tests.security.provider import CLIENT, Provider, browser, endless, never, query_of, reply
from tests.unit.support.issuer import AUDIENCE

pytestmark = pytest.mark.stack

SERVICES = ("uwsgi", "daphne")
START = "/api/login/oidc/"
SESSION = "awx_sessionid"
HEARD = 1.0 if os.environ.get("CARILLON_LONG") else 5.0
"""Seconds from what ends a login to the end of its sockets: one on a quiet machine (conftest.FLOOR)."""
AGAIN = 60.0
"""Seconds within which an issuer is asked for its keys again: ten, and what a busy machine takes."""


@pytest.fixture(scope="module")
def provider(stack, inside, tmp_path_factory) -> Iterator[Provider]:
    """The stack's uwsgi and daphne are made anew with it, and afterwards without."""
    environ = {
        name.replace("CARILLON_STACK_", "CARILLON_"): value
        for name, value in os.environ.items()
        if name.startswith("CARILLON_STACK_") and name != "CARILLON_STACK_ENV"
    }
    config = configuration.load({**environ, "CARILLON_STATE": str(Path(environ["CARILLON_STATE"]).resolve())})
    # The unit tests' settings, which this process has in its environment, are not the stack's.
    config = replace(config, settings={**config.settings, "CARILLON_ALLOWED_HOSTS": ""})
    folder = tmp_path_factory.mktemp("provider")
    provider = Provider(gateway(f"{config.project}_default"), folder)
    (folder / "bundle.pem").write_text(provider.certificate.read_text() + Path(stack.ca).read_text())
    provider.bundle = str(folder / "bundle.pem")
    place = "/run/provider.pem"
    said = {
        "CARILLON_OIDC_ISSUER": provider.url,
        "CARILLON_OIDC_CLIENT_ID": CLIENT,
        "CARILLON_OIDC_CLIENT_SECRET": "s3cret",
        "CARILLON_JWT_ISSUER": provider.url,
        "CARILLON_JWT_AUDIENCE": AUDIENCE,
        "CARILLON_JWT_KEYS_URL": f"{provider.url}/jwks",
        "CARILLON_IDENTITY_NAME_CLAIM": "sub",
        "CARILLON_IDENTITY_TLS_CA": place,
    }
    more = {"environment": said, "volumes": [f"{provider.certificate}:{place}:ro,z"]}
    override = folder / "compose.json"
    override.write_text(json.dumps({"services": dict.fromkeys(SERVICES, more)}))
    renew = ("up", "--detach", "--no-deps", "--wait", *SERVICES)
    newest = "from django.contrib.auth import get_user_model as m; print(m().objects.latest('pk').pk)"
    before = manage(inside, newest)
    try:
        containers.compose(
            replace(config, compose_files=(*config.compose_files, override)), *renew, seconds=180
        )
        yield provider
        manage(
            inside,
            "from django.contrib.auth import get_user_model as m\n"
            "from carillon.accounts.models import ExternalIdentity as E\n"
            f"users = set(E.objects.filter(issuer={provider.url!r}).values_list('user', flat=True))\n"
            f"m().objects.filter(pk__in=users, pk__gt={before}).delete()",
        )
    finally:
        containers.compose(config, *renew, seconds=180)
        provider.stop()


def gateway(network: str) -> str:
    """Where containers of this network reach us."""
    done = subprocess.run(["docker", "network", "inspect", network], capture_output=True, check=True)
    return json.loads(done.stdout)[0]["IPAM"]["Config"][0]["Gateway"]


# Logins ----------------------------------------------------------------------------------------------------


class Visitor:
    """A browser, and the way that it goes."""

    def __init__(self, stack: Any, provider: Provider) -> None:
        self.stack, self.provider = stack, provider
        self.http = browser(provider.bundle)
        self.subject = f"visitor-{uuid.uuid4().hex[:8]}"

    def begin(self, target: str = "/") -> str:
        answer = self.get(f"{self.stack.url}{START}", params={"next": target})
        assert answer.status_code == 302, answer.text
        return answer.headers["Location"]

    def log_in(self, target: str = "/") -> requests.Response:
        return self.get(self.provider.come_back(self.begin(target), self.subject, self.provider.bundle))

    def get(self, url: str, **more: Any) -> requests.Response:
        return self.http.get(url, allow_redirects=False, timeout=30, **more)

    @property
    def is_in(self) -> bool:
        return self.get(f"{self.stack.url}/api/v2/me/").status_code == 200

    @contextmanager
    def socket(self) -> Iterator[Any]:
        with self.stack.socket("/websocket/", Cookie=f"{SESSION}={self.http.cookies[SESSION]}") as raw:
            assert raw.frame()["accept"]
            yield raw

    def log_out(self) -> requests.Response:
        self.get(f"{self.stack.url}/api/")
        headers = {"X-CSRFToken": self.http.cookies["csrftoken"], "Referer": f"{self.stack.url}/"}
        place = f"{self.stack.url}/api/logout/"
        return self.http.post(place, headers=headers, allow_redirects=False, timeout=30)


@pytest.fixture
def visitor(stack, provider) -> Visitor:
    return Visitor(stack, provider)


def test_in_by_the_provider_and_out_again(stack, provider, visitor):
    answer = visitor.log_in("/#/jobs/7")
    assert (answer.status_code, answer.headers["Location"]) == (302, "/#/jobs/7"), answer.text
    me = visitor.get(f"{stack.url}/api/v2/me/").json()["results"][0]
    assert (me["username"], me["is_superuser"]) == (visitor.subject, False)
    with visitor.socket() as raw, stream(stack, Cookie=f"{SESSION}={visitor.http.cookies[SESSION]}") as ended:
        answer = visitor.log_out()
        begun = time.monotonic()
        assert raw.closed() == 4401
        ended()
        heard = time.monotonic() - begun
    report("logout", seconds=heard)
    assert heard < HEARD
    leaving = answer.headers["Location"]
    assert leaving.startswith(f"{provider.url}/oauth2/end_session?")
    assert query_of(leaving)["post_logout_redirect_uri"] == f"{stack.url}/"
    page = visitor.get(leaving)
    assert page.status_code == 200
    back = visitor.http.post(
        f"{provider.url}/oauth2/end_session/confirm",
        data={"redirect_uri": f"{stack.url}/"}, allow_redirects=False, timeout=10,
    )  # fmt: skip
    assert back.headers["Location"] == f"{stack.url}/"
    assert not visitor.is_in


def test_a_logout_at_the_provider_is_heard(stack, provider, visitor):
    visitor.log_in()
    with visitor.socket() as raw:
        begun = time.monotonic()
        said = {"logout_token": provider.logout_token(visitor.subject)}
        answer = requests.post(
            f"{stack.url}{START}logged_out/", data=said, verify=provider.bundle, timeout=30
        )
        assert answer.status_code == 200, answer.text
        assert raw.closed() == 4401
        heard = time.monotonic() - begun
    report("logout at the provider", seconds=heard)
    assert heard < HEARD
    assert not visitor.is_in


def test_what_is_tried_with_logins(stack, provider, forgotten):
    """Another's answer, one of before, a code that was swapped, and where one is sent afterwards."""
    answers = {}

    def refused(what: str, answer: requests.Response) -> None:
        answers[what] = answer.status_code
        assert SESSION not in answer.cookies, what
        assert answer.status_code == 403, (what, answer.text)

    for target in ("https://evil.test/", "//evil.test/", "/\\evil.test", "javascript:alert(1)"):
        assert Visitor(stack, provider).log_in(target).headers["Location"] == "/", target
    attacker, victim, fresh = (Visitor(stack, provider) for _ in range(3))
    stolen = provider.come_back(attacker.begin(), attacker.subject, provider.bundle)
    refused("another's answer, in no login", victim.get(stolen))
    victim.begin()
    refused("another's answer, in a login", victim.get(stolen))
    mine = provider.come_back(fresh.begin(), fresh.subject, provider.bundle)
    swapped = mine.replace(query_of(mine)["code"], query_of(stolen)["code"])
    # The provider may not hold codes to a verifier: the nonce is for the login that it was asked in.
    refused("another's code in one's own login", fresh.get(swapped))
    again = Visitor(stack, provider)
    back = provider.come_back(again.begin(), again.subject, provider.bundle)
    kept = again.http.cookies.copy()
    assert again.get(back).status_code == 302
    refused("the same answer again", again.get(back))
    again.http.cookies = kept
    refused("the same answer and its cookie again", again.get(back))
    report("logins", answers=answers)


FORGED: dict[str, Callable[..., str]] = {
    "no signature": lambda provider, says: provider.unsigned(**says),
    "the public key as a secret": lambda provider, says: provider.confused(**says),
    "a key that it brings along": lambda provider, says: provider.brings_its_key(**says),
    "another issuer": lambda provider, says: provider.token(**{**says, "iss": "https://evil.test"}),
    "another audience": lambda provider, says: provider.token(**{**says, "aud": "another"}),
    "over": lambda provider, says: provider.token(**{**says, "exp": int(time.time()) - 5}),
    "no key of the issuer's": lambda provider, says: provider.token("none", **says),
}


def test_id_tokens_that_were_forged(stack, provider, forgotten):
    """The token endpoint's answer in an attacker's hands: what is good is let in, nothing else."""

    def log_in(make: Callable[..., str], **more: Any) -> tuple[int, bool]:
        visitor = Visitor(stack, provider)
        location = visitor.begin()
        back = provider.come_back(location, visitor.subject, provider.bundle)
        says = {"aud": CLIENT, "sub": visitor.subject, "nonce": query_of(location)["nonce"], **more}
        provider.answers["/oauth2/token"] = reply({"id_token": make(provider, says), "access_token": "x"})
        try:
            return visitor.get(back).status_code, visitor.is_in
        finally:
            provider.answers.clear()

    def good(provider: Provider, says: dict[str, Any]) -> str:
        return provider.token(**says)

    answers = {what: log_in(make) for what, make in FORGED.items()}
    answers["another login's nonce"] = log_in(good, nonce="another")
    report("forged ID tokens", answers=answers)
    assert set(answers.values()) == {(403, False)}, answers
    assert log_in(good) == (302, True)


# Access tokens ---------------------------------------------------------------------------------------------


@contextmanager
def stream(stack: Any, **headers: str) -> Iterator[Callable[[], None]]:
    """A stream of server-sent events; what it gives waits until the server has ended it."""
    answer = requests.get(
        f"{stack.url}/events/", params={"groups": "jobs:summary"}, headers=headers, verify=stack.ca,
        stream=True, timeout=30,
    )  # fmt: skip
    with answer:
        assert answer.status_code == 200, answer.text
        lines = answer.iter_lines()
        assert next(lines)

        def ended() -> None:
            for _ in lines:
                pass

        yield ended


def by(stack: Any, token: str) -> tuple[int, int, int]:
    """What the API, a socket and a stream say to it."""
    with stack.socket(f"/websocket/?token={token}") as raw:
        socket = 101 if raw.frame()["accept"] else raw.closed()
    headers = {"Authorization": f"Bearer {token}"}
    with requests.get(
        f"{stack.url}/events/?groups=jobs:summary", headers=headers, verify=stack.ca, stream=True, timeout=30
    ) as answer:
        return stack.api("GET", "/me/", token=token).status_code, socket, answer.status_code


def test_an_access_token_is_good_everywhere(stack, provider):
    for key in provider.kinds:
        assert by(stack, provider.token(key)) == (200, 101, 200)
    # It makes none of ours, which would outlive it.
    assert stack.api("POST", "/tokens/", {}, token=provider.token()).status_code == 403


def test_access_tokens_that_were_forged(stack, provider):
    answers = {what: by(stack, make(provider, {})) for what, make in FORGED.items()}
    answers["an ID token"] = by(stack, provider.token(aud=CLIENT, nonce="x", headers={"typ": "JWT"}))
    answers["a logout token"] = by(stack, provider.logout_token("subject-of-tokens"))
    assert set(answers.values()) == {(401, 4401, 401)}, answers


def test_sockets_and_streams_end_with_their_token(stack, provider):
    token = provider.token(exp=(end := int(time.time()) + 4))
    with (
        stack.socket(f"/websocket/?token={token}") as raw,
        stream(stack, Authorization=f"Bearer {token}") as ended,
    ):
        assert raw.closed() == 4401
        late = [time.time() - end]
        ended()
        late.append(time.time() - end)
    report("expiry", seconds=late)
    assert all(0 <= each < HEARD for each in late)
    assert stack.api("GET", "/me/", token=token).status_code == 401


def test_a_key_that_was_withdrawn(stack, provider):
    """Its sockets end as soon as we hear of it: with the answer to whoever comes by a new one."""
    with stack.socket(f"/websocket/?token={provider.token('b')}") as raw:
        assert raw.frame()["accept"]
        del provider.kinds["b"]
        provider.kinds["d"] = ("EC", 2)
        until = time.monotonic() + AGAIN
        asked = len(provider.asked)
        while by(stack, provider.token("d"))[1] != 101:
            assert time.monotonic() < until, "the new key is never asked for"
            time.sleep(0.2)
        assert raw.closed() == 4401
        heard = time.time() - provider.asked[-1]
        assert len(provider.asked) > asked
    report("withdrawn key", seconds=heard)
    assert heard < HEARD


def test_an_account_that_is_switched_off(stack, provider, inside):
    token = provider.token(sub="switched-off")
    with stack.socket(f"/websocket/?token={token}") as raw:
        assert raw.frame()["accept"]
        gone = manage(
            inside,
            "import time; from carillon.accounts.models import ExternalIdentity as E\n"
            "user = E.objects.get(subject='switched-off').user; user.is_active = False; user.save()\n"
            "print(time.time())",
        )
        assert raw.closed() == 4401
        heard = time.time() - float(gone)
    assert by(stack, token) == (401, 4401, 401)
    report("switched off", seconds=heard)
    assert heard < HEARD


# A provider that is slow, huge, or dead --------------------------------------------------------------------


def test_a_provider_that_is_slow_or_huge(stack, provider, ordinary, forgotten):
    """It says nothing, or no end of it. Made-up codes, and tokens with made-up keys, at the API and at
    sockets: nobody else waits for it."""
    codes: set[int] = set()
    turns = cycle((never, endless))
    provider.answers = dict.fromkeys(("/oauth2/token", "/jwks"), lambda *asked: next(turns)(*asked))
    before = len(provider.asked)

    def attack(number: int) -> None:
        token = provider.token("none", headers={"kid": uuid.uuid4().hex})
        if number < 2:
            visitor = Visitor(stack, provider)
            state = query_of(visitor.begin())["state"]
            codes.add(visitor.get(f"{stack.url}{START}callback/?code=x&state={state}").status_code)
        elif number < 4:
            codes.add(stack.api("GET", "/me/", token=token).status_code)
        else:
            with stack.socket(f"/websocket/?token={token}") as raw:
                codes.add(raw.closed())
        time.sleep(0.1)

    try:
        ordinary.hardly_notices(lambda: together(6, attack))
    finally:
        provider.answers.clear()
    asked = len(provider.asked) - before
    report("slow and huge provider", codes=sorted(codes), asked=asked)
    assert codes <= {401, 429, 503, 4401, 1013}
    assert codes & {503, 1013}
    assert stack.api("GET", "/me/", token=provider.token()).status_code == 200


def test_a_provider_that_is_dead(stack, provider, forgotten):
    visitor = Visitor(stack, provider)
    back = provider.come_back(visitor.begin(), visitor.subject, provider.bundle)
    provider.stop()
    try:
        answer = visitor.get(back)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
        assert by(stack, provider.token("a")) == (200, 101, 200), "a key that is known is good meanwhile"
    finally:
        provider.start()
    assert Visitor(stack, provider).log_in().status_code == 302

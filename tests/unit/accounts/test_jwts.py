"""Tokens of an issuer outside: which are believed, and every way in which one is not."""

from __future__ import annotations

import base64
import json
import threading
import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from django.core.exceptions import ImproperlyConfigured

from carillon.accounts import fetch, jwts, kept, keys, tokens
from carillon.process import environment
from tests.unit.support.issuer import (
    AUDIENCE,
    Issuer,
    drip,
    endless,
    never,
    private_key,
    public_jwk,
    reply,
)

ALGORITHMS = ("RS256", "ES256", "EdDSA")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def trust(issuer, clock):
    return jwts.Trust(issuer.url, AUDIENCE, keys.KeySet(issuer.keys_url, clock), ALGORITHMS)


def refused(trust: jwts.Trust, token: str) -> str:
    with pytest.raises(jwts.Refused) as caught:
        trust.verify(token)
    return str(caught.value)


def encoded(part) -> str:
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


# What is believed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a", "b", "c"])
def test_a_good_token(issuer, trust, key):
    exp = int(time.time()) + 300
    claims = trust.verify(issuer.token(key, exp=exp))
    assert claims.who == (issuer.url, "subject-1")
    assert claims.key_id == key
    assert claims.name == "ilse"
    assert claims.expires.timestamp() == exp


def test_an_audience_among_others(issuer, trust):
    assert trust.verify(issuer.token(aud=["another", AUDIENCE])).subject == "subject-1"


def test_static_keys_ask_nobody(issuer):
    trust = jwts.Trust(issuer.url, AUDIENCE, keys.KeySet(issuer.key_set()), ALGORITHMS)
    assert trust.verify(issuer.token()).subject == "subject-1"
    issuer.kinds["new"] = ("RSA", 1)
    assert "a key that its issuer does not have" in refused(trust, issuer.token("new"))
    assert issuer.asked == []


def test_without_a_key_id_the_only_key_that_fits(issuer, trust):
    token = issuer.token(headers={"kid": None})
    assert trust.verify(token).key_id is None
    issuer.kinds["another"] = ("RSA", 1)
    several = jwts.Trust(issuer.url, AUDIENCE, keys.KeySet(issuer.key_set()), ALGORITHMS)
    assert "no kid" in refused(several, token)


# What is not -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"aud": "another"}, "is for another audience"),
        ({"aud": [AUDIENCE, 1]}, "is for another audience"),
        ({"aud": None}, "does not say aud"),
        ({"iss": "https://evil.test"}, "is of another issuer"),
        ({"iss": None}, "does not say iss"),
        ({"exp": None}, "does not say exp"),
        ({"exp": 1}, "has expired"),
        ({"exp": int(time.time()) - 5}, "has expired"),  # within what clocks may differ by: not of `exp`
        ({"exp": "soon"}, "is malformed"),
        ({"exp": str(int(time.time()) + 10**6)}, "has no time at which it ends"),
        ({"exp": float("inf")}, "is malformed"),
        ({"exp": float("nan")}, "is malformed"),
        ({"exp": 10**30}, "has no time at which it ends"),
        ({"exp": [1]}, "is malformed"),
        ({"nbf": int(time.time()) + 10**6}, "is not good yet"),
        ({"iat": int(time.time()) + 10**6}, "is not good yet"),
        ({"sub": None}, "does not say sub"),
        ({"sub": ""}, "has a subject that cannot be stored"),
        ({"sub": "nul\0"}, "has a subject that cannot be stored"),
        ({"sub": "x" * 256}, "has a subject that cannot be stored"),
        ({"cnf": {"jkt": "x"}}, "belongs to a key that a bearer does not show"),
    ],
)
def test_claims_that_are_refused(issuer, trust, more, why):
    assert why in refused(trust, issuer.token(**more))


def test_a_subject_that_is_no_text(issuer, trust):
    token = jwt.api_jws.encode(
        json.dumps(issuer.claims(sub=7)).encode(), private_key("RSA"), "RS256", {"kid": "a", "typ": "JWT"}
    )
    assert "is malformed" in refused(trust, token)


def test_clocks_may_differ_a_little(issuer, trust):
    soon = int(time.time()) + jwts.SKEW - 5
    assert trust.verify(issuer.token(nbf=soon, iat=soon))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", ""])
def test_no_signature_is_none(issuer, trust, algorithm):
    token = f"{encoded({'alg': algorithm, 'kid': 'a'})}.{encoded(issuer.claims())}."
    assert "is not signed by one of RS256, ES256, EdDSA" in refused(trust, token)


@pytest.mark.parametrize("form", ["pem", "der", "jwk", "modulus"])
def test_the_public_key_is_no_shared_secret(issuer, trust, form):
    """What anybody can read cannot prove anything: the oldest mistake with these tokens."""
    import hashlib
    import hmac

    public = private_key("RSA").public_key()
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    secret = {
        "pem": public.public_bytes(serialization.Encoding.PEM, info),
        "der": public.public_bytes(serialization.Encoding.DER, info),
        "jwk": json.dumps(public_jwk("a", "RSA")).encode(),
        "modulus": base64.urlsafe_b64decode(public_jwk("a", "RSA")["n"] + "=="),
    }[form]
    signed = f"{encoded({'alg': 'HS256', 'kid': 'a'})}.{encoded(issuer.claims())}"
    signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    assert "is not signed by one of" in refused(trust, f"{signed}.{encoded(signature)}")


def test_a_set_that_has_a_shared_secret(issuer):
    issuer.kinds = {}
    secret = {"kty": "oct", "kid": "a", "k": encoded(b"s" * 32), "alg": "HS256"}
    assert keys.parse({"keys": [secret]}) == ()


def test_a_key_of_another_type_than_the_algorithm_s(issuer, trust):
    token = issuer.token("b", headers={"kid": "a"})  # signed by b with ES256, and says that it was a
    assert "a key that its issuer does not have" in refused(trust, token)


def test_an_algorithm_that_is_not_on_the_list(issuer, trust):
    assert "is not signed by one of" in refused(trust, issuer.token(algorithm="RS512"))


def test_a_key_is_good_for_its_own_algorithm_alone():
    issuer = Issuer()
    issuer.stop()
    bound = keys.KeySet({"keys": [public_jwk("a", "RSA", alg="RS512")]})
    trust = jwts.Trust(issuer.url, AUDIENCE, bound, ("RS256", "RS512"))
    assert trust.verify(issuer.token(algorithm="RS512"))
    assert "a key that its issuer does not have" in refused(trust, issuer.token(algorithm="RS256"))


def test_a_wrong_signature(issuer, trust):
    head, body, signature = issuer.token().split(".")
    other = encoded(issuer.claims(sub="admin"))
    assert "has a wrong signature" in refused(trust, f"{head}.{other}.{signature}")
    assert "has a wrong signature" in refused(trust, f"{head}.{body}.{encoded(b'x' * 256)}")
    assert "has a wrong signature" in refused(trust, f"{head}.{body}.")


def test_keys_that_the_token_brings_along(issuer, trust):
    """`jku`, `x5u`, `jwk`: the attacker's own key, and where it is."""
    evil = Issuer()
    try:
        evil.kinds = {"evil": ("RSA", 7)}
        headers = {
            "jku": evil.keys_url,
            "x5u": evil.keys_url,
            "jwk": public_jwk("evil", "RSA", 7),
        }
        token = evil.token("evil", headers=headers, iss=issuer.url)
        assert "a key that its issuer does not have" in refused(trust, token)
        assert evil.asked == []
        # With the id of a good one:
        assert "has a wrong signature" in refused(
            trust, evil.token("evil", headers={**headers, "kid": "a"}, iss=issuer.url)
        )
    finally:
        evil.stop()


@pytest.mark.parametrize("id", ["../../../dev/null", "' OR 1=1 --", "x" * 3000, "\0"])
def test_key_ids_are_only_compared(issuer, trust, id):
    assert "a key that its issuer does not have" in refused(trust, issuer.token(headers={"kid": id}))


@pytest.mark.parametrize("kid", [7, ["a"], {"a": 1}, True])
def test_a_key_id_that_is_no_text(issuer, trust, kid):
    token = f"{encoded({'alg': 'RS256', 'kid': kid})}.{encoded(issuer.claims())}.{encoded(b'x')}"
    why = refused(trust, token)
    assert "not understood" in why or "no JSON Web Token" in why


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "secevent+jwt"])
def test_other_tokens_of_the_same_issuer(issuer, trust, typ):
    assert "is of another type" in refused(trust, issuer.token(headers={"typ": typ}))


def test_a_header_that_is_critical(issuer, trust):
    token = issuer.token(headers={"crit": ["exp"], "exp": 1})
    why = refused(trust, token)
    assert "not understood" in why or "no JSON Web Token" in why


@pytest.mark.parametrize(
    "token",
    [
        "..",
        "a.b.c",
        "ä.ö.ü",
        f"{encoded(b'[' * 4000)}.e30.x",
        f"{encoded(b'{}')}.e30.x",
        f"{encoded(b'null')}.e30.x",
        f"{encoded({'alg': ['RS256']})}.e30.x",
        f"{encoded({'alg': {'a': 1}})}.e30.x",
        f"{encoded({'alg': 'RS256', 'kid': 'a'})}.{encoded(b'[' * 4000)}.{encoded(b'x' * 256)}",
        "\ud800.\ud800.\ud800",
    ],
)
def test_nonsense(trust, token):
    assert refused(trust, token)


@pytest.mark.parametrize("body", [b"[]", b"null", b"[" * 4000, b'{"exp": ' + b"9" * 5000 + b"}", b"\xff"])
def test_nonsense_that_the_issuer_has_signed(trust, body):
    signed = jwt.api_jws.encode(body, private_key("RSA"), "RS256", {"kid": "a", "typ": "JWT"})
    assert "is malformed" in refused(trust, signed)


def test_a_token_that_is_too_long_is_not_even_read(issuer, trust):
    token = issuer.token(filler="x" * tokens.LONGEST)
    assert refused(trust, token) == "is longer than 8192 bytes"
    assert issuer.asked == []


def test_a_refusal_has_nothing_of_the_token(issuer, trust):
    token = issuer.token(aud="another")
    assert not any(part in refused(trust, token) for part in token.split("."))


# Keys ------------------------------------------------------------------------------------------------------


def test_keys_are_fetched_once(issuer, trust):
    for _ in range(5):
        trust.verify(issuer.token("a"))
        trust.verify(issuer.token("b"))
    assert issuer.asked == ["/keys"]


def test_a_new_key_is_fetched_when_its_first_token_comes(issuer, trust, clock):
    trust.verify(issuer.token())
    issuer.kinds["new"] = ("RSA", 1)
    clock.now += kept.AGAIN
    assert trust.verify(issuer.token("new")).key_id == "new"
    assert len(issuer.asked) == 2


def test_a_flood_of_ids_that_were_made_up_is_no_flood_of_requests(issuer, trust, clock):
    trust.verify(issuer.token())
    for number in range(200):
        clock.now += 0.1
        assert "does not have" in refused(trust, issuer.token(headers={"kid": f"made-up-{number}"}))
        assert trust.verify(issuer.token())
    assert len(issuer.asked) == 1 + 2, "one in ten seconds, of twenty"


def test_a_flood_from_many_threads_asks_once_and_holds_two(issuer, clock):
    """A server has few threads: two of them may wait for an issuer, and a good token waits for none."""
    trust = jwts.Trust(issuer.url, AUDIENCE, keys.KeySet(issuer.keys_url, clock), ALGORITHMS)
    trust.verify(issuer.token())
    clock.now += kept.AGAIN
    go_on = threading.Event()

    def slow(request):
        assert go_on.wait(30)
        reply(request, issuer.key_set())

    issuer.answer = slow
    outcomes: list[str] = []

    def ask() -> None:
        try:
            trust.verify(issuer.token(headers={"kid": "made-up"}))
        except (jwts.Refused, kept.Away) as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    _until(lambda: len(outcomes) == 8)
    assert outcomes == ["Away"] * 8
    assert trust.verify(issuer.token()), "one that is good waits for nobody"
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert sorted(outcomes) == ["Away"] * 8 + ["Refused"] * 2
    assert len(issuer.asked) == 2


def _until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it does not come about"
        time.sleep(0.01)


def test_the_keys_are_looked_at_again_and_one_that_was_withdrawn_is_none(issuer, trust, clock):
    trust.verify(issuer.token("a"))
    del issuer.kinds["a"]
    clock.now += kept.FRESH
    assert trust.keys.stale
    trust.verify(issuer.token("b"))  # nobody waits for it
    _until(lambda: len(issuer.asked) == 2 and not trust.keys.has("a"))
    issuer.kinds["a"] = ("RSA", 0)
    assert "does not have" in refused(trust, issuer.token("a"))


def test_an_issuer_that_is_away_for_a_while_is_believed_and_not_for_ever(issuer, trust, clock):
    trust.verify(issuer.token())
    issuer.answer = lambda request: reply(request, {}, 503)
    clock.now += kept.KEPT - 1
    assert trust.verify(issuer.token())
    clock.now += kept.AGAIN
    _until(lambda: trust.keys.stale)  # the answer to what nobody waited for is there
    with pytest.raises(kept.Away, match="answers with 503"):
        trust.verify(issuer.token())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (never, "does not answer within"),
        (drip, "does not answer within"),
        (endless, "more than 256 KiB"),
        (lambda request: reply(request, {}, 500), "answers with 500"),
        (lambda request: reply(request, b"<html>"), "no JSON object"),
        (lambda request: reply(request, b"[" * 100_000), "no JSON object"),
        (lambda request: reply(request, ["keys"]), "no JSON object"),
        (lambda request: reply(request, {"no": "keys"}), "no list `keys`"),
        (lambda request: request.connection.shutdown(2), "fails: "),
    ],
)
def test_an_issuer_whose_answer_is_none(issuer, trust, clock, monkeypatch, caplog, answer, why):
    if answer in (never, drip):
        monkeypatch.setattr(fetch, "SECONDS", 0.5)
    issuer.answer = answer
    token = issuer.token()
    begun = time.monotonic()
    with pytest.raises(kept.Away) as caught:
        trust.verify(token)
    assert why in str(caught.value)
    assert time.monotonic() - begun < 10, "what drips would take thirty seconds"
    with pytest.raises(kept.Away):
        trust.verify(token)
    assert len(issuer.asked) == 1, "it is not asked again at once"
    assert token not in caplog.text
    monkeypatch.undo()
    issuer.answer = None
    clock.now += kept.AGAIN
    assert trust.verify(token)


def test_a_redirect_is_not_followed(issuer, trust):
    def elsewhere(request):
        request.send_response(302)
        request.send_header("Location", f"{issuer.url}/other")
        request.end_headers()

    issuer.answer = elsewhere
    with pytest.raises(kept.Away, match="answers with 302"):
        trust.verify(issuer.token())
    assert issuer.asked == ["/keys"]


def test_nobody_is_asked_over_plain_http_but_this_machine():
    with pytest.raises(fetch.Unreachable, match="plain HTTP"):
        fetch.get("http://issuer.test/keys")


def test_nobody_listens(trust, issuer):
    issuer.stop()
    with pytest.raises(kept.Away, match="ConnectionRefusedError"):
        trust.verify(issuer.token())


def test_keys_that_are_no_good_are_left_out():
    good = public_jwk("good", "RSA")
    private = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(private_key("RSA")))
    found = keys.parse(
        {
            "keys": [
                good,
                {**private, "kid": "private"},
                public_jwk("weak", "RSA1024"),
                {**good, "kid": "for-encryption", "use": "enc"},
                {**good, "kid": "foreign", "alg": "ES256"},
                {**good, "kid": 7},
                {"kty": "RSA", "kid": "broken", "n": "!", "e": "AQAB"},
                {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AA", "y": "AA"},
                {"kty": ["RSA"]},
                "nonsense",
                None,
            ]
        }
    )
    assert [key.id for key in found] == ["good"]


def test_a_set_has_an_end():
    assert len(keys.parse({"keys": [public_jwk(str(number), "OKP") for number in range(150)]})) == keys.MOST


# Settings --------------------------------------------------------------------------------------------------

GOOD = {"JWT_ISSUER": "https://issuer.test", "JWT_AUDIENCE": "us", "JWT_KEYS": "https://issuer.test/keys"}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"JWT_ALGORITHMS": ["RS256", "HS256"]}, "HS256 is none with a public key"),
        ({"JWT_ALGORITHMS": ["none"]}, "none is none with a public key"),
        ({"JWT_ALGORITHMS": []}, "needs JWT_AUDIENCE, JWT_KEYS and JWT_ALGORITHMS"),
        ({"JWT_AUDIENCE": None}, "needs JWT_AUDIENCE"),
        ({"JWT_KEYS": None}, "needs JWT_AUDIENCE"),
        ({"JWT_KEYS": {"keys": []}}, "no key that is good for signatures"),
        ({"JWT_KEYS": {"key": 1}}, "no set of keys"),
        ({"OIDC_ISSUER": "https://provider.test"}, "needs OIDC_CLIENT_ID"),
        ({"IDENTITY_USERS": "all"}, "neither 'create' nor 'known'"),
    ],
)
def test_settings_that_cannot_be(settings, more, why):
    settings.CARILLON = {**settings.CARILLON, **GOOD, **more}
    with pytest.raises(ImproperlyConfigured, match=why):
        jwts.check_settings()


def test_settings_that_can_be(settings, monkeypatch):
    jwts.check_settings()
    settings.CARILLON = {**settings.CARILLON, **GOOD}
    jwts.check_settings()
    monkeypatch.setattr(jwts, "jwt", None)
    with pytest.raises(ImproperlyConfigured, match=r"install django-carillon\[oidc\]"):
        jwts.check_settings()


def test_the_environment_knows_the_same_algorithms():
    assert tuple(keys.FITS) == environment.ALGORITHMS

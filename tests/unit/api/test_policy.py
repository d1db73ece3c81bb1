"""The project's own Content-Security-Policy."""

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import RequestFactory

from carillon.api import policy

HEADER = "Content-Security-Policy"


@pytest.fixture
def say(settings):
    def say(value):
        settings.CARILLON = {**settings.CARILLON, "CONTENT_SECURITY_POLICY": value}

    return say


def answer(path="/", **headers):
    return policy.PolicyMiddleware(lambda request: HttpResponse(headers=headers))(RequestFactory().get(path))


def test_without_one_nginx_has_its_own(client):
    assert HEADER not in client.get("/api/")


def test_it_is_in_every_answer(client, say):
    say({"default-src": "'self'", "script-src": "'self' 'unsafe-inline' https://cdn.example.org:8443"})
    expected = "default-src 'self'; script-src 'self' 'unsafe-inline' https://cdn.example.org:8443"
    assert client.get("/api/")[HEADER] == expected


def test_a_view_s_own_stays(say):
    say({"default-src": "'self'"})
    assert answer(**{HEADER: "default-src 'none'"})[HEADER] == "default-src 'none'"


def test_nobody_keeps_what_the_api_says():
    assert answer("/api/v2/me/")["Cache-Control"] == "no-store"
    assert answer("/api/v2/me/", **{"Cache-Control": "max-age=60"})["Cache-Control"] == "max-age=60"
    assert "Cache-Control" not in answer("/page/")


def test_a_directive_without_sources(say):
    say({"default-src": "'self'", "upgrade-insecure-requests": ""})
    assert policy.text() == "default-src 'self'; upgrade-insecure-requests"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("default-src 'self'", "must name directives"),
        ({}, "must name directives"),
        ({"script": "'self'"}, "'script' is no directive: there are base-uri"),
        ({"script-src": ["'self'"]}, "is no list of sources"),
        ({"script-src": "'self'; object-src *"}, "is no list of sources"),
        ({"script-src": "'self', *"}, "is no list of sources"),
        ({"script-src": "'self'\nSet-Cookie: a=b"}, "is no list of sources"),
    ],
)
def test_what_cannot_be_is_refused_in_words(say, value, said):
    say(value)
    with pytest.raises(ImproperlyConfigured, match=said):
        policy.text()

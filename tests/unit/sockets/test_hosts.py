"""Which names a server answers to, on its sockets as in its API."""

import pytest

from carillon.sockets.authentication import _is_ours


@pytest.mark.parametrize(
    ("allowed", "debug", "host", "ours"),
    [
        (["bells.example.org"], False, "bells.example.org:8443", True),
        (["bells.example.org"], False, "BELLS.example.org", True),
        (["bells.example.org"], True, "localhost", False),
        ([".example.org"], False, "a.example.org", True),
        (["*"], False, "anything", True),
        ([], False, "localhost", False),
        ([], True, "localhost:8051", True),  # as Django has it in development
        ([], True, "[::1]:8051", True),
        ([], True, "bells.example.org", False),
        (["*"], False, "no/name", False),
    ],
)
def test_a_name_is_ours_as_django_has_it(settings, allowed, debug, host, ours):
    settings.ALLOWED_HOSTS, settings.DEBUG = allowed, debug
    assert _is_ours(host) == ours

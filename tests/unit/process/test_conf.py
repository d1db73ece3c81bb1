"""`CARILLON = {…}`: defaults, overrides, and names that are none."""

from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from carillon.conf import DEFAULTS, check, conf

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_what_is_not_said_is_the_default(settings):
    settings.CARILLON = {"WINDOW_BYTES": 5}
    assert (5, DEFAULTS["DRAIN_SECONDS"]) == (conf.WINDOW_BYTES, conf.DRAIN_SECONDS)
    del settings.CARILLON
    assert DEFAULTS["WINDOW_BYTES"] == conf.WINDOW_BYTES


def test_a_name_that_is_none_is_said(settings):
    check()
    settings.CARILLON = {"WINDOW_BYTE": 5}
    with pytest.raises(ImproperlyConfigured, match="WINDOW_BYTE"):
        check()
    with pytest.raises(AttributeError):
        conf.WINDOW_BYTE  # noqa: B018


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("WINDOW_BYTES", "64", "must be a whole number, as 67108864 is, and not '64'"),
        ("WINDOW_BYTES", True, "must be a whole number"),
        ("WINDOW_BYTES", None, "must be a whole number"),
        ("RESUME_SECONDS", "30", "must be a number"),
        ("POSITION_PREFIXES", "/api/", "must be a list"),
        ("QUOTAS", [1], "must be a dictionary"),
        ("JWT_SCOPE", 1, "must be a text"),
        ("DEBUG_PAGE", 1, "must be True or False"),
    ],
)
def test_a_value_of_another_kind_is_said(settings, name, value, words):
    settings.CARILLON = {name: value}
    with pytest.raises(ImproperlyConfigured, match=f"^CARILLON: {name} {words}.*: correct it in settings.py"):
        check()


def test_values_of_the_same_kind(settings):
    settings.CARILLON = {
        **{"RESUME_SECONDS": 30, "POSITION_PREFIXES": ["/"], "STREAM": None, "QUOTAS": {}},
        **{"JWT_ISSUER": "https://id.test", "KEEP_JOBS_DAYS": None, "KEEP_TOKENS_DAYS": 0},
    }
    check()


def test_the_page_lists_them_all():
    _, _, part = PAGE.read_text().partition("## `CARILLON = {…}`")
    named = [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]
    assert named == list(DEFAULTS)

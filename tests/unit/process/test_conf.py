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


def test_the_page_lists_them_all():
    _, _, part = PAGE.read_text().partition("## `CARILLON = {…}`")
    named = [line.split("`")[1] for line in part.splitlines() if line.startswith("| `")]
    assert named == list(DEFAULTS)

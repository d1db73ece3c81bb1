"""axe-core on every view of the page, at three sizes, light and dark."""

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.test_page import PLACES, show, wordy_job  # noqa: F401

SIZES = [(390, 844), (820, 1180), (1440, 900)]


def findings(page):
    """The rules that the page breaks, each with the first elements that do."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {[node['html'][:120] for node in one['nodes'][:3]]}" for one in found]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("place", PLACES)
def test_axe_finds_nothing(fake, open_page, wordy_job, place, theme):  # noqa: F811
    watched = open_page(color_scheme=theme)
    show(fake, watched, place, wordy_job)
    found = []
    for width, height in SIZES:
        watched.page.set_viewport_size({"width": width, "height": height})
        found += [f"{width} x {height}: {what}" for what in findings(watched.page)]
    assert found == [], "\n".join(found)


def test_axe_finds_a_button_without_a_name(fake, open_page, wordy_job):  # noqa: F811
    watched = open_page()
    show(fake, watched, "list", wordy_job)
    watched.page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert [what for what in findings(watched.page) if what.startswith("button-name: ")]

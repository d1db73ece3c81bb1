"""axe-core on every view of the page, at three sizes, light and dark. From npm, by its lock in `axe/`."""

import shutil
import subprocess

import pytest

from tests.browser.conftest import HERE, missing
from tests.browser.test_page import PLACES, show, wordy_job  # noqa: F401

SIZES = [(390, 844), (820, 1180), (1440, 900)]
# Each finding: the rule, and the first elements that break it.
RUN = """
async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
  .map(({ id, nodes }) => `${id}: ${nodes.slice(0, 3).map((node) => node.html.slice(0, 120)).join(" | ")}`)
"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    if shutil.which("npm") is None:
        missing("npm is not there: apt-get install npm")
    folder = tmp_path_factory.mktemp("axe")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / "axe" / name, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(command, cwd=folder, check=True, timeout=240)
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


def findings(page, axe):
    """What axe finds on the page as it is. `evaluate` is not held to the page's Content-Security-Policy."""
    page.evaluate(axe)
    return page.evaluate(RUN)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("place", PLACES)
def test_axe_finds_nothing(fake, open_page, wordy_job, axe, place, theme):  # noqa: F811
    watched = open_page(color_scheme=theme)
    show(fake, watched, place, wordy_job)
    found = []
    for width, height in SIZES:
        watched.page.set_viewport_size({"width": width, "height": height})
        found += [f"{width} x {height}: {what}" for what in findings(watched.page, axe)]
    assert found == [], "\n".join(found)


def test_axe_finds_a_button_without_a_name(fake, open_page, wordy_job, axe):  # noqa: F811
    watched = open_page()
    show(fake, watched, "list", wordy_job)
    watched.page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert [what for what in findings(watched.page, axe) if what.startswith("button-name: ")]

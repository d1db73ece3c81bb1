"""The browser of the page's tests, for the page below a prefix."""

from tests.browser.conftest import browser, open_page

__all__ = ["browser", "open_page"]

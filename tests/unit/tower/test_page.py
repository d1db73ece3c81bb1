"""The page as it is served: what the CSP demands of it, and that hashed modules find each other."""

import re
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest
from django.contrib.staticfiles.finders import find
from django.core.management import call_command
from django.test import Client, override_settings

STATIC = Path(find("tower/app.js")).parent
CLIENT = Path(find("carillon/carillon.js"))
SPECIFIER = re.compile(r"""(?:from|import)\s*\(?\s*["']([^"']+)["']""")


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.inline = ""
        self._in_code = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in_code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._in_code = False

    def handle_data(self, data):
        if self._in_code:
            self.inline += data.strip()


@pytest.fixture
def response():
    return Client().get("/")


@pytest.fixture
def page(response):
    return Page(response.content.decode())


def test_it_is_served_to_anyone_and_gives_the_cookie_that_a_login_needs(response):
    assert response.status_code == 200
    assert response.cookies["csrftoken"].value
    assert "no-store" in response["Cache-Control"]


def test_it_only_answers_reading():
    assert Client().post("/").status_code == 405


def test_nothing_in_it_is_inline(page):
    assert page.inline == ""
    names = {name for _, attrs in page.tags for name in attrs}
    assert "style" not in names
    assert not [name for name in names if name.startswith("on")]


def test_every_file_that_it_names_exists_and_is_its_own(page):
    named = [
        attrs.get("src") or attrs.get("href") for tag, attrs in page.tags if tag in ("script", "link", "img")
    ]
    assert len(named) > 10
    for address in named:
        assert address.startswith(("/static/tower/", "/static/carillon/")), address
        assert find(address.removeprefix("/static/")), address


def test_every_module_is_preloaded_once(page):
    named = [
        attrs["href"] for tag, attrs in page.tags if tag == "link" and attrs.get("rel") == "modulepreload"
    ]
    named += [attrs["src"] for tag, attrs in page.tags if tag == "script"]
    there = {f"/static/tower/{path.relative_to(STATIC)}" for path in STATIC.rglob("*.js")}
    assert sorted(there | {"/static/carillon/carillon.js"}) == sorted(named)


def test_no_module_makes_markup_from_text():
    modules = [CLIENT, *STATIC.rglob("*.js")]
    assert modules
    for path in modules:
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function",
            path.read_text(),
        )
        assert not found, f"{path.name}: {found}"


def test_collected_modules_name_each_other_by_hash(tmp_path):
    storages = {"staticfiles": {"BACKEND": "carillon.api.static_storage.HashedStorage"}}
    with override_settings(STATIC_ROOT=str(tmp_path), STORAGES=storages):
        call_command("collectstatic", verbosity=0, interactive=False)
        page = Page(Client().get("/").content.decode())
    entry = next(attrs["src"] for tag, attrs in page.tags if attrs.get("type") == "module")
    todo, seen = [tmp_path / entry.removeprefix("/static/")], set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        assert re.search(r"\.[0-9a-f]{12}\.js$", path.name), f"not hashed: {path.name}"
        for specifier in SPECIFIER.findall(path.read_text()):
            target = (
                tmp_path / specifier.removeprefix("/static/")
                if specifier.startswith("/static/")
                else (path.parent / specifier).resolve()
            )
            assert target.is_file(), f"{path.name} names {specifier}, which is not there"
            todo.append(target)
    # The client and all but the classic script of the theme.
    assert len(seen) == len(list(STATIC.rglob("*.js")))


def test_the_fonts_are_those_that_their_page_says():
    folder = STATIC / "fonts"
    said = dict(re.findall(r"^ {4}([0-9a-f]{64})  (\S+)$", (folder / "README.md").read_text(), re.M))
    found = {sha256(path.read_bytes()).hexdigest(): path.name for path in folder.glob("*.woff2")}
    assert said == found
    assert set(re.findall(r'url\("fonts/(.+?)"\)', (STATIC / "page.css").read_text())) == set(found.values())

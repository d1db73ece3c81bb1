"""The documentation as a site: `make docs`. The pages are those of the repository, as they are.

Sphinx, because it names every link and anchor that leads nowhere, searches without a server and is kept
well; furo, because a reader's browser asks no other host for it. docs/README.md says which pages there are,
in which order: the navigation is made from its lists.
"""

import re
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parents[2]
CONTENTS = "docs/README"

project = "Carillon"
copyright = "the Carillon maintainers, Apache License 2.0"
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
root_doc = "README"
include_patterns = ["*.md", "docs/**", "src/*/*.md", "ansible/**.md", "nginx/*.md", "release/npm/*.md"]
exclude_patterns = [".*", "src/*/static", "ansible/collections", "docs/site", "tests"]
extensions = ["myst_parser", "diagrams"]
myst_heading_anchors = 4
nitpicky = True
# A role's page is behind a link; that the contents list all of docs/ is a unit test's to see.
suppress_warnings = ["toc.not_included"]
html_theme = "furo"
html_title = f"Carillon {release}"
html_extra_path = ["index.html"]
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False


def setup(app):
    app.connect("source-read", _navigation)


def _navigation(app, name, source):
    """Behind the first page, the sections of the contents with their pages."""
    if name != root_doc:
        return
    contents = app.env.doc2path(CONTENTS).read_text()
    for part in contents.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        pages = [page for page in re.findall(r"\]\(([\w/.-]+)\.md\)", text) if not page.startswith("../")]
        entries = "\n".join(f"docs/{page}" for page in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{entries}\n```\n"

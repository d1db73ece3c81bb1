"""Every package that runs has a licence that whoever deploys Carillon may accept: the list is here."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from release import sbom

ROOT = Path(__file__).parents[3]
ALLOWED = {
    *("Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0"),
    *("MPL-2.0", "PSF-2.0", "ZPL-2.1"),
    "TCL",  # ujson: as BSD
    "LGPL-3.0-only",  # psycopg: used as a library, unchanged
}  # fmt: skip
# Programs of their own: nothing of Carillon's is linked with them.
PROGRAMS = {"pyuwsgi": "GPL", "supervisor": "BSD-derived"}
WORDS = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD",
    "bsd 3-clause": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}


def licences(name):
    """What the package says of itself: an SPDX expression, a word, or its classifiers."""
    said = metadata.metadata(name)
    text = said["License-Expression"] or said["License"] or ""
    if not text or len(text) > 100:  # the whole text of it
        text = " AND ".join(
            each.rpartition(" :: ")[2]
            for each in said.get_all("Classifier") or []
            if each.startswith("License :: ")
        )
    return {WORDS.get(each.lower(), each) for each in re.split(r" (?:AND|OR) ", text)}


@pytest.mark.parametrize("name", sbom.parse_lock((ROOT / "requirements/app.txt").read_text()))
def test_a_licence_is_allowed(name):
    try:
        found = licences(name)
    except metadata.PackageNotFoundError:
        pytest.skip("not for this Python or system")
    if name in PROGRAMS:
        assert all(PROGRAMS[name] in each for each in found)
    else:
        assert found
        assert found <= ALLOWED, f"{name}: {found}"

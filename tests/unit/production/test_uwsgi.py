"""uWSGI reads uwsgi.ini, strictly: a setting that it does not know is an error, not one that does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

INI = Path(__file__).resolve().parents[3] / "supervisord/uwsgi.ini"
UWSGI = Path(sys.executable).with_name("uwsgi")


def read(ini: Path) -> subprocess.CompletedProcess[str]:
    """All that uWSGI does up to the application, which is another here: there is none of that name."""
    return subprocess.run(
        [UWSGI, "--strict", "--ini", ini, "--socket", "127.0.0.1:0", "--module", "no_such_application"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_uwsgi_knows_every_setting():
    said = read(INI)
    assert "[strict-mode]" not in said.stderr, said.stderr
    assert "No module named 'no_such_application'" in said.stderr  # it came as far as that
    assert said.returncode == 22


def test_a_misspelt_one_is_seen(tmp_path):
    (tmp_path / "uwsgi.ini").write_text(INI.read_text() + "harakiry = 5\n")
    said = read(tmp_path / "uwsgi.ini")
    assert "[strict-mode] unknown config directive: harakiry" in said.stderr
    assert said.returncode != 0

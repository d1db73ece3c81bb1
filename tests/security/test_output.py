"""What a line of a job's output can do to whoever looks at it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

STEERING = (
    "\x1b]52;c;ZXZpbA==\x07"  # the clipboard
    "\x1b]0;a title\x1b\\"
    "\x1b[6n\x1b[c"  # questions, which the terminal answers as if it had been typed
    "\x1b[2J\x1b[?1049h\x1b[8mhidden\x9b6n\x90q\x9c\x08\x7f"
)


@pytest.mark.parametrize("what", ["`${'\\r'.repeat(n)}x`", "'x\\r'.repeat(n)", "`\\x1b[${'0;'.repeat(n)}`"])
def test_the_page_takes_any_line_in_its_stride(what):
    """Row 6: what froze the page for half a minute at a quarter of this."""
    node = shutil.which("node")
    assert node, "node is not installed: apt-get install nodejs (20.19 or later)"
    module = (ROOT / "src/tower/static/tower/ansi.js").as_uri()
    code = f"const n = 2 ** 20; const {{ parse }} = await import('{module}'); parse({what});"
    done = subprocess.run(
        [node, "--input-type=module", "--eval", f"{code} console.log('drawn')"],
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.stdout == "drawn\n", done.stderr


@pytest.mark.stack
@pytest.mark.parametrize("colours", [(), ("--color", "never"), ("--color", "always")])
def test_output_does_not_steer_a_terminal(stack, colours):
    """Row 7: the clipboard, titles and questions stay out; colours come through, if they are wanted."""
    job = stack.new_job()["id"]
    stack.post(
        f"/jobs/{job}/events/", {"counter": 1, "event": "verbose", "stdout": f"a{STEERING}b \x1b[31mred"}
    )
    for status in ("running", "successful"):
        assert stack.api("PATCH", f"/jobs/{job}/", {"status": status}).status_code == 200
    done = subprocess.run(
        [sys.executable, "-m", "carillon.client", "output", *colours, str(job)],
        capture_output=True, timeout=60, cwd=ROOT,
        env={
            **os.environ, "PYTHONPATH": "src", "CARILLON_URL": stack.url, "CARILLON_TOKEN": stack.token,
            "CARILLON_CA_CERT": stack.ca,
        },
    )  # fmt: skip
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert re.sub("\x1b\\[[0-9;]*m", "", text) == "ahiddenb red\n"
    assert ("\x1b[31m" in text) == (colours != ("--color", "never"))

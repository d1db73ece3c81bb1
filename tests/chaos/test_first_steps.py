"""docs/how-to/first-steps.md is what a newcomer types: its commands do what the page says, in their order."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.chaos.site import Site

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/first-steps.md"
STEPS = ("make dev", ". .dev/env", "JOB=$(", "make watch", "docker kill", "docker start")


@pytest.fixture
def site():
    found = Site.from_environment()
    if found is None:
        pytest.skip("needs a stack: make test")
    found.await_serving()
    yield found
    found.start("runworker")
    found.await_serving()


def test_the_commands_do_what_the_page_says(site):
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)
    assert [block.startswith(step) for block, step in zip(blocks, STEPS, strict=True)] == [True] * len(STEPS)
    _, environment, report, watch, kill, start = blocks
    file = Path(os.environ["CARILLON_STACK_ENV"])
    environ = {**os.environ, "CARILLON_STATE": str(file.parent), "CARILLON_PROJECT": site.project}

    def here(commands: str) -> str:
        commands = commands.replace(". .dev/env", f". {file}")
        return commands.replace("docker kill carillon-", f"docker kill {site.project}-").replace(
            "docker start carillon-", f"docker start {site.project}-"
        )

    def typed(*commands: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", here("".join(commands))],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    job = typed(environment, report, 'echo "job $JOB"').split()[-1]
    assert job.isdecimal()
    heard: list[str] = []
    watching = subprocess.Popen(
        ["bash", "-c", f"exec {watch.strip().replace('job_events:1', f'job_events:{job}')}"],
        cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    listening = threading.Event()

    def listen() -> None:
        assert watching.stdout is not None
        for line in watching.stdout:
            heard.append(line)
            listening.set()

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        assert listening.wait(60), "make watch says nothing"
        site.await_connections(1, f"job_events-{job}")
        typed(environment, f"JOB={job}\n", kill)
        typed(environment, f"JOB={job}\n", start)
        deadline = time.monotonic() + 60
        while not any("successful" in line for line in heard):
            assert time.monotonic() < deadline, heard
            time.sleep(0.1)
    finally:
        os.killpg(watching.pid, signal.SIGTERM)
        watching.wait(15)
        reader.join(15)
    text = "".join(heard)
    assert text.count("#2 web2: ok: Ring") == 1, text
    assert text.index("#2 web2") < text.index("successful"), text

"""`runtasks` as a process with a broker: each task once, whoever ends, and none is lost."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.infra.stack import wait
from tests.integration.asgi_amqp.broker import Broker

pytestmark = pytest.mark.broker
ROOT = Path(__file__).parents[3]
SITE = Path(__file__).parent / "site"
SECONDS = 60


@pytest.fixture(scope="module")
def broker():
    with Broker() as broker:
        yield broker


class Site:
    """The project of the folder `site`, with a database and a queue of one test's own."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self.lines = folder / "lines"
        self.lines.touch()
        self.log = folder / "log"
        self.environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}/src{os.pathsep}{SITE}",
            "DJANGO_SETTINGS_MODULE": "settings",
            "SITE_DATABASE": str(folder / "db.sqlite3"),
            "SITE_BROKER": broker.url,
            "SITE_PREFIX": f"t{secrets.token_hex(4)}",
            "SITE_LINES": str(self.lines),
        }
        self._opened = ExitStack()
        self.do("from django.core.management import call_command", "call_command('migrate', verbosity=0)")

    def do(self, *lines: str) -> str:
        """What these lines of Python print in the project."""
        code = "\n".join(("import django", "django.setup()", "from datetime import timedelta",
                          "from django.utils import timezone", "from carillon.tasks.models import QueuedTask",
                          "from work import step", *lines))  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code], env=self.environ, capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, *options: str) -> subprocess.Popen:
        log = self._opened.enter_context(self.log.open("a"))
        process = subprocess.Popen(
            [sys.executable, str(SITE / "run.py"), *options], env=self.environ, stdout=log, stderr=log
        )
        self._opened.callback(process.wait)
        self._opened.callback(process.kill)
        return process

    def close(self) -> None:
        self._opened.close()
        print(self.log.read_text() if self.log.exists() else "")

    def noted(self) -> Counter:
        return Counter(self.lines.read_text().splitlines())

    def statuses(self) -> Counter:
        said = self.do("print(*QueuedTask.objects.values_list('status', flat=True))")
        return Counter(said.split())


@pytest.fixture
def site(tmp_path, broker):
    site = Site(tmp_path, broker)
    try:
        yield site
    finally:
        site.close()


def until(what, condition):
    wait(what, condition, SECONDS)


def test_many_tasks_and_two_processes_each_task_once(site):
    site.start()
    site.start()
    site.do(
        "for number in range(200): step.using(queue_name=('default', 'mail')[number % 2]).enqueue(number)"
    )
    until("all have ended", lambda: sum(site.noted().values()) >= 400)
    until("all are kept", lambda: site.statuses() == {"SUCCESSFUL": 200})
    assert set(site.noted().values()) == {1}


def test_a_queue_is_run_by_whom_is_told_so(site):
    site.start("--queue", "mail")
    site.do("step.enqueue(1)", "step.using(queue_name='mail').enqueue(2)")
    until("that of its queue has ended", lambda: "end 2" in site.noted())
    assert "begin 1" not in site.noted()


def test_a_task_waits_for_its_time(site):
    site.start()
    site.do("step.using(run_after=timezone.now() + timedelta(seconds=4)).enqueue(1)")
    begun = time.monotonic()
    until("it has ended", lambda: "end 1" in site.noted())
    assert time.monotonic() - begun > 2


def test_a_worker_that_is_killed_leaves_its_tasks_to_others(site):
    first = site.start()
    site.do("step.enqueue(1, seconds=4)")
    until("it has begun", lambda: "begin 1" in site.noted())
    first.kill()
    site.start()
    until("it has ended", lambda: "end 1" in site.noted())
    assert site.noted() == {"begin 1": 2, "end 1": 1}
    assert site.do("print(len(QueuedTask.objects.get().workers))") == "2"


def test_term_waits_for_what_runs_and_begins_nothing(site):
    process = site.start("--concurrency", "1")
    site.do("step.enqueue(1, seconds=3)", "step.enqueue(2)")
    until("it has begun", lambda: "begin 1" in site.noted())
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 0
    assert site.noted() == {"begin 1": 1, "end 1": 1}
    assert site.statuses() == {"SUCCESSFUL": 1, "READY": 1}
    site.start()
    until("the other has ended", lambda: "end 2" in site.noted())


def test_what_takes_longer_than_the_drain_is_cut_off_and_run_by_another(site):
    process = site.start("--drain", "0.5")
    site.do("step.enqueue(1, seconds=6)")
    until("it has begun", lambda: "begin 1" in site.noted())
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 1
    assert site.statuses() == {"READY": 1}
    site.start()
    until("it has ended", lambda: "end 1" in site.noted())
    assert site.noted() == {"begin 1": 2, "end 1": 1}


def test_messages_that_the_broker_has_lost_cost_a_moment(site, broker):
    site.do("step.enqueue(1)", "step.using(queue_name='mail').enqueue(2)")
    for queue in ("default", "mail"):
        broker.ctl(
            "delete_queue",
            "--vhost",
            "carillon",
            f"{site.environ['SITE_PREFIX']}.d.carillon.tasks.default.{queue}",
        )
    site.start()
    until("both have ended", lambda: {"end 1", "end 2"} <= set(site.noted()))
    assert "announced anew" in site.log.read_text()


def test_connections_that_are_cut_do_not_run_a_task_twice(site, broker):
    site.start()
    site.start()
    site.do("for number in range(4): step.enqueue(number, seconds=6)")
    until("they have begun", lambda: len(site.noted()) == 4)
    broker.close_connections()
    until("they have ended", lambda: len(site.noted()) == 8)
    until("all are kept", lambda: site.statuses() == {"SUCCESSFUL": 4})
    assert set(site.noted().values()) == {1}


def test_what_is_enqueued_while_the_broker_is_away_is_run(site, broker):
    site.start()
    site.do("step.enqueue(0)")
    until("it runs", lambda: "end 0" in site.noted())
    broker.remember_queues()
    broker.kill()
    try:
        site.do("for number in range(1, 30): step.enqueue(number)")
    finally:
        broker.start()
    until("all have ended", lambda: sum(site.noted().values()) >= 60)
    assert set(site.noted().values()) == {1}

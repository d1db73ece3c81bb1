"""Attacks with a bounded cost on the running stack, and an ordinary client beside them."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import requests

from tests.integration.conftest import Container, Stack, stack

__all__ = ["stack"]

CALM_SECONDS = 2.0
ATTACK_SECONDS = 5.0
LEAST = 100
"""Requests that a p99 is made of."""
FLOOR = 0.05 if os.environ.get("CARILLON_LONG") else 1.0
"""Seconds of a p99 that nobody minds. What these attacks broke took three to twelve; below one the gate would
measure who else uses its machine. `CARILLON_LONG=1 make test`, on a quiet one, asks for twice the calm."""


@dataclass
class Times:
    """What an ordinary client's requests took, in seconds: of the API, and from a POST to its frame."""

    api: list[float] = field(default_factory=list)
    frame: list[float] = field(default_factory=list)

    @staticmethod
    def _p99(times: list[float]) -> float:
        assert len(times) >= LEAST, f"only {len(times)} requests were measured"
        return sorted(times)[len(times) * 99 // 100]

    @property
    def p99(self) -> dict[str, float]:
        return {"api": self._p99(self.api), "frame": self._p99(self.frame)}

    def worse_of(self, other: Times) -> Times:
        """That of both whose requests took longer."""
        return Times(max(self.api, other.api, key=self._p99), max(self.frame, other.frame, key=self._p99))


class Ordinary:
    """A client that asks the API with its token, publishes, and hears its own events by a socket."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.http = requests.Session()
        self.http.trust_env = False  # a bundle that the environment names would come before ours
        self.http.verify = stack.ca
        self.http.headers["Authorization"] = f"Bearer {stack.token}"
        self.group = stack.new_job()["id"]

    def calm(self) -> Times:
        """What it takes while nothing else happens."""
        end = time.monotonic() + CALM_SECONDS
        return self._measure(lambda: time.monotonic() > end)

    def _measure(self, done: Callable[[], bool]) -> Times:
        times = Times()
        with self.stack.socket() as socket:
            socket.frame()
            socket.subscribe({"job_events": [self.group]})
            while not done() or len(times.frame) < LEAST:
                begun = time.monotonic()
                answer = self.http.get(f"{self.stack.url}/api/v2/me/", timeout=30)
                assert answer.status_code == 200, answer.text
                times.api.append(time.monotonic() - begun)
                word = uuid.uuid4().hex
                begun = time.monotonic()
                answer = self.http.post(
                    f"{self.stack.url}/api/v2/notifications/",
                    json={"group": f"job_events-{self.group}", "payload": {"word": word}},
                    timeout=30,
                )
                assert answer.status_code == 202, answer.text
                while socket.frame().get("word") != word:
                    pass
                times.frame.append(time.monotonic() - begun)
        return times

    def hardly_notices(self, attack: Callable[[], None]) -> None:
        """The p99 beside the attack stays below a second, or twice the calm one where that is more (`FLOOR`).
        The calm one is measured before and behind it. A machine that does something else meanwhile gets three
        tries: what an attack breaks, it breaks always."""
        for last in (False, False, True):
            calm = self.calm()
            during = self._beside(attack)
            calm = calm.worse_of(self.calm())
            report("p99", calm=calm.p99, during=during.p99, load=os.getloadavg()[0])
            if all(during.p99[what] <= max(2 * calm.p99[what], FLOOR) for what in calm.p99):
                return
            assert not last, f"calm {calm.p99}, beside the attack {during.p99}"

    def _beside(self, attack: Callable[[], None]) -> Times:
        over = threading.Event()
        found: list[Times | BaseException] = []

        def work() -> None:
            try:
                found.append(self._measure(over.is_set))
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            attack()
        finally:
            over.set()
            thread.join(120)
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]


def report(what: str, **values: object) -> None:
    """One line of JSON for who wants the figures (`pytest -s`), and for the file CARILLON_SECURITY_REPORT."""
    line = json.dumps({"what": what, "test": os.environ.get("PYTEST_CURRENT_TEST", ""), **values})
    print(line)
    if path := os.environ.get("CARILLON_SECURITY_REPORT"):
        with open(path, "a") as file:
            file.write(line + "\n")


class Inside(Container):
    """A service of the stack, seen from inside."""

    def run(self, *command: str) -> str:
        return self._docker("exec", self.id, *command)

    def proc(self, name: str) -> str:
        """This file of each process; one of them may end meanwhile."""
        return self.run("sh", "-c", f"cat /proc/[0-9]*/{name} 2>/dev/null || true")

    def memory(self) -> int:
        """Bytes that its processes have."""
        text = self.proc("status")
        return 1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))

    def logs(self, since: str) -> str:
        done = subprocess.run(
            ["docker", "logs", "--since", since, self.id], capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    def stored(self, *paths: str) -> int:
        """Bytes on the file systems of these paths: also of files that have no name any more."""
        lines = self.run("df", "-kP", *paths).splitlines()[1:]
        used = {line.split()[5]: int(line.split()[2]) for line in lines}
        return 1024 * sum(used.values())


@pytest.fixture(scope="session")
def inside(stack) -> Callable[[str], Inside]:
    """`inside("uwsgi")`."""
    project = os.environ.get("CARILLON_STACK_PROJECT")
    if not project:
        pytest.skip("CARILLON_STACK_PROJECT names no compose project")
    return lambda service: Inside(project, service)


@pytest.fixture(scope="session")
def ordinary(stack) -> Ordinary:
    return Ordinary(stack)


class Watched:
    """The most that a figure grows by while a block lasts."""

    def __init__(self, figure: Callable[[], int]) -> None:
        self._figure = figure
        self._over = threading.Event()
        self.before = self.most = 0

    def __enter__(self) -> Watched:
        self.before = self.most = self._figure()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.3):
            self.most = max(self.most, self._figure())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        self.most = max(self.most, self._figure())

    @property
    def growth(self) -> int:
        return self.most - self.before


def together(
    count: int,
    work: Callable[[int], None],
    seconds: float = ATTACK_SECONDS,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """`work(number)` again and again in so many threads, for so long, or until it is `enough`. The first
    error of any is raised."""
    end = time.monotonic() + seconds
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            while time.monotonic() < end and not errors and not enough():
                work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
    if errors:
        raise errors[0]


def manage(inside: Callable[[str], Inside], code: str) -> str:
    """What a line of Python prints in the stack's own Django."""
    return inside("uwsgi").run("carillon", "manage", "shell", "--no-imports", "--command", code).strip()


@pytest.fixture(scope="module")
def a_user(inside) -> Iterator[str]:
    """The token of one who is no admin, and may do nothing but what everybody may."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    yield manage(
        inside,
        "from django.contrib.auth import get_user_model as model\n"
        "from carillon.accounts.models import ApiToken\n"
        f"print(ApiToken.issue(model().objects.create_user('{name}'))[1])",
    )
    manage(
        inside,
        "from django.contrib.auth import get_user_model as model\n"
        f"model().objects.get(username='{name}').delete()",
    )


@pytest.fixture
def forgotten(inside) -> Iterator[None]:
    """The budgets of logins are as if nobody had tried, before the test and behind it."""
    code = "from carillon.accounts.models import LoginBudget; LoginBudget.objects.all().delete()"
    manage(inside, code)
    yield
    manage(inside, code)

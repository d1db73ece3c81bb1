"""The page against a world that does what it likes: a story by seed, and after each part it shows the truth.

A story is made of steps: the network goes, answers are bad or late, the server is killed and started again,
jobs begin, write and end while the page is away or its tab hidden, and the reader goes about. After some of
them all is well again. Within three seconds the page must then show what the server has, or say what it does
not know; in the end it must show it. What the reader reads must not move meanwhile. A story that fails tells
itself. With an odd seed the server has a log, and the link resumes; with an even one it speaks version 1.

    CARILLON_STORIES=1-20 CARILLON_STORY_STEPS=200 pytest tests/browser/test_story.py
"""

import json
import os
import random
import time
import urllib.error
from pathlib import Path

import pytest
from playwright.sync_api import Error

from tests.browser.conftest import Fake, end, free_port, start_fake
from tests.browser.network import Cable

LOOKS = 30  # a tenth of a second between two: three seconds, more where the machine is slow
PATIENCE = 400  # looks until what was said to be unknown is known
STEPS = int(os.environ.get("CARILLON_STORY_STEPS", "30"))
STATES = {
    "All": None,
    "Active": ("new", "pending", "waiting", "running"),
    "Successful": ("successful",),
    "Failed": ("failed", "error"),
    "Canceled": ("canceled",),
}
FIGURES = ("ok", "changed", "failed")
NAMES = ("Roll out", "Back up", "Rotate", "Patch")


def seeds():
    first, _, last = os.environ.get("CARILLON_STORIES", "1-2").partition("-")
    return range(int(first), int(last or first) + 1)


def plural(count, word):
    return f"{count:,} {word}{'' if count == 1 else 's'}"


class World:
    """The server and its truth. What happens while it is down is there when it is started again."""

    def __init__(self, folder, resumes):
        self.port = free_port()
        self.folder = folder
        self.process = None
        self.orders = []
        self.jobs = {}
        self.lines = {}
        self.counter = {}
        self.figures = {}
        self.numbered = {}
        self.start()
        self.fake = Fake(self.port)
        if resumes:
            self.do("log")

    def do(self, action, **order):
        self.orders.append({"do": action, **order})
        if self.process:
            try:
                self.fake.do(action, **order)
            except urllib.error.HTTPError:
                pytest.fail((self.folder / "log").read_text()[-5000:])

    def start(self):
        orders = self.folder / "orders.json"
        orders.write_text(json.dumps(self.orders))
        self.process = start_fake(self.port, self.folder / "log", orders)

    def stop(self):
        """Killed, as by the kernel."""
        self.process.kill()
        end(self.process)
        self.process = None

    def begin(self, number, name, status, quiet=False):
        self.do("job", quiet=quiet, fields={"number": number, "name": name, "status": status})
        self.jobs[number] = [name, status]
        self.lines[number] = []
        self.counter[number] = 0
        self.figures[number] = dict.fromkeys(FIGURES, 0)
        self.numbered[number] = number % 2 == 0

    def status(self, numbers, status):
        self.do("status", jobs=numbers, status=status)
        for number in numbers:
            self.jobs[number][1] = status

    def write(self, number, dice, count, live=True):
        """So many events of all kinds: several lines, none, a failure."""
        events = [self.event(number, dice) for _ in range(count)]
        self.do("events", job=number, events=events, live=live)
        return len(self.lines[number])

    def event(self, number, dice):
        self.counter[number] += 1
        kind = dice.choice(["verbose", "runner_on_ok", "runner_on_ok", "runner_on_failed"])
        changed = kind == "runner_on_ok" and dice.random() < 0.3
        self.figures[number]["ok"] += kind == "runner_on_ok"
        self.figures[number]["changed"] += changed
        self.figures[number]["failed"] += kind == "runner_on_failed"
        before = len(self.lines[number])
        texts = [
            f"{number} {before + part + 1}" + " word" * dice.choice([0, 0, 1, 5, 40])
            for part in range(dice.choice([1, 1, 1, 2, 3, 0]))
        ]
        self.lines[number] += texts
        where = {"start_line": before, "end_line": len(self.lines[number])} if self.numbered[number] else {}
        return {
            "counter": self.counter[number],
            "event": kind,
            "stdout": "\n".join(texts),
            "changed": changed,
            "failed": kind == "runner_on_failed",
            **where,
        }

    # What the page shows and is not so --------------------------------------------------------------------

    def wrong(self, seen):
        if seen.get("broken"):
            yield "no view is shown"
        if "jobs" in seen:
            yield from self.wrong_list(seen["jobs"])
        if "job" in seen:
            yield from self.wrong_job(seen["job"])

    def wrong_list(self, shown):
        states = STATES[shown["states"]]
        wanted = [
            number
            for number, (name, status) in sorted(self.jobs.items(), reverse=True)
            if (states is None or status in states) and shown["search"].lower() in name.lower()
        ]
        rows = shown["rows"]
        for number, name, status in rows:
            if self.jobs[number] != [name, status]:
                yield f"the list has job {number} as {name}, {status}; it is {self.jobs[number]}"
        numbers = [number for number, _, _ in rows]
        if numbers != sorted(set(numbers), reverse=True):
            yield f"the list is not in order: {numbers}"
        last = min(numbers, default=0) if shown["more"] else 0
        missing = [number for number in wanted if number not in numbers and number >= last]
        if len(missing) != shown["waits"]:
            yield f"the list has not {missing}, and says that {shown['waits']} wait"
        if shown["empty"] and wanted:
            yield f"the list says {shown['empty']!r} of {wanted}"

    def wrong_job(self, shown):
        number = shown["id"]
        truth = self.lines[number]
        if shown["status"] != self.jobs[number][1]:
            yield f"job {number} is shown as {shown['status']}, it is {self.jobs[number][1]}"
        words = [plural(len(truth), "line")] if truth else ["No output", "Waiting for output"]
        if shown["count"] not in words:
            yield f"the count says {shown['count']!r}, not {words[0]!r}"
        figures = {name: shown["figures"].get(name) for name in FIGURES}
        if figures != {name: f"{count:,}" for name, count in self.figures[number].items()}:
            yield f"the figures are {figures}, not {self.figures[number]}"
        if shown["notes"]:
            yield f"something is called missing: {shown['notes']}"
        yield from self.wrong_lines(shown["lines"], truth)
        if truth and shown["follows"]:
            if not shown["lines"] or shown["lines"][-1][0] != len(truth):
                yield f"followed, the output ends at {shown['lines'][-1:]} of {len(truth)}"
            elif shown["away"] > 4:
                yield f"followed, the end is {shown['away']} pixels away"
        if truth and not shown["lines"]:
            yield f"of {len(truth)} lines none is shown"

    @staticmethod
    def wrong_lines(lines, truth):
        first = lines[0][0] if lines else 0
        for at, (number, text) in enumerate(lines):
            if number != first + at:
                yield f"line {number} stands where {first + at} belongs"
                return
            if number > len(truth) or text != truth[number - 1]:
                yield f"line {number} is {text[:30]!r}, not {truth[number - 1 : number]}"
                return


def excuses(seen):
    """What the page says that it does not know."""
    if not seen["link"].startswith(("Connected", "Resumed")) and not seen["login"]:
        yield seen["link"]
    for name in ("jobs", "job", "table"):
        yield from seen.get(name, {}).get("problems", ())
    if seen.get("jobs", {}).get("busy"):
        yield "the list is loading"
    if seen.get("job", {}).get("count") == "Loading the output":
        yield "the output is loading"


class Story:
    def __init__(self, seed, world, watched):
        self.dice = random.Random(seed)
        self.world = world
        self.page = watched.page
        self.cable = Cable(("127.0.0.1", world.port))
        self.words = [f"seed {seed}"]
        self.begun = time.monotonic()
        self.read = None  # what the reader reads, as long as nothing of the reader's moves it
        self.away = False  # the network, or the server
        self.hidden = False
        self.past = 0  # how often the reader can go back
        self.resumes = bool(seed % 2)
        self.url = f"http://localhost:{self.cable.port}/"

    def tell(self, words):
        self.words.append(f"{time.monotonic() - self.begun:6.1f} s  {words}")

    def failed(self, what):
        return "\n".join([*self.words, "but:", *what])

    # Steps: what they are called is their story -----------------------------------------------------------

    def job(self):
        return self.dice.choice(sorted(self.world.jobs))

    def open_job(self):
        """The one that is looked at, most of the time."""
        shown = self.look().get("job")
        return shown["id"] if shown and self.dice.random() < 0.8 else self.job()

    def cut(self):
        self.away = True
        self.cable.cut()
        return "the network goes"

    def swallow(self):
        self.away = True
        self.cable.swallow()
        return "the network falls silent"

    def offline(self):
        self.away = True
        self.page.context.set_offline(True)
        return "the computer is offline"

    def mend(self):
        self.cable.mend()
        self.page.context.set_offline(False)
        if not self.world.process:
            self.world.start()
        self.away = False
        return "the network and the server are there"

    def kill(self):
        if self.world.process:
            self.away = True
            self.world.stop()
        return "the server is killed"

    def close(self):
        self.world.do("close", code=self.dice.choice([1000, 4408]))
        return "the link is closed"

    def forget(self):
        if not self.resumes:
            return None
        self.world.do("forget")
        return "the log loses what was before"

    def path(self):
        job = f"/api/v2/jobs/{self.open_job()}/"
        events = f"{job}events/"
        return self.dice.choice(["/api/v2/jobs/", job, events, events, f"{job}summary/", "/api/v2/me/"])

    def fail(self):
        path, times = self.path(), self.dice.choice([1, 2, 3])
        self.world.do("fail", path=path, times=times)
        return f"502 {times} times at {path}"

    def hold(self):
        path, seconds = self.path(), round(self.dice.uniform(0.1, 1.5), 2)
        self.world.do("hold", path=path, seconds=seconds)
        return f"an answer of {path} comes {seconds} s late"

    def begin(self):
        number = max(self.world.jobs) + 1
        count = self.dice.choice([1, 1, 1, 7])
        for one in range(number, number + count):
            self.world.begin(one, f"{self.dice.choice(NAMES)} {one}", "running")
        return f"{count} jobs begin at {number}"

    def end(self):
        numbers = self.dice.sample(sorted(self.world.jobs), self.dice.choice([1, 1, 2, 5]))
        status = self.dice.choice(["successful", "failed", "canceled", "running"])
        self.world.status(numbers, status)
        return f"jobs {numbers} are {status}"

    def write(self):
        number, count = self.open_job(), self.dice.choice([1, 3, 20, 150])
        return f"job {number} writes {count} events: {self.world.write(number, self.dice, count)} lines"

    def flood(self):
        number, count = self.open_job(), self.dice.choice([600, 1300])
        return f"job {number} writes {count} events: {self.world.write(number, self.dice, count)} lines"

    def lose(self):
        if self.resumes:
            return None
        number = self.open_job()
        self.world.write(number, self.dice, self.dice.choice([1, 4, 250]), live=False)
        return f"events of job {number} are lost on the way: {self.world.write(number, self.dice, 1)} lines"

    def go(self):
        self.read = None
        place = self.dice.choice([*[f"jobs/{self.job()}"] * 4, "jobs", "schedules", "connections"])
        self.visit(f"#/{place}")
        return f"the reader goes to {place}"

    def visit(self, place):
        before = self.script("history.length")
        self.script("place => { location.hash = place; }", place)
        self.past += self.script("history.length") > before

    def back(self):
        if not self.past:
            return None
        self.read = None
        self.past -= 1
        self.script("history.back()")
        return "the reader goes back"

    def reload(self):
        if self.away:
            return None
        self.read = None
        self.hidden = False
        self.page.goto(self.url + self.script("location.hash"))
        self.page.reload()
        return "the page is loaded again"

    def choose(self):
        name = self.dice.choice(list(STATES))
        if not self.click(f".chip >> text={name}"):
            return None
        return f"the list shows: {name}"

    def search(self):
        text = self.dice.choice(["", *NAMES])
        if self.script("document.querySelector('.search') === null"):
            return None
        self.script("text => seek(text)", text)
        self.page.wait_for_timeout(350)
        return f"the reader searches {text!r}"

    def line(self):
        number = self.open_job()
        if not self.world.lines[number]:
            return None
        self.read = None
        line = self.dice.randint(1, len(self.world.lines[number]))
        self.visit(f"#/jobs/{number}?line={line}")
        return f"the reader goes to line {line} of job {number}"

    def scroll(self):
        self.read = None
        to = self.dice.choice(
            ["0", "1e9", *(f"output.scrollTop {by}" for by in ("- 400", "- 4000", "+ 900"))]
        )
        self.script(
            f"() => {{ const output = document.querySelector('.output') ?? {{}}; output.scrollTop = {to}; }}"
        )
        return f"the reader scrolls to {to}"

    def wheel(self):
        self.read = None
        self.page.mouse.move(900, 600)
        self.page.mouse.wheel(0, self.dice.choice([-200, -900]))
        return "the reader turns the wheel"

    def follow(self):
        self.read = None
        return "Follow" if self.click(".tool:last-of-type") else None

    def wrap(self):
        return "Wrap" if self.click(".tool >> text=Wrap") else None

    def failure(self):
        self.read = None
        return "Failure" if self.click(".tool[title='Next failure']") else None

    def size(self):
        width, height = self.dice.choice([1280, 1150, 700]), self.dice.choice([800, 500])
        self.page.set_viewport_size({"width": width, "height": height})
        return f"the window is {width} x {height}"

    def more(self):
        return "the new jobs" if self.click("section.jobs .over button") else None

    def hide(self):
        self.hidden = not self.hidden
        self.script(f"hide({json.dumps(self.hidden)})")
        return f"the tab is {'hidden' if self.hidden else 'looked at'}"

    def session(self):
        if self.away:
            return None
        self.read = None
        self.world.do("session", valid=False)
        self.world.do("close", code=4401)
        return "the login ends"

    def logout(self):
        self.read = None
        self.click("#logout")
        return "the reader logs out"

    def wait(self):
        seconds = round(self.dice.uniform(0.2, 1.5), 1)
        self.page.wait_for_timeout(1000 * seconds)
        return f"{seconds} s go by"

    def click(self, selector):
        """As a reader would: what is not there is not clicked."""
        found = self.page.locator(selector).first
        if found.count() == 0 or not found.is_visible():
            return False
        found.dispatch_event("click")
        return True

    WEIGHTS = {
        write: 14, begin: 4, end: 5, flood: 2, lose: 3,
        go: 8, back: 2, reload: 2, choose: 3, search: 2, more: 2, size: 2, hide: 4, wait: 6,
        session: 1, logout: 1, line: 4, scroll: 6, wheel: 3, follow: 4, wrap: 2, failure: 2,
        cut: 3, swallow: 1, offline: 2, mend: 5, kill: 1, close: 3, forget: 1, fail: 5, hold: 4,
    }  # fmt: skip

    def step(self):
        (step,) = self.dice.choices(list(self.WEIGHTS), list(self.WEIGHTS.values()))
        words = step(self)
        if words:
            self.tell(words)
            self.page.wait_for_timeout(self.dice.choice([0, 0, 20, 100, 300]))

    # What is seen -----------------------------------------------------------------------------------------

    def look(self):
        return self.script("look()")

    def script(self, *script):
        for _ in range(LOOKS):
            try:
                return self.page.evaluate(*script)
            except Error as error:  # it is being loaded
                last = error
                self.page.wait_for_timeout(100)
        raise last

    def calm(self):
        """All is well from now on."""
        self.mend()
        for order in [one for one in self.world.orders if one["do"] == "fail"]:
            self.world.fake.do("fail", path=order["path"], times=0)
        self.world.orders = [one for one in self.world.orders if one["do"] not in ("fail", "hold", "close")]
        if self.hidden:
            self.hide()
        self.tell("all is well")

    def settle(self):
        self.calm()
        left, patience = LOOKS, PATIENCE
        while True:
            seen = self.look()
            if seen["login"]:
                self.login()
                left = LOOKS
                continue
            wrong, unknown = list(self.world.wrong(seen)), list(excuses(seen))
            if not wrong and not unknown:
                break
            if unknown:
                patience -= 1
                self.click("#link-retry")
                if patience % 20 == 0:
                    self.click(".problem:not([hidden]) button")
            else:
                left -= 1
            assert left > 0, self.failed([*wrong, f"and the page says: {seen['link']}"])
            assert patience > 0, self.failed([*wrong, f"for ever: {unknown}"])
            self.page.wait_for_timeout(100)
        self.compare(seen.get("job"))
        self.tell("the page shows the truth")

    def login(self):
        self.world.do("session", valid=True)
        self.page.get_by_label("Username").fill("ringer")
        self.page.get_by_label("Password").fill("bells")
        self.page.keyboard.press("Enter")
        self.page.locator("#username").wait_for(state="detached")
        self.tell("the reader logs in")

    def compare(self, shown):
        """What is read has not moved, unless it lies at an end of the output."""
        before, self.read = self.read, None
        if not shown or shown["follows"] or not shown["read"]:
            return
        self.script("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        shown = self.look()["job"]
        edge = shown["top"] < 2 or shown["away"] < 2
        self.read = (shown["id"], shown["read"], edge)
        if not before or before[2] or edge or before[0] != shown["id"]:
            return
        number, top = before[1]
        at = self.script("number => at(number)", number)
        moved = at is None or abs(top - at) >= 3
        assert not moved, self.failed([f"line {number} was read at {top}, and is at {at}"])

    def run(self, steps):
        self.page.goto(self.url)
        self.settle()
        while steps > 0:
            part = min(steps, self.dice.randint(1, 8))
            for _ in range(part):
                self.step()
            steps -= part
            self.settle()


@pytest.mark.parametrize("seed", seeds())
def test_a_story(seed, tmp_path, open_page):
    watched = open_page()
    watched.expect("50[0-9]|401|ERR_|WebSocket connection to|Failed to fetch")
    watched.page.add_init_script(path=Path(__file__).with_name("story.js"))
    world = World(tmp_path, resumes=bool(seed % 2))
    try:
        story = Story(seed, world, watched)
        for number in range(1, 6):
            world.begin(number, f"{NAMES[number % 4]} {number}", "running", quiet=True)
            world.write(number, story.dice, story.dice.choice([0, 30, 250, 1400]))
        story.run(STEPS)
    finally:
        if world.process:
            end(world.process)

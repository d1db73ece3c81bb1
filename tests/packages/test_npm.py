"""The client as an npm package, installed into an empty project: in Node, in a browser and in React."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import tarfile
import threading
from functools import partial

import pytest
from websockets.sync.server import serve

from release import make
from tests.browser.conftest import browser, open_page
from tests.packages import suites

__all__ = ["browser", "open_page"]
SOURCE = suites.ROOT / "release" / "npm"
RUN = ("node", "--experimental-websocket", "--input-type=module", "--eval")
LISTEN = """
    import { Carillon, describe } from "carillon-client";
    const said = { events: [], states: [], recovered: [] };
    const link = new Carillon({ url: "URL", base: 1, token: "t" });
    link.on("bells", (event) => said.events.push(event.text));
    link.on("state", (now) => {
      const word = describe(now).replace(/ .*/, "");
      if (said.states.at(-1) !== word) said.states.push(word);
    });
    link.onreconnect = ({ recovered }) => said.recovered.push(recovered);
    link.subscribe({ bells: [1] });
    link.connect();
    while (said.events.length < 3) await new Promise((done) => setTimeout(done, 10));
    const position = link.position;
    link.close();
"""
HEARD = {
    "events": ["one", "two", "three"],
    "states": ["Connecting", "Connected", "Reconnecting", "Connected", "Closed"],
    "recovered": [True],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """An empty project that has installed the package."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine")
    folder = tmp_path_factory.mktemp("npm")
    make.npm_package(suites.ROOT, "0.1.0", folder, 0)
    (folder / "project").mkdir()
    (folder / "project" / "package.json").write_text('{"private": true}')
    subprocess.run(
        ["npm", "install", "--offline", "--no-audit", "--no-fund", "../carillon-client-0.1.0.tgz"],
        cwd=folder / "project", check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    return folder / "project"


@pytest.fixture
def url():
    """A server that plays Carillon: the link breaks behind the first event, and the next has the rest."""
    seen = []

    def play(socket):
        asked = len(seen)
        socket.send(json.dumps({"accept": True, "user": 7, "position": "e:0"}))
        wanted = json.loads(socket.recv())
        seen.append(wanted)
        socket.send(
            json.dumps({"groups_current": ["bells-1"], "groups_left": [], "groups_joined": ["bells-1"]})
        )

        def event(number, text):
            payload = {"group_name": "bells", "text": text}
            socket.send(json.dumps({"group": "bells-1", "event": payload, "position": f"e:{number}"}))

        if asked == 0:
            socket.send(json.dumps({"recovered": True, "position": "e:0"}))
            event(1, "one")
            socket.close(1012)
            return
        assert wanted["since"] == "e:1"
        event(1, "one")  # again: it is heard once
        event(2, "two")
        socket.send(json.dumps({"recovered": True, "position": "e:2"}))
        event(3, "three")
        for _ in socket:
            pass

    with serve(play, "127.0.0.1", 0, subprotocols=["carillon.v2"]) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        server.shutdown()
        thread.join()


def node(folder, program):
    done = subprocess.run(
        [*RUN, program], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_npm_packs_what_the_release_has(project, tmp_path):
    """`npm pack` of what is installed: the same files, each with the same bytes."""
    package = project / "node_modules" / "carillon-client"
    subprocess.run(["npm", "pack", package], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as tar:
        packed = {name.removeprefix("package/"): tar.extractfile(name).read() for name in tar.getnames()}
    assert packed.keys() == {"package.json", "README.md", "LICENSE", "carillon.js", "carillon.d.ts"}
    assert packed == {path.name: path.read_bytes() for path in package.iterdir()}


def test_the_types_are_those_of_the_module(project):
    program = """
        import * as all from "carillon-client";
        const methods = (made) => Object.getOwnPropertyNames(made.prototype).filter((name) => !/^_|^constructor$/.test(name));
        console.log(JSON.stringify({ "": Object.keys(all), Carillon: methods(all.Carillon), Memory: methods(all.Memory) }));
    """  # noqa: E501
    has = node(project, program)
    types = (SOURCE / "carillon.d.ts").read_text()
    assert set(re.findall(r"^export (?:function|class) (\w+)", types, re.M)) == set(has.pop(""))
    for name, methods in has.items():
        body = re.search(rf"^export class {name} \{{\n(.*?)^\}}", types, re.M | re.S)[1]
        said = set(re.findall(r"^  (?:readonly )?(\w+)(?=[(:])", body, re.M)) - {"constructor"}
        assert set(methods) <= said
        assert said - set(methods) <= {"link", "onreconnect", "since", "replaying"}


def test_in_node_a_break_is_no_loss(project, url):
    said = node(project, LISTEN.replace("URL", url) + "console.log(JSON.stringify({ ...said, position }));")
    assert said == {**HEARD, "position": "e:3"}


def test_in_a_browser_a_break_is_no_loss(project, url, open_page):
    program = LISTEN.replace("URL", url) + "globalThis.said = { ...said, position };"
    where = "/node_modules/carillon-client/carillon.js"
    names = json.dumps({"imports": {"carillon-client": where}})
    page = f"""<!doctype html><script type="importmap">{names}</script>
        <script type="module">{program}</script>"""
    (project / "index.html").write_text(page)
    handler = partial(Quiet, directory=project)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watched = open_page()
        watched.expect("favicon")
        watched.page.goto(f"http://127.0.0.1:{server.server_port}/")
        said = watched.page.wait_for_function("globalThis.said").json_value()
        server.shutdown()
    assert said == {**HEARD, "position": "e:3"}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing."""


REACT = """
    // As much of React as a hook asks for.
    let cells = [], at = 0, hook;
    const render = () => { at = 0; globalThis.shown = hook(); };
    export const useState = (first) => {
      const place = at++;
      if (!(place in cells)) cells[place] = first;
      const set = (next) => {
        cells[place] = typeof next === "function" ? next(cells[place]) : next;
        render();
      };
      return [cells[place], set];
    };
    export const useEffect = (effect, needs) => {
      const place = at++, before = cells[place];
      if (before && JSON.stringify(before.needs) === JSON.stringify(needs)) return;
      before?.end();
      cells[place] = { needs };
      queueMicrotask(() => (cells[place].end = effect()));
    };
    export const mount = (what) => { hook = what; render(); };
    export const unmount = () => cells.forEach((cell) => cell?.end?.());
"""


def test_the_hook_of_the_readme(project, url):
    code = re.search(r"In React, a hook:\n\n```js\n(.*?)```", (SOURCE / "README.md").read_text(), re.S)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    react = project / "node_modules" / "react"
    react.mkdir(exist_ok=True)
    (react / "package.json").write_text('{"type": "module", "exports": "./index.js"}')
    (react / "index.js").write_text(REACT)
    (project / "hook.mjs").write_text(code)
    said = node(
        project,
        f"""
        import {{ mount, unmount }} from "react";
        import {{ useCarillon }} from "./hook.mjs";
        const options = {{ url: "{url}", base: 1, token: "t" }};
        mount(() => useCarillon({{ bells: [1] }}, {{ options, onlost: () => console.log("lost") }}));
        while (shown.events.length < 3) await new Promise((done) => setTimeout(done, 10));
        const {{ events, state }} = shown;
        unmount();
        console.log(JSON.stringify({{ texts: events.map((event) => event.text), state, end: shown.state }}));
        """,
    )
    assert said == {"texts": ["one", "two", "three"], "state": "connected", "end": "closed"}

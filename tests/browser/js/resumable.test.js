// The pages of docs/how-to/resumable-consumer.md and token-streams.md, as they stand there, on a socket that is played.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

function load(page, name, names) {
  const text = readFileSync(new URL(`../../../docs/how-to/${page}`, import.meta.url), "utf8");
  const code = [...text.matchAll(/^```js\n(.*?)^```$/gms)].at(-1)[1];
  return new Function(...Object.keys(names), `${code}; return ${name};`)(...Object.values(names));
}

function world() {
  const opened = [];
  const state = { opened, reloads: 0 };
  class WebSocket {
    constructor(url) {
      this.query = new URL(url).searchParams;
      opened.push(this);
    }
    says(frame) { this.onmessage({ data: JSON.stringify(frame) }); }
    close() { this.closed = true; this.onclose({}); }
  }
  const location = { host: "carillon.test", reload: () => { state.reloads += 1; } };
  const setTimeout = (again) => again();
  return { state, names: { WebSocket, location, setTimeout } };
}

test("a chat comes back with the last position that it had", () => {
  const { state, names } = world();
  const shown = [];
  load("resumable-consumer.md", "join", names)("tower", (text) => shown.push(text));
  const [first] = state.opened;
  assert.equal(first.query.get("since"), "");
  first.says({ position: "e:1" });
  first.says({ text: "a", position: "e:2" });
  first.close();
  const second = state.opened[1];
  assert.equal(second.query.get("since"), "e:2");
  second.close(); // before it heard anything
  const third = state.opened[2];
  assert.equal(third.query.get("since"), "e:2");
  third.says({ text: "b", position: "e:3" });
  third.says({ recovered: true, position: "e:4" });
  assert.deepEqual([shown, state.reloads], [["a", "b"], 0]);
  third.says({ recovered: false, position: "e:9", reason: "retention" });
  assert.equal(state.reloads, 1);
});

test("an answer begins again at its beginning, and ends", async () => {
  const { state, names } = world();
  const shown = [];
  const fetchAnswer = async (answer) => `all of ${answer}`;
  load("token-streams.md", "follow", { ...names, fetchAnswer })("a1", "e:1", (text) => shown.push(text));
  const [first] = state.opened;
  first.says({ at: 0, piece: "The ", position: "e:2" });
  first.close();
  const second = state.opened[1];
  assert.equal(second.query.get("since"), "e:1");
  second.says({ at: 0, piece: "The ", position: "e:2" });
  second.says({ at: 4, piece: "bells", position: "e:3" });
  second.says({ at: 4, piece: "bells", position: "e:4" }); // of a writer that began again
  assert.equal(shown.at(-1), "The bells");
  second.says({ recovered: false, position: "e:9", reason: "retention" });
  await null;
  await null;
  assert.equal(shown.at(-1), "all of a1");
  second.says({ at: 9, done: true, position: "e:10" });
  assert.equal(second.closed, true);
  assert.equal(state.opened.length, 2);
});
